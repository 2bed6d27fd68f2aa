//! What comes to a listener that no client of ours sends: each serves those whom it knows meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use kit::suite::{START, embedded, robot};
use kit::{Edge, Hub, Site, yaml};
use serde_json::Value;

use crate::crowd::{self, ANSWER, Habit, besiege, client_hello, noise};
use crate::tunnel;

/// Goes to the hub's listeners as an edge or a stranger would.
struct Hostile<'a, 'b> {
    site: &'a Site,
    hub: &'a Hub<'a>,
    edge: &'a mut Edge<'b>,
    tcp: Vec<SocketAddr>,
    checked: usize,
}

impl Hostile<'_, '_> {
    /// A new pod starts and its log is read, through all that was pestered.
    fn all_is_well(&mut self, after: &str) {
        self.checked += 1;
        let name = format!("well-{}", self.checked);
        let manifest = yaml::shell_pod(&name, "echo well; exec sleep 100000");
        let kubectl = &self.hub.kubectl;
        let told = kubectl
            .apply(&manifest)
            .and_then(|_| kubectl.wait_ready(&name, START))
            .and_then(|_| kubectl.run(&["logs", &name]))
            .and_then(|log| {
                kubectl.run(&["delete", "pod", &name, "--wait=false"])?;
                Ok(log)
            });
        let log = told.unwrap_or_else(|e| panic!("after {after}: {e}\n{}\n{}", self.edge.tail(), self.hub.tail()));
        assert_eq!(log, "well\n", "after {after}");
    }

    /// All that have business at the hub's listeners: a person at the API, who follows the tunnel to a robot's log; a robot that joins.
    fn all_are_served(&mut self, during: &str) {
        for _ in 0..3 {
            let nodes = self
                .hub
                .kubectl
                .run(&["get", "nodes", "-o", "name", "--request-timeout=20s"]);
            let nodes = nodes.unwrap_or_else(|e| panic!("during {during}: {e}\n{}", self.hub.tail()));
            assert!(nodes.contains("node/robot-1"), "during {during}: {nodes}");
        }
        self.checked += 1;
        let name = format!("late-{}", self.checked);
        let dir = self.site.dir().join(&name);
        tunnel::join(self.site, self.hub, &name, &dir)
            .unwrap_or_else(|e| panic!("during {during}: {e}\n{}", self.hub.tail()));
        self.all_is_well(during);
    }

    /// Connects to each TCP listener and lets `speak` talk.
    fn speak(&self, speak: impl Fn(TcpStream) + Sync) {
        self.site.inside("hub", || {
            for address in &self.tcp {
                let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
                stream.set_read_timeout(Some(ANSWER)).expect("a timeout");
                stream.set_write_timeout(Some(ANSWER)).expect("a timeout");
                speak(stream);
            }
        });
    }

    /// curl in the hub's namespace; gives the HTTP status, 000 when there was no answer.
    fn curl(&self, args: &[&str], address: SocketAddr, path: &str) -> String {
        let mut command = self.site.command("hub", Path::new("curl"));
        command.args(["-sk", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]);
        let output = command.args(args).arg(format!("https://{address}{path}")).output();
        String::from_utf8_lossy(&output.expect("curl").stdout).into_owned()
    }
}

/// The port on which the hub serves the robot's kubelet API.
fn kubelet_port(hub: &Hub) -> u16 {
    let node = hub
        .kubectl
        .get(&["node", "robot-1"])
        .expect("get")
        .expect("it is there");
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    u16::try_from(port.expect("a port")).expect("a port")
}

#[test]
fn listeners_survive_what_no_client_sends() {
    crowd::raise_file_limit();
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let mut edge = robot(&site, &hub);
    let tcp = [6443, 6444, kubelet_port(&hub)].map(|port| SocketAddr::from(([10, 98, 0, 1], port)));
    let mut hostile = Hostile {
        site: &site,
        hub: &hub,
        edge: &mut edge,
        tcp: tcp.to_vec(),
        checked: 0,
    };
    hostile.all_is_well("nothing");
    speaks_nonsense(&mut hostile);
    floods_the_tunnel(&mut hostile);
    sends_too_much(&mut hostile);
    shows_wrong_certificates(&mut hostile);
    pesters_admin_sockets(&mut hostile);
    besieges_each_listener(&mut hostile);
    besieges_the_tunnel(&mut hostile);
    knocks_at_the_robot(&mut hostile);
    let log = fs::read_to_string(hub.dir().join("cloudhub.log")).expect("the hub's log");
    assert!(!log.contains("panicked"), "{log}");
    assert!(!edge.log().contains("panicked"), "{}", edge.log());
}

fn speaks_nonsense(hostile: &mut Hostile) {
    for seed in 0..20 {
        hostile.speak(|mut stream| {
            // The listener may close before it has read all.
            let _ = stream.write_all(&noise(seed, 4096));
            let _ = stream.read(&mut [0; 64]);
        });
        let hello = client_hello();
        let cut = hello.len() * usize::try_from(seed).expect("it is small") / 20;
        hostile.speak(|mut stream| {
            let _ = stream.write_all(&hello[..cut]);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 64]);
        });
        hostile.speak(|mut stream| {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            let _ = stream.read(&mut [0; 64]);
        });
    }
    hostile.all_is_well("nonsense");
}

fn floods_the_tunnel(hostile: &mut Hostile) {
    tunnel::flood(hostile.site, "10.98.0.1:6444".parse().expect("an address"));
    hostile.all_is_well("a flood of datagrams");
}

fn sends_too_much(hostile: &mut Hostile) {
    let dir = hostile.site.dir();
    let (body, header) = (dir.join("body"), dir.join("header"));
    fs::write(&body, vec![b'['; 8 << 20]).expect("write");
    fs::write(&header, format!("X-Much: {}\n", "x".repeat(200 << 10))).expect("write");
    let data = format!("@{}", body.display());
    let head = format!("@{}", header.display());
    let json = "Content-Type: application/json";
    for address in hostile.tcp.clone() {
        for path in ["/api/v1/namespaces/default/pods", "/v1/join", "/exec/a/b/c"] {
            let status = hostile.curl(&["-H", json, "--data-binary", &data], address, path);
            assert!(
                !status.starts_with('2') && !status.starts_with('5'),
                "{address}{path}: {status}"
            );
            let status = hostile.curl(&["-H", &head], address, path);
            assert!(
                !status.starts_with('2') && !status.starts_with('5'),
                "{address}{path}: {status}"
            );
        }
    }
    // With rights, to where bodies are taken.
    let dir = hostile.hub.dir().join("data");
    let files = admin_files(&dir, hostile.site.dir());
    let api = hostile.tcp[0];
    let with_rights = ["--cert", &files.0, "--key", &files.1, "-H", json];
    let mut args = with_rights.to_vec();
    // Over HTTP/2, curl takes an answer that comes before it has sent all for an error; kubectl does not.
    args.extend(["--http1.1", "--data-binary", &data]);
    let status = hostile.curl(&args, api, "/api/v1/namespaces/default/configmaps");
    assert_eq!(status, "413", "8 MiB");
    let deep = hostile.site.dir().join("deep");
    fs::write(&deep, "{\"a\":".repeat(100_000)).expect("write");
    let deep = format!("@{}", deep.display());
    let mut args = with_rights.to_vec();
    args.extend(["--data-binary", &deep]);
    let status = hostile.curl(&args, api, "/api/v1/namespaces/default/configmaps");
    assert_eq!(status, "400", "deep nesting");
    hostile.all_is_well("too much");
}

/// The administrator's certificate and key as files, out of the kubeconfig.
fn admin_files(data: &Path, to: &Path) -> (String, String) {
    let text = fs::read_to_string(data.join("admin.kubeconfig")).expect("the kubeconfig");
    let config: Value = serde_yaml_ng::from_str(&text).expect("YAML");
    let user = &config["users"][0]["user"];
    let file = |field: &str| {
        let path = to.join(field);
        let text = user[field].as_str().expect(field);
        let mut decode = Command::new("base64");
        decode
            .args(["-d"])
            .stdin(std::process::Stdio::piped())
            .stdout(fs::File::create(&path).expect("a file"));
        let mut child = decode.spawn().expect("base64");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(text.as_bytes())
            .expect("write");
        assert!(child.wait().expect("it ends").success());
        path.display().to_string()
    };
    (file("client-certificate-data"), file("client-key-data"))
}

fn shows_wrong_certificates(hostile: &mut Hostile) {
    let dir = hostile.site.dir();
    let (key, stranger) = (dir.join("stranger.key"), dir.join("stranger.crt"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
        ])
        .args(["-subj", "/O=system:masters/CN=admin", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&stranger)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let paths = ["/api/v1/nodes", "/pods", "/v1/join"];
    let mut shown = vec![(stranger, key)];
    // A robot's own certificate is for the tunnel, and for nothing that listens on TCP.
    let pki = hostile.edge.dir().join("edge/pki");
    shown.extend(pair_in(&pki));
    assert!(shown.len() > 1, "the robot's certificate in {}", pki.display());
    for (certificate, key) in &shown {
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        for (address, path) in hostile.tcp.iter().flat_map(|a| paths.map(|p| (*a, p))) {
            let status = hostile.curl(&["--cert", &certificate, "--key", &key], address, path);
            assert!(
                ["000", "400", "401", "403", "404", "405"].contains(&status.as_str()),
                "{address}{path}: {status}"
            );
        }
    }
    hostile.all_is_well("wrong certificates");
}

/// The certificate and key in a folder of a node's identity.
fn pair_in(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let files: Vec<PathBuf> = fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).collect();
    let of = |text: &str| {
        let mut found = files
            .iter()
            .filter(|f| fs::read_to_string(f).is_ok_and(|t| t.contains(text)));
        found.find(|f| !f.to_string_lossy().contains("ca")).cloned()
    };
    let key = of("PRIVATE KEY")?;
    let certificate = of("BEGIN CERTIFICATE")?;
    Some((certificate, key))
}

fn pesters_admin_sockets(hostile: &mut Hostile) {
    let sockets = [
        hostile.hub.dir().join("cloudhub.sock"),
        hostile.edge.dir().join("run/edgecore.sock"),
    ];
    for socket in &sockets {
        for seed in 0..20 {
            let mut stream = UnixStream::connect(socket).expect("connect");
            stream.set_read_timeout(Some(ANSWER)).expect("a timeout");
            let _ = stream.write_all(&noise(seed, 2048));
            let _ = stream.read(&mut [0; 64]);
        }
        let mut stream = UnixStream::connect(socket).expect("connect");
        let _ = stream.write_all(format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20)).as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        // Silent ones, many more than it serves at once.
        let idle: Vec<UnixStream> = (0..crowd::size())
            .map(|_| UnixStream::connect(socket).expect("connect"))
            .collect();
        for _ in 0..5 {
            let mut curl = Command::new("curl");
            curl.args(["-s", "--max-time", "5", "--unix-socket"])
                .arg(socket)
                .arg("http://x/healthz");
            let output = curl.output().expect("curl");
            assert!(output.status.success(), "{}: {output:?}", socket.display());
        }
        drop(idle);
    }
    hostile.all_is_well("admin sockets");
}

/// Listener by listener, as many connections as there are files for, which say nothing, a byte now and then, or nothing after the
/// handshake: who has business there is served.
fn besieges_each_listener(hostile: &mut Hostile) {
    for address in hostile.tcp.clone() {
        for habit in [Habit::Silent, Habit::Dawdles, Habit::ShakesHands] {
            let label = format!("{habit:?} at {address}");
            let siege = besiege(hostile.site, address, habit, || hostile.all_are_served(&label));
            let least = habit.crowd();
            assert!(siege.opened >= least, "{label}: {siege:?} of {least}");
            println!("{label}: {siege:?}");
        }
    }
    hostile.all_is_well("they have gone");
}

fn besieges_the_tunnel(hostile: &mut Hostile) {
    let site = hostile.site;
    let sent = tunnel::half_open(site, || {
        hostile.edge.kill();
        hostile.edge.start().expect("edgecore");
        hostile.all_are_served("half-open handshakes");
    });
    println!("half-open handshakes: {sent}");
    tunnel::knock(site, hostile.hub);
    hostile.all_is_well("strangers at the tunnel");
}

/// edgecore itself listens on nothing; the socket that its tunnel has takes what comes.
fn knocks_at_the_robot(hostile: &mut Hostile) {
    let listening = |what: &str| {
        let mut ss = hostile.site.command("e1", Path::new("ss"));
        let output = ss.args(["-Hnp", what]).output().expect("ss");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter(|l| l.contains("edgecore"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(listening("-lt"), Vec::<String>::new(), "edgecore listens for TCP");
    let sockets = listening("-lu");
    let ports: Vec<u16> = sockets
        .iter()
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok())
        .collect();
    assert!(!ports.is_empty(), "no socket of a tunnel in {sockets:?}");
    for port in ports {
        tunnel::flood(
            hostile.site,
            SocketAddr::new(hostile.edge.address().parse().expect("an address"), port),
        );
    }
    hostile.all_is_well("a flood of datagrams at the robot");
}
