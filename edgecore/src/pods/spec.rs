//! A pod's sandbox and containers in the runtime's terms (kubelet's `kuberuntime_sandbox` and `kuberuntime_container_linux`).

use std::path::Path;

use cri::{
    ContainerConfig, ContainerMetadata, ImageSpec, NamespaceMode, NamespaceOptions, PortMapping, Protocol,
    SandboxConfig, SandboxMetadata, SeccompProfile, SecurityContext, SelinuxOptions, StringMap,
};

use super::PodsConfig;
use super::api::{self, Container, Pod};
use super::cgroup::Cgroups;
use super::expand::expand;
use super::files::{self, PodDir};
use super::observed::label;
use super::plan::Start;
use super::resources;

/// procMount: Default hides these.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// procMount: Default makes these read-only.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why a container cannot be put into the runtime's terms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// runAsNonRoot with a root user.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    Root {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// runAsNonRoot with an image whose user has only a name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NamedUser {
        /// The image's user.
        user: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
}

/// The labels by which a pod is found again.
pub fn pod_labels(pod: &Pod, node: &str) -> StringMap {
    StringMap::from([
        (label::POD_NAME.to_owned(), pod.metadata.name.clone()),
        (label::POD_NAMESPACE.to_owned(), pod.metadata.namespace.clone()),
        (label::POD_UID.to_owned(), pod.metadata.uid.clone()),
        (label::NODE.to_owned(), node.to_owned()),
    ])
}

/// Why a pod will resolve no names, where it needs the node's resolv.conf and that cannot be read.
pub fn missing_dns(pod: &Pod, config: &PodsConfig) -> Option<String> {
    let error = std::fs::read_to_string(&config.resolv_conf).err()?;
    let path = config.resolv_conf.display();
    files::has_node_dns(pod, &config.cluster_dns)
        .then(|| format!("{path} of this node: {error}: the pod's name server is 127.0.0.1, and it resolves no names"))
}

/// The sandbox of a pod.
pub fn sandbox(pod: &Pod, config: &PodsConfig, cgroups: &Cgroups, attempt: u32) -> SandboxConfig {
    let m = &pod.metadata;
    let dir = PodDir::new(&config.root_dir, &config.pod_logs_dir, pod);
    let (short, domain) = files::hostname(pod, &config.cluster_domain);
    let hostname = match (pod.spec.host_network, pod.spec.set_hostname_as_fqdn, domain.is_empty()) {
        (true, ..) => String::new(),
        (_, true, false) => format!("{short}.{domain}"),
        _ => short,
    };
    let mut labels = m.labels.clone();
    labels.extend(pod_labels(pod, &config.node_name));
    let mut annotations = m.annotations.clone();
    annotations.insert(
        label::GRACE.to_owned(),
        pod.spec.termination_grace_period_seconds.unwrap_or(30).to_string(),
    );
    let resolv = std::fs::read_to_string(&config.resolv_conf).ok();
    let context = &pod.spec.security_context;
    let privileged = pod.all_containers().any(|c| own(c).privileged == Some(true));
    SandboxConfig {
        metadata: SandboxMetadata {
            name: m.name.clone(),
            namespace: m.namespace.clone(),
            uid: m.uid.clone(),
            attempt,
        },
        hostname,
        log_directory: dir.logs.display().to_string(),
        dns: Some(files::dns(
            pod,
            &config.cluster_dns,
            &config.cluster_domain,
            resolv.as_deref(),
        )),
        port_mappings: port_mappings(pod),
        labels,
        annotations,
        cgroup_parent: cgroups.parent(pod),
        sysctls: context
            .sysctls
            .iter()
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        namespaces: namespaces(pod),
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group.filter(|_| context.run_as_user.is_some()),
        supplemental_groups: groups(pod),
        privileged,
        seccomp: profile(None, context.seccomp_profile.as_ref(), &config.root_dir),
        overhead: None,
        resources: None,
    }
}

fn own(container: &Container) -> api::SecurityContext {
    container.security_context.clone().unwrap_or_default()
}

fn groups(pod: &Pod) -> Vec<i64> {
    let context = &pod.spec.security_context;
    context
        .supplemental_groups
        .iter()
        .copied()
        .chain(context.fs_group)
        .collect()
}

fn namespaces(pod: &Pod) -> NamespaceOptions {
    let pick = |host: bool, other| if host { NamespaceMode::Node } else { other };
    let pid = if pod.spec.share_process_namespace {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOptions {
        network: pick(pod.spec.host_network, NamespaceMode::Pod),
        pid: pick(pod.spec.host_pid, pid),
        ipc: pick(pod.spec.host_ipc, NamespaceMode::Pod),
        target_id: String::new(),
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    pod.spec
        .init_containers
        .iter()
        .filter(|c| c.is_sidecar())
        .chain(&pod.spec.containers)
        .flat_map(|c| &c.ports)
        .filter(|p| p.host_port != 0)
        .map(|p| PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
            container_port: p.container_port,
            host_port: p.host_port,
            host_ip: p.host_ip.clone(),
        })
        .collect()
}

/// What a container gets beside its own spec.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Volumes, /etc/hosts, the termination message file.
    pub mounts: Vec<cri::Mount>,
    /// Device nodes.
    pub devices: Vec<cri::Device>,
    /// The message file on the node.
    pub message_file: String,
    /// The image.
    pub image: cri::Image,
    /// The node's memory, for oom_score_adj.
    pub node_memory: i64,
    /// The container whose processes an ephemeral container sees.
    pub target_id: Option<String>,
}

/// A container of a pod.
///
/// # Errors
/// When it may not run as the user that it would run as.
pub fn container(
    pod: &Pod,
    container: &Container,
    config: &PodsConfig,
    (start, given): (&Start, Given),
) -> Result<ContainerConfig, SpecError> {
    let security = security(pod, container, config, &given)?;
    let lookup = |name: &str| given.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expanded = |list: &[String]| list.iter().map(|t| expand(t, lookup)).collect();
    let mut labels = pod_labels(pod, &config.node_name);
    labels.insert(label::CONTAINER_NAME.to_owned(), container.name.clone());
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let annotations = StringMap::from([
        (label::HASH.to_owned(), container.hash()),
        (label::RESTARTS.to_owned(), start.attempt.to_string()),
        (label::MESSAGE_PATH.to_owned(), container.message_path().to_owned()),
        (label::MESSAGE_POLICY.to_owned(), policy.to_owned()),
        (label::MESSAGE_FILE.to_owned(), given.message_file.clone()),
        (
            label::GRACE.to_owned(),
            pod.spec.termination_grace_period_seconds.unwrap_or(30).to_string(),
        ),
    ]);
    Ok(ContainerConfig {
        metadata: ContainerMetadata {
            name: container.name.clone(),
            attempt: start.attempt,
        },
        image: ImageSpec {
            image: start.image_ref.clone(),
            user_specified: container.image.clone(),
            ..ImageSpec::default()
        },
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        envs: given
            .env
            .iter()
            .map(|(name, value)| cri::EnvVar {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        mounts: given.mounts,
        devices: given.devices,
        cdi_devices: Vec::new(),
        labels,
        annotations,
        log_path: format!("{}/{}.log", container.name, start.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        resources: resources::container_resources(pod, container, given.node_memory),
        security,
    })
}

fn security(
    pod: &Pod,
    container: &Container,
    config: &PodsConfig,
    given: &Given,
) -> Result<SecurityContext, SpecError> {
    let of_pod = &pod.spec.security_context;
    let own = own(container);
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let run_as_group = own.run_as_group.or(of_pod.run_as_group);
    let mut run_as_user = own.run_as_user.or(of_pod.run_as_user);
    check_non_root(pod, container, &given.image, run_as_user)?;
    let mut run_as_username = String::new();
    if run_as_group.is_some() && run_as_user.is_none() {
        // The runtime takes a group only with a user: the image's.
        run_as_user = given.image.uid.or_else(|| given.image.username.is_empty().then_some(0));
        run_as_username.clone_from(&given.image.username);
    }
    let bare = |list: &[String]| list.iter().map(|c| c.trim_start_matches("CAP_").to_owned()).collect();
    let mut namespaces = namespaces(pod);
    if let Some(target) = &given.target_id {
        namespaces.pid = NamespaceMode::Target;
        namespaces.target_id.clone_from(target);
    }
    let hidden = !privileged && own.proc_mount.as_deref() != Some("Unmasked");
    let paths = |list: &[&str]| {
        if hidden {
            list.iter().map(|p| (*p).to_owned()).collect()
        } else {
            Vec::new()
        }
    };
    let app_armor = own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref());
    Ok(SecurityContext {
        add_capabilities: bare(&capabilities.add),
        drop_capabilities: bare(&capabilities.drop),
        privileged,
        namespaces,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(pod),
        supplemental_groups_strict: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: profile(
            own.seccomp_profile.as_ref(),
            of_pod.seccomp_profile.as_ref(),
            &config.root_dir,
        ),
        apparmor: app_armor.map(|p| match p.r#type.as_str() {
            "Localhost" => SeccompProfile::Localhost(p.localhost_profile.clone()),
            "Unconfined" => SeccompProfile::Unconfined,
            _ => SeccompProfile::RuntimeDefault,
        }),
        selinux: own
            .se_linux_options
            .as_ref()
            .or(of_pod.se_linux_options.as_ref())
            .map(selinux),
    })
}

fn selinux(o: &api::SeLinuxOptions) -> SelinuxOptions {
    SelinuxOptions {
        user: o.user.clone(),
        role: o.role.clone(),
        type_: o.r#type.clone(),
        level: o.level.clone(),
    }
}

fn check_non_root(pod: &Pod, container: &Container, image: &cri::Image, user: Option<i64>) -> Result<(), SpecError> {
    let own = own(container);
    if own.run_as_non_root.or(pod.spec.security_context.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let m = &pod.metadata;
    let named = format!("{}_{}({})", m.name, m.namespace, m.uid);
    match user.or(image.uid) {
        Some(0) => {}
        Some(_) => return Ok(()),
        None if !image.username.is_empty() => {
            return Err(SpecError::NamedUser {
                user: image.username.clone(),
                pod: named,
                container: container.name.clone(),
            });
        }
        None => {}
    }
    Err(SpecError::Root {
        pod: named,
        container: container.name.clone(),
    })
}

fn profile(own: Option<&api::Profile>, of_pod: Option<&api::Profile>, root: &Path) -> SeccompProfile {
    match own.or(of_pod) {
        Some(p) if p.r#type == "RuntimeDefault" => SeccompProfile::RuntimeDefault,
        Some(p) if p.r#type == "Localhost" => {
            SeccompProfile::Localhost(root.join("seccomp").join(&p.localhost_profile).display().to_string())
        }
        _ => SeccompProfile::Unconfined,
    }
}
