//! What is there from the first start: namespaces, system PriorityClasses, default roles and their bindings.
//!
//! Each is created where it is absent, at every start; what an administrator changed stays.

mod controllers;
mod roles;

use serde_json::{Map, Value, json};

use crate::auth::rbac::{GROUP, Rule};

/// Where the system's own objects are.
const SYSTEM: &str = "kube-system";
const NAMESPACES: &[&str] = &["default", SYSTEM, "kube-public", "kube-node-lease"];

/// Name, value, description.
const PRIORITY_CLASSES: &[(&str, i64, &str)] = &[
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// Rights, in the short form of the tables: words are separated by spaces, the group `core` is "", and the verbs `READ`, `WRITE`
/// and `ALL` stand for several.
#[derive(Debug, Clone, Copy)]
enum Grant {
    /// Verbs, groups, resources.
    On(&'static str, &'static str, &'static str),
    /// Verbs, groups, resources, names.
    Named(&'static str, &'static str, &'static str, &'static str),
    /// Verbs, paths.
    Paths(&'static str, &'static str),
}

/// A role of the tables.
#[derive(Debug)]
struct Seed {
    name: &'static str,
    /// `rbac.authorization.k8s.io/aggregate-to-…`, or "".
    aggregates_to: &'static str,
    grants: &'static [Grant],
}

/// Write an event about anything.
const EVENTS: Grant = Grant::On("create patch update", "core events.k8s.io", "events");

fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        match word {
            "READ" => words.extend(["get", "list", "watch"].map(str::to_owned)),
            "WRITE" => words.extend(["create", "delete", "deletecollection", "patch", "update"].map(str::to_owned)),
            "core" => words.push(String::new()),
            other => words.push(other.into()),
        }
    }
    words.sort();
    words
}

impl Grant {
    fn rule(self) -> Rule {
        match self {
            Self::On(verbs, groups, resources) => Rule {
                verbs: words(verbs),
                groups: words(groups),
                resources: words(resources),
                ..Rule::default()
            },
            Self::Named(verbs, groups, resources, names) => Rule {
                names: words(names),
                ..Self::On(verbs, groups, resources).rule()
            },
            Self::Paths(verbs, paths) => Rule {
                verbs: words(verbs),
                urls: words(paths),
                ..Rule::default()
            },
        }
    }
}

/// What every node may do; the Node authorizer evaluates it without any binding.
pub(crate) fn node_rules() -> Vec<Rule> {
    roles::NODE.iter().map(|grant| grant.rule()).collect()
}

/// All of them, in an order in which each may be created: API group, plural, object.
pub(crate) fn objects() -> Vec<(&'static str, &'static str, Value)> {
    let mut objects = Vec::new();
    for name in NAMESPACES {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        objects.push(("", "namespaces", namespace));
    }
    for (name, value, description) in PRIORITY_CLASSES {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
        });
        objects.push(("scheduling.k8s.io", "priorityclasses", class));
    }
    let seeds = roles::CLUSTER.iter().chain(controllers::ROLES);
    objects.extend(seeds.map(|seed| (GROUP, "clusterroles", cluster_role(seed))));
    objects.extend(
        roles::AGGREGATED
            .iter()
            .map(|name| (GROUP, "clusterroles", aggregated(name))),
    );
    let bindings = roles::BINDINGS.iter();
    objects.extend(bindings.map(|(role, subjects)| (GROUP, "clusterrolebindings", cluster_binding(role, subjects))));
    objects.extend(controllers::ROLES.iter().map(controller_binding));
    for (namespace, seed) in roles::NAMESPACED {
        objects.push((GROUP, "roles", role(namespace, seed)));
    }
    for (namespace, name, role, subjects) in roles::NAMESPACED_BINDINGS {
        objects.push((
            GROUP,
            "rolebindings",
            binding("RoleBinding", namespace, name, ("Role", role), subjects),
        ));
    }
    objects
}

fn object(kind: &str, namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata})
}

fn rules(grants: &[Grant]) -> Value {
    grants.iter().map(|grant| grant.rule().to_json()).collect()
}

fn role(namespace: &str, seed: &Seed) -> Value {
    let mut role = object("Role", namespace, seed.name);
    role["rules"] = rules(seed.grants);
    role
}

fn cluster_role(seed: &Seed) -> Value {
    let mut role = object("ClusterRole", "", seed.name);
    if !seed.aggregates_to.is_empty() {
        role["metadata"]["labels"][aggregation(seed.aggregates_to)] = json!("true");
    }
    role["rules"] = rules(seed.grants);
    role
}

fn aggregation(to: &str) -> String {
    format!("{GROUP}/aggregate-to-{to}")
}

/// `view`, `edit` and `admin` contain each other in that order. Their rules are gathered whenever they are asked for
/// ([`crate::auth::rbac`]); what they hold here is for people to read.
fn aggregated(name: &str) -> Value {
    let mut role = object("ClusterRole", "", name);
    let position = roles::AGGREGATED.iter().position(|n| *n == name).unwrap_or_default();
    if let Some(next) = roles::AGGREGATED.get(position + 1) {
        role["metadata"]["labels"][aggregation(next)] = json!("true");
    }
    let mut labels = Map::new();
    labels.insert(aggregation(name), json!("true"));
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
    let contained = &roles::AGGREGATED[..=position];
    let seeds = roles::CLUSTER
        .iter()
        .filter(|seed| contained.contains(&seed.aggregates_to));
    role["rules"] = seeds
        .flat_map(|seed| seed.grants)
        .map(|grant| grant.rule().to_json())
        .collect();
    role
}

fn cluster_binding(role: &str, subjects: &[&str]) -> Value {
    binding("ClusterRoleBinding", "", role, ("ClusterRole", role), subjects)
}

fn controller_binding(seed: &Seed) -> (&'static str, &'static str, Value) {
    let account = seed.name.trim_start_matches(controllers::PREFIX);
    let subject = format!("account:{SYSTEM}/{account}");
    (GROUP, "clusterrolebindings", cluster_binding(seed.name, &[&subject]))
}

fn binding(kind: &str, namespace: &str, name: &str, role: (&str, &str), subjects: &[&str]) -> Value {
    let mut binding = object(kind, namespace, name);
    binding["roleRef"] = json!({"apiGroup": GROUP, "kind": role.0, "name": role.1});
    if !subjects.is_empty() {
        binding["subjects"] = subjects.iter().map(|text| subject(text)).collect();
    }
    binding
}

/// `user:NAME`, `group:NAME` or `account:NAMESPACE/NAME`.
fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').unwrap_or(("user", text));
    match kind {
        "group" => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        "account" => {
            let (namespace, name) = name.split_once('/').unwrap_or((SYSTEM, name));
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        _ => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::object::{items, name, namespace, text};

    #[test]
    fn every_object_is_there_once_and_every_binding_finds_its_role() {
        let objects = objects();
        let keys: BTreeSet<_> = objects
            .iter()
            .map(|(group, plural, o)| (*group, *plural, namespace(o), name(o)))
            .collect();
        assert_eq!(keys.len(), objects.len());
        for (_, plural, object) in objects.iter().filter(|(_, plural, _)| plural.ends_with("bindings")) {
            let (kind, role) = (text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
            let found = match kind {
                "ClusterRole" => keys.contains(&(GROUP, "clusterroles", "", role)),
                _ => keys.contains(&(GROUP, "roles", namespace(object), role)),
            };
            assert!(found, "{plural} {} refers to {kind} {role}", name(object));
        }
    }

    #[test]
    fn admin_contains_edit_which_contains_view() {
        let roles: Vec<Value> = ["view", "edit", "admin"].map(aggregated).into();
        let rules: Vec<&[Value]> = roles.iter().map(|role| items(role, "/rules")).collect();
        assert!(rules[0].iter().all(|rule| rules[1].contains(rule)));
        assert!(rules[1].iter().all(|rule| rules[2].contains(rule)));
        assert_eq!(roles[0]["metadata"]["labels"][aggregation("edit")], "true");
        assert_eq!(roles[1]["metadata"]["labels"][aggregation("admin")], "true");
    }

    #[test]
    fn the_short_form_says_what_it_means() {
        let rule = Grant::On("READ", "core apps", "pods").rule();
        assert_eq!(rule.verbs, ["get", "list", "watch"]);
        assert_eq!(rule.groups, ["", "apps"]);
        let paths = Grant::Paths("get", "/api /api/*").rule().to_json();
        assert_eq!(paths, json!({"nonResourceURLs": ["/api", "/api/*"], "verbs": ["get"]}));
    }
}
