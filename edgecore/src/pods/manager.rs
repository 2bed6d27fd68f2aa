//! All pods: one worker each, started, told and buried here.
//!
//! * the store's `object/v1/Pod/` rows say which pods there should be; each change is read again (level-triggered);
//! * hints from the runtime go to the worker that owns the id; every [`RELIST`] the lists are compared with the last ones and workers whose pod
//!   changed are woken, so that a lost hint costs at most that;
//! * sandboxes with this node's label and no object are orphans: their worker starts with the end. Not while the store is known to be incomplete;
//! * a worker that panics takes only its pod along: it is left alone for [`QUARANTINE`], or until its object changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cri::{ContainerFilter, PodHint, Runtime, SandboxFilter, StringMap};
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::api::{Map, ObjectMeta, Pod, PodSpec};
use super::cgroup::Cgroups;
use super::events::{Recorder, Severity};
use super::gate::Gate;
use super::memory::Now;
use super::observed::label;
use super::registry::Shared;
use super::rows::Rows;
use super::tokens::NodeApi;
use super::worker::{Desired, Worker};
use super::{NodeFacts, PodView, PodsConfig};

/// How often the runtime's lists are compared: a lost hint costs at most this.
pub const RELIST: Duration = Duration::from_secs(15);
/// How long a pod whose worker panicked is left alone.
pub const QUARANTINE: Duration = Duration::from_secs(300);

const PODS: &str = "object/v1/Pod/";

/// What the manager is built from.
#[derive(Debug)]
pub struct Parts {
    /// The store.
    pub rows: Arc<dyn Rows>,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Events.
    pub recorder: Recorder,
    /// The API through the hub.
    pub api: Arc<dyn NodeApi>,
    /// The node's capacity and addresses.
    pub node: watch::Receiver<Arc<NodeFacts>>,
    /// False while the store was set aside and the hub has not filled it again: then nothing counts as an orphan.
    pub complete: watch::Receiver<bool>,
}

struct Handle {
    uid: String,
    bytes: Bytes,
    desired: watch::Sender<Desired>,
    hint: Arc<Notify>,
}

#[derive(Debug)]
struct Quarantined {
    bytes: Bytes,
    until: Instant,
}

/// Runs all pods of the node.
pub struct PodManager {
    shared: Arc<Shared>,
    complete: watch::Receiver<bool>,
    objects_changed: watch::Sender<u64>,
    workers: JoinSet<()>,
    handles: BTreeMap<String, Handle>,
    tasks: BTreeMap<Id, String>,
    quarantine: BTreeMap<String, Quarantined>,
    bad: BTreeSet<(String, Bytes)>,
    lists: BTreeMap<String, Vec<(String, u8)>>,
    views: watch::Receiver<Arc<Vec<PodView>>>,
}

impl std::fmt::Debug for PodManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodManager")
            .field("pods", &self.handles.keys().collect::<Vec<_>>())
            .field("quarantine", &self.quarantine)
            .finish_non_exhaustive()
    }
}

impl PodManager {
    /// Builds it; nothing runs yet.
    pub fn new(config: PodsConfig, parts: Parts) -> Self {
        Self::with_clock(config, parts, Now::read)
    }

    /// The same with another clock, for tests.
    pub fn with_clock(config: PodsConfig, parts: Parts, clock: fn() -> Now) -> Self {
        let (objects_changed, changed) = watch::channel(0);
        let (views_out, views) = watch::channel(Arc::new(Vec::new()));
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let cgroups = Cgroups::new(&config.cgroup_mount, &config.cgroup_root, config.cgroup_driver);
        let starts = if config.start_parallelism == 0 {
            2 * cores
        } else {
            config.start_parallelism
        };
        let shared = Shared {
            gate: Gate::new(starts),
            cgroups,
            config,
            rows: parts.rows,
            runtime: parts.runtime,
            recorder: parts.recorder,
            api: parts.api,
            node: parts.node,
            clock,
            objects_changed: changed,
            admitted: Mutex::default(),
            ids: Mutex::default(),
            views: views_out,
        };
        Self {
            shared: Arc::new(shared),
            complete: parts.complete,
            objects_changed,
            workers: JoinSet::new(),
            handles: BTreeMap::new(),
            tasks: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            bad: BTreeSet::new(),
            lists: BTreeMap::new(),
            views,
        }
    }

    /// All pods with their statuses, for the kubelet API.
    pub fn pods(&self) -> watch::Receiver<Arc<Vec<PodView>>> {
        self.views.clone()
    }

    /// Runs until `stop` holds true (or its sender is gone). Containers live on.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let rows = self.shared.rows.clone();
        let mut pods = rows.watch(PODS);
        let mut config_maps = rows.watch("object/v1/ConfigMap/");
        let mut secrets = rows.watch("object/v1/Secret/");
        let mut classes = rows.watch("object/v1/RuntimeClass/");
        let mut hints = self.shared.runtime.events();
        let mut complete = self.complete.clone();
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.rescan();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = pods.changed() => self.rescan(),
                () = config_maps.changed() => self.objects_changed.send_modify(|n| *n += 1),
                () = secrets.changed() => self.objects_changed.send_modify(|n| *n += 1),
                () = classes.changed() => self.objects_changed.send_modify(|n| *n += 1),
                Some(ended) = self.workers.join_next_with_id(), if !self.workers.is_empty() => self.buried(ended),
                hint = hints.next() => match hint {
                    PodHint::Id(id) => self.hint(&id),
                    PodHint::Relist => relist.reset_immediately(),
                },
                Ok(()) = complete.changed() => relist.reset_immediately(),
                _ = relist.tick() => self.relist().await,
            }
        }
        self.workers.shutdown().await;
        self.shared.recorder.flush().await;
    }

    /// Reads the pods of the store and tells the workers what changed.
    fn rescan(&mut self) {
        let rows = match self.shared.rows.scan(PODS) {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, "the store's pods cannot be read; all go on as they are");
                return;
            }
        };
        let mut present = BTreeSet::new();
        for (key, bytes) in rows {
            if let Some(handle) = self.handles.values().find(|h| h.bytes == bytes) {
                present.insert(handle.uid.clone());
                continue;
            }
            match Pod::parse(&bytes) {
                Ok(pod) if !pod.metadata.uid.is_empty() => {
                    present.insert(pod.metadata.uid.clone());
                    self.want(pod, bytes);
                }
                Ok(_) => tracing::warn!(key, "a pod without a uid is ignored"),
                Err(error) => {
                    if let Some(uid) = uid_of(&bytes) {
                        present.insert(uid);
                    }
                    if self.bad.insert((key.clone(), bytes)) {
                        tracing::warn!(key, %error, "a pod that cannot be read is left as it is");
                    }
                }
            }
        }
        self.quarantine.retain(|uid, _| present.contains(uid));
        for (uid, handle) in self.handles.iter_mut().filter(|(uid, _)| !present.contains(*uid)) {
            handle.bytes = Bytes::new();
            handle.desired.send_if_modified(|desired| {
                let news = !desired.removed;
                desired.removed = true;
                if news {
                    tracing::info!(uid, "the pod's object is gone; ending it");
                }
                news
            });
        }
    }

    fn want(&mut self, pod: Pod, bytes: Bytes) {
        let uid = pod.metadata.uid.clone();
        if let Some(held) = self.quarantine.get(&uid) {
            if held.bytes == bytes && Instant::now() < held.until {
                return;
            }
            self.quarantine.remove(&uid);
        }
        let desired = Desired {
            pod: Arc::new(pod),
            raw: bytes.clone(),
            removed: false,
        };
        match self.handles.get_mut(&uid) {
            Some(handle) => {
                handle.bytes = bytes;
                handle.desired.send_replace(desired);
            }
            None => self.begin(uid, bytes, desired),
        }
    }

    fn begin(&mut self, uid: String, bytes: Bytes, desired: Desired) {
        let (sender, receiver) = watch::channel(desired);
        let hint = Arc::new(Notify::new());
        let worker = Worker::new(self.shared.clone(), receiver, hint.clone());
        let task = self.workers.spawn(worker.run());
        self.tasks.insert(task.id(), uid.clone());
        self.handles.insert(
            uid.clone(),
            Handle {
                uid,
                bytes,
                desired: sender,
                hint,
            },
        );
    }

    /// A worker ended: done with its pod, or panicked.
    fn buried(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(uid) = self.tasks.remove(&id) else { return };
        let Some(handle) = self.handles.remove(&uid) else {
            return;
        };
        if let Err(error) = ended {
            let pod = handle.desired.borrow().pod.clone();
            tracing::error!(pod = pod.full_name(), uid, %error, "the pod's worker panicked; the pod is left alone");
            let message = "the node agent failed on this pod and leaves it alone for 5 minutes or until it changes";
            self.shared
                .event((&pod, None), Severity::Warning, "FailedSync", message);
            let until = Instant::now() + QUARANTINE;
            self.quarantine.insert(
                uid,
                Quarantined {
                    bytes: handle.bytes,
                    until,
                },
            );
            return;
        }
        // The same pod may have come back while its worker was ending.
        if !handle.bytes.is_empty() {
            self.rescan();
        }
    }

    fn hint(&mut self, id: &str) {
        let owner = self
            .shared
            .ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned();
        if let Some(handle) = owner.and_then(|uid| self.handles.get(&uid)) {
            handle.hint.notify_one();
        }
    }

    /// Compares the runtime's lists with the last ones; finds orphans; lets quarantined pods try again.
    async fn relist(&mut self) {
        let labels = StringMap::from([(label::NODE.to_owned(), self.shared.config.node_name.clone())]);
        let sandboxes = SandboxFilter {
            labels: labels.clone(),
            ..SandboxFilter::default()
        };
        let containers = ContainerFilter {
            labels,
            ..ContainerFilter::default()
        };
        let runtime = &self.shared.runtime;
        let (sandboxes, containers) = match (
            runtime.list_sandboxes(&sandboxes).await,
            runtime.list_containers(&containers).await,
        ) {
            (Ok(s), Ok(c)) => (s, c),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "the runtime cannot be listed");
                return;
            }
        };
        let mut lists: BTreeMap<String, Vec<(String, u8)>> = BTreeMap::new();
        let uid = |labels: &StringMap| labels.get(label::POD_UID).cloned().unwrap_or_default();
        for s in &sandboxes {
            lists
                .entry(uid(&s.labels))
                .or_default()
                .push((s.id.clone(), s.state as u8));
        }
        for c in &containers {
            lists
                .entry(uid(&c.labels))
                .or_default()
                .push((c.id.clone(), c.state as u8));
        }
        lists.values_mut().for_each(|l| l.sort());
        for (uid, handle) in &self.handles {
            if lists.get(uid) != self.lists.get(uid) {
                handle.hint.notify_one();
            }
        }
        self.lists = lists;
        if !self.quarantine.is_empty() {
            self.rescan();
        }
        if *self.complete.borrow() {
            self.bury_orphans(&sandboxes);
        }
    }

    fn bury_orphans(&mut self, sandboxes: &[cri::Sandbox]) {
        // The store may hold what no worker runs: a pod in quarantine, or one that cannot be read.
        let Ok(rows) = self.shared.rows.scan(PODS) else { return };
        let stored: BTreeSet<String> = rows.iter().filter_map(|(_, bytes)| uid_of(bytes)).collect();
        for sandbox in sandboxes {
            let uid = &sandbox.metadata.uid;
            if stored.contains(uid) || self.handles.contains_key(uid) {
                continue;
            }
            tracing::info!(
                uid,
                name = sandbox.metadata.name,
                "a sandbox without an object; ending it"
            );
            let desired = Desired {
                pod: Arc::new(pod_of(sandbox)),
                raw: Bytes::new(),
                removed: true,
            };
            self.begin(uid.clone(), Bytes::new(), desired);
        }
    }
}

/// Waits for the order to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone is an order too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The uid in an object's bytes, even where the rest cannot be used.
fn uid_of(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value["metadata"]["uid"].as_str().map(str::to_owned)
}

/// What a sandbox tells of a pod whose object is gone.
fn pod_of(sandbox: &cri::Sandbox) -> Pod {
    let m = &sandbox.metadata;
    Pod {
        metadata: ObjectMeta {
            name: m.name.clone(),
            namespace: m.namespace.clone(),
            uid: m.uid.clone(),
            labels: Map::new(),
            ..ObjectMeta::default()
        },
        spec: PodSpec {
            termination_grace_period_seconds: sandbox.annotations.get(label::GRACE).and_then(|t| t.parse().ok()),
            ..PodSpec::default()
        },
    }
}
