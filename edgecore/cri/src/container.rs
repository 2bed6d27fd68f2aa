//! Containers: what to make and what there is.

use std::fmt;

use crate::StringMap;
use crate::image::ImageSpec;
use crate::sandbox::NamespaceOptions;

/// Names a container in its sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerMetadata {
    /// The container's name in the pod.
    pub name: String,
    /// The restart count.
    pub attempt: u32,
}

/// What a container should be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerConfig {
    /// Its name.
    pub metadata: ContainerMetadata,
    /// The image: after a pull, its reference as the runtime gave it.
    pub image: ImageSpec,
    /// The entry point; empty for the image's.
    pub command: Vec<String>,
    /// The arguments; empty for the image's.
    pub args: Vec<String>,
    /// The working folder; empty for the image's.
    pub working_dir: String,
    /// Environment, in order.
    pub envs: Vec<EnvVar>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes with their cgroup rights.
    pub devices: Vec<Device>,
    /// CDI devices by full name (`vendor/class=name`). containerd before 1.7 ignores them silently.
    pub cdi_devices: Vec<String>,
    /// Kept by the runtime and given back by list and status.
    pub labels: StringMap,
    /// Kept by the runtime and given back by list and status.
    pub annotations: StringMap,
    /// The log file, relative to the sandbox's log folder; its parent must exist.
    pub log_path: String,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Who it runs as and what it may do.
    pub security: SecurityContext,
}

/// One environment variable.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EnvVar {
    /// The name.
    pub name: String,
    /// The value. May hold a secret: never printed.
    pub value: String,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvVar({}=…)", self.name)
    }
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where it appears.
    pub container_path: String,
    /// What appears.
    pub host_path: String,
    /// Read only.
    pub readonly: bool,
    /// Read only for mounts below too.
    pub recursive_read_only: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// How later mounts spread.
    pub propagation: MountPropagation,
}

/// How mounts made later spread between node and container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountPropagation {
    /// Not at all.
    #[default]
    Private,
    /// From the node to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// One device node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Where it appears.
    pub container_path: String,
    /// The node's device.
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// cgroup limits. Zero and empty mean "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// CFS period, microseconds.
    pub cpu_period: i64,
    /// CFS quota, microseconds a period.
    pub cpu_quota: i64,
    /// cpu.shares; the runtime converts to cpu.weight.
    pub cpu_shares: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Memory and swap, bytes.
    pub memory_swap_limit: i64,
    /// -1000..=1000.
    pub oom_score_adj: i64,
    /// Such as `0-1,3`.
    pub cpuset_cpus: String,
    /// Such as `0`.
    pub cpuset_mems: String,
    /// Page size (`2Mi` as the kernel names it: `2MB`) and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files by name.
    pub unified: StringMap,
}

/// LinuxContainerSecurityContext.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SecurityContext {
    /// Added capabilities, without `CAP_`; `ALL` is allowed.
    pub add_capabilities: Vec<String>,
    /// Dropped capabilities, without `CAP_`; `ALL` is allowed.
    pub drop_capabilities: Vec<String>,
    /// All devices, all capabilities, no confinement.
    pub privileged: bool,
    /// Whose namespaces it joins.
    pub namespaces: NamespaceOptions,
    /// Numeric user; None for the image's.
    pub run_as_user: Option<i64>,
    /// Numeric group; needs a user.
    pub run_as_group: Option<i64>,
    /// The image's user by name, when `run_as_user` is None.
    pub run_as_username: String,
    /// Read-only root file system.
    pub readonly_rootfs: bool,
    /// Supplemental groups and fsGroup.
    pub supplemental_groups: Vec<i64>,
    /// supplementalGroupsPolicy Strict: the image's own groups are left out. Needs containerd 2.
    pub supplemental_groups_strict: bool,
    /// allowPrivilegeEscalation: false.
    pub no_new_privs: bool,
    /// Hidden paths (procMount Default).
    pub masked_paths: Vec<String>,
    /// Read-only paths (procMount Default).
    pub readonly_paths: Vec<String>,
    /// Seccomp.
    pub seccomp: SeccompProfile,
    /// AppArmor; None leaves the runtime's default.
    pub apparmor: Option<SeccompProfile>,
    /// SELinux labels; None leaves the runtime's default.
    pub selinux: Option<SelinuxOptions>,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompProfile {
    /// The runtime's own profile.
    RuntimeDefault,
    /// None. Kubernetes' default.
    #[default]
    Unconfined,
    /// A file on the node (seccomp: absolute path; AppArmor: profile name).
    Localhost(String),
}

/// SELinux labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub type_: String,
    /// Level.
    pub level: String,
}

/// Which containers to list; an empty filter lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    /// Only this id.
    pub id: Option<String>,
    /// Only this state.
    pub state: Option<ContainerState>,
    /// Only those of this sandbox.
    pub sandbox_id: Option<String>,
    /// Only those with all these labels.
    pub labels: StringMap,
}

/// A container's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
    /// The runtime lost track of it.
    Unknown,
}

/// A container in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Its name.
    pub metadata: ContainerMetadata,
    /// The image as asked for.
    pub image: String,
    /// The image's id in the runtime.
    pub image_ref: String,
    /// Its state.
    pub state: ContainerState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// As given at creation.
    pub labels: StringMap,
    /// As given at creation.
    pub annotations: StringMap,
}

/// One container in full.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// The runtime's id.
    pub id: String,
    /// Its name.
    pub metadata: ContainerMetadata,
    /// Its state.
    pub state: ContainerState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970; 0 if never.
    pub started_at: i64,
    /// Nanoseconds since 1970; 0 if not yet.
    pub finished_at: i64,
    /// The exit code; 128 + n for a signal.
    pub exit_code: i32,
    /// The image as asked for.
    pub image: String,
    /// The image's id (containerd: a repo digest, `name@sha256:…`, or `sha256:…` for an imported one).
    pub image_ref: String,
    /// `OOMKilled`, `Error`, `Completed`, `StartError`, ... or empty.
    pub reason: String,
    /// The runtime's words about the end.
    pub message: String,
    /// As given at creation.
    pub labels: StringMap,
    /// As given at creation.
    pub annotations: StringMap,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// The absolute path of its log.
    pub log_path: String,
    /// What the runtime applied, where it says so (containerd ≥ 1.7).
    pub resources: Option<Resources>,
}

/// What a command run by [`crate::Runtime::exec_sync`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// What it wrote, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit_code: i32,
}

/// Which streams of a container an exec or attach wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// The caller writes.
    pub stdin: bool,
    /// The caller reads the output.
    pub stdout: bool,
    /// The caller reads the errors; never together with `tty`.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}
