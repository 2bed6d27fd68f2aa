//! The plugins that fill in a pod (Priority, DefaultTolerationSeconds, RuntimeClass) or a new Node (TaintNodesByCondition).

use serde_json::{Map, Value, json};

use super::super::storage;
use super::service_account::append;
use super::{Auth, Operation, Request};
use crate::object::{self, items, text};
use crate::status::Status;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const SCHEDULING: &str = "scheduling.k8s.io";

/// A new Node takes no pods until the node controller has seen it ready.
pub(super) fn taint_node(request: &mut Request<'_>) {
    if !request.is("", "nodes") || !request.subresource.is_empty() || request.operation != Operation::Create {
        return;
    }
    let Some(node) = request.object.as_deref_mut() else {
        return;
    };
    let is_it = |taint: &Value| text(taint, "/key") == NOT_READY && text(taint, "/effect") == "NoSchedule";
    if items(node, "/spec/taints").iter().any(is_it) {
        return;
    }
    object::map(node, "spec");
    append(
        &mut node["spec"],
        "taints",
        json!({"key": NOT_READY, "effect": "NoSchedule"}),
    );
}

/// A pod that does not say stays a while on a node that is away.
pub(super) fn default_tolerations(auth: &Auth, request: &mut Request<'_>) {
    if !request.is_pod() {
        return;
    }
    let Some(pod) = request.object.as_deref_mut() else {
        return;
    };
    object::map(pod, "spec");
    let config = &auth.inner.config;
    for (key, seconds) in [
        (NOT_READY, config.not_ready_toleration_seconds),
        (UNREACHABLE, config.unreachable_toleration_seconds),
    ] {
        let tolerates = |toleration: &Value| {
            let (has, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
            (has == key || has.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        };
        if !items(pod, "/spec/tolerations").iter().any(tolerates) {
            let toleration =
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
            append(&mut pod["spec"], "tolerations", toleration);
        }
    }
}

/// priorityClassName → priority and preemptionPolicy.
pub(super) fn set_priority(auth: &Auth, request: &mut Request<'_>) -> Result<(), Status> {
    if !request.is_pod() {
        return Ok(());
    }
    if request.operation == Operation::Update {
        keep_priority(request);
        return Ok(());
    }
    let name = text(request.object(), "/spec/priorityClassName");
    let class = if name.is_empty() {
        default_class(auth)
    } else {
        let class = auth.read(SCHEDULING, "priorityclasses", "", name);
        let missing = || request.forbidden(format!("no PriorityClass with name {name} was found"));
        Some(class.ok_or_else(missing)?)
    };
    let value = class
        .as_ref()
        .and_then(|class| class.get("value"))
        .and_then(Value::as_i64);
    let value = value.unwrap_or_default();
    let policy = match &class {
        Some(class) => text(class, "/preemptionPolicy").to_owned(),
        None => "PreemptLowerPriority".into(),
    };
    let said = request.object().pointer("/spec/priority").and_then(Value::as_i64);
    if let Some(said) = said.filter(|said| *said != value) {
        return Err(request.forbidden(format!(
            "the integer value of priority ({said}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    let said = text(request.object(), "/spec/preemptionPolicy");
    if !said.is_empty() && !policy.is_empty() && said != policy {
        return Err(request.forbidden(format!(
            "the string value of PreemptionPolicy ({said}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    let Some(pod) = request.object.as_deref_mut() else {
        return Ok(());
    };
    let spec = object::map(pod, "spec");
    if let Some(class) = &class {
        spec.insert("priorityClassName".into(), object::name(class).into());
    }
    spec.insert("priority".into(), value.into());
    if !policy.is_empty() {
        spec.insert("preemptionPolicy".into(), policy.into());
    }
    Ok(())
}

/// An update that leaves them out does not mean to change them.
fn keep_priority(request: &mut Request<'_>) {
    let current = request.current();
    let fields = ["priority", "preemptionPolicy"];
    let kept = fields.map(|field| (field, current.pointer(&format!("/spec/{field}")).cloned()));
    let Some(pod) = request.object.as_deref_mut() else {
        return;
    };
    let spec = object::map(pod, "spec");
    for (field, value) in kept {
        if let Some(value) = value {
            object::default(spec, field, value);
        }
    }
}

/// The class of pods that name none: the lowest of those marked so.
fn default_class(auth: &Auth) -> Option<Value> {
    let (_, classes) = auth
        .inner
        .store
        .list(storage(SCHEDULING, "priorityclasses"), None, None, usize::MAX);
    let classes = classes.iter().map(|class| class.value());
    let marked = classes.filter(|class| class.get("globalDefault").and_then(Value::as_bool) == Some(true));
    marked.min_by_key(|class| class.get("value").and_then(Value::as_i64).unwrap_or_default())
}

pub(super) fn validate_priority_class(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    let class = request.object();
    if !request.is(SCHEDULING, "priorityclasses") || class.get("globalDefault").and_then(Value::as_bool) != Some(true) {
        return Ok(());
    }
    let Some(other) = default_class(auth) else {
        return Ok(());
    };
    let other = object::name(&other);
    if request.operation == Operation::Update && other == object::name(class) {
        return Ok(());
    }
    Err(request.forbidden(format!(
        "PriorityClass {other} is already marked as default. Only one default can exist"
    )))
}

fn runtime_class(auth: &Auth, request: &Request<'_>) -> Result<Option<Value>, Status> {
    let name = text(request.object(), "/spec/runtimeClassName");
    if name.is_empty() {
        return Ok(None);
    }
    let class = auth.read("node.k8s.io", "runtimeclasses", "", name);
    let missing = || request.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"));
    class.ok_or_else(missing).map(Some)
}

/// The fixed overhead of a RuntimeClass, if it has any.
fn overhead(class: Option<&Value>) -> Option<&Map<String, Value>> {
    class?.pointer("/overhead/podFixed")?.as_object()
}

const OVERHEAD_DIFFERS: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// Overhead, nodeSelector and tolerations of the RuntimeClass.
pub(super) fn set_runtime_class(auth: &Auth, request: &mut Request<'_>) -> Result<(), Status> {
    if !request.is_pod() || request.operation != Operation::Create {
        return Ok(());
    }
    let Some(class) = runtime_class(auth, request)? else {
        return Ok(());
    };
    if let Some(overhead) = overhead(Some(&class)) {
        let said = request.object().pointer("/spec/overhead").and_then(Value::as_object);
        if said.is_some_and(|said| !said.is_empty() && said != overhead) {
            return Err(request.forbidden(OVERHEAD_DIFFERS));
        }
    }
    for (key, value) in class
        .pointer("/scheduling/nodeSelector")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let value = value.as_str().unwrap_or_default();
        let said = request
            .object()
            .pointer("/spec/nodeSelector")
            .and_then(|selector| selector.get(key));
        if let Some(said) = said.and_then(Value::as_str).filter(|said| *said != value) {
            return Err(request.forbidden(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {said}"
            )));
        }
    }
    if let Some(pod) = request.object.as_deref_mut() {
        merge_runtime_class(pod, &class);
    }
    Ok(())
}

fn merge_runtime_class(pod: &mut Value, class: &Value) {
    let spec = object::map(pod, "spec");
    if let Some(overhead) = overhead(Some(class)) {
        spec.insert("overhead".into(), Value::Object(overhead.clone()));
    }
    if let Some(selector) = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object) {
        object::map(&mut pod["spec"], "nodeSelector").extend(selector.clone());
    }
    for toleration in items(class, "/scheduling/tolerations") {
        if !items(pod, "/spec/tolerations").contains(toleration) {
            append(&mut pod["spec"], "tolerations", toleration.clone());
        }
    }
}

pub(super) fn validate_overhead(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    if !request.is_pod() || request.operation != Operation::Create {
        return Ok(());
    }
    let class = runtime_class(auth, request)?;
    let said = request.object().pointer("/spec/overhead").filter(|o| !o.is_null());
    match overhead(class.as_ref()) {
        Some(overhead) if said.and_then(Value::as_object) != Some(overhead) => Err(request.forbidden(OVERHEAD_DIFFERS)),
        None if said.is_some() => {
            Err(request.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
        }
        _ => Ok(()),
    }
}
