//! Who asks, and may they: authentication, authorization, admission.
//!
//! * [`authn`]: client certificate or token → [`User`]; impersonation headers → whom to act for
//! * [`Auth::authorize`]: constrained or legacy impersonation, then system:masters, the Node authorizer ([`node`]), RBAC ([`rbac`])
//! * [`admission`]: what a write becomes, and whether it may be
//! * [`tokens`]: ServiceAccount tokens, given and verified; [`reviews`]: the kinds that answer such questions
//!
//! State: the store's. The parsed RBAC objects and the pods of each node are indexes that follow the store's changes and are
//! brought up to date by whoever asks next, so that an answer is never older than what the store shows.

pub mod admission;
pub mod authn;
mod follow;
pub(crate) mod fuzzing;
mod impersonation;
pub mod node;
pub mod rbac;
mod references;
pub mod reviews;
#[cfg(test)]
mod testing;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::kinds;
use crate::object;
use crate::status::{Details, Status};
use crate::store::{Key, Store};

/// Members may do all.
pub(crate) const MASTERS: &str = "system:masters";
/// Everyone who is known.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Everyone who is not.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user of requests that say nothing about themselves.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// Every node.
pub(crate) const NODES: &str = "system:nodes";

/// What differs between servers.
#[derive(Clone)]
pub struct Config {
    /// `iss` of ServiceAccount tokens: `https://kubernetes.default.svc`.
    pub issuer: String,
    /// Audiences that name this API; the first is given to tokens that ask for none.
    pub audiences: Vec<String>,
    /// EC P-256 key, PKCS#8, PEM: signs ServiceAccount tokens.
    pub signing_key_pem: String,
    /// How long a pod stays on a node that is not ready, where it does not say.
    pub not_ready_toleration_seconds: i64,
    /// How long a pod stays on a node that is out of reach, where it does not say.
    pub unreachable_toleration_seconds: i64,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

/// A handle; clones share it.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    config: Config,
    key: tokens::SigningKey,
    rbac: rbac::Rbac,
    pods: node::Pods,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

/// Who is acted for, and by whom. What a request may do is known only after [`Auth::authorize`], which every request must pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who is acted for. Where impersonation is asked for and nothing allows it, the caller itself.
    pub user: User,
    /// Set where someone else acts.
    pub(crate) impersonation: Option<impersonation::Impersonation>,
}

impl Identity {
    /// Someone who acts for itself.
    pub fn new(user: User) -> Self {
        Self {
            user,
            impersonation: None,
        }
    }

    /// Whether the caller itself has not said who it is.
    pub(crate) fn is_anonymous(&self) -> bool {
        let caller = self.impersonation.as_ref().map_or(&self.user, |i| &i.by);
        caller.name == ANONYMOUS
    }
}

/// An answer of the authorizers, with the reason that they give for it, or "".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

impl Auth {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// When the signing key is not an EC P-256 key in PKCS#8 PEM.
    pub fn new(store: Store, config: Config) -> Result<Self, String> {
        let key = tokens::SigningKey::from_pem(&config.signing_key_pem)?;
        let inner = Inner {
            store,
            config,
            key,
            rbac: rbac::Rbac::default(),
            pods: node::Pods::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Who sends a request. `certificate` is the DER of a client certificate that TLS has verified: CN = user, O = groups. Without
    /// one, `Authorization: Bearer`, else anonymous. `Impersonate-User`, `-Group`, `-Uid` and `-Extra-*` change whom it acts for.
    ///
    /// # Errors
    /// 401 for a token that is not valid, 400 for impersonation headers without a user.
    pub fn identify(&self, certificate: Option<&[u8]>, headers: &http::HeaderMap) -> Result<Identity, Status> {
        let by = authn::authenticate(self, certificate, headers)?;
        let Some(wanted) = authn::wanted(headers)? else {
            return Ok(Identity::new(by));
        };
        let user = impersonation::effective(self, &by, &wanted).unwrap_or_else(|| by.clone());
        let impersonation = Some(impersonation::Impersonation { by, wanted });
        Ok(Identity { user, impersonation })
    }

    /// Whether `identity` may do what `attributes` say; also whether it may act for whom it says.
    ///
    /// # Errors
    /// 403 with the real server's words.
    pub fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Result<(), Status> {
        if let Some(impersonation) = &identity.impersonation {
            impersonation::check(self, impersonation, &identity.user, attributes)?;
        }
        self.require(&identity.user, attributes)
    }

    /// What admission this server has.
    pub fn admission(&self) -> admission::Admission {
        admission::Admission::new(self.clone())
    }

    fn require(&self, user: &User, attributes: &Attributes) -> Result<(), Status> {
        let decision = self.decide(user, attributes);
        if decision.allowed {
            return Ok(());
        }
        Err(forbidden(user, attributes, &decision.reason))
    }

    /// Masters, then the Node authorizer, then RBAC; the first that allows ends it.
    pub(crate) fn decide(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.is_in(MASTERS) {
            return Decision {
                allowed: true,
                reason: String::new(),
            };
        }
        let node = node::decide(self, user, attributes);
        if node.allowed {
            return node;
        }
        let mut rbac = self.inner.rbac.decide(&self.inner.store, user, attributes);
        if !rbac.allowed && !node.reason.is_empty() {
            let mut reasons = vec![node.reason];
            reasons.extend(Some(rbac.reason).filter(|reason| !reason.is_empty()));
            rbac.reason = reasons.join("\n");
        }
        rbac
    }

    /// An object of a kind whose version is v1.
    fn read(&self, group: &'static str, plural: &'static str, namespace: &str, name: &str) -> Option<Value> {
        let key = Key::new(storage(group, plural), namespace, name);
        self.inner.store.get(&key).map(|object| object.value())
    }

    /// As [`Self::read`], with the real server's 404.
    fn need(&self, group: &'static str, plural: &'static str, namespace: &str, name: &str) -> Result<Value, Status> {
        self.read(group, plural, namespace, name)
            .ok_or_else(|| Status::not_found(group, plural, name))
    }
}

/// Where objects of a kind of version v1 are: what its row says; a kind without a row has no objects.
fn storage(group: &'static str, plural: &'static str) -> &'static str {
    kinds::row(group, "v1", plural).map_or(plural, |row| row.storage)
}

/// 403 for what the authorizers do not allow.
pub(crate) fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let mut why = attributes.refusal(&user.name);
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    if attributes.resource.is_empty() {
        let mut status = Status::new(403, "Forbidden", format!("forbidden: {why}"));
        status.details = Some(Box::new(Details::default()));
        return status;
    }
    Status::forbidden(&attributes.group, &attributes.resource, &attributes.name, &why)
}

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
    /// The node whose pods a list or watch is of: what a field selector `spec.nodeName=` says; else "".
    pub node: String,
    /// The path, for what is no resource.
    pub path: String,
}

impl Attributes {
    /// Whether a resource is asked for, not a path.
    pub(crate) fn is_resource(&self) -> bool {
        !self.resource.is_empty() || self.path.is_empty()
    }

    /// `pods/log`, `pods`.
    pub(crate) fn combined(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    fn refusal(&self, user: &str) -> String {
        let verb = &self.verb;
        if !self.is_resource() {
            return format!("User {user:?} cannot {verb} path {:?}", self.path);
        }
        let (resource, group) = (self.combined(), &self.group);
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
    }
}

impl User {
    /// `authentication.k8s.io UserInfo`.
    pub(crate) fn to_json(&self) -> Value {
        let mut info = serde_json::Map::new();
        for (field, text) in [("username", &self.name), ("uid", &self.uid)] {
            if !text.is_empty() {
                info.insert(field.into(), text.as_str().into());
            }
        }
        if !self.groups.is_empty() {
            info.insert("groups".into(), self.groups.clone().into());
        }
        if !self.extra.is_empty() {
            let extra = self.extra.iter().map(|(k, v)| (k.clone(), v.clone().into()));
            info.insert("extra".into(), Value::Object(extra.collect()));
        }
        Value::Object(info)
    }

    /// Adds the group that everyone has who is known, or who is not.
    pub(crate) fn with_everyone(mut self) -> Self {
        let group = if self.name == ANONYMOUS || self.is_in(UNAUTHENTICATED) {
            UNAUTHENTICATED
        } else {
            AUTHENTICATED
        };
        if !self.is_in(group) {
            self.groups.push(group.into());
        }
        self
    }
}

/// The name of a ServiceAccount's user.
pub(crate) fn account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Namespace and name of the ServiceAccount whose user this is.
pub(crate) fn account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (is_subdomain(namespace) && is_subdomain(name)).then_some((namespace, name))
}

/// Groups of every ServiceAccount of a namespace.
pub(crate) fn account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

/// RFC 1123 subdomain.
fn is_subdomain(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label =
        |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.chars().all(inner);
    name.len() <= 253 && name.split('.').all(label)
}

/// Whether `object` is of this name and namespace and its deletion, if it has begun, began less than `leeway` seconds ago.
fn is_alive(object: &Value, leeway: i64) -> bool {
    let deleted = object::parse_time(object::text(object, "/metadata/deletionTimestamp"));
    deleted.is_none_or(|at| at.unix_timestamp() >= object::now().unix_timestamp() - leeway)
}
