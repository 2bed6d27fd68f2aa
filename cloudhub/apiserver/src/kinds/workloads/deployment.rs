//! Deployment and ReplicaSet.

use serde_json::{Value, json};

use super::template::{self, amount, number};
use crate::kinds::Strategy;
use crate::kinds::fields::At;
use crate::kinds::pods::default_template;
use crate::object::{default, map};
use crate::status::Errors;

const THAN_REPLICAS: &str = "cannot be greater than status.replicas";
const THAN_READY: &str = "cannot be greater than readyReplicas";

/// Fills in the template of `spec`.
pub(super) fn fill_template(object: &mut Value) {
    let spec = map(object, "spec");
    let slot = spec.entry("template").or_insert_with(|| json!({}));
    if slot.is_null() {
        *slot = json!({});
    }
    map(slot, "metadata");
    default_template(slot);
}

#[derive(Debug)]
pub(super) struct Deployments;

impl Strategy for Deployments {
    fn annotations_count(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let spec = map(object, "spec");
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        default(spec, "progressDeadlineSeconds", 600);
        let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
        rolling(
            strategy,
            &[("maxUnavailable", json!("25%")), ("maxSurge", json!("25%"))],
        );
        fill_template(object);
        map(object, "status");
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = At::root(object).child("spec");
        spec.child("replicas").non_negative(errors);
        template::validate(errors, &spec, "Deployment");
        deployment_strategy(errors, &spec.child("strategy"));
        for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            spec.child(field).non_negative(errors);
        }
        let deadline = spec.child("progressDeadlineSeconds");
        let ready = spec.child("minReadySeconds").number().unwrap_or_default();
        if deadline.number().is_some_and(|seconds| seconds <= ready) {
            deadline.invalid(errors, "must be greater than minReadySeconds");
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        template::validate_update(errors, object, current);
    }

    fn validate_status(&self, object: &Value, current: &Value, errors: &mut Errors) {
        let counts = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ];
        let more = [
            ("updatedReplicas", "replicas", THAN_REPLICAS),
            ("readyReplicas", "replicas", THAN_REPLICAS),
            ("availableReplicas", "replicas", THAN_REPLICAS),
            ("availableReplicas", "readyReplicas", THAN_READY),
        ];
        template::status_counts(errors, &At::root(object).child("status"), &counts, &more);
        template::collisions(errors, object, current);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(object, true)
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let ready = number(object, "/status/readyReplicas");
        let mut cells = vec![
            json!(format!("{ready}/{}", number(object, "/spec/replicas"))),
            json!(number(object, "/status/updatedReplicas")),
            json!(number(object, "/status/availableReplicas")),
        ];
        cells.extend(template::wide_cells(object, ""));
        cells
    }
}

/// Fills in a strategy of updates: its type, and the numbers of a rolling one.
pub(super) fn rolling(strategy: &mut Value, numbers: &[(&str, Value)]) {
    if !strategy.is_object() {
        *strategy = json!({});
    }
    let kind = strategy.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        strategy["type"] = json!("RollingUpdate");
    }
    if strategy["type"] == "RollingUpdate" {
        let rolling = map(strategy, "rollingUpdate");
        for (field, value) in numbers {
            default(rolling, field, value.clone());
        }
    }
}

/// A strategy as the real server shows one whose type it does not know.
pub(super) fn unknown_strategy(kind: &str) -> Value {
    json!({"Type": kind, "RollingUpdate": null})
}

fn deployment_strategy(errors: &mut Errors, at: &At) {
    let rolling = at.child("rollingUpdate");
    match at.child("type").text() {
        "Recreate" => {
            if rolling.is_set() {
                rolling.forbidden(errors, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            template::number_or_percent(errors, &unavailable);
            template::number_or_percent(errors, &surge);
            if amount(unavailable.value) == 0 && amount(surge.value) == 0 {
                unavailable.invalid(errors, "may not be 0 when `maxSurge` is 0");
            }
            template::at_most_all(errors, &unavailable);
        }
        kind => errors.not_supported(&at.path, &unknown_strategy(kind), &["Recreate", "RollingUpdate"]),
    }
}

#[derive(Debug)]
pub(super) struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        default(map(object, "spec"), "replicas", 1);
        fill_template(object);
        default(map(object, "status"), "replicas", 0);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = At::root(object).child("spec");
        spec.child("replicas").non_negative(errors);
        spec.child("minReadySeconds").non_negative(errors);
        template::validate(errors, &spec, "ReplicaSet");
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        template::validate_update(errors, object, current);
    }

    fn validate_status(&self, object: &Value, _current: &Value, errors: &mut Errors) {
        let counts = [
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ];
        let more = [
            ("fullyLabeledReplicas", "replicas", THAN_REPLICAS),
            ("readyReplicas", "replicas", THAN_REPLICAS),
            ("availableReplicas", "replicas", THAN_REPLICAS),
            ("availableReplicas", "readyReplicas", THAN_READY),
        ];
        template::status_counts(errors, &At::root(object).child("status"), &counts, &more);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(object, true)
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let mut cells = vec![
            json!(number(object, "/spec/replicas")),
            json!(number(object, "/status/replicas")),
            json!(number(object, "/status/readyReplicas")),
        ];
        cells.extend(template::wide_cells(object, "<none>"));
        cells
    }
}
