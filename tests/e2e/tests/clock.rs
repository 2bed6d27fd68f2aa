//! Suite `clock`: a robot without a battery for its clock. It says 1970 at each boot, until somebody sets it.

use std::time::Duration;

use kit::clock::Clock;
use kit::kubectl::{condition, is_true};
use kit::suite::{START, Start};
use kit::{Edge, Hub, Site, above_both, yaml};
use serde_json::Value;

above_both!(a_clock_that_says_1970_holds_up_neither_pods_nor_the_link);

/// The budget is 5 s; this leaves room for a busy machine.
const ONLINE: Duration = Duration::from_secs(20);

fn node_where(hub: &Hub, edge: &Edge, what: &str, done: impl Fn(&Value) -> bool) -> Duration {
    let (_, took) = hub
        .kubectl
        .wait(&["node", "robot-1"], START, done)
        .unwrap_or_else(|e| panic!("{what}: {e}\n{}\n{}", edge.tail(), hub.tail()));
    took
}

fn says(node: &Value, kind: &str, status: &str, reason: &str) -> bool {
    condition(node, kind).is_some_and(|c| c["status"] == status && c["reason"] == reason)
}

fn ready(hub: &Hub, edge: &Edge, pod: &str) -> Value {
    let (pod, _) = hub
        .kubectl
        .wait_ready(pod, START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    pod
}

fn a_clock_that_says_1970_holds_up_neither_pods_nor_the_link(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let mut edge = Edge::new(&site, 1, "robot-1").expect("a machine");
    edge.join(&hub).expect("join");
    edge.set_clock(Clock::Starts1970).expect("a clock");
    edge.start().expect("edgecore");
    // Its first session ever: what it has to go by is the year in which it was built.
    node_where(&hub, &edge, "the first start", |n| {
        is_true(n, "Ready") && says(n, "ClockUntrusted", "True", "NoTimeSource")
    });
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    let before = ready(&hub, &edge, "web");

    edge.power_off();
    edge.boot().expect("boot");
    edge.set_link(false).expect("cut");
    node_where(&hub, &edge, "it is away", |n| {
        says(n, "EdgeConnected", "False", "LinkLost")
    });
    edge.start().expect("edgecore");
    let offline = edge
        .wait_container("web", START)
        .expect("it runs with no link and no time");
    assert_eq!(before["metadata"]["uid"], offline.uid.as_str());
    edge.set_link(true).expect("the first link since it booted");
    let took = node_where(&hub, &edge, "it is back", |n| {
        is_true(n, "EdgeConnected") && is_true(n, "Ready")
    });
    println!("online {took:?} after the link");
    assert!(took < ONLINE, "online {took:?} after the link");
    node_where(&hub, &edge, "its clock is still wrong", |n| {
        says(n, "ClockUntrusted", "True", "NoTimeSource")
    });
    let shown = |p: &Value| {
        let id = p["status"]["containerStatuses"][0]["containerID"].as_str();
        is_true(p, "Ready") && id.is_some_and(|id| id.ends_with(&offline.id))
    };
    hub.kubectl
        .wait(&["pod", "web"], START, shown)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));

    edge.set_clock(Clock::Right).expect("somebody sets the clock");
    node_where(&hub, &edge, "its clock is right", |n| {
        says(n, "ClockUntrusted", "False", "TimeKnown") && is_true(n, "Ready")
    });
    hub.kubectl.apply(&yaml::furnished_pod("late")).expect("apply");
    ready(&hub, &edge, "late");
    let after = edge.wait_container("web", START).expect("it runs");
    assert_eq!(after.id, offline.id, "the new time restarted nothing");
}
