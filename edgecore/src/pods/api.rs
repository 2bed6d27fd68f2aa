//! The parts of a v1 Pod that the node acts on, as small serde types.
//!
//! An object stays raw JSON in the store; this is what is read from it. Unknown fields are ignored here and survive there. Defaults that the
//! API server fills in are filled in again where a missing one would change behaviour (restartPolicy, probe numbers).

mod rules;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use self::rules::{DEFAULT_GRACE_SECONDS, Port, PullPolicy, RestartPolicy};

/// Labels, annotations, resource lists: string to string.
pub type Map = BTreeMap<String, String>;

macro_rules! fields {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $($(#[$fmeta])* #[serde(deserialize_with = "or_default")] #[allow(missing_docs, reason = "Kubernetes' own field, documented there")] pub $field: $ty),* }
    };
}

/// A field that is null is one that is not there.
fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

fields!(
    /// A Pod without its status.
    Pod {
        metadata: ObjectMeta,
        spec: PodSpec,
    }
);
fields!(
    /// metav1.ObjectMeta.
    ObjectMeta {
        name: String,
        namespace: String,
        uid: String,
        generation: Option<i64>,
        labels: Map,
        annotations: Map,
        creation_timestamp: Option<String>,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
    }
);
fields!(
    /// v1.PodSpec.
    PodSpec {
        containers: Vec<Container>,
        init_containers: Vec<Container>,
        ephemeral_containers: Vec<Container>,
        volumes: Vec<Volume>,
        restart_policy: RestartPolicy,
        termination_grace_period_seconds: Option<i64>,
        active_deadline_seconds: Option<i64>,
        dns_policy: Option<String>,
        dns_config: Option<DnsConfig>,
        service_account_name: String,
        node_name: String,
        node_selector: Map,
        host_network: bool,
        #[serde(rename = "hostPID")]
        host_pid: bool,
        #[serde(rename = "hostIPC")]
        host_ipc: bool,
        share_process_namespace: bool,
        security_context: PodSecurityContext,
        image_pull_secrets: Vec<LocalRef>,
        hostname: String,
        subdomain: String,
        #[serde(rename = "setHostnameAsFQDN")]
        set_hostname_as_fqdn: bool,
        host_aliases: Vec<HostAlias>,
        priority: Option<i64>,
        runtime_class_name: Option<String>,
        overhead: Map,
        enable_service_links: Option<bool>,
        readiness_gates: Vec<ReadinessGate>,
    }
);
fields!(
    /// v1.Container; for an ephemeral container with its target.
    Container {
        name: String,
        image: String,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        ports: Vec<ContainerPort>,
        env: Vec<EnvVar>,
        env_from: Vec<EnvFrom>,
        resources: ResourceRequirements,
        volume_mounts: Vec<VolumeMount>,
        liveness_probe: Option<Probe>,
        readiness_probe: Option<Probe>,
        startup_probe: Option<Probe>,
        lifecycle: Option<Lifecycle>,
        termination_message_path: Option<String>,
        termination_message_policy: Option<String>,
        image_pull_policy: Option<String>,
        security_context: Option<SecurityContext>,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        restart_policy: Option<RestartPolicy>,
        target_container_name: String,
    }
);
fields!(
    /// v1.LocalObjectReference.
    LocalRef {
        name: String,
    }
);
fields!(
    /// v1.PodReadinessGate.
    ReadinessGate {
        condition_type: String,
    }
);
fields!(
    /// v1.HostAlias.
    HostAlias {
        ip: String,
        hostnames: Vec<String>,
    }
);
fields!(
    /// v1.PodDNSConfig.
    DnsConfig {
        nameservers: Vec<String>,
        searches: Vec<String>,
        options: Vec<DnsOption>,
    }
);
fields!(
    /// v1.PodDNSConfigOption.
    DnsOption {
        name: String,
        value: Option<String>,
    }
);
fields!(
    /// v1.ContainerPort.
    ContainerPort {
        name: String,
        container_port: u16,
        host_port: u16,
        #[serde(rename = "hostIP")]
        host_ip: String,
        protocol: Option<String>,
    }
);
fields!(
    /// v1.EnvVar.
    EnvVar {
        name: String,
        value: String,
        value_from: Option<EnvSource>,
    }
);
fields!(
    /// v1.EnvVarSource.
    EnvSource {
        field_ref: Option<FieldRef>,
        resource_field_ref: Option<ResourceFieldRef>,
        config_map_key_ref: Option<KeyRef>,
        secret_key_ref: Option<KeyRef>,
    }
);
fields!(
    /// v1.ObjectFieldSelector.
    FieldRef {
        field_path: String,
    }
);
fields!(
    /// v1.ResourceFieldSelector.
    ResourceFieldRef {
        container_name: String,
        resource: String,
        divisor: Option<String>,
    }
);
fields!(
    /// v1.ConfigMapKeySelector and v1.SecretKeySelector.
    KeyRef {
        name: String,
        key: String,
        optional: bool,
    }
);
fields!(
    /// v1.EnvFromSource.
    EnvFrom {
        prefix: String,
        config_map_ref: Option<OptionalRef>,
        secret_ref: Option<OptionalRef>,
    }
);
fields!(
    /// A named object that may be optional.
    OptionalRef {
        name: String,
        optional: bool,
    }
);
fields!(
    /// v1.ResourceRequirements.
    ResourceRequirements {
        limits: Map,
        requests: Map,
    }
);
fields!(
    /// v1.VolumeMount.
    VolumeMount {
        name: String,
        mount_path: String,
        read_only: bool,
        recursive_read_only: Option<String>,
        sub_path: String,
        sub_path_expr: String,
        mount_propagation: Option<String>,
    }
);
fields!(
    /// v1.Probe.
    Probe {
        exec: Option<ExecAction>,
        http_get: Option<HttpGet>,
        tcp_socket: Option<TcpSocket>,
        grpc: Option<GrpcAction>,
        initial_delay_seconds: u64,
        timeout_seconds: Option<u64>,
        period_seconds: Option<u64>,
        success_threshold: Option<u32>,
        failure_threshold: Option<u32>,
        termination_grace_period_seconds: Option<i64>,
    }
);
fields!(
    /// v1.ExecAction.
    ExecAction {
        command: Vec<String>,
    }
);
fields!(
    /// v1.HTTPGetAction.
    HttpGet {
        path: String,
        port: Port,
        host: String,
        scheme: String,
        http_headers: Vec<HttpHeader>,
    }
);
fields!(
    /// v1.HTTPHeader.
    HttpHeader {
        name: String,
        value: String,
    }
);
fields!(
    /// v1.TCPSocketAction.
    TcpSocket {
        port: Port,
        host: String,
    }
);
fields!(
    /// v1.GRPCAction.
    GrpcAction {
        port: u16,
        service: Option<String>,
    }
);
fields!(
    /// v1.Lifecycle.
    Lifecycle {
        post_start: Option<Handler>,
        pre_stop: Option<Handler>,
    }
);
fields!(
    /// v1.LifecycleHandler.
    Handler {
        exec: Option<ExecAction>,
        http_get: Option<HttpGet>,
        tcp_socket: Option<TcpSocket>,
        sleep: Option<SleepAction>,
    }
);
fields!(
    /// v1.SleepAction.
    SleepAction {
        seconds: u64,
    }
);
fields!(
    /// v1.SecurityContext.
    SecurityContext {
        capabilities: Option<Capabilities>,
        privileged: Option<bool>,
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        read_only_root_filesystem: Option<bool>,
        allow_privilege_escalation: Option<bool>,
        proc_mount: Option<String>,
        seccomp_profile: Option<Profile>,
        app_armor_profile: Option<Profile>,
        se_linux_options: Option<SeLinuxOptions>,
    }
);
fields!(
    /// v1.PodSecurityContext.
    PodSecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        supplemental_groups: Vec<i64>,
        supplemental_groups_policy: Option<String>,
        fs_group: Option<i64>,
        fs_group_change_policy: Option<String>,
        sysctls: Vec<Sysctl>,
        seccomp_profile: Option<Profile>,
        app_armor_profile: Option<Profile>,
        se_linux_options: Option<SeLinuxOptions>,
    }
);
fields!(
    /// v1.Capabilities.
    Capabilities {
        add: Vec<String>,
        drop: Vec<String>,
    }
);
fields!(
    /// v1.SeccompProfile and v1.AppArmorProfile.
    Profile {
        r#type: String,
        localhost_profile: String,
    }
);
fields!(
    /// v1.SELinuxOptions.
    SeLinuxOptions {
        user: String,
        role: String,
        r#type: String,
        level: String,
    }
);
fields!(
    /// v1.Sysctl.
    Sysctl {
        name: String,
        value: String,
    }
);
fields!(
    /// v1.Volume. A kind that is not here makes the pod wait with an event.
    Volume {
        name: String,
        empty_dir: Option<EmptyDir>,
        host_path: Option<HostPath>,
        config_map: Option<ConfigMapVolume>,
        secret: Option<SecretVolume>,
        projected: Option<ProjectedVolume>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardVolume>,
    }
);
fields!(
    /// v1.EmptyDirVolumeSource.
    EmptyDir {
        medium: String,
        size_limit: Option<String>,
    }
);
fields!(
    /// v1.HostPathVolumeSource.
    HostPath {
        path: String,
        r#type: Option<String>,
    }
);
fields!(
    /// v1.ConfigMapVolumeSource.
    ConfigMapVolume {
        name: String,
        items: Vec<KeyToPath>,
        default_mode: Option<u32>,
        optional: bool,
    }
);
fields!(
    /// v1.SecretVolumeSource.
    SecretVolume {
        secret_name: String,
        items: Vec<KeyToPath>,
        default_mode: Option<u32>,
        optional: bool,
    }
);
fields!(
    /// v1.KeyToPath.
    KeyToPath {
        key: String,
        path: String,
        mode: Option<u32>,
    }
);
fields!(
    /// v1.ProjectedVolumeSource.
    ProjectedVolume {
        sources: Vec<Projection>,
        default_mode: Option<u32>,
    }
);
fields!(
    /// v1.VolumeProjection.
    Projection {
        config_map: Option<ConfigMapVolume>,
        secret: Option<SecretProjection>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardVolume>,
        service_account_token: Option<TokenProjection>,
    }
);
fields!(
    /// v1.SecretProjection.
    SecretProjection {
        name: String,
        items: Vec<KeyToPath>,
        optional: bool,
    }
);
fields!(
    /// v1.ServiceAccountTokenProjection.
    TokenProjection {
        audience: String,
        expiration_seconds: Option<i64>,
        path: String,
    }
);
fields!(
    /// v1.DownwardAPIVolumeSource and v1.DownwardAPIProjection.
    DownwardVolume {
        items: Vec<DownwardFile>,
        default_mode: Option<u32>,
    }
);
fields!(
    /// v1.DownwardAPIVolumeFile.
    DownwardFile {
        path: String,
        field_ref: Option<FieldRef>,
        resource_field_ref: Option<ResourceFieldRef>,
        mode: Option<u32>,
    }
);
