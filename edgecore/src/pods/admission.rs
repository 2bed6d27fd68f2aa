//! Whether a pod that was bound to this node may start here: kubelet's checks, with kubelet's reasons.
//!
//! Run once, before anything is made for a pod; a pod that has containers was admitted before. The hub's scheduler sees the same numbers, so a
//! refusal means that two deciders raced.

use super::api::{Map, Pod};
use super::memory::Verdict;
use super::quantity::Quantity;
use super::resources;

/// Sysctls that need no permission (kubelet's safe set).
const SAFE_SYSCTLS: [&str; 13] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
];

/// Judges a pod beside the pods that were admitted before.
///
/// # Errors
/// Why it may not run here.
pub fn admit(pod: &Pod, others: &[&Pod], allocatable: &Map, labels: &Map) -> Result<(), Verdict> {
    let refuse = |reason: &str, message: String| {
        Err(Verdict {
            reason: reason.to_owned(),
            message,
        })
    };
    for sysctl in &pod.spec.security_context.sysctls {
        if !SAFE_SYSCTLS.contains(&sysctl.name.as_str()) {
            return refuse(
                "SysctlForbidden",
                format!("forbidden sysctl: \"{}\" not allowlisted", sysctl.name),
            );
        }
    }
    if !labels.is_empty() && pod.spec.node_selector.iter().any(|(k, v)| labels.get(k) != Some(v)) {
        let message =
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return refuse("NodeAffinity", message.to_owned());
    }
    if let Some(limit) = allocatable.get("pods").and_then(|t| t.parse::<usize>().ok())
        && others.len() >= limit
    {
        let message = format!(
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {limit}",
            others.len()
        );
        return refuse("OutOfpods", message);
    }
    if conflicts(pod, others) {
        let message =
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return refuse("NodePorts", message.to_owned());
    }
    fits(pod, others, allocatable)
}

/// Each resource that the pod asks for, beside what the others have.
fn fits(pod: &Pod, others: &[&Pod], allocatable: &Map) -> Result<(), Verdict> {
    let refuse = |reason: String, message: String| Err(Verdict { reason, message });
    let names: std::collections::BTreeSet<&String> = pod
        .all_containers()
        .flat_map(|c| c.resources.requests.keys().chain(c.resources.limits.keys()))
        .collect();
    for name in names {
        let asked = resources::pod_total(pod, name, resources::request);
        // A node that does not say has no limit; an extended resource that it lacks is one it has none of.
        let Some(capacity) = allocatable
            .get(name)
            .and_then(|t| t.parse::<Quantity>().ok())
            .or_else(|| name.contains('/').then(Quantity::default))
            .filter(|_| !allocatable.is_empty())
        else {
            continue;
        };
        let used: Quantity = others
            .iter()
            .map(|p| resources::pod_total(p, name, resources::request))
            .sum();
        if asked.milli() > 0 && used + asked > capacity {
            let unit = |q: Quantity| if name == "cpu" { q.milli() } else { q.value() };
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                unit(asked),
                unit(used),
                unit(capacity)
            );
            return refuse(format!("OutOf{name}"), message);
        }
    }
    Ok(())
}

/// Host ports that the pod takes: (port, protocol, address).
fn ports(pod: &Pod) -> impl Iterator<Item = (u16, &str, &str)> {
    let host_network = pod.spec.host_network;
    pod.spec
        .init_containers
        .iter()
        .filter(|c| c.is_sidecar())
        .chain(&pod.spec.containers)
        .flat_map(|c| &c.ports)
        .filter_map(move |p| {
            let port = if host_network && p.host_port == 0 {
                p.container_port
            } else {
                p.host_port
            };
            let ip = if p.host_ip.is_empty() {
                "0.0.0.0"
            } else {
                p.host_ip.as_str()
            };
            (port != 0).then(|| (port, p.protocol.as_deref().unwrap_or("TCP"), ip))
        })
}

fn conflicts(pod: &Pod, others: &[&Pod]) -> bool {
    let any = |ip: &str| matches!(ip, "0.0.0.0" | "::");
    others.iter().any(|other| {
        ports(other).any(|(port, protocol, ip)| {
            ports(pod).any(|(p, q, i)| p == port && q == protocol && (i == ip || any(i) || any(ip)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("pod")
    }

    #[test]
    fn refuses_with_kubelets_reasons() {
        let node = Map::from([
            ("cpu".into(), "2".into()),
            ("pods".into(), "3".into()),
            ("memory".into(), "1Gi".into()),
        ]);
        let cpu = |n: &str| pod(json!({"containers": [{"resources": {"requests": {"cpu": n}}}]}));
        let reason = |p: &Pod, others: &[&Pod]| admit(p, others, &node, &Map::new()).map_err(|v| v.reason);
        assert_eq!(reason(&cpu("1500m"), &[]), Ok(()));
        assert_eq!(reason(&cpu("1500m"), &[&cpu("600m")]), Err("OutOfcpu".into()));
        assert_eq!(
            reason(&cpu("1m"), &[&cpu("1m"), &cpu("1m"), &cpu("1m")]),
            Err("OutOfpods".into())
        );
        let gpu = pod(json!({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}));
        assert_eq!(reason(&gpu, &[]), Err("OutOfnvidia.com/gpu".into()));
        let port = |n: u16| pod(json!({"containers": [{"ports": [{"containerPort": 80, "hostPort": n}]}]}));
        assert_eq!(reason(&port(80), &[&port(81)]), Ok(()));
        assert_eq!(reason(&port(80), &[&port(80)]), Err("NodePorts".into()));
        let unsafe_sysctl = pod(json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}));
        assert_eq!(reason(&unsafe_sysctl, &[]), Err("SysctlForbidden".into()));
        let picky = pod(json!({"nodeSelector": {"a": "b"}}));
        let labels = Map::from([("a".into(), "c".into())]);
        assert_eq!(
            admit(&picky, &[], &node, &labels).map_err(|v| v.reason),
            Err("NodeAffinity".into())
        );
    }
}
