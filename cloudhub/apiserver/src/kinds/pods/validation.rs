//! Whether a pod, or the pod in a template, makes sense: what `ValidatePodSpec` of the real server looks at.

use std::collections::BTreeSet;

use serde_json::Value;

use super::containers::{self, Around};
use super::{affinity, resources, security, volumes};
use crate::kinds::fields::{At, is_dns1123_label, is_dns1123_subdomain, is_qualified_name, labels};
use crate::status::Errors;

/// A pod at its creation.
pub(super) fn pod(errors: &mut Errors, object: &Value) {
    let root = At::root(object);
    annotations(errors, &root.down(&["metadata", "annotations"]));
    mirrors(errors, &root);
    let spec = root.child("spec");
    validate_spec(errors, &spec, true);
    if spec.child("serviceAccountName").text().is_empty() {
        tokens_need_an_account(errors, &spec);
    }
}

/// What holds for a pod at its creation only.
pub(super) fn created(errors: &mut Errors, object: &Value) {
    let spec = At::root(object).child("spec");
    if spec.child("ephemeralContainers").items().next().is_some() {
        spec.child("ephemeralContainers")
            .forbidden(errors, "cannot be set on create");
    }
    let gated = spec.child("schedulingGates").items().next().is_some();
    if gated && !spec.child("nodeName").text().is_empty() {
        let words = "cannot be set until all schedulingGates have been cleared";
        spec.child("nodeName").forbidden(errors, words);
    }
}

/// A pod template at `at`.
pub(crate) fn template(errors: &mut Errors, at: &At) {
    let meta = at.child("metadata");
    // The real server leaves `metadata` out of these paths.
    labels(errors, &format!("{}.labels", at.path), Some(meta.child("labels").value));
    let notes = At::new(meta.child("annotations").value, format!("{}.annotations", at.path));
    for (key, _) in notes.entries() {
        let wrong = is_qualified_name(&key.to_lowercase());
        for words in wrong {
            errors.invalid(&notes.path, &Value::from(key), &words);
        }
    }
    annotations(errors, &notes);
    let spec = at.child("spec");
    validate_spec(errors, &spec, false);
    if spec.child("ephemeralContainers").items().next().is_some() {
        spec.child("ephemeralContainers")
            .forbidden(errors, "ephemeral containers not allowed in pod template");
    }
}

/// Annotations that mean something to a pod.
fn annotations(errors: &mut Errors, at: &At) {
    if let Some((_, cost)) = at
        .entries()
        .find(|(key, _)| *key == "controller.kubernetes.io/pod-deletion-cost")
    {
        let text = cost.text();
        let plain = !text.starts_with('+') && (text == "0" || !text.trim_start_matches('-').starts_with('0'));
        if !plain || text.parse::<i32>().is_err() {
            cost.invalid(errors, "must be a 32bit integer");
        }
    }
}

/// What stands for a pod that a node has from elsewhere names that node.
fn mirrors(errors: &mut Errors, root: &At) {
    let annotations = root.down(&["metadata", "annotations"]);
    let mirror = annotations
        .entries()
        .find(|(key, _)| *key == "kubernetes.io/config.mirror");
    if let Some((_, mirror)) = mirror
        && root.down(&["spec", "nodeName"]).text().is_empty()
    {
        mirror.invalid(errors, "must set spec.nodeName if mirror pod annotation is set");
    }
}

fn tokens_need_an_account(errors: &mut Errors, spec: &At) {
    for volume in spec.child("volumes").items() {
        for source in volume.child("projected").child("sources").items() {
            if let Some(token) = source.child("serviceAccountToken").set() {
                token.forbidden(errors, "must not be specified when serviceAccountName is not set");
            }
        }
    }
}

fn validate_spec(errors: &mut Errors, spec: &At, is_pod: bool) {
    let grace = spec.child("terminationGracePeriodSeconds");
    if !grace.is_set() {
        grace.required(errors, "");
    }
    let around = Around {
        volumes: volumes::validate(errors, &spec.child("volumes")),
        grace: grace.number(),
        restart_policy: spec.child("restartPolicy").text(),
        host_users: spec.child("hostUsers").value != false,
        is_pod,
    };
    containers::validate(errors, spec, &around);
    if let Some(own) = spec.child("resources").set() {
        resources::validate(errors, &own, true);
    }
    host_network_ports(errors, spec, is_pod);
    spec.child("restartPolicy")
        .required_one_of(errors, &["Always", "OnFailure", "Never"]);
    spec.child("dnsPolicy")
        .required_one_of(errors, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    let selector = spec.child("nodeSelector");
    labels(errors, &selector.path, Some(selector.value));
    security::pod(errors, spec);
    affinity::validate(errors, &spec.child("affinity"));
    dns_config(errors, spec);
    gates(errors, spec);
    affinity::spread(errors, &spec.child("topologySpreadConstraints"));
    host_users(errors, spec);
    host_name(errors, spec);
    names(errors, spec);
    affinity::tolerations(errors, &spec.child("tolerations"));
    for alias in spec.child("hostAliases").items() {
        address(errors, &alias.child("ip"));
        for name in alias.child("hostnames").items() {
            name.complain(errors, is_dns1123_subdomain(name.text()));
        }
    }
    if let Some(policy) = spec.child("preemptionPolicy").set() {
        policy.required_one_of(errors, &["PreemptLowerPriority", "Never"]);
    }
    resources::validate_overhead(errors, &spec.child("overhead"));
    operating_system(errors, spec);
}

fn host_network_ports(errors: &mut Errors, spec: &At, is_pod: bool) {
    if !spec.child("hostNetwork").is_true() {
        return;
    }
    for container in spec.child("containers").items() {
        for port in container.child("ports").items() {
            let number = |field: &str| port.child(field).number().unwrap_or_default();
            let host = number("hostPort");
            if (is_pod || host != 0) && host != number("containerPort") {
                let place = port.child("hostPort");
                let words = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&place.path, &Value::from(host), words);
            }
        }
    }
}

/// Complaints about a text.
type Check = fn(&str) -> Vec<String>;

/// Fields that are names or numbers of a simple kind.
fn names(errors: &mut Errors, spec: &At) {
    let checks: [(&str, Check); 6] = [
        ("serviceAccountName", is_dns1123_subdomain),
        ("nodeName", is_dns1123_subdomain),
        ("hostname", is_dns1123_label),
        ("subdomain", is_dns1123_label),
        ("priorityClassName", is_dns1123_subdomain),
        ("runtimeClassName", is_dns1123_subdomain),
    ];
    for (field, check) in checks {
        spec.child(field).checked(errors, check);
    }
    spec.child("activeDeadlineSeconds")
        .in_range(errors, 1, i64::from(i32::MAX));
}

fn address(errors: &mut Errors, at: &At) {
    if at.text().parse::<std::net::IpAddr>().is_err() {
        at.invalid(errors, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn dns_config(errors: &mut Errors, spec: &At) {
    let at = spec.child("dnsConfig");
    let servers = at.child("nameservers");
    if spec.child("dnsPolicy").text() == "None" {
        if !at.is_set() {
            at.required(errors, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.items().next().is_none() {
            servers.required(
                errors,
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    if servers.items().count() > 3 {
        servers.invalid(errors, "must not have more than 3 nameservers");
    }
    servers.items().for_each(|server| address(errors, &server));
    let searches = at.child("searches");
    if searches.items().count() > 32 {
        searches.invalid(errors, "must not have more than 32 search paths");
    }
    let length: usize = searches.items().map(|s| s.text().len() + 1).sum();
    if length > 2049 {
        searches.invalid(
            errors,
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for search in searches.items().filter(|s| s.text() != ".") {
        let name = search.text().strip_suffix('.').unwrap_or(search.text());
        // Underscores pass here, as in names of services.
        search.complain(errors, is_dns1123_subdomain(&name.replace('_', "0")));
    }
    for option in at.child("options").items() {
        if option.child("name").text().is_empty() {
            option.required(errors, "must not be empty");
        }
    }
}

fn gates(errors: &mut Errors, spec: &At) {
    for gate in spec.child("readinessGates").items() {
        let kind = gate.child("conditionType");
        kind.complain(errors, is_qualified_name(kind.text()));
    }
    let mut seen = BTreeSet::new();
    for gate in spec.child("schedulingGates").items() {
        let named = At::new(gate.child("name").value, gate.path);
        named.complain(errors, is_qualified_name(named.text()));
        if !seen.insert(named.text()) {
            named.duplicate(errors);
        }
    }
}

fn host_users(errors: &mut Errors, spec: &At) {
    if spec.child("hostUsers").value != false {
        return;
    }
    let words = "when `hostUsers` is false";
    for (field, shown) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if spec.child(field).is_true() {
            errors.forbidden(format!("{}.{shown}", spec.path), words);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.child(list).items() {
            let devices = container.child("volumeDevices");
            if devices.items().next().is_some() {
                devices.forbidden(errors, words);
            }
        }
    }
}

fn host_name(errors: &mut Errors, spec: &At) {
    let name = spec.child("hostnameOverride");
    if !name.is_set() {
        return;
    }
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec.child(field).is_true() {
            name.forbidden(errors, &format!("may not be specified when {field} is true"));
        }
    }
    if name.text().len() > 64 {
        errors.too_long(&name.path, 64);
    }
    name.complain(errors, is_dns1123_subdomain(name.text()));
}

fn operating_system(errors: &mut Errors, spec: &At) {
    let at = spec.child("os");
    let name = at.child("name");
    match name.text() {
        _ if !at.is_set() => {}
        "" => name.required(errors, ""),
        "linux" => {
            let options = spec.down(&["securityContext", "windowsOptions"]);
            if options.is_set() {
                options.forbidden(errors, "windows options cannot be set for a linux pod");
            }
        }
        "windows" => {
            for field in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
                if let Some(field) = spec.child(field).set() {
                    field.forbidden(errors, "cannot be set for a windows pod");
                }
            }
        }
        _ => errors.not_supported(&at.path, name.value, &["linux", "windows"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::pods::defaults;
    use serde_json::json;

    fn faults(spec: Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec});
        defaults::pod(&mut object);
        let mut errors = Errors::default();
        pod(&mut errors, &object);
        created(&mut errors, &object);
        errors
            .causes()
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    fn container(more: Value) -> Value {
        let mut container = json!({"name": "a", "image": "nginx"});
        for (field, value) in more.as_object().unwrap() {
            container[field] = value.clone();
        }
        container
    }

    #[test]
    fn a_pod_without_containers_names_or_images_says_so() {
        assert_eq!(faults(json!({})), ["spec.containers: Required value"]);
        assert_eq!(
            faults(json!({"containers": [{}]})),
            [
                "spec.containers[0].name: Required value",
                "spec.containers[0].image: Required value"
            ]
        );
        let twice = json!({"containers": [container(json!({})), container(json!({}))]});
        assert_eq!(faults(twice), ["spec.containers[1].name: Duplicate value: \"a\""]);
        assert!(faults(json!({"containers": [container(json!({}))]})).is_empty());
    }

    #[test]
    fn wrong_words_are_answered_with_the_right_ones() {
        let spec =
            json!({"containers": [container(json!({"imagePullPolicy": "Sometimes"}))], "restartPolicy": "Maybe"});
        assert_eq!(
            faults(spec),
            [
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\""
            ]
        );
    }

    #[test]
    fn a_mount_needs_its_volume_and_a_path_of_its_own() {
        let mounts = json!({"volumeMounts": [{"name": "x", "mountPath": "/a"}, {"name": "e", "mountPath": "/a"}]});
        let spec = json!({"containers": [container(mounts)], "volumes": [{"name": "e"}]});
        assert_eq!(
            faults(spec),
            [
                "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique"
            ]
        );
    }

    #[test]
    fn ports_and_probes_are_numbers_in_range() {
        let more = json!({
            "ports": [{"containerPort": 70000, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}],
            "livenessProbe": {"tcpSocket": {"port": "nö"}, "successThreshold": 2},
            "readinessProbe": {"periodSeconds": -1}});
        let faults = faults(json!({"containers": [container(more)]}));
        assert!(
            faults
                .iter()
                .any(|f| f.ends_with("70000: must be between 1 and 65535, inclusive"))
        );
        assert!(
            faults
                .iter()
                .any(|f| f.starts_with("spec.containers[0].livenessProbe.tcpSocket.port: "))
        );
        assert!(faults.contains(&"spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\"".to_owned()));
        assert!(
            faults
                .contains(&"spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1".to_owned())
        );
        assert!(
            faults
                .contains(&"spec.containers[0].readinessProbe: Required value: must specify a handler type".to_owned())
        );
    }

    #[test]
    fn tolerations_without_a_key_must_tolerate_everything() {
        let spec = json!({"containers": [container(json!({}))], "tolerations": [{"operator": "Equal", "value": "x"}]});
        assert_eq!(
            faults(spec),
            [
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which \
              means \"match all values and all keys\""
            ]
        );
    }

    #[test]
    fn a_gated_pod_has_no_node_yet() {
        let spec = json!({"containers": [container(json!({}))], "nodeName": "n", "schedulingGates": [{"name": "g"}]});
        assert_eq!(
            faults(spec),
            ["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"]
        );
    }

    #[test]
    fn init_containers_have_no_probes_unless_they_go_on_running() {
        let probed = json!({"name": "i", "image": "x", "livenessProbe": {"exec": {"command": ["true"]}}});
        let mut spec = json!({"containers": [container(json!({}))], "initContainers": [probed]});
        assert_eq!(
            faults(spec.clone()),
            [
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without \
              restartPolicy=Always"
            ]
        );
        spec["initContainers"][0]["restartPolicy"] = json!("Always");
        assert!(faults(spec).is_empty());
    }
}
