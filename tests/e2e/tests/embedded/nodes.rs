//! Nodes: taint, cordon, drain with a disruption budget, describe.

use kit::Site;

use crate::bench::Bench;

#[test]
fn a_node_is_tainted_cordoned_and_drained() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let _kubelet = b.node("n1");
    let node = b.wait(&["node", "n1"], |node| node["spec"]["podCIDR"].is_string());
    assert!(
        node["spec"]["podCIDR"]
            .as_str()
            .unwrap_or_default()
            .starts_with("10.244."),
        "{node:#}"
    );
    b.shows(
        &["get", "nodes", "-o", "wide"],
        &["n1", "Ready", "v1.36.3", "10.0.0.9", "Debian", "containerd://2.0"],
    );
    b.ok(&["taint", "nodes", "n1", "dedicated=robots:NoSchedule"]);
    b.shows(
        &["describe", "node", "n1"],
        &[
            "dedicated=robots:NoSchedule",
            "PodCIDR:",
            "Allocated resources:",
            "Non-terminated Pods:",
        ],
    );
    b.ok(&[
        "create",
        "deployment",
        "web",
        "--image=kedge.dev/demo:1",
        "--replicas=2",
    ]);
    b.wait_text("an event", "untolerated taint", || {
        b.ok(&["get", "events", "--field-selector", "reason=FailedScheduling"])
    });
    b.ok(&["taint", "nodes", "n1", "dedicated-"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    is_drained_within_its_budget(&b);
    b.ok(&["debug", "node/n1", "--image=kedge.dev/demo:1", "--", "sh"]);
    b.shows(&["get", "pods", "-o", "name"], &["pod/node-debugger-n1-"]);
    b.ok(&["delete", "node", "n1"]);
    b.is_gone(&["node", "n1"]);
}

fn is_drained_within_its_budget(b: &Bench<'_>) {
    b.ok(&["cordon", "n1"]);
    b.shows(&["get", "node", "n1"], &["Ready,SchedulingDisabled"]);
    b.ok(&["uncordon", "n1"]);
    b.ok(&["create", "pdb", "web", "--selector=app=web", "--min-available=2"]);
    b.wait(&["pdb", "web"], |pdb| {
        pdb["status"]["currentHealthy"] == 2 && pdb["status"]["disruptionsAllowed"] == 0
    });
    b.shows(&["get", "pdb", "web"], &["MIN AVAILABLE", "ALLOWED DISRUPTIONS"]);
    b.refuses(
        &["drain", "n1", "--timeout=8s"],
        &["Cannot evict pod as it would violate the pod's disruption budget"],
    );
    b.ok(&["delete", "pdb", "web"]);
    b.shows(
        &["drain", "n1", "--ignore-daemonsets", "--timeout=60s"],
        &["drained", "evicting pod default/web-"],
    );
    let bound = b.ok(&["get", "pods", "--field-selector", "spec.nodeName=n1", "-o", "name"]);
    assert_eq!(bound, "", "nothing is left on it");
    b.ok(&["uncordon", "n1"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

#[test]
fn a_lone_pod_is_drained_by_force_only() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let _kubelet = b.node("n1");
    b.ok(&["run", "lone", "--image=kedge.dev/demo:1"]);
    b.ok(&["wait", "pod/lone", "--for=condition=Ready", "--timeout=60s"]);
    b.refuses(&["drain", "n1", "--timeout=20s"], &["cannot delete"]);
    b.ok(&["drain", "n1", "--force", "--timeout=60s"]);
    b.is_gone(&["pod", "lone"]);
}
