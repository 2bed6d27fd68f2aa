//! Suite `uplinks`: a robot whose three uplinks are bad links of `tests/linkem`, behind a NAT.

use std::path::Path;

use kit::kubectl::{condition, is_true};
use kit::suite::{START, embedded, robot};
use kit::wait::State;
use kit::{Site, wait_for, yaml};
use linkem::Action;
use linkem::run::Scenario;

/// Rates and delays of bonding.md §3.2; losses that one path alone can bear, and that happen however few packets there are.
const LINKS: &str = r"
name: three uplinks
seed: 7
links:
- name: g5
  up: {rate: {fixed: 50Mbit}, queue: {time: 100ms}, delay: 15ms, loss: {bursts: [{first: 10, count: 1}, {first: 25, count: 2}]}}
  down: {rate: {fixed: 50Mbit}, queue: {time: 100ms}, delay: 15ms, loss: {bursts: [{first: 10, count: 1}, {first: 25, count: 2}]}}
- name: lte
  up: {rate: {fixed: 30Mbit}, queue: {time: 100ms}, delay: 30ms}
  down: {rate: {fixed: 30Mbit}, queue: {time: 100ms}, delay: 30ms}
- name: wifi
  up: {rate: {fixed: 20Mbit}, queue: {time: 100ms}, delay: 8ms}
  down: {rate: {fixed: 20Mbit}, queue: {time: 100ms}, delay: 8ms}
";

#[test]
fn robot_behind_a_lossy_uplink_works_through_a_rebind_an_outage_and_a_reset() {
    let site = Site::new().expect("a site");
    let scenario = Scenario::parse(LINKS, Path::new(".")).expect("a scenario");
    site.uplinks().give(1, scenario);
    let hub = embedded(&site);
    let mut edge = robot(&site, &hub);
    hub.kubectl
        .apply(&yaml::shell_pod("web", "echo started; exec sleep 100001"))
        .expect("apply");
    let ready = || {
        hub.kubectl
            .wait_ready("web", START)
            .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()))
    };
    ready();

    edge.uplinks().apply("g5", Action::Rebind).expect("a rebind");
    let logs = hub
        .kubectl
        .run(&["logs", "web"])
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(logs, "started\n");
    let report = edge.uplinks().report().expect("a report");
    let g5 = report.link("g5").expect("it is in the scenario");
    assert!(
        g5.up.model.dropped_loss > 0 && g5.down.model.dropped_loss > 0,
        "nothing was lost: {g5:?}"
    );
    assert!(
        g5.up.arrived_bytes > 10_000 && g5.down.arrived_bytes > 10_000,
        "the tunnel went elsewhere: {g5:?}"
    );

    edge.set_link(false).expect("cut");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    edge.set_link(true).expect("restore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            is_true(n, "EdgeConnected") && is_true(n, "Ready")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));

    edge.reset().expect("the links come back with the machine");
    edge.start().expect("edgecore");
    // Its own counters begin anew: what they count is the robot that came back.
    let arrived = || {
        edge.uplinks()
            .report()
            .map(|report| report.link("g5").map_or(0, |g5| g5.down.arrived))
    };
    wait_for("the hub answers the robot after its reset", START, || match arrived() {
        Ok(0) => State::Not(edge.tail()),
        Ok(_) => State::Done(()),
        Err(error) => State::Not(error.to_string()),
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
}
