//! One connection over one uplink: look-up → socket bound to the device → handshake → Attach → Welcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::time::timeout;

use super::lookup::look_up;
use super::mtu::Mtus;
use super::race::{order, race};
use super::{ConnectError, EdgeConfig, Uplink};
use crate::bond::PathId;
use crate::congestion::controller::Told;
use crate::driver::PathInfo;
use crate::frame::{self, Attach, Control, RefusedFrame, WelcomeFrame};
use crate::quic::{self, QuicPath};
use crate::tls::{self, TlsError};
use crate::transport;
use crate::types::{CloseReason, Limits, PeerInfo, Welcome};

/// One round trip, and a first packet that is sent again after 0.6 and 1.8 s: with the longest back-off, a hub that is back is
/// found within 8 s.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
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
    #[error("the hub knows epoch {0}")]
    StaleEpoch(u64),
    #[error(transparent)]
    Fatal(#[from] ConnectError),
}

/// Dials with one certificate.
#[derive(Clone)]
pub(super) struct Dialler {
    pub(super) config: Arc<EdgeConfig>,
    /// One for all connections: a ticket of the last over any uplink resumes the next.
    crypto: Arc<QuicClientConfig>,
    pub(super) mtus: Mtus,
}

/// A connection that is up and has not attached.
pub(super) struct Dialled {
    pub(super) uplink: Uplink,
    pub(super) endpoint: Endpoint,
    connection: Connection,
    told: Told,
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
    pub(super) endpoint: Endpoint,
    pub(super) path: Arc<QuicPath>,
    pub(super) info: PathInfo,
    pub(super) welcome: Welcome,
    pub(super) peer: PeerInfo,
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
            crypto: transport::edge(tls)?,
            mtus: Mtus::default(),
        })
    }

    /// A connection to the hub of this turn, whichever of its addresses answers first.
    pub(super) async fn dial(&self, uplink: &Uplink, turn: usize) -> Result<Dialled, AttemptError> {
        let hubs = match uplink.hubs.len() {
            0 => &self.config.hubs,
            _ => &uplink.hubs,
        };
        let hub = &hubs[turn % hubs.len()];
        let addresses = order(look_up(hub, uplink).await?, turn / hubs.len());
        let dialled = race(addresses, |remote| self.dial_address(uplink, remote)).await;
        self.note(uplink, dialled)
    }

    /// Remembers what got no answer.
    fn note<T>(&self, uplink: &Uplink, outcome: Result<T, AttemptError>) -> Result<T, AttemptError> {
        if matches!(outcome, Err(AttemptError::Timeout(_))) {
            self.mtus.unanswered(&uplink.name);
        }
        outcome
    }

    async fn dial_address(&self, uplink: &Uplink, remote: SocketAddr) -> Result<Dialled, AttemptError> {
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
        Ok(Dialled {
            uplink: uplink.clone(),
            endpoint,
            connection,
            told,
        })
    }

    /// Names the session to the hub and waits for its word.
    pub(super) async fn attach(&self, dialled: Dialled, ticket: Ticket) -> Result<Welcomed, AttemptError> {
        let (connection, uplink) = (dialled.connection.clone(), dialled.uplink.clone());
        let attached = self.note(&uplink, self.exchange(dialled, ticket).await);
        if attached.is_err() {
            quic::close(&connection, &CloseReason::Local);
        }
        attached
    }

    async fn exchange(&self, dialled: Dialled, ticket: Ticket) -> Result<Welcomed, AttemptError> {
        let (config, uplink, connection) = (&self.config, &dialled.uplink, &dialled.connection);
        let remote = connection.remote_address();
        let local = local_address(remote, uplink);
        let attach = Attach {
            incarnation: config.incarnation.to_vec(),
            epoch: ticket.epoch,
            boot_id: config.boot_id.clone(),
            agent: config.agent.clone(),
            uplink: uplink.name.clone(),
            local_address: local.map(|local| local.to_string()).unwrap_or_default(),
            path: ticket.path.0.into(),
            joins: ticket.joins,
            ping_seconds: u32::try_from(uplink.ping_interval().as_secs()).unwrap_or(0),
        };
        let (welcome, control) = timeout(WELCOME_WITHIN, exchange(connection, attach))
            .await
            .map_err(|_| AttemptError::Timeout(remote))??;
        config.clock_floor.raise(welcome.wall_time);
        let peer = PeerInfo {
            node: config.node.clone(),
            incarnation: config.incarnation,
            epoch: ticket.epoch,
            boot_id: config.boot_id.clone(),
            agent: config.agent.clone(),
            uplink: uplink.name.clone(),
            remote,
            local_addr_of_peer: local,
        };
        let info = PathInfo {
            id: ticket.path,
            uplink: uplink.name.clone(),
            ping_interval: uplink.ping_interval(),
            carries: uplink.carries,
        };
        Ok(Welcomed {
            path: QuicPath::new(dialled.connection, dialled.told, control),
            endpoint: dialled.endpoint,
            info,
            welcome,
            peer,
        })
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
