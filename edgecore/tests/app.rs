//! The whole agent on a real containerd: it starts with no runtime and no network, becomes ready when both are there, survives its own restart,
//! and ends in order.

#![expect(clippy::unwrap_used, reason = "a test")]

mod containerd;

use std::path::Path;
use std::time::{Duration, Instant};

use containerd::Containerd;
use edgecore::config::EdgecoreConfig;
use edgecore::{app, secret_key};
use metastore::{Batch, Options, Store};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

fn config(dir: &Path) -> EdgecoreConfig {
    let d = dir.display();
    let text = format!(
        "{{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1, stateDir: {d}/edge, runDir: {d}/run,
        containerd: {{socket: {d}/c.sock}}, kubelet: {{rootDir: {d}/kubelet, podLogsDir: {d}/pods}},
        network: {{cniConfDir: {d}/net.d, bridge: kedgetest0, masquerade: false}}}}"
    );
    let path = dir.join("edgecore.yaml");
    std::fs::write(&path, text).unwrap();
    EdgecoreConfig::load(&path).unwrap()
}

/// Puts what the hub would have sent, as edgehub would.
async fn give_range(config: &EdgecoreConfig) {
    let key = secret_key::load_or_make(&config.store_key_file).unwrap();
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let store = Store::open(
        &config.store_dir(),
        &Options {
            key: Some(key),
            ..Options::default()
        },
    )
    .unwrap();
    let mut batch = Batch::new();
    batch.put(
        "object/v1/Node/-/robot-1",
        r#"{"kind":"Node","metadata":{"name":"robot-1"},"spec":{"podCIDR":"10.244.9.0/24"}}"#,
    );
    store.commit(batch).await.unwrap();
}

/// Starts the agent; the sender ends it.
async fn start(tasks: &mut JoinSet<()>, config: EdgecoreConfig) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let app = app::build(config).await.unwrap();
    tasks.spawn(async move {
        let stopped = async {
            stopped.await.unwrap();
            "the test"
        };
        app.run_until(stopped).await.unwrap();
    });
    stop
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
    let stop = start(&mut tasks, config.clone()).await;
    readyz(&config.admin_socket, "503").await;
    assert!(get(&config.admin_socket, "/healthz").await.ends_with("ok"));
    assert!(
        get(&config.admin_socket, "/configz")
            .await
            .contains("\"nodeName\":\"robot-1\"")
    );

    let (containerd, _runtime) = Containerd::start(dir.path()).await;
    readyz(&config.admin_socket, "200").await;
    stop.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
    let key = secret_key::load_or_make(&config.store_key_file).unwrap();
    let row = {
        let store = Store::open(
            &config.store_dir(),
            &Options {
                key: Some(key),
                ..Options::default()
            },
        )
        .unwrap();
        store.get(&edgecore::node::row_key("robot-1")).unwrap().unwrap()
    };
    let row: Value = serde_json::from_slice(&row).unwrap();
    let ready = row["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap();
    assert_eq!(ready["status"], "True", "{row}");

    let stop = start(&mut tasks, config.clone()).await;
    readyz(&config.admin_socket, "200").await;
    drop(containerd);
    readyz(&config.admin_socket, "503").await;
    stop.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
}
