//! A hub with its own API, kubectl with checks, and what plays kubelet.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kit::kubectl::is_true;
use kit::plane::Options;
use kit::wait::State;
use kit::{Hub, Kubectl, Site, wait_for};
use serde_json::{Value, json};

/// What a controller needs on a busy machine of two cores for what takes a moment on an idle one.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// A node of these tests reports nothing after its first status.
const GRACE_SECONDS: u32 = 3600;

/// kubectl that must succeed or fail as a test says.
pub(crate) struct Bench<'a> {
    pub(crate) site: &'a Site,
    pub(crate) hub: Hub<'a>,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        let options = Options {
            grace_seconds: GRACE_SECONDS,
            ..Options::default()
        };
        let hub = Hub::embedded_with(site, &options).expect("a hub with its own API");
        Self { site, hub }
    }

    /// What kubectl prints; it must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        match self.hub.kubectl.run(args) {
            Ok(text) => text,
            Err(error) => panic!("{error}\n{}", self.hub.tail()),
        }
    }

    /// The same with something on its standard input.
    #[track_caller]
    pub(crate) fn ok_with(&self, args: &[&str], input: &str) -> String {
        match self.hub.kubectl.run_with(args, input) {
            Ok(text) => text,
            Err(error) => panic!("{error}\n{}", self.hub.tail()),
        }
    }

    /// kubectl must succeed, and what it prints must contain each of `wanted`.
    #[track_caller]
    pub(crate) fn shows(&self, args: &[&str], wanted: &[&str]) -> String {
        let text = self.ok(args);
        for word in wanted {
            assert!(text.contains(word), "kubectl {args:?} does not show {word:?}:\n{text}");
        }
        text
    }

    /// kubectl must fail, and its error must contain each of `wanted`.
    #[track_caller]
    pub(crate) fn refuses(&self, args: &[&str], wanted: &[&str]) {
        let output = self.hub.kubectl.output(args).expect("kubectl");
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.status.success(), "kubectl {args:?} succeeds: {said}");
        for word in wanted {
            assert!(said.contains(word), "kubectl {args:?} does not say {word:?}:\n{said}");
        }
    }

    /// `kubectl VERB -f -` of something that must be refused.
    #[track_caller]
    pub(crate) fn refuses_object(&self, verb: &str, yaml: &str, wanted: &[&str]) {
        let file = self.file("refused.yaml", yaml);
        self.refuses(&[verb, "-f", &file], wanted);
    }

    /// One object, which must be there.
    #[track_caller]
    pub(crate) fn get(&self, args: &[&str]) -> Value {
        match self.hub.kubectl.get(args) {
            Ok(Some(object)) => object,
            Ok(None) => panic!("{args:?} is not there\n{}", self.hub.tail()),
            Err(error) => panic!("{error}\n{}", self.hub.tail()),
        }
    }

    #[track_caller]
    pub(crate) fn is_gone(&self, args: &[&str]) {
        match self.hub.kubectl.get(args) {
            Ok(None) => {}
            Ok(Some(object)) => panic!("{args:?} is still there: {object:#}"),
            Err(error) => panic!("{error}\n{}", self.hub.tail()),
        }
    }

    /// Waits until the object is as `done` says.
    #[track_caller]
    pub(crate) fn wait(&self, args: &[&str], done: impl Fn(&Value) -> bool) -> Value {
        match self.hub.kubectl.wait(args, SOON, done) {
            Ok((object, _)) => object,
            Err(error) => panic!("{error}\n{}", self.hub.tail()),
        }
    }

    /// A file in the site's folder.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.site.dir().join(name);
        fs::write(&path, content).expect("write");
        path.display().to_string()
    }

    /// An editor that replaces one text by another.
    pub(crate) fn editor(&self, from: &str, to: &str) -> PathBuf {
        let path = self.site.dir().join("editor");
        let script = format!("#!/bin/sh\nexec sed -i 's|{from}|{to}|' \"$1\"\n");
        fs::write(&path, script).expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).expect("make it executable");
        path
    }

    /// curl without a client certificate: (HTTP status, body).
    #[track_caller]
    pub(crate) fn curl(&self, args: &[&str], path: &str) -> (u16, String) {
        let output = self
            .site
            .command("hub", "curl".as_ref())
            .args(["-skS", "--max-time", "20", "-w", "\n%{http_code}"])
            .args(args)
            .arg(format!("https://127.0.0.1:6443{path}"))
            .output()
            .expect("curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", &text));
        let code = code.parse().unwrap_or_default();
        assert!(
            code != 0,
            "curl {path}: no answer: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.hub.tail()
        );
        (code, body.to_owned())
    }

    /// A node that is Ready, and what plays kubelet on it.
    pub(crate) fn node(&self, name: &str) -> FakeKubelet {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.ok_with(&["create", "-f", "-"], &node.to_string());
        let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "10Gi"});
        let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [condition("Ready")],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.9"}],
            "nodeInfo": {"kubeletVersion": "v1.36.3", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "containerd://2.0",
                "architecture": "amd64", "operatingSystem": "linux", "bootID": "b", "machineID": "m", "systemUUID": "s", "kubeProxyVersion": ""}}});
        let patch = status.to_string();
        self.ok(&[
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
        // The controllers take away what keeps pods off a new node.
        self.wait(&["node", name], |node| {
            is_true(node, "Ready") && node["spec"]["taints"].is_null()
        });
        FakeKubelet::start(self.hub.kubectl.clone())
    }

    /// A command as the admin with `EDITOR`.
    pub(crate) fn with_editor(&self, args: &[&str], editor: &std::path::Path) -> Command {
        let mut command = self.hub.kubectl.command(args);
        command.env("KUBE_EDITOR", editor);
        command
    }

    /// Waits until `look` shows `wanted`.
    #[track_caller]
    pub(crate) fn wait_text(&self, what: &str, wanted: &str, mut look: impl FnMut() -> String) {
        let seen = wait_for(&format!("{what} shows {wanted:?}"), SOON, || match look() {
            text if text.contains(wanted) => State::Done(()),
            text => State::Not(text),
        });
        if let Err(error) = seen {
            panic!("{error}\n{}", self.hub.tail());
        }
    }
}

fn condition(kind: &str) -> Value {
    let now = "2026-01-01T00:00:00Z";
    json!({"type": kind, "status": "True", "reason": "Played", "message": "", "lastTransitionTime": now, "lastHeartbeatTime": now})
}

/// Says of each bound pod that it runs, and of each that is to end that it has ended; stops when dropped.
pub(crate) struct FakeKubelet {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeKubelet {
    fn start(kubectl: Kubectl) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                tend(&kubectl);
                thread::sleep(Duration::from_millis(200));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A pod that is gone meanwhile, and an API that is not there, are looked at again in the next round.
fn tend(kubectl: &Kubectl) {
    let Ok(Some(pods)) = kubectl.get(&["pods", "-A"]) else {
        return;
    };
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        if text("/spec/nodeName").is_empty() {
            continue;
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            let _ = kubectl.output(&[
                "delete",
                "pod",
                name,
                "-n",
                namespace,
                "--grace-period=0",
                "--force",
                "--wait=false",
            ]);
        } else if !is_true(pod, "Ready") {
            let status = running(pod).to_string();
            let patch = [
                "patch",
                "pod",
                name,
                "-n",
                namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
                &status,
            ];
            let _ = kubectl.output(&patch);
        }
    }
}

fn running(pod: &Value) -> Value {
    let now = "2026-01-01T00:00:00Z";
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(condition)
        .into();
    let conditions: Vec<Value> = conditions
        .into_iter()
        .map(|mut condition| {
            // Pods have no heartbeat.
            condition
                .as_object_mut()
                .expect("an object")
                .remove("lastHeartbeatTime");
            condition
        })
        .collect();
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let statuses: Vec<Value> = containers
        .map(|container| {
            json!({"name": container["name"], "image": container["image"], "imageID": "", "containerID": "containerd://x", "ready": true,
                   "started": true, "restartCount": 0, "state": {"running": {"startedAt": now}}})
        })
        .collect();
    json!({"status": {"phase": "Running", "hostIP": "10.0.0.9", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}], "startTime": now,
                      "conditions": conditions, "containerStatuses": statuses}})
}
