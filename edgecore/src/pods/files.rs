//! Where a pod's files are on the node, its /etc/hosts, resolv.conf and termination messages.

use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::api::{Container, Pod};
use super::env::Facts;
use super::observed::{Seen, label};

/// kubelet's limits of a termination message: from a file, from the log.
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// The folders of one pod under the kubelet root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir {
    /// `<root>/pods/<uid>`.
    pub root: PathBuf,
    /// `<logs>/<namespace>_<name>_<uid>`.
    pub logs: PathBuf,
}

impl PodDir {
    /// The folders of a pod.
    pub fn new(root: &Path, logs: &Path, pod: &Pod) -> Self {
        let m = &pod.metadata;
        Self {
            root: root.join("pods").join(&m.uid),
            logs: logs.join(format!("{}_{}_{}", m.namespace, m.name, m.uid)),
        }
    }
    /// The managed /etc/hosts.
    pub fn etc_hosts(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }
    /// The folder of a volume; `plugin` such as `empty-dir`.
    pub fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.root
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(name)
    }
    /// Where termination messages of a container are.
    pub fn container(&self, name: &str) -> PathBuf {
        self.root.join("containers").join(name)
    }
}

/// The host name inside the pod, and its domain, where it has one.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let name = if pod.spec.hostname.is_empty() {
        &pod.metadata.name
    } else {
        &pod.spec.hostname
    };
    let short: String = name.chars().take(63).collect();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let domain = if pod.spec.subdomain.is_empty() {
        String::new()
    } else {
        format!("{}.{}.svc.{cluster_domain}", pod.spec.subdomain, pod.metadata.namespace)
    };
    (short, domain)
}

/// The content of /etc/hosts; `node` is the node's own file, for hostNetwork.
pub fn hosts(pod: &Pod, facts: &Facts, cluster_domain: &str, node: &str) -> String {
    let mut out = String::new();
    if pod.spec.host_network {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(node);
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (name, domain) = hostname(pod, cluster_domain);
        for ip in &facts.pod_ips {
            let _ = if domain.is_empty() {
                writeln!(out, "{ip}\t{name}")
            } else {
                writeln!(out, "{ip}\t{name}.{domain}\t{name}")
            };
        }
    }
    if !pod.spec.host_aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in &pod.spec.host_aliases {
            let _ = writeln!(out, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
        }
    }
    out
}

/// Whether a pod's name servers are the cluster's.
fn has_cluster_dns(pod: &Pod, cluster_dns: &[String]) -> bool {
    let by_policy = match policy(pod) {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.spec.host_network,
        _ => false,
    };
    by_policy && !cluster_dns.is_empty()
}

/// Whether a pod's name servers are the node's.
pub fn has_node_dns(pod: &Pod, cluster_dns: &[String]) -> bool {
    policy(pod) != "None" && !has_cluster_dns(pod, cluster_dns)
}

fn policy(pod: &Pod) -> &str {
    pod.spec.dns_policy.as_deref().unwrap_or("ClusterFirst")
}

/// The pod's resolv.conf by dnsPolicy and dnsConfig (kubelet's `dns` package). `node` is the node's own file; where there is none, its
/// pods get what kubelet's get with `resolvConf: ""`: the runtime would look for the file that is not there, and start nothing.
pub fn dns(pod: &Pod, cluster_dns: &[String], cluster_domain: &str, node: Option<&str>) -> cri::DnsConfig {
    let cluster = has_cluster_dns(pod, cluster_dns);
    let mut config = match (policy(pod), node) {
        ("None", _) => cri::DnsConfig::default(),
        (_, Some(node)) => parse_resolv_conf(node),
        (_, None) if cluster => cri::DnsConfig::default(),
        (_, None) => cri::DnsConfig {
            servers: vec!["127.0.0.1".to_owned()],
            searches: vec![".".to_owned()],
            options: Vec::new(),
        },
    };
    if cluster {
        let mut searches = vec![
            format!("{}.svc.{cluster_domain}", pod.metadata.namespace),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        searches.append(&mut config.searches);
        config = cri::DnsConfig {
            servers: cluster_dns.to_vec(),
            searches,
            options: vec!["ndots:5".to_owned()],
        };
    }
    if let Some(own) = &pod.spec.dns_config {
        config.servers.extend(own.nameservers.iter().cloned());
        config.searches.extend(own.searches.iter().cloned());
        for option in &own.options {
            let prefix = format!("{}:", option.name);
            config.options.retain(|o| o != &option.name && !o.starts_with(&prefix));
            config.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{prefix}{value}"),
                _ => option.name.clone(),
            });
        }
    }
    for list in [&mut config.servers, &mut config.searches] {
        let mut seen = std::collections::BTreeSet::new();
        list.retain(|item| seen.insert(item.clone()));
    }
    config
}

fn parse_resolv_conf(text: &str) -> cri::DnsConfig {
    let mut config = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        let key = words.next().unwrap_or_default();
        let rest = words.map(str::to_owned);
        match key {
            "nameserver" => config.servers.extend(rest.take(1)),
            "search" | "domain" => config.searches = rest.collect(),
            "options" => config.options.extend(rest),
            _ => {}
        }
    }
    config
}

/// The termination message of a container that ended: its file, or by policy the end of its log.
pub fn termination_message(seen: &Seen) -> String {
    let annotations = &seen.status.annotations;
    let file = annotations
        .get(label::MESSAGE_FILE)
        .map(|path| read_tail(Path::new(path), MAX_MESSAGE))
        .unwrap_or_default();
    let from_log = annotations
        .get(label::MESSAGE_POLICY)
        .is_some_and(|p| p == "FallbackToLogsOnError");
    if !file.is_empty() || !from_log || seen.exit_code() == 0 {
        return file;
    }
    log_tail(Path::new(&seen.status.log_path))
}

fn read_tail(path: &Path, limit: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A file that is not there is an empty message, as in kubelet.
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last lines of a CRI log, without its prefixes (`time stream P|F text`).
fn log_tail(path: &Path) -> String {
    let raw = read_tail(path, 64 << 10);
    let lines: Vec<&str> = raw.lines().collect();
    let mut out = String::new();
    for line in &lines[lines.len().saturating_sub(MAX_LOG_LINES)..] {
        let mut parts = line.splitn(4, ' ');
        let (Some(tag), Some(text)) = (parts.nth(2), parts.next()) else {
            continue;
        };
        out.push_str(text);
        if tag.starts_with('F') {
            out.push('\n');
        }
    }
    let mut start = out.len().saturating_sub(MAX_LOG_MESSAGE);
    while !out.is_char_boundary(start) {
        start += 1;
    }
    out.split_off(start)
}

/// Makes the file that takes a container's termination message.
///
/// # Errors
/// When the disk refuses.
pub fn make_message_file(dir: &PodDir, container: &Container, attempt: u32) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let folder = dir.container(&container.name);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{attempt}-{:08x}", rand::random::<u32>()));
    std::fs::write(&path, b"")?;
    // The container's user, whoever that is, writes it.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    // Those of earlier instances beyond the last are of no more use.
    if let Ok(entries) = std::fs::read_dir(&folder) {
        for entry in entries.flatten() {
            let name = entry.file_name();
            let old = name.to_str().and_then(|n| n.split('-').next()?.parse::<u32>().ok());
            if old.is_some_and(|n| n + 2 < attempt) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}))
            .expect("pod")
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let facts = Facts {
            pod_ips: vec!["10.1.1.1".into()],
            ..Facts::default()
        };
        let p = pod(
            json!({"subdomain": "svc", "hostname": "h", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts(&p, &facts, "cluster.local", "");
        assert!(text.contains("10.1.1.1\th.svc.ns.svc.cluster.local\th\n"), "{text}");
        assert!(
            text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"),
            "{text}"
        );
        let host = hosts(
            &pod(json!({"hostNetwork": true})),
            &facts,
            "cluster.local",
            "127.0.0.1 x\n",
        );
        assert!(host.ends_with("(host network).\n127.0.0.1 x\n"), "{host}");
    }

    #[test]
    fn dns_follows_the_policy() {
        let node = "nameserver 9.9.9.9\nsearch example.com\noptions timeout:1\n";
        let cluster = ["10.96.0.10".to_owned()];
        let first = dns(&pod(json!({})), &cluster, "cluster.local", Some(node));
        assert_eq!(first.servers, cluster);
        assert_eq!(
            first.searches,
            [
                "ns.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "example.com"
            ]
        );
        assert_eq!(
            dns(&pod(json!({"hostNetwork": true})), &cluster, "c", Some(node)).servers,
            ["9.9.9.9"]
        );
        assert_eq!(dns(&pod(json!({})), &[], "c", Some(node)).servers, ["9.9.9.9"]);
        let none = pod(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]}}),
        );
        let config = dns(&none, &cluster, "c", Some(node));
        assert_eq!(
            (config.servers, config.options),
            (
                vec!["1.1.1.1".to_owned()],
                vec!["ndots:2".to_owned(), "debug".to_owned()]
            )
        );
    }

    #[test]
    fn dns_of_a_node_without_a_resolv_conf_is_kubelets_without_one() {
        let cluster = ["10.96.0.10".to_owned()];
        let alone = dns(&pod(json!({})), &[], "c", None);
        assert_eq!(
            (alone.servers, alone.searches),
            (vec!["127.0.0.1".to_owned()], vec![".".to_owned()])
        );
        let first = dns(&pod(json!({})), &cluster, "c", None);
        assert_eq!(first.servers, cluster);
        assert_eq!(first.searches, ["ns.svc.c", "svc.c", "c"]);
        let own = pod(json!({"dnsPolicy": "Default", "dnsConfig": {"nameservers": ["1.1.1.1"]}}));
        assert_eq!(dns(&own, &cluster, "c", None).servers, ["127.0.0.1", "1.1.1.1"]);
        let none = pod(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}));
        assert_eq!(dns(&none, &cluster, "c", None).servers, ["1.1.1.1"]);
        let uses = |spec, cluster: &[String]| has_node_dns(&pod(spec), cluster);
        assert!(uses(json!({}), &[]) && uses(json!({"hostNetwork": true}), &cluster));
        assert!(!uses(json!({}), &cluster) && !uses(json!({"dnsPolicy": "None"}), &[]));
    }

    #[test]
    fn log_tail_joins_partial_lines() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "t stdout F one\nt stderr P tw\nt stderr F o\n").expect("write");
        assert_eq!(log_tail(file.path()), "one\ntwo\n");
    }
}
