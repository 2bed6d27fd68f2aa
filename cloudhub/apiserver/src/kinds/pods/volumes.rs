//! Whether the volumes of a pod make sense. Sources that no edge mounts (clouds' disks) are checked for being the only one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::kinds::fields::{At, Quantity, is_dns1123_label, is_qualified_name};
use crate::status::Errors;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Which check a source gets.
type Check = fn(&mut Errors, &At);

/// Every source, in the order in which the real server looks at them.
const SOURCES: [(&str, Check); 30] = [
    ("emptyDir", empty_dir),
    ("hostPath", host_path),
    ("gitRepo", |errors, at| need(errors, at, &["repository"])),
    ("gcePersistentDisk", |errors, at| need(errors, at, &["pdName"])),
    ("awsElasticBlockStore", |errors, at| need(errors, at, &["volumeID"])),
    ("secret", secret),
    ("nfs", nfs),
    ("iscsi", |errors, at| need(errors, at, &["targetPortal", "iqn"])),
    ("glusterfs", |errors, at| need(errors, at, &["endpoints", "path"])),
    ("flocker", |_, _| {}),
    ("persistentVolumeClaim", |errors, at| need(errors, at, &["claimName"])),
    ("rbd", |errors, at| need(errors, at, &["monitors", "image"])),
    ("cinder", |errors, at| need(errors, at, &["volumeID"])),
    ("cephfs", |errors, at| need(errors, at, &["monitors"])),
    ("quobyte", |errors, at| need(errors, at, &["registry", "volume"])),
    ("downwardAPI", downward_api),
    ("fc", |_, _| {}),
    ("flexVolume", |errors, at| need(errors, at, &["driver"])),
    ("configMap", config_map),
    ("azureFile", |errors, at| need(errors, at, &["secretName", "shareName"])),
    ("vsphereVolume", |errors, at| need(errors, at, &["volumePath"])),
    ("photonPersistentDisk", |errors, at| need(errors, at, &["pdID"])),
    ("portworxVolume", |errors, at| need(errors, at, &["volumeID"])),
    ("azureDisk", |errors, at| need(errors, at, &["diskName", "diskURI"])),
    ("storageos", |_, _| {}),
    ("scaleIO", |errors, at| {
        need(errors, at, &["gateway", "system", "volumeName"])
    }),
    ("projected", projected),
    ("csi", |errors, at| need(errors, at, &["driver"])),
    ("ephemeral", |errors, at| need(errors, at, &["volumeClaimTemplate"])),
    ("image", image),
];

/// Checks `volumes`; what came through, by name, for the mounts to refer to.
pub(super) fn validate<'a>(errors: &mut Errors, volumes: &At<'a>) -> BTreeMap<&'a str, &'a Value> {
    let mut sound = BTreeMap::new();
    for volume in volumes.items() {
        let before = errors.causes().len();
        source(errors, &volume);
        let name = volume.child("name");
        name.named(errors, is_dns1123_label);
        if sound.contains_key(name.text()) {
            name.duplicate(errors);
        }
        if errors.causes().len() == before {
            sound.insert(name.text(), volume.value);
        }
    }
    sound
}

fn source(errors: &mut Errors, volume: &At) {
    let mut first = true;
    for (name, check) in SOURCES {
        let Some(source) = volume.child(name).set() else {
            continue;
        };
        if first {
            check(errors, &source);
        } else {
            source.forbidden(errors, "may not specify more than 1 volume type");
        }
        first = false;
    }
    if first {
        volume.required(errors, "must specify a volume type");
    }
}

fn need(errors: &mut Errors, at: &At, names: &[&str]) {
    for name in names {
        let field = at.child(name);
        let empty = match field.value {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Null => true,
            _ => false,
        };
        if empty {
            field.required(errors, "");
        }
    }
}

fn mode(errors: &mut Errors, at: &At) {
    if at.number().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        at.invalid(errors, MODE);
    }
}

fn empty_dir(errors: &mut Errors, at: &At) {
    let limit = at.child("sizeLimit");
    if !limit.is_set() {
        return;
    }
    match Quantity::from_json(limit.value) {
        Ok(amount) if !amount.is_negative() => {}
        Ok(_) => limit.forbidden(errors, "SizeLimit field must be a valid resource quantity"),
        Err(words) => limit.invalid(errors, words),
    }
}

fn host_path(errors: &mut Errors, at: &At) {
    let path = at.child("path");
    if path.text().is_empty() {
        path.required(errors, "");
        return;
    }
    no_backsteps(errors, &path);
    let kinds = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    at.child("type").one_of(errors, &kinds);
}

fn nfs(errors: &mut Errors, at: &At) {
    need(errors, at, &["server", "path"]);
    let path = at.child("path");
    if !path.text().is_empty() && !path.text().starts_with('/') {
        path.invalid(errors, "must be an absolute path");
    }
}

fn image(errors: &mut Errors, at: &At) {
    need(errors, at, &["reference"]);
    at.child("pullPolicy")
        .required_one_of(errors, &["Always", "IfNotPresent", "Never"]);
}

fn secret(errors: &mut Errors, at: &At) {
    need(errors, at, &["secretName"]);
    keys(errors, at);
}

fn config_map(errors: &mut Errors, at: &At) {
    need(errors, at, &["name"]);
    keys(errors, at);
}

fn keys(errors: &mut Errors, at: &At) {
    mode(errors, &at.child("defaultMode"));
    for item in at.child("items").items() {
        key_to_path(errors, &item);
    }
}

fn key_to_path(errors: &mut Errors, item: &At) {
    need(errors, item, &["key", "path"]);
    relative_path(errors, &item.child("path"));
    mode(errors, &item.child("mode"));
}

fn downward_api(errors: &mut Errors, at: &At) {
    mode(errors, &at.child("defaultMode"));
    for file in at.child("items").items() {
        // The real server names the source here, not the file.
        downward_file(errors, &At::new(file.value, at.path.clone()));
    }
}

fn downward_file(errors: &mut Errors, file: &At) {
    need(errors, file, &["path"]);
    relative_path(errors, &file.child("path"));
    let (field, resource) = (file.child("fieldRef"), file.child("resourceFieldRef"));
    if field.is_set() {
        field_ref(errors, &field, &VOLUME_FIELDS);
        if resource.is_set() {
            let words = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.invalid(&file.path, &json!("resource"), words);
        }
    } else if resource.is_set() {
        resource_field_ref(errors, &resource, true);
    } else {
        file.required(errors, "one of fieldRef and resourceFieldRef is required");
    }
    mode(errors, &file.child("mode"));
}

const VOLUME_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Fields of a pod that some `fieldRef` could mean.
const POD_FIELDS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Checks a `fieldRef`; `supported` are those that mean something here.
pub(super) fn field_ref(errors: &mut Errors, at: &At, supported: &[&str]) {
    let (version, path) = (at.child("apiVersion"), at.child("fieldPath"));
    if version.text().is_empty() {
        version.required(errors, "");
        return;
    }
    if path.text().is_empty() {
        path.required(errors, "");
        return;
    }
    let fault = |errors: &mut Errors, words: String| {
        path.invalid(errors, &format!("error converting fieldPath: {words}"));
    };
    if version.text() != "v1" {
        fault(errors, format!("unsupported pod version: {}", version.text()));
        return;
    }
    let subscript = path.text().strip_suffix("']").and_then(|p| p.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => at.complain_about(errors, key, &key.to_lowercase()),
        Some(("metadata.labels", key)) => at.complain_about(errors, key, key),
        Some(_) => fault(
            errors,
            format!("field label does not support subscript: {}", path.text()),
        ),
        None if !POD_FIELDS.contains(&path.text()) => {
            fault(errors, format!("field label not supported: {}", path.text()));
        }
        None => path.one_of(errors, supported),
    }
}

impl At<'_> {
    fn complain_about(&self, errors: &mut Errors, shown: &str, name: &str) {
        for words in is_qualified_name(name) {
            errors.invalid(&self.path, &json!(shown), &words);
        }
    }
}

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks a `resourceFieldRef`.
pub(super) fn resource_field_ref(errors: &mut Errors, at: &At, needs_container: bool) {
    let resource = at.child("resource");
    let huge = resource.text().contains("s.hugepages-");
    if needs_container && at.child("containerName").text().is_empty() {
        at.child("containerName").required(errors, "");
    } else if resource.text().is_empty() {
        resource.required(errors, "");
    } else if !huge {
        resource.one_of(errors, &RESOURCE_FIELDS);
    }
    let divisor = at.child("divisor");
    let Some(amount) = divisor.clone().set().and_then(|d| Quantity::from_json(d.value).ok()) else {
        return;
    };
    if amount.is_zero() {
        return;
    }
    let (what, supported): (_, &[&str]) = match resource.text() {
        "limits.cpu" | "requests.cpu" => ("the cpu resource", &["1m", "1"]),
        "limits.memory" | "requests.memory" => ("the memory resource", &BYTES),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => ("the local ephemeral storage resource", &BYTES),
        _ if huge => ("the hugepages resource", &BYTES),
        _ => return,
    };
    if !supported.contains(&amount.canonical().as_str()) {
        let list = if supported.len() == 2 {
            "1m and 1".into()
        } else {
            supported.join(", ")
        };
        let words = format!("only divisor's values {list} are supported with {what}");
        errors.invalid(&divisor.path, &json!(resource.text()), &words);
    }
}

const BYTES: [&str; 13] = [
    "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

fn projected(errors: &mut Errors, at: &At) {
    mode(errors, &at.child("defaultMode"));
    let mut paths = BTreeSet::new();
    for source in at.child("sources").items() {
        let mut count = 0;
        for kind in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            if let Some(part) = source.child(kind).set() {
                count += 1;
                projection(errors, at, kind, &part);
                unique_paths(errors, at, &part, &mut paths);
            }
        }
        if count > 1 {
            source.forbidden(errors, "may not specify more than 1 volume type per source");
        }
    }
}

fn projection(errors: &mut Errors, volume: &At, kind: &str, part: &At) {
    match kind {
        "secret" | "configMap" => {
            need(errors, part, &["name"]);
            for item in part.child("items").items() {
                key_to_path(errors, &item);
            }
        }
        "downwardAPI" => {
            for file in part.child("items").items() {
                downward_file(errors, &At::new(file.value, part.path.clone()));
            }
        }
        "serviceAccountToken" => {
            let seconds = part.child("expirationSeconds");
            match seconds.number().unwrap_or_default() {
                n if n < 600 => seconds.invalid(errors, "may not specify a duration less than 10 minutes"),
                n if n > 1 << 32 => seconds.invalid(errors, "may not specify a duration larger than 2^32 seconds"),
                _ => {}
            }
            // The real server names the path of the volume, not of the source.
            let path = At::new(part.child("path").value, format!("{}.path", volume.path));
            if path.text().is_empty() {
                path.required(errors, "");
            } else {
                relative_path(errors, &path);
            }
        }
        "clusterTrustBundle" => need(errors, part, &["path"]),
        _ => need(errors, part, &["signerName", "keyType"]),
    }
}

fn unique_paths(errors: &mut Errors, volume: &At, part: &At, paths: &mut BTreeSet<String>) {
    for item in part.child("items").items() {
        let path = item.child("path").text();
        if !path.is_empty() && !paths.insert(path.to_owned()) {
            let shown = part.value.get("name").cloned().unwrap_or_else(|| json!(path));
            errors.invalid(&volume.path, &shown, "conflicting duplicate paths");
        }
    }
}

/// A path without `..`.
pub(super) fn no_backsteps(errors: &mut Errors, at: &At) {
    if at.text().split('/').any(|part| part == "..") {
        at.invalid(errors, "must not contain '..'");
    }
}

/// A path that stays inside.
pub(super) fn descending_path(errors: &mut Errors, at: &At) {
    if at.text().starts_with('/') {
        at.invalid(errors, "must be a relative path");
    }
    no_backsteps(errors, at);
}

/// A path that stays inside, and does not begin as the volume's own files do.
fn relative_path(errors: &mut Errors, at: &At) {
    descending_path(errors, at);
    if at.text().starts_with("..") && !at.text().starts_with("../") {
        at.invalid(errors, "must not start with '..'");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(volumes: Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&mut errors, &At::new(&volumes, "v"));
        errors
            .causes()
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn a_volume_has_one_source_and_a_name_of_its_own() {
        assert_eq!(
            faults(json!([{"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}}])),
            ["v[0].hostPath: Forbidden: may not specify more than 1 volume type"]
        );
        assert_eq!(
            faults(json!([{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}])),
            ["v[1].name: Duplicate value: \"a\""]
        );
        assert_eq!(
            faults(json!([{"name": "a"}])),
            ["v[0]: Required value: must specify a volume type"]
        );
        assert_eq!(faults(json!([{"emptyDir": {}}])), ["v[0].name: Required value"]);
    }

    #[test]
    fn paths_stay_inside_the_volume() {
        let volumes = json!([{"name": "a", "configMap": {"name": "c", "defaultMode": 1000,
            "items": [{"key": "k", "path": "../x"}]}}]);
        assert_eq!(
            faults(volumes),
            [
                format!("v[0].configMap.defaultMode: Invalid value: 1000: {MODE}"),
                "v[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'".to_owned()
            ]
        );
    }

    #[test]
    fn a_field_reference_names_a_field_that_is_there() {
        let check = |path: &str| {
            let mut errors = Errors::default();
            let reference = json!({"apiVersion": "v1", "fieldPath": path});
            field_ref(&mut errors, &At::new(&reference, "f"), &VOLUME_FIELDS);
            errors.causes().iter().map(|c| c.message.clone()).collect::<Vec<_>>()
        };
        assert!(check("metadata.labels['a/b']").is_empty());
        assert!(check("metadata.uid").is_empty());
        assert_eq!(
            check("metadata.color"),
            [
                "Invalid value: \"metadata.color\": error converting fieldPath: field label not supported: metadata.color"
            ]
        );
        assert!(check("spec.nodeName")[0].starts_with("Unsupported value: \"spec.nodeName\""));
    }
}
