//! The HTTPS listener and what one request goes through.
//!
//! socket → TLS (client certificate optional, verified when it is there) → [`route`] → authentication → authorization →
//! [`read`], [`write`], [`discovery`], a subresource, or a review → [`answer`]
//!
//! Bounds: connections ([`places`]: the oldest stranger goes for a newcomer), requests at once (429 above), a body (3 MiB, 413 above) and the time it may take, header bytes, the
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
use places::{Place, Places};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{Attributes, Auth, Identity};
use crate::kubelet::{Body, Kubelets};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::status::Status;
use answer::Accept;
use route::Route;

/// Connections at once; each costs a few tens of KiB. Who has not shown who he is holds his only until somebody needs it.
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
    let places = Places::new(places::within_files(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match places.take() {
                    Some(place) => _ = connections.spawn(connection(stream, (tls.clone(), shared.clone()), place)),
                    None => tracing::warn!(%remote, limit = places.limit(), "a connection too many is closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    places.make_room();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Where requests come from: one connection.
#[derive(Debug)]
struct Caller {
    remote: Option<SocketAddr>,
    /// What TLS has verified.
    certificate: Option<Vec<u8>>,
    place: Place,
}

async fn connection(stream: TcpStream, (tls, shared): (TlsAcceptor, Arc<Shared>), place: Place) {
    // Small answers must not wait for a full segment; a socket that refuses the option works too.
    let _ = stream.set_nodelay(true);
    let remote = stream.peer_addr().ok();
    let stream = tokio::select! {
        biased;
        () = place.lost() => return,
        accepted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => match accepted {
            Ok(Ok(stream)) => stream,
            _ => return,
        },
    };
    let chain = stream.get_ref().1.peer_certificates();
    let caller = Arc::new(Caller {
        remote,
        certificate: chain.and_then(|c| c.first()).map(|c| c.to_vec()),
        place,
    });
    let of_requests = caller.clone();
    let service = service_fn(move |request| {
        let (shared, caller) = (shared.clone(), of_requests.clone());
        async move { Ok::<_, Infallible>(answer_to(shared, &caller, request).await) }
    });
    let builder = protocols();
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        () = caller.place.lost() => tracing::debug!(?remote, "a stranger's connection is closed for a newcomer's"),
        ended = served => if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        },
    }
}

fn protocols() -> auto::Builder<TokioExecutor> {
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
    builder
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

async fn answer_to(shared: Arc<Shared>, caller: &Arc<Caller>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let result = handle(shared, caller.clone(), request).await;
    let response = result.unwrap_or_else(|status| {
        if status.code >= 500 {
            tracing::warn!(%method, path, remote = ?caller.remote, code = status.code, message = status.message, "a request failed");
        }
        answer::refusal(&status)
    });
    tracing::debug!(%method, path, code = response.status().as_u16(), "answered");
    response
}

fn handle(
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    request: Request<Incoming>,
) -> BoxFuture<'static, Result<Response<Body>, Status>> {
    Box::pin(async move {
        let identity = shared.auth.identify(caller.certificate.as_deref(), request.headers())?;
        if !identity.is_anonymous() {
            caller.place.keep();
        }
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
