//! One request: who asks, may it, then on to the edge, with its answer or its upgrade back.
//!
//! Every request has a stream of its own in the tunnel. The tasks that drive these streams belong to the caller's connection
//! ([`Context::streams`]) and end with it; upgraded ones run on until either end closes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::callers::{self, Caller, CallerError, Callers};
use super::{Away, Edges, OPEN_WITHIN};

/// Copy buffer per direction of an upgraded stream.
const PIPE_BUFFER: usize = 16 * 1024;
/// Headers that speak of the hop, not of the request.
const HOP: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::HOST,
];

pub(super) type Body = BoxBody<Bytes, hyper::Error>;

/// What a connection's requests share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) node: Arc<str>,
    pub(super) certificate: Option<Arc<[u8]>>,
    pub(super) callers: Arc<dyn Callers>,
    pub(super) edges: Arc<dyn Edges>,
    pub(super) streams: Arc<Mutex<Streams>>,
}

/// The tasks of a connection.
#[derive(Default)]
pub(super) struct Streams {
    tasks: JoinSet<()>,
    upgraded: bool,
}

impl Context {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut streams = self.lock();
        while streams.tasks.try_join_next().is_some() {}
        streams.tasks.spawn(task);
    }

    /// After the caller's connection ended: an upgraded one goes on in its pipe, others are dropped.
    pub(super) async fn finish(self) {
        let Streams { mut tasks, upgraded } = std::mem::take(&mut *self.lock());
        if upgraded {
            while tasks.join_next().await.is_some() {}
        }
    }
}

/// Answers one request.
pub(super) async fn answer(context: &Context, request: Request<Incoming>) -> Response<Body> {
    match judge(context, &request).await {
        Ok(()) => {}
        Err(refusal) => return refusal,
    }
    let stream = match timeout(OPEN_WITHIN, context.edges.open(&context.node)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(away)) => return unavailable(&away.message(&context.node)),
        Err(_) => {
            let away = Away {
                since: None,
                why: format!("it does not answer within {OPEN_WITHIN:?}"),
            };
            return unavailable(&away.message(&context.node));
        }
    };
    match forward(context, request, stream).await {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(node = &*context.node, %error, "a request to a kubelet API broke");
            let message = format!("the connection to node {} broke: {error}", context.node);
            status(StatusCode::BAD_GATEWAY, "ServiceUnavailable", &message)
        }
    }
}

async fn judge(context: &Context, request: &Request<Incoming>) -> Result<(), Response<Body>> {
    let not_asked = |error: CallerError| {
        tracing::warn!(node = &*context.node, %error, "could not judge a caller of a kubelet API");
        unavailable("the hub could not check who calls and whether it may")
    };
    let caller = authenticate(context, request.headers()).await.map_err(not_asked)?;
    let Some(caller) = caller else {
        return Err(status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"));
    };
    let (verb, subresources) = callers::attributes(request.method(), request.uri().path());
    for subresource in subresources {
        let may = context.callers.may(&caller, &context.node, verb, subresource);
        if may.await.map_err(not_asked)? {
            return Ok(());
        }
    }
    let message = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource={subresources:?})",
        caller.user
    );
    Err(status(StatusCode::FORBIDDEN, "Forbidden", &message))
}

async fn authenticate(context: &Context, headers: &HeaderMap) -> Result<Option<Caller>, CallerError> {
    if let Some(certificate) = &context.certificate {
        return callers::of_certificate(certificate).map(Some);
    }
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty());
    match bearer {
        Some((_, token)) => context.callers.of_token(token.trim()).await,
        None => Ok(None),
    }
}

async fn forward(
    context: &Context,
    mut request: Request<Incoming>,
    stream: tunnel::ByteStream,
) -> Result<Response<Body>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    context.spawn(async move {
        // Its errors show at the request.
        let _ = connection.with_upgrades().await;
    });
    let upgrade = request
        .headers()
        .contains_key(header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    for name in HOP {
        parts.headers.remove(name);
    }
    if let Ok(host) = http::HeaderValue::from_str(&context.node) {
        parts.headers.insert(header::HOST, host);
    }
    // Only path and query: HTTP/1.1 to an origin.
    if let Some(path) = parts.uri.path_and_query() {
        parts.uri = http::Uri::from(path.clone());
    }
    let mut response = sender.send_request(Request::from_parts(parts, body)).await?;
    if let (Some(caller), StatusCode::SWITCHING_PROTOCOLS) = (upgrade, response.status()) {
        let edge = hyper::upgrade::on(&mut response);
        context.spawn(pipe(caller, edge));
        context.lock().upgraded = true;
    }
    Ok(response.map(|body| body.boxed()))
}

/// Carries an upgraded connection's bytes until both ends have closed.
async fn pipe(caller: hyper::upgrade::OnUpgrade, edge: hyper::upgrade::OnUpgrade) {
    let (caller, edge) = match tokio::try_join!(caller, edge) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "an upgrade broke");
            return;
        }
    };
    let (mut caller, mut edge) = (TokioIo::new(caller), TokioIo::new(edge));
    if let Err(error) = tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut edge, PIPE_BUFFER, PIPE_BUFFER).await
    {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}

fn unavailable(message: &str) -> Response<Body> {
    status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
