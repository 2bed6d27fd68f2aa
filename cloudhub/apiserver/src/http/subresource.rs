//! Subresources: status, scale, binding, eviction, ephemeral containers, tokens, finalize; and what goes on to a node: log, exec,
//! attach, portforward, proxy. Reviews are here too: they are answered, never stored.

use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::input;
use super::route::Place;
use super::{Call, answer, read, write};
use crate::auth::reviews::{self, Virtual};
use crate::kinds::{self, policy, pods, workloads};
use crate::kubelet::Body;
use crate::object;
use crate::patch;
use crate::registry::{DeleteOptions, Part, Registry, Target};
use crate::schema;
use crate::selector::Labels;
use crate::status::Status;
use crate::store::{Key, Stored};

pub(super) async fn answer(call: Call, place: Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let row = place.row()?;
    let served = (row.plural, place.subresource.as_str());
    if !place.rest.is_empty() && served != ("nodes", "proxy") {
        return Err(Status::no_such_path());
    }
    match served {
        (_, "status") if row.status => own(&call, &place, Part::Status, request).await,
        (_, "scale") if row.scale => scale(&call, &place, request).await,
        ("namespaces", "finalize") => finalize(&call, &place, request).await,
        ("pods", "binding") => bind(&call, &place, request).await,
        ("pods", "eviction") => evict(&call, &place, request).await,
        ("pods", "ephemeralcontainers") => ephemeral(&call, &place, request).await,
        ("serviceaccounts", "token") => token(&call, &place, request).await,
        ("pods", "log" | "exec" | "attach" | "portforward") => {
            let pod = find(&call, &place)?.value();
            call.shared.kubelets.pod(&pod, &place.subresource, call.query.pairs(), request).await
        }
        ("nodes", "proxy") => {
            let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
            let path = format!("/{}{query}", place.rest);
            call.shared.kubelets.forward(&place.name, request, &path).await
        }
        _ => Err(Status::no_such_path()),
    }
}

fn find(call: &Call, place: &Place) -> Result<std::sync::Arc<Stored>, Status> {
    let row = place.row()?;
    let namespace = if row.namespaced { place.namespace.as_str() } else { "" };
    let stored = call.shared.registry.store().get(&Key::new(row.storage, namespace, &place.name));
    stored.ok_or_else(|| Status::not_found(row.group, row.plural, &place.name))
}

/// GET, PUT and PATCH of a part of the object itself.
async fn own(call: &Call, place: &Place, part: Part, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    match call.method {
        Method::GET => read::one(call, place.row()?, 200, &*find(call, place)?),
        Method::PUT | Method::PATCH => write::change(call, place, part, request).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn scale(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let row = place.row()?;
    if call.method == Method::GET {
        return Ok(answer::json(200, &workloads::read_scale(row, &find(call, place)?.value())));
    }
    let target = write::target(call, place)?;
    let validation = call.query.validation()?;
    let make: Box<dyn Fn(&Value) -> Result<Value, Status> + Send> = match call.method {
        Method::PUT => {
            input::only_json(&call.headers)?;
            let body = input::body(request).await?;
            let (scale, _) = write::decode_as("autoscaling/v1", "Scale", &body, validation)?;
            Box::new(move |_| Ok(scale.clone()))
        }
        Method::PATCH => {
            let kind = write::patch_type(call)?;
            let body = input::json(&input::body(request).await?)?;
            Box::new(move |current| {
                let patched = patch::apply(&workloads::read_scale(row, current), kind, &body, "autoscaling/v1", "Scale")?;
                Ok(schema::conform(patched, "autoscaling/v1", "Scale")?.object)
            })
        }
        _ => return Err(Status::method_not_allowed()),
    };
    let changed = call.shared.registry.change(&target, Part::Main, |current| {
        let scale = make(current)?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or_default();
        if replicas < 0 {
            let mut errors = crate::status::Errors::default();
            errors.invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", object::name(current), errors));
        }
        let mut object = current.clone();
        workloads::apply_scale(row, &mut object, &scale)?;
        Ok(object)
    });
    Ok(answer::json(200, &workloads::read_scale(row, &changed.await?.object)))
}

async fn finalize(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::PUT {
        return Err(Status::method_not_allowed());
    }
    let target = write::target(call, place)?;
    input::only_json(&call.headers)?;
    let body = input::body(request).await?;
    let (wanted, _) = write::decode(target.row, &body, call.query.validation()?)?;
    let changed = call.shared.registry.change(&target, Part::Computed, |current| {
        let mut object = wanted.clone();
        let errors = kinds::core::finalize(&mut object, current);
        if !errors.is_empty() {
            return Err(Status::invalid("", "Namespace", object::name(current), errors));
        }
        let kept = current["metadata"].clone();
        object["metadata"]["deletionTimestamp"] = kept["deletionTimestamp"].clone();
        object["metadata"]["deletionGracePeriodSeconds"] = kept["deletionGracePeriodSeconds"].clone();
        Ok(object)
    });
    read::value(call, target.row, 200, changed.await?.object)
}

async fn bind(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    input::only_json(&call.headers)?;
    let body = input::body(request).await?;
    let (binding, _) = write::decode_as("v1", "Binding", &body, call.query.validation()?)?;
    let mut place = place.clone();
    if place.name.is_empty() {
        object::name(&binding).clone_into(&mut place.name);
    }
    let named = object::name(&binding);
    if !named.is_empty() && named != place.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({})",
            place.name
        )));
    }
    let target = write::target(call, &place)?;
    let uid = object::uid(&binding).to_owned();
    let changed = call.shared.registry.change(&target, Part::Computed, |current| {
        let mut pod = without_version(current);
        if !uid.is_empty() && uid != object::uid(current) {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", object::uid(current));
            return Err(Status::conflict("", "pods/binding", object::name(current), &why));
        }
        pods::bind(&mut pod, &binding)?;
        Ok(pod)
    });
    changed.await?;
    Ok(answer::json(201, &success(201)))
}

fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

/// A copy that insists on no version.
fn without_version(current: &Value) -> Value {
    let mut object = current.clone();
    object::metadata(&mut object).shift_remove("resourceVersion");
    object
}

async fn ephemeral(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method == Method::GET {
        return read::one(call, place.row()?, 200, &*find(call, place)?);
    }
    let target = write::target(call, place)?;
    let row = target.row;
    let patching = call.method == Method::PATCH;
    if !patching && call.method != Method::PUT {
        return Err(Status::method_not_allowed());
    }
    let kind = if patching { Some(write::patch_type(call)?) } else { None };
    let validation = call.query.validation()?;
    let body = input::body(request).await?;
    let incoming = match kind {
        Some(_) => input::json(&body)?,
        None => write::decode(row, &body, validation)?.0,
    };
    let changed = call.shared.registry.change(&target, Part::Computed, |current| {
        let mut pod = match kind {
            Some(kind) => {
                let patched = patch::apply(current, kind, &incoming, "v1", "Pod")?;
                let decoded = schema::conform(patched, "v1", "Pod")?;
                validation.judge(decoded.faults, "v1", "Pod")?;
                without_version(&decoded.object)
            }
            None => incoming.clone(),
        };
        pods::prepare_ephemeral(&mut pod, current)?;
        Ok(pod)
    });
    let written = changed.await?;
    read::value(call, row, 200, written.object)
}

async fn token(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    input::only_json(&call.headers)?;
    let body = input::body(request).await?;
    let (wanted, _) = write::decode_as("authentication.k8s.io/v1", "TokenRequest", &body, call.query.validation()?)?;
    let given = call.shared.auth.request_token(&call.identity, &place.namespace, &place.name, wanted)?;
    Ok(answer::json(201, &given))
}

/// Evicts a pod, unless that would break a PodDisruptionBudget.
async fn evict(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    input::only_json(&call.headers)?;
    let body = input::body(request).await?;
    let version = match schema::identity(&body)?.0.as_str() {
        "" | "policy/v1" => "policy/v1",
        other => return Err(Status::bad_request(format!("no kind \"Eviction\" is registered for version {other:?}"))),
    };
    let (eviction, _) = write::decode_as(version, "Eviction", &body, call.query.validation()?)?;
    let mut target = write::target(call, place)?;
    let dry = object::items(&eviction, "/deleteOptions/dryRun").iter().any(|v| v == "All");
    target.dry_run |= dry;
    let pod = find(call, place)?.value();
    let options = DeleteOptions::parse(eviction.get("deleteOptions").unwrap_or(&json!({})))?;
    if !ends_anyway(&pod) {
        spend_budget(&call.shared.registry, &target, &pod).await?;
    }
    target.subresource = "";
    call.shared.registry.delete(&target, &options).await?;
    Ok(answer::json(201, &success(201)))
}

/// A pod that does not run needs no budget.
fn ends_anyway(pod: &Value) -> bool {
    object::is_deleting(pod) || matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending")
}

async fn spend_budget(registry: &Registry, target: &Target<'_>, pod: &Value) -> Result<(), Status> {
    let row = kinds::row("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_such_path)?;
    let (_, budgets) = registry.store().list(row.storage, Some(target.namespace), None, usize::MAX);
    let labels: Vec<(String, String)> = pod
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    let mine: Vec<_> = budgets.iter().filter(|stored| selects(&stored.value(), &labels)).collect();
    let budget = match mine.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => return Err(Status::internal("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")),
    };
    let target = Target { row, name: &budget.key.name, subresource: "status", ..target.clone() };
    let spend = |current: &Value| {
        let mut object = without_version(current);
        policy::spend(&mut object, pod)?;
        Ok(object)
    };
    registry.change(&target, Part::Status, spend).await?;
    Ok(())
}

fn selects(budget: &Value, labels: &[(String, String)]) -> bool {
    let Some(of) = budget.pointer("/spec/selector") else { return false };
    Labels::of_object(of).is_ok_and(|selector| selector.matches_labels(labels))
}

/// Answers a review.
pub(super) async fn review(
    call: &Call,
    place: &Place,
    kind: &'static Virtual,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    if call.method != Method::POST || !place.name.is_empty() {
        return Err(Status::method_not_allowed());
    }
    if kind.namespaced != !place.namespace.is_empty() {
        return Err(Status::no_such_path());
    }
    input::only_json(&call.headers)?;
    let body = input::body(request).await?;
    let version = format!("{}/{}", kind.group, kind.version);
    let (object, warnings) = write::decode_as(&version, kind.kind, &body, call.query.validation()?)?;
    let reviewed = reviews::create(&call.shared.auth, &call.identity, kind.plural, &place.namespace, object)?;
    let mut response = answer::json(201, &reviewed);
    answer::warn(&mut response, &warnings);
    Ok(response)
}
