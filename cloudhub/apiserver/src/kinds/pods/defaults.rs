//! What the API fills in where a pod, or a pod template, says nothing: the `SetDefaults_*` of core/v1, and the pairs of fields
//! that the API keeps equal.

use serde_json::{Map, Value, json};

use crate::kinds::fields::Quantity;
use crate::object::{default, map};

type Fields = Map<String, Value>;

/// A pod.
pub(super) fn pod(object: &mut Value) {
    let spec = map(object, "spec");
    // Only pods, not templates, get a wrong grace period repaired.
    if spec
        .get("terminationGracePeriodSeconds")
        .and_then(Value::as_i64)
        .is_some_and(|s| s < 0)
    {
        spec.insert("terminationGracePeriodSeconds".into(), json!(1));
    }
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        each(spec, list, requests_from_limits);
    }
    default(spec, "enableServiceLinks", true);
    if is_true(spec, "hostNetwork") {
        for list in ["containers", "initContainers"] {
            each(spec, list, |container| each(container, "ports", host_port));
        }
    }
    status(object);
}

/// A pod template.
pub(crate) fn template(object: &mut Value) {
    pod_spec(map(object, "spec"));
}

fn pod_spec(spec: &mut Fields) {
    for (field, value) in [
        ("dnsPolicy", json!("ClusterFirst")),
        ("restartPolicy", json!("Always")),
        ("schedulerName", json!("default-scheduler")),
    ] {
        default_text(spec, field, value);
    }
    default(spec, "securityContext", json!({}));
    default(spec, "terminationGracePeriodSeconds", 30);
    service_account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list, container);
    }
    each(spec, "volumes", volume);
    canonical_quantities(spec.get_mut("overhead"), true);
    with(spec, "resources", resources);
}

/// `serviceAccount` is the old name of `serviceAccountName`.
fn service_account(spec: &mut Fields) {
    let text = |field: &str| {
        spec.get(field)
            .filter(|v| v.as_str().is_some_and(|t| !t.is_empty()))
            .cloned()
    };
    if let Some(name) = text("serviceAccountName").or_else(|| text("serviceAccount")) {
        spec.insert("serviceAccountName".into(), name.clone());
        spec.insert("serviceAccount".into(), name);
    }
}

fn container(container: &mut Fields) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = pull_policy(image);
    default_text(container, "imagePullPolicy", json!(policy));
    default_text(container, "terminationMessagePath", json!("/dev/termination-log"));
    default_text(container, "terminationMessagePolicy", json!("File"));
    default(container, "resources", json!({}));
    with(container, "resources", resources);
    each(container, "ports", |port| default_text(port, "protocol", json!("TCP")));
    each(container, "env", |variable| {
        with(variable, "valueFrom", |source| {
            with(source, "fieldRef", field_ref);
            with(source, "resourceFieldRef", resource_field_ref);
            with(source, "fileKeyRef", |file| default(file, "optional", false));
        });
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with(container, name, probe);
    }
    with(container, "lifecycle", |lifecycle| {
        // Behind a gate (ContainerStopSignals) that is off in 1.36: the real server drops it.
        lifecycle.shift_remove("stopSignal");
        for name in ["postStart", "preStop"] {
            with(lifecycle, name, |handler| with(handler, "httpGet", http_get));
        }
    });
    with(container, "securityContext", |context| {
        if context.get("procMount").is_some_and(|v| v == "") {
            context.shift_remove("procMount");
        }
    });
}

fn resources(resources: &mut Fields) {
    for list in ["limits", "requests"] {
        canonical_quantities(resources.get_mut(list), true);
    }
}

fn probe(probe: &mut Fields) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        let slot = probe.entry(field).or_insert(Value::Null);
        if slot.is_null() || slot == 0 {
            *slot = json!(value);
        }
    }
    with(probe, "httpGet", http_get);
    with(probe, "grpc", |grpc| default(grpc, "service", ""));
}

fn http_get(action: &mut Fields) {
    default_text(action, "path", json!("/"));
    default_text(action, "scheme", json!("HTTP"));
}

fn field_ref(reference: &mut Fields) {
    default_text(reference, "apiVersion", json!("v1"));
}

fn resource_field_ref(reference: &mut Fields) {
    default(reference, "divisor", "0");
    if let Some(divisor) = reference.get_mut("divisor") {
        canonical_quantity(divisor, false);
    }
}

fn host_port(port: &mut Fields) {
    let number = port.get("containerPort").cloned().unwrap_or_default();
    let slot = port.entry("hostPort").or_insert(Value::Null);
    if slot.is_null() || slot == 0 {
        *slot = number;
    }
}

fn requests_from_limits(container: &mut Fields) {
    with(container, "resources", |resources| {
        let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
            return;
        };
        let requests = resources.entry("requests").or_insert(Value::Null);
        if !requests.is_object() {
            *requests = json!({});
        }
        for (name, limit) in limits {
            if let Some(requests) = requests.as_object_mut() {
                requests.entry(name).or_insert(limit);
            }
        }
    });
}

/// What sources of volumes get: source, field, value.
const VOLUME_DEFAULTS: &[(&str, &str, &str)] = &[
    ("secret", "defaultMode", "420"),
    ("configMap", "defaultMode", "420"),
    ("downwardAPI", "defaultMode", "420"),
    ("projected", "defaultMode", "420"),
    ("hostPath", "type", "\"\""),
    ("iscsi", "iscsiInterface", "\"default\""),
    ("rbd", "pool", "\"rbd\""),
    ("rbd", "user", "\"admin\""),
    ("rbd", "keyring", "\"/etc/ceph/keyring\""),
    ("azureDisk", "cachingMode", "\"ReadWrite\""),
    ("azureDisk", "fsType", "\"ext4\""),
    ("azureDisk", "readOnly", "false"),
    ("azureDisk", "kind", "\"Shared\""),
    ("scaleIO", "storageMode", "\"ThinProvisioned\""),
    ("scaleIO", "fsType", "\"xfs\""),
];

fn volume(volume: &mut Fields) {
    if !volume.iter().any(|(field, value)| field != "name" && !value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for (source, field, value) in VOLUME_DEFAULTS {
        let value: Value = serde_json::from_str(value).expect("the table above holds JSON");
        with(volume, source, |source| default(source, field, value));
    }
    with(volume, "emptyDir", |source| {
        if let Some(limit) = source.get_mut("sizeLimit") {
            canonical_quantity(limit, false);
        }
    });
    with(volume, "downwardAPI", downward_api);
    with(volume, "projected", |source| {
        each(source, "sources", |source| {
            with(source, "downwardAPI", downward_api);
            with(source, "serviceAccountToken", |token| {
                default(token, "expirationSeconds", 3600)
            });
        });
    });
    with(volume, "image", |source| {
        let reference = source.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = pull_policy(reference);
        default_text(source, "pullPolicy", json!(policy));
    });
    with(volume, "ephemeral", |source| {
        with(source, "volumeClaimTemplate", |claim| {
            default(claim, "metadata", json!({}));
            with(claim, "spec", |spec| {
                default(spec, "resources", json!({}));
                default(spec, "volumeMode", "Filesystem");
            });
        });
    });
}

fn downward_api(source: &mut Fields) {
    each(source, "items", |file| {
        with(file, "fieldRef", field_ref);
        with(file, "resourceFieldRef", resource_field_ref);
    });
}

/// Fields of a status that are always written, and `podIP`, which is the first of `podIPs`.
fn status(object: &mut Value) {
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    for list in [
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
    ] {
        each(status, list, |container| {
            default(container, "state", json!({}));
            default(container, "lastState", json!({}));
            default(container, "ready", false);
            default(container, "restartCount", 0);
            default(container, "image", "");
            default(container, "imageID", "");
            canonical_quantities(container.get_mut("allocatedResources"), true);
            with(container, "resources", resources);
        });
    }
    each(status, "conditions", |condition| {
        condition.entry("lastProbeTime").or_insert(Value::Null);
        condition.entry("lastTransitionTime").or_insert(Value::Null);
    });
    let single = status
        .get("podIP")
        .filter(|ip| ip.as_str().is_some_and(|t| !t.is_empty()))
        .cloned();
    let first = status.get("podIPs").and_then(|ips| ips.pointer("/0/ip")).cloned();
    match (single, first) {
        (Some(single), first) if first.as_ref() != Some(&single) => {
            status.insert("podIPs".into(), json!([{"ip": single}]));
        }
        (None, Some(first)) => {
            status.insert("podIP".into(), first);
        }
        _ => {}
    }
}

/// Spells the quantities of a resource list as the API stores them. What is none is left for validation to name.
fn canonical_quantities(list: Option<&mut Value>, round: bool) {
    for (_, quantity) in list.and_then(Value::as_object_mut).into_iter().flatten() {
        canonical_quantity(quantity, round);
    }
}

fn canonical_quantity(quantity: &mut Value, round: bool) {
    if let Ok(parsed) = Quantity::from_json(quantity) {
        let parsed = if round { parsed.rounded_to_milli() } else { parsed };
        *quantity = json!(parsed.canonical());
    }
}

/// `Always` for `:latest` and for neither tag nor digest.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once(':').map(|(_, tag)| tag);
    let path = last.split(':').next().unwrap_or_default();
    // What is no reference counts as one with a tag.
    let sound = !path.is_empty() && !path.bytes().any(|b| b.is_ascii_uppercase() || b.is_ascii_whitespace());
    match (tag, digest) {
        (Some("latest"), _) if sound => "Always",
        (None, None) if sound => "Always",
        _ => "IfNotPresent",
    }
}

fn is_true(fields: &Fields, field: &str) -> bool {
    fields.get(field).and_then(Value::as_bool).unwrap_or_default()
}

/// Like [`default`], and "" counts as absent.
fn default_text(fields: &mut Fields, field: &str, value: Value) {
    let slot = fields.entry(field).or_insert(Value::Null);
    if slot.is_null() || slot == "" {
        *slot = value;
    }
}

/// Does something to the map `field`, where it is there.
fn with(fields: &mut Fields, field: &str, change: impl FnOnce(&mut Fields)) {
    if let Some(map) = fields.get_mut(field).and_then(Value::as_object_mut) {
        change(map);
    }
}

/// Does something to each map in the list `field`.
fn each(fields: &mut Fields, field: &str, change: impl Fn(&mut Fields)) {
    let list = fields.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
        .for_each(change);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_pod_becomes_what_the_real_api_stores() {
        let mut object = json!({"spec": {"containers": [{"name": "a", "image": "nginx"}]}});
        pod(&mut object);
        let container = json!({
            "name": "a", "image": "nginx", "imagePullPolicy": "Always",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "resources": {}});
        assert_eq!(
            object["spec"],
            json!({
                "containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
                "enableServiceLinks": true})
        );
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once);
    }

    #[test]
    fn an_image_is_pulled_always_without_tag_or_digest() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1.2", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "Always"),
            ("Nginx", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn everything_inside_a_container_gets_its_defaults() {
        let mut object = json!({"spec": {
            "hostNetwork": true, "serviceAccount": "robot", "terminationGracePeriodSeconds": -5,
            "containers": [{
                "name": "a", "image": "b:1", "ports": [{"containerPort": 80}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
                "resources": {"limits": {"cpu": "0.5", "memory": 1024}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "readinessProbe": {"grpc": {"port": 1}, "periodSeconds": 0}}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}},
                {"name": "h", "hostPath": {"path": "/a"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}});
        pod(&mut object);
        let spec = &object["spec"];
        assert_eq!(spec["serviceAccountName"], "robot");
        assert_eq!(spec["terminationGracePeriodSeconds"], 1);
        let container = &spec["containers"][0];
        assert_eq!(
            container["ports"][0],
            json!({"containerPort": 80, "protocol": "TCP", "hostPort": 80})
        );
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(container["env"][1]["valueFrom"]["resourceFieldRef"]["divisor"], "0");
        let amounts = json!({"cpu": "500m", "memory": "1024"});
        assert_eq!(container["resources"], json!({"limits": amounts, "requests": amounts}));
        assert_eq!(
            container["livenessProbe"]["httpGet"],
            json!({"port": 80, "path": "/", "scheme": "HTTP"})
        );
        assert_eq!(container["readinessProbe"]["grpc"]["service"], "");
        assert_eq!(container["readinessProbe"]["periodSeconds"], 10);
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(spec["volumes"][2]["hostPath"]["type"], "");
        let token = &spec["volumes"][3]["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(token["expirationSeconds"], 3600);
    }

    #[test]
    fn the_first_of_the_addresses_is_the_address() {
        let mut object = json!({"spec": {}, "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready"}]}});
        pod(&mut object);
        assert_eq!(object["status"]["podIPs"], json!([{"ip": "10.0.0.1"}]));
        assert_eq!(object["status"]["conditions"][0]["lastProbeTime"], Value::Null);
    }
}
