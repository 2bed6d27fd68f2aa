//! The program between real namespaces, as root: UDP through links with loss, black holes, a device down, a NAT rebind, and what is left behind.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use linkem::Fate;
use linkem::run::{Scenario, inside};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

/// Longer than anything takes on the busiest machine.
const LIMIT: Duration = Duration::from_secs(60);
const HUB: &str = "203.0.113.1:7000";

/// Polls `look` until it says something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A running `linkem run --commands`.
struct Run {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    edge: String,
    hub: String,
    _folder: tempfile::TempDir,
}

impl Run {
    fn start(scenario: &str) -> Self {
        let folder = tempfile::tempdir().expect("/tmp is there");
        let file = folder.path().join("scenario.yaml");
        std::fs::write(&file, scenario).expect("the folder is ours");
        let mut child = Command::new(env!("CARGO_BIN_EXE_linkem"))
            .args(["run", "--commands"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo built linkem");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let stdin = child.stdin.take();
        let mut run = Self {
            child,
            stdin,
            lines,
            edge: String::new(),
            hub: String::new(),
            _folder: folder,
        };
        let ready = run.line();
        let name = |key: &str| {
            ready
                .split(' ')
                .find_map(|word| word.strip_prefix(key))
                .expect("ready names the namespaces")
                .to_owned()
        };
        assert!(ready.starts_with("ready "), "{ready}");
        (run.edge, run.hub) = (name("edge="), name("hub="));
        run
    }

    fn line(&mut self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line from linkem")
    }

    fn say(&mut self, command: &str) -> String {
        writeln!(self.stdin.as_mut().expect("it is piped"), "{command}").expect("linkem reads commands");
        self.line()
    }

    fn tell(&mut self, command: &str) {
        assert_eq!(self.say(command), "ok", "{command}");
    }

    /// The counters of one way of a link.
    fn way(&mut self, link: &str, way: &str) -> Value {
        let report: Value = serde_json::from_str(&self.say("report")).expect("a report is JSON");
        let links = report["links"].as_array().expect("a list");
        links
            .iter()
            .find(|found| found["name"] == link)
            .expect("the scenario has the link")[way]
            .clone()
    }

    fn wait_way(&mut self, link: &str, way: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || Some(self.way(link, way)).filter(&holds))
    }

    /// A socket of the edge that uses one link.
    fn edge_socket(&self, device: &str) -> UdpSocket {
        inside(&self.edge, || {
            let socket = socket("0.0.0.0:0");
            setsockopt(&socket, sockopt::BindToDevice, &device.into()).expect("root may bind to a device");
            socket
        })
        .expect("the namespace is there")
    }

    fn hub_socket(&self) -> UdpSocket {
        inside(&self.hub, || socket(HUB)).expect("the namespace is there")
    }

    /// Ends it by the end of its commands, and returns its report.
    fn end(mut self) -> Value {
        self.stdin = None;
        let report = self.line();
        let child = &mut self.child;
        let status = wait_for("linkem ends", || child.try_wait().expect("it is our child"));
        assert!(status.success(), "{status}");
        assert!(
            !exists(&self.edge) && !exists(&self.hub),
            "its namespaces are still there"
        );
        serde_json::from_str(&report).expect("a report is JSON")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Of a failed test: by its id, and the namespaces with it. Of a good one there is nothing left.
        drop(self.stdin.take());
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > LIMIT {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("the address is the namespace's own");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("it is not zero");
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("root may have large buffers");
    socket
}

fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

/// What came within the socket's timeout.
fn try_receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Some((buffer[..length].to_vec(), from)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("receive: {error}"),
    }
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    wait_for("a packet", || try_receive(socket))
}

fn ip(namespace: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new("ip")
        .args(["-n", namespace])
        .args(args)
        .output()
        .expect("iproute2 is there");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("it prints text")
}

/// A counter of the kernel in `namespace`, from a table of names and a table of numbers.
fn counter(namespace: &str, file: &str, table: &str, name: &str) -> u64 {
    let path = Path::new("/proc/thread-self/net").join(file);
    let text = inside(namespace, || std::fs::read_to_string(path));
    let text = text.expect("the namespace is there").expect("it can be read");
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with(table)).collect();
    let at = rows[0]
        .split(' ')
        .position(|found| found == name)
        .expect("the kernel counts it");
    let number = rows[1].split(' ').nth(at).and_then(|number| number.parse().ok());
    number.expect("a number under each name")
}

#[test]
fn three_links_lose_the_packets_that_their_seed_names() {
    const PACKETS: u64 = 400;
    let text = "seed: 5\nlinks:\n- {name: g5, up: {rate: {fixed: 50Mbit}, delay: 15ms, loss: {iid: 0.05}}}\n\
                - {name: lte, up: {rate: {lte: {seed: 3}}, delay: 30ms, loss: {gilbertElliott: {p: 0.02, r: 0.25}}}}\n\
                - {name: wifi, up: {rate: {fixed: 20Mbit}, delay: 8ms, jitter: {uniform: 3ms}, loss: {iid: 0.08}}}\n";
    let scenario = Scenario::parse(text, Path::new(".")).unwrap();
    let mut run = Run::start(text);
    let hub = run.hub_socket();
    for (index, link) in ["g5", "lte", "wifi"].into_iter().enumerate() {
        let (mut model, _) = scenario.directions(index);
        let expected: BTreeSet<u64> = (0..PACKETS)
            .filter(|_| matches!(model.offer(0, 128), Fate::Deliver { .. }))
            .collect();
        let edge = run.edge_socket(link);
        for number in 0..PACKETS {
            let mut packet = [0; 100];
            packet[..8].copy_from_slice(&number.to_be_bytes());
            edge.send_to(&packet, HUB).unwrap();
        }
        let mut came = BTreeSet::new();
        while came.len() < expected.len() {
            let (packet, from) = receive(&hub);
            assert!(
                from.ip().to_string().starts_with("198.18."),
                "{from} is no public address"
            );
            assert!(
                came.insert(u64::from_be_bytes(packet[..8].try_into().unwrap())),
                "twice"
            );
        }
        assert_eq!(came, expected, "{link}");
        let way = run.wait_way(link, "up", "all arrived", |way| way["arrived"] == expected.len());
        assert!(expected.len() < PACKETS as usize, "{link} lost nothing");
        assert_eq!(way["offered"], PACKETS, "{way}");
        assert_eq!(way["droppedLoss"], PACKETS - expected.len() as u64, "{way}");
        assert_eq!(try_receive(&hub), None);
    }
    let report = run.end();
    assert_eq!(report["links"].as_array().unwrap().len(), 3);
    assert!(
        report["samples"].as_array().is_some_and(|samples| !samples.is_empty()),
        "{report}"
    );
    assert!(report["lateness"]["p99Us"].as_f64().unwrap() > 0.0);
}

#[test]
fn black_holes_swallow_what_they_name_and_end() {
    let mut run =
        Run::start("edge: {sourceRules: true}\nlinks: [{name: a, up: {delay: 5ms}, down: {delay: 5ms}}, {name: b}]\n");
    let (hub, a, b) = (run.hub_socket(), run.edge_socket("a"), run.edge_socket("b"));
    a.send_to(b"before", HUB).unwrap();
    let (_, public) = receive(&hub);
    run.tell("blackHole a");
    for _ in 0..20 {
        a.send_to(b"lost", HUB).unwrap();
    }
    run.wait_way("a", "up", "20 are swallowed", |way| way["droppedBlackout"] == 20);
    b.send_to(b"other", HUB).unwrap();
    assert_eq!(receive(&hub).0, b"other");
    run.tell("restore a");
    run.tell("blackHoleDown a");
    a.send_to(b"one way", HUB).unwrap();
    assert_eq!(receive(&hub).0, b"one way");
    hub.send_to(b"lost", public).unwrap();
    run.wait_way("a", "down", "the answer is swallowed", |way| {
        way["droppedBlackout"] == 1
    });
    run.tell("restore a");
    hub.send_to(b"after", public).unwrap();
    assert_eq!(receive(&a).0, b"after");
    assert!(run.say("blackHole c").contains("no link 'c'; there are a, b"));
    assert!(run.say("explode a").starts_with("error: "));
    run.end();
}

#[test]
fn an_mtu_black_hole_swallows_large_packets_both_ways_until_it_ends() {
    let mut run = Run::start("links: [{name: a}]\n");
    let (hub, a) = (run.hub_socket(), run.edge_socket("a"));
    a.send_to(&[0; 1400], HUB).unwrap();
    let (_, public) = receive(&hub);
    run.tell("largest a 1280");
    a.send_to(&[1; 1253], HUB).unwrap();
    a.send_to(&[2; 1252], HUB).unwrap();
    assert_eq!(receive(&hub).0, [2; 1252], "headers have 28 bytes");
    hub.send_to(&[3; 1253], public).unwrap();
    hub.send_to(&[4; 1252], public).unwrap();
    assert_eq!(receive(&a).0, [4; 1252]);
    for way in ["up", "down"] {
        assert_eq!(run.way("a", way)["droppedSize"], 1);
    }
    run.tell("restore a");
    a.send_to(&[5; 1400], HUB).unwrap();
    assert_eq!(receive(&hub).0, [5; 1400]);
    run.end();
}

#[test]
fn a_device_that_is_down_loses_its_routes_and_gets_them_back() {
    let mut run = Run::start(
        "edge: {sourceRules: true}\nlinks: [{name: a}, {name: b, family: both, events: [{at: 0, action: down}]}]\n",
    );
    let hub = run.hub_socket();
    let routes = |run: &Run| ip(&run.edge, &["route"]);
    wait_for("the scenario's own event", || {
        (!routes(&run).contains("dev b")).then_some(())
    });
    assert!(
        routes(&run).contains("default via 10.90.1.1 dev a metric 100"),
        "{}",
        routes(&run)
    );
    let a = run.edge_socket("a");
    run.tell("down a");
    assert!(a.send_to(b"no way", HUB).is_err(), "{}", routes(&run));
    run.tell("up a");
    a.send_to(b"again", HUB).unwrap();
    let (packet, public) = receive(&hub);
    assert_eq!(packet, b"again");
    hub.send_to(b"answer", public).unwrap();
    assert_eq!(receive(&a).0, b"answer");
    run.end();
}

#[test]
fn a_rebind_shows_another_address_and_forgets_the_old_one() {
    let mut run = Run::start("edge: {sourceRules: true}\nlinks: [{name: a}, {name: b}]\n");
    let (hub, a, b) = (run.hub_socket(), run.edge_socket("a"), run.edge_socket("b"));
    let public = |socket: &UdpSocket| {
        socket.send_to(b"who am I", HUB).unwrap();
        receive(&hub).1
    };
    let (old, other) = (public(&a), public(&b));
    assert_eq!(public(&a), old, "a mapping stays");
    run.tell("rebind a");
    let new = public(&a);
    assert!(new.ip() != old.ip() && new.port() != old.port(), "{old} became {new}");
    assert_eq!(public(&b), other, "the other link keeps its mapping");
    hub.send_to(b"to the old", old).unwrap();
    hub.send_to(b"to the new", new).unwrap();
    assert_eq!(receive(&a).0, b"to the new");
    assert_eq!(run.way("a", "down")["offered"], 1);
    run.end();
}

#[test]
fn another_lease_is_another_address_and_another_mapping() {
    let mut run = Run::start("edge: {sourceRules: true}\nlinks: [{name: a}, {name: b}]\n");
    let (hub, b) = (run.hub_socket(), run.edge_socket("b"));
    let mut old = None;
    for address in ["10.90.2.2", "10.90.2.3", "10.90.2.4"] {
        assert!(ip(&run.edge, &["addr", "show", "dev", "b"]).contains(&format!("inet {address}/24 ")));
        b.send_to(b"ping", HUB).unwrap();
        let (_, public) = receive(&hub);
        assert_ne!(old.replace(public), Some(public));
        hub.send_to(address.as_bytes(), public).unwrap();
        assert_eq!(receive(&b).0, address.as_bytes());
        run.tell("readdress b");
    }
    run.end();
}

#[test]
fn a_flipped_bit_is_found_by_the_checksum_and_a_copy_comes_twice() {
    let mut run = Run::start("links: [{name: a, up: {duplicate: 1.0}, down: {corrupt: 1.0}}]\n");
    let (hub, a) = (run.hub_socket(), run.edge_socket("a"));
    a.send_to(b"twice", HUB).unwrap();
    assert_eq!(receive(&hub).0, b"twice");
    let (packet, public) = receive(&hub);
    assert_eq!(packet, b"twice");
    hub.send_to(&[7; 500], public).unwrap();
    let way = run.wait_way("a", "down", "it crossed the link", |way| way["arrived"] == 1);
    assert_eq!(way["corrupted"], 1, "{way}");
    wait_for("the kernel counts a wrong checksum", || {
        // It looks at the checksum when somebody asks for the packet.
        assert_eq!(try_receive(&a), None);
        (counter(&run.edge, "snmp", "Udp:", "InCsumErrors") == 1).then_some(())
    });
    run.end();
}

#[test]
fn strict_reverse_path_filtering_drops_answers_on_a_link_without_rules_of_its_own() {
    let mut run = Run::start("links: [{name: a}, {name: b}]\n");
    let (hub, a, b) = (run.hub_socket(), run.edge_socket("a"), run.edge_socket("b"));
    b.send_to(b"ping", HUB).unwrap();
    let (_, public) = receive(&hub);
    hub.send_to(b"pong", public).unwrap();
    run.wait_way("b", "down", "the answer crossed the link", |way| way["arrived"] == 1);
    let filtered = || (counter(&run.edge, "netstat", "TcpExt:", "IPReversePathFilter") == 1).then_some(());
    wait_for("the kernel counts a filtered packet", filtered);
    assert_eq!(try_receive(&b), None);
    // The link of the best route is not affected.
    a.send_to(b"ping", HUB).unwrap();
    let (_, public) = receive(&hub);
    hub.send_to(b"pong", public).unwrap();
    assert_eq!(receive(&a).0, b"pong");
    run.end();
}

#[test]
fn an_ipv6_link_has_no_ipv4_and_reaches_the_hub() {
    let run = Run::start("links: [{name: six, family: ipv6}]\n");
    let hub = inside(&run.hub, || socket("[2001:db8:ffff::1]:7000")).unwrap();
    let edge = inside(&run.edge, || socket("[::]:0")).unwrap();
    edge.send_to(b"ping", "[2001:db8:ffff::1]:7000").unwrap();
    let (packet, from) = receive(&hub);
    assert_eq!(
        (packet.as_slice(), from.ip().to_string().as_str()),
        (b"ping".as_slice(), "fd90:0:0:1::2")
    );
    hub.send_to(b"pong", from).unwrap();
    assert_eq!(receive(&edge).0, b"pong");
    assert_eq!(ip(&run.edge, &["-4", "route"]), "");
    run.end();
}

#[test]
fn a_killed_emulator_is_swept_by_the_next_and_a_timed_one_ends_itself() {
    let mut killed = Run::start("links: [{name: a}]\n");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    // Until another starts they are still there; another test may have started one by now.
    let mut timed = Run::start("duration: 300ms\nname: short\nlinks: [{name: a}]\n");
    assert!(!exists(&killed.edge) && !exists(&killed.hub), "the next one swept");
    let report: Value = serde_json::from_str(&timed.line()).unwrap();
    assert_eq!(report["scenario"], "short");
    assert!(report["seconds"].as_f64().unwrap() >= 0.3, "{report}");
    let child = &mut timed.child;
    assert!(wait_for("it ends by itself", || child.try_wait().unwrap()).success());
}

#[test]
fn the_selftest_measures_this_machine_and_says_by_its_code_what_it_found() {
    let output = Command::new(env!("CARGO_BIN_EXE_linkem"))
        .arg("selftest")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // However slow this machine is now, the lost packets are named by the seed.
    let loss = text
        .lines()
        .find(|line| line.starts_with("loss error"))
        .unwrap_or_default();
    assert!(
        loss.ends_with("ok"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let good = !text.contains("TOO MUCH");
    assert_eq!(output.status.code(), Some(i32::from(!good)), "{text}");
    assert_eq!(text.contains("quick enough"), good, "{text}");
}
