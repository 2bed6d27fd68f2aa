//! Deletion: at once, after a grace period (pods), or when the last finalizer is gone.

use serde_json::{Value, json};
use time::Duration;

use super::{Registry, Target, Written, metadata, unavailable};
use crate::auth::admission::Operation;
use crate::kinds::Row;
use crate::object;
use crate::status::{Errors, Status};
use crate::store::{Expect, WriteError};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// `meta/v1 DeleteOptions`, as far as they are served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    /// Seconds; None = the object's own.
    pub grace: Option<i64>,
    /// `Orphan`, `Background`, `Foreground`, or "".
    pub propagation: String,
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The resourceVersion that the object must have.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// From a body.
    ///
    /// # Errors
    /// 400 for fields that contradict each other or are no numbers.
    pub(crate) fn parse(body: &Value) -> Result<Self, Status> {
        let mut options = Self::default();
        match &body["gracePeriodSeconds"] {
            Value::Null => {}
            grace => {
                let fault = || Status::bad_request(format!("gracePeriodSeconds {grace}: must be a whole number"));
                let seconds = grace.as_i64().ok_or_else(fault)?;
                // As the real server: what is negative is one second.
                options.grace = Some(if seconds < 0 { 1 } else { seconds });
            }
        }
        options.propagation = object::text(body, "/propagationPolicy").to_owned();
        if body["orphanDependents"] == true {
            ORPHAN_POLICY.clone_into(&mut options.propagation);
        }
        if !matches!(
            options.propagation.as_str(),
            "" | ORPHAN_POLICY | "Background" | "Foreground"
        ) {
            let mut errors = Errors::default();
            let known = ["Foreground", "Background", ORPHAN_POLICY, "nil"];
            errors.not_supported("propagationPolicy", &json!(options.propagation), &known);
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors));
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        options.uid = text("/preconditions/uid");
        options.resource_version = text("/preconditions/resourceVersion");
        Ok(options)
    }
}

const ORPHAN_POLICY: &str = "Orphan";

/// What became of a deletion.
#[derive(Debug)]
pub(crate) struct Deleted {
    /// The object's last state, or its state while it waits.
    pub object: Value,
    /// Whether it is gone.
    pub gone: bool,
}

/// Whether an object whose deletion has begun has nothing left to wait for.
pub(super) fn is_over(row: &Row, object: &Value) -> bool {
    let grace = object
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    object::is_deleting(object) && grace == 0 && !is_held(row, object)
}

fn is_held(row: &Row, object: &Value) -> bool {
    metadata::finalizers(object).next().is_some()
        || (row.plural == "namespaces" && !crate::kinds::core::namespace_may_go(object))
}

impl Registry {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// 403, 404, 409 as the real server.
    pub(crate) async fn delete(&self, target: &Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        for _ in 0..super::RETRIES {
            let stored = self.store.latest(&target.key()).ok_or_else(|| target.not_found())?;
            let current = stored.value();
            check(target, options, &current)?;
            let mut request = super::request(target, Operation::Delete, None, Some(&current));
            self.admission.mutate(&mut request)?;
            self.admission.validate(&request)?;
            let object = plan(target.row, options, &current);
            let gone = is_over(target.row, &object);
            let object = if gone {
                last_state(target.row, object, &current)
            } else {
                object
            };
            if target.dry_run || (!gone && super::same(&object, &current)) {
                return Ok(Deleted { object, gone });
            }
            let expect = Expect::Version(stored.resource_version);
            let object = metadata::finished(target.row, object);
            let written = if gone {
                self.store.delete(target.key(), expect, Some(object)).await
            } else {
                self.store.put(target.key(), expect, object).await
            };
            match written {
                Ok(stored) => {
                    return Ok(Deleted {
                        object: stored.value(),
                        gone,
                    });
                }
                Err(WriteError::Conflict) => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(target.conflict(metadata::MODIFIED))
    }
}

fn check(target: &Target<'_>, options: &DeleteOptions, current: &Value) -> Result<(), Status> {
    // The real server names the kind here, not the resource.
    let conflict = |why: String| Status::conflict(target.row.group, target.row.kind, target.name, &why);
    let is = object::uid(current);
    if let Some(uid) = options.uid.as_ref().filter(|uid| *uid != is) {
        return Err(conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({is}). The object might have been deleted and \
             then recreated"
        )));
    }
    let is = object::text(current, "/metadata/resourceVersion");
    if let Some(version) = options.resource_version.as_ref().filter(|version| *version != is) {
        return Err(conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({is}). The object \
             might have been modified"
        )));
    }
    Ok(())
}

/// The object with its deletion begun, or going on.
fn plan(row: &Row, options: &DeleteOptions, current: &Value) -> Value {
    let mut object = current.clone();
    propagate(&mut object, &options.propagation);
    let grace = row.strategy.grace(current, options.grace).unwrap_or(0).max(0);
    let waits = current
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    let began = object::is_deleting(current);
    if !began || grace < waits {
        let metadata = object::metadata(&mut object);
        let begun = if began {
            object::parse_time(object::text(current, "/metadata/deletionTimestamp"))
        } else {
            None
        };
        let from = begun.map_or_else(object::now, |end| end - Duration::seconds(waits));
        metadata.insert(
            "deletionTimestamp".into(),
            object::timestamp(from + Duration::seconds(grace)).into(),
        );
        // The real server's namespaces have a deletion of their own.
        if row.plural != "namespaces" {
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
    }
    if !began && row.generation {
        let generation = current
            .pointer("/metadata/generation")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        object::metadata(&mut object).insert("generation".into(), (generation + 1).into());
    }
    if row.plural == "namespaces" {
        crate::kinds::core::begin_namespace_deletion(&mut object);
    }
    object
}

/// What is told of an object that is gone: one that waited for nothing was never marked.
fn last_state(row: &Row, mut object: Value, current: &Value) -> Value {
    if object::is_deleting(current) || row.strategy.grace(current, None).is_some() {
        return object;
    }
    let metadata = object::metadata(&mut object);
    metadata.shift_remove("deletionTimestamp");
    metadata.shift_remove("deletionGracePeriodSeconds");
    object::carry(&mut object["metadata"], &current["metadata"], "generation");
    object
}

/// The finalizers that tell the garbage collector what becomes of dependents.
fn propagate(object: &mut Value, policy: &str) {
    if policy.is_empty() {
        return;
    }
    let mut wanted: Vec<Value> = metadata::finalizers(object)
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(|f| json!(f))
        .collect();
    match policy {
        ORPHAN_POLICY => wanted.push(json!(ORPHAN)),
        "Foreground" => wanted.push(json!(FOREGROUND)),
        _ => {}
    }
    let metadata = object::metadata(object);
    if wanted.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), Value::Array(wanted));
    }
}

impl From<Deleted> for Written {
    fn from(deleted: Deleted) -> Self {
        Self {
            object: deleted.object,
            warnings: Vec::new(),
        }
    }
}
