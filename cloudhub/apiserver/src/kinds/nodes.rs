//! Node, Lease, PriorityClass, RuntimeClass.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fields::{Quantity, complain, is_dns1123_label, is_label_value, is_qualified_name, labels, one_of};
use super::services::{is_cidr, is_ipv6};
use super::{Column, Row, Strategy, column, number, wide};
use crate::object::{self, carry, default, items, map, text};
use crate::status::Errors;

pub(super) const ROWS: &[Row] = &[
    Row {
        group: "",
        version: "v1",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        categories: &[],
        namespaced: false,
        storage: "nodes",
        status: true,
        scale: false,
        generation: false,
        selectable: &[("spec.unschedulable", "/spec/unschedulable")],
        columns: &[
            column("Status"),
            column("Roles"),
            column("Age"),
            column("Version"),
            wide("Internal-IP"),
            wide("External-IP"),
            wide("OS-Image"),
            wide("Kernel-Version"),
            wide("Container-Runtime"),
        ],
        strategy: &Nodes,
    },
    Row {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        short_names: &[],
        categories: &[],
        namespaced: true,
        storage: "leases",
        status: false,
        scale: false,
        generation: false,
        selectable: &[],
        columns: &[column("Holder")],
        strategy: &Leases,
    },
    Row {
        group: "scheduling.k8s.io",
        version: "v1",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        categories: &[],
        namespaced: false,
        storage: "priorityclasses",
        status: false,
        scale: false,
        generation: false,
        selectable: &[],
        columns: &[
            number("Value"),
            Column {
                name: "Global-Default",
                kind: "boolean",
                priority: 0,
            },
            column("Age"),
            column("PreemptionPolicy"),
        ],
        strategy: &PriorityClasses,
    },
    Row {
        group: "node.k8s.io",
        version: "v1",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        short_names: &[],
        categories: &[],
        namespaced: false,
        storage: "runtimeclasses",
        status: false,
        scale: false,
        generation: false,
        selectable: &[],
        columns: &[column("Handler")],
        strategy: &RuntimeClasses,
    },
];

const IMMUTABLE: &str = "field is immutable";

#[derive(Debug)]
struct Nodes;

const NODE_INFO: [&str; 10] = [
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
];

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        default_pod_cidrs(object);
        spell_quantities(object.pointer_mut("/status/capacity"));
        spell_quantities(object.pointer_mut("/status/allocatable"));
        let status = map(object, "status");
        if let Some(capacity) = status.get("capacity").filter(|c| !c.is_null()).cloned() {
            default(status, "allocatable", capacity);
        }
        default(status, "daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}}));
        let info = status.entry("nodeInfo").or_insert_with(|| json!({}));
        if let Some(info) = info.as_object_mut() {
            for field in NODE_INFO {
                default(info, field, "");
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        remove(object, "spec", "configSource");
        remove(object, "status", "config");
    }

    fn prepare_update(&self, object: &mut Value, _current: &Value) {
        remove(object, "spec", "configSource");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        taints_make_sense(items(object, "/spec/taints"), errors);
        resources_make_sense(object, errors);
        let cidrs = items(object, "/spec/podCIDRs");
        for (index, cidr) in cidrs.iter().enumerate() {
            is_cidr(errors, &format!("spec.podCIDRs[{index}]"), cidr);
        }
        let families: BTreeSet<bool> = cidrs.iter().map(|c| is_ipv6(c.as_str().unwrap_or_default())).collect();
        if cidrs.len() > families.len() {
            let words = "may specify no more than one CIDR for each IP family";
            errors.invalid("spec.podCIDRs", &json!(cidrs), words);
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        let cidrs = items(current, "/spec/podCIDRs");
        if !cidrs.is_empty() && cidrs != items(object, "/spec/podCIDRs") {
            let words = "node updates may not change podCIDR except from \"\" to valid";
            errors.forbidden("spec.podCIDRs", words);
        }
        let provider = text(current, "/spec/providerID");
        if !provider.is_empty() && provider != text(object, "/spec/providerID") {
            let words = "node updates may not change providerID except from \"\" to valid";
            errors.forbidden("spec.providerID", words);
        }
        if text(object, "/spec/externalID") != text(current, "/spec/externalID") {
            errors.forbidden("spec.externalID", "may not be updated");
        }
    }

    fn validate_status(&self, object: &Value, _current: &Value, errors: &mut Errors) {
        resources_make_sense(object, errors);
        let addresses = items(object, "/status/addresses");
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                let shown = json!({"Type": address["type"], "Address": address["address"]});
                errors.duplicate(format!("status.addresses[{index}]"), &shown);
            }
        }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        if text(object, "/spec/externalID").is_empty() {
            return Vec::new();
        }
        vec!["spec.externalID: this field is deprecated, and is unused by Kubernetes".into()]
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        node_cells(object)
    }

    fn status_at_creation(&self) -> bool {
        true
    }
}

fn remove(object: &mut Value, part: &str, field: &str) {
    if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
        part.shift_remove(field);
    }
}

/// `podCIDR` is the first of `podCIDRs`; where they differ, it wins, as older clients know only it.
fn default_pod_cidrs(node: &mut Value) {
    let one = text(node, "/spec/podCIDR").to_owned();
    let first = text(node, "/spec/podCIDRs/0").to_owned();
    if one == first {
        return;
    }
    let spec = map(node, "spec");
    if one.is_empty() {
        spec.insert("podCIDR".into(), json!(first));
    } else {
        spec.insert("podCIDRs".into(), json!([one]));
    }
}

/// Amounts of resources are stored as the real server spells them. What is no amount stays: validation names it.
fn spell_quantities(resources: Option<&mut Value>) {
    let resources = resources.and_then(Value::as_object_mut);
    for (_, value) in resources.into_iter().flatten() {
        if let Ok(amount) = Quantity::from_json(value) {
            *value = json!(amount.canonical());
        }
    }
}

fn taints_make_sense(taints: &[Value], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        // The real server names `metadata` here too.
        let field = format!("metadata.taints[{index}]");
        let (key, value, effect) = (text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"));
        complain(errors, &format!("{field}.key"), &json!(key), is_qualified_name(key));
        complain(errors, &format!("{field}.value"), &json!(value), is_label_value(value));
        if effect.is_empty() {
            errors.required(format!("{field}.effect"), "");
        } else {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(errors, &format!("{field}.effect"), &json!(effect), &effects);
        }
        if !seen.insert((key, effect)) {
            let taint = json!({"Key": key, "Value": value, "Effect": effect, "TimeAdded": taint.get("timeAdded")});
            errors.duplicate_because(field, &taint, "taints must be unique by key and effect pair");
        }
    }
}

fn resources_make_sense(node: &Value, errors: &mut Errors) {
    for list in ["capacity", "allocatable"] {
        let resources = node["status"].get(list).and_then(Value::as_object);
        for (name, value) in resources.into_iter().flatten() {
            let field = format!("status.{list}.{name}");
            match Quantity::from_json(value) {
                Err(words) => errors.invalid(field, value, words),
                Ok(amount) if amount.is_negative() => {
                    errors.invalid(field, value, "must be greater than or equal to 0");
                }
                Ok(amount) if is_counted(name) && !amount.is_whole() => {
                    errors.invalid(field, value, "must be an integer");
                }
                Ok(_) => {}
            }
        }
    }
}

/// Whether a resource comes in whole pieces: pods and extended resources.
fn is_counted(name: &str) -> bool {
    match name.split_once('/') {
        Some((domain, _)) => domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"),
        None => name == "pods",
    }
}

fn node_status(node: &Value) -> String {
    let ready = items(node, "/status/conditions")
        .iter()
        .find(|c| text(c, "/type") == "Ready");
    let status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let unschedulable = node.pointer("/spec/unschedulable") == Some(&json!(true));
    format!("{status}{}", if unschedulable { ",SchedulingDisabled" } else { "" })
}

fn node_roles(node: &Value) -> String {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    let roles: BTreeSet<String> = labels
        .into_iter()
        .flatten()
        .filter_map(role)
        .filter(|r| !r.is_empty())
        .collect();
    or(&Vec::from_iter(roles).join(","), "<none>")
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise } else { text }.to_owned()
}

fn node_cells(node: &Value) -> Vec<Value> {
    let address = |kind: &str| {
        let mut addresses = items(node, "/status/addresses").iter();
        let found = addresses.find(|a| text(a, "/type") == kind);
        found.map_or("<none>", |a| text(a, "/address")).to_owned()
    };
    let info = |field: &str| text(node, &format!("/status/nodeInfo/{field}"));
    let kernel = or(info("kernelVersion"), "<unknown>");
    let kernel = match info("architecture") {
        "" => kernel,
        architecture => format!("{kernel} ({architecture})"),
    };
    vec![
        json!(node_status(node)),
        json!(node_roles(node)),
        json!(info("kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(or(info("osImage"), "<unknown>")),
        json!(kernel),
        json!(or(info("containerRuntimeVersion"), "<unknown>")),
    ]
}

#[derive(Debug)]
struct Leases;

impl Strategy for Leases {
    fn default(&self, object: &mut Value) {
        // Of CoordinatedLeaderElection, which the real server has switched off.
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.shift_remove("strategy");
            spec.shift_remove("preferredHolder");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let field = |name: &str| object.get("spec").and_then(|s| s.get(name)).filter(|v| !v.is_null());
        if let Some(seconds) = field("leaseDurationSeconds").filter(|v| v.as_i64().is_some_and(|n| n <= 0)) {
            errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
        }
        if let Some(count) = field("leaseTransitions").filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
            errors.invalid("spec.leaseTransitions", count, "must be greater than or equal to 0");
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![json!(text(object, "/spec/holderIdentity"))]
    }
}

#[derive(Debug)]
struct PriorityClasses;

/// The highest value that a user may give.
const HIGHEST: i64 = 1_000_000_000;
/// Classes that the system has from the first start: name, value.
pub(crate) const SYSTEM_PRIORITY_CLASSES: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

impl Strategy for PriorityClasses {
    fn default(&self, object: &mut Value) {
        let Some(fields) = object.as_object_mut() else { return };
        default(fields, "value", 0);
        if fields.get("preemptionPolicy").is_none_or(|p| p == "" || p.is_null()) {
            fields.insert("preemptionPolicy".into(), json!("PreemptLowerPriority"));
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        // It never counts on, but the real server begins with it.
        object::metadata(object).insert("generation".into(), json!(1));
    }

    fn prepare_update(&self, object: &mut Value, current: &Value) {
        if let (Some(to), Some(from)) = (object.get_mut("metadata"), current.get("metadata")) {
            carry(to, from, "generation");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (name, value) = (object::name(object), priority(object));
        if name.starts_with("system-") {
            if let Some(words) = is_no_system_class(name, value, is_global_default(object)) {
                let words = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {words}"
                );
                errors.forbidden("metadata.name", &words);
            }
        } else if value > HIGHEST {
            let words = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.forbidden("value", &words);
        }
        one_of(
            errors,
            "preemptionPolicy",
            &object["preemptionPolicy"],
            &["PreemptLowerPriority", "Never"],
        );
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        if priority(object) != priority(current) {
            errors.forbidden("value", "may not be changed in an update.");
        }
        if text(object, "/preemptionPolicy") != text(current, "/preemptionPolicy") {
            errors.invalid("preemptionPolicy", &object["preemptionPolicy"], IMMUTABLE);
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![
            json!(priority(object)),
            json!(is_global_default(object)),
            json!(text(object, "/preemptionPolicy")),
        ]
    }
}

fn priority(class: &Value) -> i64 {
    class.get("value").and_then(Value::as_i64).unwrap_or_default()
}

fn is_global_default(class: &Value) -> bool {
    class.get("globalDefault") == Some(&json!(true))
}

fn is_no_system_class(name: &str, value: i64, global_default: bool) -> Option<String> {
    let Some((_, right)) = SYSTEM_PRIORITY_CLASSES.iter().find(|(n, _)| *n == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if value != *right {
        return Some(format!("value of {name} PriorityClass must be {right}"));
    }
    global_default.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

#[derive(Debug)]
struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn default(&self, object: &mut Value) {
        spell_quantities(object.pointer_mut("/overhead/podFixed"));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        match text(object, "/handler") {
            "" => errors.required("handler", ""),
            handler => complain(errors, "handler", &json!(handler), is_dns1123_label(handler)),
        }
        let overhead = object.pointer("/overhead/podFixed").and_then(Value::as_object);
        for (name, value) in overhead.into_iter().flatten() {
            let field = format!("overhead.limits[{name}]");
            match Quantity::from_json(value) {
                Err(words) => errors.invalid(field, value, words),
                Ok(amount) if amount.is_negative() => {
                    errors.invalid(field, value, "must be greater than or equal to 0");
                }
                Ok(_) => {}
            }
        }
        let selector = object.pointer("/scheduling/nodeSelector");
        labels(errors, "scheduling.nodeSelector", selector);
        tolerations_make_sense(items(object, "/scheduling/tolerations"), errors);
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        if text(object, "/handler") != text(current, "/handler") {
            errors.invalid("handler", &object["handler"], IMMUTABLE);
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![json!(text(object, "/handler"))]
    }
}

fn tolerations_make_sense(tolerations: &[Value], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let field = format!("scheduling.tolerations[{index}]");
        let part = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
        let (key, operator, effect) = (part("key"), part("operator"), part("effect"));
        if key.is_empty() {
            if operator != "Exists" {
                let words =
                    "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
                errors.invalid(format!("{field}.operator"), &json!(operator), words);
            }
        } else {
            complain(errors, &format!("{field}.key"), &json!(key), is_qualified_name(key));
        }
        if !operator.is_empty() {
            let operators = ["Equal", "Exists"];
            one_of(errors, &format!("{field}.operator"), &json!(operator), &operators);
        }
        if !effect.is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(errors, &format!("{field}.effect"), &json!(effect), &effects);
        }
        if !seen.insert((key, operator, part("value"), effect)) {
            errors.duplicate(field, toleration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errors: &Errors) -> Vec<String> {
        let causes = errors.causes().iter();
        causes.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    fn faults(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate(object, &mut errors);
        said(&errors)
    }

    fn update_faults(strategy: &dyn Strategy, object: &Value, current: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate_update(object, current, &mut errors);
        said(&errors)
    }

    #[test]
    fn a_node_offers_what_it_has_and_takes_its_first_range() {
        let mut node = json!({"spec": {"podCIDR": "10.1.0.0/24"}, "status": {"capacity": {"cpu": "4000m"}}});
        Strategy::default(&Nodes, &mut node);
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
        assert_eq!(node["status"]["allocatable"], json!({"cpu": "4"}));
        assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 0);
        assert_eq!(node["status"]["nodeInfo"]["osImage"], "");
        assert!(faults(&Nodes, &node).is_empty());
        let once = node.clone();
        Strategy::default(&Nodes, &mut node);
        assert_eq!(node, once);
    }

    #[test]
    fn the_range_of_a_node_is_given_once() {
        let none = json!({"spec": {}});
        let given = json!({"spec": {"podCIDRs": ["10.1.0.0/24"]}});
        assert!(update_faults(&Nodes, &given, &none).is_empty());
        assert_eq!(
            update_faults(&Nodes, &none, &given),
            ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
        );
        let wrong = json!({"spec": {"podCIDRs": ["10.1.0.0/24", "10.2.0.0/33"]}});
        assert_eq!(faults(&Nodes, &wrong).len(), 2);
    }

    #[test]
    fn taints_have_an_effect_and_are_there_once() {
        let taint = json!({"key": "a", "value": "b", "effect": "NoSchedule"});
        let node = json!({"spec": {"taints": [taint, taint, {"key": "c", "effect": "No"}, {"key": "d"}]}});
        assert_eq!(
            faults(&Nodes, &node),
            [
                "metadata.taints[1]: Duplicate value: {\"Key\":\"a\",\"Value\":\"b\",\"Effect\":\"NoSchedule\",\"TimeAdded\":null}: taints must be unique by key and effect pair",
                "metadata.taints[2].effect: Unsupported value: \"No\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                "metadata.taints[3].effect: Required value"
            ]
        );
    }

    #[test]
    fn resources_are_whole_where_they_are_counted() {
        let node =
            json!({"status": {"capacity": {"cpu": "500m", "pods": "1500m", "robot.dev/arm": "-1", "memory": "x"}}});
        let mut errors = Errors::default();
        Nodes.validate_status(&node, &node, &mut errors);
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "status.capacity.pods",
                "status.capacity.robot.dev/arm",
                "status.capacity.memory"
            ]
        );
    }

    #[test]
    fn a_node_row_shows_status_and_roles() {
        let node = json!({
            "metadata": {"labels": {"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/arm": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "Unknown"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1", "kernelVersion": "6.1", "architecture": "arm64"},
            },
        });
        assert_eq!(
            Nodes.cells(&node),
            [
                "NotReady,SchedulingDisabled",
                "arm,edge",
                "v1",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "6.1 (arm64)",
                "<unknown>"
            ]
        );
        assert_eq!(Nodes.cells(&json!({}))[0], "Unknown");
    }

    #[test]
    fn a_lease_lasts_longer_than_nothing() {
        let lease = json!({"spec": {"leaseDurationSeconds": 0}});
        assert_eq!(
            faults(&Leases, &lease),
            ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",]
        );
    }

    #[test]
    fn the_highest_priorities_are_the_systems() {
        let mut class = json!({"metadata": {"name": "mine"}, "value": 1_000_000_001});
        Strategy::default(&PriorityClasses, &mut class);
        assert_eq!(
            faults(&PriorityClasses, &class),
            ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
        );
        class["metadata"]["name"] = json!("system-mine");
        assert_eq!(
            faults(&PriorityClasses, &class),
            [
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. \
              error: system-mine is not a known system priority class"
            ]
        );
        class["metadata"]["name"] = json!("system-node-critical");
        class["value"] = json!(2_000_001_000);
        assert!(faults(&PriorityClasses, &class).is_empty());
        let mut other = class.clone();
        other["value"] = json!(1);
        other["preemptionPolicy"] = json!("Never");
        assert_eq!(
            update_faults(&PriorityClasses, &other, &class),
            [
                "value: Forbidden: may not be changed in an update.",
                "preemptionPolicy: Invalid value: \"Never\": field is immutable"
            ]
        );
    }

    #[test]
    fn a_runtime_class_keeps_its_handler() {
        let class =
            json!({"handler": "runc", "scheduling": {"tolerations": [{"operator": "Exists"}, {"operator": "Exists"}]}});
        assert_eq!(
            faults(&RuntimeClasses, &class),
            ["scheduling.tolerations[1]: Duplicate value: {\"operator\":\"Exists\"}"]
        );
        assert_eq!(
            update_faults(&RuntimeClasses, &json!({"handler": "a"}), &class),
            ["handler: Invalid value: \"a\": field is immutable"]
        );
        assert_eq!(faults(&RuntimeClasses, &json!({})), ["handler: Required value"]);
    }
}
