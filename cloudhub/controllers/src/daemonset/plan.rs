//! Which nodes get a pod, which pods go, and the status: pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Toleration,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::{Nodes, revision};
use crate::pods::{self, is_deleting};
use crate::scheduler::filter;

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    /// Pods that go.
    pub(super) delete: Vec<Arc<Pod>>,
    /// Failed pods that go after a wait.
    pub(super) failed: Vec<Arc<Pod>>,
}

/// Whether a change of a node may matter to a DaemonSet.
pub(super) fn differs(before: &Node, after: &Node) -> bool {
    let spec = |node: &Node| node.spec.as_ref().map(|spec| (spec.taints.clone(), spec.unschedulable));
    before.metadata.labels != after.metadata.labels || spec(before) != spec(after)
}

fn toleration(key: &str, effect: &str) -> Toleration {
    Toleration {
        key: Some(key.into()),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    }
}

/// A DaemonSet's pods stay on nodes in trouble (AddOrUpdateDaemonPodTolerations).
fn tolerations(host_network: bool) -> Vec<Toleration> {
    let mut all = vec![
        toleration("node.kubernetes.io/not-ready", "NoExecute"),
        toleration("node.kubernetes.io/unreachable", "NoExecute"),
        toleration("node.kubernetes.io/disk-pressure", "NoSchedule"),
        toleration("node.kubernetes.io/memory-pressure", "NoSchedule"),
        toleration("node.kubernetes.io/pid-pressure", "NoSchedule"),
        toleration("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if host_network {
        all.push(toleration("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    all
}

/// The pod of `ds` for `node`.
pub(super) fn pod_for(ds: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = ds.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(
        &template,
        &ds.namespace().unwrap_or_default(),
        &ds.name_any(),
        pods::reference(ds),
    );
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(revision::HASH.into(), hash.into());
    let spec = pod.spec.get_or_insert_default();
    let own = spec.tolerations.get_or_insert_default();
    for added in tolerations(spec.host_network == Some(true)) {
        if !own.contains(&added) {
            own.push(added);
        }
    }
    tie(spec.affinity.get_or_insert_default(), node);
    pod
}

/// Ties to `node` by name, whatever terms there were.
fn tie(affinity: &mut Affinity, node: &str) {
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.into()]),
        }]),
    };
    affinity
        .node_affinity
        .get_or_insert_with(NodeAffinity::default)
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
}

/// The node that a pod is on or tied to.
fn target(pod: &Pod) -> Option<String> {
    if let Some(node) = pods::node_of(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let selector = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = selector
        .node_selector_terms
        .iter()
        .filter_map(|t| t.match_fields.as_ref())
        .flatten();
    let field = fields.find(|field| field.key == "metadata.name")?;
    field.values.as_ref()?.first().cloned()
}

/// Whether a pod of `ds` is to be made on `node`, and whether one that is there may stay.
fn wants(ds: &DaemonSet, node: &Node) -> (bool, bool) {
    let template = ds.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = Pod {
        spec: template.spec,
        ..Pod::default()
    };
    let spec = pod.spec.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    spec.tolerations
        .get_or_insert_default()
        .extend(tolerations(host_network));
    if spec
        .node_name
        .as_deref()
        .is_some_and(|name| !name.is_empty() && name != node.name_any())
    {
        return (false, false);
    }
    if !filter::node_matches(&pod, node) {
        return (false, false);
    }
    let fits = filter::untolerated(&pod, node, &["NoSchedule", "NoExecute"]).is_none();
    (fits, filter::untolerated(&pod, node, &["NoExecute"]).is_none())
}

fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<String, Vec<&Arc<Pod>>> {
    let mut map: BTreeMap<String, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = target(pod) {
            map.entry(node).or_default().push(pod);
        }
    }
    map
}

fn is_new(pod: &Pod, hash: &str) -> bool {
    revision::hash_label(&pod.metadata).as_deref() == Some(hash)
}

/// What to create and delete: one pod on each node that wants one, none elsewhere, then the rolling update.
pub(super) fn plan(ds: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let on = by_node(pods);
    let nodes: Nodes<'_> = nodes.iter().map(|node| (node.name_any(), node)).collect();
    for (name, node) in &nodes {
        let there = on.get(name).map(Vec::as_slice).unwrap_or_default();
        manage(&mut plan, name, wants(ds, node), there);
    }
    for (name, there) in &on {
        if !nodes.contains_key(name) {
            // Not bound yet and its node is gone: nobody else takes it away.
            plan.delete
                .extend(there.iter().filter(|p| pods::is_active(p)).map(|p| Arc::clone(p)));
        }
    }
    if plan.create.is_empty() && rolls(ds) {
        let update = roll(ds, &nodes, &on, hash, now);
        plan.delete.extend(update);
    }
    plan
}

fn manage(plan: &mut Plan, node: &str, (run, stay): (bool, bool), there: &[&Arc<Pod>]) {
    let mut alive: Vec<&Arc<Pod>> = Vec::new();
    for pod in there {
        if is_deleting(&pod.metadata) {
            // Its successor is made when it is gone.
            alive.push(pod);
        } else if pods::is_finished(pod) {
            plan.failed.push(Arc::clone(pod));
        } else {
            alive.push(pod);
        }
    }
    if run && there.is_empty() {
        plan.create.push(node.to_owned());
    } else if !stay {
        plan.delete.extend(
            alive
                .iter()
                .filter(|p| !is_deleting(&p.metadata))
                .map(|p| Arc::clone(p)),
        );
    } else if alive.len() > 1 {
        // The oldest bound one stays.
        alive.sort_by_key(|pod| (pods::node_of(pod).is_none(), pods::created(&pod.metadata)));
        let surplus = alive.iter().skip(1).filter(|p| !is_deleting(&p.metadata));
        plan.delete.extend(surplus.map(|p| Arc::clone(p)));
    }
}

fn rolls(ds: &DaemonSet) -> bool {
    let strategy = ds.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
}

fn max_unavailable(ds: &DaemonSet, desired: i32) -> i32 {
    let strategy = ds.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let value = strategy
        .and_then(|s| s.rolling_update.as_ref())
        .and_then(|r| r.max_unavailable.as_ref());
    value.map_or(1, |value| pods::portion(value, desired, true)).max(1)
}

/// The old pods that may go now.
fn roll(
    ds: &DaemonSet,
    nodes: &Nodes<'_>,
    on: &BTreeMap<String, Vec<&Arc<Pod>>>,
    hash: &str,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let least = ds.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let wanted: Vec<_> = nodes
        .iter()
        .filter(|(_, node)| wants(ds, node).0)
        .map(|(name, _)| name)
        .collect();
    let may = max_unavailable(ds, pods::count(wanted.len()));
    let (mut missing, mut replace, mut candidates) = (0, Vec::new(), Vec::new());
    for name in wanted {
        let there = on.get(name).map(Vec::as_slice).unwrap_or_default();
        let [pod] = there else {
            missing += 1;
            continue;
        };
        let available = pods::is_available(pod, least, now) && !is_deleting(&pod.metadata);
        if !available {
            missing += 1;
        }
        if is_new(pod, hash) || is_deleting(&pod.metadata) {
            continue;
        }
        if available {
            candidates.push(Arc::clone(pod));
        } else if !pods::is_finished(pod) {
            replace.push(Arc::clone(pod));
        }
    }
    let room = usize::try_from(may - missing).unwrap_or(0);
    replace.extend(candidates.into_iter().take(room));
    replace
}

/// When a ready pod becomes available by time alone.
pub(super) fn next_look(ds: &DaemonSet, pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let least = ds.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    pods.iter()
        .filter(|pod| !pods::is_available(pod, least, now))
        .filter_map(|pod| pods::available_in(pod, least, now))
        .min()
}

pub(super) fn status(
    ds: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let least = ds.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let on = by_node(pods);
    let before = ds.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: ds.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for node in nodes {
        let there = on.get(&node.name_any()).map(Vec::as_slice).unwrap_or_default();
        if !wants(ds, node).0 {
            status.number_misscheduled += i32::from(!there.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let oldest = there.iter().min_by_key(|pod| pods::created(&pod.metadata));
        let Some(pod) = oldest else {
            continue;
        };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pods::is_ready(pod));
        available += i32::from(pods::is_available(pod, least, now));
        updated += i32::from(is_new(pod, hash));
    }
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = some(updated);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::{Value, json};

    fn ds(spec: Value) -> DaemonSet {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "d"}});
        serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "default", "uid": "ds"}, "spec": spec}))
            .expect("a DaemonSet")
    }

    fn plain() -> DaemonSet {
        ds(json!({"template": {"spec": {"containers": []}}}))
    }

    fn node(name: &str, spec: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": name}}, "spec": spec}))
                .expect("a node"),
        )
    }

    fn on(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        Arc::new(pod(json!({
            "metadata": {"name": name, "uid": name, "labels": {"controller-revision-hash": hash}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        })))
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    fn taint(effect: &str) -> Value {
        json!({"taints": [{"key": "k", "effect": effect}]})
    }

    #[test]
    fn a_pod_on_each_node_that_fits_and_none_elsewhere() {
        let nodes = [
            node("n1", json!({})),
            node("n2", taint("NoSchedule")),
            node("n3", taint("NoExecute")),
            node(
                "n4",
                json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
            ),
        ];
        let pods = [
            on("b", "n2", "h", true),
            on("c", "n3", "h", true),
            on("x", "gone", "h", true),
        ];
        let plan = plan(&plain(), &nodes, &pods, "h", Timestamp::now());
        assert_eq!(plan.create, ["n1", "n4"]);
        assert_eq!(names(&plan.delete), ["c", "x"]);
        let status = status(&plain(), &nodes, &pods, "h", Timestamp::now());
        assert_eq!((status.desired_number_scheduled, status.number_misscheduled), (2, 2));
    }

    #[test]
    fn a_node_selector_is_honoured() {
        let ds = ds(json!({"template": {"spec": {"containers": [], "nodeSelector": {"zone": "n2"}}}}));
        let nodes = [node("n1", json!({})), node("n2", json!({}))];
        assert_eq!(plan(&ds, &nodes, &[], "h", Timestamp::now()).create, ["n2"]);
    }

    #[test]
    fn an_update_takes_one_available_pod_at_a_time_and_broken_ones_at_once() {
        let nodes = [node("n1", json!({})), node("n2", json!({})), node("n3", json!({}))];
        let old = [
            on("a", "n1", "old", true),
            on("b", "n2", "old", true),
            on("c", "n3", "old", true),
        ];
        assert_eq!(
            names(&plan(&plain(), &nodes, &old, "new", Timestamp::now()).delete),
            ["a"]
        );
        let half = [
            on("a", "n1", "new", false),
            on("b", "n2", "old", true),
            on("c", "n3", "old", true),
        ];
        assert!(plan(&plain(), &nodes, &half, "new", Timestamp::now()).delete.is_empty());
        let broken = [
            on("a", "n1", "new", false),
            on("b", "n2", "old", false),
            on("c", "n3", "old", true),
        ];
        assert_eq!(
            names(&plan(&plain(), &nodes, &broken, "new", Timestamp::now()).delete),
            ["b"]
        );
        let on_delete = ds(json!({"template": {"spec": {"containers": []}}, "updateStrategy": {"type": "OnDelete"}}));
        assert!(
            plan(&on_delete, &nodes, &old, "new", Timestamp::now())
                .delete
                .is_empty()
        );
    }

    #[test]
    fn a_pod_is_tied_to_its_node_and_tolerates_its_troubles() {
        let pod = pod_for(&plain(), "n7", "h");
        assert_eq!(target(&pod).as_deref(), Some("n7"));
        assert_eq!(pod.spec.and_then(|spec| spec.tolerations).map(|all| all.len()), Some(6));
    }
}
