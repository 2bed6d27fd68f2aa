//! The hub's end: one UDP socket, TCP listeners, one task per connection, the table of live sessions.
//!
//! - socket → handshake (mTLS) → [`Admission`] → Attach → [`crate::attach::decide`] → Welcome → [`Hub::accept`]; `quic`, and `tcp` for
//!   connections from sites that block UDP
//! - the connection's task then runs the path until it ends; the session's task outlives all of them, for as long as the session does
//! - whoever removes a session from the table names that session
//!
//! State: [`Shared`] (sessions and quarantines, one lock, never held over an await).

mod newcomer;
mod quic;
mod tcp;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::Endpoint;
use rustls::RootCertStore;
use rustls::server::ResolvesServerCert;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use self::tcp::TcpDoor;

use self::newcomer::Attached;
use crate::attach::{Decision, Newcomer, SessionKey, decide};
use crate::bond::Config;
use crate::driver::PathInfo;
use crate::frame::RefusedFrame;
use crate::keys::QuicKeys;
use crate::path::PathTransport;
use crate::session::{Inner, Session};
use crate::socket;
use crate::tls::{self, Admission, PeerCertificate, TlsError};
use crate::transport;
use crate::types::{CloseReason, HubAddresses, Limits, PeerInfo, Welcome};

/// A handshake takes two round trips; ten seconds serve the worst link.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Attach follows the handshake at once.
const ATTACH_WITHIN: Duration = Duration::from_secs(5);
/// How long a live session may take to answer when another store comes under its name.
const CHALLENGE_WITHIN: Duration = Duration::from_secs(2);
/// How long two machines with one identity stay out: long enough that nobody takes the alternation for work.
const QUARANTINE: Duration = Duration::from_secs(600);
/// Sessions that wait for [`Hub::accept`].
const ACCEPT_BACKLOG: usize = 256;
/// How long the last packets of a goodbye may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// What a hub's tunnel needs.
pub struct HubConfig {
    /// UDP address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// TCP addresses for edges whose sites block UDP; [`Hub::tcp_door`] takes more of them from a port that others listen on.
    pub listen_tcp: Vec<SocketAddr>,
    /// The certificate for [`crate::SERVER_NAME`], from the serving CA.
    pub certificate: Arc<dyn ResolvesServerCert>,
    /// The tunnel CA: who may come in.
    pub client_roots: Arc<RootCertStore>,
    /// Random, made at each start of the hub's process.
    pub hub_instance: [u8; 16],
    /// Where this very instance is reached, `host:port` each.
    pub addresses: Vec<String>,
    /// What one session may do.
    pub limits: Limits,
    /// Persisted keys.
    pub keys: QuicKeys,
    /// Who is let in after the handshake.
    pub admission: Arc<dyn Admission>,
    /// How long a session may be without a link before it ends: [`crate::DORMANT_FOR`].
    pub dormant_for: Duration,
}

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("listen", &self.listen)
            .field("listen_tcp", &self.listen_tcp)
            .field("addresses", &self.addresses)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The hub's tunnel could not start.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The UDP socket.
    #[error("open the UDP socket {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A TCP socket.
    #[error("listen for the tunnel on TCP address {address}")]
    BindTcp {
        /// The address asked for.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The TLS material.
    #[error("set up the tunnel's TLS")]
    Tls(#[from] TlsError),
}

/// The hub's tunnel.
pub struct Hub {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    local_addr: SocketAddr,
    tcp_addrs: Vec<SocketAddr>,
    tcp_door: TcpDoor,
    sessions: tokio::sync::Mutex<mpsc::Receiver<Session>>,
    /// The tasks that accept, and the one that owns the QUIC connections' tasks.
    _tasks: JoinSet<()>,
    /// The one that owns the TCP connections' tasks.
    tcp: tokio::sync::Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Opens the socket and starts to accept.
    ///
    /// # Errors
    /// The address cannot be bound, or the TLS material cannot be used.
    pub fn bind(config: HubConfig) -> Result<Self, HubError> {
        let bind = |source| HubError::Bind {
            address: config.listen,
            source,
        };
        let tls = tls::server_config(config.certificate, config.client_roots)?;
        let over_tcp = Arc::new(tls.clone());
        let server = transport::hub(tls, &config.keys)?;
        let socket = transport::socket(config.listen, None).map_err(bind)?;
        let (socket, runtime) = socket::adopt(socket).map_err(bind)?;
        let endpoint_config = config.keys.endpoint_config();
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config, Some(server.clone()), socket, runtime);
        let endpoint = endpoint.map_err(bind)?;
        let local_addr = endpoint.local_addr().map_err(bind)?;
        let listeners = config.listen_tcp.iter().map(|address| tcp::listen(*address));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        let (accepted, sessions) = mpsc::channel(ACCEPT_BACKLOG);
        let shared = Arc::new(Shared {
            server,
            sessions: Mutex::default(),
            hub_instance: config.hub_instance,
            addresses: config.addresses,
            limits: config.limits,
            admission: config.admission,
            accepted,
            dormant_for: config.dormant_for,
            table: Arc::default(),
            stop: CancellationToken::new(),
        });
        let (door, mut tasks) = (tcp::Door::new(), JoinSet::new());
        tasks.spawn(quic::accept(endpoint.clone(), shared.clone()));
        let tcp_door = door.door();
        let mut tcp_addrs = Vec::new();
        for (listener, address) in listeners {
            tcp_addrs.push(address);
            tasks.spawn(door.listen(listener));
        }
        let mut tcp = JoinSet::new();
        tcp.spawn(door.run(shared.clone(), over_tcp));
        Ok(Self {
            shared,
            endpoint,
            local_addr,
            tcp_addrs,
            tcp_door,
            sessions: tokio::sync::Mutex::new(sessions),
            _tasks: tasks,
            tcp: tokio::sync::Mutex::new(tcp),
        })
    }

    /// The bound UDP address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The bound TCP addresses, in the order of [`HubConfig::listen_tcp`].
    pub fn tcp_addrs(&self) -> &[SocketAddr] {
        &self.tcp_addrs
    }

    /// Where connections go that came to somebody else's TCP port and ask for the tunnel.
    pub fn tcp_door(&self) -> TcpDoor {
        self.tcp_door.clone()
    }

    /// The next session, attached and welcomed; `None` after [`Hub::shutdown`]. Cancel-safe.
    pub async fn accept(&self) -> Option<Session> {
        self.sessions.lock().await.recv().await
    }

    /// The session of a node, dormant or not.
    pub fn session(&self, node: &str) -> Option<Session> {
        self.shared.table().live.get(node).cloned().map(Session::new)
    }

    /// The sessions of all nodes, dormant ones too.
    pub fn sessions(&self) -> Vec<Session> {
        let table = self.shared.table();
        table.live.values().cloned().map(Session::new).collect()
    }

    /// Cuts the node's session at once. Make [`Admission`] refuse the node first, else it comes back.
    pub fn revoke(&self, node: &str) -> bool {
        self.cut(node, CloseReason::Revoked)
    }

    /// Sends a node's session elsewhere: its edge dials these addresses before those of its configuration. False when it has no session, or
    /// nobody would hear it.
    pub fn redirect(&self, node: &str, to: &HubAddresses) -> bool {
        let is_here = self.session(node).is_some_and(|session| session.is_here());
        is_here && self.cut(node, CloseReason::Redirected { to: to.clone() })
    }

    /// False when the node has no session.
    fn cut(&self, node: &str, reason: CloseReason) -> bool {
        let Some(session) = self.shared.table().live.remove(node) else {
            return false;
        };
        tracing::info!(node, %reason, "cut a session");
        session.close(reason, true);
        true
    }

    /// Says goodbye to all edges and waits until the last packets are out, at most a second.
    pub async fn shutdown(&self, text: &str) {
        let live: Vec<_> = self.shared.table().live.drain().collect();
        for (_, session) in live {
            let text = text.to_owned();
            session.close(CloseReason::PeerGoodbye { text }, true);
        }
        self.endpoint.close(quinn::VarInt::from_u32(1), text.as_bytes());
        self.shared.stop.cancel();
        let mut tcp = self.tcp.lock().await;
        let tcp_idle = async { while tcp.join_next().await.is_some() {} };
        let _ = timeout(DRAIN_WITHIN, async {
            tokio::join!(self.endpoint.wait_idle(), tcp_idle)
        })
        .await;
    }
}

#[derive(Default)]
struct Table {
    live: HashMap<String, Arc<Inner>>,
    quarantined_until: HashMap<String, Instant>,
}

struct Shared {
    server: quinn::ServerConfig,
    /// One task a session; those of its paths are the connections'.
    sessions: Mutex<JoinSet<()>>,
    hub_instance: [u8; 16],
    addresses: Vec<String>,
    limits: Limits,
    admission: Arc<dyn Admission>,
    accepted: mpsc::Sender<Session>,
    dormant_for: Duration,
    /// The sessions' tasks have it too.
    table: Arc<Mutex<Table>>,
    /// The hub is shut down: no path over TCP is begun any more.
    stop: CancellationToken,
}

/// What became of an Attach.
enum Claim {
    /// A session of its own, which replaced another one perhaps.
    Started(Arc<Inner>, Option<Arc<Inner>>),
    /// One more path for this session.
    Joined(Arc<Inner>),
    /// The live session must answer first.
    Challenge(Arc<Inner>),
    Refused(RefusedFrame),
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        locked(&self.table)
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            hub_instance: self.hub_instance,
            wall_time: wall_now(),
            addresses: self.addresses.clone(),
            limits: self.limits,
        }
    }

    fn bond(&self) -> Config {
        Config {
            max_peer_streams: self.limits.max_streams as usize,
            ..Config::hub()
        }
    }

    /// Decides about a newcomer and puts it into the table; `beaten` is the session that did not answer its challenge.
    fn claim(&self, peer: &PeerInfo, joins: bool, beaten: Option<u64>) -> Claim {
        let mut table = self.table();
        if let Some(refusal) = table.quarantine(&peer.node) {
            return Claim::Refused(refusal);
        }
        let live = table.live.get(&peer.node).filter(|live| !live.is_closed()).cloned();
        let newcomer = Newcomer {
            key: key_of(peer),
            joins,
        };
        let decision = decide(live.as_ref().map(|live| key_of(&live.peer)).as_ref(), &newcomer);
        match (decision, live) {
            (Decision::AddPath, Some(live)) => Claim::Joined(live),
            (Decision::Challenge, Some(live)) if beaten != Some(live.id) => Claim::Challenge(live),
            (Decision::RefuseStale { current_epoch }, _) => Claim::Refused(RefusedFrame {
                reason: format!("the session of epoch {} is over", peer.epoch),
                current_epoch: Some(current_epoch),
            }),
            (_, replaced) => {
                let session = Inner::new(peer.clone(), self.welcome(), self.bond(), self.dormant_for);
                table.live.insert(peer.node.clone(), session.clone());
                Claim::Started(session, replaced)
            }
        }
    }

    /// Two machines live with one identity: cuts the one and keeps both out.
    fn quarantine(&self, live: &Arc<Inner>) -> RefusedFrame {
        let node = &live.peer.node;
        {
            let mut table = self.table();
            table
                .quarantined_until
                .insert(node.clone(), Instant::now() + QUARANTINE);
            if table.live.get(node).is_some_and(|it| it.id == live.id) {
                table.live.remove(node);
            }
        }
        tracing::error!(node, "two machines live with this node's identity: quarantined both");
        self.admission.quarantined(node);
        let refusal = RefusedFrame {
            reason: clone_reason(node),
            current_epoch: None,
        };
        live.close(reason_of(&refusal), true);
        refusal
    }

    /// Starts a session that has its first path.
    async fn start(&self, session: &Arc<Inner>) {
        let peer = &session.peer;
        tracing::info!(node = peer.node, epoch = peer.epoch, uplink = peer.uplink, remote = %peer.remote, "session attached");
        {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            while sessions.try_join_next().is_some() {}
            sessions.spawn(run_session(session.clone(), self.table.clone()));
        }
        if self.accepted.send(Session::new(session.clone())).await.is_err() {
            session.close(CloseReason::Local, true);
        }
    }

    /// Removes this very session.
    fn remove(&self, session: &Inner) {
        self.table().remove(session);
    }
}

fn locked(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// Removes this very session.
    fn remove(&mut self, session: &Inner) {
        let node = &session.peer.node;
        if self.live.get(node).is_some_and(|live| live.id == session.id) {
            self.live.remove(node);
        }
    }

    fn quarantine(&mut self, node: &str) -> Option<RefusedFrame> {
        let until = *self.quarantined_until.get(node)?;
        if until <= Instant::now() {
            self.quarantined_until.remove(node);
            return None;
        }
        Some(RefusedFrame {
            reason: clone_reason(node),
            current_epoch: None,
        })
    }
}

fn clone_reason(node: &str) -> String {
    format!("two machines live with the identity of node {node}; revoke it and join each under its own name")
}

fn key_of(peer: &PeerInfo) -> SessionKey {
    SessionKey {
        incarnation: peer.incarnation,
        epoch: peer.epoch,
    }
}

fn reason_of(refusal: &RefusedFrame) -> CloseReason {
    CloseReason::Refused {
        reason: refusal.reason.clone(),
        current_epoch: refusal.current_epoch,
    }
}

/// Wall clock since 1970.
fn wall_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The session that this path belongs to, and whether it is new.
async fn attach(
    shared: &Shared,
    newcomer: &Attached,
    certificate: &PeerCertificate,
) -> Result<(Arc<Inner>, bool), RefusedFrame> {
    let mut beaten = None;
    let attached = loop {
        match shared.claim(&newcomer.peer, newcomer.joins, beaten) {
            Claim::Refused(refusal) => return Err(refusal),
            Claim::Joined(session) => break (session, false),
            Claim::Challenge(live) => {
                if live.challenge(CHALLENGE_WITHIN).await {
                    return Err(shared.quarantine(&live));
                }
                beaten = Some(live.id);
            }
            Claim::Started(session, replaced) => {
                if let Some(replaced) = replaced {
                    replaced.close(CloseReason::Replaced, true);
                }
                break (session, true);
            }
        }
    };
    // The node may have been revoked between its handshake and its place in the table, where revoke() looks.
    if let Err(reason) = shared.admission.admit(certificate, wall_now()) {
        shared.remove(&attached.0);
        attached.0.close(CloseReason::Revoked, true);
        return Err(RefusedFrame {
            reason,
            current_epoch: None,
        });
    }
    Ok(attached)
}

async fn run_session(session: Arc<Inner>, table: Arc<Mutex<Table>>) {
    session.clone().run().await;
    // One that was dormant for too long may have no path any more whose task would do it.
    locked(&table).remove(&session);
    let reason = Session::new(session.clone()).closed().await.reason;
    tracing::info!(node = session.peer.node, epoch = session.peer.epoch, %reason, "session over");
}

/// `welcomed`: the edge was told.
async fn run<P: PathTransport + 'static>(
    shared: &Shared,
    path: &Arc<P>,
    info: PathInfo,
    (session, new): (Arc<Inner>, bool),
    welcomed: bool,
) {
    let id = info.id;
    if !welcomed || !session.add_path(info, path.clone()) {
        path.close(&CloseReason::LinkLost);
        if new {
            session.close(CloseReason::LinkLost, false);
            shared.remove(&session);
        }
        return;
    }
    if new {
        shared.start(&session).await;
    }
    if session.run_path(id, path.as_ref()).await {
        shared.remove(&session);
    }
}
