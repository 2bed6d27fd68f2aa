//! An ARM64 robot: joins a hub on the host's side, runs a pod, is reset without a network, and runs it again.

use kit::kubectl::{condition, is_true};
use kit::{Site, suite, yaml};
use machines::Arch;

use crate::LONG;
use crate::inside::{TOKEN, logs, wait_processes};
use crate::robot::{self, NODE, PLACES};

#[test]
fn arm64_robot_runs_its_pod_again_after_a_reset_without_a_network() {
    let site = Site::new().expect("a site");
    let hub = suite::embedded(&site);
    let mut guest = robot::boot(&site, Arch::Arm64, Vec::new());
    robot::join(&guest, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    let (pod, _) = hub
        .kubectl
        .wait_ready("web", LONG)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", logs(&guest), hub.tail()));
    let machine = hub.kubectl.run(&["exec", "web", "--", "uname", "-m"]).expect("exec");
    assert_eq!(machine, "aarch64\n");

    // What containerd unpacked reaches the disk within half a minute by itself.
    guest.sh("sync").expect("sync");
    guest.set_link(false).expect("cut");
    guest.reset().expect("reset");
    let files = ["/etc/config/greeting", "/etc/secret/password", TOKEN];
    let found = wait_processes(&guest, (PLACES, &files), "the pod runs again with no network", |all| {
        all.iter().any(|p| p.command.contains("trap"))
    });
    let shell = found.iter().find(|p| p.command.contains("trap")).expect("it was found");
    assert_eq!(pod["metadata"]["uid"], shell.uid.as_str());
    assert_eq!(shell.files[..2], ["hello", "anchor"]);
    assert_eq!(shell.files[2].split('.').count(), 3, "a token: {shell:?}");

    guest.set_link(true).expect("restore");
    hub.kubectl
        .wait(&["node", NODE], LONG, |n| {
            is_true(n, "Ready") && condition(n, "EdgeConnected").is_some_and(|c| c["reason"] == "PowerLost")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", logs(&guest), hub.tail()));
    let (after, _) = hub
        .kubectl
        .wait_ready("web", LONG)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", logs(&guest), hub.tail()));
    assert_eq!(after["metadata"]["uid"], pod["metadata"]["uid"]);
}
