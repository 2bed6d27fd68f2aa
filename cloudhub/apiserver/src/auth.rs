//! Who asks, and may they: authentication, authorization, admission.

pub mod admission;
pub mod authn;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod tokens;

use std::collections::BTreeMap;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// `system:serviceaccount:default:default`.
    pub name: String,
    /// uid, or "".
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// What else is known: `authentication.kubernetes.io/pod-name`, …
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whether the user is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this user is, as the Node authorizer sees it: `system:node:NAME` in group `system:nodes`.
    pub fn node(&self) -> Option<&str> {
        if !self.is_in("system:nodes") {
            return None;
        }
        self.name.strip_prefix("system:node:").filter(|name| !name.is_empty())
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `impersonate…`, or, for a path, the method.
    pub verb: String,
    /// API group; "" = core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural; "" for a path that is no resource.
    pub resource: String,
    /// `status`, `log`, …; "" = the object itself.
    pub subresource: String,
    /// Namespace, or "".
    pub namespace: String,
    /// Name, or "". For list and watch it is what a field selector `metadata.name=` says.
    pub name: String,
    /// The path, for what is no resource.
    pub path: String,
}
