//! ServiceAccount: a pod runs as an account of its namespace, and finds its token, the API's CA and its namespace in a volume.

use rand::Rng;
use serde_json::{Value, json};

use super::super::{references, storage, tokens};
use super::{Auth, Operation, Request};
use crate::object::{self, items, text};
use crate::status::Status;
use crate::store::Key;

const DEFAULT: &str = "default";
/// Where every container finds the volume.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// Letters and digits of generated names: none that makes words or looks like another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Mode of the files, 0644.
const MODE: u32 = 0o644;

fn account_name(pod: &Value) -> &str {
    match text(pod, "/spec/serviceAccountName") {
        "" => DEFAULT,
        name => name,
    }
}

/// Returns when the account that the pod needs is there; at once when it is not the one that a controller makes.
pub(super) async fn arrival(auth: &Auth, request: &Request<'_>) {
    if account_name(request.object()) != DEFAULT || references::is_mirror(request.object()) {
        return;
    }
    let store = &auth.inner.store;
    let kind = storage("", "serviceaccounts");
    let key = Key::new(kind, request.namespace, DEFAULT);
    // The watch begins before the look: an account that comes between the two is not missed.
    let watch = store.watch(kind, Some(request.namespace), store.version());
    let namespace = store.get(&Key::new(storage("", "namespaces"), "", request.namespace));
    let is_active = namespace.is_some_and(|namespace| !object::is_deleting(&namespace.value()));
    let Some(mut watch) = watch.filter(|_| is_active) else {
        return;
    };
    while store.get(&key).is_none() {
        if watch.next().await.is_none() {
            return;
        }
    }
}

fn account(auth: &Auth, request: &Request<'_>, name: &str) -> Result<Value, Status> {
    let namespace = request.namespace;
    auth.read("", "serviceaccounts", namespace, name).ok_or_else(|| {
        request.forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        ))
    })
}

pub(super) fn mutate(auth: &Auth, request: &mut Request<'_>) -> Result<(), Status> {
    if !request.is_pod() || request.operation != Operation::Create {
        return Ok(());
    }
    // A node compares a mirror pod with its file: nothing may be added.
    if references::is_mirror(request.object()) {
        return validate(auth, request);
    }
    let name = account_name(request.object()).to_owned();
    let account = account(auth, request, &name)?;
    let Some(pod) = request.object.as_deref_mut() else {
        return Ok(());
    };
    let spec = object::map(pod, "spec");
    spec.insert("serviceAccountName".into(), name.as_str().into());
    spec.insert("serviceAccount".into(), name.into());
    if is_mounted(pod, &account) {
        mount(pod);
    }
    let pull = items(&account, "/imagePullSecrets");
    if items(pod, "/spec/imagePullSecrets").is_empty() && !pull.is_empty() {
        let pull: Vec<Value> = pull
            .iter()
            .map(|secret| json!({"name": text(secret, "/name")}))
            .collect();
        object::map(pod, "spec").insert("imagePullSecrets".into(), Value::Array(pull));
    }
    Ok(())
}

/// The pod says, else the account, else yes.
fn is_mounted(pod: &Value, account: &Value) -> bool {
    let flag = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_bool);
    flag(pod, "/spec/automountServiceAccountToken")
        .or_else(|| flag(account, "/automountServiceAccountToken"))
        .unwrap_or(true)
}

fn mount(pod: &mut Value) {
    let names = items(pod, "/spec/volumes").iter().map(|volume| text(volume, "/name"));
    let existing = names
        .into_iter()
        .find(|name| name.starts_with(VOLUME))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(volume_name);
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = items(container, "/volumeMounts").iter();
            // What is mounted there already is meant.
            if mounts.into_iter().any(|mount| text(mount, "/mountPath") == MOUNT_PATH) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            append(container, "volumeMounts", mount);
            needed = true;
        }
    }
    if needed && existing.is_none() {
        let source = projected();
        if let Some(spec) = pod.get_mut("spec") {
            append(spec, "volumes", json!({"name": volume, "projected": source}));
        }
    }
}

/// Appends to a list that may be absent or null.
pub(super) fn append(object: &mut Value, field: &str, item: Value) {
    let Some(fields) = object.as_object_mut() else { return };
    let list = fields.entry(field).or_insert_with(|| json!([]));
    if let Value::Array(list) = list {
        list.push(item);
    } else {
        *list = json!([item]);
    }
}

fn volume_name() -> String {
    let mut random = rand::rng();
    let letters = (0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    format!("{VOLUME}{}", letters.collect::<String>())
}

fn projected() -> Value {
    json!({
        "defaultMode": MODE,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": tokens::WARN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
            ]}},
        ],
    })
}

pub(super) fn validate(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    if !request.is_pod() || request.operation != Operation::Create {
        return Ok(());
    }
    let pod = request.object();
    if references::is_mirror(pod) {
        return validate_mirror(request);
    }
    let name = text(pod, "/spec/serviceAccountName");
    if name.is_empty() {
        let (namespace, pod) = (request.namespace, object::name(pod));
        return Err(request.forbidden(format!("no service account specified for pod {namespace}/{pod}")));
    }
    account(auth, request, name).map(|_| ())
}

/// A mirror pod stands for something that runs without the API: it gives no access to it.
fn validate_mirror(request: &Request<'_>) -> Result<(), Status> {
    let pod = request.object();
    let why = if !text(pod, "/spec/serviceAccountName").is_empty() {
        "a mirror pod may not reference service accounts"
    } else if !references::secrets(pod).is_empty() {
        "a mirror pod may not reference secrets"
    } else if items(pod, "/spec/volumes").iter().any(has_token) {
        "a mirror pod may not use ServiceAccountToken volume projections"
    } else {
        return Ok(());
    };
    Err(request.forbidden(why))
}

fn has_token(volume: &Value) -> bool {
    let mut sources = items(volume, "/projected/sources").iter();
    sources.any(|source| source.get("serviceAccountToken").is_some())
}
