//! Which of the fitting nodes is best: pure.

use k8s_openapi::api::core::v1::Pod;

use super::filter::{self, Place};
use crate::pods::controller_of;
use crate::resources::Amounts;
use crate::selector;

/// Weight of spreading pods of one owner: more than a full difference in free resources.
const SPREAD: i64 = 30;
/// Weight of an image that is there already: a link may be slow, but spreading comes first.
const IMAGE: i64 = 20;
/// Weight of a taint that only asks to be avoided.
const AVOID: i64 = 100;

/// Higher is better: free resources (LeastAllocated), spread, image locality, preferred affinity, PreferNoSchedule taints.
pub(super) fn of(pod: &Pod, asks: &Amounts, place: &Place) -> i64 {
    let avoided = i64::from(filter::untolerated(pod, &place.node, &["PreferNoSchedule"]).is_some());
    free(asks, place) - SPREAD * siblings(pod, place) + IMAGE * images(pod, place) + preferred(pod, place)
        - AVOID * avoided
}

/// The free part of cpu and memory after the pod, 0 to 100.
fn free(asks: &Amounts, place: &Place) -> i64 {
    let part = |name: &str| {
        let has = place.allocatable.get(name).copied().unwrap_or(0);
        let used = place.used.get(name).copied().unwrap_or(0) + asks.get(name).copied().unwrap_or(0);
        if has <= 0 {
            0
        } else {
            ((has - used).max(0) * 100 / has).min(100)
        }
    };
    i64::try_from(i128::midpoint(part("cpu"), part("memory"))).unwrap_or(0)
}

fn siblings(pod: &Pod, place: &Place) -> i64 {
    let Some(owner) = controller_of(&pod.metadata) else {
        return 0;
    };
    let same = place
        .pods
        .iter()
        .filter(|other| controller_of(&other.metadata).is_some_and(|o| o.uid == owner.uid));
    i64::try_from(same.count()).unwrap_or(i64::MAX / 1000)
}

/// 1 when all the pod's images are on the node.
fn images(pod: &Pod, place: &Place) -> i64 {
    let there = place
        .node
        .status
        .as_ref()
        .and_then(|status| status.images.as_deref())
        .unwrap_or_default();
    let has = |image: &str| there.iter().any(|i| i.names.iter().flatten().any(|name| name == image));
    let containers = pod
        .spec
        .as_ref()
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    i64::from(!containers.is_empty() && containers.iter().all(|c| c.image.as_deref().is_some_and(has)))
}

fn preferred(pod: &Pod, place: &Place) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let node = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let terms = node.and_then(|node| node.preferred_during_scheduling_ignored_during_execution.as_deref());
    terms
        .unwrap_or_default()
        .iter()
        .filter(|term| selector::term_matches(&term.preference, &place.node))
        .map(|term| i64::from(term.weight))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::place;
    use super::*;
    use crate::pods::tests::pod;
    use crate::resources::of_pod;
    use serde_json::{Value, json};

    fn better(a: &Place, b: &Place, spec: Value) -> bool {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "o", "controller": true}]);
        let pod = pod(json!({"metadata": {"name": "p", "ownerReferences": owner}, "spec": spec}));
        of(&pod, &of_pod(&pod), a) > of(&pod, &of_pod(&pod), b)
    }

    #[test]
    fn the_emptier_node_and_the_one_without_siblings_are_better() {
        let plain = json!({"containers": []});
        let busy = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}});
        let sibling = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "o", "controller": true}]}, "spec": {"containers": []}});
        let empty = place("a", json!({}), vec![]);
        assert!(better(&empty, &place("b", json!({}), vec![busy]), plain.clone()));
        assert!(better(&empty, &place("b", json!({}), vec![sibling]), plain.clone()));
        let avoided = place(
            "b",
            json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}),
            vec![],
        );
        assert!(better(&empty, &avoided, plain));
    }

    #[test]
    fn a_preference_counts_its_weight() {
        let wish = json!({"containers": [], "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 50, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}}]}}});
        assert!(better(
            &place("a", json!({}), vec![]),
            &place("b", json!({}), vec![]),
            wish
        ));
    }
}
