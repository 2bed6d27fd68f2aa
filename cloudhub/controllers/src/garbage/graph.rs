//! Who owns whom: pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ApiResource;

/// Finalizer of an object whose blocking children go first.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose children stay.
pub(super) const ORPHAN: &str = "orphan";

/// A reference to an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) blocks: bool,
}

/// What the graph keeps of an object.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) resource: Arc<ApiResource>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<Owner>,
    pub(super) deleting: bool,
    pub(super) foreground: bool,
    pub(super) orphan: bool,
}

pub(super) fn owners(meta: &ObjectMeta) -> Vec<Owner> {
    let all = meta.owner_references.iter().flatten();
    all.map(|owner| Owner {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        blocks: owner.block_owner_deletion == Some(true),
    })
    .collect()
}

impl Item {
    pub(super) fn new(resource: &Arc<ApiResource>, meta: &ObjectMeta) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Self {
            resource: Arc::clone(resource),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: owners(meta),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }
}

/// What an owner is to its child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It is there.
    There,
    /// It is being deleted and waits for its children.
    Waiting,
    /// It is not there.
    Gone,
}

pub(super) fn state_of(meta: &ObjectMeta) -> OwnerState {
    let foreground = meta
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == FOREGROUND);
    if meta.deletion_timestamp.is_some() && foreground {
        OwnerState::Waiting
    } else {
        OwnerState::There
    }
}

/// What becomes of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Another owner is there: drop the references to these.
    Drop(Vec<String>),
    /// No owner is there; in the foreground if told so.
    Delete(bool),
}

/// attemptToDeleteItem of kube-controller-manager's garbage collector.
pub(super) fn verdict(owners: &[(Owner, OwnerState)], has_children: bool) -> Verdict {
    let not_there = || owners.iter().filter(|(_, state)| *state != OwnerState::There);
    if owners.is_empty() || not_there().next().is_none() {
        return Verdict::Keep;
    }
    if owners.iter().any(|(_, state)| *state == OwnerState::There) {
        return Verdict::Drop(not_there().map(|(owner, _)| owner.uid.clone()).collect());
    }
    let waiting = owners.iter().any(|(_, state)| *state == OwnerState::Waiting);
    Verdict::Delete(waiting && has_children)
}

/// Objects by uid, and children by their owner's uid.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<String, Item>,
    children: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// Takes in an object; answers whom to look at.
    pub(super) fn insert(&mut self, uid: String, item: Item) -> Vec<String> {
        let before = self.items.insert(uid.clone(), item);
        let owners_before = before.as_ref().map(|item| item.owners.clone()).unwrap_or_default();
        let item = &self.items[&uid];
        let (owners, interesting) = (item.owners.clone(), item.deleting || !item.owners.is_empty());
        let mut touched = Vec::new();
        for owner in owners_before.iter().filter(|owner| !owners.contains(owner)) {
            self.unlink(&owner.uid, &uid);
            // It may have waited for this child.
            touched.push(owner.uid.clone());
        }
        for owner in &owners {
            self.children.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if interesting {
            touched.push(uid);
        }
        touched
    }

    /// Takes out an object; answers whom to look at: its children and its owners.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else {
            return Vec::new();
        };
        let mut touched: Vec<String> = self.children.get(uid).into_iter().flatten().cloned().collect();
        for owner in item.owners {
            self.unlink(&owner.uid, uid);
            touched.push(owner.uid);
        }
        touched
    }

    fn unlink(&mut self, owner: &str, child: &str) {
        if let Some(children) = self.children.get_mut(owner) {
            children.remove(child);
            if children.is_empty() {
                self.children.remove(owner);
            }
        }
    }

    /// Takes out the objects of a kind that are not in `listed`.
    pub(super) fn retain_kind(&mut self, resource: &ApiResource, listed: &[String]) -> Vec<String> {
        let listed: HashSet<&String> = listed.iter().collect();
        let gone: Vec<String> = self
            .items
            .iter()
            .filter(|(uid, item)| *item.resource == *resource && !listed.contains(uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    /// Takes out a kind that is not served any more, without consequences.
    pub(super) fn remove_kind(&mut self, resource: &ApiResource) {
        self.retain_kind(resource, &[]);
    }

    /// An object and its children.
    pub(super) fn look(&self, uid: &str) -> Option<(Item, Vec<String>)> {
        let item = self.items.get(uid)?.clone();
        let children = self.children.get(uid).into_iter().flatten().cloned().collect();
        Some((item, children))
    }

    /// An owner's state as far as the graph knows it.
    pub(super) fn owner_state(&self, uid: &str) -> Option<OwnerState> {
        let item = self.items.get(uid)?;
        Some(if item.deleting && item.foreground {
            OwnerState::Waiting
        } else {
            OwnerState::There
        })
    }

    /// Children that keep `uid` from going.
    pub(super) fn blocking(&self, uid: &str) -> usize {
        let children = self.children.get(uid).into_iter().flatten();
        children
            .filter_map(|child| self.items.get(child))
            .filter(|child| child.owners.iter().any(|owner| owner.uid == uid && owner.blocks))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn item(meta: Value) -> Item {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        Item::new(&Arc::new(resource), &serde_json::from_value(meta).expect("metadata"))
    }

    fn owned(name: &str, owner: &str, blocks: bool) -> Item {
        item(json!({"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": owner, "blockOwnerDeletion": blocks}]}))
    }

    fn owner(uid: &str, state: OwnerState) -> (Owner, OwnerState) {
        let owner = Owner {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: uid.into(),
            uid: uid.into(),
            blocks: true,
        };
        (owner, state)
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        use OwnerState::{Gone, There, Waiting};
        let of = |owners: &[(Owner, OwnerState)]| verdict(owners, true);
        assert_eq!(of(&[]), Verdict::Keep);
        assert_eq!(of(&[owner("a", There)]), Verdict::Keep);
        assert_eq!(
            of(&[owner("a", There), owner("b", Gone)]),
            Verdict::Drop(vec!["b".into()])
        );
        assert_eq!(of(&[owner("a", Gone)]), Verdict::Delete(false));
        assert_eq!(of(&[owner("a", Gone), owner("b", Waiting)]), Verdict::Delete(true));
        assert_eq!(verdict(&[owner("a", Waiting)], false), Verdict::Delete(false));
    }

    #[test]
    fn a_deletion_touches_children_and_owners() {
        let mut graph = Graph::default();
        graph.insert("a".into(), item(json!({"name": "a"})));
        assert_eq!(graph.insert("b".into(), owned("b", "a", true)), ["b"]);
        graph.insert("c".into(), owned("c", "b", false));
        assert_eq!((graph.blocking("a"), graph.blocking("b")), (1, 0));
        let mut touched = graph.remove("b");
        touched.sort();
        assert_eq!(touched, ["a", "c"]);
        assert_eq!(graph.blocking("a"), 0);
        assert_eq!(graph.owner_state("b"), None);
        assert_eq!(graph.look("c").map(|(item, _)| item.owners.len()), Some(1));
    }

    #[test]
    fn a_relist_takes_out_what_is_not_listed() {
        let mut graph = Graph::default();
        graph.insert("a".into(), item(json!({"name": "a"})));
        graph.insert("b".into(), owned("b", "a", true));
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        assert_eq!(graph.retain_kind(&resource, &["b".into()]), ["b"]);
        assert!(graph.look("a").is_none());
    }
}
