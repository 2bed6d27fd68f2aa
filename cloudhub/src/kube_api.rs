//! Requests to the Kubernetes API as raw JSON, by the hub's own account or as a node.
//!
//! A node is impersonated by `Impersonate-User` alone (constrained impersonation, Kubernetes 1.36); the Node authorizer and
//! NodeRestriction then judge the request as if the node had made it. Every call has a deadline and a byte budget. Watches have
//! connections of their own ([`watches`]).

pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::Semaphore;

use watches::{Place, Watches};

/// A call that takes longer is given up. What it waited for its turn does not count: a crowd of ten thousand would else give up
/// and come again, and never be served.
const DEADLINE: Duration = Duration::from_secs(10);
/// Calls at once; more wait for their turn, in their order. A call under way has a connection of its own, so without
/// a bound the return of a thousand edges opens as many as there are calls. kube-apiserver takes 200 writes
/// at once.
const AT_ONCE: usize = 64;
/// The largest answer to a call, bytes: a page of 500 pods.
const MAX_ANSWER: usize = 64 << 20;
/// The largest event of a watch, bytes: an object has at most 3 MiB.
const MAX_LINE: usize = 8 << 20;

/// By whose right a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As<'a> {
    /// The hub's own account.
    Hub,
    /// `system:node:NAME`.
    Node(&'a str),
}

/// Body of a request.
#[derive(Debug, Clone, Copy)]
pub enum Send<'a> {
    /// None.
    Nothing,
    /// An object.
    Json(&'a Value),
    /// A JSON merge patch.
    Merge(&'a Value),
    /// A strategic merge patch.
    Strategic(&'a Value),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API answered with a Status.
    #[error("{path}: {code} {reason}: {message}")]
    Status {
        /// What was asked.
        path: String,
        /// HTTP status.
        code: u16,
        /// Its reason.
        reason: String,
        /// Its message.
        message: String,
    },
    /// The API could not be reached, or what it says is no JSON.
    #[error("{path}")]
    Transport {
        /// What was asked.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + std::marker::Send + Sync>,
    },
    /// No answer in time.
    #[error("{path}: no answer within {DEADLINE:?}")]
    Deadline {
        /// What was asked.
        path: String,
    },
}

impl ApiError {
    /// HTTP status, when the API answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The API.
#[derive(Clone)]
pub struct KubeApi {
    client: kube::Client,
    calls: Arc<Semaphore>,
    watches: Arc<Watches>,
}

impl std::fmt::Debug for KubeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeApi").finish_non_exhaustive()
    }
}

impl KubeApi {
    /// To the API of this configuration.
    ///
    /// # Errors
    /// Its certificates or keys make no sense.
    pub fn new(config: kube::Config) -> kube::Result<Self> {
        Ok(Self {
            client: kube::Client::try_from(config.clone())?,
            calls: Arc::new(Semaphore::new(AT_ONCE)),
            watches: Arc::new(Watches::new(config)),
        })
    }

    /// The client, for what needs types.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// One request and its whole answer.
    ///
    /// # Errors
    /// What the API answers, or that it does not.
    pub async fn call(&self, who: As<'_>, method: Method, path: &str, body: Send<'_>) -> Result<Value, ApiError> {
        let _turn = self.calls.acquire().await;
        let answer = async {
            let response = start(&self.client, who, method, path, body).await?;
            let limited = Limited::new(response.into_body(), MAX_ANSWER);
            let bytes = limited.collect().await.map_err(|source| ApiError::Transport {
                path: path.into(),
                source,
            })?;
            serde_json::from_slice(&bytes.to_bytes()).map_err(|source| ApiError::Transport {
                path: path.into(),
                source: source.into(),
            })
        };
        tokio::time::timeout(DEADLINE, answer)
            .await
            .map_err(|_| ApiError::Deadline { path: path.into() })?
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn get(&self, who: As<'_>, path: &str) -> Result<Value, ApiError> {
        self.call(who, Method::GET, path, Send::Nothing).await
    }

    /// Starts a watch: its events, one JSON each.
    ///
    /// # Errors
    /// What the API answers instead of a stream.
    pub async fn watch(
        &self,
        who: As<'_>,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Value, ApiError>>, ApiError> {
        let (client, place) = self.watches.place().map_err(|source| ApiError::Transport {
            path: path.into(),
            source,
        })?;
        let start = start(&client, who, Method::GET, path, Send::Nothing);
        let response = tokio::time::timeout(DEADLINE, start)
            .await
            .map_err(|_| ApiError::Deadline { path: path.into() })??;
        Ok(lines(response.into_body(), path.to_owned(), place).boxed())
    }
}

async fn start(
    client: &kube::Client,
    who: As<'_>,
    method: Method,
    path: &str,
    body: Send<'_>,
) -> Result<http::Response<Body>, ApiError> {
    let transport = |source: Box<dyn std::error::Error + std::marker::Send + Sync>| ApiError::Transport {
        path: path.to_owned(),
        source,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, "application/json");
    if let As::Node(node) = who {
        request = request.header("Impersonate-User", format!("system:node:{node}"));
    }
    let (kind, content) = match body {
        Send::Nothing => ("", Vec::new()),
        Send::Json(value) => ("application/json", value.to_string().into_bytes()),
        Send::Merge(value) => ("application/merge-patch+json", value.to_string().into_bytes()),
        Send::Strategic(value) => ("application/strategic-merge-patch+json", value.to_string().into_bytes()),
    };
    if !kind.is_empty() {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    let request = request.body(Body::from(content)).map_err(|e| transport(e.into()))?;
    let response = client.clone().send(request).await.map_err(|e| transport(e.into()))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(path, response.status(), response.into_body()).await)
}

async fn refusal(path: &str, code: StatusCode, body: Body) -> ApiError {
    let bytes = Limited::new(body, 1 << 20)
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |field: &str| status[field].as_str().map(str::to_owned);
    ApiError::Status {
        path: path.to_owned(),
        code: code.as_u16(),
        reason: text("reason").unwrap_or_default(),
        message: text("message").unwrap_or_else(|| String::from_utf8_lossy(&bytes).chars().take(300).collect()),
    }
}

/// Splits a watch's body into its events. The place on the connection is held for as long as they are read.
fn lines(body: Body, path: String, place: Place) -> impl futures::Stream<Item = Result<Value, ApiError>> {
    let state = (body, Vec::<u8>::new(), path, place);
    futures::stream::try_unfold(state, |(mut body, mut rest, path, place)| async move {
        loop {
            if let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let behind = rest.split_off(end + 1);
                // Most watches tell something once a minute: what they read into is not kept meanwhile.
                let line = std::mem::replace(&mut rest, behind);
                let fail = |source: serde_json::Error| ApiError::Transport {
                    path: path.clone(),
                    source: source.into(),
                };
                let event = serde_json::from_slice(&line).map_err(fail)?;
                return Ok(Some((event, (body, rest, path, place))));
            }
            if rest.len() > MAX_LINE {
                return Err(ApiError::Transport {
                    path,
                    source: "an event of a watch is too large".into(),
                });
            }
            match body.frame().await {
                Some(Ok(frame)) => rest.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new())),
                Some(Err(source)) => {
                    return Err(ApiError::Transport {
                        path,
                        source: source.into(),
                    });
                }
                None => return Ok(None),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    use super::*;

    /// Answers each request with `{}`, after a moment.
    async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        loop {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            head.clear();
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await?;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waited_long_for_its_turn_has_its_whole_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let api = KubeApi::new(kube::Config::new(url)).unwrap();
        let turns = u32::try_from(AT_ONCE).unwrap();
        let all = api.calls.clone().acquire_many_owned(turns).await.unwrap();
        let call = api.get(As::Hub, "/");
        tokio::pin!(call);
        let early = tokio::time::timeout(DEADLINE * 3, &mut call).await;
        assert!(early.is_err(), "it has not had its turn: {early:?}");
        // The rest takes real time.
        tokio::time::resume();
        drop(all);
        let server = async { answer(listener.accept().await?.0).await };
        tokio::select! {
            answered = call => assert_eq!(answered.unwrap(), serde_json::json!({})),
            ended = server => panic!("the server has ended: {ended:?}"),
        }
    }

    #[tokio::test]
    async fn a_crowd_of_calls_shares_few_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let api = KubeApi::new(kube::Config::new(url)).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut server = JoinSet::new();
        let count = accepted.clone();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(answer(stream));
            }
        });
        let mut calls = JoinSet::new();
        for _ in 0..10 * AT_ONCE {
            let api = api.clone();
            calls.spawn(async move { api.get(As::Hub, "/").await });
        }
        while let Some(answer) = calls.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), serde_json::json!({}));
        }
        let accepted = accepted.load(Ordering::Relaxed);
        // The pool may open one in vain where another comes back meanwhile.
        assert!(accepted < 2 * AT_ONCE, "{accepted} connections");
    }
}
