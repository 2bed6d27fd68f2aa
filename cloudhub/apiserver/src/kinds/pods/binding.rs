//! The subresource `binding`: a scheduler says on which node a pod is to run.

use serde_json::{Value, json};

use crate::object::{self, is_deleting, items, map, metadata, name, now, text};
use crate::status::Status;

/// Binds `pod` to the target of `binding`. Generation stays, as on the real server; the uid and resourceVersion that a binding
/// may carry are preconditions for the caller to check.
///
/// # Errors
/// A target that is no node (500, as the real server has it), and 409 for a pod that is bound, gated or being deleted.
pub(crate) fn bind(pod: &mut Value, binding: &Value) -> Result<(), Status> {
    let (kind, node) = (text(binding, "/target/kind"), text(binding, "/target/name"));
    if !matches!(kind, "" | "Node") {
        let words = format!("target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\"");
        return Err(Status::new(500, "", words));
    }
    if node.is_empty() {
        return Err(Status::new(500, "", "target.name: Required value"));
    }
    let pod_name = name(pod).to_owned();
    let bound = text(pod, "/spec/nodeName");
    let refusal = if is_deleting(pod) {
        Some(format!("pod {pod_name} is being deleted, cannot be assigned to a host"))
    } else if !bound.is_empty() {
        Some(format!("pod {pod_name} is already assigned to node {bound:?}"))
    } else if !items(pod, "/spec/schedulingGates").is_empty() {
        Some(format!("pod {pod_name} has non-empty .spec.schedulingGates"))
    } else {
        None
    };
    if let Some(why) = refusal {
        return Err(Status::conflict("", "pods/binding", &pod_name, &why));
    }
    map(pod, "spec").insert("nodeName".into(), json!(node));
    map(pod, "status").shift_remove("nominatedNodeName");
    for field in ["annotations", "labels"] {
        let Some(said) = binding
            .pointer(&format!("/metadata/{field}"))
            .and_then(Value::as_object)
        else {
            continue;
        };
        let slot = metadata(pod).entry(field).or_insert_with(|| json!({}));
        if let Some(own) = slot.as_object_mut() {
            own.extend(said.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    set_condition(pod, json!({"type": "PodScheduled", "status": "True"}));
    Ok(())
}

/// Puts a condition into the status of a pod. Its time of transition is now, unless `status` was the same before.
pub(crate) fn set_condition(pod: &mut Value, mut condition: Value) {
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = json!(object::timestamp(now()));
    let list = map(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let kind = condition["type"].clone();
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(before) => {
            if before["status"] == condition["status"] {
                condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
            }
            *before = condition;
        }
        None => list.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_pod_has_its_node_and_the_condition() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"nominatedNodeName": "x", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
        let binding =
            json!({"metadata": {"name": "p", "annotations": {"a": "b"}}, "target": {"kind": "Node", "name": "n"}});
        bind(&mut pod, &binding).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert!(pod["status"].get("nominatedNodeName").is_none());
        let condition = &pod["status"]["conditions"][0];
        assert_eq!(condition["status"], "True");
        assert!(condition.get("reason").is_none());
        let refusal = bind(&mut pod, &binding).unwrap_err();
        assert_eq!(refusal.code, 409);
        assert_eq!(
            refusal.message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
        );
    }

    #[test]
    fn a_pod_that_goes_is_bound_no_more() {
        let mut pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        let refusal = bind(&mut pod, &json!({"target": {"name": "n"}})).unwrap_err();
        assert!(
            refusal
                .message
                .ends_with("pod p is being deleted, cannot be assigned to a host")
        );
        assert_eq!(bind(&mut pod, &json!({"target": {}})).unwrap_err().code, 500);
    }
}
