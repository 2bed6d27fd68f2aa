//! The edge's end: attempts to reach a hub, one session at a time.
//!
//! - [`Edge::connect`]: back-off → address and uplink in turn → socket bound to the uplink → handshake → epoch → Attach → Welcome
//! - the session's path then runs in the edge's task set until it ends; the caller comes back with [`Edge::connect`]
//!
//! State: [`State`], behind the lock that makes attempts take turns. Failures that time may heal are logged and tried again with
//! full jitter; a refusal is returned, and the next call waits first. The back-off starts over only after the hub's application
//! has said something in a session.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::frame::{self, Attach, Control, RefusedFrame, WelcomeFrame};
use crate::path::PathTransport;
use crate::quic::{self, QuicPath};
use crate::session::{Inner, Session};
use crate::tls::{self, ClockFloor, TlsError};
use crate::transport;
use crate::types::{CloseReason, Limits, PeerInfo, Welcome};

/// One round trip, and a first packet that is sent again after 0.6 and 1.8 s: with the longest back-off, a hub that is back is
/// found within 8 s.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// The hub may take 2 s to challenge another session of this node.
const WELCOME_WITHIN: Duration = Duration::from_secs(5);
/// A name server that does not answer is no reason to wait longer.
const LOOKUP_WITHIN: Duration = Duration::from_secs(3);
/// How long the last packets of a goodbye may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// Where epochs come from.
pub trait EpochSource: Send + Sync {
    /// The next epoch, above `above` and every one given before, durable when it returns.
    fn next(&self, above: u64) -> BoxFuture<'_, Result<u64, String>>;
}

/// A network interface that leads to the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Name in logs and at the hub, at most 64 bytes.
    pub name: String,
    /// Network device that the socket is bound to; `None` = wherever the routes lead.
    pub device: Option<String>,
}

/// What an edge's tunnel needs.
#[derive(Clone)]
pub struct EdgeConfig {
    /// This node's name.
    pub node: String,
    /// Hub addresses, `host:port` each, tried in turn.
    pub hubs: Vec<String>,
    /// The name in the hub's certificate: [`crate::SERVER_NAME`].
    pub server_name: String,
    /// The serving CA.
    pub roots: Arc<RootCertStore>,
    /// The node's certificate; see [`crate::tls::identity_from_pem`].
    pub certificate: Arc<dyn ResolvesClientCert>,
    /// Random, made with the store.
    pub incarnation: [u8; 16],
    /// Durable epochs.
    pub epochs: Arc<dyn EpochSource>,
    /// The machine's boot id.
    pub boot_id: String,
    /// This process: random, made at its start.
    pub agent: String,
    /// Tried in turn; empty = one that follows the routes.
    pub uplinks: Vec<Uplink>,
    /// Time that has passed for sure; raised by each Welcome.
    pub clock_floor: ClockFloor,
}

impl std::fmt::Debug for EdgeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeConfig")
            .field("node", &self.node)
            .field("hubs", &self.hubs)
            .field("uplinks", &self.uplinks)
            .finish_non_exhaustive()
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The hub does not take this node: revoked, quarantined, an expired certificate. Calling again waits first.
    #[error("the hub refused this node: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The epoch could not be made durable.
    #[error("make the next epoch durable: {0}")]
    Epoch(String),
    /// The TLS material cannot be used.
    #[error("set up the tunnel's TLS")]
    Tls(#[from] TlsError),
    /// There is no hub address to try.
    #[error("no hub address is configured")]
    NoHub,
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("look up {hub}: {why}")]
    Lookup { hub: String, why: String },
    #[error("open a socket on uplink {uplink}: {source}")]
    Socket { uplink: String, source: std::io::Error },
    #[error("{0} does not answer")]
    Timeout(SocketAddr),
    #[error("HubUnknown: the certificate of the hub at {remote} is not from our hub's CA: {why}")]
    HubUnknown { remote: SocketAddr, why: String },
    #[error("connection to {remote} failed: {why}")]
    Connection { remote: SocketAddr, why: String },
    #[error("the hub knows epoch {0}")]
    StaleEpoch(u64),
    #[error(transparent)]
    Fatal(#[from] ConnectError),
}

struct State {
    config: EdgeConfig,
    tls: quinn::ClientConfig,
    backoff: Backoff,
    attempts: usize,
    epoch_above: u64,
    last: Option<Session>,
    endpoint: Option<Endpoint>,
}

/// The edge's tunnel.
pub struct Edge {
    state: tokio::sync::Mutex<State>,
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").finish_non_exhaustive()
    }
}

impl Edge {
    /// Checks the TLS material; opens nothing yet.
    ///
    /// # Errors
    /// The TLS material cannot be used, or there is no hub address.
    pub fn new(config: EdgeConfig) -> Result<Self, ConnectError> {
        if config.hubs.is_empty() {
            return Err(ConnectError::NoHub);
        }
        Ok(Self {
            state: tokio::sync::Mutex::new(State {
                tls: quic_config(&config)?,
                config,
                backoff: Backoff::default(),
                attempts: 0,
                epoch_above: 0,
                last: None,
                endpoint: None,
            }),
            tasks: Mutex::new(JoinSet::new()),
        })
    }

    /// Takes a rotated certificate for the next sessions. Waits for a running [`Edge::connect`].
    ///
    /// # Errors
    /// The certificate cannot be used.
    pub async fn set_certificate(&self, certificate: Arc<dyn ResolvesClientCert>) -> Result<(), ConnectError> {
        let mut state = self.state.lock().await;
        state.config.certificate = certificate;
        state.tls = quic_config(&state.config)?;
        Ok(())
    }

    /// Returns when a session is up; waits between attempts. Cancel-safe.
    ///
    /// # Errors
    /// The hub refuses this node, or no epoch can be had. Links and addresses that do not work are tried again instead.
    pub async fn connect(&self) -> Result<Session, ConnectError> {
        let mut state = self.state.lock().await;
        if let Some(last) = state.last.take() {
            if last.inner().answered() {
                state.backoff.reset();
            } else {
                let _ = state.backoff.next(0.0);
            }
        }
        loop {
            if state.backoff.failures() > 0 {
                let failures = state.backoff.clone();
                tokio::time::sleep(failures.clone().next(rand::random())).await;
            }
            match state.attempt().await {
                Ok((session, path)) => {
                    self.start(&session, path);
                    let session = Session::new(session);
                    state.last = Some(session.clone());
                    return Ok(session);
                }
                Err(AttemptError::StaleEpoch(current)) => {
                    tracing::warn!(current, "the hub knows a higher epoch: taking one above it");
                    state.epoch_above = current;
                }
                Err(AttemptError::Fatal(error)) => {
                    let _ = state.backoff.next(0.0);
                    return Err(error);
                }
                Err(error) => {
                    tracing::info!(attempt = state.attempts, %error, "no session");
                }
            }
            let _ = state.backoff.next(0.0);
        }
    }

    /// Says goodbye and waits until the last packets are out, at most a second.
    pub async fn shutdown(&self, text: &str) {
        let mut state = self.state.lock().await;
        if let Some(session) = state.last.take() {
            session.close(CloseReason::PeerGoodbye { text: text.to_owned() });
        }
        if let Some(endpoint) = state.endpoint.take() {
            let _ = timeout(DRAIN_WITHIN, endpoint.wait_idle()).await;
        }
    }

    fn start(&self, session: &Arc<Inner>, path: Arc<dyn PathTransport>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let id = session.add_path(path.clone());
        tasks.spawn(session.clone().run_path(id, path));
    }
}

fn quic_config(config: &EdgeConfig) -> Result<quinn::ClientConfig, TlsError> {
    let tls = tls::client_config(
        config.certificate.clone(),
        config.roots.clone(),
        config.clock_floor.clone(),
    )?;
    transport::edge(tls)
}

impl State {
    /// One attempt: the next hub address over the next uplink.
    async fn attempt(&mut self) -> Result<(Arc<Inner>, Arc<dyn PathTransport>), AttemptError> {
        let turn = self.attempts;
        self.attempts = self.attempts.wrapping_add(1);
        let default = Uplink {
            name: "default".to_owned(),
            device: None,
        };
        let uplinks = &self.config.uplinks;
        let uplink = match uplinks.len() {
            0 => default,
            count => uplinks[turn % count].clone(),
        };
        let hubs = &self.config.hubs;
        let hub = hubs[(turn / uplinks.len().max(1)) % hubs.len()].clone();
        let remote = look_up(&hub, turn).await?;
        let device = uplink.device.as_deref();
        let endpoint = open_endpoint(remote, device).map_err(|source| AttemptError::Socket {
            uplink: uplink.name.clone(),
            source,
        })?;
        let connection = self.shake_hands(&endpoint, remote).await?;
        let attached = self.attach(&connection, &uplink).await;
        let (session, control) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                quic::close(&connection, &CloseReason::Local);
                return Err(error);
            }
        };
        self.endpoint = Some(endpoint);
        Ok((session, QuicPath::new(connection, control)))
    }

    async fn shake_hands(&self, endpoint: &Endpoint, remote: SocketAddr) -> Result<Connection, AttemptError> {
        let connecting = endpoint
            .connect_with(self.tls.clone(), remote, &self.config.server_name)
            .map_err(|error| AttemptError::Connection {
                remote,
                why: error.to_string(),
            })?;
        match timeout(HANDSHAKE_WITHIN, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(handshake_error(remote, &error)),
            Err(_) => Err(AttemptError::Timeout(remote)),
        }
    }

    async fn attach(
        &self,
        connection: &Connection,
        uplink: &Uplink,
    ) -> Result<(Arc<Inner>, (SendStream, RecvStream)), AttemptError> {
        let epoch = self.config.epochs.next(self.epoch_above).await;
        let epoch = epoch.map_err(ConnectError::Epoch)?;
        let remote = connection.remote_address();
        let local = local_address(remote, uplink.device.as_deref());
        let attach = Attach {
            incarnation: self.config.incarnation.to_vec(),
            epoch,
            boot_id: self.config.boot_id.clone(),
            agent: self.config.agent.clone(),
            uplink: uplink.name.clone(),
            local_address: local.map(|local| local.to_string()).unwrap_or_default(),
        };
        let (welcome, control) = timeout(WELCOME_WITHIN, exchange(connection, attach))
            .await
            .map_err(|_| AttemptError::Timeout(remote))??;
        self.config.clock_floor.raise(welcome.wall_time);
        let peer = PeerInfo {
            node: self.config.node.clone(),
            incarnation: self.config.incarnation,
            epoch,
            boot_id: self.config.boot_id.clone(),
            agent: self.config.agent.clone(),
            uplink: uplink.name.clone(),
            remote,
            local_addr_of_peer: local,
        };
        Ok((Inner::new(peer, welcome), control))
    }
}

/// Attach out, Welcome or Refused back.
async fn exchange(
    connection: &Connection,
    attach: Attach,
) -> Result<(Welcome, (SendStream, RecvStream)), AttemptError> {
    let (mut writer, mut reader) = connection.open_bi().await.map_err(|error| ended(connection, &error))?;
    let answer = match frame::write(&mut writer, Control::Attach(attach)).await {
        Ok(()) => frame::read(&mut reader).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(Control::Welcome(welcome)) => Ok((welcome_of(welcome, connection)?, (writer, reader))),
        Ok(Control::Refused(RefusedFrame {
            current_epoch: Some(current),
            ..
        })) => Err(AttemptError::StaleEpoch(current)),
        Ok(Control::Refused(RefusedFrame { reason, .. })) => Err(refused(reason)),
        Ok(_) => Err(AttemptError::Connection {
            remote: connection.remote_address(),
            why: "the hub's first frame is neither Welcome nor Refused".to_owned(),
        }),
        Err(error) => match connection.close_reason() {
            Some(reason) => Err(ended(connection, &reason)),
            None => Err(AttemptError::Connection {
                remote: connection.remote_address(),
                why: error.to_string(),
            }),
        },
    }
}

fn refused(reason: String) -> AttemptError {
    AttemptError::Fatal(ConnectError::Refused { reason })
}

/// What the end of the connection before Welcome means.
fn ended(connection: &Connection, error: &ConnectionError) -> AttemptError {
    let remote = connection.remote_address();
    match quic::reason_of(error) {
        CloseReason::Refused { reason, .. } => refused(reason),
        CloseReason::Revoked => refused("the node's identity was revoked".to_owned()),
        _ => match error {
            // In TLS 1.3 the hub's verdict on our certificate comes after our side of the handshake is done.
            ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
                refused(format!("the hub does not take our certificate: {error}"))
            }
            _ => AttemptError::Connection {
                remote,
                why: error.to_string(),
            },
        },
    }
}

fn handshake_error(remote: SocketAddr, error: &ConnectionError) -> AttemptError {
    let why = error.to_string();
    match error {
        ConnectionError::TransportError(error) if is_alert(error.code) => AttemptError::HubUnknown { remote, why },
        ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
            refused(format!("the hub does not take our certificate: {why}"))
        }
        _ => AttemptError::Connection { remote, why },
    }
}

/// Whether this is a TLS alert (RFC 9001 §4.8: 0x0100 + the alert).
fn is_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

fn welcome_of(frame: WelcomeFrame, connection: &Connection) -> Result<Welcome, AttemptError> {
    let hub_instance = frame.hub_instance.as_slice().try_into();
    Ok(Welcome {
        hub_instance: hub_instance.map_err(|_| AttemptError::Connection {
            remote: connection.remote_address(),
            why: "the hub's instance must have 16 bytes".to_owned(),
        })?,
        wall_time: Duration::from_millis(frame.wall_time_millis),
        addresses: frame.addresses,
        limits: Limits {
            max_message: frame.max_message,
            max_streams: frame.max_streams,
        },
    })
}

async fn look_up(hub: &str, turn: usize) -> Result<SocketAddr, AttemptError> {
    let fail = |why: String| AttemptError::Lookup {
        hub: hub.to_owned(),
        why,
    };
    let found = timeout(LOOKUP_WITHIN, tokio::net::lookup_host(hub)).await;
    let addresses: Vec<_> = found
        .map_err(|_| fail("no answer".to_owned()))?
        .map_err(|error| fail(error.to_string()))?
        .collect();
    match addresses.len() {
        0 => Err(fail("no address".to_owned())),
        count => Ok(addresses[turn % count]),
    }
}

fn any_address(like: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

fn open_endpoint(remote: SocketAddr, device: Option<&str>) -> std::io::Result<Endpoint> {
    let socket = transport::socket(any_address(remote), device)?;
    let config = quinn::EndpointConfig::default();
    Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime))
}

/// The address that the kernel would send from.
fn local_address(remote: SocketAddr, device: Option<&str>) -> Option<SocketAddr> {
    let socket: UdpSocket = transport::socket(any_address(remote), device).ok()?;
    socket.connect(remote).ok()?;
    let port_zero = socket.local_addr().ok()?;
    Some(SocketAddr::new(port_zero.ip(), 0))
}
