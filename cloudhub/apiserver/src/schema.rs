//! What the types look like: whether a body is an object of its kind, what Go would make of it, and the OpenAPI documents.
//!
//! * `build.rs` makes the tables in [`types`] from k8s-openapi's schemas, `schema/facts.txt` and `schema/numbers.txt`; they are static
//!   and cost no heap
//! * [`walk`] goes once through a body or a value, by the tables: wrong types, unknown and duplicate fields, empties
//! * [`protobuf`]: bodies in that form become values
//! * [`scalar`]: quantities, times, base64
//! * [`openapi`]: the documents that kubectl reads, made when first asked for
//!
//! No state beside the documents' cache. Nothing here panics on any input; a body that does not fit is a [`Status`].

mod openapi;
mod paths;
mod protobuf;
mod scalar;
mod types;
mod walk;

use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

pub(crate) use self::openapi::{openapi_document, openapi_document_gzip, openapi_index};
pub(crate) use self::protobuf::MAGIC as PROTOBUF_MAGIC;
pub(crate) use self::types::{Shape, Type, find};
use crate::status::Status;

/// A body that fits its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decoded {
    /// The object as Go would write it, without its unknown fields and without what Go leaves out where it is empty.
    pub object: Value,
    /// What strict decoding finds: `unknown field "spec.foo"`, `duplicate field "spec.x"`; at most 100.
    pub faults: Vec<String>,
}

/// The version in `GROUP/VERSION`.
fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or_default()
}

fn unfit(api_version: &str, kind: &str, why: &str) -> Status {
    let version = version_of(api_version);
    Status::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
    ))
}

fn unknown_kind(api_version: &str, kind: &str) -> Status {
    Status::bad_request(format!("no kind {kind:?} is registered for version {api_version:?}"))
}

/// Parses a body, in JSON or in protobuf, as an object of `kind`. The caller has bounded its length.
///
/// # Errors
///
/// 400 for what is neither, nested deeper than [`walk::MAX_DEPTH`], of an unknown kind, or has a value of a wrong type; the field is
/// named.
pub(crate) fn decode(bytes: &[u8], api_version: &str, kind: &str) -> Result<Decoded, Status> {
    let of = find(api_version, kind).ok_or_else(|| unknown_kind(api_version, kind))?;
    if let Some(envelope) = bytes.strip_prefix(PROTOBUF_MAGIC) {
        let object = protobuf::open(envelope).and_then(|opened| protobuf::value(opened.object, of));
        let object = object.map_err(|why| unfit(api_version, kind, &format!("proto: {why}")))?;
        return conform(object, api_version, kind);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let decoded = walk::walk(&mut deserializer, of).map_err(|why| unfit(api_version, kind, &why))?;
    deserializer
        .end()
        .map_err(|e| unfit(api_version, kind, &format!("json: {e}")))?;
    Ok(decoded)
}

/// The same on a value that was parsed before: what a patch made.
///
/// # Errors
///
/// As [`decode`].
pub(crate) fn conform(object: Value, api_version: &str, kind: &str) -> Result<Decoded, Status> {
    let of = find(api_version, kind).ok_or_else(|| unknown_kind(api_version, kind))?;
    walk::walk(object, of).map_err(|why| unfit(api_version, kind, &why))
}

/// Adds what Go writes though nobody set it: structs by value (`resources: {}`, `status: {}`), required numbers, texts and lists.
/// To be called on an object that is about to be stored, after defaults and validation. Idempotent.
pub(crate) fn complete(object: &mut Value, api_version: &str, kind: &str) {
    if let Some(of) = find(api_version, kind) {
        walk::complete(object, of);
    }
}

/// `apiVersion` and `kind` of a body; "" where one is not there.
///
/// # Errors
///
/// 400 for what is neither a JSON object nor an object in protobuf, and where one of the two is no text.
pub(crate) fn identity(bytes: &[u8]) -> Result<(String, String), Status> {
    if let Some(envelope) = bytes.strip_prefix(PROTOBUF_MAGIC) {
        let opened = protobuf::open(envelope)
            .map_err(|why| Status::bad_request(format!("couldn't get version/kind; proto parse error: {why}")))?;
        return Ok((opened.api_version, opened.kind));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Identity(api_version, kind) = deserializer
        .deserialize_map(IdentityVisitor)
        .and_then(|found| deserializer.end().map(|()| found))
        .map_err(|e| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}")))?;
    Ok((api_version, kind))
}

struct Identity(String, String);

struct IdentityVisitor;

impl<'de> Visitor<'de> for IdentityVisitor {
    type Value = Identity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with apiVersion and kind")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Identity, A::Error> {
        let mut found = Identity(String::new(), String::new());
        while let Some(key) = map.next_key::<String>()? {
            let slot = match key.as_str() {
                "apiVersion" => &mut found.0,
                "kind" => &mut found.1,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            match map.next_value::<Option<String>>() {
                Ok(text) => *slot = text.unwrap_or_default(),
                Err(e) => return Err(de::Error::custom(format!("{key}: {e}"))),
            }
        }
        Ok(found)
    }
}

/// 400 for the faults of strict decoding, in the real server's words.
pub(crate) fn strict_error(kind: &str, api_version: &str, faults: &[String]) -> Status {
    unfit(
        api_version,
        kind,
        &format!("strict decoding error: {}", faults.join(", ")),
    )
}

#[cfg(test)]
mod tests;
