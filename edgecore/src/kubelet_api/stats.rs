//! What node, pods and containers use: for metrics-server (/metrics/resource) and in full (/stats/summary).
//!
//! The runtime's container stats and /proc are read at each request; the last sample of each container is kept, because a rate needs two. A pod
//! is the sum of its containers. Where the runtime gives no number there is none.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use cri::{ContainerFilter, ContainerStats, Runtime};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pods::{PodEntry, PodSource};
use crate::node::machine::{self, Level};

/// The shortest time between two samples that makes a rate: below it, noise.
const RATE_SPAN: i64 = 1_000_000_000;

/// One container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// When it started, RFC 3339; empty if unknown.
    pub started: String,
    /// What the runtime said.
    pub stats: ContainerStats,
    /// A billionth of a core, now.
    pub nano_cores: Option<u64>,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodUse {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// When it started, RFC 3339; empty if unknown.
    pub started: String,
    /// Its running containers.
    pub containers: Vec<ContainerUse>,
}

/// The machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeUse {
    /// Now, nanoseconds since 1970.
    pub time: i64,
    /// CPU time used since boot, nanoseconds.
    pub cpu_nanos: u64,
    /// A billionth of a core, now.
    pub nano_cores: Option<u64>,
    /// Memory.
    pub memory: Level,
    /// The kubelet root's file system.
    pub disk: Level,
    /// Its inodes.
    pub inodes: Level,
    /// Process ids.
    pub pids: Level,
    /// When it booted, nanoseconds since 1970.
    pub booted: i64,
}

/// Everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// The machine.
    pub node: NodeUse,
    /// Its pods.
    pub pods: Vec<PodUse>,
    /// The runtime did not answer: pods are missing.
    pub failed: bool,
}

/// Reads usage; keeps the last sample of each.
#[derive(Debug, Default)]
pub struct Collector {
    last: Mutex<HashMap<String, Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    time: i64,
    nanos: u64,
    rate: Option<u64>,
}

impl Collector {
    /// Reads everything. `root` is the kubelet root.
    pub async fn read(&self, runtime: &dyn Runtime, pods: &dyn PodSource, root: &std::path::Path) -> Usage {
        let answer = runtime.list_container_stats(&ContainerFilter::default()).await;
        let failed = answer.is_err();
        let stats = answer
            .inspect_err(|error| tracing::warn!(%error, "no container stats"))
            .unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *last);
        let mut rate = |id: &str, time: i64, nanos: u64| -> Option<u64> {
            let sample = next_sample(before.get(id).copied(), time, nanos);
            last.insert(id.to_owned(), sample);
            sample.rate
        };
        let mut node = node_use(root);
        node.nano_cores = rate("", node.time, node.cpu_nanos);
        let entries = pods.pods();
        let mut by_uid: BTreeMap<String, PodUse> = BTreeMap::new();
        for stats in stats {
            let label = |key: &str| stats.labels.get(key).cloned().unwrap_or_default();
            let uid = label("io.kubernetes.pod.uid");
            let entry = entries.iter().find(|e| e.metadata("uid") == uid);
            let nano_cores = stats.cpu_usage_nano_cores.or(stats
                .cpu_usage_core_nanos
                .and_then(|n| rate(&stats.id, stats.cpu_timestamp, n)));
            let pod = by_uid.entry(uid.clone()).or_insert_with(|| PodUse {
                name: label("io.kubernetes.pod.name"),
                namespace: label("io.kubernetes.pod.namespace"),
                started: entry
                    .and_then(|e| e.status["startTime"].as_str())
                    .unwrap_or_default()
                    .to_owned(),
                uid,
                containers: Vec::new(),
            });
            let name = stats.metadata.name.clone();
            let started = entry.map(|e| started(e, &name)).unwrap_or_default();
            pod.containers.push(ContainerUse {
                name,
                started,
                stats,
                nano_cores,
            });
        }
        Usage {
            node,
            pods: by_uid.into_values().collect(),
            failed,
        }
    }
}

/// A rate from this sample and the last; too short a span keeps the last, and so does a counter that went back.
fn next_sample(last: Option<Sample>, time: i64, nanos: u64) -> Sample {
    let Some(before) = last else {
        return Sample {
            time,
            nanos,
            rate: None,
        };
    };
    let span = time.saturating_sub(before.time);
    match nanos.checked_sub(before.nanos) {
        Some(used) if span >= RATE_SPAN => {
            let rate = u128::from(used) * 1_000_000_000 / u128::from(span.unsigned_abs());
            Sample {
                time,
                nanos,
                rate: u64::try_from(rate).ok(),
            }
        }
        Some(_) => before,
        None => Sample {
            time,
            nanos,
            rate: None,
        },
    }
}

fn started(entry: &PodEntry, container: &str) -> String {
    let status = entry.container_status(container);
    status
        .and_then(|s| s["state"]["running"]["startedAt"].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn node_use(root: &std::path::Path) -> NodeUse {
    let time = i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX);
    let levels = machine::levels(root);
    let up = i64::try_from(crate::node::boottime().as_nanos()).unwrap_or(0);
    NodeUse {
        time,
        cpu_nanos: cpu_nanos(&std::fs::read_to_string("/proc/stat").unwrap_or_default()),
        nano_cores: None,
        memory: levels.memory,
        disk: levels.disk,
        inodes: levels.inodes,
        pids: levels.pids,
        booted: time.saturating_sub(up),
    }
}

/// CPU time that was not idle, of /proc/stat's first line, which counts hundredths of a second.
fn cpu_nanos(stat: &str) -> u64 {
    let words = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = words.filter_map(|w| w.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|&n| ticks.get(n)).sum::<u64>();
    busy.saturating_mul(10_000_000)
}

fn escape(label: &str) -> String {
    label.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// One metric family of /metrics/resource.
struct Family {
    text: String,
}

impl Family {
    fn new(name: &str, kind: &str, help: &str) -> Self {
        Self {
            text: format!("# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}\n"),
        }
    }

    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64, time: Option<i64>) {
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        let time = time.map(|t| format!(" {}", t / 1_000_000)).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}{labels} {value}{time}");
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn unix_seconds(rfc3339: &str) -> Option<f64> {
    let time = OffsetDateTime::parse(rfc3339, &Rfc3339).ok()?;
    Some(time.unix_timestamp_nanos() as f64 / 1e9)
}

/// The sum, where all have a number.
fn sum(pod: &PodUse, of: impl Fn(&ContainerStats) -> Option<u64>) -> Option<u64> {
    pod.containers.iter().map(|c| of(&c.stats)).sum()
}

/// /metrics/resource: what metrics-server reads.
pub fn resource_metrics(usage: &Usage) -> String {
    let cpu_name = "container_cpu_usage_seconds_total";
    let memory_name = "container_memory_working_set_bytes";
    let start_name = "container_start_time_seconds";
    let mut cpu = Family::new(
        cpu_name,
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    let mut memory = Family::new(memory_name, "gauge", "Current working set of the container in bytes");
    let mut start = Family::new(
        start_name,
        "gauge",
        "Start time of the container since unix epoch in seconds",
    );
    let mut pod_cpu = Family::new(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    let mut pod_memory = Family::new(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
    );
    for pod in &usage.pods {
        let of_pod = [("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())];
        for container in &pod.containers {
            let labels = [("container", container.name.as_str()), of_pod[0], of_pod[1]];
            let stats = &container.stats;
            if let Some(nanos) = stats.cpu_usage_core_nanos {
                cpu.add(cpu_name, &labels, seconds(nanos), Some(stats.cpu_timestamp));
            }
            if let Some(bytes) = stats.memory_working_set {
                memory.add(memory_name, &labels, bytes as f64, Some(stats.memory_timestamp));
            }
            if let Some(at) = unix_seconds(&container.started) {
                start.add(start_name, &labels, at, None);
            }
        }
        let newest = pod.containers.iter().map(|c| c.stats.cpu_timestamp).max();
        if let Some(nanos) = sum(pod, |s| s.cpu_usage_core_nanos) {
            pod_cpu.add("pod_cpu_usage_seconds_total", &of_pod, seconds(nanos), newest);
        }
        if let Some(bytes) = sum(pod, |s| s.memory_working_set) {
            pod_memory.add("pod_memory_working_set_bytes", &of_pod, bytes as f64, newest);
        }
    }
    let mut all = vec![cpu, memory, start];
    all.extend(node_metrics(usage));
    all.extend([pod_cpu, pod_memory]);
    all.into_iter().map(|family| family.text).collect()
}

fn node_metrics(usage: &Usage) -> [Family; 3] {
    let node = &usage.node;
    let mut cpu = Family::new(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    cpu.add(
        "node_cpu_usage_seconds_total",
        &[],
        seconds(node.cpu_nanos),
        Some(node.time),
    );
    let mut memory = Family::new(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
    );
    memory.add(
        "node_memory_working_set_bytes",
        &[],
        used(node.memory) as f64,
        Some(node.time),
    );
    let mut error = Family::new(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    error.add("resource_scrape_error", &[], f64::from(u8::from(usage.failed)), None);
    [cpu, memory, error]
}

fn used(level: Level) -> u64 {
    level.total.saturating_sub(level.available)
}

fn rfc3339(nanos: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).ok();
    let time = time.and_then(|t| t.replace_nanosecond(0).ok());
    time.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Leaves out what is not known, as kubelet's omitempty does.
fn known(fields: &[(&str, Option<Value>)]) -> Value {
    fields
        .iter()
        .filter_map(|(name, value)| Some(((*name).to_owned(), value.clone()?)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn file_system(time: i64, disk: Level, inodes: Level) -> Value {
    json!({
        "time": rfc3339(time),
        "availableBytes": disk.available, "capacityBytes": disk.total, "usedBytes": used(disk),
        "inodesFree": inodes.available, "inodes": inodes.total, "inodesUsed": used(inodes),
    })
}

/// /stats/summary.
pub fn summary(node_name: &str, usage: &Usage) -> Value {
    let node = &usage.node;
    json!({
        "node": {
            "nodeName": node_name,
            "startTime": rfc3339(node.booted),
            "cpu": known(&[
                ("time", Some(rfc3339(node.time).into())),
                ("usageNanoCores", node.nano_cores.map(Into::into)),
                ("usageCoreNanoSeconds", Some(node.cpu_nanos.into())),
            ]),
            "memory": {
                "time": rfc3339(node.time),
                "availableBytes": node.memory.available,
                "usageBytes": used(node.memory),
                "workingSetBytes": used(node.memory),
            },
            "fs": file_system(node.time, node.disk, node.inodes),
            "rlimit": {"time": rfc3339(node.time), "maxpid": node.pids.total, "curproc": used(node.pids)},
        },
        "pods": usage.pods.iter().map(pod_summary).collect::<Vec<_>>(),
    })
}

fn pod_summary(pod: &PodUse) -> Value {
    let newest = pod.containers.iter().map(|c| c.stats.cpu_timestamp).max().unwrap_or(0);
    let cores = pod.containers.iter().map(|c| c.nano_cores).sum::<Option<u64>>();
    json!({
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": pod.started,
        "containers": pod.containers.iter().map(container_summary).collect::<Vec<_>>(),
        "cpu": known(&[
            ("time", Some(rfc3339(newest).into())),
            ("usageNanoCores", cores.map(Into::into)),
            ("usageCoreNanoSeconds", sum(pod, |s| s.cpu_usage_core_nanos).map(Into::into)),
        ]),
        "memory": known(&[
            ("time", Some(rfc3339(newest).into())),
            ("workingSetBytes", sum(pod, |s| s.memory_working_set).map(Into::into)),
            ("usageBytes", sum(pod, |s| s.memory_usage).map(Into::into)),
            ("rssBytes", sum(pod, |s| s.memory_rss).map(Into::into)),
        ]),
    })
}

fn container_summary(container: &ContainerUse) -> Value {
    let stats = &container.stats;
    let layer = stats.writable_layer.as_ref();
    json!({
        "name": container.name,
        "startTime": container.started,
        "cpu": known(&[
            ("time", Some(rfc3339(stats.cpu_timestamp).into())),
            ("usageNanoCores", container.nano_cores.map(Into::into)),
            ("usageCoreNanoSeconds", stats.cpu_usage_core_nanos.map(Into::into)),
        ]),
        "memory": known(&[
            ("time", Some(rfc3339(stats.memory_timestamp).into())),
            ("availableBytes", stats.memory_available.map(Into::into)),
            ("usageBytes", stats.memory_usage.map(Into::into)),
            ("workingSetBytes", stats.memory_working_set.map(Into::into)),
            ("rssBytes", stats.memory_rss.map(Into::into)),
            ("pageFaults", stats.page_faults.map(Into::into)),
            ("majorPageFaults", stats.major_page_faults.map(Into::into)),
        ]),
        "rootfs": known(&[
            ("time", layer.map(|l| rfc3339(l.timestamp).into())),
            ("usedBytes", layer.map(|l| l.used_bytes.into())),
            ("inodesUsed", layer.map(|l| l.inodes_used.into())),
        ]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_samples_and_a_second() {
        let first = next_sample(None, 0, 100);
        assert_eq!(first.rate, None);
        let second = next_sample(Some(first), 2_000_000_000, 1_000_000_100);
        assert_eq!(second.rate, Some(500_000_000));
        assert_eq!(
            next_sample(Some(second), 2_000_000_001, 1_000_000_101).rate,
            Some(500_000_000)
        );
        assert_eq!(
            next_sample(Some(second), 4_000_000_000, 1).rate,
            None,
            "the container was restarted"
        );
    }

    #[test]
    fn metrics_server_finds_its_families_with_labels_and_times() {
        let stats = ContainerStats {
            cpu_timestamp: 5_000_000,
            cpu_usage_core_nanos: Some(1_500_000_000),
            memory_timestamp: 6_000_000,
            memory_working_set: Some(7),
            ..ContainerStats::default()
        };
        let container = ContainerUse {
            name: "c".into(),
            started: "1970-01-01T00:00:02Z".into(),
            stats,
            nano_cores: None,
        };
        let pod = PodUse {
            name: "p\"".into(),
            namespace: "n".into(),
            containers: vec![container],
            ..PodUse::default()
        };
        let text = resource_metrics(&Usage {
            pods: vec![pod],
            ..Usage::default()
        });
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\\\"\"} 1.5 5",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\\\"\"} 7 6",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\\\"\"} 2",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\\\"\"} 1.5 5",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.contains("# TYPE node_memory_working_set_bytes gauge"));
    }

    #[test]
    fn proc_stat_counts_what_is_not_idle() {
        assert_eq!(cpu_nanos("cpu  10 1 5 1000 50 2 3 4 9 9\ncpu0 1"), 25 * 10_000_000);
        assert_eq!(cpu_nanos(""), 0);
    }
}
