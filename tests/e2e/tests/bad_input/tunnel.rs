//! At the tunnel: datagrams without sense, handshakes that are never ended, strangers, and a node that does not say what it should.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use kit::site::{HUB, JOIN_PORT};
use kit::{Hub, Site, paths};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::crowd::{ANSWER, Blind, StopAtEnd, noise};

/// Handshakes that are begun at once: more than the hub lets wait.
const HALF_OPEN: usize = 6000;
/// As many again each tenth of a second.
const MORE: usize = 50;
/// Between them.
const ROUND: Duration = Duration::from_millis(100);
/// What the tunnel speaks.
const ALPN: &[u8] = b"kedge/1";

fn hub_address() -> SocketAddr {
    format!("{HUB}:{JOIN_PORT}").parse().expect("an address")
}

/// Joins `node`, whose files come to be in `dir/etc` and `dir/state`.
pub(crate) fn join(site: &Site, hub: &Hub, node: &str, dir: &Path) -> Result<()> {
    let (token, hash) = hub.token(node)?;
    let mut command = site.command("hub", &paths::ours("kedge"));
    command
        .args([
            "join",
            "--hub",
            &format!("{HUB}:{JOIN_PORT}"),
            "--token",
            &token,
            "--ca-hash",
            &hash,
        ])
        .arg("--config-dir")
        .arg(dir.join("etc"))
        .arg("--state-dir")
        .arg(dir.join("state"));
    kit::process::run(&mut command)?;
    Ok(())
}

/// Datagrams of noise; each second begins like QUIC's first.
pub(crate) fn flood(site: &Site, to: SocketAddr) {
    site.inside("hub", || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for seed in 0..5000 {
            let mut datagram = noise(seed, 20 + usize::try_from(seed % 1400).expect("it is small"));
            if seed % 2 == 0 {
                // A QUIC Initial of version 1 up to its connection ids.
                datagram.splice(..7, [0xc3, 0, 0, 0, 1, 8, 0x11]);
            }
            // A full buffer loses datagrams, as on any link.
            let _ = socket.send_to(&datagram, to);
        }
    });
}

/// Does `work` while clients begin handshakes with the hub's tunnel and never read its answers; how many began.
pub(crate) fn half_open(site: &Site, work: impl FnOnce()) -> usize {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (all_are_sent, ready) = std::sync::mpsc::channel();
        let sender = scope.spawn(move || {
            site.inside("hub", || {
                runtime().block_on(async {
                    let mut initials = Initials::new().await;
                    for _ in 0..HALF_OPEN {
                        initials.send().await;
                    }
                    all_are_sent.send(()).expect("the test waits");
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..MORE {
                            initials.send().await;
                        }
                        tokio::time::sleep(ROUND).await;
                    }
                    initials.begun.len()
                })
            })
        });
        ready.recv().expect("handshakes have begun");
        {
            let _stop = StopAtEnd(stop);
            work();
        }
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Real first packets of real clients, who believe that the hub is a socket that never answers.
struct Initials {
    endpoint: Endpoint,
    sink: tokio::net::UdpSocket,
    at: SocketAddr,
    to_hub: UdpSocket,
    /// Kept: one that is dropped says goodbye.
    begun: Vec<quinn::Connecting>,
}

impl Initials {
    async fn new() -> Self {
        let mut endpoint = client(None);
        let mut config = client_config(None);
        // It does not repeat itself.
        let mut transport = quinn::TransportConfig::default();
        transport.initial_rtt(Duration::from_secs(600));
        config.transport_config(Arc::new(transport));
        endpoint.set_default_client_config(config);
        let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        Self {
            endpoint,
            at: sink.local_addr().expect("an address"),
            sink,
            to_hub: UdpSocket::bind("0.0.0.0:0").expect("a socket"),
            begun: Vec::new(),
        }
    }

    async fn send(&mut self) {
        self.begun.push(
            self.endpoint
                .connect(self.at, "cloudhub.kedge.internal")
                .expect("a client"),
        );
        let mut packet = [0; 2048];
        let length = tokio::time::timeout(ANSWER, self.sink.recv(&mut packet)).await;
        let length = length.expect("a first packet in time").expect("a first packet");
        // A full buffer loses datagrams, as on any link.
        let _ = self.to_hub.send_to(&packet[..length], hub_address());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client(pair: Option<Pair>) -> Endpoint {
    let mut endpoint = Endpoint::client("0.0.0.0:0".parse().expect("an address")).expect("a socket");
    endpoint.set_default_client_config(client_config(pair));
    endpoint
}

/// A client of the tunnel with a certificate or without one.
fn client_config(pair: Option<Pair>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Blind(provider)));
    let mut tls = match pair {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a certificate"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let quic = QuicClientConfig::try_from(tls).expect("a configuration");
    ClientConfig::new(Arc::new(quic))
}

/// The certificate and key that `kedge join` has put below `dir`.
fn pair_of(dir: &Path) -> Pair {
    let file = |name: &str| dir.join("state/pki").join(name);
    let chain = CertificateDer::pem_file_iter(file("client.crt")).expect("a chain");
    let key = PrivateKeyDer::from_pem_file(file("client.key")).expect("a key");
    (chain.map(|c| c.expect("a certificate")).collect(), key)
}

/// Strangers are refused; so is a node of ours that says nothing, nonsense, too much, or half of it.
pub(crate) fn knock(site: &Site, hub: &Hub) {
    let (stranger, node) = (site.dir().join("stranger"), site.dir().join("knocks"));
    join(site, hub, "knocks", &node).expect("join");
    // What says that it is a node, by a CA that is nobody's.
    let own = kit::pki::Authority::new("nobody").expect("a CA");
    let pair = own.client("knocks", &["system:nodes"]).expect("a certificate");
    std::fs::create_dir_all(stranger.join("state/pki")).expect("a folder");
    kit::pki::write_pair(&stranger.join("state/pki"), "client", &pair).expect("write");
    site.inside("hub", || {
        runtime().block_on(async {
            for pair in [None, Some(pair_of(&stranger))] {
                let error = closed(&connect(pair).await).await;
                assert!(
                    error.contains("crypto") || error.contains("certificate"),
                    "a stranger: {error}"
                );
            }
            let long = [[0xff; 4].as_slice(), &noise(1, 100_000)].concat();
            for said in [Vec::new(), noise(2, 1), noise(3, 2000), long, vec![0; 3]] {
                let length = said.len();
                let connection = connect(Some(pair_of(&node))).await.expect("a node of ours");
                say(&connection, &said).await;
                let error = closed(&Ok(connection)).await;
                assert!(
                    !error.contains("timed out"),
                    "{length} bytes in place of Attach: {error}"
                );
            }
        });
    });
}

async fn connect(pair: Option<Pair>) -> Result<Connection, ConnectionError> {
    let endpoint = client(pair);
    let connecting = endpoint
        .connect(hub_address(), "cloudhub.kedge.internal")
        .expect("a client");
    tokio::time::timeout(ANSWER, connecting).await.expect("the hub answers")
}

/// Writes `bytes` slowly; the hub may have enough before the end.
async fn say(connection: &Connection, bytes: &[u8]) {
    let Ok((mut writer, _reader)) = connection.open_bi().await else {
        return;
    };
    for part in bytes.chunks(10_000) {
        if writer.write_all(part).await.is_err() {
            return;
        }
        tokio::time::sleep(ROUND).await;
    }
    // An end would be an answer; this waits for one.
    connection.closed().await;
}

/// Why the hub has closed it.
async fn closed(connection: &Result<Connection, ConnectionError>) -> String {
    match connection {
        Err(error) => error.to_string(),
        Ok(connection) => {
            let closed = tokio::time::timeout(ANSWER, connection.closed()).await;
            closed.expect("the hub closes it").to_string()
        }
    }
}
