//! RBAC: which rules bind a user, and what they allow.
//!
//! The four kinds are held parsed and follow the store ([`super::follow`]). An aggregated ClusterRole has the rules of those that
//! its selectors choose, at every moment: no controller copies them.

mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

pub(crate) use rule::{Rule, go_list, missing};

use super::follow::{Follow, News};
use super::{Attributes, Decision, User, account_user, storage};
use crate::object::{self, items, text};
use crate::selector::Labels;
use crate::store::{Key, Store, Stored};

/// The group of the four kinds.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// A Role or ClusterRole.
#[derive(Debug)]
struct Role {
    rules: Vec<Rule>,
    labels: Arc<[(String, String)]>,
    /// `aggregationRule.clusterRoleSelectors`; empty: not aggregated.
    selectors: Vec<Labels>,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
struct Binding {
    role_kind: String,
    role: String,
    subjects: Vec<Subject>,
}

#[derive(Debug)]
struct Subject {
    kind: String,
    namespace: String,
    name: String,
}

/// One of the four kinds, parsed by `parse`.
#[derive(Debug)]
struct Table<T> {
    follow: Follow,
    objects: BTreeMap<Key, T>,
    parse: fn(&Stored) -> T,
}

impl<T> Table<T> {
    fn new(plural: &'static str, parse: fn(&Stored) -> T) -> Self {
        Self {
            follow: Follow::new(storage(GROUP, plural)),
            objects: BTreeMap::new(),
            parse,
        }
    }

    fn refresh(&mut self, store: &Store) {
        match self.follow.news(store) {
            News::Nothing => {}
            News::Changes(changes) => {
                for change in changes {
                    let key = change.object.key.clone();
                    if change.deleted {
                        self.objects.remove(&key);
                    } else {
                        self.objects.insert(key, (self.parse)(&change.object));
                    }
                }
            }
            News::Everything(objects) => {
                let parsed = objects.iter().map(|object| (object.key.clone(), (self.parse)(object)));
                self.objects = parsed.collect();
            }
        }
    }
}

#[derive(Debug)]
struct Tables {
    cluster_roles: Table<Role>,
    roles: Table<Role>,
    cluster_bindings: Table<Binding>,
    bindings: Table<Binding>,
}

/// What RBAC knows of the store.
#[derive(Debug, Default)]
pub(super) struct Rbac {
    tables: Mutex<Option<Tables>>,
}

/// The rules that bind a user, and why some could not be read.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    pub(crate) rules: Vec<Rule>,
    pub(crate) errors: Vec<String>,
}

impl Bound {
    /// The errors as the real server joins them; "" for none.
    pub(crate) fn error(&self) -> String {
        aggregate(&self.errors)
    }
}

fn aggregate(errors: &[String]) -> String {
    match errors {
        [] => String::new(),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

impl Rbac {
    fn with<R>(&self, store: &Store, read: impl FnOnce(&Tables) -> R) -> R {
        let mut guard = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = guard.get_or_insert_with(|| Tables {
            cluster_roles: Table::new("clusterroles", role),
            roles: Table::new("roles", role),
            cluster_bindings: Table::new("clusterrolebindings", binding),
            bindings: Table::new("rolebindings", binding),
        });
        tables.cluster_roles.refresh(store);
        tables.roles.refresh(store);
        tables.cluster_bindings.refresh(store);
        tables.bindings.refresh(store);
        read(tables)
    }

    pub(super) fn decide(&self, store: &Store, user: &User, attributes: &Attributes) -> Decision {
        self.with(store, |tables| {
            let mut errors = Vec::new();
            for (description, rules) in tables.bound(user, &attributes.namespace) {
                match rules {
                    Ok(rules) if rules.iter().any(|rule| rule.allows(attributes)) => {
                        return Decision {
                            allowed: true,
                            reason: format!("RBAC: allowed by {description}"),
                        };
                    }
                    Ok(_) => {}
                    Err(error) => errors.push(error),
                }
            }
            let reason = match aggregate(&errors) {
                none if none.is_empty() => none,
                some => format!("RBAC: {some}"),
            };
            Decision { allowed: false, reason }
        })
    }

    /// Every rule that binds `user` in `namespace`.
    pub(super) fn rules_for(&self, store: &Store, user: &User, namespace: &str) -> Bound {
        self.with(store, |tables| {
            let mut bound = Bound::default();
            for (_, rules) in tables.bound(user, namespace) {
                match rules {
                    Ok(rules) => bound.rules.extend(rules.into_iter().cloned()),
                    Err(error) => bound.errors.push(error),
                }
            }
            bound
        })
    }

    /// The rules of the role that a binding in `namespace` ("" = a ClusterRoleBinding) refers to; None: it does not exist.
    pub(super) fn rules_of(&self, store: &Store, kind: &str, name: &str, namespace: &str) -> Option<Vec<Rule>> {
        self.with(store, |tables| {
            let rules = tables.rules(kind, name, namespace).ok()?;
            Some(rules.into_iter().cloned().collect())
        })
    }
}

impl Tables {
    /// The bindings that apply to `user` in `namespace`: what a reason calls each, and its rules.
    fn bound<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = (String, Result<Vec<&'a Rule>, String>)> {
        let cluster = self.cluster_bindings.objects.iter();
        let first = Key::new(self.bindings.follow.storage(), namespace, "");
        let local = self.bindings.objects.range(first..);
        let local = local.take_while(move |(key, _)| !namespace.is_empty() && key.namespace == namespace);
        cluster.chain(local).filter_map(move |(key, binding)| {
            let subject = binding.subjects.iter().find(|s| s.is(user, &key.namespace))?;
            let rules = self.rules(&binding.role_kind, &binding.role, &key.namespace);
            Some((describe(key, binding, subject), rules))
        })
    }

    fn rules(&self, kind: &str, name: &str, namespace: &str) -> Result<Vec<&Rule>, String> {
        match kind {
            "ClusterRole" => {
                let mut rules = Vec::new();
                if self.cluster_rules(name, &mut BTreeSet::new(), &mut rules) {
                    return Ok(rules);
                }
                Err(format!("clusterrole.{GROUP} {name:?} not found"))
            }
            "Role" => {
                let key = Key::new(self.roles.follow.storage(), namespace, name);
                let role = self.roles.objects.get(&key);
                role.map(|role| role.rules.iter().collect())
                    .ok_or_else(|| format!("role.{GROUP} {name:?} not found"))
            }
            other => Err(format!("unsupported role reference kind: {other:?}")),
        }
    }

    /// Adds the rules of a ClusterRole, through aggregation; false: there is none.
    fn cluster_rules<'a>(&'a self, name: &str, seen: &mut BTreeSet<String>, rules: &mut Vec<&'a Rule>) -> bool {
        let key = Key::new(self.cluster_roles.follow.storage(), "", name);
        let Some(role) = self.cluster_roles.objects.get(&key) else {
            return false;
        };
        if !seen.insert(name.to_owned()) {
            return true;
        }
        if role.selectors.is_empty() {
            rules.extend(&role.rules);
            return true;
        }
        for (key, other) in &self.cluster_roles.objects {
            if role
                .selectors
                .iter()
                .any(|selector| selector.matches_labels(&other.labels))
            {
                self.cluster_rules(&key.name, seen, rules);
            }
        }
        true
    }
}

impl Subject {
    fn is(&self, user: &User, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => user.name == self.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    namespace
                } else {
                    &self.namespace
                };
                !namespace.is_empty() && user.name == account_user(namespace, &self.name)
            }
            _ => false,
        }
    }
}

fn describe(key: &Key, binding: &Binding, subject: &Subject) -> String {
    let (kind, name) = if key.namespace.is_empty() {
        ("ClusterRoleBinding", key.name.clone())
    } else {
        ("RoleBinding", format!("{}/{}", key.name, key.namespace))
    };
    let subject_name = if subject.kind == "ServiceAccount" {
        let namespace = if subject.namespace.is_empty() {
            &key.namespace
        } else {
            &subject.namespace
        };
        format!("{}/{namespace}", subject.name)
    } else {
        subject.name.clone()
    };
    let (role_kind, role, subject_kind) = (&binding.role_kind, &binding.role, &subject.kind);
    format!("{kind} {name:?} of {role_kind} {role:?} to {subject_kind} {subject_name:?}")
}

fn role(stored: &Stored) -> Role {
    let value = stored.value();
    Role {
        rules: items(&value, "/rules").iter().map(Rule::from_json).collect(),
        labels: stored.labels.clone(),
        // Validation lets none in that cannot be read.
        selectors: items(&value, "/aggregationRule/clusterRoleSelectors")
            .iter()
            .filter_map(|selector| Labels::of_object(selector).ok())
            .collect(),
    }
}

fn binding(stored: &Stored) -> Binding {
    let value = stored.value();
    let subject = |subject: &Value| Subject {
        kind: text(subject, "/kind").into(),
        namespace: text(subject, "/namespace").into(),
        name: text(subject, "/name").into(),
    };
    Binding {
        role_kind: text(&value, "/roleRef/kind").into(),
        role: text(&value, "/roleRef/name").into(),
        subjects: items(&value, "/subjects").iter().map(subject).collect(),
    }
}

/// Whether only what the garbage collector needs differs: ownerReferences, finalizers.
pub(crate) fn is_only_gc(object: &Value, current: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        let metadata = object::metadata(&mut object);
        for field in [
            "ownerReferences",
            "finalizers",
            "managedFields",
            "resourceVersion",
            "generation",
        ] {
            metadata.shift_remove(field);
        }
        object
    };
    without(object) == without(current)
}

#[cfg(test)]
mod tests;
