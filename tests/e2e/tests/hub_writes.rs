//! Suite `hub_writes`: what the hub writes to the API: how often, how soon, and what it says of nodes that are away.

use std::fs;
use std::time::{Duration, Instant};

use kit::kubectl::{condition, is_true};
use kit::plane::Options;
use kit::suite::{START, Start, robot};
use kit::wait::State;
use kit::{Above, ControlPlane, Edge, Hub, Site, above_both, wait_for, yaml};
use serde_json::Value;

above_both!(
    edge_connected_says_why_a_robot_is_away_or_back,
    status_is_right_soon_after_the_session,
);

/// Runs on until it is told to end.
const FOREVER: &str = "trap 'exit 0' TERM; echo started; while true; do sleep 1; done";
/// The hub promises 2 s; the rest is for a machine of two cores that others use too.
const SOON: Duration = Duration::from_secs(15);

fn apply_ready(hub: &Hub, edge: &Edge, name: &str, manifest: &str) -> Value {
    hub.kubectl.apply(manifest).unwrap_or_else(|e| panic!("{e}"));
    let (pod, _) = hub
        .kubectl
        .wait_ready(name, START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    pod
}

fn bound_pod(name: &str, script: &str) -> String {
    yaml::shell_pod(name, script).replace("spec:\n", "spec:\n  nodeName: robot-1\n")
}

/// What the hub has asked of the API, as whoever, since the first `from` events: verb, resource with subresource, name.
fn writes(hub: &Hub, from: usize) -> Vec<(String, String, String)> {
    let events = audited(hub);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours = events
        .iter()
        .skip(from)
        .filter(|e| e["user"]["username"] == "kedge:cloudhub");
    let writes = ours.filter(|e| matches!(e["verb"].as_str(), Some("create" | "update" | "patch" | "delete")));
    writes
        .map(|e| {
            let on = &e["objectRef"];
            let resource = match text(&on["subresource"]) {
                sub if sub.is_empty() => text(&on["resource"]),
                sub => format!("{}/{sub}", text(&on["resource"])),
            };
            (text(&e["verb"]), resource, text(&on["name"]))
        })
        .collect()
}

/// Nobody lists all pods of a cluster for a robot that joins.
fn a_joining_robot_is_listed_alone(hub: &Hub) {
    let mut lists = answered_lists(hub);
    lists.retain(|(_, uri)| uri.starts_with("/api/v1/pods?"));
    let alone = lists.iter().filter(|(_, uri)| uri.contains("spec.nodeName=robot-1&"));
    assert_eq!(
        (alone.count(), lists.len()),
        (1, 2),
        "all, when the hub started, and its own: {lists:?}"
    );
}

/// Who has listed what, by the hub, and was answered.
fn answered_lists(hub: &Hub) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = audited(hub);
    let ours = events.iter().filter(|e| {
        e["user"]["username"] == "kedge:cloudhub" && e["verb"] == "list" && e["responseStatus"]["code"] == 200
    });
    let each = ours.map(|e| (text(&e["impersonatedUser"]["username"]), text(&e["requestURI"])));
    each.collect()
}

fn events_so_far(hub: &Hub) -> usize {
    let Above::Kubernetes(plane, _) = &hub.above else {
        return 0;
    };
    plane.audit().expect("the audit log").len()
}

/// The writes about pods and what they name. The node's lease, its own status and its events have their own rhythm.
fn about_pods(hub: &Hub, from: usize) -> Vec<(String, String, String)> {
    let mut writes = writes(hub, from);
    writes.retain(|(_, resource, _)| !["leases", "nodes/status", "events", "nodes"].contains(&resource.as_str()));
    // A token is asked for, nothing is stored.
    writes.retain(|(_, resource, _)| resource != "serviceaccounts/token" && !resource.ends_with("reviews"));
    writes
}

const SWITCHED: &str = r"apiVersion: v1
kind: ConfigMap
metadata: {name: switched-config}
data: {n: '0'}
---
apiVersion: v1
kind: Pod
metadata: {name: switched}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: kedge.dev/demo:1
    command: [sh, -c, 'touch /tmp/ready; exec sleep 100000']
    readinessProbe: {exec: {command: [test, -f, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: c, mountPath: /etc/c}]
  volumes: [{name: c, configMap: {name: switched-config}}]
";

#[test]
fn delivery_costs_no_write_a_status_change_one_a_binding_one() {
    let site = Site::new().expect("a site");
    let options = Options {
        audit: true,
        ..Options::default()
    };
    let plane = ControlPlane::start(&site, &options).expect("a control plane");
    let hub = Hub::above(&site, plane).expect("a hub");
    let edge = robot(&site, &hub);
    a_joining_robot_is_listed_alone(&hub);
    let bound = events_so_far(&hub);
    apply_ready(&hub, &edge, "switched", SWITCHED);
    let patched = writes(&hub, bound);
    let patched: Vec<_> = patched.iter().filter(|(_, resource, _)| resource == "pods").collect();
    assert!(
        matches!(patched[..], [(verb, _, name)] if verb == "patch" && name == "switched"),
        "one write at the binding: {patched:?}"
    );
    let container = edge.wait_container("switched", START).expect("it runs");
    let file = format!("/proc/{}/root/etc/c/n", container.pid.expect("it runs"));

    let delivered = events_so_far(&hub);
    for n in 1..=10 {
        set_config(&hub, &n.to_string());
        wait_for("the ConfigMap arrives", START, || match fs::read_to_string(&file) {
            Ok(text) if text == n.to_string() => State::Done(()),
            other => State::Not(format!("{other:?}\n{}", edge.tail())),
        })
        .unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(about_pods(&hub, delivered), [], "ten ConfigMaps delivered");

    for (script, ready) in [("rm /tmp/ready", false), ("touch /tmp/ready", true)] {
        let changed = events_so_far(&hub);
        hub.kubectl
            .run(&["exec", "switched", "--", "sh", "-c", script])
            .expect("exec");
        hub.kubectl
            .wait(&["pod", "switched"], START, |p| is_true(p, "Ready") == ready)
            .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
        // What the API shows is compared with the report again: that must not lead to one more.
        let lease = events_so_far(&hub);
        wait_for("the hub goes on to other things", START, || {
            let since = writes(&hub, lease);
            if since.iter().any(|(_, resource, _)| resource == "leases") {
                State::Done(())
            } else {
                State::Not(format!("{since:?}"))
            }
        })
        .unwrap_or_else(|e| panic!("{e}"));
        let writes = about_pods(&hub, changed);
        assert!(
            matches!(&writes[..], [(verb, resource, name)] if verb == "patch" && resource == "pods/status" && name == "switched"),
            "one write a status change: {writes:?}"
        );
    }
    two_robots_share_a_watch(&site, &hub);
}

fn set_config(hub: &Hub, n: &str) {
    let change = format!(r#"{{"data":{{"n":"{n}"}}}}"#);
    hub.kubectl
        .run(&["patch", "configmap", "switched-config", "-p", &change])
        .expect("patch");
}

/// A ConfigMap that pods of two robots name is watched as one of them, and as the other when the first has no use for it any more.
fn two_robots_share_a_watch(site: &Site, hub: &Hub) {
    let other = other_robot(site, hub);
    let (_, pod) = SWITCHED.split_once("---\n").expect("two objects");
    let pod = pod.replace("name: switched}", "name: sharing}");
    apply_ready(
        hub,
        &other,
        "sharing",
        &pod.replace("spec:\n", "spec:\n  nodeName: robot-2\n"),
    );
    assert_eq!(lists_as(hub, "robot-2"), 1, "asked once whether it may read it");
    hub.kubectl.run(&["delete", "pod", "switched"]).expect("delete");
    wait_for("it is watched as the other", START, || match lists_as(hub, "robot-2") {
        2.. => State::Done(()),
        lists => State::Not(format!("{lists} lists\n{}", hub.tail())),
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let container = other.wait_container("sharing", START).expect("it runs");
    let file = format!("/proc/{}/root/etc/c/n", container.pid.expect("it runs"));
    set_config(hub, "shared");
    wait_for("the ConfigMap arrives", START, || match fs::read_to_string(&file) {
        Ok(text) if text == "shared" => State::Done(()),
        found => State::Not(format!("{found:?}\n{}", other.tail())),
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

/// How often the hub has listed the ConfigMap of [`SWITCHED`] as that node.
fn lists_as(hub: &Hub, node: &str) -> usize {
    let mut lists = answered_lists(hub);
    lists.retain(|(user, uri)| *user == format!("system:node:{node}") && uri.contains("metadata.name=switched-config"));
    lists.len()
}

fn audited(hub: &Hub) -> Vec<Value> {
    let Above::Kubernetes(plane, _) = &hub.above else {
        panic!("only kube-apiserver keeps an audit log")
    };
    plane.audit().expect("the audit log")
}

/// node-monitor-grace-period and the default tolerations, seconds.
const GRACE: u32 = 20;
const TOLERATION: u32 = 5;

fn short() -> Options {
    Options {
        grace_seconds: GRACE,
        toleration_seconds: TOLERATION,
        ..Options::default()
    }
}

#[test]
fn long_outage_above_kubernetes() {
    let site = Site::new().expect("a site");
    let plane = ControlPlane::start(&site, &short()).expect("a control plane");
    let hub = Hub::above(&site, plane).expect("a hub");
    long_outage(&site, &hub);
}

#[test]
fn long_outage_above_embedded() {
    let site = Site::new().expect("a site");
    let hub = Hub::embedded_with(&site, &short()).expect("a hub");
    long_outage(&site, &hub);
}

/// How often the hub has said in its log that a session came up, or that one goes on.
fn sessions(hub: &Hub) -> usize {
    let log = fs::read_to_string(hub.dir().join("cloudhub.log")).unwrap_or_default();
    log.matches("session up").count() + log.matches("the session goes on").count()
}

fn wait_session(hub: &Hub, edge: &Edge, before: usize) -> Instant {
    wait_for("a session", START, || match sessions(hub) {
        now if now > before => State::Done(()),
        _ => State::Not(format!("{}\n{}", edge.tail(), hub.tail())),
    })
    .unwrap_or_else(|e| panic!("{e}"));
    Instant::now()
}

const DEPLOYMENT: &str = r"apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: kedge.dev/demo:1
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
";

/// Where no node at all is Ready, a control plane thinks that the trouble is its own and evicts nothing. Nothing else runs here.
fn other_robot<'a>(site: &'a Site, hub: &Hub) -> Edge<'a> {
    let mut other = Edge::new(site, 2, "robot-2").expect("a machine");
    other.join(hub).expect("join");
    other.start().expect("edgecore");
    hub.kubectl
        .wait(&["node", "robot-2"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", other.tail(), hub.tail()));
    hub.kubectl.run(&["cordon", "robot-2"]).expect("cordon");
    other
}

/// The pods that must stay bound to the robot.
fn patient_pods(hub: &Hub) -> Vec<Value> {
    let list = hub.kubectl.get(&["pods", "-l", "app in (web,agent)"]).expect("get");
    list.expect("a list")["items"].as_array().cloned().unwrap_or_default()
}

/// Uid and container id of each pod.
fn ids(pods: &[Value]) -> Vec<(Value, Value)> {
    let id = |p: &Value| {
        let container = p["status"]["containerStatuses"][0]["containerID"].clone();
        (p["metadata"]["uid"].clone(), container)
    };
    pods.iter().map(id).collect()
}

/// The node's outage is noticed in time, its pods stay bound to it and run on, and all is right soon after its return.
fn long_outage(site: &Site, hub: &Hub) {
    let edge = robot(site, hub);
    let _other = other_robot(site, hub);
    hub.kubectl.apply(DEPLOYMENT).expect("apply");
    hub.kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=90s"])
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    apply_ready(hub, &edge, "agent", &bound_pod("agent", FOREVER));
    let leaving = bound_pod("leaving", FOREVER).replace("labels: {", "labels: {kedge.dev/failover: 'true', ");
    apply_ready(hub, &edge, "leaving", &leaving);
    let before = patient_pods(hub);
    assert_eq!(before.len(), 2);

    edge.set_link(false).expect("cut");
    outage_is_noticed(hub, &before);
    let known = sessions(hub);
    edge.set_link(true).expect("restore");
    let session = wait_session(hub, &edge, known);
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    assert!(session.elapsed() < SOON, "Ready after {:?}", session.elapsed());
    all_is_as_it_was(hub, &edge, &before);
    hub.kubectl
        .wait_gone(&["pod", "leaving"], START)
        .expect("what was to leave leaves");
}

/// NotReady in time; a pod that may be replaced is deleted, the others are only not Ready.
fn outage_is_noticed(hub: &Hub, before: &[Value]) {
    let cut = Instant::now();
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| !is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    let limit = Duration::from_secs(u64::from(GRACE) + 10) + SOON;
    assert!(cut.elapsed() < limit, "NotReady after {:?}", cut.elapsed());
    // A pod that may be replaced shows when the others' time would have been over too.
    hub.kubectl
        .wait(&["pod", "leaving"], START, |p| {
            !p["metadata"]["deletionTimestamp"].is_null()
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    hub.kubectl
        .wait(&["pods", "-l", "app in (web,agent)"], START, |list| {
            let items = list["items"].as_array().expect("a list");
            items.iter().all(|p| !is_true(p, "Ready"))
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    let during = patient_pods(hub);
    assert_eq!(ids(&during), ids(before), "no replacement");
    assert!(during.iter().all(|p| p["metadata"]["deletionTimestamp"].is_null()));
}

/// Ready again, the same pods, the same containers, and these run.
fn all_is_as_it_was(hub: &Hub, edge: &Edge, before: &[Value]) {
    hub.kubectl
        .wait(&["pods", "-l", "app in (web,agent)"], START, |list| {
            let items = list["items"].as_array().expect("a list");
            items.len() == 2 && items.iter().all(|p| is_true(p, "Ready"))
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let after = patient_pods(hub);
    assert_eq!(ids(&after), ids(before), "the same pods with the same containers");
    let running = edge.containers().expect("containers");
    for (_, id) in ids(&after) {
        let id = id.as_str().unwrap_or_default().trim_start_matches("containerd://");
        assert!(
            running.iter().any(|c| c.id == id && c.pid.is_some()),
            "{id} in {running:?}"
        );
    }
}

fn wait_connected(hub: &Hub, edge: &Edge, status: &str, reason: &str) -> Value {
    let (node, _) = hub
        .kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == status && c["reason"] == reason)
        })
        .unwrap_or_else(|e| panic!("{status} {reason}: {e}\n{}\n{}", edge.tail(), hub.tail()));
    condition(&node, "EdgeConnected").expect("it is there").clone()
}

fn wait_event(hub: &Hub, reason: &str, count: usize) {
    let what = format!("{count} events {reason}");
    wait_for(&what, START, || {
        let selector = format!("reason={reason},involvedObject.kind=Node");
        match hub.kubectl.get(&["events", "--field-selector", &selector]) {
            Ok(Some(list)) if list["items"].as_array().is_some_and(|items| items.len() >= count) => State::Done(()),
            other => State::Not(format!("{other:?}")),
        }
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
}

fn edge_connected_says_why_a_robot_is_away_or_back(start: Start) {
    let site = Site::new().expect("a site");
    let mut hub = start(&site);
    let mut edge = robot(&site, &hub);
    wait_connected(&hub, &edge, "True", "Connected");

    edge.set_link(false).expect("cut");
    let away = wait_connected(&hub, &edge, "False", "LinkLost");
    wait_event(&hub, "LinkLost", 1);
    hub.stop().expect("stop");
    hub.restart().expect("the hub is another process now");
    let still = wait_connected(&hub, &edge, "False", "LinkLost");
    assert_eq!(
        still["lastTransitionTime"], away["lastTransitionTime"],
        "since when it is away"
    );
    edge.set_link(true).expect("restore");
    let back = wait_connected(&hub, &edge, "True", "Connected");
    let since = away["lastTransitionTime"].as_str().expect("a time");
    assert!(back["message"].as_str().is_some_and(|m| m.contains(since)), "{back}");

    edge.stop().expect("stop");
    wait_connected(&hub, &edge, "False", "AgentStopped");
    wait_event(&hub, "AgentStopped", 1);
    edge.start().expect("edgecore");
    wait_connected(&hub, &edge, "True", "AgentRestarted");
    wait_event(&hub, "AgentRestarted", 1);

    // Twice at once: each is an event.
    for n in 2..=3 {
        edge.kill();
        edge.start().expect("edgecore");
        wait_event(&hub, "AgentRestarted", n);
    }
    edge.reset().expect("reset");
    edge.start().expect("edgecore");
    wait_connected(&hub, &edge, "True", "PowerLost");
    wait_event(&hub, "PowerLost", 1);

    hub.kill();
    edge.set_link(false).expect("it goes while no hub is there to see it");
    hub.restart().expect("the hub is back");
    wait_connected(&hub, &edge, "False", "LinkLost");
}

fn status_is_right_soon_after_the_session(start: Start) {
    let site = Site::new().expect("a site");
    let mut hub = start(&site);
    let edge = robot(&site, &hub);
    apply_ready(&hub, &edge, "web", &bound_pod("web", FOREVER));
    let first = edge.wait_container("web", START).expect("it runs");
    hub.kill();
    let pid = nix::unistd::Pid::from_raw(first.pid.expect("running").cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
    let (second, _) = wait_for("the container is restarted with no hub", START, || {
        match edge.containers() {
            Ok(all) => match all
                .iter()
                .find(|c| c.pod == "web" && c.pid.is_some() && c.id != first.id)
            {
                Some(c) => State::Done(c.clone()),
                None => State::Not(format!("{all:?}")),
            },
            Err(error) => State::Not(error.to_string()),
        }
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let known = sessions(&hub);
    hub.restart().expect("the hub is back");
    let session = wait_session(&hub, &edge, known);
    hub.kubectl
        .wait(&["pod", "web"], START, |p| {
            let status = &p["status"]["containerStatuses"][0];
            is_true(p, "Ready")
                && status["containerID"]
                    .as_str()
                    .is_some_and(|id| id.ends_with(&second.id))
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert!(session.elapsed() < SOON, "right after {:?}", session.elapsed());
    assert_eq!(edge.wait_container("web", START).expect("runs").id, second.id);
}
