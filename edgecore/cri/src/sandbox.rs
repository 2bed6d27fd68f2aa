//! Pod sandboxes: what to make and what there is.

use crate::StringMap;
use crate::container::{Resources, SeccompProfile};

/// Names a sandbox. The runtime reserves (name, namespace, uid, attempt): the same four twice is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxMetadata {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's uid.
    pub uid: String,
    /// How many sandboxes this pod had before.
    pub attempt: u32,
}

/// What a sandbox should be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxConfig {
    /// Its name.
    pub metadata: SandboxMetadata,
    /// The host name inside; empty for the node's (hostNetwork).
    pub hostname: String,
    /// The pod's log folder; containers' log paths are relative to it. It must exist.
    pub log_directory: String,
    /// /etc/resolv.conf; None leaves the host's.
    pub dns: Option<DnsConfig>,
    /// Host ports, for CNI's portmap.
    pub port_mappings: Vec<PortMapping>,
    /// Kept by the runtime and given back by list and status.
    pub labels: StringMap,
    /// Kept by the runtime and given back by list and status.
    pub annotations: StringMap,
    /// The pod's cgroup, relative to the root (`/kubepods/burstable/pod<uid>`, or a slice name under systemd).
    pub cgroup_parent: String,
    /// Sysctls of the pod's namespaces.
    pub sysctls: StringMap,
    /// Which namespaces the pod shares with the node.
    pub namespaces: NamespaceOptions,
    /// The user of the sandbox container.
    pub run_as_user: Option<i64>,
    /// The group of the sandbox container; needs `run_as_user`.
    pub run_as_group: Option<i64>,
    /// fsGroup and supplementalGroups.
    pub supplemental_groups: Vec<i64>,
    /// Whether any container of the pod may be privileged.
    pub privileged: bool,
    /// The sandbox container's own seccomp profile.
    pub seccomp: SeccompProfile,
    /// RuntimeClass overhead.
    pub overhead: Option<Resources>,
    /// The sum of the containers' resources.
    pub resources: Option<Resources>,
}

/// /etc/resolv.conf of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, such as `ndots:5`.
    pub options: Vec<String>,
}

/// One port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// The node's address; empty for all.
    pub host_ip: String,
}

/// A port's protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Which namespaces are the pod's, the container's or the node's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// hostNetwork gives [`NamespaceMode::Node`].
    pub network: NamespaceMode,
    /// Without shareProcessNamespace each container has its own: [`NamespaceMode::Container`].
    pub pid: NamespaceMode,
    /// hostIPC gives [`NamespaceMode::Node`].
    pub ipc: NamespaceMode,
    /// The container whose pid namespace an ephemeral container joins, with [`NamespaceMode::Target`].
    pub target_id: String,
}

/// Whose namespace it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NamespaceMode {
    /// The pod's, shared by its containers.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The node's.
    Node,
    /// Another container's.
    Target,
}

/// Which sandboxes to list; an empty filter lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// Only this id.
    pub id: Option<String>,
    /// Only this state.
    pub state: Option<SandboxState>,
    /// Only those with all these labels.
    pub labels: StringMap,
}

/// A sandbox's state. A sandbox that is not ready can only be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Its namespaces and pause container are there.
    Ready,
    /// Stopped.
    NotReady,
}

/// A sandbox in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Its name.
    pub metadata: SandboxMetadata,
    /// Its state.
    pub state: SandboxState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// As given at creation.
    pub labels: StringMap,
    /// As given at creation.
    pub annotations: StringMap,
    /// The RuntimeClass handler.
    pub runtime_handler: String,
}

/// One sandbox in full.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxStatus {
    /// The runtime's id.
    pub id: String,
    /// Its name.
    pub metadata: SandboxMetadata,
    /// Its state.
    pub state: SandboxState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The pod's addresses, the first is the pod IP; empty with hostNetwork.
    pub ips: Vec<String>,
    /// Its namespaces.
    pub namespaces: NamespaceOptions,
    /// As given at creation.
    pub labels: StringMap,
    /// As given at creation.
    pub annotations: StringMap,
    /// The RuntimeClass handler.
    pub runtime_handler: String,
}
