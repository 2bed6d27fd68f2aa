//! The kubelet APIs of the edges, served by the hub: one HTTPS port a node.
//!
//! - kube-apiserver → TLS (Kedge's serving CA) → [`authority`] (who, and may they) → a stream of the node's session → edge
//! - an upgrade (exec, attach, port-forward) is passed through byte for byte after the edge's 101
//! - a node without a session, or with a dormant one, answers 503 with a Status that says since when
//!
//! State: [`Ports`], node → port, for as long as the hub lives. A node whose port cannot be bound has no kubelet API, which
//! is logged; everything else of it works.

pub mod authority;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use places::{Place, Places};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::identity::{Identity, Serving};
use crate::registry::Registry;
use crate::writer::KubeletAddress;
use authority::Authority;

/// Connections at once, over all nodes' ports: kube-apiserver's and people's sessions in containers.
const MAX_CONNECTIONS: usize = 4096;
/// A TLS handshake, and a request's head.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A stream to the edge: it is there at once, or all that the session may have are in use.
const OPEN: Duration = Duration::from_secs(2);
/// The edge's answer's head; a node that is away is known to be away.
const ANSWER: Duration = Duration::from_secs(30);

type Body = BoxBody<Bytes, hyper::Error>;

/// What the proxy is made of.
pub struct Config {
    /// The hub's address that kube-apiserver calls.
    pub advertise: String,
    /// Ports for the nodes.
    pub ports: RangeInclusive<u16>,
    /// Serving certificates.
    pub identity: Arc<Identity>,
    /// Judges callers.
    pub authority: Authority,
    /// The sessions.
    pub tunnel: Arc<tunnel::Hub>,
    /// Says since when a node is away.
    pub registry: Registry,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("advertise", &self.advertise)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// The kubelet APIs.
#[derive(Debug)]
pub struct KubeletProxy {
    config: Arc<Config>,
    places: Places,
    ports: Mutex<Ports>,
}

#[derive(Debug, Default)]
struct Ports {
    of: HashMap<String, u16>,
    taken: HashSet<u16>,
    /// Where the search for a free one begins: ports before it are nearly all taken.
    next: u16,
    /// The nodes' listeners.
    tasks: JoinSet<()>,
}

impl KubeletProxy {
    /// A proxy without ports; the first [`KubeletAddress::of`] of a node binds its.
    pub fn new(config: Config) -> Self {
        Self {
            config: Arc::new(config),
            places: Places::new(places::within_files(MAX_CONNECTIONS)),
            ports: Mutex::default(),
        }
    }
}

#[async_trait]
impl KubeletAddress for KubeletProxy {
    async fn of(&self, node: &str) -> Option<(String, u16)> {
        let mut ports = self.ports.lock().await;
        if let Some(port) = ports.of.get(node) {
            return Some((self.config.advertise.clone(), *port));
        }
        // The one that its Node names, if it is free: after this hub's start no Node has to be written for its port's sake.
        let last = self.config.registry.node(node).and_then(|node| node.kubelet_port);
        let last = last.filter(|port| self.config.ports.contains(port));
        let next = ports.next.max(*self.config.ports.start());
        let all = (next..=*self.config.ports.end()).chain(*self.config.ports.start()..next);
        for port in last.into_iter().chain(all) {
            if ports.taken.contains(&port) {
                continue;
            }
            let Ok(listener) = TcpListener::bind(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port)).await else {
                continue;
            };
            if last != Some(port) {
                ports.next = port.saturating_add(1);
            }
            let port = listener.local_addr().ok()?.port();
            ports.taken.insert(port);
            ports.of.insert(node.to_owned(), port);
            let serving = serve(self.config.clone(), node.to_owned(), listener, self.places.clone());
            ports.tasks.spawn(serving);
            return Some((self.config.advertise.clone(), port));
        }
        tracing::error!(node, ports = ?self.config.ports, "no port is free for the node's kubelet API");
        None
    }
}

async fn serve(config: Arc<Config>, node: String, listener: TcpListener, places: Places) {
    // Made for the first caller: most nodes have none for days, and a certificate with its key is kilobytes.
    let mut made = None;
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match places.take() {
                    Some(place) => {
                        let Some(serving) = serving(&config, &node, &mut made) else { continue };
                        let (config, node) = (config.clone(), node.clone());
                        tasks.spawn(connection((config, node, place), stream, serving));
                    }
                    None => tracing::warn!(node, %remote, limit = places.limit(), "a connection too many is closed"),
                },
                Err(error) => {
                    tracing::warn!(node, %error, "cannot accept");
                    places.make_room();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// The certificate of a node's kubelet API, made once.
fn serving(config: &Config, node: &str, made: &mut Option<Arc<Serving>>) -> Option<Arc<Serving>> {
    if made.is_none() {
        match config.identity.serving(&[config.advertise.clone(), node.to_owned()]) {
            Ok(serving) => *made = Some(serving),
            Err(error) => tracing::error!(node, %error, "no serving certificate for the node's kubelet API"),
        }
    }
    made.clone()
}

/// One connection; a stranger's ends when a newcomer needs its place.
async fn connection((config, node, place): (Arc<Config>, String, Place), stream: TcpStream, serving: Arc<Serving>) {
    let mut proxy = Proxy {
        config,
        node,
        certificate: None,
        place,
    };
    let stream = tokio::select! {
        biased;
        () = proxy.place.lost() => return,
        accepted = tokio::time::timeout(HANDSHAKE, accept(&proxy.config, stream, serving)) => match accepted {
            Ok(Some(stream)) => stream,
            _ => return,
        },
    };
    let chain = stream.get_ref().1.peer_certificates();
    proxy.certificate = chain.and_then(|chain| chain.first()).map(|c| c.to_vec());
    let proxy = Arc::new(proxy);
    let of_requests = proxy.clone();
    let service = service_fn(move |request| {
        let proxy = of_requests.clone();
        async move { Ok::<_, Infallible>(proxy.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        biased;
        () = proxy.place.lost() => tracing::debug!(node = proxy.node, "a stranger's connection is closed for a newcomer's"),
        ended = served => if let Err(error) = ended {
            tracing::debug!(%error, "a connection to a kubelet API broke");
        },
    }
}

/// The TLS handshake, by the cluster's client CA as it is now.
async fn accept(
    config: &Config,
    stream: TcpStream,
    serving: Arc<Serving>,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let builder = rustls::ServerConfig::builder_with_provider(tunnel::tls::provider());
    let builder = builder.with_safe_default_protocol_versions().ok()?;
    let builder = match config.authority.verifier().await {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_cert_resolver(serving);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(tls)).accept(stream).await.ok()
}

/// One connection's caller and node.
struct Proxy {
    config: Arc<Config>,
    node: String,
    certificate: Option<Vec<u8>>,
    place: Place,
}

impl Proxy {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let authority = &self.config.authority;
        let Some(caller) = authority
            .authenticate(self.certificate.as_deref(), request.headers())
            .await
        else {
            return refuse(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".into());
        };
        if !authority
            .authorize(&caller, &self.node, request.method(), request.uri().path())
            .await
        {
            let message = format!("user {} may not do this on node {}", caller.user, self.node);
            return refuse(StatusCode::FORBIDDEN, "Forbidden", message);
        }
        self.place.keep();
        match tokio::time::timeout(ANSWER, self.forward(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(message)) => refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message),
            Err(_) => {
                let message = format!("node {} did not answer within {ANSWER:?}", self.node);
                refuse(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
            }
        }
    }

    /// Passes the request to the edge, and what follows an upgrade in both directions.
    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Body>, String> {
        let session = self.config.tunnel.session(&self.node);
        let session = session.filter(tunnel::Session::is_here).ok_or_else(|| self.away())?;
        let stream = tokio::time::timeout(OPEN, session.open_stream())
            .await
            .map_err(|_| format!("node {} has no room for another stream within {OPEN:?}", self.node))?
            .map_err(|error| format!("node {}: {error}", self.node))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("node {}: {error}", self.node))?;
        // The connection lives as long as its answer; with the answer's body it ends.
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a stream to an edge broke");
            }
        });
        let upgrade = request
            .headers()
            .contains_key(header::UPGRADE)
            .then(|| hyper::upgrade::on(&mut request));
        request.headers_mut().remove(header::AUTHORIZATION);
        let host = http::HeaderValue::from_str(&self.node).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::HOST, host);
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        *request.uri_mut() = path.parse().map_err(|error| format!("{path}: {error}"))?;
        let mut response = sender
            .send_request(request)
            .await
            .map_err(|e| format!("node {}: {e}", self.node))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(caller) = upgrade
        {
            let edge = hyper::upgrade::on(&mut response);
            driver.spawn(splice(caller, edge));
        }
        let (parts, body) = response.into_parts();
        let body = Guarded {
            body,
            _driver: driver.into(),
            _sender: sender,
        };
        Ok(Response::from_parts(parts, BodyExt::boxed(body)))
    }

    fn away(&self) -> String {
        let node = self.config.registry.node(&self.node).map(|node| node.object.value());
        let conditions = node.as_ref().and_then(|node| node["status"]["conditions"].as_array());
        let condition = conditions.and_then(|all| all.iter().find(|c| c["type"] == "EdgeConnected"));
        let text = |field: &str| {
            condition
                .and_then(|c| c[field].as_str())
                .unwrap_or("unknown")
                .to_owned()
        };
        format!(
            "node {} is away since {} ({})",
            self.node,
            text("lastTransitionTime"),
            text("reason")
        )
    }
}

/// Copies both directions of an upgraded connection until both are closed.
async fn splice(caller: hyper::upgrade::OnUpgrade, edge: hyper::upgrade::OnUpgrade) {
    let (Ok(caller), Ok(edge)) = tokio::join!(caller, edge) else {
        return;
    };
    let (mut caller, mut edge) = (TokioIo::new(caller), TokioIo::new(edge));
    if let Err(error) = tokio::io::copy_bidirectional(&mut caller, &mut edge).await {
        tracing::debug!(%error, "a session in a container broke");
    }
}

pin_project_lite::pin_project! {
    /// An answer's body that keeps its connection alive until it has been read.
    struct Guarded {
        #[pin]
        body: Incoming,
        _driver: Driver,
        _sender: hyper::client::conn::http1::SendRequest<Incoming>,
    }
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, hyper::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// The tasks of one request. When the body is dropped an upgraded connection goes on until it is closed, so the tasks are
/// let go, not aborted: each ends with its streams.
struct Driver(JoinSet<()>);

impl From<JoinSet<()>> for Driver {
    fn from(tasks: JoinSet<()>) -> Self {
        Self(tasks)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

fn refuse(code: StatusCode, reason: &str, message: String) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
                        "code": code.as_u16(), "message": message});
    let body = Full::new(Bytes::from(status.to_string()))
        .map_err(|never| match never {})
        .boxed();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
