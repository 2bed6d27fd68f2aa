//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going away; some namespaces never go.

use serde_json::Value;

use super::{Auth, Operation, Request};
use crate::object::{is_deleting, text};
use crate::status::{Cause, Status};
use crate::store::Key;

/// Never deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) fn admit(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    if request.is("", "namespaces") {
        if request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        return Ok(());
    }
    if request.namespace.is_empty() || request.operation == Operation::Delete {
        return Ok(());
    }
    if request.operation == Operation::Update {
        return namespace(auth, request.namespace).map(|_| ());
    }
    creating(auth, request.namespace, |why| request.forbidden(why))
}

/// Whether something may be made in `name`.
pub(super) fn creating(auth: &Auth, name: &str, forbidden: impl Fn(&str) -> Status) -> Result<(), Status> {
    let namespace = namespace(auth, name)?;
    if text(&namespace, "/status/phase") != "Terminating" && !is_deleting(&namespace) {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let cause = Cause {
        reason: "NamespaceTerminating",
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".into(),
    };
    Err(forbidden(&why).with_causes(vec![cause]))
}

fn namespace(auth: &Auth, name: &str) -> Result<Value, Status> {
    // The newest, committed or not: no object may slip in after the deletion of its namespace began.
    let key = Key::new(super::super::storage("", "namespaces"), "", name);
    let stored = auth.inner.store.latest(&key);
    let stored = stored.ok_or_else(|| Status::not_found("", "namespaces", name))?;
    Ok(stored.value())
}
