//! The pods' network as a CNI configuration: a bridge, addresses out of Node.spec.podCIDR by host-local, host ports by portmap.
//!
//! Masquerading is one nftables table of ours, set in one transaction: Debian 12 has nft where it need not have iptables, which the bridge
//! plugin's own `ipMasq` runs. Only where there is no nft is the plugin asked.
//!
//! The file is written whole and renamed into place, and only where it differs, because containerd reloads its network at each change. It
//! stays when the hub is away: the range is the node's until the API says another.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::config::NetworkConfig;

/// The file's name: before any other's, because containerd takes the first.
pub const FILE: &str = "10-kedge.conflist";
/// containerd 1.6 and Debian 12's plugins know nothing newer.
const CNI_VERSION: &str = "1.0.0";

/// nft takes milliseconds.
const NFT_DEADLINE: Duration = Duration::from_secs(10);

/// Why the network could not be written down, or put in order.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct CniError {
    path: PathBuf,
    source: std::io::Error,
}

/// The ranges of a Node object: `podCIDRs`, else `podCIDR`.
pub fn pod_cidrs(node: &Value) -> Vec<String> {
    let spec = &node["spec"];
    let list = spec["podCIDRs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let all: Vec<String> = list.map(str::to_owned).collect();
    let one = || spec["podCIDR"].as_str().map(str::to_owned).into_iter().collect();
    let found: Vec<String> = if all.is_empty() { one() } else { all };
    found.into_iter().filter(|cidr| is_cidr(cidr)).collect()
}

/// The configuration for these ranges.
pub fn conflist(config: &NetworkConfig, cidrs: &[String], plugin_masquerades: bool) -> Value {
    let ranges: Vec<Value> = cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let routes: Vec<Value> = cidrs
        .iter()
        .map(|cidr| {
            if cidr.contains(':') {
                json!({"dst": "::/0"})
            } else {
                json!({"dst": "0.0.0.0/0"})
            }
        })
        .collect();
    let mut bridge = json!({
        "type": "bridge",
        "bridge": config.bridge,
        "isGateway": true,
        "ipMasq": plugin_masquerades,
        "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": config.ipam_dir, "ranges": ranges, "routes": routes},
    });
    if config.mtu > 0 {
        bridge["mtu"] = config.mtu.into();
    }
    json!({
        "cniVersion": CNI_VERSION,
        "name": "kedge",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": true}}],
    })
}

/// Writes the configuration where it differs. Returns whether it did.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn ensure(config: &NetworkConfig, cidrs: &[String]) -> Result<bool, CniError> {
    let plugin_masquerades = config.masquerade && !in_path("nft") && in_path("iptables");
    let path = config.cni_conf_dir.join(FILE);
    let text = format!("{:#}\n", conflist(config, cidrs, plugin_masquerades));
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    write_atomically(&config.cni_conf_dir, &path, text.as_bytes()).map_err(|source| CniError { path, source })?;
    Ok(true)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// The nftables transaction that replaces our table: what leaves the pods' ranges for elsewhere gets the node's address.
pub fn masquerade_rules(config: &NetworkConfig, cidrs: &[String]) -> String {
    let mut rules = String::new();
    for (family, word) in [("ip", '.'), ("ip6", ':')] {
        let _ = write!(
            rules,
            "add table {family} kedge_masquerade\ndelete table {family} kedge_masquerade\n"
        );
        let ours = cidrs.iter().filter(|cidr| cidr.contains(word) && is_cidr(cidr));
        let lines: String = ours
            .map(|c| {
                format!(
                    "{family} saddr {c} {family} daddr != {c} oifname != \"{}\" masquerade\n",
                    config.bridge
                )
            })
            .collect();
        if !lines.is_empty() {
            let hook = "type nat hook postrouting priority 100;";
            let _ = write!(
                rules,
                "table {family} kedge_masquerade {{\nchain postrouting {{\n{hook}\n{lines}}}\n}}\n"
            );
        }
    }
    rules
}

/// Puts the rules in place; without nft nothing is done (see [`ensure`]).
///
/// # Errors
/// What nft said.
pub async fn ensure_masquerade(config: &NetworkConfig, cidrs: &[String]) -> std::io::Result<()> {
    if !config.masquerade || !in_path("nft") {
        return Ok(());
    }
    let mut nft = tokio::process::Command::new("nft");
    nft.args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = nft.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(masquerade_rules(config, cidrs).as_bytes()).await?;
    }
    let output = tokio::time::timeout(NFT_DEADLINE, child.wait_with_output()).await??;
    if output.status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

/// A range comes from the API and goes into a rule: nothing but an address and a length passes.
fn is_cidr(text: &str) -> bool {
    let parts = text.split_once('/');
    parts.is_some_and(|(ip, length)| {
        ip.parse::<std::net::IpAddr>().is_ok() && length.parse::<u8>().is_ok_and(|l| l <= 128)
    })
}

/// Removes what a power cut left of the CNI library's result files: with half of one, the sandbox that it is of could never be
/// taken down, and its pod never be started again; without it the plugins are asked for what they have.
///
/// # Errors
/// When the folder cannot be read or a file not be removed.
pub fn remove_damaged_results(cache: &Path) -> Result<(), CniError> {
    let folder = cache.join("results");
    let failed = |path: &Path, source| CniError {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|source| failed(&folder, source))?,
    };
    for entry in entries {
        let path = entry.map_err(|source| failed(&folder, source))?.path();
        let whole = std::fs::read(&path)
            .map_err(|source| failed(&path, source))
            .map(|bytes| serde_json::from_slice::<Value>(&bytes).is_ok_and(|result| result.is_object()))?;
        if !whole {
            std::fs::remove_file(&path).map_err(|source| failed(&path, source))?;
            tracing::warn!(path = %path.display(), "removed a damaged CNI result");
        }
    }
    Ok(())
}

fn write_atomically(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    // containerd reads only names that end in conf, conflist or json.
    let temporary = dir.join(".10-kedge.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_once_and_again_when_the_range_changes() {
        let dir = tempfile::tempdir().unwrap();
        let config = NetworkConfig {
            cni_conf_dir: dir.path().join("net.d"),
            ..NetworkConfig::default()
        };
        let node = json!({"spec": {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"]}});
        let cidrs = pod_cidrs(&node);
        assert!(ensure(&config, &cidrs).unwrap());
        assert!(!ensure(&config, &cidrs).unwrap());
        let written: Value =
            serde_json::from_str(&std::fs::read_to_string(config.cni_conf_dir.join(FILE)).unwrap()).unwrap();
        assert_eq!(written["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
        assert!(ensure(&config, &["10.244.4.0/24".to_owned()]).unwrap());
        assert_eq!(std::fs::read_dir(&config.cni_conf_dir).unwrap().count(), 1);
    }

    #[test]
    fn damaged_results_go_and_whole_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        assert!(remove_damaged_results(dir.path()).is_ok(), "there is no folder yet");
        let results = dir.path().join("results");
        std::fs::create_dir(&results).unwrap();
        for (name, text) in [
            ("whole", r#"{"kind":"cniCacheV1"}"#),
            ("empty", ""),
            ("half", r#"{"kind":"cni"#),
        ] {
            std::fs::write(results.join(name), text).unwrap();
        }
        remove_damaged_results(dir.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(&results)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["whole"]);
    }

    #[test]
    fn only_ranges_reach_the_rules() {
        let rules = masquerade_rules(
            &NetworkConfig::default(),
            &["10.1.0.0/24".into(), "10.1.0.0/24 drop; x".into()],
        );
        assert!(
            rules.contains("ip saddr 10.1.0.0/24 ip daddr != 10.1.0.0/24"),
            "{rules}"
        );
        assert!(!rules.contains("drop"), "{rules}");
    }

    #[test]
    fn regression_nft_takes_the_masquerade_rules() {
        let rules = masquerade_rules(
            &NetworkConfig::default(),
            &["10.244.3.0/24".into(), "fd00:3::/64".into()],
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &rules).unwrap();
        let checked = std::process::Command::new("nft")
            .arg("-cf")
            .arg(file.path())
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{}\n{rules}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }

    #[test]
    fn a_node_without_a_range_has_none() {
        assert!(pod_cidrs(&json!({"spec": {}})).is_empty());
        assert_eq!(pod_cidrs(&json!({"spec": {"podCIDR": "10.1.0.0/24"}})), ["10.1.0.0/24"]);
    }
}
