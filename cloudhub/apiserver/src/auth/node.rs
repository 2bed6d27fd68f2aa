//! The Node authorizer: a node reads itself, its pods and what they name, and nothing of other nodes.
//!
//! The real one keeps a graph of pods and what they name. Here an index says which pods are bound to a node, and those of the
//! namespace asked for are read when it is asked: a node has at most a hundred or so.

use std::collections::{BTreeSet, HashMap};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value;

use super::follow::{Follow, News};
use super::rbac::Rule;
use super::{Attributes, Auth, Decision, NODES, User, references, storage};
use crate::bootstrap;
use crate::object::text;
use crate::store::{Key, Store, Stored};

/// Where the leases of nodes are.
pub(super) const LEASES: &str = "kube-node-lease";

/// What every node may do that is not subdivided below.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(bootstrap::node_rules);

/// Which pods are bound to which node.
#[derive(Debug, Default)]
pub(super) struct Pods {
    index: Mutex<Option<Index>>,
}

#[derive(Debug)]
struct Index {
    follow: Follow,
    nodes: HashMap<Key, String>,
    pods: HashMap<String, BTreeSet<Key>>,
}

impl Pods {
    /// The pods of one namespace that are bound to `node`.
    fn of(&self, store: &Store, node: &str, namespace: &str) -> Vec<Value> {
        let keys: Vec<Key> = {
            let mut guard = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            let index = guard.get_or_insert_with(|| Index {
                follow: Follow::new(storage("", "pods")),
                nodes: HashMap::new(),
                pods: HashMap::new(),
            });
            index.refresh(store);
            let keys = index.pods.get(node).into_iter().flatten();
            keys.filter(|key| key.namespace == namespace).cloned().collect()
        };
        keys.iter()
            .filter_map(|key| store.get(key))
            .map(|pod| pod.value())
            .collect()
    }
}

impl Index {
    fn refresh(&mut self, store: &Store) {
        match self.follow.news(store) {
            News::Nothing => {}
            News::Changes(changes) => {
                for change in changes {
                    self.put(
                        &change.object.key,
                        Some(&change.object).filter(|_| !change.deleted).map(|o| node_of(o)),
                    );
                }
            }
            News::Everything(objects) => {
                self.nodes.clear();
                self.pods.clear();
                for object in objects {
                    self.put(&object.key, Some(node_of(&object)));
                }
            }
        }
    }

    /// A pod is bound to `node` ("" = to none); None: it is gone.
    fn put(&mut self, key: &Key, node: Option<String>) {
        let node = node.filter(|node| !node.is_empty());
        if self.nodes.get(key) == node.as_ref() {
            return;
        }
        if let Some(before) = self.nodes.remove(key)
            && let Some(pods) = self.pods.get_mut(&before)
        {
            pods.remove(key);
            if pods.is_empty() {
                self.pods.remove(&before);
            }
        }
        if let Some(node) = node {
            self.pods.entry(node.clone()).or_default().insert(key.clone());
            self.nodes.insert(key.clone(), node);
        }
    }
}

/// `spec.nodeName`, without parsing the pod where its row makes that selectable.
fn node_of(pod: &Stored) -> String {
    match pod.field("spec.nodeName") {
        Some(node) => node.into(),
        None => text(&pod.value(), "/spec/nodeName").into(),
    }
}

fn allow() -> Decision {
    Decision {
        allowed: true,
        reason: String::new(),
    }
}

fn no(reason: impl Into<String>) -> Decision {
    Decision {
        allowed: false,
        reason: reason.into(),
    }
}

/// What the Node authorizer says of `user`.
pub(super) fn decide(auth: &Auth, user: &User, attributes: &Attributes) -> Decision {
    if !user.is_in(NODES) || !user.name.starts_with("system:node:") {
        return no("");
    }
    let Some(node) = user.node() else {
        return no(format!("unknown node for user {:?}", user.name));
    };
    if attributes.is_resource() {
        let asked = Asked { auth, node, attributes };
        match (attributes.group.as_str(), attributes.resource.as_str()) {
            ("", "secrets") => return asked.read(Kind::Secret),
            ("", "configmaps") => return asked.read(Kind::ConfigMap),
            ("", "serviceaccounts") => return asked.account(),
            ("", "nodes") => return asked.node(),
            ("", "pods") => return asked.pod(),
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims" | "resourceslices")
            | ("storage.k8s.io", "volumeattachments" | "csinodes")
            | ("certificates.k8s.io", "podcertificaterequests") => {
                // Not served, so nothing names one.
                return asked.unrelated();
            }
            ("coordination.k8s.io", "leases") => return asked.lease(),
            _ => {}
        }
    }
    if RULES.iter().any(|rule| rule.allows(attributes)) {
        return allow();
    }
    no("")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
    ServiceAccount,
    Pod,
}

struct Asked<'a> {
    auth: &'a Auth,
    node: &'a str,
    attributes: &'a Attributes,
}

impl Asked<'_> {
    fn verb(&self) -> &str {
        &self.attributes.verb
    }

    fn unrelated(&self) -> Decision {
        no(format!(
            "no relationship found between node '{}' and this object",
            self.node
        ))
    }

    /// Whether a pod of the node is, or names, the object asked for.
    fn related(&self, kind: Kind) -> Decision {
        let name = self.attributes.name.as_str();
        if name.is_empty() {
            return no("No Object name found");
        }
        let names = |pod: &Value| match kind {
            Kind::Pod => text(pod, "/metadata/name") == name,
            // A node may create mirror pods: these must never open the way to anything.
            _ if references::is_mirror(pod) => false,
            Kind::ServiceAccount => text(pod, "/spec/serviceAccountName") == name,
            Kind::Secret => references::secrets(pod).contains(name),
            Kind::ConfigMap => references::configmaps(pod).contains(name),
        };
        let inner = &self.auth.inner;
        let pods = inner.pods.of(&inner.store, self.node, &self.attributes.namespace);
        if pods.iter().any(names) {
            allow()
        } else {
            self.unrelated()
        }
    }

    fn read(&self, kind: Kind) -> Decision {
        if !matches!(self.verb(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !self.attributes.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if self.attributes.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(kind)
    }

    fn account(&self) -> Decision {
        let subresource = self.attributes.subresource.as_str();
        if self.verb() == "get" && subresource.is_empty() {
            return self.read(Kind::ServiceAccount);
        }
        if self.verb() != "create" || self.attributes.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(Kind::ServiceAccount)
    }

    fn lease(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if self.attributes.namespace != LEASES {
            return no(format!("can only access leases in the {LEASES:?} system namespace"));
        }
        // The name of a creation is in the body: NodeRestriction looks.
        if self.verb() != "create" && self.attributes.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        allow()
    }

    fn node(&self) -> Decision {
        let (node, name) = (self.node, self.attributes.name.as_str());
        match (self.attributes.subresource.as_str(), self.verb()) {
            // Of which node: NodeRestriction looks.
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
            ("", "get" | "list" | "watch") if name == node => allow(),
            ("", "get" | "list" | "watch") if name.is_empty() => {
                no(format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            ("", "get" | "list" | "watch") => {
                no(format!("node '{node}' cannot read '{name}', only its own Node object"))
            }
            _ => no(""),
        }
    }

    fn pod(&self) -> Decision {
        match (self.attributes.subresource.as_str(), self.verb()) {
            ("", "get") => self.related(Kind::Pod),
            ("", "list" | "watch") if !self.attributes.name.is_empty() => self.related(Kind::Pod),
            ("", "list" | "watch") if self.attributes.node == self.node => allow(),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // Of which node: NodeRestriction looks.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            _ => no(""),
        }
    }
}

#[cfg(test)]
mod tests;
