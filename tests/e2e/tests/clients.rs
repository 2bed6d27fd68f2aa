//! Clients other than a plain kubectl reach a container on a robot: kubectl that speaks SPDY, kube-rs, and one that offers nothing but
//! WebSocket v4.

use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt as _;
use http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kit::suite::{START, Start, robot};
use kit::wait::State;
use kit::{Hub, Site, above_both, wait_for, yaml};
use kube::api::{AttachParams, LogParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A conversation through the tunnel on a busy machine.
const TALK: Duration = Duration::from_secs(60);

above_both!(spdy_kube_rs_and_websocket_v4_reach_a_container);

fn spdy_kube_rs_and_websocket_v4_reach_a_container(start: Start) {
    let site = Site::new().expect("a site");
    let hub = start(&site);
    let edge = robot(&site, &hub);
    hub.kubectl.apply(&yaml::http_pod("httpd")).expect("apply");
    hub.kubectl
        .wait_ready("httpd", START)
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", edge.tail(), hub.tail()));
    spdy(&site, &hub);
    let kubeconfig = std::fs::read_to_string(&hub.kubeconfig).expect("the admin's kubeconfig");
    site.inside("hub", || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let talk = async {
            let client = client(&kubeconfig).await;
            kube_rs(client.clone()).await;
            websocket_v4(client).await;
        };
        runtime.block_on(async {
            tokio::time::timeout(TALK, talk)
                .await
                .expect("the clients are answered in time")
        });
    });
}

/// kubectl as it was before 1.31.
fn spdy(site: &Site, hub: &Hub) {
    let old = |args: &[&str]| {
        let mut command = hub.kubectl.command(args);
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        command.stdin(Stdio::null());
        command
    };
    let said = old(&["exec", "httpd", "--", "sh", "-c", "echo by SPDY; exit 3"])
        .output()
        .expect("kubectl");
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "by SPDY\n",
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    assert_eq!(said.status.code(), Some(3), "the exit code comes back");
    let mut forward = old(&["port-forward", "pod/httpd", "18081:8080"])
        .stdout(Stdio::null())
        .spawn()
        .expect("kubectl");
    let answer = wait_for("an answer through port-forward by SPDY", START, || {
        let mut curl = site.command("hub", std::path::Path::new("/usr/bin/curl"));
        let output = curl
            .args(["-s", "--max-time", "5", "http://127.0.0.1:18081/healthz"])
            .output()
            .expect("curl");
        if output.status.success() {
            State::Done(output.stdout)
        } else {
            State::Not(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    // It runs until it is killed.
    let _ = forward.kill();
    let _ = forward.wait();
    assert!(!answer.expect("port-forward").0.is_empty());
}

async fn client(kubeconfig: &str) -> Client {
    // Another test of this process may have set it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("a configuration");
    Client::try_from(config).expect("a client")
}

async fn kube_rs(client: Client) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let how = AttachParams::default().stdin(true).stderr(false);
    let mut attached = pods
        .exec("httpd", ["sh", "-c", "read line; echo \"got $line\""], &how)
        .await
        .expect("exec");
    let (mut stdin, mut stdout) = (attached.stdin().expect("stdin"), attached.stdout().expect("stdout"));
    stdin.write_all(b"anchor\n").await.expect("write");
    let mut said = String::new();
    stdout.read_to_string(&mut said).await.expect("read");
    assert_eq!(said, "got anchor\n");
    let status = attached.take_status().expect("a status").await.expect("it is told");
    assert_eq!(status.status.as_deref(), Some("Success"));

    let mut forwarder = pods.portforward("httpd", &[8080]).await.expect("portforward");
    let mut stream = forwarder.take_stream(8080).expect("a stream");
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert!(answer.contains("200 OK"), "{answer}");

    let logs = pods
        .logs(
            "httpd",
            &LogParams {
                tail_lines: Some(5),
                ..LogParams::default()
            },
        )
        .await
        .expect("logs");
    let list = pods.list(&kube::api::ListParams::default()).await.expect("list");
    assert_eq!(list.items.len(), 1, "{logs}");
    let mut events = std::pin::pin!(kube::runtime::watcher(
        pods,
        kube::runtime::watcher::Config::default().streaming_lists()
    ));
    let first = events
        .next()
        .await
        .expect("an event")
        .expect("a watch that begins with what is there");
    assert!(matches!(first, kube::runtime::watcher::Event::Init), "{first:?}");
}

/// exec by a WebSocket that offers `v4.channel.k8s.io` alone, spoken by hand: frames of the server are binary, short, unmasked.
async fn websocket_v4(client: Client) {
    let request =
        Request::get("/api/v1/namespaces/default/pods/httpd/exec?command=echo&command=by+v4&stdout=true&container=")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, "a2VkZ2Uta2VkZ2Uta2VkZw==")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")
            .body(Body::empty())
            .expect("a request");
    let response = client.send(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS, "{response:?}");
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], "v4.channel.k8s.io");
    let upgraded = hyper::upgrade::on(response).await.expect("an upgrade");
    let mut stream = TokioIo::new(upgraded);
    let mut said = Vec::new();
    let (mut head, mut stdout) = ([0; 2], 0);
    while !String::from_utf8_lossy(&said).contains("by v4\n") {
        stream
            .read_exact(&mut head)
            .await
            .unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&said)));
        let (kind, length) = (head[0] & 0x0f, usize::from(head[1]));
        assert!(length < 126, "a short frame");
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.expect("a frame");
        if kind == 2 && payload.first() == Some(&1) {
            stdout += 1;
            said.extend_from_slice(&payload[1..]);
        }
    }
    assert!(stdout > 0);
}
