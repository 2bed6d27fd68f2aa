//! Suite `uplinks`: a robot whose three uplinks are bad links of `tests/linkem`, behind a NAT, and one whose uplinks come and go. Only
//! the configuration of the one with a budget says a word of uplinks.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kit::kubectl::{condition, is_true};
use kit::suite::{START, embedded, has_each_second, robot};
use kit::uplinks::{NAMES, lossy};
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

/// What exec brings: 100 MB.
const SENT: u64 = 100_000_000;

#[test]
fn what_runs_over_three_lossy_uplinks_outlives_the_death_of_each() {
    let site = Site::new().expect("a site");
    site.uplinks().give(1, lossy());
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let tails = || format!("{}\n{}", edge.tail(), hub.tail());
    hub.kubectl.apply(&yaml::shell_pod("web", yaml::CLOCK)).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", tails()));

    let (followed, received) = (site.dir().join("followed"), site.dir().join("received"));
    let mut logs = into_file(hub.kubectl.command(&["logs", "-f", "web"]), &followed);
    let produce = format!("yes robot | head -c {SENT}");
    let command = hub.kubectl.command(&["exec", "web", "--", "sh", "-c", &produce]);
    let mut exec = into_file(command, &received);
    each_dies_in_turn(&edge, || exec.try_wait().is_ok_and(|ended| ended.is_none()));
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

/// Black-holes one link after the other for 3 s; `runs`: whether what is tried has not ended by then.
fn each_dies_in_turn(edge: &kit::Edge<'_>, mut runs: impl FnMut() -> bool) {
    for link in NAMES {
        std::thread::sleep(Duration::from_secs(2));
        assert!(runs(), "it ended before {link} died: nothing is shown");
        edge.uplinks().apply(link, Action::BlackHole).expect("a black hole");
        std::thread::sleep(Duration::from_secs(3));
        edge.uplinks().apply(link, Action::Restore).expect("its end");
    }
}

#[test]
fn copies_and_forwarded_ports_outlive_the_death_of_each_uplink() {
    let site = Site::new().expect("a site");
    site.uplinks().give(1, lossy());
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let tails = || format!("{}\n{}", edge.tail(), hub.tail());
    let script = format!("mkdir /www; yes robot | head -c {SENT} > /www/file; exec httpd -f -p 8080 -h /www");
    hub.kubectl.apply(&yaml::shell_pod("web", &script)).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", tails()));
    let made = || match hub.kubectl.run(&["exec", "web", "--", "stat", "-c", "%s", "/www/file"]) {
        Ok(size) if size.trim() == SENT.to_string() => State::Done(()),
        other => State::Not(format!("{other:?}")),
    };
    wait_for("the pod's file", START, made).unwrap_or_else(|e| panic!("{e}\n{}", tails()));

    let (here, fetched) = (site.dir().join("here"), site.dir().join("fetched"));
    let line = b"robot\n".iter().copied().cycle();
    let bytes: Vec<u8> = line.take(SENT.try_into().expect("it fits")).collect();
    std::fs::write(&here, &bytes).expect("a file");
    let mut forward = hub.kubectl.command(&["port-forward", "pod/web", "18081:8080"]);
    let mut forward = forward.stdout(Stdio::null()).spawn().expect("port-forward");
    let mut download = site.command("hub", Path::new("curl"));
    download.args([
        "-sf",
        "--retry",
        "60",
        "--retry-connrefused",
        "--retry-delay",
        "1",
        "-o",
    ]);
    let mut download = download
        .arg(&fetched)
        .arg("http://127.0.0.1:18081/file")
        .spawn()
        .expect("curl");
    let mut copy = hub
        .kubectl
        .command(&["cp", &here.display().to_string(), "web:/www/copied"]);
    let mut copy = copy.stdin(Stdio::null()).spawn().expect("kubectl cp");

    each_dies_in_turn(&edge, || {
        let running = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_none());
        running(&mut copy) && running(&mut download)
    });
    for (what, child) in [("kubectl cp", &mut copy), ("the download", &mut download)] {
        let ended = wait_for(what, START, || match child.try_wait() {
            Ok(Some(status)) => State::Done(status),
            other => State::Not(format!("{other:?}")),
        });
        let (status, after) = ended.unwrap_or_else(|e| panic!("{e}\n{}\n{}", links(&edge), tails()));
        println!("{what}: {after:?} after the last link came back");
        assert!(status.success(), "{what}: {status}\n{}", tails());
    }
    forward.kill().expect("port-forward is ours");
    forward.wait().expect("its end");
    is_whole(&std::fs::read(&fetched).expect("what curl fetched"));
    hub.kubectl
        .run(&["exec", "web", "--", "cmp", "/www/copied", "/www/file"])
        .unwrap_or_else(|e| panic!("what cp brought: {e}"));
}

#[test]
fn uplink_that_has_spent_its_month_is_a_condition_of_the_node_and_stays_so_over_a_restart() {
    let site = Site::new().expect("a site");
    site.uplinks().give(1, lossy());
    let hub = embedded(&site);
    let mut edge = kit::Edge::new(&site, 1, "robot-1").expect("a machine");
    edge.join(&hub).expect("join");
    // A handshake and the first words are more.
    give_a_budget(&edge, "lte", "10k");
    edge.start().expect("edgecore");
    let tails = |edge: &kit::Edge<'_>| format!("{}\n{}", edge.tail(), hub.tail());
    let exceeded = |n: &serde_json::Value| is_true(n, "UplinkBudgetExceeded") && is_true(n, "Ready");
    let (node, _) = hub
        .kubectl
        .wait(&["node", "robot-1"], START, exceeded)
        .unwrap_or_else(|e| panic!("{e}\n{}", tails(&edge)));
    let said = condition(&node, "UplinkBudgetExceeded").expect("it is there");
    assert_eq!(said["reason"], "MonthlyBudgetSpent");
    let message = said["message"].as_str().expect("a message");
    assert!(message.contains("uplink lte") && message.contains("10k"), "{message}");

    edge.stop().expect("a clean stop");
    edge.start().expect("edgecore");
    // The first answer: this process has carried nothing yet.
    let shown = || match edge.links() {
        Ok(shown) => State::Done(shown),
        Err(error) => State::Not(error.to_string()),
    };
    let (shown, _) = wait_for("kedge links answers", START, shown).unwrap_or_else(|e| panic!("{e}\n{}", tails(&edge)));
    println!("{shown}");
    assert!(line(&shown, "lte").contains(" of 10.0 kB spent"), "{shown}");
    assert!(!line(&shown, "wifi").contains("spent"), "{shown}");
}

/// The line of an uplink.
fn line<'a>(shown: &'a str, uplink: &str) -> &'a str {
    shown.lines().find(|line| line.starts_with(uplink)).unwrap_or_default()
}

/// What the machine's owner writes into edgecore.yaml.
fn give_a_budget(edge: &kit::Edge<'_>, uplink: &str, monthly: &str) {
    let path = edge.dir().join("etc/edgecore.yaml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    let mut config: serde_json::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let uplinks = NAMES.map(|name| match name == uplink {
        true => serde_json::json!({"name": name, "device": name, "metered": {"monthlyBudget": monthly}}),
        false => serde_json::json!({"name": name, "device": name}),
    });
    config["uplinks"] = uplinks.into();
    std::fs::write(&path, serde_yaml_ng::to_string(&config).expect("YAML")).expect("the configuration");
}

#[test]
fn a_robot_at_a_site_that_blocks_udp_works_over_tcp() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    // From now on, as a firewall does it: without a word.
    let rules = site.dir().join("site.nft");
    let text = "table inet site { chain input { type filter hook input priority 0; meta l4proto udp drop; }\n}\n";
    std::fs::write(&rules, text).expect("a file");
    let filter = site.command("hub", Path::new("nft")).arg("-f").arg(&rules).output();
    assert!(
        filter.as_ref().is_ok_and(|output| output.status.success()),
        "{filter:?}"
    );
    let edge = robot(&site, &hub);
    let tails = || format!("{}\n{}", edge.tail(), hub.tail());
    let pod = yaml::shell_pod("web", "exec sleep 100001");
    hub.kubectl.apply(&pod).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", tails()));
    let said = hub
        .kubectl
        .run(&["exec", "web", "--", "echo", "over tcp"])
        .unwrap_or_else(|e| panic!("{e}\n{}", tails()));
    assert_eq!(said, "over tcp\n");
    let shown = links(&edge);
    let line = shown.lines().find(|line| line.starts_with("default "));
    assert!(
        line.is_some_and(|line| line.contains(" up ") && line.contains(" tcp ")),
        "{shown}"
    );
}

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

/// What a person at the robot sees.
fn links(edge: &kit::Edge<'_>) -> String {
    edge.links().expect("kedge links")
}

/// `kedge` with arguments that end in a file of the machine's folder.
fn kedge(edge: &kit::Edge<'_>, args: &[&str], file: &str) -> Output {
    let mut command = edge.command(&kit::paths::ours("kedge"));
    command.args(args).arg(edge.dir().join(file));
    command.output().expect("kedge")
}

/// The line of `kedge check` about an uplink.
fn checked(edge: &kit::Edge<'_>, uplink: &str) -> String {
    let output = kedge(edge, &["check", "--config"], "etc/edgecore.yaml");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find(|line| line.contains(&format!("uplink {uplink}:")));
    line.unwrap_or_else(|| panic!("{uplink} is not in {text}")).to_owned()
}

/// Waits for the links that are up, and shows all.
fn wait_up(edge: &kit::Edge<'_>, wanted: &[&str]) -> String {
    let up = || {
        let shown = links(edge);
        let lines = shown.lines().filter(|line| line.contains(" up "));
        let mut names: Vec<_> = lines.filter_map(|line| line.split_whitespace().next()).collect();
        names.sort_unstable();
        if names == wanted {
            State::Done(shown)
        } else {
            State::Not(shown)
        }
    };
    let waited = wait_for(&format!("{wanted:?} are up"), START, up);
    waited.unwrap_or_else(|e| panic!("{e}\n{}", edge.tail())).0
}

/// Runs lines of shell on the machine, as its owner would.
fn on_robot(edge: &kit::Edge<'_>, script: &str) {
    let done = edge
        .command(Path::new("sh"))
        .args(["-ec", script])
        .output()
        .expect("sh");
    assert!(done.status.success(), "{script}: {done:?}");
}

/// Bytes that a device of the robot has sent.
fn sent(edge: &kit::Edge<'_>, device: &str) -> u64 {
    let mut command = edge.command(Path::new("ip"));
    let output = command.args(["-j", "-s", "link", "show", device]).output().expect("ip");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    links[0]["stats64"]["tx"]["bytes"].as_u64().expect("a counter")
}

/// Plugged in as wwan0, with addresses and routes as a network manager sets them, and with the filter of most distributions.
fn plug_in_a_modem(site: &Site, edge: &kit::Edge<'_>) {
    let (there, here) = (site.namespace("hub"), site.namespace("e1"));
    let plug = format!(
        "ip -n {there} link add f1 type veth peer name wwan0 netns {here}
         ip -n {there} addr add 10.97.1.1/24 dev f1
         ip -n {there} link set f1 up"
    );
    let plugged = Command::new("sh").args(["-ec", &plug]).status().expect("sh");
    assert!(plugged.success());
    on_robot(
        edge,
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wwan0.rp_filter=1
         ip addr add 10.97.1.2/24 dev wwan0
         ip link set wwan0 up
         ip route add default via 10.97.1.1 dev wwan0 metric 700",
    );
}

#[test]
fn a_modem_is_used_when_it_is_plugged_in_and_carries_on_alone() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    hub.kubectl
        .apply(&yaml::shell_pod("web", "exec sleep 100001"))
        .expect("apply");
    let tails = || format!("{}\n{}", edge.tail(), hub.tail());
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", tails()));
    wait_up(&edge, &["default"]);

    plug_in_a_modem(&site, &edge);
    let shown = wait_up(&edge, &["eth0"]);
    assert!(
        shown.lines().any(|line| line.starts_with("wwan0")),
        "it is not known:\n{shown}"
    );
    let verdict = checked(&edge, "wwan0");
    assert!(
        verdict.starts_with("BAD") && verdict.contains("rp_filter is 1"),
        "{verdict}"
    );
    let (_, fix) = verdict.split_once("Or give it a route of its own: ").expect("a fix");
    on_robot(&edge, fix);
    assert!(
        checked(&edge, "wwan0").starts_with("ok"),
        "after {fix}: {}",
        checked(&edge, "wwan0")
    );
    wait_up(&edge, &["eth0", "wwan0"]);

    let produce = |count: u32| {
        let script = format!("yes robot | head -c {count}");
        let out = hub.kubectl.run(&["exec", "web", "--", "sh", "-c", &script]);
        assert_eq!(out.unwrap_or_else(|e| panic!("{e}\n{}", tails())).len(), count as usize);
    };
    // Without a rate either of them carries all that the CPU gives.
    for device in ["eth0", "wwan0"] {
        let rate = "root tbf rate 100mbit burst 64kb latency 50ms";
        on_robot(&edge, &format!("tc qdisc add dev {device} {rate}"));
    }
    let before = ["eth0", "wwan0"].map(|device| sent(&edge, device));
    produce(30_000_000);
    for (device, before) in ["eth0", "wwan0"].into_iter().zip(before) {
        let carried = sent(&edge, device) - before;
        assert!(carried > 300_000, "{device} carried {carried} bytes");
    }

    // And the cable is pulled out, card and all.
    on_robot(&edge, "ip link del eth0");
    produce(3_000_000);
    let shown = wait_up(&edge, &["wwan0"]);
    assert!(!shown.contains("eth0"), "it is gone:\n{shown}");
    assert!(
        shown.contains("Session 1: "),
        "the session that it began with went on:\n{shown}"
    );
}
