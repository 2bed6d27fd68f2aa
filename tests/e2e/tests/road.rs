//! Suite `road`: the tests that cross the whole road, each above an unmodified kube-apiserver and above the hub's own API.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kit::hub::Above;
use kit::kubectl::{condition, is_true};
use kit::wait::State;
use kit::{Edge, Hub, Site, wait_for, yaml};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a busy machine of two cores may need for a pod start that takes 0.2 s on an idle one.
const START: Duration = Duration::from_secs(90);

/// How a test gets its hub.
type Start = for<'a> fn(&'a Site) -> Hub<'a>;

fn kubernetes(site: &Site) -> Hub<'_> {
    Hub::start(site).expect("a hub above an unmodified control plane")
}

fn embedded(site: &Site) -> Hub<'_> {
    Hub::embedded(site).expect("a hub with its own API")
}

/// Each test twice, in modules that say above what.
macro_rules! above_both {
    ($($name:ident),+ $(,)?) => {
        mod above_kubernetes {
            $(
                #[test]
                fn $name() {
                    super::$name(super::kubernetes);
                }
            )+
        }

        mod above_embedded {
            $(
                #[test]
                fn $name() {
                    super::$name(super::embedded);
                }
            )+
        }
    };
}

above_both!(
    pod_runs_and_kubectl_reaches_it,
    pod_survives_hub_death_container_death_and_reset,
    edgecore_restart_touches_no_container,
    pod_deleted_while_node_is_away_goes_on_return,
    configuration_changed_while_away_arrives,
    workloads_roll_out,
    deleted_node_of_a_robot_comes_back,
    kubectl_follows_logs_attaches_and_debugs,
);

fn robot<'a>(site: &'a Site, hub: &Hub) -> Edge<'a> {
    let mut edge = Edge::new(site, 1, "robot-1").expect("a machine");
    edge.join(hub).expect("join");
    edge.start().expect("edgecore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    edge
}

fn kill_container(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("the container's process is there");
}

fn pod_runs_and_kubectl_reaches_it(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));

    let wide = hub.kubectl.run(&["get", "pods", "-o", "wide"]).expect("get");
    assert!(wide.contains("Running") && wide.contains("robot-1"), "{wide}");
    assert!(
        edge.containers()
            .expect("containers")
            .iter()
            .any(|c| c.pod == "web" && c.pid.is_some())
    );

    reads_logs_and_executes(&hub, &edge);
    copies_files(&site, &hub);
    forwards_ports(&site, &hub);
    if matches!(hub.above, Above::Embedded) {
        shows_usage(&hub);
    }
    let described = hub.kubectl.run(&["describe", "pod", "web"]).expect("describe");
    for reason in ["Pulled", "Created", "Started"] {
        assert!(described.contains(reason), "{reason} in {described}");
    }
}

fn reads_logs_and_executes(hub: &Hub, edge: &Edge) {
    let logs = hub
        .kubectl
        .run(&["logs", "web"])
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(logs, "started\n");
    let said = hub.kubectl.run(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "echo $LIMIT $PASSWORD $POD_NAME; cat /etc/config/greeting /etc/secret/password",
    ]);
    assert_eq!(
        said.unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail())),
        "3 anchor web\nhelloanchor"
    );
    let piped = hub
        .kubectl
        .run_with(
            &["exec", "-i", "web", "--", "sh", "-c", "cat; exit 0"],
            "through the tunnel",
        )
        .expect("exec -i");
    assert_eq!(piped, "through the tunnel");
    let failed = hub
        .kubectl
        .output(&["exec", "web", "--", "sh", "-c", "exit 7"])
        .expect("kubectl");
    assert_eq!(
        failed.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&failed.stderr)
    );
}

/// The real control plane has no metrics of its own.
fn shows_usage(hub: &Hub) {
    let top = |args: &[&str], wanted: &str| {
        let ((), _) = wait_for(&format!("kubectl {args:?} shows {wanted}"), START, || {
            match hub.kubectl.run(args) {
                Ok(text) if text.contains(wanted) && !text.contains("<unknown>") => State::Done(()),
                Ok(text) => State::Not(text),
                Err(error) => State::Not(error.to_string()),
            }
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    };
    top(&["top", "node"], "robot-1");
    top(&["top", "pod", "web", "--containers"], "main");
    top(&["top", "pod", "-A", "-l", "app=web"], "web");
}

fn copies_files(site: &Site, hub: &Hub) {
    let (here, back) = (site.dir().join("sent"), site.dir().join("returned"));
    let content: Vec<u8> = (0..300_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(&here, &content).expect("write");
    hub.kubectl
        .run(&["cp", &here.display().to_string(), "web:/scratch/file"])
        .expect("cp to the pod");
    hub.kubectl
        .run(&["cp", "web:/scratch/file", &back.display().to_string()])
        .expect("cp from the pod");
    assert!(fs::read(&back).expect("read") == content, "the file came back changed");
}

fn forwards_ports(site: &Site, hub: &Hub) {
    hub.kubectl.apply(&yaml::http_pod("httpd")).expect("apply");
    hub.kubectl.wait_ready("httpd", START).expect("httpd is ready");
    let mut forward = hub
        .kubectl
        .command(&["port-forward", "pod/httpd", "18080:8080"])
        .stdout(Stdio::null())
        .spawn()
        .expect("port-forward");
    let namespace = site.namespace("hub");
    let answer = wait_for("an answer through port-forward", START, || {
        let output = std::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"))
            .args(["curl", "-s", "--max-time", "5", "http://127.0.0.1:18080/healthz"])
            .output()
            .expect("curl");
        if output.status.success() {
            State::Done(output.stdout)
        } else {
            State::Not(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    let _ = forward.kill();
    let _ = forward.wait();
    assert!(!answer.expect("port-forward").0.is_empty());
}

fn pod_survives_hub_death_container_death_and_reset(start: Start) {
    let site = Site::new().expect("a site");
    let mut hub = start(&site);
    let mut edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    let (pod, _) = hub
        .kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let first = edge.wait_container("web", START).expect("it runs");

    hub.kill();
    kill_container(first.pid.expect("running"));
    let (second, _) = wait_for("the container is restarted with no hub", START, || {
        match edge.containers() {
            Ok(all) => match all
                .iter()
                .find(|c| c.pod == "web" && c.pid.is_some() && c.id != first.id)
            {
                Some(c) => State::Done(c.clone()),
                None => State::Not(format!("{all:?} {}", edge.tail())),
            },
            Err(error) => State::Not(error.to_string()),
        }
    })
    .expect("restarted offline");

    edge.reset().expect("reset");
    edge.start().expect("edgecore");
    let third = edge
        .wait_container("web", START)
        .expect("back after the reset, with no hub");
    assert_eq!(third.uid, pod["metadata"]["uid"].as_str().expect("uid"));
    assert_ne!(third.id, second.id);
    is_furnished(third.pid.expect("running"));

    hub.restart().expect("the hub is back");
    let restarted = |p: &serde_json::Value| {
        is_true(p, "Ready")
            && p["status"]["containerStatuses"][0]["containerID"]
                .as_str()
                .is_some_and(|id| id.ends_with(&third.id))
    };
    let (now, took) = hub
        .kubectl
        .wait(&["pod", "web"], START, restarted)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(now["metadata"]["uid"], pod["metadata"]["uid"]);
    assert!(
        took < Duration::from_secs(20),
        "status is right {took:?} after the listener was back"
    );
    assert_eq!(
        edge.wait_container("web", START).expect("runs").id,
        third.id,
        "the reconnect restarted nothing"
    );
}

fn is_furnished(pid: u32) {
    let root = format!("/proc/{}/root", pid);
    for (file, content) in [("etc/config/greeting", "hello"), ("etc/secret/password", "anchor")] {
        assert_eq!(fs::read_to_string(format!("{root}/{file}")).expect(file), content);
    }
    let token = fs::read_to_string(format!("{root}/var/run/secrets/kubernetes.io/serviceaccount/token"))
        .expect("the token came back");
    assert_eq!(token.split('.').count(), 3, "a JWT");
}

fn edgecore_restart_touches_no_container(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let mut edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl.apply(&yaml::http_pod("httpd")).expect("apply");
    for pod in ["web", "httpd"] {
        hub.kubectl
            .wait_ready(pod, START)
            .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    }
    let before = edge.all_containers().expect("containers");
    for round in 0..3 {
        edge.kill();
        edge.start().expect("edgecore");
        hub.kubectl
            .wait(&["node", "robot-1"], START, |n| is_true(n, "EdgeConnected"))
            .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
        assert_eq!(edge.all_containers().expect("containers"), before, "kill {round}");
    }
    edge.stop().expect("a clean stop");
    assert_eq!(
        edge.all_containers().expect("containers"),
        before,
        "a clean stop leaves the containers"
    );
    let (node, _) = hub
        .kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False")
        })
        .expect("the hub notices");
    assert_eq!(
        condition(&node, "EdgeConnected").expect("condition")["reason"],
        "AgentStopped"
    );
}

fn pod_deleted_while_node_is_away_goes_on_return(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    edge.set_link(false).expect("cut");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False" && c["reason"] == "LinkLost")
        })
        .expect("the hub says that the link is lost");
    hub.kubectl
        .run(&["delete", "pod", "web", "--wait=false"])
        .expect("delete");
    assert!(
        edge.containers()
            .expect("containers")
            .iter()
            .any(|c| c.pod == "web" && c.pid.is_some()),
        "it runs on while the link is cut"
    );
    let answered = Instant::now();
    let refused = hub
        .kubectl
        .output(&["logs", "web", "--request-timeout=20s"])
        .expect("kubectl");
    assert!(!refused.status.success());
    assert!(
        answered.elapsed() < Duration::from_secs(8),
        "a node that is away answers soon: {:?}",
        answered.elapsed()
    );

    edge.set_link(true).expect("restore");
    hub.kubectl
        .wait_gone(&["pod", "web"], START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let ((), _) = wait_for("containerd has nothing left of it", START, || {
        match edge.all_containers() {
            Ok(all) if all.iter().all(|c| c.pod != "web") => State::Done(()),
            Ok(all) => State::Not(format!("{all:?}")),
            Err(error) => State::Not(error.to_string()),
        }
    })
    .expect("the last pod goes");
}

fn configuration_changed_while_away_arrives(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let before = edge.wait_container("web", START).expect("runs");
    edge.set_link(false).expect("cut");
    hub.kubectl
        .run(&[
            "patch",
            "configmap",
            "web-config",
            "-p",
            r#"{"data":{"greeting":"ahoy"}}"#,
        ])
        .expect("patch");
    hub.kubectl
        .apply(&yaml::shell_pod("late", "echo late; exec sleep 1000"))
        .expect("apply");
    edge.set_link(true).expect("restore");
    let file = format!("/proc/{}/root/etc/config/greeting", before.pid.expect("runs"));
    wait_for(
        "the new ConfigMap is in the volume",
        START,
        || match fs::read_to_string(&file) {
            Ok(text) if text == "ahoy" => State::Done(()),
            other => State::Not(format!("{other:?}\n{}", edge.tail())),
        },
    )
    .expect("live update");
    hub.kubectl
        .wait_ready("late", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(
        edge.wait_container("web", START).expect("runs").id,
        before.id,
        "the same container"
    );
}

fn workloads_roll_out(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(yaml::WORKLOADS).expect("apply");
    for name in ["deployment/web", "daemonset/agent"] {
        hub.kubectl
            .run(&["rollout", "status", name, "--timeout=90s"])
            .unwrap_or_else(|e| {
                panic!(
                    "{e}\n{}\n{}\n{}",
                    hub.kubectl.run(&["get", "pods", "-o", "yaml"]).unwrap_or_default(),
                    edge.tail(),
                    hub.tail()
                )
            });
    }
    hub.kubectl
        .run(&["scale", "deployment/web", "--replicas=3"])
        .expect("scale");
    hub.kubectl
        .wait(&["deployment", "web"], START, |d| d["status"]["readyReplicas"] == 3)
        .expect("three");
    hub.kubectl
        .run(&["set", "env", "deployment/web", "COLOUR=blue"])
        .expect("set env");
    hub.kubectl
        .run(&["rollout", "status", "deployment/web", "--timeout=90s"])
        .expect("rolled out");
    hub.kubectl
        .run(&["delete", "deployment/web", "daemonset/agent", "--timeout=60s"])
        .expect("delete");
    let ((), _) = wait_for("no pod is left", START, || match edge.all_containers() {
        Ok(all) if all.is_empty() => State::Done(()),
        Ok(all) => State::Not(format!("{all:?}\n{}", edge.tail())),
        Err(error) => State::Not(error.to_string()),
    })
    .expect("all gone");
}

fn deleted_node_of_a_robot_comes_back(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::furnished_pod("web")).expect("apply");
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let before = edge.wait_container("web", START).expect("runs");
    edge.set_link(false).expect("cut");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            condition(n, "EdgeConnected").is_some_and(|c| c["status"] == "False")
        })
        .expect("away");
    hub.kubectl
        .run(&["delete", "node", "robot-1", "--wait=false"])
        .expect("delete");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| {
            n["metadata"]["labels"]["kedge.dev/edge"] == "true" && n["metadata"]["deletionTimestamp"].is_null()
        })
        .expect("the hub makes it again");
    edge.set_link(true).expect("restore");
    hub.kubectl
        .wait(&["node", "robot-1"], START, |n| is_true(n, "Ready"))
        .unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    hub.kubectl
        .wait_ready("web", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    assert_eq!(
        edge.wait_container("web", START).expect("runs").id,
        before.id,
        "nothing stopped"
    );
}

/// Prints three lines, then what it hears.
const TALKER: &str = r"apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: kedge.dev/demo:1
    stdin: true
    command: [sh, -c, 'echo one; echo two; echo three; while read line; do echo heard $line; done; sleep 100000']
";

/// A kubectl that runs on; what it prints goes to `file`.
fn background(hub: &Hub, args: &[&str], file: &std::path::Path) -> std::process::Child {
    hub.kubectl
        .command(args)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(file).expect("a file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl")
}

fn wait_text(what: &str, wanted: &str, mut read: impl FnMut() -> String) {
    wait_for(&format!("{what} says {wanted:?}"), START, || match read() {
        text if text.contains(wanted) => State::Done(()),
        text => State::Not(text),
    })
    .unwrap_or_else(|e| panic!("{e}"));
}

fn kubectl_follows_logs_attaches_and_debugs(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(TALKER).expect("apply");
    hub.kubectl
        .wait_ready("talker", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let run = |args: &[&str]| hub.kubectl.run(args).unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    reads_logs(&hub);
    has_a_terminal(&hub);
    hears(&site, &hub);

    let container = edge.wait_container("talker", START).expect("it runs");
    kill_container(container.pid.expect("running"));
    hub.kubectl
        .wait(&["pod", "talker"], START, |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1 && is_true(p, "Ready")
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    assert!(run(&["logs", "talker", "--previous"]).ends_with("heard ahoy\n"));
    assert!(!run(&["logs", "talker"]).contains("ahoy"));
    run(&[
        "debug",
        "talker",
        "--image=kedge.dev/demo:1",
        "-c",
        "dbg",
        "--",
        "sh",
        "-c",
        "echo debugged",
    ]);
    wait_text("the ephemeral container", "debugged", || {
        hub.kubectl
            .run(&["logs", "talker", "-c", "dbg"])
            .unwrap_or_else(|e| format!("{e}\n{}", edge.tail()))
    });
}

/// The flags of `kubectl logs` that need no time.
fn reads_logs(hub: &Hub) {
    let run = |args: &[&str]| hub.kubectl.run(args).unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    wait_text("the log", "three", || run(&["logs", "talker"]));
    assert_eq!(run(&["logs", "talker", "--tail=1"]), "three\n");
    assert_eq!(
        run(&["logs", "-l", "app=talker", "--tail=-1", "--since=1h"]),
        "one\ntwo\nthree\n"
    );
    let stamped = run(&["logs", "talker", "--timestamps"]);
    assert!(
        stamped
            .lines()
            .all(|line| line.starts_with("20") && line.contains("Z ")),
        "{stamped}"
    );
    let wrong = hub
        .kubectl
        .output(&["logs", "talker", "-c", "nobody"])
        .expect("kubectl");
    let wrong = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        wrong.contains("container nobody is not valid for pod talker"),
        "{wrong}"
    );
}

fn has_a_terminal(hub: &Hub) {
    let terminal = std::process::Command::new("script")
        .args([
            "-qec",
            &interactive(hub, "exec -it talker -- sh -c 'test -t 0 && echo a terminal'"),
            "/dev/null",
        ])
        .output()
        .expect("script");
    let said = String::from_utf8_lossy(&terminal.stdout).into_owned();
    assert!(
        terminal.status.success() && said.contains("a terminal"),
        "{said}\n{}",
        hub.tail()
    );
}

/// `kubectl ARGS` as one line for a shell.
fn interactive(hub: &Hub, args: &str) -> String {
    let command = hub.kubectl.command(&[]);
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    format!("{} {args}", words.join(" "))
}

/// What goes in by attach comes out of attach and of a log that is followed.
fn hears(site: &Site, hub: &Hub) {
    let (followed, attached) = (site.dir().join("followed"), site.dir().join("attached"));
    let mut follow = background(hub, &["logs", "-f", "talker"], &followed);
    let mut attach = background(hub, &["attach", "-i", "talker"], &attached);
    wait_text("the followed log", "three", || {
        fs::read_to_string(&followed).unwrap_or_default()
    });
    let mut stdin = attach.stdin.take().expect("it is piped");
    std::io::Write::write_all(&mut stdin, b"ahoy\n").expect("attach reads");
    for file in [&followed, &attached] {
        wait_text(&file.display().to_string(), "heard ahoy", || {
            fs::read_to_string(file).unwrap_or_default()
        });
    }
    for child in [&mut follow, &mut attach] {
        let _ = child.kill();
        let _ = child.wait();
    }
}
