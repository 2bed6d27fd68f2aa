//! Answers of the kubelet API: bodies, and errors in kubelet's words.

use std::convert::Infallible;

use bytes::Bytes;
use futures::Stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;

/// The body of an answer. It cannot fail: an answer that breaks off ends its connection.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer that is an error, as text, which is how kubelet gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The sentence.
    pub message: String,
}

impl Refusal {
    /// An error.
    pub fn text(status: StatusCode, message: &str) -> Self {
        Self {
            status,
            message: message.to_owned(),
        }
    }

    /// 404.
    pub fn not_found(message: String) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            message,
        }
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        text(self.status, self.message)
    }
}

/// No body.
pub fn empty() -> Body {
    Empty::new().boxed_unsync()
}

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body that comes piece by piece, pulled by the caller's reading.
pub fn streamed(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt;
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

fn typed(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", full(body))
}

/// Text that comes piece by piece.
pub fn text_stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    typed(StatusCode::OK, "text/plain; charset=utf-8", streamed(pieces))
}

/// JSON.
pub fn json(value: &serde_json::Value) -> Response<Body> {
    typed(StatusCode::OK, "application/json", full(value.to_string()))
}

/// Prometheus' text format.
pub fn metrics(body: String) -> Response<Body> {
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(body))
}
