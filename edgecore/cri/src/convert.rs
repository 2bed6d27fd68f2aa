//! Between our types and the generated ones. Nothing here decides anything; what a runtime leaves out becomes empty.

use crate::container::{
    Container, ContainerConfig, ContainerFilter, ContainerMetadata, ContainerState, ContainerStatus, Mount,
    MountPropagation, Resources, SeccompProfile, SecurityContext,
};
use crate::image::{Auth, FilesystemUsage, Image, ImageSpec};
use crate::proto;
use crate::sandbox::{
    NamespaceMode, NamespaceOptions, Protocol, Sandbox, SandboxConfig, SandboxFilter, SandboxMetadata, SandboxState,
    SandboxStatus,
};
use crate::stats::ContainerStats;

fn int64(value: i64) -> proto::Int64Value {
    proto::Int64Value { value }
}

fn uint64(value: Option<proto::UInt64Value>) -> Option<u64> {
    value.map(|v| v.value)
}

// To the runtime.

impl From<&SandboxMetadata> for proto::PodSandboxMetadata {
    fn from(m: &SandboxMetadata) -> Self {
        Self {
            name: m.name.clone(),
            uid: m.uid.clone(),
            namespace: m.namespace.clone(),
            attempt: m.attempt,
        }
    }
}

impl From<&SandboxConfig> for proto::PodSandboxConfig {
    fn from(c: &SandboxConfig) -> Self {
        Self {
            metadata: Some((&c.metadata).into()),
            hostname: c.hostname.clone(),
            log_directory: c.log_directory.clone(),
            dns_config: c.dns.as_ref().map(|d| proto::DnsConfig {
                servers: d.servers.clone(),
                searches: d.searches.clone(),
                options: d.options.clone(),
            }),
            port_mappings: c.port_mappings.iter().map(port_mapping).collect(),
            labels: c.labels.clone(),
            annotations: c.annotations.clone(),
            linux: Some(linux_sandbox(c)),
        }
    }
}

fn port_mapping(p: &crate::sandbox::PortMapping) -> proto::PortMapping {
    let protocol = match p.protocol {
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Udp => proto::Protocol::Udp,
        Protocol::Sctp => proto::Protocol::Sctp,
    };
    proto::PortMapping {
        protocol: protocol.into(),
        container_port: p.container_port.into(),
        host_port: p.host_port.into(),
        host_ip: p.host_ip.clone(),
    }
}

fn linux_sandbox(c: &SandboxConfig) -> proto::LinuxPodSandboxConfig {
    proto::LinuxPodSandboxConfig {
        cgroup_parent: c.cgroup_parent.clone(),
        security_context: Some(proto::LinuxSandboxSecurityContext {
            namespace_options: Some((&c.namespaces).into()),
            run_as_user: c.run_as_user.map(int64),
            readonly_rootfs: false,
            supplemental_groups: c.supplemental_groups.clone(),
            privileged: c.privileged,
            run_as_group: c.run_as_group.map(int64),
            seccomp: Some((&c.seccomp).into()),
        }),
        sysctls: c.sysctls.clone(),
        overhead: c.overhead.as_ref().map(Into::into),
        resources: c.resources.as_ref().map(Into::into),
    }
}

impl From<&NamespaceOptions> for proto::NamespaceOption {
    fn from(n: &NamespaceOptions) -> Self {
        Self {
            network: namespace_mode(n.network).into(),
            pid: namespace_mode(n.pid).into(),
            ipc: namespace_mode(n.ipc).into(),
            target_id: n.target_id.clone(),
        }
    }
}

fn namespace_mode(mode: NamespaceMode) -> proto::NamespaceMode {
    match mode {
        NamespaceMode::Pod => proto::NamespaceMode::Pod,
        NamespaceMode::Container => proto::NamespaceMode::Container,
        NamespaceMode::Node => proto::NamespaceMode::Node,
        NamespaceMode::Target => proto::NamespaceMode::Target,
    }
}

impl From<&SeccompProfile> for proto::SecurityProfile {
    fn from(profile: &SeccompProfile) -> Self {
        use proto::security_profile::ProfileType;
        let (kind, path) = match profile {
            SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
            SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
            SeccompProfile::Localhost(path) => (ProfileType::Localhost, path.clone()),
        };
        Self {
            profile_type: kind.into(),
            localhost_ref: path,
        }
    }
}

impl From<&Resources> for proto::LinuxContainerResources {
    fn from(r: &Resources) -> Self {
        let hugepage = |(size, limit): &(String, u64)| proto::HugepageLimit {
            page_size: size.clone(),
            limit: *limit,
        };
        Self {
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpu_shares: r.cpu_shares,
            memory_limit_in_bytes: r.memory_limit,
            oom_score_adj: r.oom_score_adj,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
            hugepage_limits: r.hugepage_limits.iter().map(hugepage).collect(),
            unified: r.unified.clone(),
            memory_swap_limit_in_bytes: r.memory_swap_limit,
        }
    }
}

impl From<&ImageSpec> for proto::ImageSpec {
    fn from(i: &ImageSpec) -> Self {
        Self {
            image: i.image.clone(),
            annotations: i.annotations.clone(),
            user_specified_image: i.user_specified.clone(),
            runtime_handler: i.runtime_handler.clone(),
        }
    }
}

impl From<&Auth> for proto::AuthConfig {
    fn from(a: &Auth) -> Self {
        Self {
            username: a.username.clone(),
            password: a.password.clone(),
            auth: a.auth.clone(),
            server_address: a.server_address.clone(),
            identity_token: a.identity_token.clone(),
            registry_token: a.registry_token.clone(),
        }
    }
}

impl From<&ContainerConfig> for proto::ContainerConfig {
    fn from(c: &ContainerConfig) -> Self {
        let env = |e: &crate::EnvVar| proto::KeyValue {
            key: e.name.clone(),
            value: e.value.clone().into_bytes(),
        };
        let device = |d: &crate::Device| proto::Device {
            container_path: d.container_path.clone(),
            host_path: d.host_path.clone(),
            permissions: d.permissions.clone(),
        };
        Self {
            metadata: Some(proto::ContainerMetadata {
                name: c.metadata.name.clone(),
                attempt: c.metadata.attempt,
            }),
            image: Some((&c.image).into()),
            command: c.command.clone(),
            args: c.args.clone(),
            working_dir: c.working_dir.clone(),
            envs: c.envs.iter().map(env).collect(),
            mounts: c.mounts.iter().map(mount_out).collect(),
            devices: c.devices.iter().map(device).collect(),
            labels: c.labels.clone(),
            annotations: c.annotations.clone(),
            log_path: c.log_path.clone(),
            stdin: c.stdin,
            stdin_once: c.stdin_once,
            tty: c.tty,
            linux: Some(proto::LinuxContainerConfig {
                resources: Some((&c.resources).into()),
                security_context: Some((&c.security).into()),
            }),
            cdi_devices: c
                .cdi_devices
                .iter()
                .map(|name| proto::CdiDevice { name: name.clone() })
                .collect(),
        }
    }
}

fn mount_out(m: &Mount) -> proto::Mount {
    let propagation = match m.propagation {
        MountPropagation::Private => proto::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => proto::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => proto::MountPropagation::PropagationBidirectional,
    };
    proto::Mount {
        container_path: m.container_path.clone(),
        host_path: m.host_path.clone(),
        readonly: m.readonly,
        selinux_relabel: m.selinux_relabel,
        propagation: propagation.into(),
        recursive_read_only: m.recursive_read_only,
    }
}

impl From<&SecurityContext> for proto::LinuxContainerSecurityContext {
    fn from(s: &SecurityContext) -> Self {
        let policy = if s.supplemental_groups_strict {
            proto::SupplementalGroupsPolicy::Strict
        } else {
            proto::SupplementalGroupsPolicy::Merge
        };
        Self {
            capabilities: Some(proto::Capability {
                add_capabilities: s.add_capabilities.clone(),
                drop_capabilities: s.drop_capabilities.clone(),
            }),
            privileged: s.privileged,
            namespace_options: Some((&s.namespaces).into()),
            selinux_options: s.selinux.as_ref().map(|o| proto::SeLinuxOption {
                user: o.user.clone(),
                role: o.role.clone(),
                r#type: o.type_.clone(),
                level: o.level.clone(),
            }),
            run_as_user: s.run_as_user.map(int64),
            run_as_username: s.run_as_username.clone(),
            readonly_rootfs: s.readonly_rootfs,
            supplemental_groups: s.supplemental_groups.clone(),
            no_new_privs: s.no_new_privs,
            run_as_group: s.run_as_group.map(int64),
            masked_paths: s.masked_paths.clone(),
            readonly_paths: s.readonly_paths.clone(),
            seccomp: Some((&s.seccomp).into()),
            apparmor: s.apparmor.as_ref().map(Into::into),
            supplemental_groups_policy: policy.into(),
        }
    }
}

impl From<&SandboxFilter> for proto::PodSandboxFilter {
    fn from(f: &SandboxFilter) -> Self {
        let state = |s| proto::PodSandboxStateValue {
            state: match s {
                SandboxState::Ready => proto::PodSandboxState::SandboxReady.into(),
                SandboxState::NotReady => proto::PodSandboxState::SandboxNotready.into(),
            },
        };
        Self {
            id: f.id.clone().unwrap_or_default(),
            state: f.state.map(state),
            label_selector: f.labels.clone(),
        }
    }
}

impl From<&ContainerFilter> for proto::ContainerFilter {
    fn from(f: &ContainerFilter) -> Self {
        let state = |s| proto::ContainerStateValue {
            state: match s {
                ContainerState::Created => proto::ContainerState::ContainerCreated.into(),
                ContainerState::Running => proto::ContainerState::ContainerRunning.into(),
                ContainerState::Exited => proto::ContainerState::ContainerExited.into(),
                ContainerState::Unknown => proto::ContainerState::ContainerUnknown.into(),
            },
        };
        Self {
            id: f.id.clone().unwrap_or_default(),
            state: f.state.map(state),
            pod_sandbox_id: f.sandbox_id.clone().unwrap_or_default(),
            label_selector: f.labels.clone(),
        }
    }
}

// From the runtime.

impl From<proto::PodSandboxMetadata> for SandboxMetadata {
    fn from(m: proto::PodSandboxMetadata) -> Self {
        Self {
            name: m.name,
            namespace: m.namespace,
            uid: m.uid,
            attempt: m.attempt,
        }
    }
}

fn sandbox_state(state: i32) -> SandboxState {
    match proto::PodSandboxState::try_from(state) {
        Ok(proto::PodSandboxState::SandboxReady) => SandboxState::Ready,
        _ => SandboxState::NotReady,
    }
}

fn container_state(state: i32) -> ContainerState {
    match proto::ContainerState::try_from(state) {
        Ok(proto::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(proto::ContainerState::ContainerRunning) => ContainerState::Running,
        Ok(proto::ContainerState::ContainerExited) => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
}

impl From<proto::PodSandbox> for Sandbox {
    fn from(s: proto::PodSandbox) -> Self {
        Self {
            id: s.id,
            metadata: s.metadata.unwrap_or_default().into(),
            state: sandbox_state(s.state),
            created_at: s.created_at,
            labels: s.labels,
            annotations: s.annotations,
            runtime_handler: s.runtime_handler,
        }
    }
}

fn mode_in(mode: i32) -> NamespaceMode {
    match proto::NamespaceMode::try_from(mode) {
        Ok(proto::NamespaceMode::Container) => NamespaceMode::Container,
        Ok(proto::NamespaceMode::Node) => NamespaceMode::Node,
        Ok(proto::NamespaceMode::Target) => NamespaceMode::Target,
        _ => NamespaceMode::Pod,
    }
}

impl From<proto::PodSandboxStatus> for SandboxStatus {
    fn from(s: proto::PodSandboxStatus) -> Self {
        let network = s.network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        let ips = std::iter::once(network.ip)
            .chain(more)
            .filter(|ip| !ip.is_empty())
            .collect();
        let ns = s
            .linux
            .and_then(|l| l.namespaces)
            .and_then(|n| n.options)
            .unwrap_or_default();
        Self {
            id: s.id,
            metadata: s.metadata.unwrap_or_default().into(),
            state: sandbox_state(s.state),
            created_at: s.created_at,
            ips,
            namespaces: NamespaceOptions {
                network: mode_in(ns.network),
                pid: mode_in(ns.pid),
                ipc: mode_in(ns.ipc),
                target_id: ns.target_id,
            },
            labels: s.labels,
            annotations: s.annotations,
            runtime_handler: s.runtime_handler,
        }
    }
}

impl From<proto::ContainerMetadata> for ContainerMetadata {
    fn from(m: proto::ContainerMetadata) -> Self {
        Self {
            name: m.name,
            attempt: m.attempt,
        }
    }
}

impl From<proto::Container> for Container {
    fn from(c: proto::Container) -> Self {
        Self {
            id: c.id,
            sandbox_id: c.pod_sandbox_id,
            metadata: c.metadata.unwrap_or_default().into(),
            image: c.image.unwrap_or_default().image,
            image_ref: c.image_ref,
            state: container_state(c.state),
            created_at: c.created_at,
            labels: c.labels,
            annotations: c.annotations,
        }
    }
}

fn mount_in(m: proto::Mount) -> Mount {
    Mount {
        propagation: match proto::MountPropagation::try_from(m.propagation) {
            Ok(proto::MountPropagation::PropagationHostToContainer) => MountPropagation::HostToContainer,
            Ok(proto::MountPropagation::PropagationBidirectional) => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
        container_path: m.container_path,
        host_path: m.host_path,
        readonly: m.readonly,
        recursive_read_only: m.recursive_read_only,
        selinux_relabel: m.selinux_relabel,
    }
}

impl From<proto::LinuxContainerResources> for Resources {
    fn from(r: proto::LinuxContainerResources) -> Self {
        Self {
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpu_shares: r.cpu_shares,
            memory_limit: r.memory_limit_in_bytes,
            memory_swap_limit: r.memory_swap_limit_in_bytes,
            oom_score_adj: r.oom_score_adj,
            cpuset_cpus: r.cpuset_cpus,
            cpuset_mems: r.cpuset_mems,
            hugepage_limits: r.hugepage_limits.into_iter().map(|h| (h.page_size, h.limit)).collect(),
            unified: r.unified,
        }
    }
}

impl From<proto::ContainerStatus> for ContainerStatus {
    fn from(c: proto::ContainerStatus) -> Self {
        Self {
            id: c.id,
            metadata: c.metadata.unwrap_or_default().into(),
            state: container_state(c.state),
            created_at: c.created_at,
            started_at: c.started_at,
            finished_at: c.finished_at,
            exit_code: c.exit_code,
            image: c.image.unwrap_or_default().image,
            image_ref: c.image_ref,
            reason: c.reason,
            message: c.message,
            labels: c.labels,
            annotations: c.annotations,
            mounts: c.mounts.into_iter().map(mount_in).collect(),
            log_path: c.log_path,
            resources: c.resources.and_then(|r| r.linux).map(Into::into),
        }
    }
}

impl From<proto::FilesystemUsage> for FilesystemUsage {
    fn from(f: proto::FilesystemUsage) -> Self {
        Self {
            timestamp: f.timestamp,
            mountpoint: f.fs_id.unwrap_or_default().mountpoint,
            used_bytes: uint64(f.used_bytes).unwrap_or_default(),
            inodes_used: uint64(f.inodes_used).unwrap_or_default(),
        }
    }
}

impl From<proto::ContainerStats> for ContainerStats {
    fn from(s: proto::ContainerStats) -> Self {
        let who = s.attributes.unwrap_or_default();
        let (cpu, memory) = (s.cpu.unwrap_or_default(), s.memory.unwrap_or_default());
        Self {
            id: who.id,
            metadata: who.metadata.unwrap_or_default().into(),
            labels: who.labels,
            cpu_timestamp: cpu.timestamp,
            cpu_usage_core_nanos: uint64(cpu.usage_core_nano_seconds),
            cpu_usage_nano_cores: uint64(cpu.usage_nano_cores),
            memory_timestamp: memory.timestamp,
            memory_working_set: uint64(memory.working_set_bytes),
            memory_available: uint64(memory.available_bytes),
            memory_usage: uint64(memory.usage_bytes),
            memory_rss: uint64(memory.rss_bytes),
            page_faults: uint64(memory.page_faults),
            major_page_faults: uint64(memory.major_page_faults),
            swap_usage: s.swap.and_then(|s| uint64(s.swap_usage_bytes)),
            writable_layer: s.writable_layer.map(Into::into),
        }
    }
}

impl From<proto::Image> for Image {
    fn from(i: proto::Image) -> Self {
        Self {
            id: i.id,
            repo_tags: i.repo_tags,
            repo_digests: i.repo_digests,
            size: i.size,
            uid: i.uid.map(|u| u.value),
            username: i.username,
            pinned: i.pinned,
        }
    }
}
