//! Namespace, ConfigMap, Secret, ServiceAccount, and Event in both its groups.

mod events;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::fields::{complain, is_config_key, is_qualified_name};
use super::{Row, Strategy, column};
use crate::object::{self, carry, default, items, map, text};
use crate::status::Errors;

pub(super) const ROWS: &[Row] = &[
    Row {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        namespaced: false,
        storage: "namespaces",
        status: true,
        scale: false,
        generation: false,
        selectable: &[("status.phase", "/status/phase")],
        columns: &[column("Status")],
        strategy: &Namespaces,
    },
    Row {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        categories: &[],
        namespaced: true,
        storage: "configmaps",
        status: false,
        scale: false,
        generation: false,
        selectable: &[],
        columns: &[column("Data")],
        strategy: &ConfigMaps,
    },
    Row {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        categories: &[],
        namespaced: true,
        storage: "secrets",
        status: false,
        scale: false,
        generation: false,
        selectable: &[("type", "/type")],
        columns: &[column("Type"), column("Data")],
        strategy: &Secrets,
    },
    Row {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        namespaced: true,
        storage: "serviceaccounts",
        status: false,
        scale: false,
        generation: false,
        selectable: &[],
        columns: &[],
        strategy: &ServiceAccounts,
    },
    events::CORE,
    events::EVENTS,
];

/// What a ConfigMap or Secret may hold, bytes.
const DATA_LIMIT: usize = 1 << 20;
/// The finalizer that namespace deletion takes away.
const KUBERNETES: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Debug)]
struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        label_with_name(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        // A generated name was not there yet when the defaults were put.
        label_with_name(object);
        object["status"] = json!({"phase": "Active"});
        let finalizers = map(object, "spec").entry("finalizers").or_insert_with(|| json!([]));
        if let Some(finalizers) = finalizers.as_array_mut()
            && !finalizers.contains(&json!(KUBERNETES))
        {
            finalizers.push(json!(KUBERNETES));
        }
    }

    fn prepare_update(&self, object: &mut Value, current: &Value) {
        carry(object, current, "spec");
        label_with_name(object);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        for finalizer in items(object, "/spec/finalizers") {
            finalizer_makes_sense(errors, "spec.finalizers", finalizer);
        }
    }

    fn validate_status(&self, object: &Value, _current: &Value, errors: &mut Errors) {
        let phase = object.pointer("/status/phase").cloned().unwrap_or_else(|| json!(""));
        if object::is_deleting(object) {
            if phase != "Terminating" {
                let words = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                errors.invalid("status.Phase", &phase, words);
            }
        } else if phase != "Active" {
            let words = "may only be 'Active' if `deletionTimestamp` is empty";
            errors.invalid("status.Phase", &phase, words);
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![json!(text(object, "/status/phase"))]
    }

    fn label_name(&self) -> bool {
        true
    }
}

fn label_with_name(namespace: &mut Value) {
    let name = object::name(namespace).to_owned();
    if name.is_empty() {
        return;
    }
    let metadata = object::metadata(namespace);
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(NAME_LABEL.into(), json!(name));
    }
}

fn finalizer_makes_sense(errors: &mut Errors, field: &str, finalizer: &Value) {
    let name = finalizer.as_str().unwrap_or_default();
    complain(errors, field, finalizer, is_qualified_name(name));
    if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
        let words = "name is neither a standard finalizer name nor is it fully qualified";
        errors.invalid(field, finalizer, words);
    }
}

/// The first DELETE of a namespace: it is Terminating until its controller has emptied it. Idempotent.
pub(crate) fn begin_namespace_deletion(object: &mut Value) {
    let now = object::timestamp(object::now());
    default(object::metadata(object), "deletionTimestamp", now);
    map(object, "status").insert("phase".into(), json!("Terminating"));
}

/// Whether nothing holds a namespace that is being deleted any more: no finalizers, neither in `spec` nor in `metadata`.
pub(crate) fn namespace_may_go(object: &Value) -> bool {
    object::is_deleting(object)
        && items(object, "/spec/finalizers").is_empty()
        && items(object, "/metadata/finalizers").is_empty()
}

/// A PUT to `namespaces/NAME/finalize`: it sets `spec.finalizers`, whose status stays. Returns what is wrong with them.
pub(crate) fn finalize(object: &mut Value, current: &Value) -> Errors {
    carry(object, current, "status");
    label_with_name(object);
    let mut errors = Errors::default();
    for (index, finalizer) in items(object, "/spec/finalizers").iter().enumerate() {
        finalizer_makes_sense(&mut errors, &format!("spec.finalizers[{index}]"), finalizer);
    }
    errors
}

/// The map at `field`; none where it is absent.
fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let entries = object.get(field).and_then(Value::as_object);
    entries.into_iter().flatten()
}

fn count(object: &Value, field: &str) -> usize {
    entries(object, field).count()
}

/// Length of what a base64 text stands for; None where it is none.
fn decoded(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}

fn keys_make_sense(errors: &mut Errors, object: &Value, field: &str) {
    for (key, _) in entries(object, field) {
        complain(errors, &format!("{field}[{key}]"), &json!(key), is_config_key(key));
    }
}

/// Bytes in a map of base64 texts.
fn decoded_size(errors: &mut Errors, object: &Value, field: &str) -> usize {
    let mut size = 0;
    for (key, value) in entries(object, field) {
        match decoded(value) {
            Some(bytes) => size += bytes.len(),
            // The value may be a secret, so it is not shown.
            None => errors.invalid(
                format!("{field}[{key}]"),
                &json!("<contents redacted>"),
                "illegal base64 data",
            ),
        }
    }
    size
}

const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// An object that says `immutable` keeps saying so, and keeps its data.
fn stays_immutable(errors: &mut Errors, object: &Value, current: &Value, fields: &[&str]) {
    let is_set = |o: &Value| o.get("immutable") == Some(&json!(true));
    if !is_set(current) {
        return;
    }
    if !is_set(object) {
        errors.forbidden("immutable", IMMUTABLE);
    }
    for field in fields {
        let differs = count(object, field) != count(current, field)
            || entries(object, field).any(|(key, value)| current[field].get(key) != Some(value));
        if differs {
            errors.forbidden(*field, IMMUTABLE);
        }
    }
}

#[derive(Debug)]
struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        keys_make_sense(errors, object, "data");
        for (key, _) in entries(object, "data") {
            if object["binaryData"].get(key).is_some() {
                let words = "duplicate of key present in binaryData";
                errors.invalid(format!("data[{key}]"), &json!(key), words);
            }
        }
        keys_make_sense(errors, object, "binaryData");
        let texts: usize = entries(object, "data")
            .map(|(_, value)| value.as_str().unwrap_or_default().len())
            .sum();
        if texts + decoded_size(errors, object, "binaryData") > DATA_LIMIT {
            // The real server names no field either: it is the whole object.
            errors.too_long("", DATA_LIMIT);
        }
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        stays_immutable(errors, object, current, &["data", "binaryData"]);
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![json!(count(object, "data") + count(object, "binaryData"))]
    }
}

#[derive(Debug)]
struct Secrets;

/// The annotation that names the account of a token Secret.
const ACCOUNT: &str = "kubernetes.io/service-account.name";

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        let Some(fields) = object.as_object_mut() else { return };
        let texts = fields.shift_remove("stringData");
        if let Some(Value::Object(texts)) = texts {
            let data = map(object, "data");
            for (key, value) in texts {
                let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
                data.insert(key, json!(encoded));
            }
        }
        let Some(fields) = object.as_object_mut() else { return };
        if fields.get("type").is_none_or(|t| t.is_null() || t == "") {
            fields.insert("type".into(), json!("Opaque"));
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        keys_make_sense(errors, object, "data");
        if decoded_size(errors, object, "data") > DATA_LIMIT {
            errors.too_long("data", DATA_LIMIT);
        }
        type_is_complete(object, errors);
    }

    fn validate_update(&self, object: &Value, current: &Value, errors: &mut Errors) {
        if text(object, "/type") != text(current, "/type") {
            errors.invalid("type", &object["type"], "field is immutable");
        }
        stays_immutable(errors, object, current, &["data"]);
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![json!(text(object, "/type")), json!(count(object, "data"))]
    }
}

/// Each type of Secret has keys that it must have.
fn type_is_complete(object: &Value, errors: &mut Errors) {
    let key = |name: &str| object["data"].get(name);
    match text(object, "/type") {
        "kubernetes.io/service-account-token" => {
            let annotations = object["metadata"]["annotations"].get(ACCOUNT);
            if annotations.and_then(Value::as_str).unwrap_or_default().is_empty() {
                errors.required(format!("metadata.annotations[{ACCOUNT}]"), "");
            }
        }
        "kubernetes.io/dockercfg" => is_json(key(".dockercfg"), "data[.dockercfg]", errors),
        "kubernetes.io/dockerconfigjson" => {
            is_json(key(".dockerconfigjson"), "data[.dockerconfigjson]", errors);
        }
        "kubernetes.io/basic-auth" if key("username").is_none() && key("password").is_none() => {
            errors.required("data[username]", "");
            errors.required("data[password]", "");
        }
        "kubernetes.io/ssh-auth" if key("ssh-privatekey").is_none_or(|v| v == "") => {
            errors.required("data[ssh-privatekey]", "");
        }
        "kubernetes.io/tls" => {
            for name in ["tls.crt", "tls.key"] {
                if key(name).is_none() {
                    errors.required(format!("data[{name}]"), "");
                }
            }
        }
        _ => {}
    }
}

fn is_json(value: Option<&Value>, field: &str, errors: &mut Errors) {
    let Some(value) = value else {
        errors.required(field, "");
        return;
    };
    // What is no base64 is reported with the sizes.
    let Some(bytes) = decoded(value) else { return };
    if let Err(error) = serde_json::from_slice::<Map<String, Value>>(&bytes) {
        // The error's own words may repeat the secret.
        let words = format!("not a JSON object at line {} column {}", error.line(), error.column());
        errors.invalid(field, &json!("<secret contents redacted>"), &words);
    }
}

#[derive(Debug)]
struct ServiceAccounts;

impl Strategy for ServiceAccounts {}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate(object, &mut errors);
        said(&errors)
    }

    fn said(errors: &Errors) -> Vec<String> {
        let causes = errors.causes().iter();
        causes.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn a_namespace_begins_active_with_its_finalizer_and_label() {
        let mut object = json!({"metadata": {"name": "a"}});
        Strategy::default(&Namespaces, &mut object);
        Namespaces.prepare_create(&mut object);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "status": {"phase": "Active"},
                "spec": {"finalizers": ["kubernetes"]},
            })
        );
        assert!(faults(&Namespaces, &object).is_empty());
    }

    #[test]
    fn a_namespace_goes_when_its_finalizers_are_gone() {
        let current =
            json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let mut object = current.clone();
        begin_namespace_deletion(&mut object);
        assert_eq!(object["status"]["phase"], "Terminating");
        assert!(object::is_deleting(&object) && !namespace_may_go(&object));
        let current = object.clone();
        object["spec"] = json!({"finalizers": []});
        object["status"] = json!({"phase": "Active"});
        assert!(finalize(&mut object, &current).is_empty());
        assert_eq!(object["status"]["phase"], "Terminating");
        assert!(namespace_may_go(&object));
        object["spec"] = json!({"finalizers": ["mine"]});
        assert_eq!(
            said(&finalize(&mut object, &current)),
            [
                "spec.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified"
            ]
        );
    }

    #[test]
    fn an_update_keeps_the_finalizers_of_a_namespace() {
        let current = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let mut object = json!({"metadata": {"name": "a", "labels": {"x": "y"}}});
        Namespaces.prepare_update(&mut object, &current);
        assert_eq!(object["spec"], current["spec"]);
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/metadata.name"], "a");
    }

    #[test]
    fn texts_become_data_and_the_type_has_a_default() {
        let mut object = json!({"stringData": {"a": "1"}, "data": {"a": "MA==", "b": "Mg=="}});
        Strategy::default(&Secrets, &mut object);
        assert_eq!(object, json!({"data": {"a": "MQ==", "b": "Mg=="}, "type": "Opaque"}));
        assert_eq!(Secrets.cells(&object), [json!("Opaque"), json!(2)]);
    }

    #[test]
    fn each_type_of_secret_has_its_keys() {
        let tls = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
        assert_eq!(faults(&Secrets, &tls), ["data[tls.key]: Required value"]);
        let docker =
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "InBhc3N3b3JkIg=="}});
        assert!(!faults(&Secrets, &docker)[0].contains("password"));
        assert!(
            faults(&Secrets, &docker)[0]
                .starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\"")
        );
        let token = json!({"type": "kubernetes.io/service-account-token", "metadata": {}});
        assert_eq!(
            faults(&Secrets, &token),
            ["metadata.annotations[kubernetes.io/service-account.name]: Required value"]
        );
        let wrong = json!({"type": "Opaque", "data": {"a b": "!"}});
        assert_eq!(faults(&Secrets, &wrong).len(), 2);
    }

    #[test]
    fn what_is_immutable_stays_so() {
        let current = json!({"type": "Opaque", "immutable": true, "data": {"a": "MQ=="}});
        let object = json!({"type": "x", "data": {"a": "Mg=="}});
        let mut errors = Errors::default();
        Secrets.validate_update(&object, &current, &mut errors);
        assert_eq!(
            said(&errors),
            [
                "type: Invalid value: \"x\": field is immutable",
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
        let mut errors = Errors::default();
        ConfigMaps.validate_update(&current, &current, &mut errors);
        assert!(errors.is_empty());
    }

    #[test]
    fn a_config_map_has_a_mebibyte_and_each_key_once() {
        let fits = json!({"data": {"a": "x".repeat(1 << 20)}});
        assert!(faults(&ConfigMaps, &fits).is_empty());
        let large = json!({"data": {"a": "x".repeat(1 << 20)}, "binaryData": {"b": "eA=="}});
        assert_eq!(
            faults(&ConfigMaps, &large),
            [": Too long: may not be more than 1048576 bytes"]
        );
        let twice = json!({"data": {"a": ""}, "binaryData": {"a": ""}});
        assert_eq!(
            faults(&ConfigMaps, &twice),
            ["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"]
        );
        assert_eq!(ConfigMaps.cells(&twice), [json!(2)]);
    }
}
