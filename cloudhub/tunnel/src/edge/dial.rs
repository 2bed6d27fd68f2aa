//! One connection over one uplink: look-up → socket bound to the device → handshake → Attach → Welcome. [`fallback`] has what differs over TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::time::timeout;

use super::lookup::look_up;
use super::mtu::Mtus;
use super::race::{order, race};
use super::{ConnectError, EdgeConfig, Uplink, fallback};
use crate::bond::{PathId, Policy};
use crate::congestion::controller::Told;
use crate::driver::PathInfo;
use crate::frame::{self, Attach, Control, RefusedFrame};
use crate::path::PathControl;
use crate::quic::{self, QuicPath};
use crate::session::Inner;
use crate::tcp::TcpPath;
use crate::tls::{self, TlsError};
use crate::transport;
use crate::types::{CloseReason, Limits, PeerInfo, Welcome};

/// One round trip, and a first packet that is sent again after 0.6 and 1.8 s: with the longest back-off, a hub that is back is
/// found within 8 s.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// The hub may take 2 s to challenge another session of this node.
const WELCOME_WITHIN: Duration = Duration::from_secs(5);

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
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
    #[error("over TCP: {0}")]
    Fallback(String),
    #[error("{quic}; {tcp}")]
    Both {
        quic: Box<AttemptError>,
        tcp: Box<AttemptError>,
    },
    #[error("the hub knows epoch {0}")]
    StaleEpoch(u64),
    #[error(transparent)]
    Fatal(#[from] ConnectError),
}

/// Dials with one certificate.
#[derive(Clone)]
pub(super) struct Dialler {
    pub(super) config: Arc<EdgeConfig>,
    /// Hub addresses that go before the configured ones: where a hub has sent this edge, or where its session is.
    pub(super) lead: Arc<[String]>,
    /// One for all connections: a ticket of the last over any uplink resumes the next.
    crypto: Arc<QuicClientConfig>,
    /// The same over TCP.
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) mtus: Mtus,
}

/// A connection that is up and has not attached.
pub(super) struct Dialled {
    pub(super) uplink: Uplink,
    /// The address that was dialled, as somebody wrote it.
    pub(super) hub: String,
    pub(super) over: Connected,
}

/// What it goes over.
pub(super) enum Connected {
    Quic(Endpoint, Connection, Told),
    Tcp(Box<fallback::Connected>),
}

/// What names the session and the path in Attach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) epoch: u64,
    pub(super) path: PathId,
    pub(super) joins: bool,
}

/// A path that the hub has welcomed.
pub(super) struct Welcomed {
    pub(super) path: Path,
    /// See [`Dialled::hub`].
    pub(super) hub: String,
    pub(super) info: PathInfo,
    pub(super) welcome: Welcome,
    pub(super) peer: PeerInfo,
}

/// What it goes over.
pub(super) enum Path {
    Quic(Endpoint, Arc<QuicPath>),
    Tcp(Arc<TcpPath>),
}

impl Path {
    pub(super) fn control(&self) -> Arc<dyn PathControl> {
        match self {
            Self::Quic(_, path) => path.clone(),
            Self::Tcp(path) => path.clone(),
        }
    }

    /// Runs it in its session until it ends.
    pub(super) async fn run(&self, session: &Inner, id: PathId) -> bool {
        match self {
            Self::Quic(_, path) => session.run_path(id, path.as_ref()).await,
            Self::Tcp(path) => session.run_path(id, path.as_ref()).await,
        }
    }

    /// Waits until the last packets of a goodbye are out.
    pub(super) async fn drained(&self) {
        match self {
            Self::Quic(endpoint, _) => endpoint.wait_idle().await,
            Self::Tcp(path) => path.finish().await,
        }
    }
}

impl Dialler {
    pub(super) fn new(config: Arc<EdgeConfig>) -> Result<Self, TlsError> {
        let tls = tls::client_config(
            config.certificate.clone(),
            config.roots.clone(),
            config.clock_floor.clone(),
        )?;
        Ok(Self {
            config,
            lead: Arc::new([]),
            tls: Arc::new(tls.clone()),
            crypto: transport::edge(tls)?,
            mtus: Mtus::default(),
        })
    }

    /// The hub's address of this turn, and how often all of them had theirs.
    pub(super) fn hub<'a>(&'a self, uplink: &'a Uplink, turn: usize) -> (&'a str, usize) {
        let hubs: Vec<&str> = match uplink.hubs.as_slice() {
            [] => {
                let known = self.config.hubs.iter().filter(|hub| !self.lead.contains(hub));
                self.lead.iter().chain(known).map(String::as_str).collect()
            }
            own => own.iter().map(String::as_str).collect(),
        };
        (hubs[turn % hubs.len()], turn / hubs.len())
    }

    /// For the further paths of a session: where its hub's instance says that it is, then where the first path went.
    pub(super) fn to(&self, first: &Welcomed) -> Self {
        let mut lead = first.welcome.addresses.clone();
        if !lead.contains(&first.hub) {
            lead.push(first.hub.clone());
        }
        Self {
            lead: lead.into(),
            ..self.clone()
        }
    }

    /// A QUIC connection to the hub of this turn, whichever of its addresses answers first.
    pub(super) async fn dial(&self, uplink: &Uplink, turn: usize) -> Result<Dialled, AttemptError> {
        let (hub, round) = self.hub(uplink, turn);
        let addresses = order(look_up(hub, uplink).await?, round);
        let dialled = race(addresses, |remote| self.dial_address(uplink, remote)).await;
        Ok(Dialled {
            uplink: uplink.clone(),
            hub: hub.to_owned(),
            over: self.note(uplink, dialled)?,
        })
    }

    /// Remembers what got no answer.
    fn note<T>(&self, uplink: &Uplink, outcome: Result<T, AttemptError>) -> Result<T, AttemptError> {
        if matches!(outcome, Err(AttemptError::Timeout(_))) {
            self.mtus.unanswered(&uplink.name);
        }
        outcome
    }

    async fn dial_address(&self, uplink: &Uplink, remote: SocketAddr) -> Result<Connected, AttemptError> {
        let socket = |source| AttemptError::Socket {
            uplink: uplink.name.clone(),
            source,
        };
        let endpoint = open_endpoint(remote, uplink).map_err(socket)?;
        let told = Told::default();
        let mtu = self.mtus.initial(&uplink.name);
        let config = transport::edge_connection(self.crypto.clone(), &told, (uplink.ping_interval(), mtu));
        let connecting = endpoint
            .connect_with(config, remote, &self.config.server_name)
            .map_err(|error| AttemptError::Connection {
                remote,
                why: error.to_string(),
            })?;
        let connection = match timeout(HANDSHAKE_WITHIN, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(handshake_error(remote, &error)),
            Err(_) => return Err(AttemptError::Timeout(remote)),
        };
        Ok(Connected::Quic(endpoint, connection, told))
    }

    /// Names the session to the hub and waits for its word.
    pub(super) async fn attach(&self, dialled: Dialled, ticket: Ticket) -> Result<Welcomed, AttemptError> {
        let Dialled { uplink, hub, over } = dialled;
        let remote = match &over {
            Connected::Quic(_, connection, _) => connection.remote_address(),
            Connected::Tcp(connected) => connected.remote,
        };
        let local = local_address(remote, &uplink);
        let attach = self.first_frame(&uplink, ticket, local);
        let (path, welcome) = match over {
            Connected::Quic(endpoint, connection, told) => {
                let exchanged = in_time(remote, exchange(&connection, attach)).await;
                let (welcome, control) = match self.note(&uplink, exchanged) {
                    Ok(exchanged) => exchanged,
                    Err(error) => {
                        quic::close(&connection, &CloseReason::Local);
                        return Err(error);
                    }
                };
                (Path::Quic(endpoint, QuicPath::new(connection, told, control)), welcome)
            }
            Connected::Tcp(connected) => {
                let (path, welcome) = in_time(remote, connected.exchange(attach, uplink.ping_interval())).await?;
                (Path::Tcp(path), welcome)
            }
        };
        self.config.clock_floor.raise(welcome.wall_time);
        Ok(Welcomed {
            path,
            hub,
            info: PathInfo {
                id: ticket.path,
                uplink: uplink.name.clone(),
                ping_interval: uplink.ping_interval(),
                policy: uplink.policy,
                traffic: self.config.meter.of(&uplink.name),
            },
            welcome,
            peer: self.peer(uplink.name, ticket, (remote, local)),
        })
    }

    fn first_frame(&self, uplink: &Uplink, ticket: Ticket, local: Option<SocketAddr>) -> Attach {
        Attach {
            incarnation: self.config.incarnation.to_vec(),
            epoch: ticket.epoch,
            boot_id: self.config.boot_id.clone(),
            agent: self.config.agent.clone(),
            uplink: uplink.name.clone(),
            local_address: local.map(|local| local.to_string()).unwrap_or_default(),
            path: ticket.path.0.into(),
            joins: ticket.joins,
            ping_seconds: u32::try_from(uplink.ping_interval().as_secs()).unwrap_or(0),
            policy: (uplink.policy != Policy::default()).then(|| uplink.policy.into()),
        }
    }

    fn peer(&self, uplink: String, ticket: Ticket, (remote, local): (SocketAddr, Option<SocketAddr>)) -> PeerInfo {
        PeerInfo {
            node: self.config.node.clone(),
            incarnation: self.config.incarnation,
            epoch: ticket.epoch,
            boot_id: self.config.boot_id.clone(),
            agent: self.config.agent.clone(),
            uplink,
            remote,
            local_addr_of_peer: local,
        }
    }
}

async fn in_time<T>(
    remote: SocketAddr,
    exchange: impl Future<Output = Result<T, AttemptError>>,
) -> Result<T, AttemptError> {
    let exchanged = timeout(WELCOME_WITHIN, exchange).await;
    exchanged.unwrap_or(Err(AttemptError::Timeout(remote)))
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
        Ok(answer) => Ok((welcome_of(answer, connection.remote_address())?, (writer, reader))),
        Err(error) => match connection.close_reason() {
            Some(reason) => Err(ended(connection, &reason)),
            None => Err(AttemptError::Connection {
                remote: connection.remote_address(),
                why: error.to_string(),
            }),
        },
    }
}

pub(super) fn refused(reason: String) -> AttemptError {
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

/// What the hub's first frame says.
pub(super) fn welcome_of(answer: Control, remote: SocketAddr) -> Result<Welcome, AttemptError> {
    let fail = |why: &str| AttemptError::Connection {
        remote,
        why: why.to_owned(),
    };
    let welcome = match answer {
        Control::Welcome(welcome) => welcome,
        Control::Refused(RefusedFrame {
            current_epoch: Some(current),
            ..
        }) => return Err(AttemptError::StaleEpoch(current)),
        Control::Refused(RefusedFrame { reason, .. }) => return Err(refused(reason)),
        _ => return Err(fail("the hub's first frame is neither Welcome nor Refused")),
    };
    let hub_instance = welcome.hub_instance.as_slice().try_into();
    Ok(Welcome {
        hub_instance: hub_instance.map_err(|_| fail("the hub's instance must have 16 bytes"))?,
        wall_time: Duration::from_millis(welcome.wall_time_millis),
        addresses: welcome.addresses,
        limits: Limits {
            max_message: welcome.max_message,
            max_streams: welcome.max_streams,
        },
    })
}

fn open_endpoint(remote: SocketAddr, uplink: &Uplink) -> std::io::Result<Endpoint> {
    let socket = transport::socket(uplink.source(remote), uplink.device.as_deref())?;
    let config = quinn::EndpointConfig::default();
    Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime))
}

/// The address that the kernel would send from.
fn local_address(remote: SocketAddr, uplink: &Uplink) -> Option<SocketAddr> {
    let socket = transport::socket(uplink.source(remote), uplink.device.as_deref()).ok()?;
    socket.connect(remote).ok()?;
    let port_zero = socket.local_addr().ok()?;
    Some(SocketAddr::new(port_zero.ip(), 0))
}
