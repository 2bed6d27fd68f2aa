//! The edge's end of the cable.
//!
//! - hub → tunnel → [`relay::Link`] → [`relay::Replica`] (may it be believed?) → store: committed, then acknowledged
//! - store's status, gone and event rows → [`outbox`] → link → hub; gone and event rows are deleted when the hub has them
//! - what each uplink has carried → [`Budgets`] → what may go over which, and the Node's UplinkBudgetExceeded
//! - streams that the hub opens → the kubelet API; [`HubApi`] opens streams of its own for tokens
//!
//! State: what survives is in the store under `relay/v1/` ([`rows`]): the incarnation, the last epoch, from which API the
//! objects came and how old they are. A session's link and replica are made from it anew. Without a hub nothing here runs
//! but the attempts to reach one; nothing else of the agent waits for them.

mod api;
mod budget;
mod clock;
mod outbox;
pub mod paths;
mod rows;
mod session;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metastore::Store;
use tokio::sync::watch;
use tunnel::{ClockFloor, Edge, EdgeConfig, Session, Uplink};

use crate::config::{EdgecoreConfig, Traffic, UplinkConfig};
use crate::kubelet_api::KubeletApi;
use crate::node::boottime;
use crate::node::conditions::HubFlags;
use crate::rotation::{Pki, PkiError, Rotation};

pub use api::HubApi;
pub use budget::Budgets;

/// After an error that no waiting inside the tunnel covers: certificates that cannot be read, a refusal.
const PAUSE: Duration = Duration::from_secs(5);

/// Which version of which object the store holds: what `/debug/objects` shows. No content.
pub fn held_versions(store: &Store) -> serde_json::Value {
    match rows::read_held(store) {
        Ok(held) => serde_json::json!(rows::held_versions(held)),
        Err(error) => serde_json::json!({"error": error.to_string()}),
    }
}

/// The edge's end of the cable.
#[derive(Debug)]
pub struct EdgeHub {
    config: Arc<EdgecoreConfig>,
    store: Store,
    kubelet_api: KubeletApi,
    flags: watch::Sender<HubFlags>,
    sessions: watch::Sender<Option<Session>>,
    uplinks: watch::Sender<Vec<Uplink>>,
    /// The same with the policies that hold now: what the tunnel is given.
    obeyed: watch::Sender<Vec<Uplink>>,
    budgets: Budgets,
    complete: watch::Sender<bool>,
    stop: watch::Receiver<bool>,
    floor: ClockFloor,
    told: Mutex<Option<clock::Told>>,
    /// Names this process to the hub.
    agent: String,
}

impl EdgeHub {
    /// Reads from the store whether it was ever filled; opens nothing yet. `whole`: the store was not set aside.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(
        config: Arc<EdgecoreConfig>,
        store: Store,
        (kubelet_api, whole): (KubeletApi, bool),
        stop: watch::Receiver<bool>,
    ) -> Result<Self, metastore::ReadError> {
        let state = rows::read_state(&store)?;
        let floor = ClockFloor::new(rows::read_clock(&store)?.max(Duration::from_secs(BUILT)));
        let clock_untrusted = clock::is_untrusted(wall(), boottime(), floor.get(), None);
        // A node that works alone has all that it ever will.
        let complete = state.synced || (whole && config.hub.addresses.is_empty());
        let budgets = Budgets::new(&config.uplinks, &store)?;
        let flags = HubFlags {
            clock_untrusted,
            desired_state_suspect: state.forked.clone(),
            budget_exceeded: budgets.exceeded(),
        };
        let uplinks: Vec<_> = config.uplinks.iter().map(uplink).collect();
        warn_of_silence(&config.uplinks);
        Ok(Self {
            config,
            store,
            kubelet_api,
            flags: watch::Sender::new(flags),
            sessions: watch::Sender::new(None),
            obeyed: watch::Sender::new(budgets.apply(&uplinks)),
            uplinks: watch::Sender::new(uplinks),
            budgets,
            complete: watch::Sender::new(complete),
            stop,
            floor,
            told: Mutex::default(),
            agent: format!("{:016x}", rand::random::<u64>()),
        })
    }

    /// What the Node tells of the hub.
    pub fn flags(&self) -> watch::Receiver<HubFlags> {
        self.flags.subscribe()
    }

    /// Whether the store has been filled by a whole snapshot: until then nothing here counts as an orphan.
    pub fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// The live session.
    pub fn sessions(&self) -> watch::Receiver<Option<Session>> {
        self.sessions.subscribe()
    }

    /// The tunnel's uplinks: those of the configuration, until somebody says others ([`crate::uplinks`]).
    pub fn uplinks(&self) -> watch::Sender<Vec<Uplink>> {
        self.uplinks.clone()
    }

    /// What they have carried.
    pub fn budgets(&self) -> Budgets {
        self.budgets.clone()
    }

    /// What pods ask of the API.
    pub fn api(&self) -> HubApi {
        HubApi::new(self.sessions.subscribe())
    }

    /// Keeps a session with the hub until `stop`, then says goodbye.
    pub async fn run(self) {
        tokio::select! {
            biased;
            () = self.work() => {}
            never = self.watch_clock() => match never {},
            never = self.keep_budgets() => match never {},
        }
        self.save_usage(&self.look_at_budgets()).await;
    }

    async fn work(&self) {
        let mut stop = self.stop.clone();
        if self.config.hub.addresses.is_empty() {
            tracing::info!("no hub is configured: the node works alone");
            let _ = stop.wait_for(|stop| *stop).await;
            return;
        }
        let edge = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            edge = self.edge() => edge,
        };
        let rotation = Rotation {
            pki: Pki::new(&self.config.pki_dir),
            join_address: self.config.hub.join_address.clone(),
            floor: self.floor.clone(),
        };
        let rotating = rotation.run(edge.clone(), self.sessions.subscribe(), self.stop.clone());
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.keep(&edge) => {}
            () = rotating => {}
        }
        self.sessions.send_replace(None);
        edge.shutdown("edgecore stops").await;
    }

    /// The tunnel's end; waits for certificates that are not there yet.
    async fn edge(&self) -> Arc<Edge> {
        loop {
            match self.try_edge() {
                Ok(edge) => return Arc::new(edge),
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, ?source, "the tunnel cannot be set up; has the node joined?");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn try_edge(&self) -> Result<Edge, EdgeError> {
        let pki = Pki::new(&self.config.pki_dir);
        let identity = pki.load()?;
        if identity.node != self.config.node_name {
            // The hub would tell what the other node should run, and everything here would stop.
            return Err(EdgeError::OtherNode {
                node: self.config.node_name.clone(),
                found: identity.node,
            });
        }
        // The first session begins over what there is, not over what was listed.
        self.look_at_budgets();
        let config = EdgeConfig {
            node: identity.node.clone(),
            hubs: self.config.hub.addresses.clone(),
            server_name: match self.config.hub.server_name.as_str() {
                "" => tunnel::SERVER_NAME.to_owned(),
                name => name.to_owned(),
            },
            roots: pki.roots()?,
            certificate: identity.certificate,
            incarnation: rows::incarnation(&self.store)?,
            epochs: Arc::new(rows::Epochs::new(self.store.clone())),
            boot_id: crate::node::machine::identity().boot_id,
            agent: self.agent.clone(),
            uplinks: self.obeyed.subscribe(),
            fallback: self.config.hub.over_tcp(),
            clock_floor: self.floor.clone(),
            meter: self.budgets.meter(),
            dormant_for: tunnel::DORMANT_FOR,
        };
        Ok(Edge::new(config)?)
    }

    async fn keep(&self, edge: &Edge) {
        loop {
            match edge.connect().await {
                Ok(session) => self.one(session).await,
                Err(error) => {
                    tracing::warn!(%error, "no session with the hub");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn one(&self, session: Session) {
        let hub_time = session.welcome().wall_time;
        tracing::info!(epoch = session.peer().epoch, "session with the hub");
        self.floor.raise(hub_time);
        let told = clock::Told {
            time: hub_time,
            at: boottime(),
        };
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        self.judge_clock();
        if let Err(error) = rows::write_clock(&self.store, self.floor.get()).await {
            tracing::warn!(%error, "could not store the hub's time");
        }
        self.sessions.send_replace(Some(session.clone()));
        let ended = session::run(&self.store, &session, &self.kubelet_api, (&self.flags, &self.complete)).await;
        self.sessions.send_replace(None);
        match ended {
            Ok(reason) => tracing::info!(%reason, "session over"),
            Err(error) => {
                tracing::error!(%error, "session broken off");
                session.close(tunnel::CloseReason::PeerGoodbye {
                    text: error.to_string(),
                });
            }
        }
    }
}

impl EdgeHub {
    /// Somebody may set the clock, and nothing says when.
    async fn watch_clock(&self) -> Infallible {
        loop {
            tokio::time::sleep(clock::LOOK_AGAIN).await;
            self.judge_clock();
        }
    }

    fn judge_clock(&self) {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let untrusted = clock::is_untrusted(wall(), boottime(), self.floor.get(), told);
        self.flags.send_if_modified(|flags| {
            let changed = std::mem::replace(&mut flags.clock_untrusted, untrusted) != untrusted;
            if changed {
                tracing::warn!(untrusted, "whether this machine's clock is believed has changed");
            }
            changed
        });
    }
}

impl EdgeHub {
    /// Counts, tells the tunnel what may go over which uplink, and makes durable what was counted.
    async fn keep_budgets(&self) -> Infallible {
        let mut uplinks = self.uplinks.subscribe();
        let mut saver = budget::Saver::new(self.budgets.usage(), boottime());
        loop {
            tokio::select! {
                // This holds the sender.
                _ = uplinks.changed() => {}
                () = tokio::time::sleep(budget::READ_EVERY) => {}
            }
            let usage = self.look_at_budgets();
            if saver.is_due(&usage, boottime()) {
                self.save_usage(&usage).await;
            }
        }
    }

    fn look_at_budgets(&self) -> BTreeMap<String, budget::Usage> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.budgets
            .look(told.map(|told| told.time + boottime().saturating_sub(told.at)));
        let obeyed = self.budgets.apply(&self.uplinks.borrow());
        self.obeyed.send_if_modified(|known| {
            let changes = *known != obeyed;
            *known = obeyed;
            changes
        });
        let exceeded = self.budgets.exceeded();
        self.flags.send_if_modified(|flags| {
            let changed = flags.budget_exceeded != exceeded;
            if changed {
                tracing::warn!(exceeded = exceeded.as_deref().unwrap_or("none"), "UplinkBudgetExceeded");
            }
            flags.budget_exceeded = exceeded;
            changed
        });
        self.budgets.usage()
    }

    async fn save_usage(&self, usage: &BTreeMap<String, budget::Usage>) {
        if let Err(error) = Budgets::save(&self.store, usage).await {
            tracing::warn!(%error, "could not store what the uplinks have carried");
        }
    }
}

/// A robot whose every uplink is metered and carries control alone then gets no pods, which nobody may have meant.
fn warn_of_silence(uplinks: &[UplinkConfig]) {
    let control = |uplink: &UplinkConfig| {
        let metered = uplink.metered.as_ref();
        metered.is_some_and(|metered| metered.when_alone == Traffic::Control)
    };
    if !uplinks.is_empty() && uplinks.iter().all(control) {
        tracing::warn!("each uplink is metered with whenAlone: control: neither specs nor status will go over any");
    }
}

fn uplink(config: &UplinkConfig) -> Uplink {
    Uplink {
        policy: config.policy(),
        ..Uplink::new(&config.name, config.device.as_deref())
    }
}

/// No certificate of this hub's CAs can be younger: the year in which this was written, since 1970.
const BUILT: u64 = 1_790_000_000;

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Why the tunnel cannot be set up.
#[derive(Debug, thiserror::Error)]
enum EdgeError {
    #[error("read this node's certificates")]
    Pki(#[from] PkiError),
    #[error("the certificate is node {found}'s, and this is node {node}: join this machine under its own name")]
    OtherNode { node: String, found: String },
    #[error("read the store")]
    Read(#[from] metastore::ReadError),
    #[error("write the store")]
    Commit(#[from] metastore::CommitError),
    #[error("set up the tunnel")]
    Connect(#[from] tunnel::ConnectError),
}
