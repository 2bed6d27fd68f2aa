//! Configuration: defaults < file (CloudhubConfig, kedge.dev/v1alpha1) < flags. Unknown fields are errors.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};

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
    /// Address of the join listener (HTTPS).
    #[arg(long)]
    join_listen: Option<SocketAddr>,
    /// Address of the tunnel (UDP).
    #[arg(long)]
    tunnel_listen: Option<SocketAddr>,
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
    /// Kubeconfig of the cluster; empty = the in-cluster service account.
    pub kubeconfig: PathBuf,
    /// Address of the join listener (HTTPS).
    pub join_listen: SocketAddr,
    /// Address of the tunnel (UDP).
    pub tunnel_listen: SocketAddr,
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
            join_listen: SocketAddr::from(([0, 0, 0, 0], 6444)),
            tunnel_listen: SocketAddr::from(([0, 0, 0, 0], 6444)),
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
        path(&mut config.admin_socket, &flags.admin_socket);
        flags.join_listen.clone_into_some(&mut config.join_listen);
        flags.tunnel_listen.clone_into_some(&mut config.tunnel_listen);
        flags.advertise.clone_into_some(&mut config.advertise);
        flags.kubelet_ports.clone_into_some(&mut config.kubelet_ports);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
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
        self.ports().map(|_| ())
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
    fn mistakes_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "advertize: hub.example\n").unwrap();
        let error = format!(
            "{:#}",
            load(&["--config", &file.path().display().to_string()]).unwrap_err()
        );
        assert!(error.contains("advertize"), "{error}");
        assert!(load(&[]).unwrap_err().to_string().contains("advertise"));
        let ports = load(&["--advertise", "h", "--kubelet-ports", "9-5"])
            .unwrap_err()
            .to_string();
        assert!(ports.contains("FIRST-LAST"), "{ports}");
    }
}
