//! POST, PUT, PATCH and DELETE of objects and of their status.

use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::input::{self, Validation};
use super::read::{self, Scope};
use super::route::Place;
use super::{Call, answer};
use crate::kinds::Row;
use crate::kubelet::Body;
use crate::object;
use crate::patch::{self, PatchType};
use crate::registry::{self, DeleteOptions, Part, Target, Written};
use crate::schema;
use crate::status::Status;

pub(super) async fn answer(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    match (&call.method, place.name.is_empty()) {
        (&Method::POST, true) => create(call, place, request).await,
        (&Method::PUT | &Method::PATCH, false) => change(call, place, Part::Main, request).await,
        (&Method::DELETE, false) => delete(call, place, request).await,
        (&Method::DELETE, true) => delete_collection(call, place, request).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// What a write is about.
pub(super) fn target<'a>(call: &'a Call, place: &'a Place) -> Result<Target<'a>, Status> {
    let row = place.row()?;
    Ok(Target {
        identity: &call.identity,
        row,
        namespace: if row.namespaced { &place.namespace } else { "" },
        name: &place.name,
        subresource: &place.subresource,
        dry_run: call.query.dry_run(&call.method)?,
    })
}

/// An object of `row` from a body, with the warnings that it earned.
pub(super) fn decode(row: &Row, bytes: &[u8], validation: Validation) -> Result<(Value, Vec<String>), Status> {
    let version = row.api_version();
    decode_as(&version, row.kind, bytes, validation)
}

/// An object of `version` and `kind` from a body.
pub(super) fn decode_as(
    version: &str,
    kind: &str,
    bytes: &[u8],
    validation: Validation,
) -> Result<(Value, Vec<String>), Status> {
    let (said_version, said_kind) = schema::identity(bytes)?;
    let wrong_kind = !said_kind.is_empty() && said_kind != kind;
    let wrong_version = !said_version.is_empty() && said_version != version;
    if wrong_kind || wrong_version {
        return Err(Status::bad_request(format!(
            "the object provided is {said_kind:?} in version {said_version:?}, and {kind:?} in version {version:?} is expected"
        )));
    }
    let decoded = schema::decode(bytes, version, kind)?;
    let warnings = validation.judge(decoded.faults, version, kind)?;
    let mut object = decoded.object;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), version.into());
        fields.insert("kind".into(), kind.into());
    }
    Ok((object, warnings))
}

async fn create(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let mut target = target(call, place)?;
    if target.row.namespaced && target.namespace.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let body = input::object(&call.headers, request).await?;
    let (object, mut warnings) = decode(target.row, &body, call.query.validation())?;
    target.name = "";
    let written = call.shared.registry.create(&target, object).await?;
    warnings.extend(written.warnings);
    let mut response = read::value(call, target.row, 201, written.object)?;
    answer::warn(&mut response, &warnings);
    Ok(response)
}

/// PUT or PATCH of an object or of its status.
pub(super) async fn change(
    call: &Call,
    place: &Place,
    part: Part,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let target = target(call, place)?;
    let written = if call.method == Method::PUT {
        put(call, &target, part, request).await?
    } else {
        patch(call, &target, part, request).await?
    };
    let mut response = read::value(call, target.row, 200, written.object)?;
    answer::warn(&mut response, &written.warnings);
    Ok(response)
}

async fn put(call: &Call, target: &Target<'_>, part: Part, request: Request<Incoming>) -> Result<Written, Status> {
    let body = input::object(&call.headers, request).await?;
    let (object, mut warnings) = decode(target.row, &body, call.query.validation())?;
    registry::is_of_url(target, &object)?;
    let mut written = call
        .shared
        .registry
        .change(target, part, |_| Ok(object.clone()))
        .await?;
    warnings.append(&mut written.warnings);
    Ok(Written { warnings, ..written })
}

/// The kind of patch that a request brings.
pub(super) fn patch_type(call: &Call) -> Result<PatchType, Status> {
    let media = input::content_type(&call.headers);
    PatchType::of_media_type(media).ok_or_else(|| Status {
        details: Some(Box::default()),
        ..Status::unsupported_media_type("415: Unsupported Media Type")
    })
}

async fn patch(call: &Call, target: &Target<'_>, part: Part, request: Request<Incoming>) -> Result<Written, Status> {
    let kind = patch_type(call)?;
    let validation = call.query.validation();
    let body = input::json(&input::body(request).await?)?;
    let row = target.row;
    let version = row.api_version();
    let mut warnings = Vec::new();
    let patched = call.shared.registry.change(target, part, |current| {
        let current = read::in_version(row, current.clone());
        let patched = patch::apply(&current, kind, &body, &version, row.kind)?;
        for field in ["apiVersion", "kind"] {
            if patched[field] != current[field] {
                return Err(Status::bad_request(format!("a patch may not change {field}")));
            }
        }
        let decoded = schema::conform(patched.clone(), &version, row.kind)
            .map_err(|why| patch::refuse(kind, &body, &patched, &why.message))?;
        warnings = validation.judge(decoded.faults, &version, row.kind)?;
        let mut object = decoded.object;
        keep_version(&body, kind, &mut object);
        Ok(object)
    });
    let mut written = patched.await?;
    warnings.append(&mut written.warnings);
    Ok(Written { warnings, ..written })
}

/// The current object's resourceVersion is in the patched one; only one that the patch itself names is a precondition.
fn keep_version(patch: &Value, kind: PatchType, object: &mut Value) {
    let named = match kind {
        PatchType::Json => object::items(patch, "")
            .iter()
            .any(|op| op["path"] == "/metadata/resourceVersion"),
        _ => patch.pointer("/metadata/resourceVersion").is_some_and(|v| !v.is_null()),
    };
    if !named {
        object::metadata(object).shift_remove("resourceVersion");
    }
}

async fn delete_options(call: &Call, request: Request<Incoming>) -> Result<(DeleteOptions, bool), Status> {
    let body = input::object(&call.headers, request).await?;
    let mut body = match &body[..] {
        [] => json!({}),
        body if body.starts_with(schema::PROTOBUF_MAGIC) => schema::decode(body, "v1", "DeleteOptions")?.object,
        body => input::json(body)?,
    };
    if !body.is_object() {
        return Err(Status::bad_request("the body is no DeleteOptions"));
    }
    let asked = call.query.get("propagationPolicy");
    if !asked.is_empty() {
        body["propagationPolicy"] = asked.into();
    }
    if !call.query.get("orphanDependents").is_empty() {
        body["orphanDependents"] = call.query.flag("orphanDependents").into();
    }
    if let Some(seconds) = call.query.number("gracePeriodSeconds")? {
        body["gracePeriodSeconds"] = seconds.into();
    }
    let dry = body["dryRun"]
        .as_array()
        .is_some_and(|all| all.iter().any(|v| v == "All"));
    Ok((DeleteOptions::parse(&body)?, dry))
}

async fn delete(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let mut target = target(call, place)?;
    let (options, dry) = delete_options(call, request).await?;
    target.dry_run |= dry;
    let deleted = call.shared.registry.delete(&target, &options).await?;
    let row = target.row;
    // The real server gives the object back for kinds whose clients read it.
    let gives_object = !deleted.gone || matches!(row.plural, "pods" | "services" | "namespaces" | "serviceaccounts");
    if gives_object {
        return read::value(call, row, 200, deleted.object);
    }
    let details =
        json!({"name": target.name, "group": row.group, "kind": row.plural, "uid": object::uid(&deleted.object)});
    let mut status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    if row.group.is_empty()
        && let Some(details) = status["details"].as_object_mut()
    {
        details.shift_remove("group");
    }
    Ok(answer::json(200, &status))
}

async fn delete_collection(call: &Call, place: &Place, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let scope = Scope::new(place, &call.query)?;
    if scope.row.plural == "namespaces" || (scope.row.namespaced && scope.namespace.is_none()) {
        return Err(Status::method_not_allowed());
    }
    let (options, dry) = delete_options(call, request).await?;
    let store = call.shared.registry.store();
    let (version, objects) = store.list(scope.row.storage, scope.namespace.as_deref(), None, usize::MAX);
    let mut items = Vec::new();
    for stored in objects.iter().filter(|stored| scope.has(stored)) {
        let mut target = target(call, place)?;
        target.name = &stored.key.name;
        target.dry_run |= dry;
        match call.shared.registry.delete(&target, &options).await {
            Ok(deleted) => items.push(read::item(read::in_version(scope.row, deleted.object))),
            // Somebody else was faster.
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let kind = format!("{}List", scope.row.kind);
    let list = json!({"kind": kind, "apiVersion": scope.row.api_version(),
                      "metadata": {"resourceVersion": version.to_string()}, "items": items});
    Ok(answer::json(200, &list))
}
