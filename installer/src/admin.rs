//! Asks edgecore or cloudhub on this machine, over their admin sockets.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Eight paths are under 4 KiB.
const MAX_ANSWER: usize = 256 * 1024;

/// Sends one request and reads the answer; `program` is what should be at the socket.
///
/// # Errors
/// Nobody is there, does not answer in five seconds, or says more than 256 KiB.
pub(crate) async fn ask(
    (program, socket): (&str, &Path),
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes)> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .body(Full::new(body))?;
    let answer = timeout(ANSWER_WITHIN, exchange((program, socket), request)).await;
    answer.with_context(|| format!("{program} at {} does not answer", socket.display()))?
}

async fn exchange((program, socket): (&str, &Path), request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "reach {program} at {}: does it run here, and are you root?",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let response = sender
            .send_request(request)
            .await
            .with_context(|| format!("ask {program}"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|error| anyhow::anyhow!(error))?.to_bytes()))
    };
    // What ends the connection too early is an error of the exchange.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}
