//! Which Secrets, ConfigMaps and RuntimeClasses a pod needs on its node.

use std::collections::BTreeSet;

use serde_json::Value;

use super::view::{Kind, ObjectKey};

/// The objects that the pod names in its spec.
pub fn of_pod(pod: &Value) -> BTreeSet<ObjectKey> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let spec = &pod["spec"];
    let mut found = BTreeSet::new();
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|n| !n.is_empty()) {
            let namespace = if kind == Kind::RuntimeClass {
                String::new()
            } else {
                namespace.to_owned()
            };
            found.insert(ObjectKey {
                kind,
                namespace,
                name: name.to_owned(),
            });
        }
    };
    add(Kind::RuntimeClass, &spec["runtimeClassName"]);
    for secret in list(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    for container in ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|f| list(&spec[*f]))
    {
        for source in list(&container["envFrom"]) {
            add(Kind::ConfigMap, &source["configMapRef"]["name"]);
            add(Kind::Secret, &source["secretRef"]["name"]);
        }
        for variable in list(&container["env"]) {
            add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
            add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    for volume in list(&spec["volumes"]) {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Secret, &volume["secret"]["secretName"]);
        for source in list(&volume["projected"]["sources"]) {
            add(Kind::ConfigMap, &source["configMap"]["name"]);
            add(Kind::Secret, &source["secret"]["name"]);
        }
    }
    found
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_names_an_object_is_found() {
        let pod = serde_json::json!({
            "metadata": {"namespace": "n"},
            "spec": {
                "runtimeClassName": "r",
                "imagePullSecrets": [{"name": "s1"}],
                "initContainers": [{"envFrom": [{"configMapRef": {"name": "c1"}}, {"secretRef": {"name": "s2"}}]}],
                "containers": [{"env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "k"}}},
                    {"name": "C", "value": "plain"}
                ]}],
                "volumes": [
                    {"name": "a", "configMap": {"name": "c3"}},
                    {"name": "b", "secret": {"secretName": "s4"}},
                    {"name": "c", "projected": {"sources": [{"configMap": {"name": "c4"}}, {"secret": {"name": "s5"}}]}}
                ]
            }
        });
        let names: Vec<String> = of_pod(&pod).iter().map(ToString::to_string).collect();
        let expected = [
            "RuntimeClass/-/r",
            "Secret/n/s1",
            "Secret/n/s2",
            "Secret/n/s3",
            "Secret/n/s4",
            "Secret/n/s5",
            "ConfigMap/n/c1",
            "ConfigMap/n/c2",
            "ConfigMap/n/c3",
            "ConfigMap/n/c4",
        ];
        assert_eq!(names, expected);
    }
}
