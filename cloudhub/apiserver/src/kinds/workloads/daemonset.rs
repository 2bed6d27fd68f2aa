//! DaemonSet and ControllerRevision.

use serde_json::{Value, json};

use super::deployment::{fill_template, rolling, unknown_strategy};
use super::template::{self, amount, number};
use crate::kinds::Strategy;
use crate::kinds::fields::{At, labels_text};
use crate::kinds::pods::same;
use crate::object::{default, items, map, metadata, text};
use crate::status::Errors;

/// Where apps/v1 keeps the count of changes of the template, which its own fields no longer have.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Counts that a DaemonSet's status always has.
const COUNTS: [&str; 4] = [
    "currentNumberScheduled",
    "desiredNumberScheduled",
    "numberMisscheduled",
    "numberReady",
];

fn template_generation(object: &Value) -> i64 {
    let pointer = format!("/metadata/annotations/{TEMPLATE_GENERATION}");
    text(object, &pointer).parse().unwrap_or_default()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let slot = metadata(object).entry("annotations").or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot[TEMPLATE_GENERATION] = json!(generation.to_string());
}

#[derive(Debug)]
pub(super) struct DaemonSets;

impl Strategy for DaemonSets {
    fn default(&self, object: &mut Value) {
        let spec = map(object, "spec");
        default(spec, "revisionHistoryLimit", 10);
        let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
        rolling(strategy, &[("maxUnavailable", json!(1)), ("maxSurge", json!(0))]);
        fill_template(object);
        let status = map(object, "status");
        COUNTS.iter().for_each(|count| default(status, count, 0));
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = COUNTS.iter().map(|count| ((*count).to_owned(), json!(0))).collect();
        let said = template_generation(object);
        set_template_generation(object, said.max(1));
    }

    fn prepare_update(&self, object: &mut Value, current: &Value) {
        let before = template_generation(current);
        let changed = !same(&object["spec"]["template"], &current["spec"]["template"]);
        set_template_generation(object, before + i64::from(changed));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = At::root(object).child("spec");
        template::validate(errors, &spec, "DaemonSet");
        spec.child("minReadySeconds").non_negative(errors);
        update_strategy(errors, &spec.child("updateStrategy"));
        spec.child("revisionHistoryLimit").non_negative(errors);
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        template::validate_update(errors, object, current);
    }

    fn validate_status(&self, object: &Value, current: &Value, errors: &mut Errors) {
        let mut counts = COUNTS.to_vec();
        counts.extend([
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ]);
        template::status_counts(errors, &At::root(object).child("status"), &counts, &[]);
        template::collisions(errors, object, current);
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(object, false)
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let mut cells: Vec<Value> = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ]
        .iter()
        .map(|count| json!(number(object, &format!("/status/{count}"))))
        .collect();
        cells.push(json!(labels_text(object.pointer("/spec/template/spec/nodeSelector"))));
        cells.extend(template::wide_cells(object, "<none>"));
        cells
    }
}

fn update_strategy(errors: &mut Errors, at: &At) {
    match at.child("type").text() {
        "OnDelete" => return,
        "RollingUpdate" => {}
        kind => {
            errors.not_supported(&at.path, &unknown_strategy(kind), &["RollingUpdate", "OnDelete"]);
            return;
        }
    }
    let rolling = at.child("rollingUpdate");
    let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
    for field in [&unavailable, &surge] {
        template::number_or_percent(errors, field);
    }
    for field in [&unavailable, &surge] {
        template::at_most_all(errors, field);
    }
    match (amount(unavailable.value) != 0, amount(surge.value) != 0) {
        (true, true) => surge.invalid(errors, "may not be set when maxUnavailable is non-zero"),
        (false, false) => unavailable.required(errors, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

#[derive(Debug)]
pub(super) struct ControllerRevisions;

impl Strategy for ControllerRevisions {
    fn default(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            default(fields, "revision", 0);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        root.child("revision").non_negative(errors);
        let data = root.child("data");
        match data.value {
            Value::Null => data.required(errors, "data is mandatory"),
            Value::Object(_) => {}
            _ => data.required(errors, "data must be a valid JSON object"),
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        let data = At::root(object).child("data");
        if data.value != current.get("data").unwrap_or(&Value::Null) {
            errors.invalid("data", data.value, "field is immutable");
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let owners = items(object, "/metadata/ownerReferences");
        let owner = owners.iter().find(|o| o.get("controller") == Some(&json!(true)));
        let owner = owner.map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let kind = text(owner, "/kind").to_lowercase();
                match text(owner, "/apiVersion").split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "/name")),
                    None => format!("{kind}/{}", text(owner, "/name")),
                }
            },
        );
        vec![json!(owner), json!(number(object, "/revision"))]
    }
}
