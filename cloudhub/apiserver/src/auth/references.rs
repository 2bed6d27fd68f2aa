//! Which other objects a pod names: what its node may therefore read, and what a mirror pod must not name.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::object::{items, text};

/// Annotation of pods that only mirror a node's static pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Where a volume names a Secret.
const SECRET_VOLUMES: &[&str] = &[
    "/secret/secretName",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/flexVolume/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name",
    "/storageos/secretRef/name",
    "/csi/nodePublishSecretRef/name",
];

/// Whether the pod only mirrors a static pod of its node.
pub(super) fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations")
        .is_some_and(|a| a.get(MIRROR).is_some())
}

/// Containers of all three lists.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(pod, list))
}

/// Names of Secrets.
pub(super) fn secrets(pod: &Value) -> BTreeSet<&str> {
    let mut names: BTreeSet<&str> = items(pod, "/spec/imagePullSecrets")
        .iter()
        .map(|reference| text(reference, "/name"))
        .collect();
    for container in containers(pod) {
        let from = items(container, "/envFrom").iter();
        names.extend(from.map(|source| text(source, "/secretRef/name")));
        let env = items(container, "/env").iter();
        names.extend(env.map(|variable| text(variable, "/valueFrom/secretKeyRef/name")));
    }
    for volume in items(pod, "/spec/volumes") {
        names.extend(SECRET_VOLUMES.iter().map(|pointer| text(volume, pointer)));
        let sources = items(volume, "/projected/sources").iter();
        names.extend(sources.map(|source| text(source, "/secret/name")));
    }
    names.remove("");
    names
}

/// Names of ConfigMaps.
pub(super) fn configmaps(pod: &Value) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for container in containers(pod) {
        let from = items(container, "/envFrom").iter();
        names.extend(from.map(|source| text(source, "/configMapRef/name")));
        let env = items(container, "/env").iter();
        names.extend(env.map(|variable| text(variable, "/valueFrom/configMapKeyRef/name")));
    }
    for volume in items(pod, "/spec/volumes") {
        names.insert(text(volume, "/configMap/name"));
        let sources = items(volume, "/projected/sources").iter();
        names.extend(sources.map(|source| text(source, "/configMap/name")));
    }
    names.remove("");
    names
}

/// Kinds of volumes that need nothing of the API beside the pod.
const PLAIN_VOLUMES: &[&str] = &["downwardAPI", "emptyDir", "hostPath", "image", "iscsi", "nfs", "fc"];

/// Volumes that name other objects, and how the refusal calls these.
const OTHER_VOLUMES: &[(&str, &str)] = &[
    ("configMap", "configmaps (via configmap volumes)"),
    ("secret", "secrets (via secret volumes)"),
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("azureFile", "secrets (via azureFile volumes)"),
];

/// The same for sources of projected volumes.
const OTHER_SOURCES: &[(&str, &str)] = &[
    ("configMap", "configmaps (via projected volumes)"),
    ("secret", "secrets (via projected volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

/// What other objects the pod names, as NodeRestriction words it; None: none.
pub(super) fn first(pod: &Value) -> Option<&'static str> {
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    if !secrets(pod).is_empty() {
        return Some("secrets");
    }
    if !configmaps(pod).is_empty() {
        return Some("configmaps");
    }
    if !items(pod, "/spec/resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    items(pod, "/spec/volumes").iter().find_map(volume)
}

fn volume(volume: &Value) -> Option<&'static str> {
    let has = |field: &str| volume.get(field).is_some_and(|source| !source.is_null());
    if let Some((_, words)) = OTHER_VOLUMES.iter().find(|(field, _)| has(field)) {
        return Some(words);
    }
    if has("projected") {
        return items(volume, "/projected/sources").iter().find_map(|source| {
            let found = OTHER_SOURCES.iter().find(|(field, _)| source.get(field).is_some());
            found.map(|(_, words)| *words)
        });
    }
    // What is not known to be harmless is refused.
    (!PLAIN_VOLUMES.iter().any(|field| has(field))).then_some("volumes of that kind")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_where_a_pod_names_a_secret_or_configmap_is_found() {
        let pod = json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "init"}}]}],
            "containers": [{"env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "cenv", "key": "k"}}},
                {"name": "C", "value": "plain"}
            ]}],
            "volumes": [
                {"name": "v", "secret": {"secretName": "volume"}},
                {"name": "w", "projected": {"sources": [{"secret": {"name": "projected"}}, {"configMap": {"name": "kube-root-ca.crt"}}]}}
            ]
        }});
        let found: Vec<&str> = secrets(&pod).into_iter().collect();
        assert_eq!(found, ["env", "init", "projected", "pull", "volume"]);
        let found: Vec<&str> = configmaps(&pod).into_iter().collect();
        assert_eq!(found, ["cenv", "kube-root-ca.crt"]);
    }

    #[test]
    fn a_pod_of_plain_volumes_names_nothing() {
        let pod =
            json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}});
        assert_eq!(first(&pod), None);
        let pod = json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
        assert_eq!(first(&pod), Some("persistentvolumeclaims"));
    }
}
