//! Outages that are longer than a dead hub may stay unnoticed, which the session outlives: no link at all, and processes that are stopped.

use std::time::{Duration, Instant};

use kit::kubectl::is_true;
use kit::process::cpu_seconds;
use kit::suite::{START, embedded, has_each_second};
use kit::wait::State;
use kit::{Site, wait_for, yaml};
use linkem::Action;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Robot, into_file};

/// A minute in a tunnel.
const TUNNEL: Duration = Duration::from_secs(60);
/// How long a process is stopped.
const STOPPED: Duration = Duration::from_secs(30);
/// How soon people see that a robot is away: 10 s, a write, and what a busy machine adds.
const NOTICED: Duration = Duration::from_secs(13);
/// How soon people see that a robot is back: 2 s, and what asking for it takes on a busy machine.
const BACK: Duration = Duration::from_secs(3);
/// How soon a stopped hub is noticed by the robot: 10 s, and a look at it.
const HUB_NOTICED: Duration = Duration::from_millis(11_500);
/// How soon a robot that answers is Ready: its status is written in the same breath.
const READY: Duration = Duration::from_secs(10);
/// CPU time that hub and robot may take in a minute in which nothing can be said, though there is something to say. They take 0.1 and 0.6 s (the
/// robot looks for a way); a hub that tries each millisecond took 2.2.
const IDLE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Lines of the exec that goes through the outage, ten a second.
const LINES: u32 = 900;

#[test]
fn exec_and_logs_outlive_a_minute_without_any_link() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let robot = Robot::start(&site, &hub, 1);
    let session = robot.edge.session().expect("a session");
    let (followed, counted) = (site.dir().join("followed"), site.dir().join("counted"));
    let mut logs = into_file(hub.kubectl.command(&["logs", "-f", "robot-1"]), &followed);
    let script = format!("i=0; while [ $i -lt {LINES} ]; do i=$((i + 1)); echo $i; sleep 0.1; done");
    let args = ["exec", "robot-1", "--", "sh", "-c", &script];
    let mut exec = into_file(hub.kubectl.command(&args), &counted);
    let lines = || std::fs::read_to_string(&counted).map_or(0, |text| text.lines().count());
    robot.soon("exec counts", START, || match lines() {
        0..10 => Err(format!("{} lines", lines())),
        _ => Ok(()),
    });

    let (cut, since) = (robot.edge.set_link(false), Instant::now());
    cut.expect("cut");
    robot.connected(false, NOTICED);
    println!("away {:?} after the cut", since.elapsed());
    away_is_said_at_once(&robot);
    // The carrier's NAT forgets it meanwhile.
    robot
        .edge
        .uplinks()
        .apply("g5", Action::Rebind)
        .expect("the emulator runs");
    // Something that waits for the return.
    let labelled = hub.kubectl.output(&["label", "node", "robot-1", "tunnel=long"]);
    assert!(labelled.expect("kubectl").status.success(), "{}", robot.tails());
    let before = cpu_times(&robot);
    robot.soon("a minute is over", TUNNEL, || match since.elapsed() {
        passed if passed >= TUNNEL => Ok(()),
        passed => Err(format!("{passed:?}")),
    });
    let (took, passed) = (cpu_times(&robot), since.elapsed());
    for ((which, limit), (took, before)) in ["hub", "edgecore"].iter().zip(IDLE).zip(took.into_iter().zip(before)) {
        let took = took.saturating_sub(before);
        println!("the {which} was busy for {took:?} of {passed:?}");
        assert!(took < limit, "the {which} was busy for {took:?} of {passed:?}");
    }
    let restored = robot.edge.uplinks().apply("g5", Action::Restore);
    restored.expect("the emulator runs");
    robot.connected(true, BACK);
    robot.edge.set_link(true).expect("restore");

    let ended = wait_for("exec ends", START, || match exec.try_wait() {
        Ok(Some(status)) => State::Done(status),
        other => State::Not(format!("{other:?}, {} lines", lines())),
    });
    let (status, _) = ended.unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
    assert!(status.success(), "{status}\n{}", robot.tails());
    let text = std::fs::read_to_string(&counted).expect("what exec brought");
    let wanted: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
    assert!(text == wanted, "a line is missing or doubled: {text}");
    robot.all_up(START);
    assert_eq!(robot.edge.session().ok(), Some(session), "{}", robot.tails());
    assert_eq!(logs.try_wait().expect("kubectl logs"), None, "logs -f has ended");
    logs.kill().expect("kubectl logs is ours");
    logs.wait().expect("its end");
    let text = std::fs::read_to_string(&followed).expect("what logs -f printed");
    has_each_second(&text);
    assert!(text.lines().count() > 80, "it did not go on: {text}");
    robot.nothing_restarted();
}

/// CPU time of the hub and of edgecore so far.
fn cpu_times(robot: &Robot) -> [Duration; 2] {
    [robot.hub.pid(), robot.edge.pid()].map(|pid| {
        let used = cpu_seconds(pid.expect("it runs")).expect("what the kernel says of it");
        Duration::from_secs_f64(used)
    })
}

/// Nobody waits for a robot that no link leads to, and it knows that itself.
fn away_is_said_at_once(robot: &Robot) {
    for args in [&["logs", "robot-1"][..], &["exec", "robot-1", "--", "true"]] {
        let asked = Instant::now();
        let output = robot.hub.kubectl.output(args).expect("kubectl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{args:?} of a robot that is away");
        // Of logs kubectl shows the code alone.
        let why = ["is away since", "ServiceUnavailable"];
        assert!(why.iter().any(|why| said.contains(why)), "{args:?}: {said}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
    let at_hub = robot.hub.session("robot-1");
    assert!(at_hub.is_err(), "the hub shows a session: {at_hub:?}");
    let shown = robot.edge.links().expect("kedge links");
    assert!(shown.contains("\nNo link to the hub: session "), "{shown}");
}

#[test]
fn a_stopped_edgecore_and_a_stopped_hub_go_on_with_the_same_session() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let robot = Robot::start(&site, &hub, 1);
    let session = robot.edge.session().expect("a session");

    let stopped = Stopped::new(robot.edge.pid());
    robot.connected(false, NOTICED);
    let meanwhile = yaml::shell_pod("meanwhile", yaml::CLOCK).replace("spec:\n", "spec:\n  nodeName: robot-1\n");
    hub.kubectl.apply(&meanwhile).expect("apply");
    stopped.go_on(&robot);
    robot.connected(true, BACK);
    let ready = hub.kubectl.wait_ready("meanwhile", START);
    ready.unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
    goes_on(&robot, session);

    // And the hub at once after it, while the robot's picture of the link is fresh: its last answers were late.
    let script = "sleep 20; echo done";
    let short =
        yaml::shell_pod("short", script).replace("spec:\n", "spec:\n  nodeName: robot-1\n  restartPolicy: Never\n");
    hub.kubectl.apply(&short).expect("apply");
    let ready = hub.kubectl.wait_ready("short", START);
    ready.unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
    let stopped = Stopped::new(hub.pid());
    robot.soon(
        "the robot notices that its hub is silent",
        HUB_NOTICED,
        || match robot.edge.paths() {
            Ok(shown) if shown["session"]["dormant"] == true => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    stopped.go_on(&robot);
    let ended = hub
        .kubectl
        .wait(&["pod", "short"], START, |pod| pod["status"]["phase"] == "Succeeded");
    let (_, took) = ended.unwrap_or_else(|e| panic!("what ended meanwhile: {e}\n{}", robot.tails()));
    println!("what ended meanwhile is known after {took:?}");
    goes_on(&robot, session);
    for pod in ["robot-1", "meanwhile", "short"] {
        let found = hub.kubectl.get(&["pod", pod]).expect("kubectl");
        assert!(found.is_some(), "{pod} is lost");
    }
}

/// The same session over all links, the same containers, and the node is Ready.
fn goes_on(robot: &Robot, session: u64) {
    robot.node("is Ready", READY, |node| {
        is_true(node, "Ready") && is_true(node, "EdgeConnected")
    });
    robot.all_up(START);
    assert_eq!(robot.edge.session().ok(), Some(session), "{}", robot.tails());
    robot.answers();
    robot.nothing_restarted();
}

/// A process that is stopped (SIGSTOP) until it goes on or the test ends.
struct Stopped {
    pid: Pid,
    since: Instant,
}

impl Stopped {
    fn new(pid: Option<u32>) -> Self {
        let pid = Pid::from_raw(pid.expect("it runs").cast_signed());
        kill(pid, Signal::SIGSTOP).expect("a process of ours");
        let since = Instant::now();
        Self { pid, since }
    }

    /// Lets it go on after [`STOPPED`].
    fn go_on(self, robot: &Robot) {
        robot.soon("half a minute is over", STOPPED, || match self.since.elapsed() {
            passed if passed >= STOPPED => Ok(()),
            passed => Err(format!("{passed:?}")),
        });
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that is gone needs none.
        let _ = kill(self.pid, Signal::SIGCONT);
    }
}
