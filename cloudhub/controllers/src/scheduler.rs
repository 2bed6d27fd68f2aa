//! The scheduler: a node for each pod that has none.
//!
//! * pods, nodes → queue (the pod's key) → [`filter`] → [`score`] → Binding
//!
//! One decision at a time, on a snapshot of the stores plus what was decided and does not show there yet (*assumed*);
//! bindings run concurrently. A pod that fits nowhere gets PodScheduled=False and a FailedScheduling event, and is tried again
//! when a node changes or a pod goes, the highest priority first. There is no preemption.

pub(crate) mod filter;
mod score;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::PostParams;

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::{Cache, Change};
use crate::pods;
use crate::queue::{Key, Queue, Reconciled, work};
use crate::replicaset::reason;
use crate::resources;

use filter::Place;

/// Bindings in flight.
const BINDINGS: usize = 8;

struct Scheduler {
    context: Arc<Context>,
    /// Bound by us, by uid, until the watch shows it.
    assumed: Mutex<HashMap<String, (String, Arc<Pod>)>>,
    /// Pods that fit nowhere.
    waiting: Mutex<HashSet<Key>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let scheduler = Arc::new(Scheduler {
        context: Arc::clone(context),
        assumed: Mutex::default(),
        waiting: Mutex::default(),
    });
    let (to, by) = (Arc::clone(&queue), Arc::clone(&scheduler));
    informers.pods.on(move |change| by.pod_changed(change, &to));
    let (to, by) = (Arc::clone(&queue), Arc::clone(&scheduler));
    informers.nodes.on(move |change| {
        if change.before().is_none_or(|before| matters(before, change.object())) {
            by.retry(&to);
        }
    });
    tasks.add(
        "scheduler",
        work("scheduler", queue, BINDINGS, move |key| {
            let scheduler = Arc::clone(&scheduler);
            async move { scheduler.reconcile(&key).await }
        }),
    );
}

/// Whether a node's change may make room; heartbeats do not.
fn matters(before: &Node, after: &Node) -> bool {
    let spec = |node: &Node| {
        let spec = node.spec.as_ref();
        spec.map(|spec| (spec.taints.clone(), spec.unschedulable))
    };
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    before.metadata.labels != after.metadata.labels
        || spec(before) != spec(after)
        || allocatable(before) != allocatable(after)
}

/// Whether the pod is ours to place.
fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    pods::node_of(pod).is_none()
        && pods::is_active(pod)
        && spec
            .scheduler_name
            .as_deref()
            .is_none_or(|name| name == "default-scheduler")
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

impl Scheduler {
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue) {
        let pod = change.object();
        let gone = matches!(change, Change::Deleted(_));
        if gone || pods::node_of(pod).is_some() || pods::is_finished(pod) {
            lock(&self.assumed).remove(&pod.uid().unwrap_or_default());
            lock(&self.waiting).remove(&Key::of(pod));
        }
        let freed = gone || pods::is_finished(pod) && change.before().is_some_and(|before| !pods::is_finished(before));
        if freed && pods::node_of(pod).is_some() {
            self.retry(queue);
        }
        // A new pod may be what another's affinity waits for.
        if !gone && change.before().is_none_or(|before| pods::node_of(before).is_none()) && pods::node_of(pod).is_some()
        {
            self.retry(queue);
        }
        if !gone && is_pending(pod) {
            // Our own condition on it is no reason to look again.
            let same = change
                .before()
                .is_some_and(|before| before.spec == pod.spec && before.metadata.labels == pod.metadata.labels);
            if !same || !lock(&self.waiting).contains(&Key::of(pod)) {
                queue.add(Key::of(pod));
            }
        }
    }

    /// Tries the waiting pods again, the most important first.
    fn retry(&self, queue: &Queue) {
        let mut waiting: Vec<_> = lock(&self.waiting).iter().cloned().collect();
        waiting.sort_by_cached_key(|key| {
            let pod = self.context.pods.by_key(key);
            let priority = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.priority);
            (Reverse(priority), pod.and_then(|pod| pods::created(&pod.metadata)))
        });
        waiting.into_iter().for_each(|key| queue.add(key));
    }

    async fn reconcile(&self, key: &Key) -> Reconciled {
        let Some(pod) = self.context.pods.by_key(key).filter(|pod| is_pending(pod)) else {
            lock(&self.waiting).remove(key);
            return Ok(None);
        };
        match self.decide(&pod) {
            Some(Ok(node)) => self.bind(&pod, node).await?,
            Some(Err(message)) => {
                lock(&self.waiting).insert(key.clone());
                self.refuse(&pod, message).await?;
            }
            None => {}
        }
        Ok(None)
    }

    /// The node for `pod`, or why there is none; `None` when it was decided already.
    fn decide(&self, pod: &Arc<Pod>) -> Option<Result<String, String>> {
        let uid = pod.uid().unwrap_or_default();
        let mut assumed = lock(&self.assumed);
        if assumed.contains_key(&uid) {
            return None;
        }
        let places = places(&self.context.nodes.state(), &self.context.pods.state(), &assumed);
        let asks = resources::of_pod(pod);
        let reasons: Vec<_> = places
            .iter()
            .map(|place| filter::reasons(pod, &asks, place, &places))
            .collect();
        let fitting = places.iter().zip(&reasons).filter(|(_, why)| why.is_empty());
        let best = fitting.map(|(place, _)| place).max_by_key(|place| {
            (
                score::of(pod, &asks, place),
                Reverse(place.pods.len()),
                Reverse(place.node.name_any()),
            )
        });
        let Some(best) = best else {
            return Some(Err(filter::message(places.len(), &reasons)));
        };
        let node = best.node.name_any();
        assumed.insert(uid, (node.clone(), Arc::clone(pod)));
        Some(Ok(node))
    }

    async fn bind(&self, pod: &Pod, node: String) -> Result<(), Error> {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let api = self.context.api::<Pod>(&namespace);
        let recorder = self.context.recorder.of("default-scheduler");
        let answer = api
            .create_subresource::<Binding, Status>("binding", &name, &PostParams::default(), &binding)
            .await
            .if_there("bind a pod");
        match answer {
            Ok(Some(_)) => {
                lock(&self.waiting).remove(&Key::of(pod));
                recorder.normal(
                    pod,
                    "Scheduled",
                    format!("Successfully assigned {namespace}/{name} to {node}"),
                );
                Ok(())
            }
            Ok(None) => {
                self.forget(pod);
                Ok(())
            }
            Err(error) => {
                self.forget(pod);
                if !error.is_conflict() {
                    recorder.warning(pod, "FailedScheduling", format!("binding rejected: {}", reason(&error)));
                }
                Err(error)
            }
        }
    }

    fn forget(&self, pod: &Pod) {
        lock(&self.assumed).remove(&pod.uid().unwrap_or_default());
    }

    async fn refuse(&self, pod: &Pod, message: String) -> Result<(), Error> {
        let now = Time(Timestamp::now());
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.clone()),
            last_transition_time: Some(now),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        };
        if !pods::condition_changes(pod, &condition) {
            return Ok(());
        }
        self.context
            .recorder
            .of("default-scheduler")
            .warning(pod, "FailedScheduling", message);
        pods::set_condition(&self.context, pod, condition).await
    }
}

/// The nodes with the pods that are on them or will be.
fn places(nodes: &[Arc<Node>], pods: &[Arc<Pod>], assumed: &HashMap<String, (String, Arc<Pod>)>) -> Vec<Place> {
    let mut on: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
    for pod in pods.iter().filter(|pod| !pods::is_finished(pod)) {
        if let Some(node) = pods::node_of(pod) {
            on.entry(node.to_owned()).or_default().push(Arc::clone(pod));
        }
    }
    for (node, pod) in assumed.values() {
        let there = on.entry(node.clone()).or_default();
        if !there.iter().any(|other| other.uid() == pod.uid()) {
            there.push(Arc::clone(pod));
        }
    }
    nodes
        .iter()
        .filter(|node| !pods::is_deleting(&node.metadata))
        .map(|node| Place::new(Arc::clone(node), on.remove(&node.name_any()).unwrap_or_default()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::json;

    #[test]
    fn an_assumed_pod_counts_once() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).expect("a node");
        let shown = Arc::new(pod(
            json!({"metadata": {"uid": "a"}, "spec": {"nodeName": "n", "containers": []}}),
        ));
        let hidden = Arc::new(pod(json!({"metadata": {"uid": "b"}, "spec": {"containers": []}})));
        let assumed = HashMap::from([
            ("a".to_owned(), ("n".to_owned(), Arc::clone(&shown))),
            ("b".to_owned(), ("n".to_owned(), Arc::clone(&hidden))),
        ]);
        let places = places(&[Arc::new(node)], &[shown, hidden], &assumed);
        assert_eq!(places[0].pods.len(), 2);
    }

    #[test]
    fn gated_bound_finished_and_others_pods_are_not_ours() {
        let pending = |spec: serde_json::Value| is_pending(&pod(json!({"metadata": {"name": "p"}, "spec": spec})));
        assert!(pending(json!({"containers": [], "schedulerName": "default-scheduler"})));
        assert!(!pending(json!({"containers": [], "schedulerName": "mine"})));
        assert!(!pending(json!({"containers": [], "nodeName": "n"})));
        assert!(!pending(json!({"containers": [], "schedulingGates": [{"name": "g"}]})));
    }
}
