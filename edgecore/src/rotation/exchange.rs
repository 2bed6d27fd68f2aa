//! One POST over one stream, bounded.

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{RenewError, exchange_error};

/// A chain has under 4 KiB.
const MAX_ANSWER: usize = 64 * 1024;

/// Posts and gives the text of a 200 answer. The caller sets the deadline.
pub(crate) async fn post(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    path: &str,
    kind: &str,
    body: String,
) -> Result<String, RenewError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(exchange_error)?;
    let request = Request::post(path)
        .header(header::HOST, tunnel::SERVER_NAME)
        .header(header::CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from(body)))
        .map_err(exchange_error)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(exchange_error)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok::<_, RenewError>((status, body.map_err(exchange_error)?.to_bytes()))
    };
    // The connection only moves bytes: how it ends, the exchange learns.
    let driver = async {
        let _ = connection.await;
        std::future::pending().await
    };
    let (status, body) = tokio::select! {
        answer = exchange => answer?,
        never = driver => never,
    };
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK {
        return Ok(text);
    }
    Err(RenewError::Refused {
        status: status.as_u16(),
        message: text.chars().take(500).collect(),
    })
}
