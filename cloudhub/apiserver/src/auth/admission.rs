//! Admission: what a write becomes, and whether it may be. A chain, in the real server's order:
//!
//! * NamespaceLifecycle → ServiceAccount → NodeRestriction → TaintNodesByCondition → Priority → DefaultTolerationSeconds →
//!   RuntimeClass change the object or refuse it ([`Admission::mutate`])
//! * then, when it is whole, ServiceAccount, Priority, RuntimeClass and RBAC's rule against giving away more than one has
//!   ([`Admission::validate`])

mod escalation;
mod lifecycle;
mod node_restriction;
mod pods;
mod service_account;

use std::time::Duration;

use serde_json::Value;

use super::{Auth, Identity, User};
use crate::kinds::Row;
use crate::object::{self, text};
use crate::status::Status;

/// How long a new pod waits for the ServiceAccount `default` of a namespace that is as new.
const ACCOUNT_WAIT: Duration = Duration::from_millis(1500);

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is made; also what is posted to a subresource.
    Create,
    /// It, or a subresource of it, is changed.
    Update,
    /// It is deleted.
    Delete,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// One write.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who writes; authorized already.
    pub identity: &'a Identity,
    /// What is done.
    pub operation: Operation,
    /// The kind.
    pub row: &'static Row,
    /// `status`, `binding`, …; "" = the object itself.
    pub subresource: &'a str,
    /// Namespace, or "".
    pub namespace: &'a str,
    /// Name; "" at a creation.
    pub name: &'a str,
    /// What it shall become; for a subresource that is no part of the object, what was posted. None: a deletion.
    pub object: Option<&'a mut Value>,
    /// What it is. None: a creation.
    pub current: Option<&'a Value>,
}

impl Request<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.row.group == group && self.row.plural == plural
    }

    /// A pod itself, not a subresource of it.
    fn is_pod(&self) -> bool {
        self.is("", "pods") && self.subresource.is_empty()
    }

    fn user(&self) -> &User {
        &self.identity.user
    }

    /// The object as it shall become, or null.
    fn object(&self) -> &Value {
        self.object.as_deref().unwrap_or(&Value::Null)
    }

    fn current(&self) -> &Value {
        self.current.unwrap_or(&Value::Null)
    }

    /// The name of the path, else of the object.
    fn name(&self) -> &str {
        if self.name.is_empty() {
            object::name(self.object())
        } else {
            self.name
        }
    }

    /// 403 in the words of an admission plugin.
    fn forbidden(&self, why: impl AsRef<str>) -> Status {
        let object = self.object();
        let names = [
            self.name,
            object::name(object),
            text(object, "/metadata/generateName"),
            "Unknown",
        ];
        let name = names.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
        Status::forbidden(self.row.group, self.row.plural, name, why.as_ref())
    }
}

/// A handle; clones share it.
#[derive(Debug, Clone)]
pub struct Admission {
    auth: Auth,
}

type Mutating = fn(&Auth, &mut Request<'_>) -> Result<(), Status>;
type Validating = fn(&Auth, &Request<'_>) -> Result<(), Status>;

const MUTATING: &[Mutating] = &[
    |auth, request| lifecycle::admit(auth, request),
    service_account::mutate,
    |auth, request| node_restriction::admit(auth, request),
    |_, request| {
        pods::taint_node(request);
        Ok(())
    },
    pods::set_priority,
    |auth, request| {
        pods::default_tolerations(auth, request);
        Ok(())
    },
    pods::set_runtime_class,
];

const VALIDATING: &[Validating] = &[
    service_account::validate,
    pods::validate_priority_class,
    pods::validate_overhead,
    escalation::validate,
];

/// A deletion changes no object: whichever of the two the registry calls for it, these judge it.
const DELETING: &[Validating] = &[lifecycle::admit, node_restriction::admit];

impl Admission {
    pub(super) fn new(auth: Auth) -> Self {
        Self { auth }
    }

    /// Waits, for a moment, for what a new pod needs and a controller is about to make: the ServiceAccount `default` of a new
    /// namespace. To be called before [`Self::mutate`]; [`Self::mutate`] refuses what still lacks.
    pub async fn settle(&self, request: &Request<'_>) {
        if request.operation == Operation::Create && request.is_pod() {
            let wait = service_account::arrival(&self.auth, request);
            // Late is no fault of this request: the plugin says what lacks.
            let _ = tokio::time::timeout(ACCOUNT_WAIT, wait).await;
        }
    }

    /// Makes of the object what this server makes of it; returns texts for the Warning header.
    ///
    /// # Errors
    /// The refusal of the first plugin that refuses.
    pub fn mutate(&self, request: &mut Request<'_>) -> Result<Vec<String>, Status> {
        if request.operation == Operation::Delete {
            return self.delete(request).map(|()| Vec::new());
        }
        for plugin in MUTATING {
            plugin(&self.auth, request)?;
        }
        Ok(Vec::new())
    }

    /// Whether the whole object may be.
    ///
    /// # Errors
    /// As [`Self::mutate`].
    pub fn validate(&self, request: &Request<'_>) -> Result<(), Status> {
        if request.operation == Operation::Delete {
            return self.delete(request);
        }
        VALIDATING.iter().try_for_each(|plugin| plugin(&self.auth, request))
    }

    fn delete(&self, request: &Request<'_>) -> Result<(), Status> {
        DELETING.iter().try_for_each(|plugin| plugin(&self.auth, request))
    }
}

/// Admission of a TokenRequest, which has no row.
pub(super) fn admit_token(
    auth: &Auth,
    identity: &Identity,
    namespace: &str,
    account: &str,
    body: &Value,
) -> Result<(), Status> {
    lifecycle::creating(auth, namespace, |why| {
        Status::forbidden("", "serviceaccounts", account, why)
    })?;
    node_restriction::admit_token(auth, &identity.user, namespace, account, body)
}

#[cfg(test)]
mod tests;
