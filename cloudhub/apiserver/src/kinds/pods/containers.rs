//! Whether the containers of a pod make sense: names, images, ports, environment, mounts, probes, hooks.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{resources, security, volumes};
use crate::kinds::fields::{
    At, is_config_key, is_dns1123_label, is_dns1123_subdomain, is_env_name, is_port, is_port_name,
};
use crate::status::Errors;

/// What containers may refer to, and what the pod says that matters to them.
pub(super) struct Around<'a> {
    /// Volumes that are sound, by name.
    pub(super) volumes: BTreeMap<&'a str, &'a Value>,
    /// The pod's grace period.
    pub(super) grace: Option<i64>,
    /// The pod's restart policy.
    pub(super) restart_policy: &'a str,
    /// Whether the containers' users are the host's.
    pub(super) host_users: bool,
    /// Whether it is a pod, not a template: surrounding blanks of images count only there.
    pub(super) is_pod: bool,
}

const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];

/// Checks `containers`, `initContainers` and `ephemeralContainers` of `spec`.
pub(super) fn validate(errors: &mut Errors, spec: &At, around: &Around) {
    let containers = spec.child("containers");
    if containers.items().next().is_none() {
        containers.required(errors, "");
    }
    let mut names = BTreeSet::new();
    for container in containers.items() {
        common(errors, &container, around);
        if !names.insert(container.child("name").text()) {
            container.child("name").duplicate(errors);
        }
        hooks(errors, &container, around);
        restart_policy(errors, &container);
    }
    host_ports(errors, containers.items());
    for container in spec.child("initContainers").items() {
        init_container(errors, &container, around, &mut names);
    }
    ephemeral(errors, spec, around, &names);
    if around.is_pod {
        for list in ["containers", "initContainers"] {
            spec.child(list)
                .items()
                .for_each(|container| trimmed_image(errors, &container));
        }
    }
}

fn trimmed_image(errors: &mut Errors, container: &At) {
    let image = container.child("image");
    if image.text().trim() != image.text() {
        image.invalid(errors, "must not have leading or trailing whitespace");
    }
}

fn init_container<'a>(errors: &mut Errors, container: &At<'a>, around: &Around, names: &mut BTreeSet<&'a str>) {
    common(errors, container, around);
    restart_policy(errors, container);
    let name = container.child("name");
    if names.contains(name.text()) {
        name.duplicate(errors);
    } else if !name.text().is_empty() {
        names.insert(name.text());
    }
    host_ports(errors, std::iter::once(container.clone()));
    if container.child("restartPolicy").text() == "Always" {
        hooks(errors, container, around);
        return;
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(field) = container.child(field).set() {
            field.forbidden(
                errors,
                "may not be set for init containers without restartPolicy=Always",
            );
        }
    }
    for policy in container.child("resizePolicy").items() {
        let restart = policy.child("restartPolicy");
        if restart.text() == "RestartContainer" {
            restart.invalid(
                errors,
                "must not be set to 'RestartContainer' for non-sidecar initContainers",
            );
        }
    }
}

/// Fields that an ephemeral container may not have.
const NOT_EPHEMERAL: [&str; 6] = [
    "ports",
    "resources",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
];

fn ephemeral<'a>(errors: &mut Errors, spec: &At<'a>, around: &Around, others: &BTreeSet<&'a str>) {
    let words = "cannot be set for an Ephemeral Container";
    let mut names = others.clone();
    for container in spec.child("ephemeralContainers").items() {
        common(errors, &container, around);
        trimmed_image(errors, &container);
        if !names.insert(container.child("name").text()) {
            container.child("name").duplicate(errors);
        }
        let target = container.child("targetContainerName");
        if !target.text().is_empty() && !others.contains(target.text()) {
            target.not_found(errors);
        }
        for field in NOT_EPHEMERAL
            .iter()
            .chain(["resizePolicy", "restartPolicy", "restartPolicyRules"].iter())
        {
            let field = container.child(field);
            let empty = field.value.as_object().is_some_and(serde_json::Map::is_empty);
            if field.is_set() && !empty {
                field.forbidden(errors, words);
            }
        }
        for mount in container.child("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.child(field).text().is_empty() {
                    mount.child(field).forbidden(errors, words);
                }
            }
        }
    }
}

/// What holds for every kind of container.
fn common(errors: &mut Errors, container: &At, around: &Around) {
    container.child("name").named(errors, is_dns1123_label);
    if container.child("image").text().is_empty() {
        container.child("image").required(errors, "");
    }
    container
        .child("terminationMessagePolicy")
        .required_one_of(errors, &["File", "FallbackToLogsOnError"]);
    ports(errors, &container.child("ports"));
    for variable in container.child("env").items() {
        variable.child("name").named(errors, is_env_name);
        value_from(errors, &variable, around);
    }
    env_from(errors, &container.child("envFrom"));
    mounts(errors, container, around);
    devices(errors, container, around);
    container
        .child("imagePullPolicy")
        .required_one_of(errors, &["Always", "IfNotPresent", "Never"]);
    resources::validate(errors, &container.child("resources"), false);
    resize_policy(errors, &container.child("resizePolicy"), around);
    security::container(errors, &container.child("securityContext"), around.host_users);
}

fn ports(errors: &mut Errors, ports: &At) {
    let mut names = BTreeSet::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.text().is_empty() {
            let wrong = is_port_name(name.text());
            if wrong.is_empty() && !names.insert(name.text()) {
                name.duplicate(errors);
            }
            name.complain(errors, wrong);
        }
        let number = port.child("containerPort");
        match number.number() {
            None | Some(0) => number.required(errors, ""),
            Some(n) => number.complain(errors, is_port(n)),
        }
        let host = port.child("hostPort");
        if let Some(n) = host.number().filter(|n| *n != 0) {
            host.complain(errors, is_port(n));
        }
        port.child("protocol").required_one_of(errors, &["SCTP", "TCP", "UDP"]);
    }
}

fn host_ports<'a>(errors: &mut Errors, containers: impl Iterator<Item = At<'a>>) {
    let mut taken = BTreeSet::new();
    for container in containers {
        for port in container.child("ports").items() {
            let host = port.child("hostPort");
            let Some(number) = host.number().filter(|n| *n != 0) else {
                continue;
            };
            let key = format!(
                "{}/{}/{number}",
                port.child("protocol").text(),
                port.child("hostIP").text()
            );
            if !taken.insert(key.clone()) {
                errors.duplicate(&host.path, &json!(key));
            }
        }
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(errors: &mut Errors, variable: &At, around: &Around) {
    let source = variable.child("valueFrom");
    if !source.is_set() {
        return;
    }
    let mut count = 0;
    for kind in [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ] {
        let Some(reference) = source.child(kind).set() else {
            continue;
        };
        count += 1;
        match kind {
            "fieldRef" => volumes::field_ref(errors, &reference, &ENV_FIELDS),
            "resourceFieldRef" => volumes::resource_field_ref(errors, &reference, false),
            "fileKeyRef" => file_key(errors, &reference, around),
            _ => {
                let name = reference.child("name");
                name.complain(errors, is_dns1123_subdomain(name.text()));
                reference.child("key").named(errors, is_config_key);
            }
        }
    }
    let words = match count {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !variable.child("value").text().is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.invalid(&source.path, &json!(""), words);
}

fn file_key(errors: &mut Errors, reference: &At, around: &Around) {
    reference.child("key").named(errors, is_env_name);
    let volume = reference.child("volumeName");
    volume.named(errors, is_dns1123_label);
    let path = reference.child("path");
    if path.text().is_empty() {
        path.required(errors, "");
    }
    volumes::no_backsteps(errors, &path);
    match around.volumes.get(volume.text()) {
        None => volume.not_found(errors),
        Some(source) if source.get("emptyDir").is_none() => {
            volume.invalid(errors, "referenced volume must be of type emptyDir");
        }
        Some(_) => {}
    }
}

fn env_from(errors: &mut Errors, list: &At) {
    for source in list.items() {
        source.child("prefix").checked(errors, is_env_name);
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            if let Some(reference) = source.child(kind).set() {
                count += 1;
                let name = reference.child("name");
                if name.text().is_empty() {
                    name.required(errors, "");
                } else {
                    // A trailing dash passes: names of generated objects are compared so.
                    name.complain(errors, is_dns1123_subdomain(name.text().trim_end_matches('-')));
                }
            }
        }
        let words = match count {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.invalid(&list.path, &json!(""), words);
    }
}

fn mounts(errors: &mut Errors, container: &At, around: &Around) {
    let list = container.child("volumeMounts");
    let devices = container.child("volumeDevices");
    let is_device = |field: &str, text: &str| devices.items().any(|d| d.child(field).text() == text);
    let mut paths = BTreeSet::new();
    for mount in list.items() {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        if name.text().is_empty() {
            name.required(errors, "");
        }
        if !around.volumes.contains_key(name.text()) {
            name.not_found(errors);
        }
        if path.text().is_empty() {
            path.required(errors, "");
        }
        if !paths.insert(path.text()) {
            path.invalid(errors, "must be unique");
        }
        if is_device("name", name.text()) {
            name.invalid(errors, "must not already exist in volumeDevices");
        }
        if is_device("devicePath", path.text()) {
            path.invalid(errors, "must not already exist as a path in volumeDevices");
        }
        mount_options(errors, &list, &mount, container);
    }
}

/// The real server names the list here, not the mount.
fn mount_options(errors: &mut Errors, list: &At, mount: &At, container: &At) {
    let of_list = |field: &str| At::new(mount.child(field).value, format!("{}.{field}", list.path));
    let (path, pattern) = (of_list("subPath"), of_list("subPathExpr"));
    volumes::descending_path(errors, &path);
    if !pattern.text().is_empty() {
        if !path.text().is_empty() {
            mount
                .child("subPathExpr")
                .invalid(errors, "subPathExpr and subPath are mutually exclusive");
        }
        volumes::descending_path(errors, &pattern);
    }
    let propagation = of_list("mountPropagation");
    if propagation.is_set() {
        propagation.one_of(errors, &["Bidirectional", "HostToContainer", "None"]);
        let privileged = container.down(&["securityContext", "privileged"]).is_true();
        if propagation.text() == "Bidirectional" && !privileged {
            let words = "Bidirectional mount propagation is available only to privileged containers";
            propagation.forbidden(errors, words);
        }
    }
    let recursive = of_list("recursiveReadOnly");
    if recursive.is_set() {
        recursive.one_of(errors, &["Disabled", "Enabled", "IfPossible"]);
        if recursive.text() != "Disabled" {
            if !mount.child("readOnly").is_true() {
                recursive.forbidden(errors, "may only be specified when readOnly is true");
            }
            if !matches!(propagation.text(), "" | "None") {
                recursive.forbidden(
                    errors,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
    }
}

fn devices(errors: &mut Errors, container: &At, around: &Around) {
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for device in container.child("volumeDevices").items() {
        let (name, path) = (device.child("name"), device.child("devicePath"));
        for (field, seen) in [(&name, &mut names), (&path, &mut paths)] {
            if field.text().is_empty() {
                field.required(errors, "");
            } else if !seen.insert(field.text()) {
                field.invalid(errors, "must be unique");
            }
        }
        match around.volumes.get(name.text()) {
            None => name.not_found(errors),
            Some(source)
                if source
                    .get("persistentVolumeClaim")
                    .or(source.get("ephemeral"))
                    .is_none() =>
            {
                let words = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                name.invalid(errors, words);
            }
            Some(_) => {}
        }
        if path.text().split('/').any(|part| part == "..") {
            path.invalid(errors, "can not contain backsteps ('..')");
        }
    }
}

fn resize_policy(errors: &mut Errors, list: &At, around: &Around) {
    let mut seen = BTreeSet::new();
    for policy in list.items() {
        let resource = policy.child("resourceName").text();
        if !seen.insert(resource) {
            errors.duplicate(&policy.path, &json!(resource));
        }
        for (field, supported) in [
            ("resourceName", ["cpu", "memory"]),
            ("restartPolicy", ["NotRequired", "RestartContainer"]),
        ] {
            At::new(policy.child(field).value, list.path.clone()).required_one_of(errors, &supported);
        }
        let restart = policy.child("restartPolicy").text();
        if around.restart_policy == "Never" && restart != "NotRequired" {
            let words = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(&list.path, &json!(restart), words);
        }
    }
}

fn restart_policy(errors: &mut Errors, container: &At) {
    let (policy, rules) = (container.child("restartPolicy"), container.child("restartPolicyRules"));
    if policy.is_set() {
        policy.one_of(errors, &RESTART_POLICIES);
    } else if rules.items().next().is_some() {
        policy.required(errors, "must specify restartPolicy when restart rules are used");
    }
    let count = rules.items().count();
    if count > 20 {
        errors.too_many(&rules.path, count, 20);
    }
    for rule in rules.items() {
        rule.child("action")
            .one_of(errors, &["Restart", "RestartAllContainers"]);
        let codes = rule.child("exitCodes");
        if codes.is_set() {
            codes.child("operator").one_of(errors, &["In", "NotIn"]);
        } else {
            codes.required(errors, "must be specified");
        }
    }
}

/// Probes and lifecycle hooks.
fn hooks(errors: &mut Errors, container: &At, around: &Around) {
    let lifecycle = container.child("lifecycle");
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = lifecycle.child(hook).set() {
            handler(errors, &hook, around.grace);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.child(name).set() else {
            continue;
        };
        handler(errors, &probe, around.grace);
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            probe.child(field).non_negative(errors);
        }
        let grace = probe.child("terminationGracePeriodSeconds");
        if grace.number().is_some_and(|n| n <= 0) {
            grace.invalid(errors, "must be greater than 0");
        }
        let successes = probe.child("successThreshold");
        if name == "readinessProbe" {
            if grace.is_set() {
                grace.invalid(errors, "must not be set for readinessProbes");
            }
        } else if successes.number() != Some(1) {
            successes.invalid(errors, "must be 1");
        }
    }
}

/// One thing to do: exec, httpGet, tcpSocket, grpc or sleep.
fn handler(errors: &mut Errors, at: &At, grace: Option<i64>) {
    let mut first = true;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = at.child(kind).set() else {
            continue;
        };
        if !first {
            action.forbidden(errors, "may not specify more than 1 handler type");
            continue;
        }
        first = false;
        match kind {
            "exec" if action.child("command").items().next().is_none() => action.child("command").required(errors, ""),
            "exec" => {}
            "httpGet" => http_get(errors, &action),
            "sleep" => sleep(errors, &action, grace),
            _ => port(errors, &action.child("port")),
        }
    }
    if first {
        at.required(errors, "must specify a handler type");
    }
}

fn sleep(errors: &mut Errors, action: &At, grace: Option<i64>) {
    let Some(grace) = grace else { return };
    let seconds = action.child("seconds").number().unwrap_or_default();
    if !(0..=grace).contains(&seconds) {
        let words = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(&action.path, &json!(seconds), &words);
    }
}

fn http_get(errors: &mut Errors, action: &At) {
    if action.child("path").text().is_empty() {
        action.child("path").required(errors, "");
    }
    port(errors, &action.child("port"));
    action.child("scheme").one_of(errors, &["HTTP", "HTTPS"]);
    for header in action.child("httpHeaders").items() {
        let name = header.child("name").text();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let words = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                         regex used for validation is '[-A-Za-z0-9]+')";
            errors.invalid(format!("{}.httpHeaders", action.path), &json!(name), words);
        }
    }
}

/// A port by number or by name.
fn port(errors: &mut Errors, at: &At) {
    match at.value {
        Value::String(name) => at.complain(errors, is_port_name(name)),
        _ => {
            let number = at.number().unwrap_or_default();
            for words in is_port(number) {
                errors.invalid(&at.path, &json!(number), &words);
            }
        }
    }
}
