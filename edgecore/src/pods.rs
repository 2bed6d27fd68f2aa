//! Pods: everything between the objects in the node's store and the container runtime.
//!
//! ```text
//! store object/v1/Pod ─► PodManager ─► Worker (one a pod) ─► plan ─► jobs ─► CRI
//!                            ▲ hints, relist     ▲ probes │ status
//!                            └── runtime         │        ▼
//!       ConfigMaps, Secrets, tokens ─► volumes, env     store status/v1, gone/v1, event/v1
//! ```
//! * `api`, `quantity`, `expand`, `env`, `resources`, `plan`, `status`, `admission`, `spec`, `files`: functions of their arguments;
//! * `worker` owns a pod's memory, `jobs` are its effects, `manager` owns the workers;
//! * the runtime's labels and annotations and the last published status are all that survives a restart, and all that is needed.

pub mod act;
pub mod admission;
pub mod api;
pub mod cgroup;
pub mod env;
pub mod events;
pub mod expand;
pub mod files;
pub mod gate;
pub mod images;
pub mod jobs;
pub mod manager;
pub mod memory;
pub mod objects;
pub mod observed;
pub mod plan;
pub mod probes;
pub mod quantity;
pub mod registry;
pub mod report;
pub mod resources;
pub mod rows;
pub mod spec;
pub mod status;
pub mod store;
pub mod tokens;
pub mod volumes;
pub mod worker;

#[cfg(test)]
mod scenarios;

use std::path::PathBuf;
use std::sync::Arc;

pub use events::{Recorder, Reference, Severity};
pub use manager::{Parts, PodManager};
pub use rows::Rows;
pub use tokens::NodeApi;

/// Names, paths and addresses; kubelet's values by default.
#[derive(Debug, Clone, PartialEq)]
pub struct PodsConfig {
    /// The node's name.
    pub node_name: String,
    /// /var/lib/kubelet.
    pub root_dir: PathBuf,
    /// /var/log/pods.
    pub pod_logs_dir: PathBuf,
    /// /var/log/containers, or None for no links there.
    pub container_logs_dir: Option<PathBuf>,
    /// The cgroup under which `kubepods` is made; empty for the top.
    pub cgroup_root: String,
    /// /sys/fs/cgroup.
    pub cgroup_mount: PathBuf,
    /// Who makes cgroups.
    pub cgroup_driver: cri::CgroupDriver,
    /// How many pods start at a time; 0: twice the cores.
    pub start_parallelism: usize,
    /// Name servers of the cluster; without any, pods use the node's.
    pub cluster_dns: Vec<String>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// /etc/resolv.conf of the node.
    pub resolv_conf: PathBuf,
    /// KUBERNETES_SERVICE_HOST; empty leaves the variables out.
    pub api_host: String,
    /// KUBERNETES_SERVICE_PORT.
    pub api_port: u16,
}

impl Default for PodsConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            root_dir: "/var/lib/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            container_logs_dir: Some("/var/log/containers".into()),
            cgroup_root: String::new(),
            cgroup_mount: "/sys/fs/cgroup".into(),
            cgroup_driver: cri::CgroupDriver::Cgroupfs,
            start_parallelism: 0,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            api_host: String::new(),
            api_port: 443,
        }
    }
}

/// What pods need to know of their node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// Addresses, the first is hostIP.
    pub host_ips: Vec<String>,
    /// As in Node.status: quantities as text. Empty: no limits.
    pub capacity: api::Map,
    /// As in Node.status.
    pub allocatable: api::Map,
    /// The Node's labels, for nodeSelector. Empty: not known, not checked.
    pub labels: api::Map,
}

impl NodeFacts {
    /// The node's memory; 1 GiB where it is not known.
    pub fn memory_bytes(&self) -> i64 {
        resources::amount(&self.capacity, "memory").map_or(1 << 30, quantity::Quantity::value)
    }
}

/// A pod as the kubelet API shows it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// What should be.
    pub object: Arc<api::Pod>,
    /// The object's JSON as the hub sent it.
    pub raw: bytes::Bytes,
    /// What is.
    pub status: Arc<report::PodStatus>,
}
