//! The HTTPS listener and what one request goes through.
//!
//! socket → TLS (client certificate optional, verified when it is there) → [`route`] → authentication → authorization →
//! [`read`], [`write`], [`discovery`], a subresource, or a review → [`answer`]
//!
//! Bounds: connections, requests at once (429 above), a body (3 MiB, 413 above) and the time it may take, header bytes, the
//! handshake. A watch is bounded by the store's log ([`crate::store`]).

pub(crate) mod answer;
mod discovery;
pub(crate) mod fuzzing;
mod input;
mod metrics_api;
mod read;
mod route;
mod subresource;
mod watch;
mod write;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{Attributes, Auth, Identity};
use crate::kubelet::{Body, Kubelets};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::status::Status;
use answer::Accept;
use route::Route;

/// Connections at once; each costs a few tens of KiB.
const MAX_CONNECTIONS: usize = 4096;
/// Requests at once that are neither watches nor streams (kube-apiserver's `--max-requests-inflight` is 400).
const MAX_REQUESTS: usize = 400;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A request's head from a slow writer, and how long an idle connection is kept: longer than clients keep theirs (90 s), so that
/// none sends into a connection that is being closed.
const HEAD: Duration = Duration::from_secs(120);
/// Header bytes of an HTTP/1 request; kubectl's are under 4 KiB.
const MAX_HEAD: usize = 64 * 1024;
const MAX_STREAMS: u32 = 250;

/// What every request needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) registry: Registry,
    pub(crate) auth: Auth,
    pub(crate) kubelets: Kubelets,
    pub(crate) metrics: Metrics,
    pub(crate) places: Arc<Semaphore>,
    /// Where this listens.
    pub(crate) address: SocketAddr,
    /// What `/version` says.
    pub(crate) version: serde_json::Value,
}

impl Shared {
    pub(crate) fn places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_REQUESTS))
    }
}

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match permits.clone().try_acquire_owned() {
                    Ok(permit) => {
                        connections.spawn(connection(stream, (tls.clone(), shared.clone()), permit));
                    }
                    Err(_) => tracing::warn!(%remote, limit = MAX_CONNECTIONS, "a connection too many is closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, (tls, shared): (TlsAcceptor, Arc<Shared>), permit: OwnedSemaphorePermit) {
    let _permit = permit;
    // Small answers must not wait for a full segment; a socket that refuses the option works too.
    let _ = stream.set_nodelay(true);
    let remote = stream.peer_addr().ok();
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else {
        return;
    };
    let chain = stream.get_ref().1.peer_certificates();
    let certificate = chain.and_then(|c| c.first()).map(|c| Arc::<[u8]>::from(c.as_ref()));
    let service = service_fn(move |request| {
        let (shared, certificate) = (shared.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(answer_to(shared, certificate, remote, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(32 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    if let Err(error) = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "a connection broke");
    }
}

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) identity: Identity,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) query: input::Query,
    pub(crate) accept: Accept,
}

async fn answer_to(
    shared: Arc<Shared>,
    certificate: Option<Arc<[u8]>>,
    remote: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let result = handle(shared, certificate, request).await;
    let response = result.unwrap_or_else(|status| {
        if status.code >= 500 {
            tracing::warn!(%method, path, ?remote, code = status.code, message = status.message, "a request failed");
        }
        answer::refusal(&status)
    });
    tracing::debug!(%method, path, code = response.status().as_u16(), "answered");
    response
}

fn handle(
    shared: Arc<Shared>,
    certificate: Option<Arc<[u8]>>,
    request: Request<Incoming>,
) -> BoxFuture<'static, Result<Response<Body>, Status>> {
    Box::pin(async move {
        let identity = shared.auth.identify(certificate.as_deref(), request.headers())?;
        let query = input::Query::parse(request.uri().query().unwrap_or_default())?;
        let route = route::parse(request.uri().path())?;
        let attributes = route.attributes(request.method(), &query)?;
        shared.auth.authorize(&identity, &attributes)?;
        if route.needs_create() && attributes.verb != "create" {
            let create = Attributes {
                verb: "create".into(),
                ..attributes.clone()
            };
            shared.auth.authorize(&identity, &create)?;
        }
        let place = if attributes.verb == "watch" || route.is_stream() {
            None
        } else {
            let full = |_| Status::too_many_requests("Too many requests, please try again later.", 1);
            Some(shared.places.clone().try_acquire_owned().map_err(full)?)
        };
        let accept = match (Accept::parse(request.headers().get_all(header::ACCEPT)), &route) {
            // What is no object is answered in its own form: text, OpenAPI.
            (Err(_), Route::Path(_)) => Accept::ANY,
            (accept, _) => accept?,
        };
        let (method, headers) = (request.method().clone(), request.headers().clone());
        let call = Call {
            shared,
            identity,
            method,
            headers,
            query,
            accept,
        };
        let response = dispatch(call, route, request).await?;
        drop(place);
        Ok(response)
    })
}

async fn dispatch(call: Call, route: Route, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    match route {
        Route::Path(path) => discovery::answer(&call, &path),
        Route::Virtual(place, kind) => subresource::review(&call, &place, kind, request).await,
        Route::Metrics(place) => metrics_api::answer(&call, &place).await,
        Route::Unknown(place) if discovery::is_group(&place.group) => Err(Status::no_such_path()),
        Route::Unknown(_) => Ok(answer::no_page()),
        Route::Resource(place) if place.subresource.is_empty() => match call.method {
            Method::GET | Method::HEAD => read::answer(&call, &place),
            Method::POST | Method::PUT | Method::PATCH | Method::DELETE => write::answer(&call, &place, request).await,
            _ => Err(Status::method_not_allowed()),
        },
        Route::Resource(place) => subresource::answer(&call, &place, request).await,
    }
}

/// `application/json`.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
