//! What a request brings: query, content type, body.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::schema;
use crate::status::{Errors, Status};

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
    pub(super) fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => {
                let fault = |_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
                text.parse().map(Some).map_err(fault)
            }
        }
    }

    /// All pairs.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Whether nothing is to be stored. The options of a write are checked together; `method` says whose they are.
    pub(super) fn dry_run(&self, method: &Method) -> Result<bool, Status> {
        let kind = match *method {
            Method::POST => "CreateOptions",
            Method::PUT => "UpdateOptions",
            Method::PATCH => "PatchOptions",
            _ => "DeleteOptions",
        };
        let mut errors = Errors::default();
        let given: Vec<&str> = self
            .pairs
            .iter()
            .filter(|(n, _)| n == "dryRun")
            .map(|(_, v)| v.as_str())
            .collect();
        manager(self.get("fieldManager"), &mut errors);
        if given.iter().any(|value| *value != "All") {
            errors.not_supported("dryRun", &json!(given), &["All"]);
        }
        let validation = self.get("fieldValidation");
        if !matches!(validation, "" | "Ignore" | "Warn" | "Strict") {
            errors.not_supported("fieldValidation", &json!(validation), &["", "Ignore", "Strict", "Warn"]);
        }
        refuse(kind, errors)?;
        Ok(!given.is_empty())
    }

    /// What becomes of unknown and duplicate fields. The value was checked with the other options.
    pub(super) fn validation(&self) -> Validation {
        match self.get("fieldValidation") {
            "Strict" => Validation::Strict,
            "Ignore" => Validation::Ignore,
            _ => Validation::Warn,
        }
    }

    /// Checks the options of a list or watch.
    pub(super) fn check_list(&self, watch: bool) -> Result<(), Status> {
        const MATCH: &str = "resourceVersionMatch";
        let (version, wanted) = (self.get("resourceVersion"), self.get(MATCH));
        let initial = !self.get("sendInitialEvents").is_empty();
        let mut errors = Errors::default();
        if watch && initial && wanted != NOT_OLDER {
            errors.forbidden(
                MATCH,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if !wanted.is_empty() {
            if watch && !initial {
                errors.forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            } else if !watch && version.is_empty() {
                errors.forbidden(
                    MATCH,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                );
            }
            let known: &[&str] = if watch { &[NOT_OLDER] } else { &["Exact", NOT_OLDER, ""] };
            if !watch && !self.get("continue").is_empty() {
                errors.forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided");
            }
            if !known.contains(&wanted) {
                errors.not_supported(MATCH, &json!(wanted), known);
            }
            if !watch && wanted == "Exact" && version == "0" {
                errors.forbidden(
                    MATCH,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                );
            }
        }
        if !watch && initial {
            errors.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        refuse("ListOptions", errors)
    }
}

const NOT_OLDER: &str = "NotOlderThan";
const MAX_MANAGER: usize = 128;

fn manager(name: &str, errors: &mut Errors) {
    if name.len() > MAX_MANAGER {
        errors.too_long("fieldManager", MAX_MANAGER);
    }
    for (at, letter) in name.chars().enumerate().filter(|(_, letter)| letter.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(letter));
        errors.invalid("fieldManager", &json!(name), &why);
    }
}

/// 422 for options that are wrong.
pub(super) fn refuse(kind: &str, errors: Errors) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("meta.k8s.io", kind, "", errors))
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
        _ => {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/vnd.kubernetes.protobuf",
            ));
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
    serde_json::from_slice(bytes).map_err(|error| {
        Status::bad_request(if error.is_eof() {
            "unexpected end of JSON input".to_owned()
        } else {
            format!("the body is no JSON: {error}")
        })
    })
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
                .contains("ParseInt")
        );
    }
}
