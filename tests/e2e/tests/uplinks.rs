//! Suite `uplinks`: a robot whose three uplinks are bad links of `tests/linkem`, behind a NAT.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// The same links, of a machine whose owner gave each uplink its rule, and with the losses of bonding.md §3.2.
const BONDED: &str = r"
name: three uplinks together
seed: 8
edge: {sourceRules: true}
links:
- name: g5
  up: {rate: {fixed: 50Mbit}, queue: {time: 100ms}, delay: 15ms, loss: {iid: 0.05}}
  down: {rate: {fixed: 50Mbit}, queue: {time: 100ms}, delay: 15ms, loss: {iid: 0.05}}
- name: lte
  up: {rate: {fixed: 30Mbit}, queue: {time: 100ms}, delay: 30ms, loss: {iid: 0.02}}
  down: {rate: {fixed: 30Mbit}, queue: {time: 100ms}, delay: 30ms, loss: {iid: 0.02}}
- name: wifi
  up: {rate: {fixed: 20Mbit}, queue: {time: 100ms}, delay: 8ms, loss: {iid: 0.08}}
  down: {rate: {fixed: 20Mbit}, queue: {time: 100ms}, delay: 8ms, loss: {iid: 0.08}}
";

/// What exec brings: 100 MB.
const SENT: u64 = 100_000_000;

#[test]
fn what_runs_over_three_lossy_uplinks_outlives_the_death_of_each() {
    let site = Site::new().expect("a site");
    let scenario = Scenario::parse(BONDED, Path::new(".")).expect("a scenario");
    site.uplinks().give(1, scenario);
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let tails = || format!("{}\n{}", edge.tail(), hub.tail());
    let script = "while true; do date +%s; sleep 1; done";
    hub.kubectl.apply(&yaml::shell_pod("web", script)).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", tails()));

    let (followed, received) = (site.dir().join("followed"), site.dir().join("received"));
    let mut logs = into_file(hub.kubectl.command(&["logs", "-f", "web"]), &followed);
    let produce = format!("yes robot | head -c {SENT}");
    let command = hub.kubectl.command(&["exec", "web", "--", "sh", "-c", &produce]);
    let mut exec = into_file(command, &received);
    for link in NAMES {
        std::thread::sleep(Duration::from_secs(2));
        edge.uplinks().apply(link, Action::BlackHole).expect("a black hole");
        std::thread::sleep(Duration::from_secs(3));
        edge.uplinks().apply(link, Action::Restore).expect("its end");
    }
    let ended = wait_for("kubectl exec ends", START, || match exec.try_wait() {
        Ok(Some(status)) => State::Done(status),
        Ok(None) => State::Not(format!("{:?}", std::fs::metadata(&received).map(|file| file.len()))),
        Err(error) => State::Not(error.to_string()),
    });
    let (ended, after) = ended.unwrap_or_else(|e| panic!("{e}\n{}\n{}", links(&edge), tails()));
    println!("100 MB through exec: {after:?} after the last link came back");
    assert!(ended.success(), "{ended}\n{}", tails());
    is_whole(&std::fs::read(&received).expect("what exec brought"));

    assert_eq!(logs.try_wait().expect("kubectl logs"), None, "logs -f has ended");
    logs.kill().expect("kubectl logs is ours");
    logs.wait().expect("its end");
    has_each_second(&std::fs::read_to_string(&followed).expect("what logs -f printed"));

    let report = edge.uplinks().report().expect("a report");
    for name in NAMES {
        let link = report.link(name).expect("it is in the scenario");
        assert!(link.up.arrived_bytes > SENT / 20, "{name} carried little: {link:?}");
    }
    let shown = links(&edge);
    for name in NAMES {
        let line = shown.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.contains(" up ")), "{shown}");
    }
    assert!(
        shown.contains("Session 1: "),
        "the session that it began with went on:\n{shown}"
    );
}

const NAMES: [&str; 3] = ["g5", "lte", "wifi"];

/// Starts a command whose output goes into a file.
fn into_file(mut command: Command, file: &Path) -> Child {
    let file = File::create(file).expect("a file");
    let started = command.stdin(Stdio::null()).stdout(file).spawn();
    started.expect("kubectl")
}

fn is_whole(bytes: &[u8]) {
    assert_eq!(bytes.len() as u64, SENT);
    let line = b"robot\n";
    let wrong = bytes
        .iter()
        .zip(line.iter().cycle())
        .position(|(got, want)| got != want);
    assert_eq!(wrong, None, "a byte differs");
}

fn has_each_second(text: &str) {
    let seconds: Vec<u64> = text.lines().map(|line| line.parse().expect("a second")).collect();
    assert!(seconds.len() > 10, "{seconds:?}");
    assert!(
        seconds
            .windows(2)
            .all(|pair| pair[0] < pair[1] && pair[1] - pair[0] < 5),
        "a line is missing or doubled: {seconds:?}"
    );
}

/// What a person at the robot sees.
fn links(edge: &kit::Edge<'_>) -> String {
    let output = edge
        .command(&kit::paths::ours("kedge"))
        .args(["links", "--socket"])
        .arg(edge.dir().join("run/edgecore.sock"))
        .output()
        .expect("kedge links");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}
