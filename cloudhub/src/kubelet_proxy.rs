//! The kubelet API of each node, as kube-apiserver wants it: an HTTPS port per node, carried through the tunnel.
//!
//! - caller (kube-apiserver, metrics-server) → TLS with Kedge's serving CA → [`callers`]: who it is, and whether it may
//! - → a stream to the edge ([`Edges::open`]) → HTTP/1.1 → edgecore's kubelet API
//! - an upgrade (SPDY or WebSocket: exec, attach, port-forward) is passed through byte for byte
//!
//! State: the listeners by node, in [`KubeletProxy`], which owns their tasks; a connection's tasks belong to the connection. A node
//! that is away is answered within [`OPEN_WITHIN`] with a Status that says since when. The proxy believes nothing that the edge
//! says about callers, and tells it nothing about them.

pub mod callers;
mod forward;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tunnel::ByteStream;

use callers::{CallerError, Callers};

/// How long opening a stream may take before the node counts as away.
pub const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// A TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// A request's head has at most this many bytes: exec carries its command in the URL.
const MAX_HEAD: usize = 128 * 1024;
/// Connections at once on all ports: each exec and each `logs -f` of the fleet is one.
const MAX_CONNECTIONS: usize = 8192;

/// Why a node's kubelet API cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// Since when, where it is known.
    pub since: Option<SystemTime>,
    /// Why, in words: `link lost`, `the agent was stopped`.
    pub why: String,
}

impl Away {
    /// The sentence for a user.
    pub fn message(&self, node: &str) -> String {
        match self.since {
            Some(at) => {
                let since = time::OffsetDateTime::from(at).replace_nanosecond(0).map_or_else(
                    |_| "an unknown time".to_owned(),
                    |at| {
                        at.format(&time::format_description::well_known::Rfc3339)
                            .unwrap_or_default()
                    },
                );
                format!("node {node} is away since {since}: {}", self.why)
            }
            None => format!("node {node} is away: {}", self.why),
        }
    }
}

/// Opens streams to edges; the sessions implement it.
#[async_trait]
pub trait Edges: Send + Sync {
    /// A stream on which the node's kubelet API speaks HTTP/1.1.
    ///
    /// # Errors
    /// The node has no session.
    async fn open(&self, node: &str) -> Result<ByteStream, Away>;
}

/// No port for a node.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// All are taken.
    #[error("no free port in {first}-{last} for the kubelet API of node {node}")]
    NoPort {
        /// For which node.
        node: String,
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// The caller's CA or TLS.
    #[error("set up the TLS of the kubelet APIs")]
    Callers(#[from] CallerError),
}

/// The proxy.
pub struct KubeletProxy {
    address: IpAddr,
    ports: RangeInclusive<u16>,
    shared: Arc<Shared>,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    by_node: HashMap<String, (u16, AbortHandle)>,
    tasks: JoinSet<()>,
}

struct Shared {
    certificate: Arc<dyn ResolvesServerCert>,
    callers: Arc<dyn Callers>,
    edges: Arc<dyn Edges>,
    permits: Arc<Semaphore>,
}

impl std::fmt::Debug for KubeletProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeletProxy")
            .field("address", &self.address)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

impl KubeletProxy {
    /// Serves on `address`, a port of `ports` for each node. A range of 0-0 takes free ports.
    pub fn new(
        address: IpAddr,
        ports: RangeInclusive<u16>,
        certificate: Arc<dyn ResolvesServerCert>,
        callers: Arc<dyn Callers>,
        edges: Arc<dyn Edges>,
    ) -> Self {
        Self {
            address,
            ports,
            shared: Arc::new(Shared {
                certificate,
                callers,
                edges,
                permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            }),
            listeners: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port of `node`, opened if it is not yet: `preferred` (what its Node says) if that is free, so that it stays the same
    /// over restarts of the hub, else by the node's name, so that two hubs seldom choose alike for different nodes.
    ///
    /// # Errors
    /// No port is free.
    pub async fn port(&self, node: &str, preferred: Option<u16>) -> Result<u16, ProxyError> {
        if let Some((port, _)) = self.lock().by_node.get(node) {
            return Ok(*port);
        }
        let listener = self.bind(node, preferred).await?;
        let port = listener.local_addr().map(|a| a.port()).unwrap_or_default();
        let mut listeners = self.lock();
        if let Some((port, _)) = listeners.by_node.get(node) {
            return Ok(*port);
        }
        let task = serve_node(self.shared.clone(), listener, node.to_owned());
        let handle = listeners.tasks.spawn(task);
        listeners.by_node.insert(node.to_owned(), (port, handle));
        tracing::info!(node, port, "serving the node's kubelet API");
        Ok(port)
    }

    /// Closes the port of a node that left for good, and what is open on it.
    pub fn release(&self, node: &str) {
        let mut listeners = self.lock();
        if let Some((port, handle)) = listeners.by_node.remove(node) {
            handle.abort();
            tracing::info!(node, port, "closed the kubelet API of a node that left");
        }
        while listeners.tasks.try_join_next().is_some() {}
    }

    async fn bind(&self, node: &str, preferred: Option<u16>) -> Result<TcpListener, ProxyError> {
        for port in candidates(node, &self.ports, preferred) {
            if let Ok(listener) = TcpListener::bind(SocketAddr::new(self.address, port)).await {
                return Ok(listener);
            }
        }
        Err(ProxyError::NoPort {
            node: node.to_owned(),
            first: *self.ports.start(),
            last: *self.ports.end(),
        })
    }
}

/// The ports to try, in order.
fn candidates(node: &str, ports: &RangeInclusive<u16>, preferred: Option<u16>) -> impl Iterator<Item = u16> + use<> {
    let (first, count) = (
        *ports.start(),
        u64::from(ports.end().saturating_sub(*ports.start())) + 1,
    );
    // FNV-1a: the same on every hub, which a HashMap's hasher is not.
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let preferred = preferred.filter(|port| ports.contains(port));
    let all = (0..count).map(move |n| first + u16::try_from((hash.wrapping_add(n)) % count).unwrap_or_default());
    preferred.into_iter().chain(all)
}

async fn serve_node(shared: Arc<Shared>, listener: TcpListener, node: String) {
    let node: Arc<str> = node.into();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => match shared.permits.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let (shared, node) = (shared.clone(), node.clone());
                        connections.spawn(async move {
                            if let Err(error) = serve_connection(&shared, stream, &node).await {
                                tracing::debug!(%remote, node = &*node, %error, "a kubelet API connection broke");
                            }
                            drop(permit);
                        });
                    }
                    Err(_) => tracing::warn!(%remote, "too many kubelet API connections: dropped one"),
                },
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end give some back.
                    tracing::warn!(%error, "accept a kubelet API connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn serve_connection(
    shared: &Arc<Shared>,
    stream: TcpStream,
    node: &Arc<str>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // A keystroke of `exec -it` must not wait for the next one.
    stream.set_nodelay(true)?;
    let tls = callers::server_config(shared.callers.roots(), shared.certificate.clone())?;
    let stream = timeout(HANDSHAKE_WITHIN, TlsAcceptor::from(Arc::new(tls)).accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let context = forward::Context {
        node: node.clone(),
        certificate: certificate.map(|c| Arc::from(c.as_ref())),
        callers: shared.callers.clone(),
        edges: shared.edges.clone(),
        streams: Arc::default(),
    };
    let service = service_fn(|request| {
        let context = context.clone();
        async move { Ok::<_, std::convert::Infallible>(forward::answer(&context, request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD);
    let served = http
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    context.finish().await;
    Ok(served?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_port_and_every_port_is_tried_once() {
        let range = 10..=19;
        let tried: Vec<u16> = candidates("robot-1", &range, None).collect();
        let mut sorted = tried.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (10..=19).collect::<Vec<_>>());
        assert_eq!(candidates("robot-1", &range, Some(17)).next(), Some(17));
        assert_eq!(candidates("robot-1", &range, Some(99)).next(), Some(tried[0]));
        assert_eq!(candidates("robot-1", &(0..=0), None).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn an_absent_node_says_since_when() {
        let away = Away {
            since: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_500)),
            why: "link lost".into(),
        };
        assert_eq!(
            away.message("r"),
            "node r is away since 1970-01-02T00:00:00Z: link lost"
        );
    }
}
