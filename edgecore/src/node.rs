//! The Node object: what this machine is, has, and can do now.
//!
//! The manager owns the row `status/v1/Node/-/<name>/-` in the store, which edgehub sends, and the CNI configuration. Everything is computed
//! anew every 10 s (every second while something is not ready) and written where more than a heartbeat changed (the hub says for a node that answers that it was looked at):
//!
//! * /proc, the file system, the runtime's status, edgehub's flags → conditions, capacity, allocatable → the row, and [`NodeInfo`] for pods;
//! * the store's own Node object (kept offline) → podCIDR → the CNI configuration.
//!
//! A runtime that does not answer is a condition; a row that cannot be written is tried again at the next round.

pub mod cni;
pub mod conditions;
pub mod machine;
pub mod quantity;
pub mod report;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cri::Runtime;
use metastore::{Batch, Store};
use serde_json::Value;
use tokio::sync::watch;

use crate::config::EdgecoreConfig;
use crate::pods::{NodeFacts, Recorder, Reference, Severity};
use conditions::{Condition, HubFlags, Pressures, RuntimeHealth};
use machine::Identity;

/// How often everything is looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// How often while the node is not ready: a pod waits for it.
const PERIOD_NOT_READY: Duration = Duration::from_secs(1);
/// How often the list of images is read: it is the one read that costs containerd something.
const IMAGES_EVERY: Duration = Duration::from_secs(60);

/// Amounts of what the scheduler counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral_storage: u64,
    /// Pods.
    pub pods: u64,
}

/// What others on this node need to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The Node's name.
    pub name: String,
    /// All there is.
    pub capacity: Amounts,
    /// What pods may have.
    pub allocatable: Amounts,
    /// The machine's own addresses, the first is pods' hostIP.
    pub addresses: Vec<IpAddr>,
    /// The Node object's labels, as the API has them.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Memory is short.
    pub memory_pressure: bool,
    /// Disk is short.
    pub disk_pressure: bool,
    /// Process ids are short.
    pub pid_pressure: bool,
    /// The runtime and its network are up.
    pub ready: bool,
}

impl NodeInfo {
    /// The same in the words of the pods' module.
    pub fn facts(&self) -> NodeFacts {
        NodeFacts {
            host_ips: self.addresses.iter().map(ToString::to_string).collect(),
            capacity: report::resources(&self.capacity),
            allocatable: report::resources(&self.allocatable),
            labels: self.labels.clone(),
        }
    }
}

/// Keeps the Node object true.
#[derive(Debug)]
pub struct NodeManager {
    config: Arc<EdgecoreConfig>,
    store: Store,
    runtime: Arc<dyn Runtime>,
    hub: watch::Receiver<HubFlags>,
    info: watch::Sender<Arc<NodeInfo>>,
    recorder: Recorder,
    identity: Identity,
    state: State,
}

/// What one round leaves for the next.
#[derive(Debug, Default)]
struct State {
    pressures: Pressures,
    conditions: Vec<Condition>,
    written: Option<Value>,
    images: Vec<cri::Image>,
    images_read: Option<Duration>,
    runtime_version: String,
    cidrs: Option<Vec<String>>,
    hub_address: Option<SocketAddr>,
}

/// CLOCK_BOOTTIME, which does not stop while the machine sleeps.
pub fn boottime() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map(Duration::from).unwrap_or_default()
}

/// The wall clock in RFC 3339, whole seconds, as Kubernetes writes times.
pub fn wall_time() -> String {
    let now = time::OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    now.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// Waits until the runtime's events were lost: it went away, or came back.
async fn lost(hints: &mut cri::Hints) {
    while hints.next().await != cri::PodHint::Relist {}
}

impl NodeManager {
    /// A manager; `hub` is what the link knows. Reads the machine's identity; does nothing else until [`NodeManager::run`].
    pub fn new(
        config: Arc<EdgecoreConfig>,
        store: Store,
        runtime: Arc<dyn Runtime>,
        hub: watch::Receiver<HubFlags>,
        recorder: Recorder,
    ) -> Self {
        let identity = machine::identity();
        let stored = store.get(&row_key(&config.node_name)).ok().flatten();
        let state = State {
            conditions: report::conditions_in(stored.as_deref()),
            ..State::default()
        };
        let levels = machine::levels(&config.kubelet.root_dir);
        let (capacity, allocatable) = report::amounts(&config.kubelet, &levels);
        let first = NodeInfo {
            name: config.node_name.clone(),
            capacity,
            allocatable,
            addresses: machine::addresses(None),
            ..NodeInfo::default()
        };
        Self {
            config,
            store,
            runtime,
            hub,
            info: watch::channel(Arc::new(first)).0,
            recorder,
            identity,
            state,
        }
    }

    /// What others need to know; it has capacity and addresses from the start.
    pub fn info(&self) -> watch::Receiver<Arc<NodeInfo>> {
        self.info.subscribe()
    }

    /// Runs until dropped.
    pub async fn run(mut self) -> std::convert::Infallible {
        let own = format!("object/v1/Node/-/{}", self.config.node_name);
        let mut node_object = self.store.watch(&own);
        let mut hints = self.runtime.events();
        // A source that has closed says nothing any more; it would otherwise always be ready.
        let (mut store_open, mut hub_open) = (true, true);
        loop {
            self.network(&own).await;
            let ready = self.round(&own).await;
            let wait = if ready { PERIOD } else { PERIOD_NOT_READY };
            // All arms are cancel safe: each only says that something may have changed.
            tokio::select! {
                biased;
                open = node_object.changed(), if store_open => store_open = open,
                changed = self.hub.changed(), if hub_open => hub_open = changed.is_ok(),
                () = lost(&mut hints) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The store's Node object.
    fn own_object(&self, key: &str) -> Value {
        let bytes = self
            .store
            .get(key)
            .inspect_err(|error| tracing::warn!(%error, "cannot read the own Node"))
            .ok()
            .flatten();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Writes the pods' network where the range is known. A Node without a range keeps the file that is there.
    async fn network(&mut self, own: &str) {
        let cidrs = cni::pod_cidrs(&self.own_object(own));
        if cidrs.is_empty() || self.state.cidrs.as_ref() == Some(&cidrs) {
            return;
        }
        match cni::ensure(&self.config.network, &cidrs) {
            Ok(true) => tracing::info!(?cidrs, "the pods' network is written"),
            Ok(false) => {}
            Err(error) => {
                return tracing::warn!(%error, source = ?std::error::Error::source(&error), "cannot write the pods' network");
            }
        }
        if let Err(error) = cni::ensure_masquerade(&self.config.network, &cidrs).await {
            return tracing::warn!(%error, "cannot set up masquerading");
        }
        self.state.cidrs = Some(cidrs);
    }

    /// One look at everything. Returns whether the node is ready.
    async fn round(&mut self, own: &str) -> bool {
        let now = boottime();
        let health = self.health().await;
        self.read_images(now, &health).await;
        let levels = machine::levels(&self.config.kubelet.root_dir);
        self.state
            .pressures
            .observe(&levels, &self.config.kubelet.eviction_hard, now);
        let hub = self.hub.borrow_and_update().clone();
        let wall = wall_time();
        let conditions = conditions::conditions(&self.state.conditions, &health, &self.state.pressures, &hub, &wall);
        self.tell(&conditions);
        self.state.conditions = conditions;
        let (capacity, allocatable) = report::amounts(&self.config.kubelet, &levels);
        let labels = serde_json::from_value(self.own_object(own)["metadata"]["labels"].take()).unwrap_or_default();
        let info = NodeInfo {
            name: self.config.node_name.clone(),
            capacity,
            allocatable,
            addresses: machine::addresses(self.hub_address().await),
            labels,
            memory_pressure: self.state.pressures.memory(),
            disk_pressure: self.state.pressures.disk(),
            pid_pressure: self.state.pressures.pid(),
            ready: health.runtime_ready && health.network_ready,
        };
        self.report(&info).await;
        let ready = info.ready;
        self.info.send_if_modified(|there| {
            let differs = **there != info;
            if differs {
                *there = Arc::new(info);
            }
            differs
        });
        ready
    }

    /// An event for each condition that changed, in kubelet's words.
    fn tell(&self, conditions: &[Condition]) {
        let about = Reference {
            kind: "Node".to_owned(),
            name: self.config.node_name.clone(),
            uid: self.config.node_name.clone(),
            ..Reference::default()
        };
        for reason in conditions::events(&self.state.conditions, conditions) {
            let message = format!("Node {} status is now: {reason}", self.config.node_name);
            self.recorder.record(&about, Severity::Normal, reason, &message);
        }
    }

    async fn health(&mut self) -> RuntimeHealth {
        match self.runtime.status().await {
            Ok(status) => {
                if self.state.runtime_version.is_empty() {
                    let version = self.runtime.version().await.unwrap_or_default();
                    self.state.runtime_version =
                        format!("{}://{}", version.name, version.version.trim_start_matches('v'));
                }
                RuntimeHealth {
                    runtime_ready: status.runtime_ready,
                    network_ready: status.network_ready,
                    message: status.message,
                }
            }
            Err(error) => {
                // It may come back as another version.
                self.state.runtime_version.clear();
                RuntimeHealth {
                    message: error.to_string(),
                    ..RuntimeHealth::default()
                }
            }
        }
    }

    async fn read_images(&mut self, now: Duration, health: &RuntimeHealth) {
        let old = self
            .state
            .images_read
            .is_none_or(|at| now.saturating_sub(at) >= IMAGES_EVERY);
        if health.runtime_ready
            && old
            && let Ok(images) = self.runtime.list_images().await
        {
            (self.state.images, self.state.images_read) = (images, Some(now));
        }
    }

    /// The hub's address, once its name could be resolved: the robot's own address is the one that leads there.
    async fn hub_address(&mut self) -> Option<SocketAddr> {
        if self.state.hub_address.is_none()
            && let Some(first) = self.config.hub.addresses.first()
        {
            // An address needs no resolver; a name is left to edgehub, which has a back-off for it.
            self.state.hub_address = first.parse().ok();
        }
        self.state.hub_address
    }

    /// Writes the row where it says something new.
    async fn report(&mut self, info: &NodeInfo) {
        let row = report::row(
            &self.config,
            &self.identity,
            info,
            &report::Seen {
                conditions: &self.state.conditions,
                images: &self.state.images,
                runtime_version: &self.state.runtime_version,
            },
        );
        if self
            .state
            .written
            .as_ref()
            .is_some_and(|there| report::same(there, &row))
        {
            return;
        }
        let mut batch = Batch::new();
        batch.put(row_key(&self.config.node_name), row.to_string());
        match self.store.commit(batch).await {
            Ok(()) => self.state.written = Some(row),
            Err(error) => tracing::warn!(%error, "cannot write the Node's status"),
        }
    }
}

/// Where the Node's status is kept.
pub fn row_key(node: &str) -> String {
    format!("status/v1/Node/-/{node}/-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(dir: &std::path::Path, runtime: Arc<cri::fake::FakeRuntime>) -> NodeManager {
        let mut config: EdgecoreConfig =
            serde_yaml_ng::from_str("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1}")
                .unwrap();
        config.network.cni_conf_dir = dir.join("net.d");
        config.network.masquerade = false;
        let store = Store::open(&dir.join("store"), &metastore::Options::default()).unwrap();
        let recorder = Recorder::new(Arc::new(store.clone()), "robot-1").unwrap();
        NodeManager::new(
            Arc::new(config),
            store,
            runtime,
            watch::channel(HubFlags::default()).1,
            recorder,
        )
    }

    fn row(manager: &NodeManager) -> Value {
        serde_json::from_slice(&manager.store.get(&row_key("robot-1")).unwrap().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_row_follows_the_runtime_and_is_not_rewritten_for_a_heartbeat() {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(cri::fake::FakeRuntime::with_images(&["demo:1"]));
        let mut manager = manager(dir.path(), fake.clone());
        let info = manager.info();
        assert!(info.borrow().capacity.cpu_milli > 0);
        assert!(manager.round("none").await);
        let first = row(&manager);
        assert_eq!(
            first["status"]["nodeInfo"]["containerRuntimeVersion"],
            "containerd://2.1.9"
        );
        assert_eq!(first["status"]["images"][0]["names"][1], "demo:1");
        assert!(manager.round("none").await);
        assert_eq!(row(&manager), first);
        fake.set_down(true);
        assert!(!manager.round("none").await);
        let ready = |row: &Value| {
            row["status"]["conditions"]
                .as_array()
                .unwrap()
                .iter()
                .find(|c| c["type"] == "Ready")
                .cloned()
                .unwrap()
        };
        assert_eq!(ready(&row(&manager))["status"], "False");
        assert!(!info.borrow().ready);
    }

    #[tokio::test]
    async fn the_network_is_written_from_the_stored_node_and_kept_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut manager = manager(dir.path(), Arc::default());
        let own = "object/v1/Node/-/robot-1";
        let mut batch = Batch::new();
        batch.put(
            own,
            r#"{"metadata":{"labels":{"a":"b"}},"spec":{"podCIDR":"10.244.7.0/24"}}"#,
        );
        manager.store.commit(batch).await.unwrap();
        manager.network(own).await;
        let file = dir.path().join("net.d").join(cni::FILE);
        assert!(std::fs::read_to_string(&file).unwrap().contains("10.244.7.0/24"));
        manager.round(own).await;
        assert_eq!(manager.info.borrow().labels["a"], "b");
        manager.network("object/v1/Node/-/gone").await;
        assert!(file.exists());
    }
}
