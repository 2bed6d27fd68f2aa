//! What a request brings: query, content type, body.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use crate::schema;
use crate::status::Status;

/// As kube-apiserver's limit for a request.
pub(super) const MAX_BODY: usize = 3 << 20;
/// So much of a body that is too large is read before it is refused.
const READ_ON: usize = 4 * MAX_BODY;
/// A body over a bad link; a slower writer is told.
const BODY_WITHIN: Duration = Duration::from_secs(60);
const MAX_PARAMETERS: usize = 1000;

/// Query parameters in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| {
                let fault = || Status::bad_request(format!("query parameter {text:?} is not UTF-8"));
                percent_decode(&text.replace('+', " ")).ok_or_else(fault)
            };
            pairs.push((decoded(name)?, decoded(value)?));
            if pairs.len() > MAX_PARAMETERS {
                return Err(Status::bad_request(format!(
                    "more than {MAX_PARAMETERS} query parameters"
                )));
            }
        }
        Ok(Self { pairs })
    }

    /// The first value of `name`, or "".
    pub(crate) fn get(&self, name: &str) -> &str {
        self.pairs
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, v)| v.as_str())
    }

    /// A boolean as Go reads it; a parameter without a value is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let found = self.pairs.iter().find(|(n, _)| n == name);
        found.is_some_and(|(_, value)| !matches!(value.as_str(), "0" | "false" | "False" | "FALSE" | "f" | "F"))
    }

    /// A whole number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => {
                let fault = |_| Status::bad_request(format!("query parameter {name}={text:?}: must be a whole number"));
                text.parse().map(Some).map_err(fault)
            }
        }
    }

    /// All pairs.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Whether nothing is to be stored.
    pub(super) fn dry_run(&self) -> Result<bool, Status> {
        match self.get("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Status::bad_request(format!(
                "dryRun {other:?}: the only value is \"All\""
            ))),
        }
    }

    /// What becomes of unknown and duplicate fields.
    pub(super) fn validation(&self) -> Result<Validation, Status> {
        match self.get("fieldValidation") {
            "" | "Warn" => Ok(Validation::Warn),
            "Strict" => Ok(Validation::Strict),
            "Ignore" => Ok(Validation::Ignore),
            other => Err(Status::bad_request(format!(
                "fieldValidation {other:?}: must be one of Ignore, Warn, Strict"
            ))),
        }
    }
}

/// What becomes of unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validation {
    Ignore,
    Warn,
    Strict,
}

impl Validation {
    /// The warnings for `faults`, or the refusal.
    pub(super) fn judge(self, faults: Vec<String>, version: &str, kind: &str) -> Result<Vec<String>, Status> {
        match self {
            Self::Strict if !faults.is_empty() => Err(schema::strict_error(kind, version, &faults)),
            Self::Warn => Ok(faults),
            _ => Ok(Vec::new()),
        }
    }
}

/// `%XX` decoded; None when the result is not UTF-8 or an escape is broken.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes.get(at + 1..at + 3)?;
            out.push(u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

/// The whole body. One that is too large is read on for a while: clients that still send when the answer comes and the connection is
/// closed do not see the answer.
pub(super) async fn body(request: Request<Incoming>) -> Result<Bytes, Status> {
    let too_large = || Status::too_large(format!("Request entity too large: limit is {MAX_BODY}"));
    let told = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if told.is_some_and(|length| length > READ_ON) {
        return Err(too_large());
    }
    let slow = |_| {
        Status::new(
            408,
            "Timeout",
            format!("the body did not arrive within {} s", BODY_WITHIN.as_secs()),
        )
    };
    let read = tokio::time::timeout(BODY_WITHIN, whole(request.into_body()));
    read.await.map_err(slow)??.ok_or_else(too_large)
}

/// All bytes; None: more than there may be.
async fn whole(mut body: Incoming) -> Result<Option<Bytes>, Status> {
    let (mut kept, mut size) = (BytesMut::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("the body could not be read: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        size += data.len();
        if size <= MAX_BODY {
            kept.extend_from_slice(data);
        } else if size > READ_ON {
            return Ok(None);
        } else {
            kept = BytesMut::new();
        }
    }
    Ok((size <= MAX_BODY).then(|| kept.freeze()))
}

/// The media type of the body without parameters; "" where none is said.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let text = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// The body of an object, in JSON or in protobuf; which of the two it is, it says by how it begins.
///
/// # Errors
/// 415 for another media type, 400 where the body is not of the one that it says, and as [`body`].
pub(super) async fn object(headers: &HeaderMap, request: Request<Incoming>) -> Result<Bytes, Status> {
    let protobuf = match content_type(headers) {
        "" | "application/json" | "*/*" => false,
        "application/vnd.kubernetes.protobuf" => true,
        other => {
            return Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/vnd.kubernetes.protobuf (this one is {other})"
            )));
        }
    };
    let body = body(request).await?;
    if protobuf == body.starts_with(schema::PROTOBUF_MAGIC) {
        return Ok(body);
    }
    Err(Status::bad_request(if protobuf {
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    } else {
        "the body is in protobuf, but its Content-Type says JSON"
    }))
}

/// JSON of any shape, duplicate keys and all; for options and patches.
pub(super) fn json(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| Status::bad_request(format!("the body is no JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_a_broken_escape_is_named() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch&limit=5&command=a&command=b+c").unwrap();
        assert_eq!(query.get("labelSelector"), "a=b,c");
        assert!(query.flag("watch") && !query.flag("follow"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert_eq!(query.pairs()[4].1, "b c");
        assert_eq!(Query::parse("a=%f").unwrap_err().code, 400);
        assert_eq!(Query::parse("a=%ff").unwrap_err().code, 400);
        assert!(
            Query::parse("limit=x")
                .unwrap()
                .number("limit")
                .unwrap_err()
                .message
                .contains("limit")
        );
    }
}
