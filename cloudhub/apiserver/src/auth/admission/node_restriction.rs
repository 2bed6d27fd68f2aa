//! NodeRestriction: a node changes its own Node, its own lease and the status of its own pods, and asks for tokens of these only.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::super::node::LEASES;
use super::super::{Attributes, NODES, User, references, tokens};
use super::{Auth, Operation, Request};
use crate::object::{self, items, text};
use crate::status::Status;

/// Labels of Kubernetes' own domains that a node may set on itself.
const LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// And domains, with all below them.
const LABEL_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// A domain that is kept from nodes.
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// Whether the plugin judges this user, and the node that it is.
fn node(user: &User) -> Option<Option<&str>> {
    (user.is_in(NODES) && user.name.starts_with("system:node:")).then(|| user.node())
}

pub(super) fn admit(auth: &Auth, request: &Request<'_>) -> Result<(), Status> {
    let Some(node) = node(request.user()) else {
        return Ok(());
    };
    let Some(node) = node else {
        let user = &request.user().name;
        return Err(request.forbidden(format!("could not determine node from user {user:?}")));
    };
    let asked = Asked { auth, node, request };
    match (request.row.group, request.row.plural, request.subresource) {
        ("", "pods", "") => asked.pod(),
        ("", "pods", "status") => asked.pod_status(),
        ("", "pods", "eviction") => asked.eviction(),
        ("", "pods", other) => asked.no(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
        ("", "nodes", _) => asked.own_node(),
        ("coordination.k8s.io", "leases", _) => asked.lease(),
        _ => Ok(()),
    }
}

struct Asked<'a, 'b> {
    auth: &'a Auth,
    node: &'a str,
    request: &'a Request<'b>,
}

impl Asked<'_, '_> {
    fn no(&self, why: impl AsRef<str>) -> Result<(), Status> {
        Err(self.request.forbidden(why))
    }

    fn operation(&self) -> Operation {
        self.request.operation
    }

    fn pod(&self) -> Result<(), Status> {
        let node = self.node;
        match self.operation() {
            Operation::Create => self.mirror_pod(),
            Operation::Delete => self.is_mine("delete"),
            Operation::Update => self.no(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                self.operation().word()
            )),
        }
    }

    /// Whether the stored pod is bound to this node.
    fn is_mine(&self, verb: &str) -> Result<(), Status> {
        let pod = match self.request.current {
            Some(pod) => pod.clone(),
            None => self
                .auth
                .need("", "pods", self.request.namespace, self.request.name())?,
        };
        if text(&pod, "/spec/nodeName") == self.node {
            return Ok(());
        }
        // The two messages differ in the quotes.
        let node = if verb == "delete" {
            format!("{:?}", self.node)
        } else {
            self.node.to_owned()
        };
        self.no(format!(
            "node {node} can only {verb} pods with spec.nodeName set to itself"
        ))
    }

    fn mirror_pod(&self) -> Result<(), Status> {
        let (node, pod) = (self.node, self.request.object());
        if !references::is_mirror(pod) {
            return self.no(format!(
                "pod does not have {:?} annotation, node {node:?} can only create mirror pods",
                references::MIRROR
            ));
        }
        if text(pod, "/spec/nodeName") != node {
            return self.no(format!(
                "node {node:?} can only create pods with spec.nodeName set to itself"
            ));
        }
        let flag = |owner: &Value, field: &str| owner.get(field).and_then(Value::as_bool) == Some(true);
        let owner = match items(pod, "/metadata/ownerReferences") {
            [owner] => owner,
            [] => {
                return self.no(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
            _ => {
                return self.no(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        let is_node = text(owner, "/apiVersion") == "v1" && text(owner, "/kind") == "Node";
        if !is_node || text(owner, "/name") != node {
            return self.no(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        if !flag(owner, "controller") {
            return self.no(format!(
                "node {node:?} can only create pods with a controller owner reference set to itself"
            ));
        }
        if flag(owner, "blockOwnerDeletion") {
            return self.no(format!(
                "node {node:?} must not set blockOwnerDeletion on an owner reference"
            ));
        }
        let stored = self.auth.need("", "nodes", "", node)?;
        let (said, uid) = (text(owner, "/uid"), object::uid(&stored));
        if said != uid {
            return self.no(format!("node {node} UID mismatch: expected {said} got {uid}"));
        }
        match references::first(pod) {
            Some(what) => self.no(format!("node {node:?} can not create pods that reference {what}")),
            None => Ok(()),
        }
    }

    fn pod_status(&self) -> Result<(), Status> {
        let (node, request) = (self.node, self.request);
        if self.operation() != Operation::Update {
            return self.no(format!("unexpected operation {:?}", self.operation().word()));
        }
        if text(request.current(), "/spec/nodeName") != node {
            return self.no(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        let differs = |pointer: &str| request.object().pointer(pointer) != request.current().pointer(pointer);
        if differs("/metadata/labels") {
            return self.no(format!("node {node:?} cannot update labels through pod status"));
        }
        if differs("/status/resourceClaimStatuses") {
            return self.no(format!("node {node:?} cannot update resource claim statues"));
        }
        Ok(())
    }

    fn eviction(&self) -> Result<(), Status> {
        if self.operation() != Operation::Create {
            return self.no(format!("unexpected operation {}", self.operation().word()));
        }
        if self.request.name().is_empty() {
            return self.no("could not determine pod from request data");
        }
        self.is_mine("evict")
    }

    fn own_node(&self) -> Result<(), Status> {
        let (node, request) = (self.node, self.request);
        let name = request.name();
        if name != node {
            return self.no(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        let (object, current) = (request.object(), request.current());
        let changed = |pointer: &str| items(object, pointer) != items(current, pointer);
        if self.operation() == Operation::Update {
            if changed("/spec/taints") {
                return self.no(format!("node {node:?} is not allowed to modify taints"));
            }
            if changed("/metadata/ownerReferences") {
                return self.no(format!("node {node:?} is not allowed to modify ownerReferences"));
            }
        }
        let labels = match self.operation() {
            Operation::Delete => BTreeSet::new(),
            Operation::Create | Operation::Update => forbidden_labels(object, current),
        };
        if labels.is_empty() {
            return Ok(());
        }
        let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
        if self.operation() == Operation::Create {
            self.no(format!(
                "node {node:?} is not allowed to set the following labels: {labels}"
            ))
        } else {
            self.no(format!("is not allowed to modify labels: {labels}"))
        }
    }

    fn lease(&self) -> Result<(), Status> {
        if self.request.namespace != LEASES {
            return self.no(format!("can only access leases in the {LEASES:?} system namespace"));
        }
        if self.request.name() != self.node {
            return self.no("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }
}

/// Labels that differ and that a node must not touch.
fn forbidden_labels<'a>(object: &'a Value, current: &'a Value) -> BTreeSet<&'a str> {
    let labels =
        |object: &'a Value| -> Option<&'a Map<String, Value>> { object.pointer("/metadata/labels")?.as_object() };
    let value = |labels: Option<&'a Map<String, Value>>, key: &str| labels.and_then(|labels| labels.get(key));
    let (after, before) = (labels(object), labels(current));
    let keys = after.into_iter().chain(before).flat_map(Map::keys);
    keys.filter(|key| value(after, key) != value(before, key) && !may_set(key))
        .map(String::as_str)
        .collect()
}

fn may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| {
        let rest = domain.strip_suffix(parent);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if within(RESTRICTED) {
        return false;
    }
    let is_kubernetes = within("kubernetes.io") || within("k8s.io");
    !is_kubernetes || LABELS.contains(&label) || LABEL_DOMAINS.iter().any(|parent| within(parent))
}

/// A node asks for tokens of its own pods only, for audiences that these name.
pub(super) fn admit_token(
    auth: &Auth,
    user: &User,
    namespace: &str,
    account: &str,
    body: &Value,
) -> Result<(), Status> {
    let Some(node) = node(user) else { return Ok(()) };
    let no = |why: String| Err(Status::forbidden("", "serviceaccounts", account, &why));
    let Some(node) = node else {
        return no(format!("could not determine node from user {:?}", user.name));
    };
    let reference = body.pointer("/spec/boundObjectRef").unwrap_or(&Value::Null);
    let (name, uid) = (text(reference, "/name"), text(reference, "/uid"));
    if text(reference, "/apiVersion") != "v1" || text(reference, "/kind") != "Pod" || name.is_empty() {
        return no("node requested token not bound to a pod".into());
    }
    if uid.is_empty() {
        return no("node requested token with a pod binding without a uid".into());
    }
    let pod = auth.need("", "pods", namespace, name)?;
    if object::uid(&pod) != uid {
        return no(tokens::uid_mismatch(uid));
    }
    if text(&pod, "/spec/nodeName") != node {
        return no("node requested token bound to a pod scheduled on a different node".into());
    }
    let audience = match items(body, "/spec/audiences") {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return no("node may only request 0 or 1 audiences".into()),
    };
    if names_audience(&pod, audience) {
        return Ok(());
    }
    let attributes = Attributes {
        verb: "request-serviceaccounts-token-audience".into(),
        version: "v1".into(),
        resource: audience.into(),
        namespace: namespace.into(),
        name: account.into(),
        ..Attributes::default()
    };
    if auth.decide(user, &attributes).allowed {
        return Ok(());
    }
    no(format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        user.name
    ))
}

fn names_audience(pod: &Value, audience: &str) -> bool {
    let sources = items(pod, "/spec/volumes")
        .iter()
        .flat_map(|volume| items(volume, "/projected/sources"));
    let mut tokens = sources.filter_map(|source| source.get("serviceAccountToken"));
    tokens.any(|token| text(token, "/audience") == audience)
}
