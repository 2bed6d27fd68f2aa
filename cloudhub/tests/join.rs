//! The join listener on loopback: honest and hostile clients.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cloudhub::identity::listener::JoinListener;
use cloudhub::identity::{Identity, SecretError, SecretStore, secrets, tokens};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tunnel::{ClockFloor, Edge, EdgeConfig, EpochSource, Fallback, Hub, HubConfig, Limits, Priority, Transport};

const TOKEN: &str = "abc123.0123456789abcdef";

/// Secrets in memory.
#[derive(Default)]
struct Secrets(Mutex<BTreeMap<String, Secret>>);

#[async_trait]
impl SecretStore for Secrets {
    async fn get(&self, name: &str) -> Result<Option<Secret>, SecretError> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }
    async fn create(&self, secret: Secret) -> Result<Secret, SecretError> {
        self.replace(secret).await
    }
    async fn replace(&self, secret: Secret) -> Result<Secret, SecretError> {
        let name = secrets::name(&secret).to_owned();
        self.0.lock().unwrap().insert(name, secret.clone());
        Ok(secret)
    }
    async fn list(&self, _selector: &str) -> Result<Vec<Secret>, SecretError> {
        Ok(Vec::new())
    }
}

struct Site {
    identity: Arc<Identity>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
    _stop: tokio::sync::watch::Sender<bool>,
}

impl Site {
    async fn start() -> Self {
        Self::start_with(|_| None).await
    }

    /// `tunnel` makes the one that shares the listener's port.
    async fn start_with(tunnel: impl FnOnce(&Arc<Identity>) -> Option<tunnel::TcpDoor>) -> Self {
        let store = Arc::new(Secrets::default());
        let identity = Identity::load_from(store.clone()).await.unwrap();
        let values = [
            ("hash", tokens::hash(TOKEN).into_bytes()),
            ("expires", u64::MAX.to_string().into_bytes()),
        ];
        store.create(secrets::secret("join-a", values)).await.unwrap();
        let certificate = identity.serving(&[]).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let addresses = vec!["hub:6444".to_owned()];
        let listener = JoinListener::bind(any, identity.clone(), certificate, addresses).await;
        let listener = match tunnel(&identity) {
            Some(tunnel) => listener.unwrap().shared_with(tunnel),
            None => listener.unwrap(),
        };
        let address = listener.local_addr();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.run(stopped));
        Self {
            identity,
            address,
            _tasks: tasks,
            _stop: stop,
        }
    }

    async fn exchange(&self, request: &[u8]) -> (u16, Value) {
        let roots = self.identity.serving_ca().roots().unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(tunnel::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(tunnel::SERVER_NAME).unwrap();
        let connect = TlsConnector::from(Arc::new(tls)).connect(name, stream);
        let mut stream = connect.await.unwrap();
        let _ = stream.write_all(request).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer));
        let _ = read.await.expect("an answer");
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).map_or(0, |code| code.parse().unwrap());
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn post(&self, body: &[u8]) -> (u16, Value) {
        let mut request = format!(
            "POST /v1/join HTTP/1.1\r\nhost: hub\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.exchange(&request).await
    }
}

fn csr(node: &str) -> String {
    csr_with(node, &KeyPair::generate().unwrap())
}

fn csr_with(node: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{node}"));
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn request(node: &str) -> Vec<u8> {
    json!({"token": TOKEN, "node": node, "csr": csr(node), "bootId": "b"})
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn a_node_joins_once_over_https() {
    let site = Site::start().await;
    let (status, answer) = site.post(&request("a")).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["servingCA"], site.identity.serving_ca().pem());
    assert_eq!(answer["tunnelAddresses"][0], "hub:6444");
    assert_eq!(answer["serverName"], tunnel::SERVER_NAME);
    let (status, answer) = site.post(&request("a")).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("TokenSpent")));
    assert_eq!(answer["code"], 401);
    let (status, answer) = site.post(&request("b")).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("TokenUnknown")));
}

#[tokio::test]
async fn bad_requests_get_their_reason_and_the_listener_lives() {
    let site = Site::start().await;
    for body in [
        &b"null"[..],
        b"[]",
        b"{",
        br#"{"token":1}"#,
        br#"{"token":"a","node":"a","csr":"","more":1}"#,
        br#"{"token":"a","token":"b","node":"a","csr":""}"#,
    ] {
        let (status, answer) = site.post(body).await;
        assert_eq!((status, answer["reason"].as_str()), (400, Some("BadBody")));
    }
    let (status, _) = site.post(&vec![b'x'; 70_000]).await;
    assert_eq!(status, 413);
    let (status, _) = site.exchange(b"GET / HTTP/1.1\r\nhost: hub\r\n\r\n").await;
    assert_eq!(status, 404);
    let (status, _) = site.exchange(b"\x16\x03\x01garbage\r\n\r\n").await;
    assert_eq!(status, 400);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let (status, _) = site.exchange(long.as_bytes()).await;
    assert!(status >= 400, "{status}");
    let mut plain = TcpStream::connect(site.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // Some that say nothing.
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(TcpStream::connect(site.address).await.unwrap());
    }
    let (status, answer) = site.post(&request("a")).await;
    assert_eq!(status, 200, "{answer}");
}

fn tunnel_of(identity: &Arc<Identity>) -> Hub {
    Hub::bind(HubConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        listen_tcp: Vec::new(),
        certificate: identity.serving(&[]).unwrap(),
        client_roots: Arc::new(identity.tunnel_ca().roots().unwrap()),
        hub_instance: [7; 16],
        addresses: Vec::new(),
        limits: Limits::default(),
        keys: identity.quic_keys().clone(),
        admission: identity.nodes().clone(),
        dormant_for: tunnel::DORMANT_FOR,
    })
    .unwrap()
}

struct FirstEpoch;

impl EpochSource for FirstEpoch {
    fn next(&self, _: u64) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async { Ok(1) })
    }
}

/// An edge that finds nothing at the tunnel's UDP address, and the hub's TCP port.
fn edge(site: &Site, certificate: &[u8], key: &KeyPair) -> Edge {
    let ports = vec![site.address.port()];
    Edge::new(EdgeConfig {
        node: "a".to_owned(),
        // Nobody listens on UDP there.
        hubs: vec![site.address.to_string()],
        server_name: tunnel::SERVER_NAME.to_owned(),
        roots: Arc::new(site.identity.serving_ca().roots().unwrap()),
        certificate: tunnel::tls::identity_from_pem(certificate, key.serialize_pem().as_bytes()).unwrap(),
        incarnation: [1; 16],
        epochs: Arc::new(FirstEpoch),
        boot_id: "b".to_owned(),
        agent: "a".to_owned(),
        uplinks: tokio::sync::watch::channel(Vec::new()).1,
        fallback: Fallback { ports, proxy: None },
        clock_floor: ClockFloor::default(),
        meter: tunnel::Meter::default(),
        dormant_for: tunnel::DORMANT_FOR,
    })
    .unwrap()
}

#[tokio::test]
async fn the_tunnel_shares_the_port_for_sites_that_block_udp() {
    let mut hub = None;
    let site = Site::start_with(|identity| Some(hub.insert(tunnel_of(identity)).tcp_door())).await;
    let hub = hub.unwrap();
    let key = KeyPair::generate().unwrap();
    let request = json!({"token": TOKEN, "node": "a", "csr": csr_with("a", &key), "bootId": "b"}).to_string();
    let (status, answer) = site.post(request.as_bytes()).await;
    assert_eq!(status, 200, "{answer}");
    let edge = edge(&site, answer["certificate"].as_str().unwrap().as_bytes(), &key);
    let meet = async { tokio::join!(edge.connect(), hub.accept()) };
    let (at_edge, at_hub) = tokio::time::timeout(Duration::from_secs(10), meet).await.unwrap();
    let (at_edge, at_hub) = (at_edge.unwrap(), at_hub.unwrap());
    assert_eq!(at_edge.paths()[0].transport, Transport::Tcp);
    at_edge.send(Priority::Urgent, "over tcp".into()).unwrap();
    assert_eq!(at_hub.recv().await.unwrap(), "over tcp");
    // Joins go on beside it.
    let (status, answer) = site.post(request.as_bytes()).await;
    assert_eq!((status, answer["reason"].as_str()), (401, Some("TokenSpent")));
}
