//! What the Node object says, as JSON: pure functions of what was seen.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::conditions::Condition;
use super::machine::{Identity, Levels};
use super::{Amounts, NodeInfo, quantity};
use crate::config::{EdgecoreConfig, KubeletConfig};

/// The Kubernetes version that this agent stands in for, with our own behind it.
pub const KUBELET_VERSION: &str = concat!("v1.36.3-kedge.", env!("CARGO_PKG_VERSION"));
/// kubelet's nodeStatusMaxImages.
const MAX_IMAGES: usize = 50;
/// kubelet's limit of names an image.
const MAX_NAMES: usize = 5;

/// Capacity, and what pods may have of it: less what is reserved and the hard eviction thresholds.
pub fn amounts(config: &KubeletConfig, levels: &Levels) -> (Amounts, Amounts) {
    let capacity = Amounts {
        cpu_milli: levels.cpus.saturating_mul(1000),
        memory: levels.memory.total,
        ephemeral_storage: levels.disk.total,
        pods: config.max_pods.into(),
    };
    let reserved = |resource: &str| -> u64 {
        let of = |map: &BTreeMap<String, String>| map.get(resource).and_then(|q| quantity::parse(q)).unwrap_or(0);
        of(&config.system_reserved).saturating_add(of(&config.kube_reserved))
    };
    let evicted = |signal: &str, total| {
        config
            .eviction_hard
            .get(signal)
            .and_then(|t| quantity::threshold(t, total))
            .unwrap_or(0)
    };
    let bytes = |resource, signal, total: u64| {
        total
            .saturating_sub(reserved(resource).div_ceil(1000))
            .saturating_sub(evicted(signal, total))
    };
    let allocatable = Amounts {
        cpu_milli: capacity.cpu_milli.saturating_sub(reserved("cpu")),
        memory: bytes("memory", "memory.available", capacity.memory),
        ephemeral_storage: bytes("ephemeral-storage", "nodefs.available", capacity.ephemeral_storage),
        pods: capacity.pods,
    };
    (capacity, allocatable)
}

/// Amounts as quantities.
pub fn resources(amounts: &Amounts) -> BTreeMap<String, String> {
    let pairs = [
        ("cpu", quantity::cpu(amounts.cpu_milli)),
        ("memory", quantity::memory(amounts.memory)),
        ("ephemeral-storage", quantity::memory(amounts.ephemeral_storage)),
        ("pods", amounts.pods.to_string()),
    ];
    pairs.map(|(name, quantity)| (name.to_owned(), quantity)).into()
}

/// The largest images, as kubelet tells them.
fn images(all: &[cri::Image]) -> Value {
    let mut sorted: Vec<&cri::Image> = all.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let names = |image: &cri::Image| -> Vec<String> {
        image
            .repo_digests
            .iter()
            .chain(&image.repo_tags)
            .take(MAX_NAMES)
            .cloned()
            .collect()
    };
    sorted
        .iter()
        .take(MAX_IMAGES)
        .map(|image| json!({"names": names(image), "sizeBytes": image.size}))
        .collect()
}

/// The labels that this node gives itself.
fn labels(config: &EdgecoreConfig, identity: &Identity) -> Value {
    let mut labels = json!({
        "kubernetes.io/arch": identity.architecture,
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": config.node_name,
        "kedge.dev/edge": "true",
    });
    for (key, value) in &config.kubelet.node_labels {
        labels[key] = value.as_str().into();
    }
    labels
}

/// What was seen this round, beside [`NodeInfo`].
#[derive(Debug)]
pub struct Seen<'a> {
    /// The conditions.
    pub conditions: &'a [Condition],
    /// The runtime's images.
    pub images: &'a [cri::Image],
    /// `containerd://1.6.20`; empty while it does not answer.
    pub runtime_version: &'a str,
}

/// The row: metadata and spec for registration, and the status. Addresses and daemon endpoints are the hub's.
pub fn row(config: &EdgecoreConfig, identity: &Identity, info: &NodeInfo, seen: &Seen<'_>) -> Value {
    let addresses: Vec<String> = info.addresses.iter().map(ToString::to_string).collect();
    json!({
        "metadata": {
            "labels": labels(config, identity),
            "annotations": {"kedge.dev/address": addresses.join(",")},
        },
        "spec": {"taints": config.kubelet.register_with_taints},
        "status": {
            "capacity": resources(&info.capacity),
            "allocatable": resources(&info.allocatable),
            "conditions": seen.conditions,
            "nodeInfo": {
                "machineID": identity.machine_id,
                "systemUUID": identity.system_uuid,
                "bootID": identity.boot_id,
                "kernelVersion": identity.kernel,
                "osImage": identity.os_image,
                "containerRuntimeVersion": seen.runtime_version,
                "kubeletVersion": KUBELET_VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": identity.architecture,
            },
            "images": images(seen.images),
        },
    })
}

/// Whether two rows say the same but for heartbeats.
pub fn same(a: &Value, b: &Value) -> bool {
    let still = |row: &Value| {
        let mut row = row.clone();
        let conditions = row["status"]["conditions"].as_array_mut().into_iter().flatten();
        conditions.for_each(|condition| condition["lastHeartbeatTime"] = Value::Null);
        row
    };
    still(a) == still(b)
}

/// The conditions of a stored row, for their transition times; none where there is no row.
pub fn conditions_in(row: Option<&[u8]>) -> Vec<Condition> {
    let parsed = row.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    parsed
        .and_then(|mut row| serde_json::from_value(row["status"]["conditions"].take()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::conditions::{HubFlags, Pressures, RuntimeHealth, conditions};
    use crate::node::machine::Level;

    fn config() -> EdgecoreConfig {
        serde_yaml_ng::from_str("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1}").unwrap()
    }

    #[test]
    fn allocatable_is_what_is_left_of_reserved_and_eviction() {
        let mut config = KubeletConfig::default();
        config.system_reserved.insert("cpu".into(), "200m".into());
        config.kube_reserved.insert("memory".into(), "50Mi".into());
        let levels = Levels {
            cpus: 2,
            memory: Level {
                total: 1 << 30,
                available: 0,
            },
            disk: Level {
                total: 1000,
                available: 0,
            },
            ..Levels::default()
        };
        let (capacity, allocatable) = amounts(&config, &levels);
        assert_eq!((capacity.cpu_milli, allocatable.cpu_milli), (2000, 1800));
        assert_eq!(allocatable.memory, (1 << 30) - (150 << 20));
        assert_eq!(allocatable.ephemeral_storage, 900);
    }

    #[test]
    fn a_heartbeat_alone_is_nothing_new_and_conditions_survive_in_the_row() {
        let row_at = |wall: &str, health: &RuntimeHealth| {
            let conditions = conditions(&[], health, &Pressures::default(), &HubFlags::default(), "t0");
            let conditions: Vec<Condition> = conditions
                .into_iter()
                .map(|c| Condition {
                    last_heartbeat_time: wall.into(),
                    ..c
                })
                .collect();
            let seen = Seen {
                conditions: &conditions,
                images: &[],
                runtime_version: "containerd://1",
            };
            row(&config(), &Identity::default(), &NodeInfo::default(), &seen)
        };
        let up = RuntimeHealth {
            runtime_ready: true,
            network_ready: true,
            message: String::new(),
        };
        assert!(same(&row_at("t1", &up), &row_at("t2", &up)));
        assert!(!same(&row_at("t1", &up), &row_at("t1", &RuntimeHealth::default())));
        let stored = row_at("t1", &up).to_string();
        assert_eq!(conditions_in(Some(stored.as_bytes())).len(), 4);
        assert!(conditions_in(Some(b"{")).is_empty());
    }

    #[test]
    fn at_most_fifty_images_are_told_the_largest_first() {
        let image = |n: u64| cri::Image {
            id: n.to_string(),
            size: n,
            repo_tags: vec![format!("i:{n}")],
            ..cri::Image::default()
        };
        let all: Vec<cri::Image> = (0..60).map(image).collect();
        let told = images(&all);
        assert_eq!(told.as_array().unwrap().len(), 50);
        assert_eq!(told[0]["names"][0], "i:59");
    }
}
