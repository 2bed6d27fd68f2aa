//! `EdgecoreConfig`: every path, port, folder and limit of the node agent, in one type.
//!
//! Defaults are kubelet's where kubelet has them, because plugins and log shippers hard-code those. The file is strict: an unknown or
//! misspelt field is an error that names it. Order: defaults < file < flags. [`EdgecoreConfig::load`] returns a value in which nothing is left
//! to be decided: empty paths are filled in, and [`EdgecoreConfig::validate`] has agreed.

mod fallback;
mod metered;
mod uplinks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::fallback::FallbackConfig;
pub use self::metered::{MeteredConfig, Traffic};
pub use self::uplinks::UplinkConfig;

/// The only version there is.
pub const API_VERSION: &str = "kedge.dev/v1alpha1";
/// The only kind there is.
pub const KIND: &str = "EdgecoreConfig";
/// Where the file is when nobody says.
pub const DEFAULT_PATH: &str = "/etc/kedge/edgecore.yaml";

/// The longest file, bytes: the parser's time grows with the square of what is nested, and a configuration has 3 KiB.
const MAX_TEXT: usize = 16 * 1024;

/// What `evictionHard` may name.
pub const SIGNALS: [&str; 5] = [
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "pid.available",
];

/// kubelet's folder of pods' logs.
const POD_LOGS_DIR: &str = "/var/log/pods";

/// Why a configuration is no good.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no EdgecoreConfig.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml_ng::Error,
    },
    /// A field has a value that cannot be.
    #[error("{field}: {value:?} is not {wanted}")]
    Invalid {
        /// The field's path.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
}

/// The node agent's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EdgecoreConfig {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// The Node's name; empty: the host name in lower case.
    #[serde(default)]
    pub node_name: String,
    /// The store and, unless `pkiDir` says else, the certificates.
    #[serde(default = "defaults::state_dir")]
    pub state_dir: PathBuf,
    /// What need not survive a reboot.
    #[serde(default = "defaults::run_dir")]
    pub run_dir: PathBuf,
    /// `client.key`, `client.crt`, `serving-ca.crt`, `tunnel-ca.crt`; empty: `stateDir/pki`.
    #[serde(default)]
    pub pki_dir: PathBuf,
    /// The key that the store's values are encrypted with, made on first use; empty: `store.key` beside the configuration file.
    #[serde(default)]
    pub store_key_file: PathBuf,
    /// The admin socket; empty: `runDir/edgecore.sock`.
    #[serde(default)]
    pub admin_socket: PathBuf,
    /// The hub.
    #[serde(default)]
    pub hub: HubConfig,
    /// The container runtime.
    #[serde(default)]
    pub containerd: ContainerdConfig,
    /// What kubelet would have in its own configuration.
    #[serde(default)]
    pub kubelet: KubeletConfig,
    /// The pods' network.
    #[serde(default)]
    pub network: NetworkConfig,
    /// The links to the hub; empty: the default route.
    #[serde(default)]
    pub uplinks: Vec<UplinkConfig>,
    /// What pods get as the Kubernetes API.
    #[serde(default)]
    pub api_server: ApiServerConfig,
    /// Name servers of pods with dnsPolicy ClusterFirst; empty: they get the node's.
    #[serde(default, rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    /// The cluster's domain.
    #[serde(default = "defaults::cluster_domain")]
    pub cluster_domain: String,
}

/// Where the hub is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HubConfig {
    /// The tunnel's addresses, `host:port`. Empty: the node works alone.
    pub addresses: Vec<String>,
    /// The name in the hub's tunnel certificate; empty: `cloudhub.kedge.internal`.
    pub server_name: String,
    /// The join listener, `host:port`, for joining again after the certificate ran out.
    pub join_address: String,
    /// Where it is reached when a site blocks UDP.
    pub fallback: FallbackConfig,
}

/// The container runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerdConfig {
    /// Its socket.
    pub socket: PathBuf,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/containerd/containerd.sock"),
        }
    }
}

/// kubelet's own settings under kubelet's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeletConfig {
    /// Volumes and plugins.
    pub root_dir: PathBuf,
    /// Pods' logs.
    pub pod_logs_dir: PathBuf,
    /// Links to the logs by container, for log shippers. Empty: kubelet's `/var/log/containers` where `podLogsDir` is kubelet's too, else none.
    pub container_logs_dir: PathBuf,
    /// The port that the node's own kubelet API would have; told in the Node object by the hub alone.
    pub port: u16,
    /// The cgroup under which `kubepods` is made; empty or `/`: the root.
    pub cgroup_root: String,
    /// Who makes cgroups; must be what the runtime is set to.
    pub cgroup_driver: CgroupDriver,
    /// How many pods run here at most.
    pub max_pods: u32,
    /// How many pods start at once; 0: twice the cores.
    pub pod_start_parallelism: u32,
    /// Kept from pods for the system: `cpu`, `memory`, `ephemeral-storage`, as quantities.
    pub system_reserved: BTreeMap<String, String>,
    /// Kept from pods for containerd and edgecore.
    pub kube_reserved: BTreeMap<String, String>,
    /// Below these the node is under pressure: [`SIGNALS`], a quantity or a share of what the machine has each. A signal that is not named
    /// is not looked at, as in kubelet; neither are 0% and 100%.
    pub eviction_hard: BTreeMap<String, String>,
    /// The Node's labels beside those that every node has.
    pub node_labels: BTreeMap<String, String>,
    /// The Node's taints when it registers.
    pub register_with_taints: Vec<Taint>,
}

impl Default for KubeletConfig {
    fn default() -> Self {
        let eviction = [
            ("memory.available", "100Mi"),
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "15%"),
            ("pid.available", "5%"),
        ];
        Self {
            root_dir: PathBuf::from("/var/lib/kubelet"),
            pod_logs_dir: PathBuf::from(POD_LOGS_DIR),
            container_logs_dir: PathBuf::new(),
            port: 10250,
            cgroup_root: String::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            max_pods: 110,
            pod_start_parallelism: 0,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            eviction_hard: eviction.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
        }
    }
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Folders. containerd's default.
    #[default]
    Cgroupfs,
    /// systemd slices.
    Systemd,
}

/// A taint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
    /// NoSchedule, PreferNoSchedule or NoExecute.
    pub effect: String,
}

/// The pods' network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Where containerd looks for a network configuration, and ours is written.
    pub cni_conf_dir: PathBuf,
    /// Where the plugins are. containerd's own setting decides; this is for checks.
    pub cni_bin_dir: PathBuf,
    /// Where the runtime's CNI library keeps its results, in `results`. containerd has no setting for it.
    pub cni_cache_dir: PathBuf,
    /// The bridge that pods are connected to.
    pub bridge: String,
    /// Whether pods leave the node under the node's own address.
    pub masquerade: bool,
    /// Its MTU; 0: the kernel's.
    pub mtu: u32,
    /// Where host-local keeps which address is whose; empty: `runDir/cni`, which a reboot empties as it should.
    pub ipam_dir: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dir: PathBuf::from("/opt/cni/bin"),
            cni_cache_dir: PathBuf::from("/var/lib/cni"),
            bridge: "kedge0".to_owned(),
            masquerade: true,
            mtu: 0,
            ipam_dir: PathBuf::new(),
        }
    }
}

/// The Kubernetes API as pods see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ApiServerConfig {
    /// KUBERNETES_SERVICE_HOST; empty: pods get none.
    pub host: String,
    /// KUBERNETES_SERVICE_PORT.
    pub port: u16,
}

impl Default for ApiServerConfig {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 6443,
        }
    }
}

mod defaults {
    use std::path::PathBuf;

    pub(super) fn state_dir() -> PathBuf {
        PathBuf::from("/var/lib/kedge/edge")
    }

    pub(super) fn run_dir() -> PathBuf {
        PathBuf::from("/run/kedge")
    }

    pub(super) fn cluster_domain() -> String {
        "cluster.local".to_owned()
    }
}

impl EdgecoreConfig {
    /// Reads, completes and checks the file.
    ///
    /// # Errors
    /// When it cannot be read, is no EdgecoreConfig, or a field cannot be as it is.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::parse(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        // Paths derived from the file's must not depend on where the process was started.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        config.complete(absolute.parent().unwrap_or(Path::new("/")));
        config.validate()?;
        Ok(config)
    }

    /// Parses the text of a file: nothing is filled in or checked.
    ///
    /// # Errors
    /// When it is no EdgecoreConfig, or longer than 16 KiB.
    pub fn parse(text: &str) -> Result<Self, serde_yaml_ng::Error> {
        if text.len() > MAX_TEXT {
            return Err(serde::de::Error::custom("longer than 16 KiB"));
        }
        serde_yaml_ng::from_str(text)
    }

    /// Fills in what is empty; `beside` is the folder of the configuration file.
    pub fn complete(&mut self, beside: &Path) {
        let fill = |path: &mut PathBuf, value: PathBuf| {
            if path.as_os_str().is_empty() {
                *path = value;
            }
        };
        fill(&mut self.pki_dir, self.state_dir.join("pki"));
        fill(&mut self.store_key_file, beside.join("store.key"));
        fill(&mut self.admin_socket, self.run_dir.join("edgecore.sock"));
        fill(&mut self.network.ipam_dir, self.run_dir.join("cni"));
        if self.kubelet.pod_logs_dir == Path::new(POD_LOGS_DIR) {
            fill(
                &mut self.kubelet.container_logs_dir,
                PathBuf::from("/var/log/containers"),
            );
        }
        if self.node_name.is_empty() {
            let host = nix::unistd::gethostname().unwrap_or_default();
            self.node_name = host.to_string_lossy().to_lowercase();
        }
        if self.hub.server_name.is_empty() {
            self.hub.server_name = tunnel::SERVER_NAME.to_owned();
        }
        if self.kubelet.pod_start_parallelism == 0 {
            let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
            self.kubelet.pod_start_parallelism = cores.saturating_mul(2);
        }
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// The first field that is wrong, its value, and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check(
            self.api_version == API_VERSION,
            "apiVersion",
            &self.api_version,
            API_VERSION,
        )?;
        check(self.kind == KIND, "kind", &self.kind, KIND)?;
        check(
            is_dns_name(&self.node_name),
            "nodeName",
            &self.node_name,
            "a DNS subdomain in lower case",
        )?;
        for address in &self.hub.addresses {
            check(is_host_port(address), "hub.addresses", address, "host:port")?;
        }
        self.hub.fallback.validate()?;
        let bridge = &self.network.bridge;
        check(
            !bridge.is_empty() && bridge.len() <= 15,
            "network.bridge",
            bridge,
            "an interface name of 1 to 15 bytes",
        )?;
        uplinks::validate(&self.uplinks)?;
        self.kubelet.validate()
    }

    /// The store's folder.
    pub fn store_dir(&self) -> PathBuf {
        self.state_dir.join("store")
    }

    /// The effective configuration as YAML, for the log and /configz. It holds no secrets, only paths to them.
    pub fn to_yaml(&self) -> String {
        serde_yaml_ng::to_string(self).unwrap_or_default()
    }
}

/// `ok`, or what would be right.
fn check(ok: bool, field: &'static str, value: &str, wanted: &'static str) -> Result<(), ConfigError> {
    if ok {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        field,
        value: value.to_owned(),
        wanted,
    })
}

impl KubeletConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        check(self.max_pods > 0, "kubelet.maxPods", "0", "at least 1")?;
        for taint in &self.register_with_taints {
            let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&taint.effect.as_str());
            check(
                known,
                "kubelet.registerWithTaints.effect",
                &taint.effect,
                "NoSchedule, PreferNoSchedule or NoExecute",
            )?;
        }
        let quantities = self.system_reserved.values().chain(self.kube_reserved.values());
        for quantity in quantities {
            check(
                crate::node::quantity::parse(quantity).is_some(),
                "kubelet.systemReserved/kubeReserved",
                quantity,
                "a quantity such as 200m or 100Mi",
            )?;
        }
        for (signal, threshold) in &self.eviction_hard {
            check(
                SIGNALS.contains(&signal.as_str()),
                "kubelet.evictionHard",
                signal,
                "memory.available, nodefs.available, nodefs.inodesFree, imagefs.available or pid.available",
            )?;
            check(
                crate::node::quantity::is_threshold(threshold),
                "kubelet.evictionHard",
                threshold,
                "a quantity above zero such as 100Mi, or a share from 0% to 100%",
            )?;
        }
        Ok(())
    }
}

/// RFC 1123 subdomain, as Kubernetes wants names.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !l.is_empty() && l.len() <= 63 && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn is_host_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EdgecoreConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edgecore.yaml");
        std::fs::write(&path, text).unwrap();
        EdgecoreConfig::load(&path)
    }

    #[test]
    fn the_shortest_file_gives_kubelets_defaults() {
        let config = parse("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1}").unwrap();
        assert_eq!(config.kubelet.root_dir, Path::new("/var/lib/kubelet"));
        assert_eq!(config.admin_socket, Path::new("/run/kedge/edgecore.sock"));
        assert_eq!(config.pki_dir, Path::new("/var/lib/kedge/edge/pki"));
        assert!(config.store_key_file.ends_with("store.key"));
        assert!(config.kubelet.pod_start_parallelism >= 2);
    }

    #[test]
    fn a_misspelt_field_is_an_error_that_names_it() {
        let text = "{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: a, kubelet: {rootdir: /x}}";
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains("rootdir"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_field_value_and_what_is_right() {
        let text = "{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: a, hub: {addresses: [nowhere]}}";
        let error = parse(text).unwrap_err().to_string();
        assert_eq!(error, "hub.addresses: \"nowhere\" is not host:port");
        assert!(parse("{apiVersion: v1, kind: EdgecoreConfig, nodeName: a}").is_err());
        assert!(parse("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: A_b}").is_err());
    }

    #[test]
    fn uplinks_have_names_of_their_own() {
        let with = |uplinks: &str| {
            let head = "apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: a";
            parse(&format!("{{{head}, uplinks: [{uplinks}]}}"))
        };
        let config = with("{name: lte, device: wwan0, metered: true}, {name: wifi}").unwrap();
        assert_eq!(config.uplinks[0].metered, Some(MeteredConfig::default()));
        assert_eq!(config.uplinks[1].metered, None);
        let all = "{name: wifi, priority: 10, metered: false}, {name: lte, metered: {allow: interactive, whenAlone: all, monthlyBudget: 5Gi, rateBudget: 2M, resetDay: 5}}";
        let config = with(all).unwrap();
        let lte = config.uplinks[1].metered.clone().unwrap();
        assert_eq!((lte.allow, lte.when_alone), (Traffic::Interactive, Traffic::All));
        assert_eq!((lte.budget(), lte.reset_day), (Some(5 << 30), 5));
        assert_eq!(config.uplinks[1].policy().rate.map(u64::from), Some(250_000));
        assert_eq!(
            (config.uplinks[0].policy().priority, &config.uplinks[0].metered),
            (10, &None)
        );
        assert_eq!(parse(&config.to_yaml()).unwrap(), config);
        for (wrong, named) in [
            ("{name: ''}", "\"\""),
            ("{name: a}, {name: a}", "\"a\""),
            ("{name: a, metred: true}", "metred"),
            ("{name: a, priority: high}", "uplinks[0].priority"),
            ("{name: a, metered: often}", "uplinks[0].metered"),
            ("{name: a, metered: {alow: all}}", "alow"),
            ("{name: a, metered: {allow: bulk}}", "uplinks[0].metered.allow"),
            ("{name: a, metered: {whenAlone: 7}}", "uplinks[0].metered.whenAlone"),
            (
                "{name: a, metered: {monthlyBudget: 5Gx}}",
                "uplinks.metered.monthlyBudget: \"5Gx\"",
            ),
            (
                "{name: a, metered: {monthlyBudget: '0'}}",
                "uplinks.metered.monthlyBudget: \"0\"",
            ),
            (
                "{name: a, metered: {rateBudget: 1k}}",
                "uplinks.metered.rateBudget: \"1k\"",
            ),
            ("{name: a, metered: {resetDay: 31}}", "uplinks.metered.resetDay: \"31\""),
            ("{name: a, metered: {resetDay: -1}}", "uplinks[0].metered.resetDay"),
        ] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn eviction_thresholds_are_kubelets() {
        let with = |thresholds: &str| {
            let head = "apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: a";
            parse(&format!("{{{head}, kubelet: {{evictionHard: {{{thresholds}}}}}}}"))
        };
        let default = with("").unwrap().kubelet.eviction_hard;
        assert!(default.is_empty(), "who names none wants none");
        let config = with("memory.available: 1Mi, nodefs.available: 12.5%, pid.available: 0%").unwrap();
        assert_eq!(config.kubelet.eviction_hard.len(), 3);
        for (wrong, named) in [
            ("disk.available: 1Mi", "\"disk.available\""),
            ("nodefs.available: much", "\"much\""),
            ("nodefs.available: 101%", "\"101%\""),
            ("nodefs.available: -1%", "\"-1%\""),
            ("nodefs.available: '0'", "\"0\""),
            ("nodefs.available: -1Mi", "\"-1Mi\""),
        ] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("kubelet.evictionHard: ") && error.contains(named),
                "{error}"
            );
        }
    }

    #[test]
    fn what_configz_says_can_be_loaded_again() {
        let config = parse("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1}").unwrap();
        assert_eq!(parse(&config.to_yaml()).unwrap(), config);
    }
}
