//! Pods: their row and strategy.
//!
//! * `defaults`: what is filled in; pod templates share it
//! * `validation`: the spec as a whole; `containers`, `volumes`, `resources`, `security`, `affinity` its parts
//! * `update`: what may change; the status; ephemeral containers
//! * `binding`: a pod gets its node
//! * `printing`: the table

mod affinity;
mod binding;
mod containers;
mod defaults;
mod printing;
mod resources;
mod security;
mod update;
mod validation;
mod volumes;

use std::collections::BTreeSet;

use serde_json::{Value, json};

pub(crate) use binding::{bind, set_condition};
pub(crate) use defaults::template as default_template;
pub(crate) use update::{prepare_ephemeral, same, validate_ephemeral};
pub(crate) use validation::template as validate_template;

use crate::kinds::fields::is_dns1123_label;
use crate::kinds::{Row, Strategy, column, wide};
use crate::object::{items, name, now, text};
use crate::status::Errors;

pub(super) const ROWS: &[Row] = &[Row {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    storage: "pods",
    status: true,
    scale: false,
    generation: true,
    selectable: &[
        ("spec.nodeName", "/spec/nodeName"),
        ("spec.restartPolicy", "/spec/restartPolicy"),
        ("spec.schedulerName", "/spec/schedulerName"),
        ("spec.serviceAccountName", "/spec/serviceAccountName"),
        ("spec.hostNetwork", "/spec/hostNetwork"),
        ("status.phase", "/status/phase"),
        ("status.podIP", "/status/podIP"),
        ("status.nominatedNodeName", "/status/nominatedNodeName"),
    ],
    columns: &[
        column("Ready"),
        column("Status"),
        column("Restarts"),
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ],
    strategy: &Pods,
}];

#[derive(Debug)]
struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "qosClass": resources::qos_class(object)});
        affinity::write_out_label_keys(object);
        if !items(object, "/spec/schedulingGates").is_empty() {
            set_condition(
                object,
                json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                       "message": "Scheduling is blocked due to non-empty scheduling gates"}),
            );
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validation::pod(errors, object);
        // At generation 1 nothing was added since the creation, so no ephemeral container either.
        if object.pointer("/metadata/generation") == Some(&json!(1)) {
            validation::created(errors, object);
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        update::validate(errors, object, current);
    }

    fn prepare_status(&self, object: &mut Value, current: &Value) {
        update::prepare_status(object, current);
    }

    fn validate_status(&self, object: &Value, current: &Value, errors: &mut Errors) {
        update::validate_status(errors, object, current);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        let wrong = is_dns1123_label(name(object));
        if !wrong.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
                 recommended: [{}]",
                wrong.join(" ")
            ));
        }
        warnings.extend(spec_warnings(object, "spec"));
        warnings
    }

    fn grace(&self, current: &Value, asked: Option<i64>) -> Option<i64> {
        let own = current
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_i64);
        let seconds = asked.or(own).unwrap_or_default();
        let unbound = text(current, "/spec/nodeName").is_empty();
        let ended = matches!(text(current, "/status/phase"), "Succeeded" | "Failed");
        Some(match seconds {
            _ if unbound || ended => 0,
            below if below < 0 => 1,
            seconds => seconds,
        })
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        printing::cells(object, now())
    }
}

/// What is allowed and probably not meant; `object` holds `spec`, which messages call `path`.
pub(crate) fn spec_warnings(object: &Value, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, secret) in items(object, "/spec/imagePullSecrets").iter().enumerate() {
        let name = text(secret, "/name");
        if name.is_empty() {
            warnings.push(format!(
                "{path}.imagePullSecrets[{index}].name: invalid empty name \"\""
            ));
        } else if !seen.insert(name) {
            warnings.push(format!(
                "{path}.imagePullSecrets[{index}].name: duplicate name {name:?}"
            ));
        }
    }
    for volume in items(object, "/spec/volumes") {
        let sources = items(volume, "/projected/sources");
        if sources
            .iter()
            .any(|source| source.as_object().is_none_or(serde_json::Map::is_empty))
        {
            warnings.push(format!(
                "volume {:?} (Projected) has no sources provided",
                text(volume, "/name")
            ));
        }
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in items(object, &format!("/spec/{list}")).iter().enumerate() {
            fractions(&mut warnings, container, &format!("{path}.{list}[{index}]"));
            hidden_variables(&mut warnings, container, &format!("{path}.{list}[{index}]"));
        }
    }
    let grace = object
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_i64);
    if grace.is_some_and(|seconds| seconds < 0) {
        warnings.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    warnings
}

/// A part of a byte is none.
fn fractions(warnings: &mut Vec<String>, container: &Value, path: &str) {
    for list in ["limits", "requests"] {
        for name in ["ephemeral-storage", "memory"] {
            let amount = text(container, &format!("/resources/{list}/{name}"));
            if amount.ends_with('m') {
                warnings.push(format!(
                    "{path}.resources.{list}[{name}]: fractional byte value {amount:?} is invalid, must be an integer"
                ));
            }
        }
    }
}

fn hidden_variables(warnings: &mut Vec<String>, container: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (index, variable) in items(container, "/env").iter().enumerate() {
        let name = text(variable, "/name");
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let value = text(variable, "/value");
        if variable.get("valueFrom").is_some() || value == reference || !value.contains(&reference) {
            warnings.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bound_and_unfinished_pod_gets_time_to_end() {
        let mut pod = json!({"spec": {"terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        assert_eq!(Pods.grace(&pod, None), Some(0));
        pod["spec"]["nodeName"] = json!("n");
        assert_eq!(Pods.grace(&pod, None), Some(30));
        assert_eq!(Pods.grace(&pod, Some(5)), Some(5));
        assert_eq!(Pods.grace(&pod, Some(-1)), Some(1));
        pod["status"]["phase"] = json!("Failed");
        assert_eq!(Pods.grace(&pod, Some(5)), Some(0));
    }

    #[test]
    fn a_new_pod_is_pending_and_of_some_quality() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"schedulingGates": [{"name": "g"}]}});
        Pods.prepare_create(&mut pod);
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["qosClass"], "BestEffort");
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
    }

    #[test]
    fn cells_and_columns_are_as_many() {
        let pod = json!({"spec": {"containers": []}});
        assert_eq!(Pods.cells(&pod).len(), ROWS[0].columns.len());
    }

    #[test]
    fn a_variable_defined_twice_is_warned_about() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)x"}]);
        let pod = json!({"metadata": {"name": "a.b"}, "spec": {"containers": [{"env": env}]}});
        let warnings = Pods.warnings(&pod);
        assert_eq!(warnings.len(), 2);
        assert!(warnings[1].starts_with("spec.containers[0].env[1]: hides previous definition of \"A\""));
    }
}
