//! ControllerRevisions of a DaemonSet: one for each template that it had.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::error::Error;
use crate::pods;

/// Label of revisions and pods: which template.
pub(super) const HASH: &str = "controller-revision-hash";

/// The patch that `kubectl rollout undo` applies to come back to the present template.
pub(super) fn data(ds: &DaemonSet) -> Result<Value, Error> {
    let template = ds.spec.as_ref().map(|spec| &spec.template);
    let mut template = serde_json::to_value(template).map_err(|source| Error::Encode {
        what: "a DaemonSet's template",
        source,
    })?;
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".into(), "replace".into());
    }
    Ok(json!({"spec": {"template": template}}))
}

/// Whether `revision` is of the template in `data`.
pub(super) fn is(revision: &ControllerRevision, data: &Value) -> bool {
    revision.data.as_ref().is_some_and(|has| has.0 == *data)
}

pub(super) fn hash_label(meta: &ObjectMeta) -> Option<String> {
    meta.labels.as_ref()?.get(HASH).cloned()
}

pub(super) fn hash_of(revision: &ControllerRevision) -> String {
    hash_label(&revision.metadata).unwrap_or_default()
}

pub(super) fn make(ds: &DaemonSet, data: &Value, number: i64) -> ControllerRevision {
    let collisions = ds.status.as_ref().and_then(|s| s.collision_count);
    let hash = pods::hash(&data.to_string(), collisions);
    let template = ds.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let mut labels = template.map(pods::labels).unwrap_or_default();
    labels.insert(HASH.into(), hash.clone());
    let mut annotations = ds.annotations().clone();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", ds.name_any())),
            namespace: ds.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![pods::reference(ds)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data.clone())),
        revision: number,
    }
}
