//! The API over a pipe, with a fake runtime and a real socket in the runtime's place.

use cri::fake::FakeRuntime;
use cri::{ContainerConfig, ContainerMetadata, SandboxConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

#[derive(Debug)]
struct Pods(Vec<PodEntry>);

impl PodSource for Pods {
    fn pods(&self) -> Vec<PodEntry> {
        self.0.clone()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry> {
        self.0
            .iter()
            .find(|p| p.metadata("namespace") == namespace && p.metadata("name") == name)
            .cloned()
    }
}

fn config() -> EdgecoreConfig {
    serde_yaml_ng::from_str("{apiVersion: kedge.dev/v1alpha1, kind: EdgecoreConfig, nodeName: robot-1}").unwrap()
}

/// An API with pod default/web that runs one container whose log is at `log`.
async fn api(log: &str) -> (KubeletApi, Arc<FakeRuntime>) {
    let fake = Arc::new(FakeRuntime::with_images(&["i"]));
    let mut sandbox = SandboxConfig::default();
    sandbox.labels.insert("io.kubernetes.pod.uid".into(), "u1".into());
    let sandbox_id = fake.run_sandbox(&sandbox, "").await.unwrap();
    let metadata = ContainerMetadata {
        name: "app".into(),
        attempt: 0,
    };
    let mut container = ContainerConfig {
        metadata,
        image: "i".into(),
        log_path: log.into(),
        ..ContainerConfig::default()
    };
    container.labels = sandbox.labels.clone();
    container
        .labels
        .insert("io.kubernetes.container.name".into(), "app".into());
    let id = fake.create_container(&sandbox_id, &container, &sandbox).await.unwrap();
    fake.start_container(&id).await.unwrap();
    let object = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1"}, "spec": {"containers": [{"name": "app"}]}});
    let status = json!({"containerStatuses": [{"name": "app", "containerID": format!("containerd://{id}"), "state": {"running": {}}}]});
    let pods = Arc::new(Pods(vec![PodEntry { object, status }]));
    (KubeletApi::new(&config(), fake.clone(), pods), fake)
}

/// Sends `request` as it is; everything that comes until the end, or until the deadline.
async fn raw(api: &KubeletApi, request: &str) -> String {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let api = api.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { api.serve(far).await });
    near.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), near.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get(api: &KubeletApi, path: &str) -> String {
    raw(
        api,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
    .await
}

#[tokio::test]
async fn what_is_asked_for_is_answered() {
    let (api, _) = api("").await;
    assert!(get(&api, "/healthz").await.ends_with("\r\n\r\nok"));
    assert!(get(&api, "/pods").await.contains("\"kind\":\"PodList\""));
    assert!(get(&api, "/runningpods/").await.contains("\"name\":\"app\""));
    assert!(get(&api, "/configz").await.contains("\"nodeName\":\"robot-1\""));
    assert!(
        get(&api, "/metrics/resource")
            .await
            .contains("container_cpu_usage_seconds_total{container=\"app\"")
    );
    assert!(get(&api, "/stats/summary").await.contains("\"nodeName\":\"robot-1\""));
    assert!(get(&api, "/metrics").await.contains("process_resident_memory_bytes"));
    assert!(get(&api, "/nothing").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn logs_are_streamed_and_refusals_are_kubelets() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("0.log");
    std::fs::write(&log, "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
    let (api, _) = api(&log.display().to_string()).await;
    let answer = get(&api, "/containerLogs/default/web/app?tailLines=10").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("hello\n"),
        "{answer}"
    );
    assert!(
        get(&api, "/containerLogs/default/none/app")
            .await
            .contains("pod \"none\" does not exist")
    );
    assert!(
        get(&api, "/containerLogs/default/web/none")
            .await
            .contains("container \"none\" not found in pod \"web\"")
    );
    let previous = get(&api, "/containerLogs/default/web/app?previous=true").await;
    assert!(
        previous.starts_with("HTTP/1.1 400") && previous.contains("previous terminated container"),
        "{previous}"
    );
    assert!(
        get(&api, "/containerLogs/default/web/app?tailLines=-1")
            .await
            .starts_with("HTTP/1.1 422")
    );
}

const EXEC: &str = "/exec/default/web/app?command=sh&input=1&output=1";

fn upgrade(path: &str, protocol: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    )
}

/// A frame of SPDY on stream 1.
fn frame(text: &str) -> Vec<u8> {
    [&[0, 0, 0, 1, 0, 0, 0, text.len() as u8], text.as_bytes()].concat()
}

#[tokio::test]
async fn an_exec_becomes_a_pipe_to_the_runtimes_url() {
    let (api, fake) = api("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fake.set_stream_base(&format!("http://{}", listener.local_addr().unwrap()));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut runtime, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let mut seen = 0;
        while !head[..seen].windows(4).any(|w| w == b"\r\n\r\n") {
            seen += runtime.read(&mut head[seen..]).await.unwrap();
        }
        let head = String::from_utf8_lossy(&head[..seen]).to_lowercase();
        assert!(head.starts_with("post /exec/container-"), "{head}");
        assert_eq!(head.matches("x-stream-protocol-version").count(), 2, "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
        runtime
            .write_all(&[answer, frame("hi").as_slice()].concat())
            .await
            .unwrap();
        let mut rest = Vec::new();
        runtime.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, frame("bye"));
        runtime.write_all(&frame("you said bye")).await.unwrap();
    });
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let serving = api.clone();
    tasks.spawn(async move { serving.serve(far).await });
    near.write_all(upgrade(EXEC, "SPDY/3.1").as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let mut seen = 0;
    while !answer[..seen].ends_with(&frame("hi")) {
        let n = tokio::time::timeout(Duration::from_secs(10), near.read(&mut answer[seen..]))
            .await
            .unwrap()
            .unwrap();
        assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&answer[..seen]));
        seen += n;
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    near.write_all(&frame("bye")).await.unwrap();
    near.shutdown().await.unwrap();
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    let said = frame("you said bye");
    assert_eq!(rest, said, "the caller's half may close before the runtime's");
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_refused_exec_starts_nothing() {
    let (api, fake) = api("").await;
    let head = "GET /exec/default/web/app?command=sh&stdout=true HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n";
    let v5 = raw(
        &api,
        &format!("{head}Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"),
    )
    .await;
    assert!(v5.starts_with("HTTP/1.1 403"), "{v5}");
    assert!(get(&api, EXEC).await.starts_with("HTTP/1.1 400"));
    assert_eq!(fake.calls("Exec"), 0);
}

#[tokio::test]
async fn mangled_requests_end_their_connection_only() {
    let (api, _) = api("").await;
    for request in [
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "DELETE /pods HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let answer = raw(&api, request).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{request:?}: {answer}"
        );
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    let (mut near, far) = tokio::io::duplex(1 << 20);
    near.write_all(long.as_bytes()).await.unwrap();
    api.serve(far).await;
    assert!(get(&api, "/healthz").await.contains("ok"));
}
