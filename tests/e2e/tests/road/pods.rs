//! What becomes of pods when the hub, a container, the agent, the machine or the link goes, and what kubectl changes meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use kit::kubectl::{condition, is_true};
use kit::suite::START;
use kit::wait::State;
use kit::{wait_for, yaml};

use super::{Road, kill_container};

pub(super) fn pod_survives_hub_death_container_death_and_reset(Road { hub, edge, .. }: &mut Road<'_>) {
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    let (pod, _) = hub
        .kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let first = edge.wait_container("web", START).expect("it runs");

    hub.kill();
    kill_container(first.pid.expect("running"));
    let (second, _) = wait_for("the container is restarted with no hub", START, || {
        match edge.containers() {
            Ok(all) => match all
                .iter()
                .find(|c| c.pod == "web" && c.pid.is_some() && c.id != first.id)
            {
                Some(c) => State::Done(c.clone()),
                None => State::Not(format!("{all:?} {}", edge.tail())),
            },
            Err(error) => State::Not(error.to_string()),
        }
    })
    .expect("restarted offline");

    edge.reset().expect("reset");
    edge.start().expect("edgecore");
    let third = edge
        .wait_container("web", START)
        .expect("back after the reset, with no hub");
    assert_eq!(third.uid, pod["metadata"]["uid"].as_str().expect("uid"));
    assert_ne!(third.id, second.id);
    is_furnished(third.pid.expect("running"));

    hub.restart().expect("the hub is back");
    let restarted = |p: &serde_json::Value| {
        is_true(p, "Ready")
            && p["status"]["containerStatuses"][0]["containerID"]
                .as_str()
                .is_some_and(|id| id.ends_with(&third.id))
    };
    let (now, took) = hub
        .kubectl
        .wait(&["pod", "web"], START, restarted)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(now["metadata"]["uid"], pod["metadata"]["uid"]);
    assert!(
        took < Duration::from_secs(20),
        "status is right {took:?} after the listener was back"
    );
    assert_eq!(
        edge.wait_container("web", START).expect("runs").id,
        third.id,
        "the reconnect restarted nothing"
    );
}

fn is_furnished(pid: u32) {
    let root = format!("/proc/{}/root", pid);
    for (file, content) in [("etc/config/greeting", "hello"), ("etc/secret/password", "anchor")] {
        assert_eq!(fs::read_to_string(format!("{root}/{file}")).expect(file), content);
    }
    let token = fs::read_to_string(format!("{root}/var/run/secrets/kubernetes.io/serviceaccount/token"))
        .expect("the token came back");
    assert_eq!(token.split('.').count(), 3, "a JWT");
}

pub(super) fn edgecore_restart_touches_no_container(Road { hub, edge, .. }: &mut Road<'_>) {
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl.apply(&yaml::http_pod("httpd")).expect("apply");
    for pod in ["web", "httpd"] {
        hub.kubectl
            .wait_ready(pod, START)
            .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    }
    let before = edge.all_containers().expect("containers");
    for round in 0..3 {
        edge.kill();
        edge.start().expect("edgecore");
        // The hub may not have noticed yet that the agent died: what it says is of before.
        wait_for("a session", START, || match edge.session() {
            Ok(_) => State::Done(()),
            Err(error) => State::Not(error.to_string()),
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
        hub.kubectl
            .wait(&["node", "robot-1"], START, |n| is_true(n, "EdgeConnected"))
            .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
        assert_eq!(edge.all_containers().expect("containers"), before, "kill {round}");
    }
    edge.stop().expect("a clean stop");
    assert_eq!(
        edge.all_containers().expect("containers"),
        before,
        "a clean stop leaves the containers"
    );
    let (node, _) = hub
        .kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False")
        })
        .expect("the hub notices");
    assert_eq!(
        condition(&node, "EdgeConnected").expect("condition")["reason"],
        "AgentStopped"
    );
}

pub(super) fn pod_deleted_while_node_is_away_goes_on_return(Road { hub, edge, .. }: &mut Road<'_>) {
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    edge.set_link(false).expect("cut");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False" && c["reason"] == "LinkLost")
        })
        .expect("the hub says that the link is lost");
    hub.kubectl
        .run(&["delete", "pod", "web", "--wait=false"])
        .expect("delete");
    assert!(
        edge.containers()
            .expect("containers")
            .iter()
            .any(|c| c.pod == "web" && c.pid.is_some()),
        "it runs on while the link is cut"
    );
    let answered = Instant::now();
    let refused = hub
        .kubectl
        .output(&["logs", "web", "--request-timeout=20s"])
        .expect("kubectl");
    assert!(!refused.status.success());
    assert!(
        answered.elapsed() < Duration::from_secs(8),
        "a node that is away answers soon: {:?}",
        answered.elapsed()
    );

    edge.set_link(true).expect("restore");
    hub.kubectl
        .wait_gone(&["pod", "web"], START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let ((), _) = wait_for("containerd has nothing left of it", START, || {
        match edge.all_containers() {
            Ok(all) if all.iter().all(|c| c.pod != "web") => State::Done(()),
            Ok(all) => State::Not(format!("{all:?}")),
            Err(error) => State::Not(error.to_string()),
        }
    })
    .expect("the last pod goes");
}

pub(super) fn configuration_changed_while_away_arrives(Road { hub, edge, .. }: &mut Road<'_>) {
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let before = edge.wait_container("web", START).expect("runs");
    edge.set_link(false).expect("cut");
    hub.kubectl
        .run(&[
            "patch",
            "configmap",
            "web-config",
            "-p",
            r#"{"data":{"greeting":"ahoy"}}"#,
        ])
        .expect("patch");
    hub.kubectl
        .apply(&yaml::shell_pod("late", "echo late; exec sleep 1000"))
        .expect("apply");
    edge.set_link(true).expect("restore");
    let file = format!("/proc/{}/root/etc/config/greeting", before.pid.expect("runs"));
    wait_for(
        "the new ConfigMap is in the volume",
        START,
        || match fs::read_to_string(&file) {
            Ok(text) if text == "ahoy" => State::Done(()),
            other => State::Not(format!("{other:?}\n{}", edge.tail())),
        },
    )
    .expect("live update");
    hub.kubectl
        .wait_ready("late", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(
        edge.wait_container("web", START).expect("runs").id,
        before.id,
        "the same container"
    );
}

pub(super) fn workloads_roll_out(Road { hub, edge, .. }: &mut Road<'_>) {
    hub.kubectl.apply(yaml::WORKLOADS).expect("apply");
    for name in ["deployment/web", "daemonset/agent"] {
        hub.kubectl
            .run(&["rollout", "status", name, "--timeout=90s"])
            .unwrap_or_else(|e| {
                panic!(
                    "{e}\n{}\n{}\n{}",
                    hub.kubectl.run(&["get", "pods", "-o", "yaml"]).unwrap_or_default(),
                    edge.tail(),
                    hub.tail()
                )
            });
    }
    hub.kubectl
        .run(&["scale", "deployment/web", "--replicas=3"])
        .expect("scale");
    hub.kubectl
        .wait(&["deployment", "web"], START, |d| d["status"]["readyReplicas"] == 3)
        .expect("three");
    hub.kubectl
        .run(&["set", "env", "deployment/web", "COLOUR=blue"])
        .expect("set env");
    hub.kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=90s"])
        .expect("rolled out");
    hub.kubectl
        .run(&["delete", "deployment/web", "daemonset/agent", "--timeout=60s"])
        .expect("delete");
    let ((), _) = wait_for("no pod is left", START, || match edge.all_containers() {
        Ok(all) if all.is_empty() => State::Done(()),
        Ok(all) => State::Not(format!("{all:?}\n{}", edge.tail())),
        Err(error) => State::Not(error.to_string()),
    })
    .expect("all gone");
}

pub(super) fn deleted_node_of_a_robot_comes_back(Road { hub, edge, .. }: &mut Road<'_>) {
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let before = edge.wait_container("web", START).expect("runs");
    edge.set_link(false).expect("cut");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False")
        })
        .expect("away");
    hub.kubectl
        .run(&["delete", "node", "robot-1", "--wait=false"])
        .expect("delete");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            n["metadata"]["labels"]["kedge.dev/edge"] == "true" && n["metadata"]["deletionTimestamp"].is_null()
        })
        .expect("the hub makes it again");
    edge.set_link(true).expect("restore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(
        edge.wait_container("web", START).expect("runs").id,
        before.id,
        "nothing stopped"
    );
}
