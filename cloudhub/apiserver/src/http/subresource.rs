//! Subresources: status, scale, binding, eviction, ephemeral containers, tokens, finalize; and what goes on to a node: log, exec,
//! attach, portforward, proxy. Reviews are here too: they are answered, never stored.

use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::input;
use super::route::Place;
use super::{Call, answer, read, write};
use crate::auth::reviews::{self, Virtual};
use crate::kinds::policy::{self, Eviction};
use crate::kinds::{self, Row, pods, workloads};
use crate::kubelet::Body;
use crate::object;
use crate::patch;
use crate::registry::{DeleteOptions, Part, Registry, Target};
use crate::schema;
use crate::status::{Errors, Status};
use crate::store::{Key, Stored};

pub(super) async fn answer(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let row = place.row()?;
    let served = (row.plural, place.subresource.as_str());
    if !place.rest.is_empty() && served != ("nodes", "proxy") {
        return Err(Status::no_such_path());
    }
    match served {
        (_, "status") if row.status => own(call, place, Part::Status, request).await,
        (_, "scale") if row.scale => scale(call, place, request).await,
        ("namespaces", "finalize") => finalize(call, place, request).await,
        ("pods", "binding") => bind(call, place, request).await,
        ("pods", "eviction") => evict(call, place, request).await,
        ("pods", "ephemeralcontainers") => ephemeral(call, place, request).await,
        ("serviceaccounts", "token") => token(call, place, request).await,
        ("pods", "log" | "exec" | "attach" | "portforward") => {
            let pod = find(call, place)?.value();
            call.shared
                .kubelets
                .pod(&pod, &place.subresource, call.query.pairs(), request)
                .await
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
    let stored = call
        .shared
        .registry
        .store()
        .get(&Key::new(row.storage, namespace, &place.name));
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

/// The Scale that is wanted, from the current object.
type MakeScale = Box<dyn Fn(&Value) -> Result<Value, Status> + Send + Sync>;

async fn scale(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let row = place.row()?;
    if call.method == Method::GET {
        return Ok(answer::json(
            200,
            &workloads::read_scale(row, &find(call, place)?.value()),
        ));
    }
    let target = write::target(call, place)?;
    let validation = call.query.validation();
    let make: MakeScale = match call.method {
        Method::PUT => {
            let body = input::object(&call.headers, request).await?;
            let (scale, _) = write::decode_as("autoscaling/v1", "Scale", &body, validation)?;
            Box::new(move |_| Ok(scale.clone()))
        }
        Method::PATCH => {
            let kind = write::patch_type(call)?;
            let body = input::json(&input::body(request).await?)?;
            Box::new(move |current| {
                let scale = without_version(&workloads::read_scale(row, current));
                let patched = patch::apply(&scale, kind, &body, "autoscaling/v1", "Scale")?;
                Ok(schema::conform(patched, "autoscaling/v1", "Scale")?.object)
            })
        }
        _ => return Err(Status::method_not_allowed()),
    };
    let changed = call.shared.registry.change(&target, Part::Main, |current| {
        let mut object = without_version(current);
        workloads::apply_scale(row, &mut object, &make(current)?)?;
        Ok(object)
    });
    Ok(answer::json(200, &workloads::read_scale(row, &changed.await?.object)))
}

async fn finalize(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::PUT {
        return Err(Status::method_not_allowed());
    }
    let target = write::target(call, place)?;
    let body = input::object(&call.headers, request).await?;
    let (wanted, _) = write::decode(target.row, &body, call.query.validation())?;
    let changed = call.shared.registry.change(&target, Part::Computed, |current| {
        let mut object = wanted.clone();
        let errors = kinds::core::finalize(&mut object, current);
        if !errors.is_empty() {
            return Err(Status::invalid("", "Namespace", object::name(current), errors));
        }
        let kept = current["metadata"].clone();
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            object::carry(&mut object["metadata"], &kept, field);
        }
        Ok(object)
    });
    read::value(call, target.row, 200, changed.await?.object)
}

async fn bind(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let body = input::object(&call.headers, request).await?;
    let (binding, _) = write::decode_as("v1", "Binding", &body, call.query.validation())?;
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
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(current)
            );
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
    let validation = call.query.validation();
    let incoming = match kind {
        Some(_) => input::json(&input::body(request).await?)?,
        None => write::decode(row, &input::object(&call.headers, request).await?, validation)?.0,
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
        pods::prepare_ephemeral(&mut pod, current);
        let mut errors = Errors::default();
        pods::validate_ephemeral(&pod, current, &mut errors);
        if errors.is_empty() {
            Ok(pod)
        } else {
            Err(Status::invalid("", "Pod", object::name(current), errors))
        }
    });
    let written = changed.await?;
    read::value(call, row, 200, written.object)
}

async fn token(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let body = input::object(&call.headers, request).await?;
    let (wanted, _) = write::decode_as(
        "authentication.k8s.io/v1",
        "TokenRequest",
        &body,
        call.query.validation(),
    )?;
    let given = call
        .shared
        .auth
        .request_token(&call.identity, &place.namespace, &place.name, wanted)?;
    Ok(answer::json(201, &given))
}

/// Evicts a pod, unless that would break a PodDisruptionBudget.
async fn evict(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let body = input::object(&call.headers, request).await?;
    let version = match schema::identity(&body)?.0.as_str() {
        "" | "policy/v1" => "policy/v1",
        other => {
            return Err(Status::bad_request(format!(
                "no kind \"Eviction\" is registered for version {other:?}"
            )));
        }
    };
    let (eviction, _) = write::decode_as(version, "Eviction", &body, call.query.validation())?;
    if object::name(&eviction) != place.name {
        return Err(Status::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let mut target = write::target(call, place)?;
    let dry = object::items(&eviction, "/deleteOptions/dryRun")
        .iter()
        .any(|v| v == "All");
    target.dry_run |= dry;
    let pod = find(call, place)?.value();
    let mut options = DeleteOptions::parse(eviction.get("deleteOptions").unwrap_or(&json!({})))?;
    let registry = &call.shared.registry;
    let budget = if policy::skips_budgets(&pod) {
        None
    } else {
        budget_of(registry, &target, &pod)?
    };
    if let Some(budget) = &budget
        && spend(registry, &target, budget, &pod).await? == Spent::Uncounted
    {
        options.resource_version = Some(object::text(&pod, "/metadata/resourceVersion").to_owned());
    }
    target.subresource = "";
    if budget.is_some() && options.resource_version.is_none() {
        let mark = |current: &Value| {
            let mut pod = without_version(current);
            policy::mark_evicted(&mut pod);
            Ok(pod)
        };
        registry.change(&target, Part::Computed, mark).await?;
    }
    match registry.delete(&target, &options).await {
        Err(status) if status.code == 409 && options.uid.is_none() => {
            Err(budget.map_or(status, |budget| policy::still_processing(&budget)))
        }
        deleted => deleted.map(|_| answer::json(201, &success(201))),
    }
}

fn budgets_row() -> Result<&'static Row, Status> {
    kinds::row("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_such_path)
}

/// The one budget that is about the pod.
fn budget_of(registry: &Registry, target: &Target<'_>, pod: &Value) -> Result<Option<Value>, Status> {
    let (_, budgets) = registry
        .store()
        .list(budgets_row()?.storage, Some(target.namespace), None, usize::MAX);
    let mut covering = budgets
        .iter()
        .map(|stored| stored.value())
        .filter(|budget| policy::covers(budget, pod));
    let first = covering.next();
    if covering.next().is_some() {
        Err(policy::too_many_budgets())
    } else {
        Ok(first)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spent {
    /// One disruption of the budget is used.
    Counted,
    /// The pod is not ready: its end disrupts nothing.
    Uncounted,
}

/// Takes one disruption from the budget, where the pod's end is one.
async fn spend(registry: &Registry, target: &Target<'_>, budget: &Value, pod: &Value) -> Result<Spent, Status> {
    let row = budgets_row()?;
    let target = Target {
        row,
        name: object::name(budget),
        subresource: "status",
        ..target.clone()
    };
    let mut spent = Spent::Counted;
    let change = |current: &Value| match policy::may_evict(current, pod) {
        Eviction::Counted(counted) => {
            spent = Spent::Counted;
            Ok(without_version(&counted))
        }
        Eviction::Unready => {
            spent = Spent::Uncounted;
            Ok(without_version(current))
        }
        Eviction::Refused(status) => Err(status),
    };
    registry.change(&target, Part::Computed, change).await?;
    Ok(spent)
}

/// Answers a review.
pub(super) async fn review(
    call: &Call,
    place: &Place,
    kind: Virtual,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    if call.method != Method::POST || !place.name.is_empty() {
        return Err(Status::method_not_allowed());
    }
    if kind.namespaced == place.namespace.is_empty() {
        return Err(Status::no_such_path());
    }
    let body = input::object(&call.headers, request).await?;
    let version = format!("{}/{}", kind.group, kind.version);
    let (object, warnings) = write::decode_as(&version, kind.kind, &body, call.query.validation())?;
    let reviewed = reviews::create(&call.shared.auth, &call.identity, kind.plural, &place.namespace, object)?;
    let mut response = answer::json(201, &reviewed);
    answer::warn(&mut response, &warnings);
    Ok(response)
}
