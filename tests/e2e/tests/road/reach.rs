//! A pod runs, and kubectl reaches it: logs, exec, cp, port-forward, top.

use std::fs;
use std::process::Stdio;

use kit::hub::Above;
use kit::suite::START;
use kit::wait::State;
use kit::{Edge, Hub, Site, wait_for, yaml};

use super::Road;

pub(super) fn pod_runs_and_kubectl_reaches_it(Road { site, hub, edge }: &mut Road<'_>) {
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

    reads_logs_and_executes(hub, edge);
    copies_files(site, hub);
    forwards_ports(site, hub);
    if matches!(hub.above, Above::Embedded) {
        shows_usage(hub);
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
