//! What an edge asks the hub for in its session: HTTP/1.1 on streams that the edge opens.
//!
//! `POST /v1/token?namespace=…&serviceaccount=…` (a TokenRequest) and `POST /v1/certificate` (a CSR in PEM). The caller is
//! the session's node and nobody else; the API server judges what that node may have.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tunnel::ByteStream;

use crate::identity::Identity;
use crate::kube_api::ApiError;
use crate::writer::Writer;

/// A TokenRequest or a CSR has about a kilobyte.
const MAX_BODY: usize = 64 * 1024;
/// A stream lives for one or two requests.
const WITHIN: Duration = Duration::from_secs(60);

/// Answers edges.
#[derive(Clone)]
pub struct NodeApi {
    writer: Writer,
    identity: Arc<Identity>,
}

impl std::fmt::Debug for NodeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeApi").finish_non_exhaustive()
    }
}

impl NodeApi {
    /// With what it needs to answer.
    pub fn new(writer: Writer, identity: Arc<Identity>) -> Self {
        Self { writer, identity }
    }

    /// Serves one stream of `node`.
    pub async fn serve(self, node: String, stream: ByteStream) {
        let service = service_fn(|request| self.answer(&node, request));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(WITHIN, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(node, %error, "a stream of the node broke"),
            Err(_) => tracing::debug!(node, "a stream of the node took too long"),
        }
    }

    async fn answer(&self, node: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Ok(refuse(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string())),
        };
        Ok(match (&parts.method, parts.uri.path()) {
            (&Method::POST, "/v1/token") => self.token(node, parts.uri.query().unwrap_or_default(), &body).await,
            (&Method::POST, "/v1/certificate") => self.certificate(node, &body),
            (method, path) => refuse(StatusCode::NOT_FOUND, &format!("there is no {method} {path}")),
        })
    }

    async fn token(&self, node: &str, query: &str, body: &[u8]) -> Response<Full<Bytes>> {
        let parameter = |name: &str| query.split('&').filter_map(|p| p.split_once('=')).find(|p| p.0 == name);
        let (Some((_, namespace)), Some((_, account))) = (parameter("namespace"), parameter("serviceaccount")) else {
            return refuse(
                StatusCode::BAD_REQUEST,
                "query parameters namespace and serviceaccount are needed",
            );
        };
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        };
        if !plain(namespace) || !plain(account) {
            return refuse(StatusCode::BAD_REQUEST, "namespace and serviceaccount must be names");
        }
        let request: Value = match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(error) => {
                return refuse(
                    StatusCode::BAD_REQUEST,
                    &format!("the TokenRequest is no JSON: {error}"),
                );
            }
        };
        match self.writer.token(node, (namespace, account), &request).await {
            Ok(token) => answer(StatusCode::OK, token.to_string()),
            Err(ApiError::Status { code, message, .. }) => {
                refuse(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY), &message)
            }
            Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        }
    }

    fn certificate(&self, node: &str, body: &[u8]) -> Response<Full<Bytes>> {
        let Ok(csr) = str::from_utf8(body) else {
            return refuse(StatusCode::BAD_REQUEST, "the CSR is not PEM");
        };
        match self.identity.renew(node, csr) {
            Ok(chain) => answer(StatusCode::OK, chain),
            Err(error) => {
                tracing::warn!(node, %error, "refused to renew a certificate");
                let code = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::FORBIDDEN);
                refuse(code, &error.to_string())
            }
        }
    }
}

fn answer(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response
}

fn refuse(code: StatusCode, message: &str) -> Response<Full<Bytes>> {
    answer(
        code,
        json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "message": message}).to_string(),
    )
}
