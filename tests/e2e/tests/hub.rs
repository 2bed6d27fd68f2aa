//! The hub above an unmodified kube-apiserver and above its own API, with exactly the rights of installer/deploy: what it does with no edge
//! in a session.

use std::time::Duration;

use kit::kubectl::{condition, is_true};
use kit::site::{HUB, JOIN_PORT};
use kit::{Hub, Site, paths};
use serde_json::Value;

/// What a busy machine of two cores may need.
const SOON: Duration = Duration::from_secs(60);

fn join(site: &Site, hub: &Hub, node: &str) {
    let (token, hash) = hub.token(node).expect("a token");
    let dir = site.dir().join(node);
    let mut command = site.command("hub", &paths::ours("kedge"));
    command.args([
        "join",
        "--hub",
        &format!("{HUB}:{JOIN_PORT}"),
        "--token",
        &token,
        "--ca-hash",
        &hash,
    ]);
    command
        .arg("--config-dir")
        .arg(dir.join("etc"))
        .arg("--state-dir")
        .arg(dir.join("edge"));
    let output = command.output().expect("kedge");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn limits(pod: &Value) -> usize {
    let tolerations = pod["spec"]["tolerations"].as_array().expect("tolerations");
    tolerations.iter().filter(|t| !t["tolerationSeconds"].is_null()).count()
}

fn pod(name: &str, labels: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{{labels}}}}}, \
         spec: {{nodeName: robot-1, containers: [{{name: c, image: kedge.dev/pause:1}}]}}}}"
    )
}

#[test]
fn above_kubernetes_a_joined_robot_has_a_node_that_comes_back_and_patient_pods() {
    let site = Site::new().expect("a site");
    keeps_its_node_and_patience(&site, &Hub::start(&site).expect("a hub"));
}

#[test]
fn above_embedded_a_joined_robot_has_a_node_that_comes_back_and_patient_pods() {
    let site = Site::new().expect("a site");
    keeps_its_node_and_patience(&site, &Hub::embedded(&site).expect("a hub"));
}

fn keeps_its_node_and_patience(site: &Site, hub: &Hub) {
    join(site, hub, "robot-1");
    let is_edge = |node: &Value| node["metadata"]["labels"]["kedge.dev/edge"] == "true";
    let show = |error| panic!("{error}\n{}", hub.tail());
    let (first, _) = hub
        .kubectl
        .wait(&["node", "robot-1"], SOON, is_edge)
        .unwrap_or_else(show);

    hub.kubectl.apply(&pod("patient", "a: b")).expect("apply");
    hub.kubectl
        .wait(&["pod", "patient"], SOON, |p| limits(p) == 0)
        .unwrap_or_else(show);
    hub.kubectl
        .apply(&pod("replaced", "kedge.dev/failover: 'true'"))
        .expect("apply");
    hub.kubectl.apply(&pod("later", "a: b")).expect("apply");
    hub.kubectl
        .wait(&["pod", "later"], SOON, |p| limits(p) == 0)
        .unwrap_or_else(show);
    let replaced = hub
        .kubectl
        .get(&["pod", "replaced"])
        .expect("get")
        .expect("it is there");
    assert_eq!(limits(&replaced), 2, "a pod that opts into failover keeps its limits");

    hub.kubectl.run(&["delete", "node", "robot-1"]).expect("delete");
    let again = |node: &Value| is_edge(node) && node["metadata"]["uid"] != first["metadata"]["uid"];
    hub.kubectl.wait(&["node", "robot-1"], SOON, again).unwrap_or_else(show);

    let revoked = hub.kedge(&["node", "revoke", "robot-1"]).output().expect("kedge");
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    std::thread::sleep(Duration::from_secs(2));
    hub.kubectl.run(&["delete", "node", "robot-1"]).expect("delete");
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        hub.kubectl.get(&["node", "robot-1"]).expect("get").is_none(),
        "a revoked robot's node stays away"
    );
    assert!(!hub.tail().contains("orbidden"), "{}", hub.tail());
}

#[test]
fn a_robot_that_went_while_no_hub_was_there_is_noticed() {
    let site = Site::new().expect("a site");
    let mut hub = kit::suite::embedded(&site);
    let edge = kit::suite::robot(&site, &hub);
    hub.kill();
    edge.set_link(false).expect("cut");
    hub.restart().expect("the hub");
    let connected = |node: &Value| condition(node, "EdgeConnected").cloned().unwrap_or_default();
    let away = |node: &Value| connected(node)["status"] == "False" && connected(node)["reason"] == "LinkLost";
    hub.kubectl
        .wait(&["node", "robot-1"], Duration::from_secs(90), away)
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    edge.set_link(true).expect("restore");
    hub.kubectl
        .wait(&["node", "robot-1"], SOON, |node| connected(node)["status"] == "True")
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", hub.tail(), edge.tail()));
}

/// To this very hub, over its tunnel's own address: the robot goes, and is there again at once. Two hubs are in the tunnel's tests.
#[test]
fn a_robot_is_sent_to_another_address() {
    let site = Site::new().expect("a site");
    let hub = kit::suite::embedded(&site);
    let edge = kit::suite::robot(&site, &hub);
    hub.kubectl
        .apply(&kit::yaml::shell_pod("web", "exec sleep 1000"))
        .expect("apply");
    let before = edge.wait_container("web", SOON).expect("runs");
    let socket = hub.dir().join("cloudhub.sock").display().to_string();
    let redirect = |node: &str, to: &str| {
        let mut kedge = hub.kedge(&["node", "redirect", node, "--to", to, "--socket", &socket]);
        let output = kedge.output().expect("kedge");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.success(), said.concat())
    };
    let (done, said) = redirect("robot-2", "hub:6444");
    assert!(
        !done && said.contains("node \"robot-2\" has no session with this hub"),
        "{said}"
    );
    let (done, said) = redirect("robot-1", "hub");
    assert!(
        !done && said.contains("\"hub\" is not 1 to 8 addresses HOST:PORT"),
        "{said}"
    );

    let to = format!("{HUB}:{JOIN_PORT}");
    let (done, said) = redirect("robot-1", &to);
    assert!(
        done && said.contains(&format!("robot-1 is told to go to {to}")),
        "{said}"
    );
    let told = format!("redirected to {to}");
    kit::wait_for("the robot's next session", SOON, || {
        let log = edge.log();
        match log.split_once(&told) {
            Some((_, after)) if after.contains("session with the hub") => kit::wait::State::Done(()),
            _ => kit::wait::State::Not(log),
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    hub.kubectl
        .run(&["exec", "web", "--", "true"])
        .expect("the robot is there");
    let after = edge.wait_container("web", SOON).expect("runs");
    assert_eq!((after.id, after.pid), (before.id, before.pid), "the same container");
    let node = hub
        .kubectl
        .get(&["node", "robot-1"])
        .expect("get")
        .expect("it is there");
    assert!(
        condition(&node, "EdgeConnected").is_some_and(|c| c["status"] == "True"),
        "{node}"
    );
}

#[test]
fn a_robot_whose_runtime_is_down_says_so_and_its_containers_run_on() {
    let site = Site::new().expect("a site");
    let hub = kit::suite::embedded(&site);
    let mut edge = kit::suite::robot(&site, &hub);
    hub.kubectl
        .apply(&kit::yaml::shell_pod("web", "exec sleep 1000"))
        .expect("apply");
    let before = edge.wait_container("web", SOON).expect("runs");
    edge.kill_containerd();
    let says = |node: &Value, status: &str, reason: &str| {
        condition(node, "EdgeConnected").is_some_and(|c| c["status"] == status && c["reason"] == reason)
    };
    hub.kubectl
        .wait(&["node", "robot-1"], SOON, |node| {
            says(node, "False", "RuntimeDown") && !is_true(node, "Ready")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", hub.tail(), edge.tail()));
    edge.start_containerd().expect("containerd");
    hub.kubectl
        .wait(&["node", "robot-1"], SOON, |node| {
            says(node, "True", "Connected") && is_true(node, "Ready")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", hub.tail(), edge.tail()));
    let after = edge.wait_container("web", SOON).expect("runs");
    assert_eq!((after.id, after.pid), (before.id, before.pid), "the same container");
    let events = hub.kubectl.run(&["get", "events", "-o", "wide"]).expect("events");
    assert!(events.contains("RuntimeDown"), "{events}");
}
