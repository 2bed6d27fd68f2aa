//! Suite `outages`: robots behind three uplinks that lose 5, 2 and 8 %, and what people see when more goes wrong: at the robot by `kedge links`,
//! at the hub by kubectl, and in containerd, where nothing may be started again.
//!
//! * `links`: a NAT that forgets, MTU black holes, one-way loss, new addresses. The session that was there goes on.
//! * `processes`: a minute without any link; edgecore, then the hub, stopped for half a minute. The same session goes on.

mod links;
mod processes;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kit::edge::Container;
use kit::kubectl::{condition, is_true};
use kit::suite::START;
use kit::uplinks::{NAMES, lossy};
use kit::wait::State;
use kit::{Edge, Hub, Site, wait_for, yaml};
use serde_json::Value;

/// A robot with a pod of its own, named as the robot, that prints each second.
struct Robot<'a> {
    hub: &'a Hub<'a>,
    edge: Edge<'a>,
    /// All that containerd had when the pod was ready.
    before: Vec<Container>,
}

impl<'a> Robot<'a> {
    /// Machine `number` with all its links up and its pod ready.
    fn start(site: &'a Site, hub: &'a Hub<'a>, number: u8) -> Self {
        site.uplinks().give(number, lossy());
        let name = format!("robot-{number}");
        let mut edge = Edge::new(site, number, &name).expect("a machine");
        edge.join(hub).expect("join");
        edge.start().expect("edgecore");
        let pod = yaml::shell_pod(&name, yaml::CLOCK).replace("spec:\n", &format!("spec:\n  nodeName: {name}\n"));
        let mut robot = Self {
            hub,
            edge,
            before: Vec::new(),
        };
        robot.node("is Ready", START, |node| is_true(node, "Ready"));
        hub.kubectl.apply(&pod).expect("apply");
        let ready = hub.kubectl.wait_ready(&name, START);
        ready.unwrap_or_else(|e| panic!("{e}\n{}", robot.tails()));
        robot.all_up(START);
        robot.before = robot.edge.all_containers().expect("containers");
        robot
    }

    fn name(&self) -> &str {
        &self.edge.name
    }

    fn tails(&self) -> String {
        format!(
            "{}\n{}\n{}",
            self.edge.links().unwrap_or_else(|error| error.to_string()),
            self.edge.tail(),
            self.hub.tail()
        )
    }

    /// Waits for something that must be so soon, and says how long it took.
    fn soon(&self, what: &str, limit: Duration, look: impl Fn() -> Result<(), String>) -> Duration {
        let what = format!("{}: {what}", self.name());
        let waited = wait_for(&what, limit, || match look() {
            Ok(()) => State::Done(()),
            Err(seen) => State::Not(seen),
        });
        let ((), took) = waited.unwrap_or_else(|e| panic!("{e}\n{}", self.tails()));
        println!("{what}: {took:?}");
        took
    }

    /// Waits until `kubectl get node` satisfies `holds`, and returns the node.
    fn node(&self, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Value {
        let waited = self.hub.kubectl.wait(&["node", self.name()], limit, holds);
        let (node, took) = waited.unwrap_or_else(|e| panic!("{} {what}: {e}\n{}", self.name(), self.tails()));
        println!("{} {what}: {took:?}", self.name());
        node
    }

    /// Waits until the hub says that the robot is there, or that no link leads to it; says how long that took.
    fn connected(&self, wanted: bool, limit: Duration) -> Duration {
        let (status, reason) = if wanted {
            ("True", "Connected")
        } else {
            ("False", "LinkLost")
        };
        let since = Instant::now();
        self.node(&format!("is EdgeConnected={status}"), limit, |node| {
            condition(node, "EdgeConnected").is_some_and(|now| now["status"] == status && now["reason"] == reason)
        });
        since.elapsed()
    }

    /// Both ends see a live path over each link, and agree on the session.
    fn all_up(&self, limit: Duration) {
        self.soon("all links are up", limit, || {
            let (at_robot, at_hub) = (self.edge.session(), self.hub.session(self.name()));
            let (at_robot, (at_hub, paths)) = match (at_robot, at_hub) {
                (Ok(at_robot), Ok(at_hub)) => (at_robot, at_hub),
                other => return Err(format!("{other:?}")),
            };
            let up = |name: &str| paths.get(name).is_some_and(|path| path.state == "up") && self.state(name) == "up";
            match at_robot == at_hub && NAMES.into_iter().all(up) {
                true => Ok(()),
                false => Err(format!("session {at_robot} and {at_hub}: {paths:?}")),
            }
        });
    }

    /// The state of an uplink by `kedge links`.
    fn state(&self, uplink: &str) -> String {
        let shown = self.edge.paths().expect("kedge links");
        let mut paths = shown["paths"].as_array().into_iter().flatten();
        let path = paths.find(|path| path["uplink"] == uplink && path["transport"] != "tcp");
        path.and_then(|path| path["state"].as_str())
            .unwrap_or("unknown")
            .to_owned()
    }

    /// Waits for a word of the pod through the tunnel.
    fn answers(&self) {
        let said = self.hub.kubectl.run(&["exec", self.name(), "--", "echo", "here"]);
        assert_eq!(said.unwrap_or_else(|e| panic!("{e}\n{}", self.tails())), "here\n");
    }

    /// The same containers, the same processes, perhaps others beside them.
    fn nothing_restarted(&self) {
        let now = self.edge.all_containers().expect("containers");
        let gone: Vec<_> = self.before.iter().filter(|before| !now.contains(before)).collect();
        assert!(gone.is_empty(), "{gone:?} of {now:?}\n{}", self.tails());
        let pod = self
            .hub
            .kubectl
            .get(&["pod", self.name()])
            .expect("kubectl")
            .expect("it is there");
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    }
}

/// Starts a command whose output goes into a file.
fn into_file(mut command: Command, file: &Path) -> Child {
    let file = File::create(file).expect("a file");
    let started = command.stdin(Stdio::null()).stdout(file).spawn();
    started.expect("kubectl")
}
