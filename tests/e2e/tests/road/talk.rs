//! kubectl follows logs, attaches, has a terminal, debugs.

use std::fs;
use std::process::Stdio;

use kit::kubectl::is_true;
use kit::suite::START;
use kit::wait::State;
use kit::{Hub, Site, wait_for};

use super::{Road, kill_container};

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

pub(super) fn kubectl_follows_logs_attaches_and_debugs(Road { site, hub, edge }: &mut Road<'_>) {
    hub.kubectl.apply(TALKER).expect("apply");
    hub.kubectl
        .wait_ready("talker", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    let run = |args: &[&str]| hub.kubectl.run(args).unwrap_or_else(|e| panic!("{e}\n{}", hub.tail()));
    reads_logs(hub);
    has_a_terminal(hub);
    hears(site, hub);

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
