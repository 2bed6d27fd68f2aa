//! `metav1.LabelSelector`: how `kubectl` and the subresource `scale` write it.

use serde_json::{Map, Value};

use crate::object::{items, text};

fn operator(requirement: &Value) -> &str {
    text(requirement, "/operator")
}

/// Whether the selector says nothing.
pub(crate) fn is_empty_selector(selector: &Value) -> bool {
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    labels.is_none_or(Map::is_empty) && items(selector, "/matchExpressions").is_empty()
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
    fn a_selector_is_written_as_kubectl_reads_it() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["db"]},
            {"key": "old", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(Some(&selector)), "app=web,!old,tier notin (db)");
        assert_eq!(labels_text(None), "<none>");
    }
}
