//! Whether a pod may run on a node: pure. The texts are kube-scheduler's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, Taint, Toleration};
use kube::ResourceExt;

use crate::pods;
use crate::resources::{self, Amounts};
use crate::selector;

/// A node with what runs on it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) allocatable: Amounts,
    pub(crate) used: Amounts,
}

impl Place {
    pub(crate) fn new(node: Arc<Node>, pods: Vec<Arc<Pod>>) -> Self {
        let mut used = Amounts::new();
        for pod in &pods {
            resources::add(&mut used, &resources::of_pod(pod));
        }
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        Self {
            allocatable: resources::amounts(allocatable),
            node,
            pods,
            used,
        }
    }
}

/// Whether `toleration` tolerates `taint`.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        _ => false,
    }
}

/// The first taint of `node` with one of `effects` that `pod` does not tolerate.
pub(crate) fn untolerated<'a>(pod: &Pod, node: &'a Node, effects: &[&str]) -> Option<&'a Taint> {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// nodeSelector and required node affinity.
pub(crate) fn node_matches(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else {
        return true;
    };
    let labels = pods::labels(&node.metadata);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| selector::matches_node(required, node))
}

/// Why `pod` may not run at `place`; empty when it may. `all` are all places, for rules between pods.
pub(crate) fn reasons(pod: &Pod, asks: &Amounts, place: &Place, all: &[Place]) -> Vec<String> {
    let node = &*place.node;
    let one = |text: &str| vec![text.to_owned()];
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default();
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    if cordoned && !tolerations.iter().any(|toleration| tolerates(toleration, &cordon)) {
        return one("node(s) were unschedulable");
    }
    if untolerated(pod, node, &["NoSchedule", "NoExecute"]).is_some() {
        return one("node(s) had untolerated taint(s)");
    }
    if !node_matches(pod, node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    if !ports_free(pod, place) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    let short = insufficient(asks, place);
    if !short.is_empty() {
        return short;
    }
    between_pods(pod, place, all).map(one).unwrap_or_default()
}

fn insufficient(asks: &Amounts, place: &Place) -> Vec<String> {
    let mut short = Vec::new();
    for (name, amount) in asks {
        let has = place.allocatable.get(name).copied().unwrap_or(0);
        let used = place.used.get(name).copied().unwrap_or(0);
        if *amount > 0 && used + amount > has {
            short.push(if name == "pods" {
                "Too many pods".to_owned()
            } else {
                format!("Insufficient {name}")
            });
        }
    }
    short
}

type Port = (String, i32, String);

fn host_ports(pod: &Pod) -> BTreeSet<Port> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let address = port
                .host_ip
                .clone()
                .filter(|ip| !ip.is_empty())
                .unwrap_or_else(|| "0.0.0.0".into());
            Some((protocol, number, address))
        })
        .collect()
}

fn ports_free(pod: &Pod, place: &Place) -> bool {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return true;
    }
    let any = |address: &str| matches!(address, "0.0.0.0" | "::");
    let used: Vec<Port> = place.pods.iter().flat_map(|pod| host_ports(pod)).collect();
    !wanted.iter().any(|want| {
        used.iter()
            .any(|has| has.0 == want.0 && has.1 == want.1 && (has.2 == want.2 || any(&has.2) || any(&want.2)))
    })
}

/// Required pod affinity and anti-affinity, of the pod and of those that are there.
fn between_pods(pod: &Pod, place: &Place, all: &[Place]) -> Option<&'static str> {
    let anti = terms(pod, true);
    if anti.iter().any(|term| meets(pod, term, place, all)) {
        return Some("node(s) didn't match pod anti-affinity rules");
    }
    for term in terms(pod, false) {
        let nobody = !all
            .iter()
            .flat_map(|p| &p.pods)
            .any(|other| term_selects(term, pod, other));
        // The first of a group that wants to be together may begin anywhere that has the key.
        let first = nobody && term_selects(term, pod, pod) && domain(place, term).is_some();
        if !first && !meets(pod, term, place, all) {
            return Some("node(s) didn't match pod affinity rules");
        }
    }
    let objects = all
        .iter()
        .flat_map(|there| there.pods.iter().map(move |other| (there, other)))
        .any(|(there, other)| {
            terms(other, true)
                .iter()
                .any(|term| term_selects(term, other, pod) && same_domain(term, there, place))
        });
    objects.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
}

fn terms(pod: &Pod, anti: bool) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let required = if anti {
        affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    } else {
        affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    };
    required.unwrap_or_default()
}

fn domain<'a>(place: &'a Place, term: &PodAffinityTerm) -> Option<&'a String> {
    place
        .node
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(&term.topology_key))
}

fn same_domain(term: &PodAffinityTerm, a: &Place, b: &Place) -> bool {
    domain(a, term).is_some() && domain(a, term) == domain(b, term)
}

/// Whether `term` of `of` selects `other`.
fn term_selects(term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let namespace = other.namespace();
    let names = term.namespaces.as_deref().unwrap_or_default();
    // A namespaceSelector that selects something in particular is not looked up; an empty one means every namespace.
    let inside = match &term.namespace_selector {
        Some(selector) if selector::is_empty(selector) => true,
        _ if names.is_empty() => namespace == of.namespace(),
        _ => namespace.is_some_and(|namespace| names.contains(&namespace)),
    };
    inside
        && term
            .label_selector
            .as_ref()
            .is_some_and(|selector| selector::matches(selector, &pods::labels(&other.metadata)))
}

/// Whether a pod that `term` selects is in `place`'s domain.
fn meets(pod: &Pod, term: &PodAffinityTerm, place: &Place, all: &[Place]) -> bool {
    all.iter()
        .filter(|there| same_domain(term, there, place))
        .flat_map(|there| &there.pods)
        .any(|other| term_selects(term, pod, other))
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
pub(crate) fn message(nodes: usize, reasons: &[Vec<String>]) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons.iter().flatten() {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = counts.iter().map(|(text, count)| format!("{count} {text}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pods::tests::pod;
    use serde_json::{Value, json};

    /// A place with 4 cores, 1 GiB and 10 pods, and these pods.
    pub(crate) fn place(name: &str, spec: Value, pods: Vec<Value>) -> Place {
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": "z"}},
            "spec": spec,
            "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "10", "nvidia.com/gpu": "1"}},
        }))
        .expect("a node");
        Place::new(Arc::new(node), pods.into_iter().map(pod).map(Arc::new).collect())
    }

    fn why(spec: Value, place: Place) -> Vec<String> {
        let pod =
            pod(json!({"metadata": {"name": "p", "namespace": "default", "labels": {"app": "web"}}, "spec": spec}));
        let all = [place];
        reasons(&pod, &resources::of_pod(&pod), &all[0], &all)
    }

    fn asks(resource: &str, amount: &str) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {resource: amount}}}]})
    }

    #[test]
    fn a_pod_fits_by_each_of_its_resources() {
        let busy = || place("n", json!({}), vec![json!({"spec": asks("cpu", "3")})]);
        assert!(why(asks("cpu", "1"), busy()).is_empty());
        assert_eq!(why(asks("cpu", "1001m"), busy()), ["Insufficient cpu"]);
        assert_eq!(why(asks("memory", "2Gi"), busy()), ["Insufficient memory"]);
        assert!(why(asks("nvidia.com/gpu", "1"), busy()).is_empty());
        assert_eq!(
            why(asks("nvidia.com/gpu", "2"), busy()),
            ["Insufficient nvidia.com/gpu"]
        );
        let full = place("n", json!({}), vec![json!({"spec": {"containers": []}}); 10]);
        assert_eq!(why(json!({"containers": []}), full), ["Too many pods"]);
    }

    #[test]
    fn taints_cordons_and_selectors_exclude() {
        let tainted = || {
            place(
                "n",
                json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
                vec![],
            )
        };
        let with = |tolerations: Value| json!({"containers": [], "tolerations": tolerations});
        assert_eq!(why(with(json!([])), tainted()), ["node(s) had untolerated taint(s)"]);
        assert!(why(with(json!([{"key": "k", "value": "v"}])), tainted()).is_empty());
        assert!(why(with(json!([{"operator": "Exists"}])), tainted()).is_empty());
        assert!(!why(with(json!([{"key": "k", "value": "w"}])), tainted()).is_empty());
        let cordoned = place("n", json!({"unschedulable": true}), vec![]);
        assert_eq!(why(json!({"containers": []}), cordoned), ["node(s) were unschedulable"]);
        let other = json!({"containers": [], "nodeSelector": {"kubernetes.io/hostname": "m"}});
        assert_eq!(
            why(other, place("n", json!({}), vec![])),
            ["node(s) didn't match Pod's node affinity/selector"]
        );
    }

    #[test]
    fn host_ports_clash_by_protocol_and_address() {
        let port = |number: i32, ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": number, "hostIP": ip}]}]});
        let busy = || place("n", json!({}), vec![json!({"spec": port(80, "127.0.0.1")})]);
        assert!(!why(port(80, ""), busy()).is_empty());
        assert!(!why(port(80, "127.0.0.1"), busy()).is_empty());
        assert!(why(port(80, "127.0.0.2"), busy()).is_empty());
        assert!(why(port(81, ""), busy()).is_empty());
    }

    #[test]
    fn pods_that_must_not_be_together_are_not() {
        let anti = json!({"containers": [], "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
        let web = json!({"metadata": {"name": "o", "namespace": "default", "labels": {"app": "web"}}, "spec": {"containers": []}});
        assert!(!why(anti.clone(), place("n", json!({}), vec![web.clone()])).is_empty());
        assert!(why(anti.clone(), place("n", json!({}), vec![])).is_empty());
        let shy = json!({"metadata": {"name": "o", "namespace": "default"}, "spec": anti});
        assert!(!why(json!({"containers": []}), place("n", json!({}), vec![shy])).is_empty());
    }

    #[test]
    fn the_message_counts_reasons() {
        let reasons = vec![vec!["b".to_owned()], vec!["a".to_owned(), "b".to_owned()]];
        assert_eq!(message(2, &reasons), "0/2 nodes are available: 1 a, 2 b.");
        assert_eq!(message(0, &[]), "no nodes available to schedule pods");
    }
}
