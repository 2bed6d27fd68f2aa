//! Label and node selectors.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

type Labels = BTreeMap<String, String>;

/// Whether `selector` matches `labels`. An empty selector matches everything; callers for whom it must not, check first.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions
            .into_iter()
            .all(|e| holds(&e.operator, labels.get(&e.key), e.values.as_deref().unwrap_or_default()))
}

/// Whether `selector` selects nothing in particular.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

fn holds(operator: &str, value: Option<&String>, values: &[String]) -> bool {
    match operator {
        "In" => value.is_some_and(|v| values.contains(v)),
        "NotIn" => value.is_none_or(|v| !values.contains(v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => {
            let (Some(Ok(left)), Some(Ok(right))) = (
                value.map(|v| v.parse::<i64>()),
                values.first().map(|v| v.parse::<i64>()),
            ) else {
                return false;
            };
            if operator == "Gt" { left > right } else { left < right }
        }
        _ => false,
    }
}

/// Whether one of the selector's terms matches `node`; no terms match nothing.
pub(crate) fn matches_node(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node))
}

/// Whether every requirement of `term` holds for `node`; an empty term matches nothing.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let empty = Labels::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let by = |requirement: &NodeSelectorRequirement, value: Option<&String>| {
        holds(
            &requirement.operator,
            value,
            requirement.values.as_deref().unwrap_or_default(),
        )
    };
    expressions.iter().all(|e| by(e, labels.get(&e.key)))
        && fields
            .iter()
            .all(|f| f.key == "metadata.name" && by(f, node.metadata.name.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn selects(selector: Value, labels: Value) -> bool {
        matches(
            &serde_json::from_value(selector).expect("a selector"),
            &serde_json::from_value(labels).expect("labels"),
        )
    }

    #[test]
    fn every_operator_of_a_label_selector() {
        let labels = json!({"app": "web", "tier": "front"});
        let with = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        assert!(selects(json!({"matchLabels": {"app": "web"}}), labels.clone()));
        assert!(!selects(
            json!({"matchLabels": {"app": "web", "x": "y"}}),
            labels.clone()
        ));
        assert!(selects(with("In", &["db", "web"]), labels.clone()));
        assert!(!selects(with("NotIn", &["web"]), labels.clone()));
        assert!(selects(with("NotIn", &["web"]), json!({})));
        assert!(selects(with("Exists", &[]), labels.clone()));
        assert!(!selects(with("DoesNotExist", &[]), labels.clone()));
        assert!(selects(json!({}), labels));
    }

    #[test]
    fn node_terms_are_or_and_requirements_are_and() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"cpus": "8"}}})).expect("a node");
        let selector = |terms: Value| -> NodeSelector {
            serde_json::from_value(json!({"nodeSelectorTerms": terms})).expect("a node selector")
        };
        let name = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        let more = |than: &str| json!({"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": [than]}]});
        assert!(matches_node(&selector(json!([name("n1")])), &node));
        assert!(!matches_node(&selector(json!([name("n2")])), &node));
        assert!(matches_node(&selector(json!([name("n2"), more("4")])), &node));
        assert!(!matches_node(&selector(json!([more("8")])), &node));
        assert!(!matches_node(&selector(json!([{}])), &node));
    }
}
