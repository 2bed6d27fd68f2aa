//! Pods that cannot run say why as kubelet does, and recover.

use std::fs;
use std::path::Path;

use kit::suite::{START, Start, embedded, robot};
use kit::wait::State;
use kit::{Hub, Site, above_both, wait_for, yaml};

above_both!(pods_that_cannot_run_say_why_and_recover);

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
        wait_event(&hub, one.name, one.event);
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

#[test]
fn pods_start_on_a_machine_without_resolv_conf() {
    let site = Site::new().expect("a site");
    let hub = embedded(&site);
    let edge = robot(&site, &hub);
    let etc = edge.dir().join("own-etc");
    let script = format!(
        "cp -a /etc {0} && mount --bind {0} /etc && rm -f /etc/resolv.conf",
        etc.display()
    );
    kit::process::run(edge.command(Path::new("sh")).args(["-c", &script])).expect("a machine without the file");
    let manifest = yaml::shell_pod("alone", "exec sleep 100000");
    hub.kubectl.apply(&manifest).expect("apply");
    hub.kubectl
        .wait_ready("alone", START)
        .unwrap_or_else(|e| panic!("{e}\n{}", edge.tail()));
    let file = hub.kubectl.run(&["exec", "alone", "--", "cat", "/etc/resolv.conf"]);
    assert_eq!(file.expect("exec"), "search .\nnameserver 127.0.0.1\n");
    wait_event(
        &hub,
        "alone",
        ("DNSConfigForming", "/etc/resolv.conf of this node: No such file"),
    );
}

/// Waits for an event of pod `name` with this reason and these words.
fn wait_event(hub: &Hub, name: &str, (reason, words): (&str, &str)) {
    let selector = format!("involvedObject.name={name},reason={reason}");
    wait_for(&format!("{name}: event {reason}: {words}"), START, || {
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
