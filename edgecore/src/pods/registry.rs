//! What the workers of all pods share: configuration, handles, and the tables that the manager reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cri::Runtime;
use tokio::sync::watch;

use super::api::{Container, Pod};
use super::cgroup::Cgroups;
use super::events::{Recorder, Reference, Severity};
use super::gate::Gate;
use super::memory::Now;
use super::rows::Rows;
use super::tokens::NodeApi;
use super::{NodeFacts, PodView, PodsConfig};

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// Names and paths.
    pub config: PodsConfig,
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
    /// How many start at a time.
    pub gate: Gate,
    /// Pods' cgroups.
    pub cgroups: Cgroups,
    /// The clock.
    pub clock: fn() -> Now,
    /// Rises when a ConfigMap, Secret or RuntimeClass changed.
    pub objects_changed: watch::Receiver<u64>,
    pub(super) admitted: Mutex<BTreeMap<String, Arc<Pod>>>,
    pub(super) ids: Mutex<BTreeMap<String, String>>,
    pub(super) views: watch::Sender<Arc<Vec<PodView>>>,
}

impl Shared {
    /// Records an event about a pod, or one of its containers.
    pub fn event(&self, (pod, container): (&Pod, Option<&Container>), severity: Severity, reason: &str, message: &str) {
        let list = |c: &Container| {
            let named = |list: &[Container]| list.iter().any(|x| x.name == c.name);
            if named(&pod.spec.init_containers) {
                "initContainers"
            } else if named(&pod.spec.ephemeral_containers) {
                "ephemeralContainers"
            } else {
                "containers"
            }
        };
        let about = Reference {
            kind: "Pod".to_owned(),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            field_path: container
                .map(|c| format!("spec.{}{{{}}}", list(c), c.name))
                .unwrap_or_default(),
        };
        tracing::debug!(pod = pod.full_name(), reason, message, "event");
        self.recorder.record(&about, severity, reason, message);
    }

    pub(super) fn show(&self, uid: &str, view: Option<PodView>) {
        self.views.send_modify(|views| {
            let mut list: Vec<PodView> = views.iter().filter(|v| v.object.metadata.uid != uid).cloned().collect();
            list.extend(view);
            *views = Arc::new(list);
        });
    }
}
