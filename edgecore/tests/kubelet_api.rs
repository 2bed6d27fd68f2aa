//! The kubelet API on a real containerd: logs, exec over WebSocket and SPDY, port-forward, stats. The sandbox is on the host's network, so that no
//! CNI is needed.

#![expect(clippy::unwrap_used, reason = "a test")]

mod containerd;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd::{Containerd, IMAGE};
use cri::{
    ContainerConfig, ContainerMetadata, CriRuntime, ImageSpec, NamespaceMode, PodHint, Runtime, SandboxConfig,
    SandboxMetadata,
};
use edgecore::config::EdgecoreConfig;
use edgecore::kubelet_api::KubeletApi;
use edgecore::kubelet_api::pods::{PodEntry, PodSource};
use kit::containerd::Version;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

#[derive(Debug)]
struct OnePod(PodEntry);

impl PodSource for OnePod {
    fn pods(&self) -> Vec<PodEntry> {
        vec![self.0.clone()]
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry> {
        (namespace == "default" && name == "web").then(|| self.0.clone())
    }
}

/// Both tests run at once.
fn cgroup(version: Version) -> String {
    format!("kedge-test-{}-{version:?}", std::process::id())
}

/// The runtime removes the containers' cgroups, not the pod's: that is the pod worker's.
fn remove_cgroups(version: Version) {
    let controllers = std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for folder in controllers.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        // Most controllers have none.
        let _ = std::fs::remove_dir(folder.join(cgroup(version)));
    }
}

/// Runs default/web with one container `app` that says something. Returns the ids of sandbox and container.
async fn run(runtime: &CriRuntime, dir: &Path, version: Version) -> (String, String) {
    let logs = dir.join("pods/default_web_u1");
    std::fs::create_dir_all(logs.join("app")).unwrap();
    let metadata = SandboxMetadata {
        name: "web".into(),
        namespace: "default".into(),
        uid: "u1".into(),
        attempt: 0,
    };
    let mut sandbox = SandboxConfig {
        metadata,
        log_directory: logs.display().to_string(),
        ..SandboxConfig::default()
    };
    sandbox.cgroup_parent = format!("/{}", cgroup(version));
    sandbox.namespaces.network = NamespaceMode::Node;
    for (key, value) in [("name", "web"), ("namespace", "default"), ("uid", "u1")] {
        sandbox.labels.insert(format!("io.kubernetes.pod.{key}"), value.into());
    }
    let id = runtime.run_sandbox(&sandbox, "").await.unwrap();
    let mut container = ContainerConfig {
        metadata: ContainerMetadata {
            name: "app".into(),
            attempt: 0,
        },
        image: ImageSpec::from(IMAGE),
        command: ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
            .map(String::from)
            .to_vec(),
        log_path: "app/0.log".into(),
        labels: sandbox.labels.clone(),
        ..ContainerConfig::default()
    };
    container.security.namespaces.network = NamespaceMode::Node;
    container
        .labels
        .insert("io.kubernetes.container.name".into(), "app".into());
    let app = runtime.create_container(&id, &container, &sandbox).await.unwrap();
    runtime.start_container(&app).await.unwrap();
    (id, app)
}

/// Sends a request, reads until `until` was read; all that was read.
async fn talk(api: &KubeletApi, request: &str, until: &str) -> String {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let api = api.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { api.serve(far).await });
    near.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&all).contains(until) {
            if near.read_buf(&mut all).await.unwrap() == 0 {
                break;
            }
        }
    };
    let late = tokio::time::timeout(Duration::from_secs(15), reading).await.is_err();
    let text = String::from_utf8_lossy(&all).into_owned();
    assert!(!late && text.contains(until), "{until:?} never came:\n{text}");
    text
}

fn websocket(path: &str, protocols: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocols}\r\n\r\n"
    )
}

fn spdy(path: &str, version: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\nContent-Length: 0\r\n\r\n"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_exec_port_forward_and_stats_of_a_real_container_on_1_6() {
    is_served(Version::Debian).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_exec_port_forward_and_stats_of_a_real_container_on_2() {
    is_served(Version::Two).await;
}

async fn is_served(version: Version) {
    let dir = tempfile::tempdir().unwrap();
    let (containerd, runtime) = Containerd::start(version, dir.path());
    let (watching, pump) = CriRuntime::new(&containerd.socket());
    let mut hints = watching.events();
    let mut tasks = JoinSet::new();
    tasks.spawn(pump.run());
    let (sandbox, app) = run(&runtime, dir.path(), version).await;
    let object = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1"}, "spec": {"containers": [{"name": "app"}]}});
    let status = json!({"containerStatuses": [{"name": "app", "containerID": format!("containerd://{app}"),
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]});
    let config: EdgecoreConfig =
        serde_yaml_ng::from_str("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1}").unwrap();
    let api = KubeletApi::new(
        &config,
        Arc::new(runtime.clone()),
        Arc::new(OnePod(PodEntry { object, status })),
    );

    let logs = talk(&api, &get("/containerLogs/default/web/app?follow=true"), "err\n").await;
    assert!(logs.contains("out\n"), "{logs}");
    streams(&api).await;
    let metrics = talk(&api, &get("/metrics/resource"), "resource_scrape_error 0").await;
    assert!(
        metrics.contains("container_memory_working_set_bytes{container=\"app\",namespace=\"default\",pod=\"web\"}"),
        "{metrics}"
    );
    talk(&api, &get("/stats/summary"), "\"podRef\":{\"name\":\"web\"").await;

    runtime.stop_container(&app, Duration::ZERO).await.unwrap();
    let hint = async { while hints.next().await != PodHint::Id(app.clone()) {} };
    tokio::time::timeout(Duration::from_secs(10), hint)
        .await
        .expect("containerd's events tell of the container");
    runtime.stop_sandbox(&sandbox).await.unwrap();
    runtime.remove_sandbox(&sandbox).await.unwrap();
    drop(containerd);
    remove_cgroups(version);
}

async fn streams(api: &KubeletApi) {
    let exec = "/exec/default/web/app?command=echo&command=from-the-inside&output=1";
    let v4 = talk(
        api,
        &websocket(exec, "v5.channel.k8s.io, v4.channel.k8s.io"),
        "\"status\":\"Success\"",
    )
    .await;
    assert!(
        v4.starts_with("HTTP/1.1 101") && v4.to_lowercase().contains("sec-websocket-protocol: v4.channel.k8s.io"),
        "{v4}"
    );
    assert!(v4.contains("\u{1}from-the-inside\n"), "{v4:?}");
    talk(api, &websocket(exec, "v5.channel.k8s.io"), "HTTP/1.1 403").await;
    let spdy_exec = talk(api, &spdy(exec, "v4.channel.k8s.io"), "\r\n\r\n")
        .await
        .to_lowercase();
    assert!(
        spdy_exec.starts_with("http/1.1 101") && spdy_exec.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{spdy_exec}"
    );
    talk(
        api,
        &spdy("/attach/default/web/app?output=1", "v4.channel.k8s.io"),
        "HTTP/1.1 101",
    )
    .await;
    talk(
        api,
        &spdy("/portForward/default/web", "portforward.k8s.io"),
        "HTTP/1.1 101",
    )
    .await;
    talk(
        api,
        &websocket("/portForward/default/web", "SPDY/3.1+portforward.k8s.io"),
        "HTTP/1.1 403",
    )
    .await;
    talk(
        api,
        &spdy("/exec/default/web/none?command=x&output=1", "v4.channel.k8s.io"),
        "container not found (\"none\")",
    )
    .await;
    // The runtime's own refusal is the caller's.
    talk(api, &spdy(exec, "v0.nothing"), "HTTP/1.1 403").await;
}
