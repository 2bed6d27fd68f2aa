//! Node lifecycle: who is Ready, what taints say so, and which pods must leave.
//!
//! * Leases and Nodes → when each node was last heard → queue (the node's name), and every [`Config::node_period`] →
//!   conditions Unknown after the grace period → taints → pods marked not Ready
//! * Pods and Nodes → queue (the pod's key) → [`evict`]: pods that do not tolerate a NoExecute taint are deleted
//!
//! When no node at all is Ready, the trouble is more likely ours: nothing is evicted (kube-controller-manager's full
//! disruption). What was heard when is kept in memory: after a restart every node has the whole grace period again.
//!
//! [`Config::node_period`]: crate::Config::node_period

mod evict;
mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::{Cache, Change};
use crate::pods;
use crate::queue::{Key, Queue, Reconciled, work};

/// Nodes looked at at once.
const WORKERS: usize = 8;

/// What was heard of a node, and when by our clock: the node's own may be wrong.
#[derive(Debug)]
struct Heard {
    lease: Option<Timestamp>,
    status: Option<Timestamp>,
    at: Instant,
    was_ready: bool,
}

struct Lifecycle {
    context: Arc<Context>,
    heard: Mutex<HashMap<String, Heard>>,
}

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let lifecycle = Arc::new(Lifecycle {
        context: Arc::clone(context),
        heard: Mutex::default(),
    });
    let by = Arc::clone(&lifecycle);
    informers.leases.on(move |change| by.lease_changed(change.object()));
    let (to, by) = (Arc::clone(&queue), Arc::clone(&lifecycle));
    informers.nodes.on(move |change| {
        by.node_changed(change);
        to.add(Key::of(change.object()));
    });
    evict::start(context, informers, tasks);
    tasks.add(
        "node lifecycle",
        work("node lifecycle", queue, WORKERS, move |key| {
            let lifecycle = Arc::clone(&lifecycle);
            async move { lifecycle.reconcile(&key).await }
        }),
    );
}

impl Lifecycle {
    fn heard(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, node: &str, update: impl FnOnce(&mut Heard) -> bool) {
        let mut all = self.heard();
        let heard = all.entry(node.to_owned()).or_insert_with(|| Heard {
            lease: None,
            status: None,
            at: Instant::now(),
            was_ready: false,
        });
        if update(heard) {
            heard.at = Instant::now();
        }
    }

    fn lease_changed(&self, lease: &Lease) {
        let renewed = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.renew_time.as_ref())
            .map(|time| time.0);
        self.hear(&lease.name_any(), |heard| {
            let news = heard.lease != renewed;
            heard.lease = renewed;
            news
        });
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        if matches!(change, Change::Deleted(_)) {
            self.heard().remove(&node.name_any());
            return;
        }
        let beat = plan::condition(node, "Ready")
            .and_then(|c| c.last_heartbeat_time.as_ref())
            .map(|time| time.0);
        self.hear(&node.name_any(), |heard| {
            let news = heard.status != beat;
            heard.status = beat;
            news
        });
    }

    async fn reconcile(&self, key: &Key) -> Reconciled {
        let Some(node) = self.context.nodes.by_key(key) else {
            return Ok(None);
        };
        let config = &self.context.config;
        let grace = match plan::condition(&node, "Ready") {
            Some(_) => config.node_grace,
            None => config.node_startup_grace,
        };
        let silent = self.heard().get(&key.name).map(|heard| heard.at.elapsed());
        let now = Timestamp::now();
        if silent.is_some_and(|silent| silent > grace) {
            let unknown = plan::unknown(&node, now);
            if !unknown.is_empty() {
                self.set_unknown(&node, &unknown).await?;
                return Ok(Some(config.node_period));
            }
        }
        let disrupted = plan::is_disrupted(&self.context.nodes.state());
        if let Some(taints) = plan::taints(&node, disrupted, now) {
            let patch = json!({
                "metadata": {"resourceVersion": node.resource_version()},
                "spec": {"taints": taints},
            });
            self.context
                .all::<Node>()
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .if_there("write a node's taints")?;
        }
        self.mark_pods(&node).await?;
        Ok(Some(config.node_period))
    }

    async fn set_unknown(
        &self,
        node: &Node,
        conditions: &[k8s_openapi::api::core::v1::NodeCondition],
    ) -> Result<(), Error> {
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version()},
            "status": {"conditions": conditions},
        });
        self.context
            .all::<Node>()
            .patch_status(&node.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .if_there("write a node's conditions")?;
        tracing::info!(node = node.name_any(), "node is silent: Ready is Unknown");
        Ok(())
    }

    /// Marks the pods of a node that is not Ready: always while it is silent; once when it says so itself, because then its
    /// agent goes on reporting them.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let ready = plan::condition(node, "Ready").map_or("Unknown", |c| c.status.as_str());
        let was_ready = self
            .heard()
            .get_mut(&name)
            .is_some_and(|heard| std::mem::replace(&mut heard.was_ready, ready == "True"));
        if ready == "True" || ready == "False" && !was_ready || plan::condition(node, "Ready").is_none() {
            return Ok(());
        }
        let recorder = self.context.recorder.of("node-controller");
        if was_ready {
            recorder.normal(node, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
        }
        let pods = self.context.pods.state();
        for pod in pods
            .iter()
            .filter(|pod| pods::node_of(pod) == Some(&name) && pods::is_ready(pod))
        {
            let condition = PodCondition {
                type_: "Ready".into(),
                status: "False".into(),
                last_transition_time: Some(Time(Timestamp::now())),
                ..PodCondition::default()
            };
            pods::set_condition(&self.context, pod, condition).await?;
            recorder.warning::<Pod>(pod, "NodeNotReady", "Node is not ready".into());
        }
        Ok(())
    }
}
