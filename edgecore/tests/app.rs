//! The whole agent on a real containerd: it starts with no runtime and no network, becomes ready when both are there, survives its own restart,
//! and ends in order.

#![expect(clippy::unwrap_used, reason = "a test")]

mod containerd;

use std::path::Path;
use std::time::{Duration, Instant};

use containerd::Containerd;
use cri::{ContainerFilter, ContainerState, Runtime, SandboxFilter};
use edgecore::config::EdgecoreConfig;
use edgecore::kubelet_api::KubeletApi;
use edgecore::{app, secret_key};
use kit::containerd::Version;
use metastore::{Batch, Options, Store};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

fn cgroup() -> String {
    format!("kedge-test-{}", std::process::id())
}

fn config(dir: &Path) -> EdgecoreConfig {
    let (d, cgroup) = (dir.display(), cgroup());
    let text = format!(
        "{{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1, stateDir: {d}/edge, runDir: {d}/run,
        containerd: {{socket: {d}/run/containerd.sock}}, kubelet: {{rootDir: {d}/kubelet, podLogsDir: {d}/pods, cgroupRoot: {cgroup}}},
        network: {{cniConfDir: {d}/cni, bridge: kedgetest0, masquerade: false}}}}"
    );
    let path = dir.join("edgecore.yaml");
    std::fs::write(&path, text).unwrap();
    EdgecoreConfig::load(&path).unwrap()
}

/// Opens the store of an agent that does not run.
fn store(config: &EdgecoreConfig) -> Store {
    let key = secret_key::load_or_make(&config.store_key_file).unwrap();
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let options = Options {
        key: Some(key),
        ..Options::default()
    };
    Store::open(&config.store_dir(), &options).unwrap()
}

fn row(config: &EdgecoreConfig, key: &str) -> Value {
    serde_json::from_slice(&store(config).get(key).unwrap().unwrap()).unwrap()
}

/// Puts what the hub would have sent, as edgehub would.
async fn put(config: &EdgecoreConfig, key: &str, value: Value) {
    let mut batch = Batch::new();
    batch.put(key, value.to_string());
    store(config).commit(batch).await.unwrap();
}

async fn give_range(config: &EdgecoreConfig) {
    let node = json!({"kind": "Node", "metadata": {"name": "robot-1"}, "spec": {"podCIDR": "10.244.9.0/24"}});
    put(config, "object/v1/Node/-/robot-1", node).await;
}

/// Starts the agent; the sender ends it.
async fn start(tasks: &mut JoinSet<()>, config: EdgecoreConfig) -> (oneshot::Sender<()>, KubeletApi) {
    let (stop, stopped) = oneshot::channel::<()>();
    let app = app::build(config).await.unwrap();
    let api = app.kubelet_api.clone();
    tasks.spawn(async move {
        let stopped = async {
            stopped.await.unwrap();
            "the test"
        };
        app.run_until(stopped).await.unwrap();
    });
    (stop, api)
}

async fn get(socket: &Path, page: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream
        .write_all(format!("GET {page} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Waits for an answer of /readyz.
async fn readyz(socket: &Path, status: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = get(socket, "/readyz").await;
        if answer.starts_with(&format!("HTTP/1.1 {status}")) {
            return;
        }
        assert!(Instant::now() < deadline, "never {status}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_with_nothing_there_becomes_ready_and_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    give_range(&config).await;
    let mut tasks = JoinSet::new();
    let (stop, api) = start(&mut tasks, config.clone()).await;
    // It holds the store open.
    drop(api);
    readyz(&config.admin_socket, "503").await;
    assert!(get(&config.admin_socket, "/healthz").await.ends_with("ok"));
    assert!(
        get(&config.admin_socket, "/configz")
            .await
            .contains("\"nodeName\":\"robot-1\"")
    );

    let (containerd, _runtime) = Containerd::start(Version::Debian, dir.path());
    readyz(&config.admin_socket, "200").await;
    stop.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
    let row = row(&config, &edgecore::node::row_key("robot-1"));
    let ready = row["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap();
    assert_eq!(ready["status"], "True", "{row}");

    let (stop, _api) = start(&mut tasks, config.clone()).await;
    readyz(&config.admin_socket, "200").await;
    drop(containerd);
    readyz(&config.admin_socket, "503").await;
    stop.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
}

/// A page of the kubelet API.
async fn page(api: &KubeletApi, path: &str) -> String {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let api = api.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { api.serve(far).await });
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    near.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Waits until a page holds `text`.
async fn until(api: &KubeletApi, path: &str, text: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = page(api, path).await;
        if answer.contains(text) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{text:?} never came:\n{answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const STATUS: &str = "status/v1/Pod/default/web/u1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_pod_runs_with_no_hub_and_outlives_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    give_range(&config).await;
    let command = json!(["/bin/sh", "-c", "echo hello from the pod; exec sleep 1000"]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1},
        "spec": {"hostNetwork": true, "nodeName": "robot-1", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": containerd::IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}]},
    });
    put(&config, "object/v1/Pod/default/web", pod).await;
    let (containerd, runtime) = Containerd::start(Version::Debian, dir.path());
    let mut tasks = JoinSet::new();
    let (stop, api) = start(&mut tasks, config.clone()).await;
    until(&api, "/pods", "\"phase\":\"Running\"").await;
    until(&api, "/containerLogs/default/web/app", "hello from the pod\n").await;
    stop.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
    drop(api);
    let first = row(&config, STATUS)["status"]["containerStatuses"][0]["containerID"].clone();
    let running = ContainerFilter {
        state: Some(ContainerState::Running),
        ..ContainerFilter::default()
    };
    assert_eq!(
        runtime.list_containers(&running).await.unwrap().len(),
        1,
        "the agent's end stops nothing"
    );

    let (stop, api) = start(&mut tasks, config.clone()).await;
    readyz(&config.admin_socket, "200").await;
    until(&api, "/pods", first.as_str().unwrap()).await;
    stop.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
    drop(api);
    assert_eq!(
        runtime
            .list_containers(&ContainerFilter::default())
            .await
            .unwrap()
            .len(),
        1,
        "nothing was restarted"
    );

    for sandbox in runtime.list_sandboxes(&SandboxFilter::default()).await.unwrap() {
        runtime.stop_sandbox(&sandbox.id).await.unwrap();
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    drop(containerd);
    remove_cgroups();
}

/// The pod was not deleted, so its cgroups are there.
fn remove_cgroups() {
    let controllers = std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for folder in controllers.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        remove_tree(&folder.join(cgroup()));
    }
}

fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().is_dir())
    {
        remove_tree(&entry.path());
    }
    // Most controllers have none.
    let _ = std::fs::remove_dir(folder);
}
