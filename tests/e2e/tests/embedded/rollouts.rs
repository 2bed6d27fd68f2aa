//! Workloads: scale, set image, rollout, wait, cascades.

use kit::Site;
use serde_json::Value;

use crate::bench::Bench;

fn items(list: &Value) -> usize {
    list["items"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_deployment_is_scaled_rolled_out_and_back() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let _kubelet = b.node("n1");
    b.ok(&[
        "create",
        "deployment",
        "web",
        "--image=kedge.dev/demo:1",
        "--replicas=2",
    ]);
    b.shows(
        &["rollout", "status", "deployment/web", "--timeout=60s"],
        &["successfully rolled out"],
    );
    b.ok(&["wait", "deployment/web", "--for=condition=Available", "--timeout=60s"]);
    b.ok(&[
        "wait",
        "deployment/web",
        "--for=jsonpath={.status.readyReplicas}=2",
        "--timeout=60s",
    ]);
    b.shows(
        &["get", "deployment", "web", "-o", "wide"],
        &["READY", "UP-TO-DATE", "AVAILABLE", "2/2", "kedge.dev/demo:1", "app=web"],
    );
    b.shows(&["get", "replicasets"], &["DESIRED", "CURRENT", "READY"]);
    b.shows(
        &["describe", "deployment", "web"],
        &["ScalingReplicaSet", "NewReplicaSet:", "RollingUpdateStrategy"],
    );
    b.shows(
        &["events", "--for", "deployment/web"],
        &["ScalingReplicaSet", "Scaled up replica set"],
    );
    b.ok(&["scale", "deployment/web", "--replicas=3"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    b.wait(&["pods", "-l", "app=web"], |pods| items(pods) == 3);
    b.refuses(
        &["scale", "deployment/web", "--replicas=1", "--current-replicas=7"],
        &["Expected replicas to be 7, was 3"],
    );
    rolls_out_and_back(&b);
    pauses_and_restarts(&b);
}

fn rolls_out_and_back(b: &Bench<'_>) {
    b.ok(&["set", "image", "deployment/web", "demo=kedge.dev/demo:2"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let history = b.ok(&["rollout", "history", "deployment/web"]);
    assert!(
        history.contains("REVISION") && history.lines().any(|line| line.starts_with('2')),
        "{history}"
    );
    b.shows(
        &["rollout", "history", "deployment/web", "--revision=1"],
        &["kedge.dev/demo:1"],
    );
    b.ok(&["rollout", "undo", "deployment/web"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let image = [
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ];
    assert_eq!(b.ok(&image), "kedge.dev/demo:1");
}

fn pauses_and_restarts(b: &Bench<'_>) {
    let observed = |d: &Value| d["status"]["observedGeneration"] == d["metadata"]["generation"];
    b.ok(&["rollout", "pause", "deployment/web"]);
    let sets = items(&b.get(&["replicasets"]));
    b.ok(&["set", "env", "deployment/web", "COLOUR=blue"]);
    b.wait(&["deployment", "web"], observed);
    assert_eq!(
        items(&b.get(&["replicasets"])),
        sets,
        "nothing is rolled out while it is paused"
    );
    b.refuses(
        &["rollout", "restart", "deployment/web"],
        &["can't restart paused deployment"],
    );
    b.ok(&["rollout", "resume", "deployment/web"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    b.wait(&["replicasets"], |list| items(list) == sets + 1);
    b.ok(&["rollout", "restart", "deployment/web"]);
    b.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let annotation = "kubectl.kubernetes.io/restartedAt";
    let web = b.get(&["deployment", "web"]);
    assert!(
        web["spec"]["template"]["metadata"]["annotations"][annotation].is_string(),
        "{web:#}"
    );
}

#[test]
fn what_is_owned_goes_or_stays_as_the_cascade_says() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let _kubelet = b.node("n1");
    for name in ["kept", "gone", "later"] {
        b.ok(&["create", "deployment", name, "--image=kedge.dev/demo:1"]);
        b.ok(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    }
    b.ok(&["delete", "deployment", "kept", "--cascade=orphan", "--timeout=60s"]);
    b.wait(&["replicasets", "-l", "app=kept"], |sets| {
        items(sets) == 1 && sets["items"][0]["metadata"]["ownerReferences"].is_null()
    });
    assert_eq!(items(&b.get(&["pods", "-l", "app=kept"])), 1, "its pod lives on");
    b.ok(&["delete", "deployment", "gone", "--cascade=foreground", "--timeout=60s"]);
    for kind in ["deployments", "replicasets", "pods"] {
        assert_eq!(
            items(&b.get(&[kind, "-l", "app=gone"])),
            0,
            "foreground: no {kind} is left when kubectl returns"
        );
    }
    b.ok(&["delete", "deployment", "later", "--timeout=60s"]);
    b.wait(&["pods,replicasets", "-l", "app=later"], |list| items(list) == 0);
    b.ok(&["delete", "rs", "-l", "app=kept"]);
    b.ok(&["wait", "pods", "-l", "app=kept", "--for=delete", "--timeout=60s"]);
}

#[test]
fn a_daemonset_is_on_each_node_and_rolls_out() {
    let site = Site::new().expect("a site");
    let b = Bench::new(&site);
    let _kubelets = (b.node("n1"), b.node("n2"));
    let yaml = kit::yaml::WORKLOADS.split("---\n").nth(1).expect("the DaemonSet");
    b.ok_with(&["apply", "-f", "-"], yaml);
    b.shows(
        &["rollout", "status", "daemonset/agent", "--timeout=60s"],
        &["successfully rolled out"],
    );
    b.shows(&["get", "daemonset", "agent"], &["DESIRED", "NODE SELECTOR", "2"]);
    let nodes = b.ok(&[
        "get",
        "pods",
        "-l",
        "app=agent",
        "--sort-by=.spec.nodeName",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ]);
    assert_eq!(nodes, "n1 n2");
    b.ok(&["set", "env", "daemonset/agent", "COLOUR=blue"]);
    b.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    b.shows(&["rollout", "history", "daemonset/agent"], &["REVISION", "1", "2"]);
    b.ok(&["rollout", "undo", "daemonset/agent"]);
    b.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let env = b.get(&["daemonset", "agent"]);
    assert!(
        env["spec"]["template"]["spec"]["containers"][0]["env"].is_null(),
        "{env:#}"
    );
    b.ok(&["delete", "daemonset", "agent", "--cascade=foreground", "--timeout=60s"]);
    assert_eq!(items(&b.get(&["pods", "-l", "app=agent"])), 0);
}
