//! What is done to `metadata` of every kind: names, times, generation, finalizers, preconditions.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Part, Target};
use crate::kinds::{Row, fields};
use crate::object;
use crate::schema;
use crate::status::{Errors, Status};

/// The real server's words for a lost race.
pub(super) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";
/// A generated name is cut so that its suffix fits into 63 characters (apiserver `storage/names`).
const MAX_GENERATED: usize = 58;
const SUFFIX: usize = 5;
/// No vowels: nothing that could be read as a word.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Settles namespace and name of a new object.
pub(super) fn name(target: &Target<'_>, object: &mut Value) -> Result<(), Status> {
    let namespace = object::namespace(object).to_owned();
    if !target.row.namespaced {
        object::metadata(object).shift_remove("namespace");
    } else if namespace.is_empty() {
        object::metadata(object).insert("namespace".into(), target.namespace.into());
    } else if namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let prefix = object::text(object, "/metadata/generateName").to_owned();
    if object::name(object).is_empty() && !prefix.is_empty() {
        let base: String = prefix.chars().take(MAX_GENERATED).collect();
        let suffix: String = (0..SUFFIX)
            .map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]))
            .collect();
        object::metadata(object).insert("name".into(), format!("{base}{suffix}").into());
    }
    Ok(())
}

/// Refuses a version of an object that is not there yet. The real server's store says so, which a dry run does not reach.
pub(super) fn no_version(target: &Target<'_>, object: &Value) -> Result<(), Status> {
    if target.dry_run || object::text(object, "/metadata/resourceVersion").is_empty() {
        return Ok(());
    }
    Err(Status::new(
        500,
        "",
        "resourceVersion should not be set on objects to be created",
    ))
}

/// What a client may not say of a new object.
pub(super) fn fresh(target: &Target<'_>, object: &mut Value) {
    let metadata = object::metadata(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
        metadata.shift_remove(field);
    }
    stamp(target.row, object);
}

/// uid, time, generation.
pub(super) fn stamp(row: &Row, object: &mut Value) {
    let metadata = object::metadata(object);
    metadata.insert("uid".into(), Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), object::timestamp(object::now()).into());
    if row.generation {
        metadata.insert("generation".into(), 1.into());
    }
    let fields = object.as_object_mut().expect("metadata is in it");
    fields.insert("apiVersion".into(), storage_version(row).into());
    fields.insert("kind".into(), row.kind.into());
}

/// The version that objects of this storage are kept in: that of the first row which has it.
fn storage_version(row: &Row) -> String {
    crate::kinds::rows()
        .find(|r| r.storage == row.storage)
        .unwrap_or(row)
        .api_version()
}

/// The object as it is stored: what Go always writes is there, and `kind`, `apiVersion`, `metadata` come first, as the real server
/// prints them: lists drop the first two by cutting them off.
pub(super) fn finished(row: &Row, mut object: Value) -> Value {
    schema::complete(&mut object, &storage_version(row), row.kind);
    let Value::Object(mut fields) = object else {
        return object;
    };
    let mut ordered = Map::new();
    for field in ["kind", "apiVersion", "metadata"] {
        if let Some(value) = fields.shift_remove(field) {
            ordered.insert(field.into(), value);
        }
    }
    ordered.extend(fields);
    Value::Object(ordered)
}

/// Refuses an object that is another than the URL says.
pub(crate) fn is_of_url(target: &Target<'_>, object: &Value) -> Result<(), Status> {
    let name = object::name(object);
    if !name.is_empty() && name != target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let namespace = object::namespace(object);
    if target.row.namespaced && !namespace.is_empty() && namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Whether the writer insists on a version; refuses one that is not the current one.
pub(super) fn precondition(target: &Target<'_>, object: &Value, current: &Value, version: u64) -> Result<bool, Status> {
    is_of_url(target, object)?;
    let (uid, is) = (object::uid(object), object::uid(current));
    if !uid.is_empty() && uid != is {
        return Err(target.conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {is}"
        )));
    }
    let wanted = object::text(object, "/metadata/resourceVersion");
    if wanted.is_empty() {
        return Ok(false);
    }
    if wanted != version.to_string() {
        return Err(target.conflict(MODIFIED));
    }
    Ok(true)
}

/// Puts back what an update may not change.
pub(super) fn carry(target: &Target<'_>, part: Part, object: &mut Value, current: &Value) {
    let kept = current.get("metadata").cloned().unwrap_or_default();
    let mut metadata = Value::Object(std::mem::take(object::metadata(object)));
    let fields = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generateName",
        "generation",
        "selfLink",
        "resourceVersion",
    ];
    for field in fields {
        object::carry(&mut metadata, &kept, field);
    }
    if part != Part::Computed {
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            object::carry(&mut metadata, &kept, field);
        }
    }
    if let Some(fields) = metadata.as_object_mut() {
        fields.shift_remove("managedFields");
    }
    object["metadata"] = metadata;
    object::carry(object, current, "kind");
    object::carry(object, current, "apiVersion");
    if target.row.status && part == Part::Main {
        object::carry(object, current, "status");
    }
}

/// Everything of `current`, with the status of `object` and what a status update may change of metadata.
pub(super) fn only_status(object: &mut Value, current: &Value) {
    let mut merged = current.clone();
    object::carry(&mut merged, object, "status");
    let given = object.get("metadata").cloned().unwrap_or_default();
    let mut metadata = Value::Object(std::mem::take(object::metadata(&mut merged)));
    for field in ["labels", "annotations", "finalizers"] {
        object::carry(&mut metadata, &given, field);
    }
    merged["metadata"] = metadata;
    *object = merged;
}

/// `generation` counts changes outside metadata and status.
pub(super) fn count_generation(target: &Target<'_>, part: Part, object: &mut Value, current: &Value) {
    let row = target.row;
    // The real server binds a pod without its strategy, which is what counts.
    if !row.generation || part == Part::Status || target.subresource == "binding" {
        return;
    }
    let desired = |value: &Value| {
        let mut fields = value.as_object().cloned().unwrap_or_default();
        for field in ["kind", "apiVersion", "metadata", "status"] {
            fields.shift_remove(field);
        }
        fields
    };
    let began = object::is_deleting(object) && !object::is_deleting(current);
    let annotations = |value: &Value| value.pointer("/metadata/annotations").cloned();
    let annotated = row.strategy.annotations_count() && annotations(object) != annotations(current);
    if began || annotated || desired(object) != desired(current) {
        let generation = current
            .pointer("/metadata/generation")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        object::metadata(object).insert("generation".into(), (generation + 1).into());
    }
}

/// Checks metadata of a new object.
pub(super) fn validate(target: &Target<'_>, object: &Value, errors: &mut Errors) {
    let name = object::name(object);
    let prefix = object::text(object, "/metadata/generateName");
    if !prefix.is_empty() {
        // A suffix will follow, so its end may be a dash.
        let whole = prefix.strip_suffix('-').map(|rest| format!("{rest}a"));
        let faults = name_faults(target.row, whole.as_deref().unwrap_or(prefix));
        fields::complain(errors, "metadata.generateName", &json!(prefix), faults);
    }
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    }
    let faults = if name.is_empty() {
        Vec::new()
    } else {
        name_faults(target.row, name)
    };
    fields::complain(errors, "metadata.name", &json!(name), faults);
    validate_rest(object, errors);
}

fn name_faults(row: &Row, name: &str) -> Vec<String> {
    if row.strategy.any_name() {
        if name == "." || name == ".." {
            return vec![format!("may not be '{name}'")];
        }
        let bad = ["/", "%"].into_iter().filter(|bad| name.contains(bad));
        return bad.map(|bad| format!("may not contain '{bad}'")).collect();
    }
    if row.strategy.label_name() {
        fields::is_dns1123_label(name)
    } else {
        fields::is_dns1123_subdomain(name)
    }
}

/// Checks metadata of a changed object.
pub(super) fn validate_update(object: &Value, current: &Value, errors: &mut Errors) {
    validate_rest(object, errors);
    if !object::is_deleting(current) {
        return;
    }
    let had: Vec<&str> = finalizers(current).collect();
    let added: Vec<&str> = finalizers(object).filter(|f| !had.contains(f)).collect();
    if !added.is_empty() {
        errors.forbidden(
            "metadata.finalizers",
            &format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {}",
                go_strings(&added)
            ),
        );
    }
}

/// `[]string{"a", "b"}`.
fn go_strings(texts: &[&str]) -> String {
    let quoted: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[]string{{{}}}", quoted.join(", "))
}

/// `metadata.finalizers`.
pub(super) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object::items(object, "/metadata/finalizers")
        .iter()
        .filter_map(Value::as_str)
}

fn validate_rest(object: &Value, errors: &mut Errors) {
    fields::labels(errors, "metadata.labels", object.pointer("/metadata/labels"));
    let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        fields::complain(
            errors,
            "metadata.annotations",
            &json!(key),
            fields::is_qualified_name(&key.to_lowercase()),
        );
    }
    if size > MAX_ANNOTATIONS {
        errors.too_long("metadata.annotations", MAX_ANNOTATIONS);
    }
    for finalizer in finalizers(object) {
        fields::complain(
            errors,
            "metadata.finalizers",
            &json!(finalizer),
            fields::is_qualified_name(finalizer),
        );
    }
    let has = |wanted: &str| finalizers(object).any(|finalizer| finalizer == wanted);
    if has("orphan") && has("foregroundDeletion") {
        errors.invalid(
            "metadata.finalizers",
            &object["metadata"]["finalizers"],
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
    for (index, finalizer) in finalizers(object).enumerate() {
        if !finalizer.contains('/') && !matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion") {
            errors.invalid(
                format!("metadata.finalizers[{index}]"),
                &json!(finalizer),
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    owners(object, errors);
}

fn owners(object: &Value, errors: &mut Errors) {
    let owners = object::items(object, "/metadata/ownerReferences");
    for owner in owners {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if object::text(owner, &format!("/{field}")).is_empty() {
                errors.invalid(
                    format!("metadata.ownerReferences.{field}"),
                    &json!(""),
                    "must not be empty",
                );
            }
        }
    }
    let named = |o: &Value| format!("{}/{}", object::text(o, "/kind"), object::text(o, "/name"));
    let controllers: Vec<String> = owners.iter().filter(|o| o["controller"] == true).map(named).collect();
    if let [first, others @ ..] = controllers.as_slice() {
        for other in others {
            errors.invalid(
                "metadata.ownerReferences",
                &Value::Array(owners.to_vec()),
                &format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {other}"
                ),
            );
        }
    }
}
