//! Suite `metrics`: a real metrics-server above a real kube-apiserver scrapes the kubelet API that the hub serves for an edge node; the
//! hub's own API shows the same by itself.

use std::time::Duration;

use kit::hub::Above;
use kit::kubectl::Kubectl;
use kit::metrics_server::MetricsServer;
use kit::suite::{START, Start, kubernetes, robot};
use kit::wait::State;
use kit::{Site, above_both, wait_for, yaml};
use serde_json::Value;

above_both!(kubectl_get_prints_metrics_as_metrics_server_does);

/// Two scrapes of 10 s each make a rate; a busy machine misses some.
const SCRAPED: Duration = Duration::from_secs(120);

/// The figures of a raw path of metrics.k8s.io, once they are there.
fn figures(kubectl: &Kubectl, server: &MetricsServer, path: &str) -> Value {
    let path = format!("/apis/metrics.k8s.io/v1beta1/{path}");
    let (found, _) = wait_for(&format!("figures at {path}"), SCRAPED, || {
        match kubectl.run(&["get", "--raw", &path]) {
            Ok(text) => State::Done(text),
            Err(error) => State::Not(format!("{error}\n{}", server.tail())),
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    serde_json::from_str(&found).expect("JSON")
}

/// `12345Ki` in bytes, `12345n` in billionths.
fn number(quantity: &Value, unit: &str, factor: u64) -> u64 {
    let text = quantity.as_str().unwrap_or_else(|| panic!("{quantity}"));
    let digits = text.strip_suffix(unit).unwrap_or_else(|| panic!("{text} in {unit}"));
    digits.parse::<u64>().unwrap_or_else(|e| panic!("{text}: {e}")) * factor
}

#[test]
fn kubectl_top_shows_an_edge_node_and_its_pods() {
    let site = Site::new().expect("a site");
    let hub = kubernetes(&site);
    let Above::Kubernetes(plane, _) = &hub.above else {
        panic!("a hub above a real control plane")
    };
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    let busy = yaml::shell_pod("busy", "while true; do :; done");
    hub.kubectl.apply(&busy).expect("apply");
    for pod in ["web", "busy"] {
        hub.kubectl
            .wait_ready(pod, START)
            .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    }
    let server = MetricsServer::start(&site, plane).expect("metrics-server");
    let node = figures(&hub.kubectl, &server, "nodes/robot-1");
    let memory = number(&node["usage"]["memory"], "Ki", 1024);
    assert!(memory > 100 << 20, "a machine uses more than 100 MiB: {node}");
    let busy = figures(&hub.kubectl, &server, "namespaces/default/pods/busy");
    let usage = &busy["containers"][0]["usage"];
    assert_eq!(busy["containers"][0]["name"], "main");
    // A loop that never waits: even a machine that is shared by many gives it a hundredth of a core.
    assert!(number(&usage["cpu"], "n", 1) > 10_000_000, "{busy}");
    let memory = number(&usage["memory"], "Ki", 1024);
    assert!((1 << 12..64 << 20).contains(&memory), "{busy}");

    let top = |args: &[&str]| {
        hub.kubectl
            .run(args)
            .unwrap_or_else(|e| panic!("{e}\n{}", server.tail()))
    };
    let nodes = top(&["top", "node"]);
    assert!(
        nodes.contains("robot-1") && nodes.contains('%') && !nodes.contains("<unknown>"),
        "{nodes}"
    );
    figures(&hub.kubectl, &server, "namespaces/default/pods/web");
    let pods = top(&["top", "pod", "--containers"]);
    assert!(
        pods.lines().any(|l| l.starts_with("busy") && l.contains("main")),
        "{pods}"
    );
    assert!(
        pods.lines().any(|l| l.starts_with("web") && l.contains("main")),
        "{pods}"
    );
}

/// The words of the lines that kubectl prints of `what`, once there are any below the head.
fn printed(kubectl: &Kubectl, what: &str) -> Vec<Vec<String>> {
    let (lines, _) = wait_for(&format!("kubectl get {what}"), SCRAPED, || {
        let text = match kubectl.run(&["get", what]) {
            Ok(text) => text,
            Err(error) => return State::Not(error.to_string()),
        };
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = text.lines().map(words).collect();
        if lines.len() > 1 {
            State::Done(lines)
        } else {
            State::Not(text)
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    lines
}

fn kubectl_get_prints_metrics_as_metrics_server_does(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl
        .apply(&yaml::shell_pod("busy", "while true; do :; done"))
        .expect("apply");
    hub.kubectl
        .wait_ready("busy", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let _server = match &hub.above {
        Above::Kubernetes(plane, _) => Some(MetricsServer::start(&site, plane).expect("metrics-server")),
        Above::Embedded | Above::Other(_) => None,
    };
    for (what, name) in [("nodemetrics", "robot-1"), ("podmetrics", "busy")] {
        let lines = printed(&hub.kubectl, what);
        assert_eq!(lines[0], ["NAME", "CPU", "MEMORY", "WINDOW"], "{what}");
        let [shown, cpu, memory, window] = lines[1].as_slice() else {
            panic!("{what}: {lines:?}")
        };
        assert_eq!(shown, name);
        assert!(
            cpu.ends_with(['n', 'u', 'm']) || cpu.parse::<u32>().is_ok(),
            "{what}: {cpu}"
        );
        assert!(memory.ends_with("Ki") || memory.ends_with("Mi"), "{what}: {memory}");
        assert!(window.ends_with('s'), "{what}: {window}");
    }
    let none = hub
        .kubectl
        .run(&["get", "podmetrics", "-n", "kube-public", "-o", "name"]);
    assert_eq!(none.expect("an empty list"), "");
}
