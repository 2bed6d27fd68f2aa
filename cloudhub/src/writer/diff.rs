//! Whether the API's status already says what an edge reports.

use serde_json::{Map, Value, json};

/// Condition fields that only say when something was looked at.
const TIMES: [&str; 3] = ["lastProbeTime", "lastHeartbeatTime", "lastTransitionTime"];

/// Whether everything that `reported` says stands in `actual`. What only the API has is not looked at: other writers'
/// conditions, defaults.
pub fn says(actual: &Value, reported: &Value) -> bool {
    match (actual, reported) {
        (Value::Object(actual), Value::Object(reported)) => {
            reported.iter().all(|(field, value)| match field.as_str() {
                "conditions" => conditions(actual.get(field), value),
                _ => says(actual.get(field).unwrap_or(&Value::Null), value),
            })
        }
        (Value::Array(actual), Value::Array(reported)) => {
            actual.len() == reported.len() && actual.iter().zip(reported).all(|(a, r)| says(a, r))
        }
        // The API leaves out what is empty.
        (Value::Null, reported) => is_empty(reported),
        (actual, reported) => actual == reported,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

fn conditions(actual: Option<&Value>, reported: &Value) -> bool {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let actual = list(actual);
    list(Some(reported)).iter().all(|condition| {
        let same = actual.iter().find(|a| a["type"] == condition["type"]);
        same.is_some_and(|same| {
            let fields = condition.as_object().into_iter().flatten();
            fields
                .filter(|(name, _)| !TIMES.contains(&name.as_str()))
                .all(|(name, value)| says(&same[name], value))
        })
    })
}

/// The strategic merge patch of a pod's status. The pod's addresses are replaced as a whole, not merged.
pub fn pod_patch(uid: &str, status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(Value::Array(addresses)) = status.get_mut("podIPs") {
        addresses.push(json!({"$patch": "replace"}));
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

/// The pod's tolerations with no time limit for an absent node, or `None` when they have none.
pub fn patient_tolerations(pod: &Value) -> Option<Value> {
    let patient = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let mut changed = false;
    let tolerations: Vec<Value> = pod["spec"]["tolerations"]
        .as_array()?
        .iter()
        .map(|toleration| {
            let mut fields: Map<String, Value> = toleration.as_object().cloned().unwrap_or_default();
            let key = fields.get("key").and_then(Value::as_str).unwrap_or_default();
            if patient.contains(&key) && fields.shift_remove("tolerationSeconds").is_some() {
                changed = true;
            }
            Value::Object(fields)
        })
        .collect();
    changed.then_some(Value::Array(tolerations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_writers_conditions_and_times_do_not_count() {
        let actual = json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z", "lastProbeTime": null},
            {"type": "Other", "status": "True"}]});
        let reported = json!({"phase": "Running", "message": "", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-02-02T00:00:00Z"}]});
        assert!(says(&actual, &reported));
        let mut away = actual.clone();
        away["conditions"][0]["status"] = "False".into();
        assert!(!says(&away, &reported));
        away["conditions"] = json!([]);
        assert!(!says(&away, &reported));
    }

    #[test]
    fn container_statuses_are_compared_one_by_one() {
        let actual =
            json!({"containerStatuses": [{"name": "a", "restartCount": 0, "lastState": {}, "state": {"running": {}}}]});
        assert!(says(
            &actual,
            &json!({"containerStatuses": [{"name": "a", "restartCount": 0}]})
        ));
        assert!(!says(
            &actual,
            &json!({"containerStatuses": [{"name": "a", "restartCount": 1}]})
        ));
        assert!(!says(
            &actual,
            &json!({"containerStatuses": [{"name": "a"}, {"name": "b"}]})
        ));
    }

    #[test]
    fn only_the_limits_for_absent_nodes_are_dropped_and_only_once() {
        let pod = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "mine", "tolerationSeconds": 7}]}});
        let patched = patient_tolerations(&pod).unwrap();
        assert_eq!(
            patched,
            json!([
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
            {"key": "mine", "tolerationSeconds": 7}])
        );
        assert!(patient_tolerations(&json!({"spec": {"tolerations": patched}})).is_none());
    }
}
