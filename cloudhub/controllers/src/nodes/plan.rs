//! Conditions and taints of a node: pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Conditions that nobody can vouch for when the node is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that are taints while they are True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The conditions that a silent node's become; empty when they are so already.
pub(super) fn unknown(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut changed = Vec::new();
    for kind in REPORTED {
        let (reason, message) = match condition(node, kind) {
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            Some(has) if has.status != "Unknown" => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            Some(_) => continue,
        };
        let heartbeat = condition(node, kind)
            .and_then(|c| c.last_heartbeat_time.clone())
            .or_else(|| node.metadata.creation_timestamp.clone());
        changed.push(NodeCondition {
            type_: kind.into(),
            status: "Unknown".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(Time(now)),
        });
    }
    changed
}

/// Whether there are nodes and none is Ready.
pub(super) fn is_disrupted(nodes: &[Arc<Node>]) -> bool {
    !nodes.is_empty()
        && !nodes
            .iter()
            .any(|node| condition(node, "Ready").is_some_and(|c| c.status == "True"))
}

/// The taints that `node` should have, those of others kept; `None` when it has them.
pub(super) fn taints(node: &Node, disrupted: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let has = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let wanted = wanted(node, disrupted);
    let ours = |taint: &Taint| {
        let pressure = PRESSURES.iter().any(|(_, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        let trouble = taint.key == NOT_READY || taint.key == UNREACHABLE;
        trouble && taint.effect != "PreferNoSchedule" || pressure && taint.effect == "NoSchedule"
    };
    let is = |taint: &Taint, wanted: &(&str, &str)| taint.key == wanted.0 && taint.effect == wanted.1;
    let mut result: Vec<Taint> = has
        .iter()
        .filter(|taint| !ours(taint) || wanted.iter().any(|wanted| is(taint, wanted)))
        .cloned()
        .collect();
    for (key, effect) in wanted
        .iter()
        .filter(|wanted| !has.iter().any(|taint| is(taint, wanted)))
    {
        result.push(Taint {
            key: (*key).into(),
            effect: (*effect).into(),
            value: None,
            time_added: (*effect == "NoExecute").then_some(Time(now)),
        });
    }
    (result != has).then_some(result)
}

fn wanted(node: &Node, disrupted: bool) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    let status = |kind: &str| condition(node, kind).map(|c| c.status.as_str());
    let trouble = match status("Ready") {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        // Without a condition it has not reported yet: as admission says, not ready.
        _ => Some(NOT_READY),
    };
    if let Some(key) = trouble {
        wanted.push((key, "NoSchedule"));
        if !disrupted && status("Ready").is_some() {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURES {
        if status(kind) == Some("True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(spec: Value, conditions: &[(&str, &str)]) -> Node {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}))
            .expect("a node")
    }

    fn pairs(taints: Option<Vec<Taint>>) -> Vec<String> {
        taints
            .into_iter()
            .flatten()
            .map(|taint| format!("{}:{}", taint.key.rsplit('/').next().unwrap_or_default(), taint.effect))
            .collect()
    }

    #[test]
    fn a_silent_node_is_unreachable_and_comes_back() {
        let ready = node(json!({}), &[("Ready", "True")]);
        let now = Timestamp::now();
        assert_eq!(taints(&ready, false, now), None);
        let changed = unknown(&ready, now);
        assert_eq!(changed.len(), 4);
        assert_eq!(changed[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(changed[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        let silent = node(json!({}), &[("Ready", "Unknown")]);
        assert_eq!(
            pairs(taints(&silent, false, now)),
            ["unreachable:NoSchedule", "unreachable:NoExecute"]
        );
        let back = node(
            json!({"taints": [{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": "mine", "effect": "NoExecute"}]}),
            &[("Ready", "True")],
        );
        assert_eq!(pairs(taints(&back, false, now)), ["mine:NoExecute"]);
    }

    #[test]
    fn when_no_node_is_ready_nothing_is_evicted() {
        let silent = node(json!({}), &[("Ready", "Unknown")]);
        assert_eq!(
            pairs(taints(&silent, true, Timestamp::now())),
            ["unreachable:NoSchedule"]
        );
        let ready = node(json!({}), &[("Ready", "True")]);
        assert!(is_disrupted(&[Arc::new(silent.clone())]));
        assert!(!is_disrupted(&[Arc::new(silent), Arc::new(ready)]));
        assert!(!is_disrupted(&[]));
    }

    #[test]
    fn conditions_and_cordons_are_taints() {
        let node = node(
            json!({"unschedulable": true}),
            &[("Ready", "True"), ("DiskPressure", "True")],
        );
        assert_eq!(
            pairs(taints(&node, false, Timestamp::now())),
            ["disk-pressure:NoSchedule", "unschedulable:NoSchedule"]
        );
    }
}
