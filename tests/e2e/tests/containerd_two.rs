//! Suite `containerd_two`: the node's road above containerd 2.x. Everything else runs above Debian's 1.6.
//!
//! What differs there: handlers and the cgroup driver are told, events and image stores are other code, an exec's end has another text, the
//! sandbox is an object of its own. What a pod and its owner see must not differ.

use std::collections::BTreeMap;

use kit::containerd::Version;
use kit::kubectl::is_true;
use kit::suite::{START, embedded, robot_above};
use kit::wait::State;
use kit::{Edge, Hub, Site, paths, wait_for, yaml};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

#[test]
fn the_pods_road_above_containerd_2() {
    let site = Site::new().expect("a site");
    let mut hub = embedded(&site);
    let mut edge = robot_above(Version::Two, &site, &hub);
    let node = hub.kubectl.get(&["node", "robot-1"]).expect("get").expect("there");
    let version = format!("containerd://{}", paths::CONTAINERD.trim_start_matches('v'));
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], version.as_str());
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl.apply(&yaml::http_pod("httpd")).expect("apply");
    for pod in ["web", "httpd"] {
        ready(&hub, &edge, pod);
    }
    speaks(&hub);
    restarts_in_place(&hub, &edge);
    fails_as_told(&hub, &edge);
    survives_the_agent(&hub, &mut edge);
    survives_resets(&mut hub, &mut edge);
    leaves_nothing(&hub, &edge);
}

fn ready(hub: &Hub, edge: &Edge, pod: &str) -> Value {
    let (pod, _) = hub
        .kubectl
        .wait_ready(pod, START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    pod
}

/// Logs, exec with its exit code, a terminal, standard input, what is used.
fn speaks(hub: &Hub) {
    let run = |args: &[&str]| hub.kubectl.run(args).unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    assert_eq!(run(&["logs", "web"]), "started\n");
    let script = "echo $LIMIT $PASSWORD; cat /etc/config/greeting /etc/secret/password";
    assert_eq!(run(&["exec", "web", "--", "sh", "-c", script]), "3 anchor\nhelloanchor");
    let failed = hub
        .kubectl
        .output(&["exec", "web", "--", "sh", "-c", "exit 7"])
        .expect("kubectl");
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(7), "{said}");
    let piped = hub
        .kubectl
        .run_with(&["exec", "-i", "web", "--", "cat"], "through the tunnel");
    assert_eq!(piped.expect("exec -i"), "through the tunnel");
    let unknown = hub
        .kubectl
        .output(&["exec", "web", "--", "no-such-program"])
        .expect("kubectl");
    assert!(!unknown.status.success());
    wait_for("kubectl top shows what is used", START, || {
        match hub.kubectl.run(&["top", "pod", "web", "--containers"]) {
            Ok(text) if text.contains("main") => State::Done(()),
            Ok(text) => State::Not(text),
            Err(error) => State::Not(error.to_string()),
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

fn restarts_in_place(hub: &Hub, edge: &Edge) {
    let before = edge.wait_container("web", START).expect("it runs");
    let pid = before.pid.expect("it runs").cast_signed();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the container's process is there");
    let (pod, _) = hub
        .kubectl
        .wait(&["pod", "web"], START, |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1 && is_true(p, "Ready")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(
        (&last["exitCode"], &last["reason"]),
        (&137.into(), &"Error".into()),
        "{last}"
    );
    let previous = hub.kubectl.run(&["logs", "web", "--previous"]);
    assert_eq!(previous.expect("the log of before"), "started\n");
}

/// An image that nobody has, a program that is not there, too much memory.
fn fails_as_told(hub: &Hub, edge: &Edge) {
    let pod = |name: &str, image: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  restartPolicy: Never\n  \
             containers: [{{name: main, image: '{image}'{more}}}]\n---\n"
        )
    };
    let demo = "kedge.dev/demo:1";
    let hog = ", command: [sh, -c, 'head -c 64m /dev/zero | tail'], resources: {limits: {memory: 16Mi}}";
    let all = [
        pod("image", "kedge.dev/nothing:1", ""),
        pod("command", demo, ", command: [/no/such/program]"),
        pod("hog", demo, hog),
    ];
    hub.kubectl.apply(&all.concat()).expect("apply");
    let wait = |name: &str, pointer: &str, wanted: &[&str]| {
        hub.kubectl
            .wait(&["pod", name], START, |p| {
                let said = p["status"]["containerStatuses"][0]["state"].pointer(pointer);
                said.and_then(Value::as_str).is_some_and(|said| wanted.contains(&said))
            })
            .unwrap_or_else(|e| panic!("{name}: {e}\n{}", edge.tail()));
    };
    wait("image", "/waiting/reason", &["ErrImagePull", "ImagePullBackOff"]);
    wait("command", "/terminated/reason", &["StartError"]);
    wait("hog", "/terminated/reason", &["OOMKilled"]);
    let gone = ["delete", "pod", "image", "command", "hog", "--timeout=60s"];
    hub.kubectl.run(&gone).expect("delete");
}

fn survives_the_agent(hub: &Hub, edge: &mut Edge) {
    let before = edge.all_containers().expect("containers");
    edge.kill();
    edge.start().expect("edgecore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "EdgeConnected"))
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    assert_eq!(edge.all_containers().expect("containers"), before);
}

/// Resets with no hub, one of them with half of a CNI result: all comes back, and nothing is left of before.
fn survives_resets(hub: &mut Hub, edge: &mut Edge) {
    hub.kill();
    let mut expected = BTreeMap::new();
    for reset in 1..=4 {
        edge.power_off();
        if reset == 3 {
            edge.damage_cni_result(true).expect("a sandbox has a CNI result");
        }
        edge.boot().expect("boot");
        edge.start().expect("edgecore");
        for pod in ["web", "httpd"] {
            edge.wait_container(pod, START)
                .unwrap_or_else(|e| panic!("reset {reset}: {e}"));
        }
        if reset == 2 {
            expected = edge.settled_resources(START).expect("resources");
        }
    }
    edge.wait_resources(&expected, START)
        .unwrap_or_else(|e| panic!("after the second reset: {e}\n{}", edge.tail()));
    hub.restart().expect("the hub is back");
    for pod in ["web", "httpd"] {
        let pod = ready(hub, edge, pod);
        assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
    }
}

fn leaves_nothing(hub: &Hub, edge: &Edge) {
    let gone = ["delete", "pod", "web", "httpd", "--timeout=60s"];
    hub.kubectl.run(&gone).expect("delete");
    wait_for("containerd has nothing left", START, || match edge.resources() {
        Ok(left) if left["containers"] + left["netns"] + left["leases"] + left["CNI results"] == 0 => State::Done(()),
        Ok(left) => State::Not(format!("{left:?}")),
        Err(error) => State::Not(error.to_string()),
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
}
