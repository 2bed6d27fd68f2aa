//! What a pod may become: its few mutable fields, its status, its ephemeral containers.

use serde_json::{Value, json};

use super::{affinity, validation};
use crate::kinds::fields::{At, is_dns1123_subdomain, is_qualified_name};
use crate::object::{carry, items, map, text};
use crate::status::Errors;

/// Fields that an update may change, in the real server's words.
const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks an update of the pod itself.
pub(super) fn validate(errors: &mut Errors, object: &Value, current: &Value) {
    let spec = At::root(object).child("spec");
    for list in ["containers", "initContainers"] {
        let list_at = spec.child(list);
        if list_at.items().count() != items(current, &format!("/spec/{list}")).len() {
            list_at.forbidden(errors, "pod updates may not add or remove containers");
            return;
        }
    }
    if !deadline(errors, &spec.child("activeDeadlineSeconds"), current) {
        return;
    }
    tolerations(errors, &spec.child("tolerations"), items(current, "/spec/tolerations"));
    let gates = items(current, "/spec/schedulingGates");
    for gate in spec.child("schedulingGates").items() {
        let name = gate.child("name");
        if !gates.iter().any(|g| text(g, "/name") == name.text()) {
            let words = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                name.text()
            );
            name.forbidden(errors, &words);
        }
    }
    let (before, mut after) = (current["spec"].clone(), object["spec"].clone());
    if !gates.is_empty() {
        node_wishes(errors, &spec, &mut after, &before);
    }
    take_back_mutable(&mut after, &before);
    if !same(&after, &before) {
        let words = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            diff(&before, &after)
        );
        errors.forbidden("spec", &words);
    }
}

/// Whether the rest may be looked at.
fn deadline(errors: &mut Errors, at: &At, current: &Value) -> bool {
    let before = current.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64);
    match (at.number(), before) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            at.in_range(errors, 0, i64::from(i32::MAX));
            false
        }
        (Some(seconds), Some(before)) if before < seconds => {
            at.invalid(errors, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            errors.invalid(
                &at.path,
                &Value::Null,
                "must not update from a positive integer to nil value",
            );
            true
        }
        _ => true,
    }
}

fn tolerations(errors: &mut Errors, at: &At, before: &[Value]) {
    let bare = |toleration: &Value| {
        let mut bare = toleration.clone();
        if let Some(fields) = bare.as_object_mut() {
            fields.shift_remove("tolerationSeconds");
        }
        bare
    };
    let now: Vec<Value> = at.items().map(|t| bare(t.value)).collect();
    if before.iter().any(|old| !now.iter().any(|new| same(new, &bare(old)))) {
        at.forbidden(
            errors,
            "existing toleration can not be modified except its tolerationSeconds",
        );
        return;
    }
    affinity::tolerations(errors, at);
}

/// While it is gated, a pod's wishes for a node may become narrower.
fn node_wishes(errors: &mut Errors, spec: &At, after: &mut Value, before: &Value) {
    let selector = spec.child("nodeSelector");
    let old = before.get("nodeSelector").and_then(Value::as_object);
    let kept = old
        .into_iter()
        .flatten()
        .all(|(key, value)| selector.value.get(key) == Some(value));
    if !kept {
        let words = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        selector.invalid(errors, words);
    }
    carry(after, before, "nodeSelector");
    let wish = "/affinity/nodeAffinity";
    let none = Value::Null;
    let (old, new) = (
        before.pointer(wish).unwrap_or(&none),
        after.pointer(wish).unwrap_or(&none),
    );
    if same(old, new) {
        return;
    }
    node_terms(errors, new, old);
    // With the wish taken back, what is left of the affinity must be what it was.
    let affinity = map(after, "affinity");
    match before.pointer(wish) {
        Some(old) => affinity.insert("nodeAffinity".into(), old.clone()),
        None => affinity.shift_remove("nodeAffinity"),
    };
    if affinity.is_empty() && before.get("affinity").is_none() {
        carry(after, before, "affinity");
    }
}

/// Terms that a node must meet may only gain requirements.
fn node_terms(errors: &mut Errors, new: &Value, old: &Value) {
    let terms = "/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let (now, before) = (items(new, terms), items(old, terms));
    if !before.is_empty() && now.len() != before.len() {
        let words = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid(path, &json!(now), words);
        return;
    }
    for (index, (now, before)) in now.iter().zip(before).enumerate() {
        let lists = ["/matchExpressions", "/matchFields"];
        let grows = lists.iter().all(|list| {
            let (now, before) = (items(now, list), items(before, list));
            now.len() >= before.len() && now.iter().zip(before).all(|(a, b)| same(a, b))
        });
        let matched_nothing = lists.iter().all(|list| items(before, list).is_empty());
        let matches_more = lists.iter().any(|list| !items(now, list).is_empty());
        if !grows || matched_nothing && matches_more {
            let words = "only additions are allowed (no mutations or deletions)";
            errors.invalid(format!("{path}[{index}]"), now, words);
        }
    }
}

/// Makes the mutable fields of `after` what they were, so that what differs then may not.
fn take_back_mutable(after: &mut Value, before: &Value) {
    for list in ["containers", "initContainers"] {
        let old = items(before, &format!("/{list}"));
        let new = after.get_mut(list).and_then(Value::as_array_mut);
        for (new, old) in new.into_iter().flatten().zip(old) {
            carry(new, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        carry(after, before, field);
    }
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(before).is_some_and(|s| s < 0) && grace(after) == Some(1) {
        carry(after, before, "terminationGracePeriodSeconds");
    }
}

/// Whether two values are equal where empty and absent are the same.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let names = left.keys().chain(right.keys());
            let get = |map: &serde_json::Map<String, Value>, name: &str| map.get(name).cloned().unwrap_or_default();
            names.into_iter().all(|name| same(&get(left, name), &get(right, name)))
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(a, b)| same(a, b))
        }
        (Value::Null, Value::Array(list)) | (Value::Array(list), Value::Null) => list.is_empty(),
        _ => a == b,
    }
}

/// A unified diff of two objects, one hunk from the first to the last difference.
fn diff(before: &Value, after: &Value) -> String {
    let lines = |value: &Value| -> Vec<String> {
        let text = serde_json::to_string_pretty(&sorted(value)).unwrap_or_default();
        text.lines()
            .map(|line| {
                let bare = line.trim_start();
                format!("{}{bare}", " ".repeat((line.len() - bare.len()) / 2))
            })
            .collect()
    };
    let (a, b) = (lines(before), lines(after));
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let most = a.len().min(b.len()) - head;
    let tail = a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take(most)
        .take_while(|(x, y)| x == y)
        .count();
    let from = head.saturating_sub(3);
    let after_context = 3.min(tail);
    let (end_a, end_b) = (a.len() - tail, b.len() - tail);
    let mut out = format!(
        "@@ -{},{} +{},{} @@\n",
        from + 1,
        end_a + after_context - from,
        from + 1,
        end_b + after_context - from
    );
    let mut push = |mark: char, lines: &[String]| {
        for line in lines {
            out.push(mark);
            out.push_str(line);
            out.push('\n');
        }
    };
    push(' ', &a[from..head]);
    push('-', &a[head..end_a]);
    push('+', &b[head..end_b]);
    push(' ', &a[end_a..end_a + after_context]);
    out
}

/// With keys in order, so that only what differs shows.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut names: Vec<&String> = map.keys().collect();
            names.sort_unstable();
            names
                .into_iter()
                .map(|name| (name.clone(), sorted(&map[name])))
                .collect()
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// Takes back what a status update may not say.
pub(super) fn prepare_status(object: &mut Value, current: &Value) {
    if let Some(owners) = current.pointer("/metadata/ownerReferences").cloned() {
        map(object, "metadata").insert("ownerReferences".into(), owners);
    } else {
        map(object, "metadata").shift_remove("ownerReferences");
    }
    let before = current.get("status").cloned().unwrap_or_default();
    let status = map(object, "status");
    for (field, empty) in [("qosClass", json!("")), ("observedGeneration", json!(0))] {
        let unsaid = status.get(field).is_none_or(|v| v.is_null() || *v == empty);
        if let Some(value) = before.get(field).filter(|_| unsaid) {
            status.insert(field.into(), value.clone());
        }
    }
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let kind = text(condition, "/type").to_owned();
        let unsaid = condition
            .get("observedGeneration")
            .is_none_or(|v| v.is_null() || *v == 0);
        let old = items(&before, "/conditions").iter().find(|c| text(c, "/type") == kind);
        if let Some(generation) = old.and_then(|c| c.get("observedGeneration")).filter(|_| unsaid) {
            condition["observedGeneration"] = generation.clone();
        }
    }
}

/// Checks an update of the status.
pub(super) fn validate_status(errors: &mut Errors, object: &Value, current: &Value) {
    let status = At::root(object).child("status");
    for condition in status.child("conditions").items() {
        let kind = condition.child("type");
        if !matches!(kind.text(), "PodScheduled" | "Ready" | "Initialized") {
            let place = At::new(kind.value, format!("{}.Type", condition.path));
            place.complain(errors, is_qualified_name(kind.text()));
        }
    }
    let nominated = status.child("nominatedNodeName");
    if nominated.text() != text(current, "/status/nominatedNodeName") && !nominated.text().is_empty() {
        nominated.complain(errors, is_dns1123_subdomain(nominated.text()));
        if !text(current, "/spec/nodeName").is_empty() {
            nominated.forbidden(errors, "may not be set on pods that are already bound to a node");
        }
    }
    let quality = status.child("qosClass");
    if quality.text() != text(current, "/status/qosClass") {
        quality.invalid(errors, "field is immutable");
    }
    for list in [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ] {
        transitions(errors, &status.child(list), current, list);
    }
    let addresses = [("podIPs", None), ("hostIPs", Some(text(object, "/status/hostIP")))];
    for (list, first) in addresses {
        ips(errors, &status.child(list), first);
    }
}

/// What ended for good may not run again.
fn transitions(errors: &mut Errors, at: &At, current: &Value, list: &str) {
    let containers = items(
        current,
        if list.starts_with('i') {
            "/spec/initContainers"
        } else {
            "/spec/containers"
        },
    );
    for (index, before) in items(current, &format!("/status/{list}")).iter().enumerate() {
        let Some(ended) = before.pointer("/state/terminated") else {
            continue;
        };
        let name = text(before, "/name");
        let own = containers.iter().find(|c| text(c, "/name") == name);
        let has_rules = own.is_some_and(|c| !items(c, "/restartPolicyRules").is_empty());
        let policy = own.map_or("", |c| text(c, "/restartPolicy"));
        let policy = if policy.is_empty() {
            text(current, "/spec/restartPolicy")
        } else {
            policy
        };
        let failed = ended.get("exitCode").and_then(Value::as_i64).unwrap_or_default() != 0;
        let may = policy == "Always" || policy == "OnFailure" && failed || has_rules;
        let may = may && list != "ephemeralContainerStatuses";
        let runs = at
            .items()
            .any(|s| s.child("name").text() == name && !s.down(&["state", "terminated"]).is_set());
        if runs && !may {
            let path = format!("{}[{index}].state", at.path);
            errors.forbidden(path, "may not be transitioned to non-terminated state");
        }
    }
}

fn ips(errors: &mut Errors, list: &At, first: Option<&str>) {
    let addresses: Vec<Option<std::net::IpAddr>> = list
        .items()
        .map(|item| {
            let ip = item.child("ip");
            let parsed = ip.text().parse().ok();
            if parsed.is_none() {
                let words = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                errors.invalid(&item.path, &json!(ip.text()), words);
            }
            parsed
        })
        .collect();
    if let (Some(first), Some(item)) = (first, list.items().next()) {
        let ip = item.child("ip");
        if ip.text() != first {
            ip.invalid(errors, "must be equal to `hostIP`");
        }
    }
    let families = addresses.iter().flatten().filter(|a| a.is_ipv4()).count();
    if addresses.len() > 2 || addresses.len() == 2 && families != 1 {
        list.invalid(errors, "may specify no more than one IP for each IP family");
    }
}

/// For the subresource `ephemeralcontainers`: takes all but those containers from `current`.
pub(crate) fn prepare_ephemeral(pod: &mut Value, current: &Value) {
    let list = pod.pointer("/spec/ephemeralContainers").cloned();
    for field in ["spec", "status"] {
        carry(pod, current, field);
    }
    if let Some(metadata) = pod.get_mut("metadata") {
        let before = current.get("metadata").cloned().unwrap_or_default();
        for field in [
            "labels",
            "annotations",
            "finalizers",
            "ownerReferences",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ] {
            carry(metadata, &before, field);
        }
    }
    let spec = map(pod, "spec");
    match list {
        Some(list) => {
            spec.insert("ephemeralContainers".into(), list);
        }
        None => {
            spec.shift_remove("ephemeralContainers");
        }
    }
    super::defaults::pod(pod);
}

/// Checks an update by the subresource `ephemeralcontainers`: they may only be added.
pub(crate) fn validate_ephemeral(pod: &Value, current: &Value, errors: &mut Errors) {
    let mirror = "/metadata/annotations/kubernetes.io~1config.mirror";
    if current.pointer(mirror).is_some() {
        errors.forbidden("", "static pods do not support ephemeral containers");
        return;
    }
    validation::pod(errors, pod);
    let now = items(pod, "/spec/ephemeralContainers");
    for before in items(current, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        let path = "spec.ephemeralContainers";
        match now.iter().find(|c| text(c, "/name") == name) {
            None => errors.forbidden(
                path,
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(after) if !same(after, before) => errors.forbidden(
                path,
                &format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    diff(before, after)
                ),
            ),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a", "image": "x:1"}],
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]}});
        super::super::defaults::pod(&mut pod);
        pod
    }

    fn faults(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let current = pod();
        let mut object = current.clone();
        change(&mut object);
        let mut errors = Errors::default();
        validate(&mut errors, &object, &current);
        errors
            .causes()
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn an_image_may_change_and_tolerations_may_be_added() {
        assert!(faults(|p| p["spec"]["containers"][0]["image"] = json!("x:2")).is_empty());
        assert!(faults(|p| p["spec"]["activeDeadlineSeconds"] = json!(5)).is_empty());
        let add = |p: &mut Value| {
            p["spec"]["tolerations"]
                .as_array_mut()
                .unwrap()
                .push(json!({"operator": "Exists"}));
            p["spec"]["tolerations"][0]
                .as_object_mut()
                .unwrap()
                .remove("tolerationSeconds");
        };
        assert!(faults(add).is_empty());
        assert_eq!(
            faults(|p| p["spec"]["tolerations"] = json!([])),
            ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
    }

    #[test]
    fn another_change_of_the_spec_is_shown_and_refused() {
        let faults = faults(|p| p["spec"]["containers"][0]["command"] = json!(["sh"]));
        let [fault] = faults.as_slice() else {
            panic!("{faults:?}")
        };
        assert!(fault.starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
             tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n@@ -"
        ));
        assert!(fault.contains("+   \"command\": [\n"), "{fault}");
    }

    #[test]
    fn a_gated_pod_may_become_choosier_about_its_node() {
        let mut current = pod();
        current["spec"]["schedulingGates"] = json!([{"name": "g"}]);
        current["spec"]["nodeSelector"] = json!({"a": "b"});
        let check = |object: &Value| {
            let mut errors = Errors::default();
            validate(&mut errors, object, &current);
            errors.causes().iter().map(|c| c.field.clone()).collect::<Vec<_>>()
        };
        let mut object = current.clone();
        object["spec"]["nodeSelector"]["c"] = json!("d");
        let term = json!({"matchExpressions": [{"key": "k", "operator": "Exists"}]});
        object["spec"]["affinity"] =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
        object["spec"]["schedulingGates"] = json!([]);
        assert!(check(&object).is_empty());
        object["spec"]["nodeSelector"] = json!({});
        object["spec"]["schedulingGates"] = json!([{"name": "h"}]);
        assert_eq!(check(&object), ["spec.schedulingGates[0].name", "spec.nodeSelector"]);
    }

    #[test]
    fn containers_can_neither_come_nor_go() {
        let faults = faults(|p| p["spec"]["containers"] = json!([]));
        assert_eq!(
            faults,
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }

    #[test]
    fn a_status_update_keeps_what_it_does_not_say() {
        let mut current = pod();
        current["status"] = json!({"qosClass": "BestEffort", "observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "False", "observedGeneration": 2}]});
        let mut object = current.clone();
        object["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        prepare_status(&mut object, &current);
        assert_eq!(object["status"]["qosClass"], "BestEffort");
        assert_eq!(object["status"]["observedGeneration"], 2);
        assert_eq!(object["status"]["conditions"][0]["observedGeneration"], 2);
    }

    #[test]
    fn a_container_that_ended_for_good_stays_ended() {
        let ended = json!([{"name": "a", "state": {"terminated": {"exitCode": 0}}}]);
        let mut current = pod();
        current["spec"]["restartPolicy"] = json!("OnFailure");
        current["status"] = json!({"containerStatuses": ended});
        let mut object = current.clone();
        object["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        let mut errors = Errors::default();
        validate_status(&mut errors, &object, &current);
        assert_eq!(errors.causes()[0].field, "status.containerStatuses[0].state");
        current["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] = json!(1);
        let mut errors = Errors::default();
        validate_status(&mut errors, &object, &current);
        assert!(errors.is_empty());
    }

    #[test]
    fn ephemeral_containers_may_only_be_added() {
        let mut current = pod();
        current["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "busybox"}]);
        super::super::defaults::pod(&mut current);
        let mut object = current.clone();
        object["spec"]["containers"] = json!([]);
        let more = json!({"name": "e", "image": "busybox", "targetContainerName": "a"});
        object["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(more);
        prepare_ephemeral(&mut object, &current);
        assert_eq!(object["spec"]["containers"], current["spec"]["containers"]);
        let mut errors = Errors::default();
        validate_ephemeral(&object, &current, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        object["spec"]["ephemeralContainers"] = json!([]);
        let mut errors = Errors::default();
        validate_ephemeral(&object, &current, &mut errors);
        assert_eq!(
            errors.causes()[0].message,
            "Forbidden: existing ephemeral containers \"d\" may not be removed\n"
        );
    }
}
