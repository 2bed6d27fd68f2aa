//! What Deployment, ReplicaSet and DaemonSet have in common: a selector and the template of its pods.

use serde_json::{Value, json};

use crate::kinds::fields::{At, is_dns1123_label, is_empty_selector, is_percent, label_selector, selector_text};
use crate::kinds::pods::{same, spec_warnings, validate_template};
use crate::object::{items, name, text};
use crate::selector::Labels;
use crate::status::Errors;

/// Checks `spec.selector`, `spec.template` and that they belong together. `kind` is how messages call it.
pub(super) fn validate(errors: &mut Errors, spec: &At, kind: &str) {
    let (selector, template) = (spec.child("selector"), spec.child("template"));
    if selector.is_set() {
        label_selector(errors, &selector.path, Some(selector.value));
        if is_empty_selector(selector.value) {
            // ReplicaSets are called deployments here by the real server too.
            let word = if kind == "DaemonSet" { "daemonset" } else { "deployment" };
            selector.invalid(errors, &format!("empty selector is invalid for {word}"));
        }
    } else if kind != "DaemonSet" {
        selector.required(errors, "");
    }
    let chosen = Labels::of_object(selector.value);
    if chosen.is_err() && kind != "DaemonSet" {
        selector.invalid(errors, "invalid label selector");
        return;
    }
    let labels = template.down(&["metadata", "labels"]);
    // An absent selector matches nothing; an empty one was named above.
    let judged = !(selector.is_set() && is_empty_selector(selector.value));
    if judged && chosen.is_ok_and(|chosen| !chosen.matches_map(Some(labels.value))) {
        let shown = if labels.is_set() {
            labels.value.clone()
        } else {
            Value::Null
        };
        errors.invalid(&labels.path, &shown, "`selector` does not match template `labels`");
    }
    validate_template(errors, &template);
    let policy = template.down(&["spec", "restartPolicy"]);
    policy.one_of(errors, &["Always"]);
    let deadline = template.down(&["spec", "activeDeadlineSeconds"]);
    if deadline.is_set() {
        let word = if kind == "DaemonSet" { "DaemonSet" } else { "ReplicaSet" };
        deadline.forbidden(errors, &format!("activeDeadlineSeconds in {word} is not Supported"));
    }
}

/// The selector may not change.
pub(super) fn validate_update(errors: &mut Errors, object: &Value, current: &Value) {
    let selector = At::root(object).down(&["spec", "selector"]);
    let before = current.pointer("/spec/selector").cloned().unwrap_or_default();
    if !same(selector.value, &before) {
        errors.invalid(&selector.path, selector.value, "field is immutable");
    }
}

/// A number that is not negative, or a percentage.
pub(crate) fn number_or_percent(errors: &mut Errors, at: &At) {
    match at.value {
        Value::String(text) => at.complain(errors, is_percent(text)),
        _ => at.non_negative(errors),
    }
}

/// What a number or percentage says, without the sign.
pub(super) fn amount(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.trim_end_matches('%').parse().unwrap_or_default(),
        number => number.as_i64().unwrap_or_default(),
    }
}

/// Where it is a percentage, it is at most the whole.
pub(crate) fn at_most_all(errors: &mut Errors, at: &At) {
    if is_percent(at.text()).is_empty() && amount(at.value) > 100 {
        at.invalid(errors, "must not be greater than 100%");
    }
}

/// Counts in a status may not be negative, nor more than another count.
pub(super) fn status_counts(errors: &mut Errors, status: &At, counts: &[&str], more: &[(&str, &str, &str)]) {
    for count in counts {
        status.child(count).non_negative(errors);
    }
    for (less, more, words) in more {
        let number = |field: &str| status.child(field).number().unwrap_or_default();
        if number(less) > number(more) {
            status.child(less).invalid(errors, words);
        }
    }
}

/// `collisionCount` only grows.
pub(super) fn collisions(errors: &mut Errors, object: &Value, current: &Value) {
    let at = At::root(object).down(&["status", "collisionCount"]);
    let before = current.pointer("/status/collisionCount").and_then(Value::as_i64);
    if before.is_some_and(|before| at.number().unwrap_or_default() < before) {
        errors.invalid(
            &at.path,
            &json!(at.number().unwrap_or_default()),
            "cannot be decremented",
        );
    }
}

/// Warnings about the object's name and template.
pub(super) fn warnings(object: &Value, named: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let wrong = is_dns1123_label(name(object));
    if named && !wrong.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            wrong.join(" ")
        ));
    }
    if let Some(template) = object.pointer("/spec/template") {
        warnings.extend(spec_warnings(template, "spec.template.spec"));
    }
    warnings
}

/// The number at a JSON pointer, or 0.
pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// Containers, Images, Selector: the columns of `-o wide`.
pub(super) fn wide_cells(object: &Value, empty_selector: &str) -> [Value; 3] {
    let containers = items(object, "/spec/template/spec/containers");
    let list = |pointer: &str| {
        let texts: Vec<&str> = containers.iter().map(|c| text(c, pointer)).collect();
        json!(texts.join(","))
    };
    let selector = selector_text(object.pointer("/spec/selector"));
    let selector = if selector.is_empty() {
        empty_selector.to_owned()
    } else {
        selector
    };
    [list("/name"), list("/image"), json!(selector)]
}
