//! Requests and limits: QoS class, oom_score_adj and the numbers that go into cgroups (kubelet's `qos` and `cm` packages).

use cri::Resources;

use super::api::{Container, Map, Pod};
use super::quantity::Quantity;

/// v1.PodQOSClass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Requests equal limits for CPU and memory in each container.
    Guaranteed,
    /// Something is requested.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As status.qosClass says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// cpu.shares of one core, and the least that the kernel takes.
const SHARES_PER_CPU: i64 = 1024;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// CFS period in microseconds, kubelet's default; a quota below 1 ms is refused by the kernel.
const PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1000;

/// The value of a resource, where it is there, readable and above zero.
pub fn amount(list: &Map, name: &str) -> Option<Quantity> {
    list.get(name)
        .and_then(|t| t.parse().ok())
        .filter(|q: &Quantity| q.milli() > 0)
}

/// What a container requests: its request, else its limit.
pub fn request(container: &Container, name: &str) -> Option<Quantity> {
    amount(&container.resources.requests, name).or_else(|| {
        if container.resources.requests.contains_key(name) {
            None
        } else {
            amount(&container.resources.limits, name)
        }
    })
}

/// The pod's class, from containers and init containers.
pub fn qos(pod: &Pod) -> Qos {
    let mut all_guaranteed = true;
    let mut any = false;
    for c in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        for name in ["cpu", "memory"] {
            let (asked, limit) = (request(c, name), amount(&c.resources.limits, name));
            any |= asked.is_some() || limit.is_some();
            all_guaranteed &= limit.is_some() && asked == limit;
        }
    }
    match (any, all_guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// The sum that a pod needs: containers and sidecars together, or the largest init container beside the sidecars started before it, plus overhead.
pub fn pod_total(pod: &Pod, name: &str, of: fn(&Container, &str) -> Option<Quantity>) -> Quantity {
    let mut sidecars = Quantity::default();
    let mut peak = Quantity::default();
    for c in &pod.spec.init_containers {
        let own = of(c, name).unwrap_or_default();
        if c.is_sidecar() {
            sidecars = sidecars + own;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + own);
        }
    }
    let running: Quantity = pod.spec.containers.iter().filter_map(|c| of(c, name)).sum();
    (running + sidecars).max(peak) + amount(&pod.spec.overhead, name).unwrap_or_default()
}

/// oom_score_adj of a container: -997 for Guaranteed and node-critical pods, 1000 for BestEffort, else by the share of memory requested.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    /// `system-node-critical`.
    const CRITICAL: i64 = 2_000_001_000;
    if pod.spec.priority.unwrap_or(0) >= CRITICAL {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let asked = request(container, "memory").map_or(0, Quantity::value);
            let share = i128::from(asked) * 1000 / i128::from(node_memory.max(1));
            let adj = 1000 - i64::try_from(share).unwrap_or(1000);
            adj.clamp(3, 999)
        }
    }
}

/// cpu.shares for a request in millicores.
pub fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(SHARES_PER_CPU) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota for a limit in millicores.
pub fn quota(milli: i64) -> i64 {
    (milli.saturating_mul(PERIOD) / 1000).max(MIN_QUOTA)
}

/// cgroup v2 cpu.weight for cpu.shares (KEP-2254's formula, as runc has it).
pub fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(MIN_SHARES, MAX_SHARES) - 2) * 9999) / 262_142
}

/// What the runtime gets for a container.
pub fn container_resources(pod: &Pod, container: &Container, node_memory: i64) -> Resources {
    let limits = &container.resources.limits;
    let cpu = amount(limits, "cpu");
    let mut resources = Resources {
        cpu_shares: shares(request(container, "cpu").map_or(0, Quantity::milli)),
        memory_limit: amount(limits, "memory").map_or(0, Quantity::value),
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        ..Resources::default()
    };
    if let Some(cpu) = cpu {
        resources.cpu_period = PERIOD;
        resources.cpu_quota = quota(cpu.milli());
    }
    for (name, text) in limits {
        if let (Some(size), Ok(amount)) = (name.strip_prefix("hugepages-"), text.parse::<Quantity>()) {
            let size = size.replace("Ki", "KB").replace("Mi", "MB").replace("Gi", "GB");
            resources
                .hugepage_limits
                .push((size, u64::try_from(amount.value()).unwrap_or(0)));
        }
    }
    resources
}

/// What the pod's own cgroup gets: shares of all requests; quota and memory limit only when each container has one.
pub fn pod_resources(pod: &Pod) -> Resources {
    let all_have = |name: &str| {
        pod.spec
            .init_containers
            .iter()
            .chain(&pod.spec.containers)
            .all(|c| amount(&c.resources.limits, name).is_some())
    };
    let limit = |c: &Container, name: &str| amount(&c.resources.limits, name);
    let mut resources = Resources {
        cpu_shares: shares(pod_total(pod, "cpu", request).milli()),
        ..Resources::default()
    };
    if all_have("cpu") {
        resources.cpu_period = PERIOD;
        resources.cpu_quota = quota(pod_total(pod, "cpu", limit).milli());
    }
    if all_have("memory") {
        resources.memory_limit = pod_total(pod, "memory", limit).value();
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).expect("pod")
    }

    #[test]
    fn classes_as_kubernetes_defines_them() {
        assert_eq!(qos(&pod(json!([{}]))), Qos::BestEffort);
        let limits = json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]);
        assert_eq!(qos(&pod(limits)), Qos::Guaranteed);
        let less = json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]);
        assert_eq!(qos(&pod(less)), Qos::Burstable);
        let one = json!([{"resources": {"requests": {"cpu": "1m"}}}, {}]);
        assert_eq!(qos(&pod(one)), Qos::Burstable);
        let same = json!([{"resources": {"limits": {"cpu": "1", "memory": "1024Mi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}}]);
        assert_eq!(qos(&pod(same)), Qos::Guaranteed);
    }

    #[test]
    fn oom_scores_stay_between_the_classes() {
        let p = pod(json!([{"resources": {"requests": {"memory": "1Gi"}}}]));
        assert_eq!(oom_score_adj(&p, &p.spec.containers[0], 4 << 30), 750);
        assert_eq!(oom_score_adj(&p, &p.spec.containers[0], 1 << 30), 3);
        let p = pod(json!([{"resources": {"requests": {"memory": "1"}}}]));
        assert_eq!(oom_score_adj(&p, &p.spec.containers[0], 1 << 40), 999);
    }

    #[test]
    fn cgroup_numbers() {
        let p = pod(
            json!([{"resources": {"limits": {"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}, "requests": {"cpu": "250m"}}}]),
        );
        let r = container_resources(&p, &p.spec.containers[0], 1 << 32);
        assert_eq!(
            (r.cpu_shares, r.cpu_quota, r.cpu_period, r.memory_limit),
            (256, 50_000, 100_000, 64 << 20)
        );
        assert_eq!(r.hugepage_limits, vec![("2MB".to_owned(), 4 << 20)]);
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
        assert_eq!(pod_resources(&p).memory_limit, 64 << 20);
        assert_eq!(pod_resources(&pod(json!([{}]))).cpu_shares, 2);
    }

    #[test]
    fn init_containers_peak_beside_sidecars() {
        let p: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "4"}}}],
            "containers": [{"resources": {"requests": {"cpu": "2"}}}], "overhead": {"cpu": "100m"}}}))
        .expect("pod");
        assert_eq!(pod_total(&p, "cpu", request).milli(), 5100);
    }
}
