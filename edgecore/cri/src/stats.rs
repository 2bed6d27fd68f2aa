//! What containers use, and what the runtime says of itself.

use crate::StringMap;
use crate::container::ContainerMetadata;
use crate::image::FilesystemUsage;

/// One container's use. None where the runtime gave no number.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerStats {
    /// The container.
    pub id: String,
    /// Its name.
    pub metadata: ContainerMetadata,
    /// Its labels.
    pub labels: StringMap,
    /// When the CPU was read, nanoseconds since 1970.
    pub cpu_timestamp: i64,
    /// CPU time used, nanoseconds.
    pub cpu_usage_core_nanos: Option<u64>,
    /// CPU used now, a billionth of a core.
    pub cpu_usage_nano_cores: Option<u64>,
    /// When the memory was read, nanoseconds since 1970.
    pub memory_timestamp: i64,
    /// Working set, bytes.
    pub memory_working_set: Option<u64>,
    /// Bytes left under the limit.
    pub memory_available: Option<u64>,
    /// Bytes with caches.
    pub memory_usage: Option<u64>,
    /// Anonymous memory, bytes.
    pub memory_rss: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that read a disk.
    pub major_page_faults: Option<u64>,
    /// Swap used, bytes.
    pub swap_usage: Option<u64>,
    /// What it wrote into its own layer.
    pub writable_layer: Option<FilesystemUsage>,
}

/// Who the runtime is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `containerd`.
    pub name: String,
    /// `1.6.20~ds1`, `v2.1.9`.
    pub version: String,
    /// The CRI version, `v1`.
    pub api_version: String,
}

/// How the runtime is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeStatus {
    /// Can it run containers?
    pub runtime_ready: bool,
    /// Can it give pods a network?
    pub network_ready: bool,
    /// Reasons and messages of what is not ready.
    pub message: String,
    /// The handlers that it has (containerd ≥ 2; empty before).
    pub handlers: Vec<String>,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd slices and scopes.
    Systemd,
    /// Folders.
    Cgroupfs,
}
