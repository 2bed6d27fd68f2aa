//! Whether the wishes for a place make sense: affinity, spreading, tolerations.

use serde_json::{Value, json};

use crate::kinds::fields::{
    At, is_dns1123_label, is_dns1123_subdomain, is_label_value, is_qualified_name, label_selector,
};
use crate::object::items;
use crate::status::Errors;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Writes out `matchLabelKeys` and `mismatchLabelKeys` of a new pod: its own values become requirements of the selectors.
pub(super) fn write_out_label_keys(pod: &mut Value) {
    let labels = pod.pointer("/metadata/labels").cloned().unwrap_or_default();
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (list, inner) in [(REQUIRED, ""), (PREFERRED, "/podAffinityTerm")] {
            let list = pod.pointer_mut(&format!("/spec/affinity/{kind}/{list}"));
            for term in list.and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(term) = term.pointer_mut(inner) {
                    write_out(term, &labels);
                }
            }
        }
    }
    let constraints = pod.pointer_mut("/spec/topologySpreadConstraints");
    for constraint in constraints.and_then(Value::as_array_mut).into_iter().flatten() {
        write_out(constraint, &labels);
    }
}

fn write_out(term: &mut Value, labels: &Value) {
    let mut requirements = Vec::new();
    for (field, operator) in [("/matchLabelKeys", "In"), ("/mismatchLabelKeys", "NotIn")] {
        for key in items(term, field).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                requirements.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    // No selector matches nothing, with or without more requirements.
    let Some(selector) = term.get_mut("labelSelector").and_then(Value::as_object_mut) else {
        return;
    };
    if !requirements.is_empty() {
        let list = selector.entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(requirements);
        }
    }
}

/// Checks `affinity`.
pub(super) fn validate(errors: &mut Errors, at: &At) {
    let node = at.child("nodeAffinity");
    if let Some(required) = node.child(REQUIRED).set() {
        node_selector(errors, &required);
    }
    for term in node.child(PREFERRED).items() {
        weight(errors, &term);
        node_term(errors, &term.child("preference"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pod = at.child(kind);
        for term in pod.child(REQUIRED).items() {
            pod_term(errors, &term);
        }
        for term in pod.child(PREFERRED).items() {
            weight(errors, &term);
            pod_term(errors, &term.child("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut Errors, term: &At) {
    let weight = term.child("weight");
    let number = weight.number().unwrap_or_default();
    if !(1..=100).contains(&number) {
        errors.invalid(&weight.path, &json!(number), "must be in the range 1-100");
    }
}

fn node_selector(errors: &mut Errors, at: &At) {
    let terms = at.child("nodeSelectorTerms");
    if terms.items().next().is_none() {
        terms.required(errors, "must have at least one node selector term");
    }
    terms.items().for_each(|term| node_term(errors, &term));
}

fn node_term(errors: &mut Errors, term: &At) {
    for requirement in term.child("matchExpressions").items() {
        node_requirement(errors, &requirement);
    }
    for requirement in term.child("matchFields").items() {
        node_field(errors, &requirement);
    }
}

fn node_requirement(errors: &mut Errors, at: &At) {
    let (operator, values) = (at.child("operator"), at.child("values"));
    let count = values.items().count();
    match operator.text() {
        "In" | "NotIn" if count == 0 => {
            values.required(errors, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            values.forbidden(
                errors,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        "Gt" | "Lt" if count != 1 => {
            values.required(errors, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => operator.invalid(errors, "not a valid selector operator"),
    }
    at.child("key")
        .complain(errors, is_qualified_name(at.child("key").text()));
    for value in values.items() {
        value.complain(errors, is_label_value(value.text()));
    }
}

fn node_field(errors: &mut Errors, at: &At) {
    let (operator, values, key) = (at.child("operator"), at.child("values"), at.child("key"));
    match operator.text() {
        "In" | "NotIn" if values.items().count() != 1 => {
            let words = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            values.required(errors, words);
        }
        "In" | "NotIn" => {}
        _ => operator.invalid(errors, "not a valid selector operator"),
    }
    if key.text() == "metadata.name" {
        for value in values.items() {
            value.complain(errors, is_dns1123_subdomain(value.text()));
        }
    } else {
        key.invalid(errors, "not a valid field selector key");
    }
}

fn pod_term(errors: &mut Errors, at: &At) {
    for selector in ["labelSelector", "namespaceSelector"] {
        let selector = at.child(selector);
        label_selector(errors, &selector.path, selector.clone().set().map(|s| s.value));
    }
    for namespace in at.child("namespaces").items() {
        let place = At::new(namespace.value, format!("{}.namespace", at.path));
        place.complain(errors, is_dns1123_label(namespace.text()));
    }
    let key = at.child("topologyKey");
    if key.text().is_empty() {
        key.required(errors, "can not be empty");
    }
    key.complain(errors, is_qualified_name(key.text()));
}

/// What two constraints may not have in common.
fn spread_kind(constraint: &At) -> String {
    let text = |field: &str| constraint.child(field).text();
    format!("{{{}, {}}}", text("topologyKey"), text("whenUnsatisfiable"))
}

/// Checks `topologySpreadConstraints`.
pub(super) fn spread(errors: &mut Errors, list: &At) {
    let kinds: Vec<String> = list.items().map(|c| spread_kind(&c)).collect();
    for (index, constraint) in list.items().enumerate() {
        let skew = constraint.child("maxSkew");
        if skew.number().unwrap_or_default() <= 0 {
            errors.invalid(
                &skew.path,
                &json!(skew.number().unwrap_or_default()),
                "must be greater than zero",
            );
        }
        let (key, action) = (constraint.child("topologyKey"), constraint.child("whenUnsatisfiable"));
        if key.text().is_empty() {
            key.required(errors, "can not be empty");
        }
        action.one_of(errors, &["DoNotSchedule", "ScheduleAnyway"]);
        let kind = spread_kind(&constraint);
        if kinds.iter().skip(index + 1).any(|other| *other == kind) {
            let path = format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path);
            errors.duplicate(path, &json!(kind));
        }
        let domains = constraint.child("minDomains");
        if domains.number().is_some_and(|n| n <= 0) {
            domains.invalid(errors, "must be greater than zero");
        }
        if domains.is_set() && action.text() != "DoNotSchedule" {
            let words = format!(
                "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                action.text()
            );
            domains.invalid(errors, &words);
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = constraint.child(policy).set() {
                policy.one_of(errors, &["Honor", "Ignore"]);
            }
        }
        let selector = constraint.child("labelSelector");
        label_selector(errors, &selector.path, selector.clone().set().map(|s| s.value));
    }
}

/// Checks `tolerations`.
pub(super) fn tolerations(errors: &mut Errors, list: &At) {
    for toleration in list.items() {
        let field = |name: &str| toleration.child(name);
        let (key, operator, value, effect) = (field("key"), field("operator"), field("value"), field("effect"));
        key.checked(errors, is_qualified_name);
        if key.text().is_empty() && operator.text() != "Exists" {
            let words = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            operator.invalid(errors, words);
        }
        if field("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            effect.invalid(errors, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.text() {
            "" | "Equal" => {
                let wrong = is_label_value(value.text());
                if !wrong.is_empty() {
                    errors.invalid(&operator.path, &json!(value.text()), &wrong.join(";"));
                }
            }
            "Exists" => {
                if !value.text().is_empty() {
                    errors.invalid(
                        &operator.path,
                        value.value,
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            // The real server names them among the supported while it has them switched off.
            "Lt" | "Gt" => errors.not_supported(&operator.path, operator.value, &["Equal", "Exists", "Lt", "Gt"]),
            _ => operator.one_of(errors, &["Equal", "Exists"]),
        }
        if !effect.text().is_empty() {
            effect.one_of(errors, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_to_match_become_requirements_with_the_pods_own_values() {
        let mut pod = json!({"metadata": {"labels": {"pod-template-hash": "1"}}, "spec": {
            "affinity": {"podAntiAffinity": {REQUIRED: [
                {"labelSelector": {}, "matchLabelKeys": ["pod-template-hash", "absent"]}]}},
            "topologySpreadConstraints": [{"matchLabelKeys": ["pod-template-hash"]}]}});
        write_out_label_keys(&mut pod);
        let term = &pod["spec"]["affinity"]["podAntiAffinity"][REQUIRED][0];
        assert_eq!(
            term["labelSelector"]["matchExpressions"],
            json!([{"key": "pod-template-hash", "operator": "In", "values": ["1"]}])
        );
        let constraint = &pod["spec"]["topologySpreadConstraints"][0];
        assert!(constraint.get("labelSelector").is_none());
    }

    #[test]
    fn wishes_for_a_place_are_checked() {
        let affinity = json!({"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}, PREFERRED: [
            {"weight": 0, "preference": {"matchFields": [{"key": "a", "operator": "In", "values": ["x"]}]}}]},
            "podAffinity": {REQUIRED: [{"topologyKey": ""}]}});
        let mut errors = Errors::default();
        validate(&mut errors, &At::new(&affinity, "a"));
        let words: Vec<&str> = errors.causes().iter().map(|c| c.message.as_str()).collect();
        assert_eq!(words[0], "Required value: must have at least one node selector term");
        assert_eq!(words[1], "Invalid value: 0: must be in the range 1-100");
        assert_eq!(words[2], "Invalid value: \"a\": not a valid field selector key");
        assert_eq!(words[3], "Required value: can not be empty");
    }

    #[test]
    fn two_constraints_of_one_kind_are_one_too_many() {
        let constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
        let list = json!([constraint, constraint]);
        let mut errors = Errors::default();
        spread(&mut errors, &At::new(&list, "t"));
        assert_eq!(errors.causes().len(), 1);
        assert_eq!(errors.causes()[0].message, "Duplicate value: \"{zone, DoNotSchedule}\"");
    }
}
