//! Faults of links that a session outlives: each is done to a robot at work, seen, and undone.

use std::time::Duration;

use kit::exposition::{self, Family};
use kit::kubectl::{condition, is_true};
use kit::suite::{START, embedded, has_each_second};
use kit::uplinks::NAMES;
use kit::wait::State;
use kit::{Site, wait_for, yaml};
use linkem::Action;

use super::{Robot, into_file};

/// How soon the hub knows a path's new address: an idle path is asked every 8 s.
const REBOUND: Duration = Duration::from_secs(10);
/// How soon a path that does not answer is shown as such: an idle one is asked every 8 s and has 1.5 s to answer.
const SUSPECTED: Duration = Duration::from_secs(12);
/// How soon a path is back after its fault: a path that ended meanwhile is dialled again after 5 s at most.
const BACK: Duration = Duration::from_secs(8);
/// The largest packet that passes an MTU black hole: less than both ends send from the first packet on, enough for QUIC's least.
const NARROW: u64 = 1300;
/// What a bulk transfer has: a second or two of all links.
const BULK: usize = 20_000_000;

#[test]
fn a_session_outlives_nats_that_forget_mtu_black_holes_one_way_loss_and_new_addresses() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let robot = Robot::start(&site, &hub, 1);
    let session = robot.edge.session().expect("a session");
    let connected = |node: &serde_json::Value| condition(node, "EdgeConnected").cloned().expect("it is there");
    let since = connected(&robot.node("is connected", START, |node| is_true(node, "EdgeConnected")));
    let followed = site.dir().join("followed");
    let mut logs = into_file(hub.kubectl.command(&["logs", "-f", "robot-1"]), &followed);

    for links in [&NAMES[..1], &NAMES] {
        addresses_change(&robot, links, Action::Rebind);
    }
    large_packets_disappear(&site, &robot);
    one_way_disappears(&robot, "g5", Action::BlackHoleUp);
    one_way_disappears(&robot, "lte", Action::BlackHoleDown);
    for link in ["wifi", "g5"] {
        addresses_change(&robot, &[link], Action::Readdress);
    }

    assert_eq!(robot.edge.session().ok(), Some(session), "{}", robot.tails());
    let node = robot.node("is connected still", START, |node| is_true(node, "EdgeConnected"));
    let now = connected(&node);
    assert_eq!(
        now["lastTransitionTime"], since["lastTransitionTime"],
        "it was never away: {now}"
    );
    assert_eq!(logs.try_wait().expect("kubectl logs"), None, "logs -f has ended");
    logs.kill().expect("kubectl logs is ours");
    logs.wait().expect("its end");
    has_each_second(&std::fs::read_to_string(&followed).expect("what logs -f printed"));
    robot.nothing_restarted();
    metrics_tell_what_was_carried(&robot);
}

/// A NAT that forgets, or another lease: the hub sees each of `links` come from elsewhere, over a live path.
fn addresses_change(robot: &Robot, links: &[&str], action: Action) {
    let seen = || robot.hub.session("robot-1").map(|(_, paths)| paths);
    let before = seen().expect("the hub has the session");
    for link in links {
        robot.edge.uplinks().apply(link, action).expect("the emulator runs");
    }
    robot.soon(&format!("{action:?} of {links:?}"), REBOUND, || {
        robot.answers();
        let now = seen().map_err(|error| error.to_string())?;
        let moved = |link: &&str| {
            let path = now.get(*link);
            path.is_some_and(|path| path.state == "up" && path.remote != before[*link].remote)
        };
        links
            .iter()
            .all(moved)
            .then_some(())
            .ok_or(format!("{before:?} became {now:?}"))
    });
    robot.all_up(BACK);
}

/// All links at once, in the middle of a transfer; then what else brings much.
fn large_packets_disappear(site: &Site, robot: &Robot) {
    let script = format!("sleep 1; yes robot | head -c {BULK}");
    let received = site.dir().join("received");
    let kubectl = &robot.hub.kubectl;
    let mut exec = into_file(
        kubectl.command(&["exec", "robot-1", "--", "sh", "-c", &script]),
        &received,
    );
    let length = |file: &std::path::Path| std::fs::metadata(file).map_or(0, |file| file.len());
    robot.soon("exec brings its first bytes", START, || match length(&received) {
        0 => Err("nothing yet".to_owned()),
        _ => Ok(()),
    });
    for link in NAMES {
        robot
            .edge
            .uplinks()
            .apply(link, Action::Largest(NARROW))
            .expect("the emulator runs");
    }
    let ended = wait_for("exec ends", START, || match exec.try_wait() {
        Ok(Some(status)) => State::Done(status),
        other => State::Not(format!("{other:?}, {} bytes", length(&received))),
    });
    let (status, took) = ended.unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
    println!("exec ended {took:?} after large packets began to disappear");
    assert!(status.success(), "{status}\n{}", robot.tails());
    let bytes = std::fs::read(&received).expect("what exec brought");
    assert_eq!(bytes.len(), BULK, "{}", robot.tails());
    let wanted = b"robot\n".iter().cycle();
    let wrong = bytes.iter().zip(wanted).position(|(got, want)| got != want);
    assert_eq!(wrong, None, "a byte differs");
    copies_and_logs(site, robot);
    let report = robot.edge.uplinks().report().expect("a report");
    for link in NAMES {
        let link = report.link(link).expect("it is in the scenario");
        assert!(
            link.down.model.dropped_size > 0 || link.up.model.dropped_size > 0,
            "no hole: {link:?}"
        );
        robot
            .edge
            .uplinks()
            .apply(&link.name, Action::Restore)
            .expect("the emulator runs");
    }
    robot.all_up(BACK);
}

/// Through the hole: a file there and back, and a long log.
fn copies_and_logs(site: &Site, robot: &Robot) {
    let kubectl = &robot.hub.kubectl;
    let run = |args: &[&str]| kubectl.run(args).unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
    let (here, back) = (site.dir().join("here"), site.dir().join("back"));
    let content: Vec<u8> = (0..500_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    std::fs::write(&here, &content).expect("a file");
    run(&["cp", &here.display().to_string(), "robot-1:/tmp/file"]);
    run(&["cp", "robot-1:/tmp/file", &back.display().to_string()]);
    assert!(
        std::fs::read(&back).expect("a file") == content,
        "the file came back changed"
    );
    let talker = yaml::shell_pod("talker", "yes a long log of a robot | head -n 50000; exec sleep 100001");
    kubectl.apply(&talker).expect("apply");
    kubectl
        .wait_ready("talker", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
    robot.soon("kubectl logs brings all", START, || {
        match run(&["logs", "talker"]).lines().count() {
            50_000 => Ok(()),
            lines => Err(format!("{lines} lines")),
        }
    });
    run(&["delete", "pod", "talker", "--now"]);
}

/// What `link` has to say one way gets lost: people see that it does not answer, and the others carry all.
fn one_way_disappears(robot: &Robot, link: &str, action: Action) {
    robot.edge.uplinks().apply(link, action).expect("the emulator runs");
    robot.soon(&format!("{link} is shown as bad after {action:?}"), SUSPECTED, || {
        robot.answers();
        let shown = robot.edge.links().expect("kedge links");
        match shown.contains(&format!("\n{link}: no answer for ")) {
            true => Ok(()),
            false => Err(shown),
        }
    });
    let script = format!("yes robot | head -c {BULK}");
    let brought = robot.hub.kubectl.run(&["exec", "robot-1", "--", "sh", "-c", &script]);
    assert_eq!(brought.unwrap_or_else(|e| panic!("{e}\n{}", robot.tails())).len(), BULK);
    robot
        .edge
        .uplinks()
        .apply(link, Action::Restore)
        .expect("the emulator runs");
    robot.all_up(BACK);
}

/// What an administrator's Prometheus gets of the hub.
fn metrics_tell_what_was_carried(robot: &Robot) {
    let text = robot.hub.admin("/metrics").expect("the admin socket answers");
    let families = exposition::parse(&text).unwrap_or_else(|e| panic!("{e:#}\n{text}"));
    let value = |family: &str, labels: &[(&str, &str)]| {
        let Some(Family { samples, .. }) = families.get(family) else {
            panic!("{family} is not in\n{text}")
        };
        let found = samples.iter().find(|sample| sample.has(labels));
        found
            .unwrap_or_else(|| panic!("no {family} of {labels:?} in\n{text}"))
            .value
    };
    assert_eq!(value("kedge_sessions", &[]), 1.0);
    let bytes = |way| value("kedge_session_bytes_total", &[("node", "robot-1"), ("direction", way)]);
    assert!(bytes("received") > 3.0 * BULK as f64, "{text}");
    assert!(bytes("sent") > 2_000_000.0, "{text}");
    for (state, count) in [("up", 3.0), ("suspect", 0.0)] {
        let labels = [("node", "robot-1"), ("state", state)];
        assert_eq!(value("kedge_session_paths", &labels), count, "{text}");
    }
    assert!(
        value("kedge_session_repaired_total", &[("node", "robot-1")]) > 0.0,
        "{text}"
    );
}
