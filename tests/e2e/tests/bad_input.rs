//! Suite `bad_input`: what comes to a listener that no client of ours sends, and pods that cannot run.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kit::suite::{START, Start, embedded, robot};
use kit::wait::State;
use kit::{Edge, Hub, Site, above_both, wait_for, yaml};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

above_both!(pods_that_cannot_run_say_why_and_recover);

/// Connections a listener that say nothing.
const IDLE: usize = 300;
/// An answer that comes later than this is none.
const ANSWER: Duration = Duration::from_secs(20);

/// Bytes without sense, the same at each run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The first bytes of a TLS 1.2 record with a handshake message in it, as a client sends them.
fn client_hello() -> Vec<u8> {
    let body = noise(7, 250);
    let mut bytes = vec![0x16, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
    bytes.extend(body);
    bytes
}

/// Goes to the hub's listeners as an edge or a stranger would.
struct Hostile<'a> {
    site: &'a Site,
    hub: &'a Hub<'a>,
    edge: &'a Edge<'a>,
    tcp: Vec<SocketAddr>,
    checked: usize,
}

impl Hostile<'_> {
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
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65536), hard).expect("more files");
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let tcp = [6443, 6444, kubelet_port(&hub)].map(|port| SocketAddr::from(([10, 98, 0, 1], port)));
    let mut hostile = Hostile {
        site: &site,
        hub: &hub,
        edge: &edge,
        tcp: tcp.to_vec(),
        checked: 0,
    };
    hostile.all_is_well("nothing");
    speaks_nonsense(&mut hostile);
    floods_the_tunnel(&mut hostile);
    sends_too_much(&mut hostile);
    shows_wrong_certificates(&mut hostile);
    pesters_admin_sockets(&mut hostile);
    waits_and_dawdles(&mut hostile);
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
    hostile.site.inside("hub", || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for seed in 0..5000 {
            let mut datagram = noise(seed, 20 + usize::try_from(seed % 1400).expect("it is small"));
            if seed % 2 == 0 {
                // A QUIC Initial of version 1 up to its connection ids.
                datagram.splice(..7, [0xc3, 0, 0, 0, 1, 8, 0x11]);
            }
            // A full buffer loses datagrams, as on any link.
            let _ = socket.send_to(&datagram, "10.98.0.1:6444");
        }
    });
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
        // More than it serves at once, and silent: it answers again when it has cut them.
        let idle: Vec<UnixStream> = (0..48).map(|_| UnixStream::connect(socket).expect("connect")).collect();
        wait_for("the admin socket answers", START, || {
            let mut curl = Command::new("curl");
            curl.args(["-s", "--max-time", "5", "--unix-socket"])
                .arg(socket)
                .arg("http://x/healthz");
            match curl.output() {
                Ok(output) if output.status.success() => State::Done(()),
                other => State::Not(format!("{other:?}")),
            }
        })
        .unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        drop(idle);
    }
    hostile.all_is_well("admin sockets");
}

/// Many that say nothing, some that say a byte now and then, on all listeners at once.
fn waits_and_dawdles(hostile: &mut Hostile) {
    let (site, addresses) = (hostile.site, hostile.tcp.clone());
    let mut held: Vec<TcpStream> = site.inside("hub", || {
        let all = addresses.iter().flat_map(|a| std::iter::repeat_n(a, IDLE));
        all.map(|a| TcpStream::connect(a).unwrap_or_else(|e| panic!("{a}: {e}")))
            .collect()
    });
    let hello = client_hello();
    for byte in &hello[..20] {
        for stream in held.iter_mut().step_by(10) {
            // Cut already is well.
            let _ = stream.write_all(&[*byte]);
        }
    }
    hostile.all_is_well("many idle connections");
    for byte in &hello[20..] {
        for stream in held.iter_mut().step_by(10) {
            let _ = stream.write_all(&[*byte]);
        }
    }
    hostile.all_is_well("slow writers");
    drop(held);
    hostile.all_is_well("they have gone");
}

/// A pod that cannot run, what is said of it, and what cures it.
struct Sick {
    name: &'static str,
    manifest: String,
    /// One of these waiting reasons is shown.
    waiting: &'static [&'static str],
    /// An event with this reason and these words.
    event: (&'static str, &'static str),
}

/// A pod of one container, whose fields are `more` beside a command that runs on.
fn manifest(name: &str, image: &str, more: &str, volumes: &str) -> String {
    let command = if more.contains("command:") {
        ""
    } else {
        ", command: [sh, -c, 'exec sleep 100000']"
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: main, image: '{image}'{command}{more}}}\n{volumes}"
    )
}

fn sick(thing: &Path) -> Vec<Sick> {
    let demo = "kedge.dev/demo:1";
    let program = ", command: [/etc/c/run], volumeMounts: [{name: c, mountPath: /etc/c}]";
    let programs = "  volumes: [{name: c, configMap: {name: programs, defaultMode: 0755}}]\n---\napiVersion: v1\nkind: ConfigMap\n\
                    metadata: {name: programs}\n";
    let settings = "  volumes: [{name: c, configMap: {name: settings}}]\n";
    let host = format!(
        "  volumes: [{{name: c, hostPath: {{path: {}, type: File}}}}]\n",
        thing.display()
    );
    let mounted = ", volumeMounts: [{name: c, mountPath: /c}]";
    vec![
        Sick {
            name: "image",
            manifest: manifest("image", "kedge.dev/nothing:1", "", ""),
            waiting: &["ErrImagePull", "ImagePullBackOff"],
            event: ("Failed", "Failed to pull image"),
        },
        Sick {
            name: "command",
            manifest: manifest("command", demo, program, programs),
            waiting: &["RunContainerError", "CrashLoopBackOff"],
            event: ("Failed", "Error: "),
        },
        Sick {
            name: "env",
            manifest: manifest("env", demo, ", envFrom: [{configMapRef: {name: settings}}]", ""),
            waiting: &["CreateContainerConfigError"],
            event: ("Failed", "configmap \"settings\" not found"),
        },
        Sick {
            name: "volume",
            manifest: manifest("volume", demo, mounted, settings),
            waiting: &["ContainerCreating"],
            event: ("FailedMount", "configmap \"settings\" not found"),
        },
        Sick {
            name: "hostpath",
            manifest: manifest("hostpath", demo, mounted, &host),
            waiting: &["ContainerCreating"],
            event: ("FailedMount", "hostPath type check failed"),
        },
    ]
}

fn pods_that_cannot_run_say_why_and_recover(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    let thing = edge.dir().join("thing");
    fs::create_dir(&thing).expect("a folder where a file should be");
    let sick = sick(&thing);
    for one in &sick {
        hub.kubectl
            .apply(&one.manifest)
            .unwrap_or_else(|e| panic!("{}: {e}", one.name));
    }
    for one in &sick {
        hub.kubectl
            .wait(&["pod", one.name], START, |p| {
                let reason = p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
                reason.is_some_and(|reason| one.waiting.contains(&reason))
            })
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", one.name, edge.tail()));
        wait_event(&hub, one);
    }
    edge.ctr(&["images", "tag", "kedge.dev/demo:1", "kedge.dev/nothing:1"])
        .expect("the image comes");
    hub.kubectl
        .apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n")
        .expect("the ConfigMap comes");
    let program = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: programs}\ndata: {run: \"#!/bin/sh\\nexec sleep 100000\\n\"}\n";
    hub.kubectl.apply(program).expect("the program comes");
    fs::remove_dir(&thing).expect("remove");
    fs::write(&thing, "a file").expect("write");
    for one in &sick {
        hub.kubectl
            .wait_ready(one.name, START)
            .unwrap_or_else(|e| panic!("{}: {e}\n{}\n{}", one.name, edge.tail(), hub.tail()));
    }
}

fn wait_event(hub: &Hub, one: &Sick) {
    let (reason, words) = one.event;
    let selector = format!("involvedObject.name={},reason={reason}", one.name);
    wait_for(&format!("{}: event {reason}: {words}", one.name), START, || {
        let list = hub.kubectl.get(&["events", "--field-selector", &selector]);
        let events = list.ok().flatten().unwrap_or_default();
        let mut messages = events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| e["message"].as_str());
        if messages.any(|m| m.is_some_and(|m| m.contains(words))) {
            State::Done(())
        } else {
            State::Not(events.to_string())
        }
    })
    .unwrap_or_else(|e| panic!("{e}"));
}
