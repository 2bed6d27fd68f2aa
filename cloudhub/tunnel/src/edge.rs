//! The edge's end: one session at a time, over all uplinks that lead to a hub.
//!
//! - [`Edge::connect`]: back-off → all uplinks at once ([`dial`]; over TCP where UDP is blocked, [`fallback`]) → the first that is up: epoch → Attach → Welcome
//! - [`keep`]: the session's paths: the first one, and one over each other uplink, dialled again when it ends or no path answers, until the
//!   session ends; the caller comes back with [`Edge::connect`] then
//!
//! State: [`State`], behind the lock that makes attempts take turns. Failures that time may heal are logged and tried again with
//! full jitter; a refusal is returned, and the next call waits first. The back-off starts over only after the hub's application
//! has said something in a session, and is cut short when the uplinks change.

mod dial;
mod fallback;
mod keep;
pub(crate) mod lookup;
mod mtu;
mod race;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use self::fallback::Fallback;

use self::dial::{AttemptError, Dialled, Dialler, Ticket, Welcomed};
use crate::backoff::Backoff;
use crate::bond::{Config, PathId, Policy};
use crate::liveness::{PING_INTERVAL, PING_INTERVAL_METERED};
use crate::meter::Meter;
use crate::session::{Inner, Session};
use crate::tls::{ClockFloor, TlsError};
use crate::types::CloseReason;

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
    /// Name in logs and at the hub, at most 64 bytes; no two have the same.
    pub name: String,
    /// Network device that the socket is bound to; `None` = wherever the routes lead.
    pub device: Option<String>,
    /// The device's number, 0 where nobody knows it: what is plugged in again under its old name is another device, and dialled anew.
    pub index: u32,
    /// What to send from, an address a family, where the device's route is met only so (a routing table of its own); else empty.
    pub sources: Vec<IpAddr>,
    /// Hub addresses over this uplink, `host:port` each, where they differ (a private APN); empty = the same as everywhere.
    pub hubs: Vec<String>,
    /// What it may carry and costs. Where each byte does, an idle path is asked every 25 s, not 8.
    pub policy: Policy,
}

impl Uplink {
    /// One that carries everything.
    pub fn new(name: &str, device: Option<&str>) -> Self {
        Self {
            name: name.to_owned(),
            device: device.map(ToOwned::to_owned),
            index: 0,
            sources: Vec::new(),
            hubs: Vec::new(),
            policy: Policy::default(),
        }
    }

    /// Whether a path over the one serves the other: their policies may differ, not whether they are metered.
    fn is_same_link(&self, other: &Self) -> bool {
        let like = Self {
            policy: other.policy,
            ..self.clone()
        };
        like == *other && self.policy.metered == other.policy.metered
    }

    /// The address of its own that reaches `remote`; a socket bound to it may say nothing else.
    fn source(&self, remote: SocketAddr) -> SocketAddr {
        let same = self.sources.iter().find(|own| own.is_ipv4() == remote.is_ipv4());
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(same.copied().unwrap_or(any), 0)
    }

    fn ping_interval(&self) -> Duration {
        if self.policy.metered {
            PING_INTERVAL_METERED
        } else {
            PING_INTERVAL
        }
    }
}

impl Default for Uplink {
    /// The one that follows the routes.
    fn default() -> Self {
        Self::new("default", None)
    }
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
    /// All used at once; they may come and go. Empty = one that follows the routes.
    pub uplinks: watch::Receiver<Vec<Uplink>>,
    /// Where the hub is reached over TCP, by uplinks over which UDP is blocked.
    pub fallback: Fallback,
    /// Time that has passed for sure; raised by each Welcome.
    pub clock_floor: ClockFloor,
    /// Counts what each uplink carries.
    pub meter: Meter,
    /// How long a session may be without a link before it ends: [`crate::DORMANT_FOR`].
    pub dormant_for: Duration,
}

impl std::fmt::Debug for EdgeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeConfig")
            .field("node", &self.node)
            .field("hubs", &self.hubs)
            .field("uplinks", &*self.uplinks.borrow())
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

struct State {
    dialler: Dialler,
    backoff: Backoff,
    /// Whose turn it is among the hub's addresses: the one that worked last goes on being the first.
    turn: usize,
    epoch_above: u64,
    last: Option<Session>,
}

/// The edge's tunnel.
pub struct Edge {
    state: tokio::sync::Mutex<State>,
    uplinks: watch::Receiver<Vec<Uplink>>,
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
            uplinks: config.uplinks.clone(),
            state: tokio::sync::Mutex::new(State {
                dialler: Dialler::new(Arc::new(config))?,
                backoff: Backoff::default(),
                turn: 0,
                epoch_above: 0,
                last: None,
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
        let config = EdgeConfig {
            certificate,
            ..(*state.dialler.config).clone()
        };
        let lead = state.dialler.lead.clone();
        state.dialler = Dialler::new(Arc::new(config))?;
        state.dialler.lead = lead;
        Ok(())
    }

    /// Returns when a session is up; waits between attempts. Cancel-safe.
    ///
    /// # Errors
    /// The hub refuses this node, or no epoch can be had. Links and addresses that do not work are tried again instead.
    pub async fn connect(&self) -> Result<Session, ConnectError> {
        let mut state = self.state.lock().await;
        if let Some(last) = state.last.take() {
            if let Some(CloseReason::Redirected { to }) = last.inner().end() {
                state.dialler.lead = to.as_slice().into();
                state.turn = 0;
            }
            if last.inner().answered() {
                state.backoff.reset();
            } else {
                let _ = state.backoff.next(0.0);
            }
        }
        let mut uplinks = self.uplinks.clone();
        loop {
            if state.backoff.failures() > 0 {
                pause(&state.backoff, &mut uplinks).await;
            }
            let now = now_or_default(&uplinks.borrow_and_update());
            match state.attempt(&now).await {
                Ok((session, first)) => {
                    self.start(&state.dialler, &session, first);
                    let session = Session::new(session);
                    state.last = Some(session.clone());
                    return Ok(session);
                }
                Err(AttemptError::StaleEpoch(current)) => {
                    tracing::warn!(current, "the hub knows a higher epoch: taking one above it");
                    state.epoch_above = current;
                }
                Err(AttemptError::Fatal(error)) => {
                    state.turn = state.turn.wrapping_add(1);
                    let _ = state.backoff.next(0.0);
                    return Err(error);
                }
                Err(error) => {
                    tracing::info!(attempt = state.turn, %error, "no session");
                    state.turn = state.turn.wrapping_add(1);
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
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = timeout(DRAIN_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
    }

    fn start(&self, dialler: &Dialler, session: &Arc<Inner>, first: Welcomed) {
        // A new session takes it; before anybody has a handle, so that a goodbye finds it.
        session.add_path(first.info.clone(), first.path.control());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(session.clone().run());
        tasks.spawn(keep::keep(
            session.clone(),
            dialler.to(&first),
            first,
            self.uplinks.clone(),
        ));
    }
}

/// Waits for the next attempt, or until the uplinks change.
async fn pause(backoff: &Backoff, uplinks: &mut watch::Receiver<Vec<Uplink>>) {
    let pause = backoff.clone().next(rand::random());
    let changed = async {
        if uplinks.changed().await.is_err() {
            // They never change.
            std::future::pending::<()>().await;
        }
    };
    let _ = timeout(pause, changed).await;
}

fn now_or_default(uplinks: &[Uplink]) -> Vec<Uplink> {
    match uplinks.len() {
        0 => vec![Uplink::default()],
        _ => uplinks.to_vec(),
    }
}

impl State {
    /// One attempt over all uplinks at once: the first that is up carries the session's start.
    async fn attempt(&mut self, uplinks: &[Uplink]) -> Result<(Arc<Inner>, Welcomed), AttemptError> {
        let turn = self.turn;
        let dialler = self.dialler.clone();
        let mut dials: FuturesUnordered<_> = uplinks.iter().map(|uplink| dialler.dial_any(uplink, turn)).collect();
        let mut failed = AttemptError::Fatal(ConnectError::NoHub);
        while let Some(dialled) = dials.next().await {
            let started = match dialled {
                Ok(dialled) => self.begin(dialled).await,
                Err(error) => Err(error),
            };
            match started {
                Ok(started) => return Ok(started),
                Err(error @ (AttemptError::StaleEpoch(_) | AttemptError::Fatal(_))) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "an uplink leads to no session");
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    async fn begin(&self, dialled: Dialled) -> Result<(Arc<Inner>, Welcomed), AttemptError> {
        let config = &self.dialler.config;
        let epoch = config.epochs.next(self.epoch_above).await;
        let ticket = Ticket {
            epoch: epoch.map_err(ConnectError::Epoch)?,
            path: PathId(0),
            joins: false,
        };
        let welcomed = self.dialler.attach(dialled, ticket).await?;
        let bond = Config {
            max_streams: welcomed.welcome.limits.max_streams as usize,
            // The connections ping by themselves.
            keep_alive: false,
            ..Config::edge()
        };
        let (peer, welcome) = (welcomed.peer.clone(), welcomed.welcome.clone());
        let session = Inner::new(peer, welcome, bond, config.dormant_for);
        Ok((session, welcomed))
    }
}
