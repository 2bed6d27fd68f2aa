//! A robot with another robot's certificate: it is told so, and nothing that it runs stops.

use std::fs;
use std::path::Path;

use kit::kubectl::is_true;
use kit::suite::{START, embedded, robot};
use kit::wait::State;
use kit::{Edge, Site, wait_for, yaml};

use crate::tunnel;

/// Said at each attempt.
const SAID: &str = "the certificate is node robot-2's, and this is node robot-1";

#[test]
fn a_robot_with_another_robots_certificate_stops_nothing() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let mut edge = robot(&site, &hub);
    let manifest = yaml::shell_pod("stays", "exec sleep 100000");
    hub.kubectl.apply(&manifest).expect("apply");
    hub.kubectl
        .wait_ready("stays", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let before = edge.wait_container("stays", START).expect("it runs");
    let other = site.dir().join("robot-2");
    tunnel::join(&site, &hub, "robot-2", &other).expect("join");

    edge.stop().expect("stop");
    let (pki, own) = (edge.dir().join("edge/pki"), edge.dir().join("edge/own"));
    fs::rename(&pki, &own).expect("rename");
    copy(&other.join("state/pki"), &pki);
    edge.start().expect("edgecore");
    // The second attempt comes after the first has had its consequences.
    wait_for("the log says whose certificate it is", START, || {
        if edge.log().matches(SAID).count() > 1 {
            State::Done(())
        } else {
            State::Not(edge.tail())
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(edge.wait_container("stays", START).expect("it runs"), before);
    let node = hub.kubectl.get(&["node", "robot-2"]).expect("get");
    assert!(
        !node.is_some_and(|n| is_true(&n, "EdgeConnected")),
        "robot-2 is nowhere"
    );

    edge.stop().expect("stop");
    fs::remove_dir_all(&pki).expect("remove");
    fs::rename(&own, &pki).expect("rename");
    edge.start().expect("edgecore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "EdgeConnected"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let log = hub.kubectl.run(&["exec", "stays", "--", "echo", "here"]);
    assert_eq!(log.expect("exec"), "here\n");
    assert_eq!(edge.wait_container("stays", START).expect("it runs"), before);
    no_panic(&edge);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder").flatten() {
        fs::copy(file.path(), to.join(file.file_name())).expect("copy");
    }
}

fn no_panic(edge: &Edge) {
    assert!(!edge.log().contains("panicked"), "{}", edge.log());
}
