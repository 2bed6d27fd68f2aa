//! Doors for [`crate::fuzzing`]: what a write does with a body, without the store.

use serde_json::Value;

use super::{Part, Target, metadata};
use crate::auth::{Identity, User};
use crate::fuzzing::row_of;
use crate::kinds::Row;
use crate::object;
use crate::schema;
use crate::status::Errors;
use crate::table::{self, IncludeObject, ListMeta};

fn decode(row: &'static Row, bytes: &[u8]) -> Option<Value> {
    let version = row.api_version();
    let mut object = schema::decode(bytes, &version, row.kind).ok()?.object;
    let fields = object.as_object_mut()?;
    fields.insert("apiVersion".into(), version.into());
    fields.insert("kind".into(), row.kind.into());
    Some(object)
}

fn target<'a>(identity: &'a Identity, row: &'static Row, name: &'a str, namespace: &'a str) -> Target<'a> {
    Target {
        identity,
        row,
        namespace,
        name,
        subresource: "",
        dry_run: false,
    }
}

/// A body through a create: defaults, metadata, validation, warnings, and what `kubectl get` prints of it.
///
/// # Errors
/// Defaults that are not the same when they are set twice; a stored object that its own schema refuses.
pub fn create(bytes: &[u8]) -> Result<(), String> {
    let Some(row) = row_of(bytes) else { return Ok(()) };
    let Some(mut object) = decode(row, bytes) else {
        return Ok(());
    };
    let identity = Identity::new(User::default());
    let namespace = if row.namespaced {
        object::namespace(&object).to_owned()
    } else {
        String::new()
    };
    let strategy = row.strategy;
    strategy.to_storage(&mut object);
    strategy.default(&mut object);
    let once = object.clone();
    strategy.default(&mut object);
    if object != once {
        return Err(format!("defaults twice make {object} of {once}"));
    }
    if metadata::name(&target(&identity, row, "", &namespace), &mut object).is_err() {
        return Ok(());
    }
    let name = object::name(&object).to_owned();
    let target = target(&identity, row, &name, &namespace);
    metadata::fresh(&target, &mut object);
    strategy.prepare_create(&mut object);
    let mut errors = Errors::default();
    metadata::validate(&target, &object, &mut errors);
    strategy.validate(&object, &mut errors);
    strategy.warnings(&object);
    let object = metadata::finished(row, object);
    shown(row, &object);
    if !errors.is_empty() {
        target.invalid(&name, errors).expect_err("there are errors");
        return Ok(());
    }
    schema::conform(object.clone(), &row.api_version(), row.kind)
        .map(|_| ())
        .map_err(|status| format!("it would be stored and is refused: {}: {object}", status.message))
}

/// What `kubectl get` prints, also of what is not valid: an older version may have stored it.
fn shown(row: &Row, object: &Value) {
    for include in [IncludeObject::None, IncludeObject::Object] {
        table::render(row, &ListMeta::default(), [object.clone()], include, true);
    }
    row.strategy.to_version(&mut object.clone());
    row.strategy.grace(object, Some(5));
}

/// Two bodies of one kind with a NUL between them: what is there, and what replaces it or its status.
pub fn update(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(current), Some(object)) = (parts.next(), parts.next()) else {
        return;
    };
    let Some(row) = row_of(current) else { return };
    let (Some(mut current), Some(object)) = (decode(row, current), decode(row, object)) else {
        return;
    };
    row.strategy.to_storage(&mut current);
    row.strategy.default(&mut current);
    let identity = Identity::new(User::default());
    let name = object::name(&current).to_owned();
    let namespace = object::namespace(&current).to_owned();
    let target = target(&identity, row, &name, &namespace);
    for part in [Part::Main, Part::Status] {
        // A mismatch of versions is the caller's refusal; the rest must stand it.
        let _ = metadata::precondition(&target, &object, &current, 5);
        replace(&target, part, object.clone(), &current);
    }
}

/// As the registry's own judge does it, without admission.
fn replace(target: &Target<'_>, part: Part, mut object: Value, current: &Value) {
    super::prepare(target, part, &mut object, current);
    metadata::count_generation(target, part, &mut object, current);
    let _ = super::faults(target, part, &object, current);
    shown(target.row, &metadata::finished(target.row, object));
}
