//! Configuration: defaults < file (CloudhubConfig, kedge.dev/v1alpha1) < flags. Unknown fields are errors.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};

/// The longest file, bytes: the parser's time grows with the square of what is nested, and a configuration has 1 KiB.
const MAX_TEXT: usize = 16 * 1024;
/// The hub renews a node's lease every 10 s; less than two of these is no grace.
const LEAST_GRACE: u64 = 20;

/// The cloud side of Kedge.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Flags {
    /// Configuration file of kind CloudhubConfig.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Check the configuration, print it, and exit.
    #[arg(long)]
    pub check_config: bool,
    /// Kubeconfig of the cluster; without it the in-cluster service account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Serve a Kubernetes API of its own instead of standing above a cluster.
    #[arg(long)]
    embedded: bool,
    /// Folder of the embedded API's objects, keys and admin.kubeconfig.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Address of the embedded API (HTTPS).
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of the join listener (HTTPS).
    #[arg(long)]
    join_listen: Option<SocketAddr>,
    /// Address of the tunnel (UDP).
    #[arg(long)]
    tunnel_listen: Option<SocketAddr>,
    /// A TCP address more for edges whose sites block UDP, such as 0.0.0.0:443; may be given several times. The join listener's
    /// takes them in any case.
    #[arg(long)]
    tunnel_tcp_listen: Vec<SocketAddr>,
    /// DNS name or IP address by which edges and the API server reach this hub.
    #[arg(long)]
    advertise: Option<String>,
    /// Ports for the nodes' kubelet APIs, FIRST-LAST.
    #[arg(long)]
    kubelet_ports: Option<String>,
    /// Path of the admin socket.
    #[arg(long)]
    admin_socket: Option<PathBuf>,
}

/// The file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// `kedge.dev/v1alpha1`.
    pub api_version: String,
    /// `CloudhubConfig`.
    pub kind: String,
    /// Kubeconfig of the cluster; empty = the in-cluster service account, or the embedded API.
    pub kubeconfig: PathBuf,
    /// Serve a Kubernetes API of its own instead of standing above a cluster.
    pub embedded: bool,
    /// Folder of the embedded API's objects, keys and admin.kubeconfig.
    pub data: PathBuf,
    /// Address of the embedded API (HTTPS).
    pub listen: SocketAddr,
    /// Cluster IPs of the embedded API's Services, `ADDRESS/BITS`.
    pub service_range: String,
    /// The pods' network, of which the embedded control plane gives each node a /24, `ADDRESS/BITS`.
    pub pod_range: String,
    /// How long the embedded API lets a pod stay on a node that is not ready, unless the pod says, seconds.
    pub default_not_ready_toleration_seconds: i64,
    /// The same for a node that is unreachable.
    pub default_unreachable_toleration_seconds: i64,
    /// The embedded control plane takes a node for away when its lease was not renewed for so long, seconds.
    pub node_monitor_grace_period: u64,
    /// Address of the join listener (HTTPS).
    pub join_listen: SocketAddr,
    /// Address of the tunnel (UDP).
    pub tunnel_listen: SocketAddr,
    /// TCP addresses for edges whose sites block UDP, such as `0.0.0.0:443`, beside `joinListen`, which takes them in any case.
    pub tunnel_tcp_listen: Vec<SocketAddr>,
    /// DNS name or IP address by which edges and the API server reach this hub.
    pub advertise: String,
    /// Ports for the nodes' kubelet APIs, `FIRST-LAST`.
    pub kubelet_ports: String,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_version: "kedge.dev/v1alpha1".into(),
            kind: "CloudhubConfig".into(),
            kubeconfig: PathBuf::new(),
            embedded: false,
            data: "/var/lib/kedge/hub".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 6443)),
            service_range: "10.96.0.0/16".into(),
            pod_range: "10.244.0.0/16".into(),
            default_not_ready_toleration_seconds: 300,
            default_unreachable_toleration_seconds: 300,
            node_monitor_grace_period: 50,
            join_listen: SocketAddr::from(([0, 0, 0, 0], 6444)),
            tunnel_listen: SocketAddr::from(([0, 0, 0, 0], 6444)),
            tunnel_tcp_listen: Vec::new(),
            advertise: String::new(),
            kubelet_ports: "10300-20299".into(),
            admin_socket: "/run/kedge/cloudhub.sock".into(),
        }
    }
}

impl Config {
    /// Defaults < file < flags, checked.
    ///
    /// # Errors
    /// When the file cannot be read, or a field makes no sense: it is named.
    pub fn load(flags: &Flags) -> Result<Self> {
        let mut config = match &flags.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        let path = |to: &mut PathBuf, from: &Option<PathBuf>| from.clone_into_some(to);
        path(&mut config.kubeconfig, &flags.kubeconfig);
        path(&mut config.data, &flags.data);
        path(&mut config.admin_socket, &flags.admin_socket);
        config.embedded |= flags.embedded;
        flags.listen.clone_into_some(&mut config.listen);
        flags.join_listen.clone_into_some(&mut config.join_listen);
        flags.tunnel_listen.clone_into_some(&mut config.tunnel_listen);
        if !flags.tunnel_tcp_listen.is_empty() {
            config.tunnel_tcp_listen.clone_from(&flags.tunnel_tcp_listen);
        }
        flags.advertise.clone_into_some(&mut config.advertise);
        flags.kubelet_ports.clone_into_some(&mut config.kubelet_ports);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        if text.len() > MAX_TEXT {
            bail!("{}: longer than 16 KiB", path.display());
        }
        serde_yaml_ng::from_str(&text).with_context(|| format!("{}: not a CloudhubConfig", path.display()))
    }

    fn check(&self) -> Result<()> {
        if self.api_version != "kedge.dev/v1alpha1" || self.kind != "CloudhubConfig" {
            bail!(
                "apiVersion {} kind {}: want kedge.dev/v1alpha1 CloudhubConfig",
                self.api_version,
                self.kind
            );
        }
        if self.advertise.is_empty() {
            bail!("advertise is empty: want the DNS name or IP address by which edges reach this hub");
        }
        self.ports()?;
        if let Some(taken) = self
            .tunnel_tcp_listen
            .iter()
            .find(|address| **address == self.join_listen)
        {
            bail!("tunnelTcpListen {taken}: joinListen is there, and takes edges over TCP by itself");
        }
        if self.embedded {
            self.check_embedded()?;
        }
        Ok(())
    }

    fn check_embedded(&self) -> Result<()> {
        if !self.kubeconfig.as_os_str().is_empty() {
            bail!(
                "kubeconfig {} and embedded: the hub stands above that cluster or serves an API of its own; take one away",
                self.kubeconfig.display()
            );
        }
        if !self.data.is_absolute() {
            bail!("data {}: want an absolute path", self.data.display());
        }
        for (field, seconds) in [
            (
                "defaultNotReadyTolerationSeconds",
                self.default_not_ready_toleration_seconds,
            ),
            (
                "defaultUnreachableTolerationSeconds",
                self.default_unreachable_toleration_seconds,
            ),
        ] {
            if seconds < 0 {
                bail!("{field} {seconds}: want 0 or more seconds");
            }
        }
        if self.node_monitor_grace_period < LEAST_GRACE {
            bail!(
                "nodeMonitorGracePeriod {}: want {LEAST_GRACE} or more seconds: leases are renewed every 10",
                self.node_monitor_grace_period
            );
        }
        let (services, pods) = (self.services()?, self.pods()?);
        if pods.1 > 24 {
            bail!(
                "podRange {:?}: want a /24 or larger: each node gets a /24",
                self.pod_range
            );
        }
        if overlap(services, pods) {
            bail!(
                "serviceRange {} and podRange {} overlap: want networks apart",
                self.service_range,
                self.pod_range
            );
        }
        Ok(())
    }

    /// The Services' cluster IPs: first address and prefix length.
    ///
    /// # Errors
    /// When `serviceRange` is not ADDRESS/BITS.
    pub fn services(&self) -> Result<(Ipv4Addr, u8)> {
        range("serviceRange", &self.service_range, 12..=28)
    }

    /// The pods' network: first address and prefix length.
    ///
    /// # Errors
    /// When `podRange` is not ADDRESS/BITS.
    pub fn pods(&self) -> Result<(Ipv4Addr, u8)> {
        range("podRange", &self.pod_range, 8..=28)
    }

    /// The kubelet APIs' ports.
    ///
    /// # Errors
    /// When `kubeletPorts` is not FIRST-LAST.
    pub fn ports(&self) -> Result<RangeInclusive<u16>> {
        let parse = || {
            let (first, last) = self.kubelet_ports.split_once('-')?;
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (first <= last).then_some(first..=last)
        };
        parse().with_context(|| format!("kubeletPorts {:?}: want FIRST-LAST, as 10300-20299", self.kubelet_ports))
    }
}

/// An IPv4 network with room for more than a few addresses, and, for Services, with so few that a free one is found.
fn range(field: &str, text: &str, sizes: RangeInclusive<u8>) -> Result<(Ipv4Addr, u8)> {
    let parse = || {
        let (address, bits) = text.split_once('/')?;
        let (address, bits) = (address.parse::<Ipv4Addr>().ok()?, bits.parse::<u8>().ok()?);
        let inside = sizes.contains(&bits) && u32::from(address) & !mask(bits) == 0;
        inside.then_some((address, bits))
    };
    parse().with_context(|| {
        format!(
            "{field} {text:?}: want the first address of an IPv4 network and its bits ({} to {}), as 10.96.0.0/16",
            sizes.start(),
            sizes.end()
        )
    })
}

/// `bits` is 8 to 28.
fn mask(bits: u8) -> u32 {
    u32::MAX << (32 - u32::from(bits))
}

fn overlap(a: (Ipv4Addr, u8), b: (Ipv4Addr, u8)) -> bool {
    let mask = mask(a.1.min(b.1));
    u32::from(a.0) & mask == u32::from(b.0) & mask
}

trait CloneIntoSome<T> {
    fn clone_into_some(&self, target: &mut T);
}

impl<T: Clone> CloneIntoSome<T> for Option<T> {
    fn clone_into_some(&self, target: &mut T) {
        if let Some(value) = self {
            target.clone_from(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arguments: &[&str]) -> Result<Config> {
        Config::load(&Flags::try_parse_from([&["cloudhub"], arguments].concat()).unwrap())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "advertise: hub.example\nkubeletPorts: 1-2\n").unwrap();
        let path = file.path().display().to_string();
        let config = load(&["--config", &path, "--kubelet-ports", "5-9"]).unwrap();
        assert_eq!(
            (config.advertise.as_str(), config.ports().unwrap()),
            ("hub.example", 5..=9)
        );
        assert_eq!(config.join_listen.port(), 6444);
    }

    #[test]
    fn the_embedded_api_is_not_above_a_cluster() {
        let config = load(&[
            "--advertise",
            "h",
            "--embedded",
            "--data",
            "/d",
            "--listen",
            "127.0.0.1:7000",
        ])
        .unwrap();
        assert!(config.embedded && config.listen.port() == 7000);
        assert_eq!(config.services().unwrap(), (Ipv4Addr::new(10, 96, 0, 0), 16));
        let both = load(&["--advertise", "h", "--embedded", "--kubeconfig", "/k"]).unwrap_err();
        assert!(
            both.to_string().contains("/k") && both.to_string().contains("embedded"),
            "{both}"
        );
    }

    #[test]
    fn networks_are_checked() {
        for (field, text, why) in [
            ("serviceRange", "10.96.0.1/16", "first address"),
            ("podRange", "10.244.0.0", "first address"),
            ("podRange", "10.244.0.0/26", "/24 or larger"),
            ("podRange", "10.96.128.0/17", "overlap"),
            ("nodeMonitorGracePeriod", "1", "20 or more"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("advertise: h\nembedded: true\n{field}: {text}\n")).unwrap();
            let error = load(&["--config", &file.path().display().to_string()]).unwrap_err();
            assert!(
                error.to_string().contains(why) && error.to_string().contains(field),
                "{error}"
            );
        }
    }

    #[test]
    fn mistakes_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "advertize: hub.example\n").unwrap();
        let error = format!(
            "{:#}",
            load(&["--config", &file.path().display().to_string()]).unwrap_err()
        );
        assert!(error.contains("advertize"), "{error}");
        assert!(load(&[]).unwrap_err().to_string().contains("advertise"));
        let tcp = load(&["--advertise", "h", "--tunnel-tcp-listen", "0.0.0.0:6444"]).unwrap_err();
        assert!(tcp.to_string().contains("tunnelTcpListen 0.0.0.0:6444"), "{tcp}");
        let two = [
            "--advertise",
            "h",
            "--tunnel-tcp-listen",
            "0.0.0.0:443",
            "--tunnel-tcp-listen",
            "[::1]:8443",
        ];
        assert_eq!(load(&two).unwrap().tunnel_tcp_listen.len(), 2);
        let ports = load(&["--advertise", "h", "--kubelet-ports", "9-5"])
            .unwrap_err()
            .to_string();
        assert!(ports.contains("FIRST-LAST"), "{ports}");
    }
}
