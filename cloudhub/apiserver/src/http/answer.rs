//! Answers: what the client accepts, and how objects are shaped for it.

use bytes::Bytes;
use http::header::GetAll;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;

use crate::kubelet::Body;
use crate::status::Status;

/// A shape that a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The object.
    Full,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata(List)`.
    Metadata,
}

/// What the client accepts, as far as it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    /// For objects.
    pub(crate) shape: Shape,
    /// Whether aggregated discovery (apidiscovery.k8s.io v2) is wanted.
    pub(crate) aggregated: bool,
}

impl Accept {
    /// Of a client that says nothing.
    pub(super) const ANY: Self = Self {
        shape: Shape::Full,
        aggregated: false,
    };

    /// From the header; the first alternative that is served counts. A client that accepts no JSON gets 406.
    pub(super) fn parse(headers: GetAll<'_, HeaderValue>) -> Result<Self, Status> {
        let mut any = false;
        for header in headers {
            for clause in header.to_str().unwrap_or_default().split(',') {
                any = true;
                if let Some(accept) = clause_of(clause) {
                    return Ok(accept);
                }
            }
        }
        if any {
            return Err(Status::not_acceptable(
                "only the following media types are accepted: application/json",
            ));
        }
        Ok(Self::ANY)
    }
}

fn clause_of(clause: &str) -> Option<Accept> {
    let mut parts = clause.split(';').map(str::trim);
    if !matches!(parts.next()?, "application/json" | "application/*" | "*/*" | "") {
        return None;
    }
    let (mut kind, mut group, mut version) = ("", "", "");
    for parameter in parts {
        match parameter.split_once('=')? {
            ("as", value) => kind = value,
            ("g", value) => group = value,
            ("v", value) => version = value,
            _ => {}
        }
    }
    let plain = |shape| {
        Some(Accept {
            shape,
            aggregated: false,
        })
    };
    match (kind, group, version) {
        ("", _, _) => plain(Shape::Full),
        ("Table", "meta.k8s.io", "v1") => plain(Shape::Table),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => plain(Shape::Metadata),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Accept {
            shape: Shape::Full,
            aggregated: true,
        }),
        _ => None,
    }
}

/// A body that is there as a whole.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// JSON bytes with a status code.
pub(crate) fn bytes(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, super::JSON);
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON with a status code.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    bytes(code, value.to_string())
}

/// Text.
pub(super) fn text(body: impl Into<Bytes>) -> Response<Body> {
    let mut response = bytes(200, body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// What a Go server answers to a path that nobody has registered.
pub(super) fn no_page() -> Response<Body> {
    let mut response = text("404 page not found\n");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// A refusal.
pub(crate) fn refusal(status: &Status) -> Response<Body> {
    let mut response = json(status.code, &status.to_json());
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}

/// Adds texts as Warning headers (RFC 7234 §5.5, code 299), which kubectl shows.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Accept, Status> {
        let mut headers = http::HeaderMap::new();
        headers.append(header::ACCEPT, HeaderValue::from_str(text).unwrap());
        Accept::parse(headers.get_all(header::ACCEPT))
    }

    #[test]
    fn the_first_alternative_that_is_served_counts() {
        let table = parse("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").unwrap();
        assert_eq!(table.shape, Shape::Table);
        let old = parse("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json").unwrap();
        assert_eq!(old.shape, Shape::Full);
        assert_eq!(
            parse("application/vnd.kubernetes.protobuf,application/json")
                .unwrap()
                .shape,
            Shape::Full
        );
        assert_eq!(parse("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
        assert!(
            parse("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
                .unwrap()
                .aggregated
        );
    }
}
