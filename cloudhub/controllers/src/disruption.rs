//! PodDisruptionBudgets: how many of a group's pods may be evicted now.
//!
//! * Budgets, pods, ReplicaSets, Deployments → queue (the budget's key) → [`plan`] → status, which the eviction subresource
//!   obeys and from which it takes one with each eviction.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::PostParams;

use crate::context::{Context, Informers, Tasks};
use crate::error::Doing;
use crate::informer::Cache;
use crate::pods::{self, controller_of, count, is_deleting};
use crate::queue::{Key, Queue, Reconciled, work};
use crate::selector;

/// Budgets worked on at once.
const WORKERS: usize = 2;
/// A pod whose eviction was granted and that is not being deleted after this will not be.
const EVICTION: SignedDuration = SignedDuration::from_secs(120);

pub(crate) fn start(context: &Arc<Context>, informers: &mut Informers, tasks: &mut Tasks) {
    let queue = Queue::new();
    let to = Arc::clone(&queue);
    informers.budgets.on(move |change| to.add(Key::of(change.object())));
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.pods.on(move |change| {
        for pod in [Some(change.object()), change.before()].into_iter().flatten() {
            for budget in by.budgets.in_namespace(&pod.namespace().unwrap_or_default()) {
                if selects(&budget, pod) {
                    to.add(Key::of(&*budget));
                }
            }
        }
    });
    let (to, by) = (Arc::clone(&queue), Arc::clone(context));
    informers.replica_sets.on(move |change| {
        let scale = |rs: &k8s_openapi::api::apps::v1::ReplicaSet| rs.spec.as_ref().and_then(|spec| spec.replicas);
        let rs = change.object();
        if change.before().and_then(scale) != scale(rs) {
            let budgets = by.budgets.in_namespace(&rs.namespace().unwrap_or_default());
            budgets.iter().for_each(|budget| to.add(Key::of(&**budget)));
        }
    });
    let context = Arc::clone(context);
    tasks.add(
        "disruption",
        work("disruption", queue, WORKERS, move |key| {
            let context = Arc::clone(&context);
            async move { reconcile(&context, &key).await }
        }),
    );
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, &pods::labels(&pod.metadata)))
}

async fn reconcile(context: &Context, key: &Key) -> Reconciled {
    let Some(budget) = context.budgets.by_key(key) else {
        return Ok(None);
    };
    let mut pods = context.pods.in_namespace(&key.namespace);
    pods.retain(|pod| selects(&budget, pod));
    let expected = expected(context, &pods);
    let now = Timestamp::now();
    let (status, again) = plan(&budget, &pods, expected, now);
    if budget.status.as_ref() != Some(&status) {
        let mut wanted = (*budget).clone();
        wanted.status = Some(status);
        context
            .api::<PodDisruptionBudget>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await
            .if_there("write a PodDisruptionBudget's status")?;
    }
    Ok(again)
}

/// The sum of the sizes of the pods' controllers; pods of none, or of one whose size is not known here, count as they are.
fn expected(context: &Context, pods: &[Arc<Pod>]) -> i32 {
    let mut sizes: HashMap<String, i32> = HashMap::new();
    let mut others = 0;
    for pod in pods {
        let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet");
        let namespace = pod.namespace().unwrap_or_default();
        let rs = owner.and_then(|owner| context.replica_sets.by_key(&Key::new(&namespace, &owner.name)));
        let Some(rs) = rs else {
            others += 1;
            continue;
        };
        let above = controller_of(&rs.metadata).filter(|owner| owner.kind == "Deployment");
        let above = above.and_then(|owner| context.deployments.by_key(&Key::new(&namespace, &owner.name)));
        let (uid, size) = match above {
            Some(deployment) => (
                deployment.uid(),
                deployment.spec.as_ref().and_then(|spec| spec.replicas),
            ),
            None => (rs.uid(), rs.spec.as_ref().and_then(|spec| spec.replicas)),
        };
        sizes.insert(uid.unwrap_or_default(), size.unwrap_or(1));
    }
    sizes.values().sum::<i32>() + others
}

/// The budget's status, and when granted evictions expire.
fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let before = budget.status.clone().unwrap_or_default();
    let spec = budget.spec.clone().unwrap_or_default();
    let mut granted: BTreeMap<String, Time> = BTreeMap::new();
    let mut again = None;
    for (name, at) in before.disrupted_pods.iter().flatten() {
        let waits = pods
            .iter()
            .any(|pod| pod.name_any() == *name && !is_deleting(&pod.metadata));
        let left = pods::until(at.0 + EVICTION, now);
        if waits && !left.is_zero() {
            granted.insert(name.clone(), at.clone());
            again = pods::sooner(again, Some(left));
        }
    }
    let healthy =
        |pod: &Arc<Pod>| !is_deleting(&pod.metadata) && !granted.contains_key(&pod.name_any()) && pods::is_ready(pod);
    let current = count(pods.iter().filter(|pod| healthy(pod)).count());
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(may), _) => (expected, (expected - pods::portion(may, expected, true)).max(0)),
        (None, Some(IntOrString::Int(least))) => (count(pods.len()), *least),
        (None, Some(part)) => (expected, pods::portion(part, expected, true)),
        (None, None) => (expected, 0),
    };
    let allowed = if expected > 0 { (current - desired).max(0) } else { 0 };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(current),
        desired_healthy: Some(desired),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        disrupted_pods: Some(granted).filter(|granted| !granted.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: conditions(before.conditions, allowed, budget.metadata.generation, now),
    };
    (status, again)
}

fn conditions(
    before: Option<Vec<Condition>>,
    allowed: i32,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Vec<Condition>> {
    let (status, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let mut conditions = before.unwrap_or_default();
    let old = conditions.iter().position(|c| c.type_ == "DisruptionAllowed");
    let old = old.map(|index| conditions.remove(index));
    let since = old
        .filter(|old| old.status == status)
        .map_or(Time(now), |old| old.last_transition_time);
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: status.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: since,
    });
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::simple;
    use serde_json::{Value, json};

    fn allowed(spec: Value, status: Value, ready: usize, unready: usize) -> (i32, i32, i32) {
        let budget: PodDisruptionBudget =
            serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec, "status": status}))
                .expect("a budget");
        let pods: Vec<_> = (0..ready + unready)
            .map(|i| Arc::new(simple(&format!("p{i}"), Some("n"), "Running", i < ready)))
            .collect();
        let expected = count(pods.len());
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let (status, _) = plan(&budget, &pods, expected, now);
        let of = |number: Option<i32>| number.expect("a number");
        (
            of(status.current_healthy),
            of(status.desired_healthy),
            of(status.disruptions_allowed),
        )
    }

    fn nothing() -> Value {
        json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0})
    }

    #[test]
    fn budgets_by_number_and_by_percentage() {
        assert_eq!(allowed(json!({"minAvailable": 2}), nothing(), 3, 0), (3, 2, 1));
        assert_eq!(allowed(json!({"maxUnavailable": 1}), nothing(), 3, 1), (3, 3, 0));
        assert_eq!(allowed(json!({"minAvailable": "50%"}), nothing(), 3, 0), (3, 2, 1));
        assert_eq!(allowed(json!({"maxUnavailable": "30%"}), nothing(), 3, 0), (3, 2, 1));
        assert_eq!(allowed(json!({"minAvailable": 1}), nothing(), 0, 0), (0, 1, 0));
    }

    #[test]
    fn a_granted_eviction_counts_until_it_expires() {
        let with = |time: &str| {
            let mut status = nothing();
            status["disruptedPods"] = json!({"p0": time});
            status
        };
        assert_eq!(
            allowed(json!({"minAvailable": 2}), with("2026-01-01T00:00:30Z"), 3, 0),
            (2, 2, 0)
        );
        assert_eq!(
            allowed(json!({"minAvailable": 2}), with("2025-12-31T23:50:00Z"), 3, 0),
            (3, 2, 1)
        );
    }
}
