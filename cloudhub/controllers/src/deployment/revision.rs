//! Which ReplicaSet is of which template, and the annotations that record the history.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;
use serde_json::{Map, Value};

use super::plan;
use crate::pods;

/// Label that tells the pods of one template from those of another.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
/// The revision of a ReplicaSet, and the present one of a Deployment.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that a ReplicaSet does not get from its Deployment.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Longest history annotation, as in kube-controller-manager.
const HISTORY_CHARS: usize = 2000;

type Annotations = BTreeMap<String, String>;

fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.take().filter(|all| !all.is_empty());
        meta.creation_timestamp = None;
    }
    template
}

/// Whether `rs` is of the Deployment's present template.
pub(super) fn same(deployment: &Deployment, rs: &ReplicaSet) -> bool {
    let (Some(wanted), Some(has)) = (&deployment.spec, rs.spec.as_ref().and_then(|s| s.template.as_ref())) else {
        return false;
    };
    bare(&wanted.template) == bare(has)
}

/// The template's ReplicaSet, the oldest if there are several, and the others; `sets` is sorted by age.
pub(super) fn split(
    deployment: &Deployment,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let found = sets.iter().position(|rs| same(deployment, rs));
    let new = found.map(|index| sets.remove(index));
    (new, sets)
}

/// The hash that names the template's ReplicaSet.
pub(super) fn hash(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().map(|spec| bare(&spec.template));
    let text = serde_json::to_string(&template).unwrap_or_default();
    pods::hash(&text, deployment.status.as_ref().and_then(|s| s.collision_count))
}

/// The revision that `annotations` name, 0 without.
pub(super) fn of(annotations: &Annotations) -> i64 {
    annotations
        .get(REVISION)
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

pub(super) fn highest(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|rs| of(rs.annotations())).max().unwrap_or(0)
}

/// What the annotations of the template's ReplicaSet should be.
pub(super) fn annotations(deployment: &Deployment, rs: Option<&ReplicaSet>, revision: i64) -> Annotations {
    let mut all = rs.map(|rs| rs.annotations().clone()).unwrap_or_default();
    let from = deployment.annotations();
    all.extend(
        from.iter()
            .filter(|(key, _)| !OWN.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    let before = of(&all);
    if before < revision
        && let Some(old) = all.insert(REVISION.into(), revision.to_string())
    {
        let history = with_history(all.get(HISTORY).map_or("", String::as_str), &old);
        all.insert(HISTORY.into(), history);
    }
    all
}

fn with_history(history: &str, old: &str) -> String {
    let mut all: Vec<&str> = history.split(',').filter(|part| !part.is_empty()).collect();
    all.push(old);
    while all.join(",").len() > HISTORY_CHARS {
        all.remove(0);
    }
    all.join(",")
}

/// The sizes that a ReplicaSet was given last, by which a scaling is told from a rollout.
pub(super) fn size_annotations(deployment: &Deployment) -> Annotations {
    let replicas = plan::replicas(deployment);
    BTreeMap::from([
        (DESIRED.to_owned(), replicas.to_string()),
        (MAX.to_owned(), (replicas + plan::surge(deployment)).to_string()),
    ])
}

/// The `desired-replicas` annotation of `rs`.
pub(super) fn desired(rs: &ReplicaSet) -> Option<i32> {
    rs.annotations().get(DESIRED)?.parse().ok()
}

/// The `max-replicas` annotation of `rs`.
pub(super) fn max(rs: &ReplicaSet) -> Option<i32> {
    rs.annotations().get(MAX)?.parse().ok()
}

/// A merge patch from `has` to `wanted`.
pub(super) fn changes(has: &Annotations, wanted: &Annotations) -> Map<String, Value> {
    wanted
        .iter()
        .filter(|(key, value)| has.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), Value::from(value.clone())))
        .collect()
}

/// The ReplicaSets to delete so that `limit` old ones remain: those of the lowest revisions which have no pods.
pub(super) fn beyond(old: &[Arc<ReplicaSet>], limit: usize) -> Vec<Arc<ReplicaSet>> {
    let mut old: Vec<_> = old
        .iter()
        .filter(|rs| !pods::is_deleting(&rs.metadata))
        .cloned()
        .collect();
    old.sort_by_key(|rs| of(rs.annotations()));
    let surplus = old.len().saturating_sub(limit);
    old.truncate(surplus);
    old.retain(|rs| {
        let idle = rs.status.as_ref().is_some_and(|s| s.replicas == 0);
        let seen = rs.status.as_ref().and_then(|s| s.observed_generation) >= rs.metadata.generation;
        idle && seen && plan::replicas_of(rs) == 0
    });
    old
}
