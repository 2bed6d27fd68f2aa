//! Pods that do not tolerate a NoExecute taint of their node leave, at once or after their tolerationSeconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use crate::context::{Context, Informers, Tasks};
use crate::error::{Doing, Error};
use crate::informer::Cache;
use crate::pods;
use crate::queue::{Key, Queue, Reconciled, work};
use crate::scheduler::filter::tolerates;

/// Pods looked at at once.
const WORKERS: usize = 8;

/// What was noticed when: kubectl's taints carry no time.
struct Evictor {
    context: Arc<Context>,
    /// When a pod was first seen on a tainted node, by its key.
    noticed: Mutex<HashMap<Key, Timestamp>>,
}

pub(super) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.pods.on(move |change| {
        let pod = change.object();
        let node = pods::node_of(pod).and_then(|node| by.nodes.by_key(&Key::new("", node)));
        if node.is_some_and(|node| !evicting(&node).is_empty()) {
            to.add(Key::of(pod));
        }
    });
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.nodes.on(move |change| {
        let node = change.object();
        let before = change.before().map(evicting).unwrap_or_default();
        if before == evicting(node) {
            return;
        }
        let name = node.name_any();
        let pods = by.pods.state();
        pods.iter()
            .filter(|pod| pods::node_of(pod) == Some(&name))
            .for_each(|pod| to.add(Key::of(&**pod)));
    });
    let evictor = Arc::new(Evictor {
        context: Arc::clone(context),
        noticed: Mutex::default(),
    });
    tasks.add(
        "taint eviction",
        work("taint eviction", queue, WORKERS, move |key| {
            let evictor = Arc::clone(&evictor);
            async move { evictor.reconcile(&key).await }
        }),
    );
}

fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .cloned()
        .collect()
}

/// How long `pod` may stay: for ever (`None`), or so long from `now`.
fn stays(pod: &Pod, taints: &[Taint], noticed: Timestamp, now: Timestamp) -> Option<Duration> {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    taints
        .iter()
        .filter_map(|taint| stays_with(tolerations, taint, noticed, now))
        .min()
}

fn stays_with(tolerations: &[Toleration], taint: &Taint, noticed: Timestamp, now: Timestamp) -> Option<Duration> {
    let matching: Vec<_> = tolerations
        .iter()
        .filter(|toleration| tolerates(toleration, taint))
        .collect();
    if matching.is_empty() {
        return Some(Duration::ZERO);
    }
    let seconds = matching
        .iter()
        .filter_map(|toleration| toleration.toleration_seconds)
        .min()?;
    let since = taint.time_added.as_ref().map_or(noticed, |time| time.0);
    Some(pods::until(since + SignedDuration::from_secs(seconds.max(0)), now))
}

impl Evictor {
    fn noticed(&self) -> MutexGuard<'_, HashMap<Key, Timestamp>> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile(&self, key: &Key) -> Reconciled {
        let pod = self.context.pods.by_key(key).filter(|pod| pods::is_active(pod));
        let node = pod.as_ref().and_then(|pod| pods::node_of(pod));
        let node = node.and_then(|node| self.context.nodes.by_key(&Key::new("", node)));
        let taints = node.map(|node| evicting(&node)).unwrap_or_default();
        let Some(pod) = pod.filter(|_| !taints.is_empty()) else {
            self.noticed().remove(key);
            return Ok(None);
        };
        let now = Timestamp::now();
        let noticed = *self.noticed().entry(key.clone()).or_insert(now);
        match stays(&pod, &taints, noticed, now) {
            None => Ok(None),
            Some(left) if !left.is_zero() => Ok(Some(left)),
            Some(_) => self.evict(&pod, now).await.map(|()| None),
        }
    }

    async fn evict(&self, pod: &Pod, now: Timestamp) -> Result<(), Error> {
        let key = Key::of(pod);
        let condition = pods::disruption(
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint".into(),
            now,
        );
        pods::set_condition(&self.context, pod, condition).await?;
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        });
        self.context
            .api::<Pod>(&key.namespace)
            .delete(&key.name, &params)
            .await
            .if_there("evict a pod")?;
        let message = format!("Marking for deletion Pod {key}");
        self.context
            .recorder
            .of("taint-eviction-controller")
            .normal(pod, "TaintManagerEviction", message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::{Value, json};

    fn left(tolerations: Value, passed: i64) -> Option<u64> {
        let pod = pod(json!({"spec": {"containers": [], "tolerations": tolerations}}));
        let added: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let taint: Taint = serde_json::from_value(
            json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}),
        )
        .expect("a taint");
        stays(&pod, &[taint], added, added + SignedDuration::from_secs(passed)).map(|left| left.as_secs())
    }

    #[test]
    fn a_toleration_says_how_long_a_pod_stays() {
        let with = |seconds: Option<i64>| json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        assert_eq!(left(json!([]), 0), Some(0));
        assert_eq!(left(with(Some(300)), 100), Some(200));
        assert_eq!(left(with(Some(300)), 400), Some(0));
        assert_eq!(left(with(None), 1_000_000), None);
    }
}
