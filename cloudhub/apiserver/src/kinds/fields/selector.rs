//! `metav1.LabelSelector`: which labels it matches, and how `kubectl` and the subresource `scale` write it.

use serde_json::{Map, Value};

use super::{is_label_value, is_qualified_name};
use crate::object::{items, text};

fn operator(requirement: &Value) -> &str {
    text(requirement, "/operator")
}

/// Whether the selector can be evaluated at all.
pub(crate) fn is_selector(selector: &Value) -> bool {
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    let sound = |(key, value): (&String, &Value)| {
        is_qualified_name(key).is_empty() && is_label_value(value.as_str().unwrap_or_default()).is_empty()
    };
    if !labels.into_iter().flatten().all(sound) {
        return false;
    }
    items(selector, "/matchExpressions").iter().all(|requirement| {
        let values = !items(requirement, "/values").is_empty();
        match operator(requirement) {
            "In" | "NotIn" => values,
            "Exists" | "DoesNotExist" => !values,
            _ => false,
        }
    })
}

/// Whether the selector says nothing.
pub(crate) fn is_empty_selector(selector: &Value) -> bool {
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    labels.is_none_or(Map::is_empty) && items(selector, "/matchExpressions").is_empty()
}

/// Whether `labels` match. No selector matches nothing, an empty one everything.
pub(crate) fn selector_matches(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let Some(selector) = selector.filter(|s| !s.is_null()) else {
        return false;
    };
    let has = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let equal = wanted
        .into_iter()
        .flatten()
        .all(|(key, value)| has(key) == value.as_str());
    equal
        && items(selector, "/matchExpressions").iter().all(|requirement| {
            let value = has(text(requirement, "/key"));
            let among = value.is_some_and(|v| items(requirement, "/values").iter().any(|w| w.as_str() == Some(v)));
            match operator(requirement) {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// `app=web,tier in (a,b)`; "" for no selector.
pub(crate) fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else {
        return String::new();
    };
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in selector
        .get("matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        parts.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for requirement in items(selector, "/matchExpressions") {
        let key = text(requirement, "/key");
        let mut values: Vec<&str> = items(requirement, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let words = match operator(requirement) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), words));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let words: Vec<String> = parts.into_iter().map(|(_, words)| words).collect();
    words.join(",")
}

/// `a=b,c=d` sorted, `<none>` for none: a map of labels in a table.
pub(crate) fn labels_text(labels: Option<&Value>) -> String {
    let mut pairs: Vec<String> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() {
        return "<none>".into();
    }
    pairs.sort_unstable();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_selector_matches_labels_as_the_real_one() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["db"]},
            {"key": "old", "operator": "DoesNotExist"}]});
        assert!(selector_matches(Some(&selector), Some(&json!({"app": "web"}))));
        assert!(!selector_matches(
            Some(&selector),
            Some(&json!({"app": "web", "tier": "db"}))
        ));
        assert!(!selector_matches(
            Some(&selector),
            Some(&json!({"app": "web", "old": ""}))
        ));
        assert!(!selector_matches(Some(&selector), None));
        assert!(!selector_matches(None, Some(&json!({"app": "web"}))));
        assert!(selector_matches(Some(&json!({})), None));
        assert_eq!(selector_text(Some(&selector)), "app=web,!old,tier notin (db)");
        assert_eq!(labels_text(None), "<none>");
    }
}
