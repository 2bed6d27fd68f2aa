//! Hostile ends of a path over TCP: what is no record ends the connection with a reason, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::client::ResolvesClientCert;
use site::{Site, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tunnel::{ALPN, CloseReason, Edge, Fallback, Hub, Priority, SERVER_NAME, Session, tls};

/// A hub, and a robot that nothing may disturb.
struct World {
    site: Site,
    hub: Hub,
    bystander: (Session, Session),
    _edge: Edge,
}

impl World {
    async fn new() -> Self {
        let site = Site::new();
        let hub = site.hub_over_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        // Where nothing listens on UDP: the robot is over TCP.
        let mut config = site.edge_config("bystander", hub.tcp_addrs()[0]);
        config.fallback = Fallback {
            ports: vec![0],
            proxy: None,
        };
        let edge = Edge::new(config).unwrap();
        let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
        Self {
            bystander: (at_edge.unwrap(), at_hub.unwrap()),
            _edge: edge,
            site,
            hub,
        }
    }

    async fn is_undisturbed(&self) {
        let (at_edge, at_hub) = &self.bystander;
        at_edge.send(Priority::Urgent, Bytes::from_static(b"here")).unwrap();
        assert_eq!(soon("a message", at_hub.recv()).await.unwrap(), "here");
        assert_eq!(at_edge.peer().epoch, 1);
    }

    /// A node that has shaken hands and may say what it likes.
    async fn hostile(&self) -> TlsStream<TcpStream> {
        let identity = self.site.pki.node_identity("hostile", 1);
        self.connect(Some(identity), ALPN).await.unwrap()
    }

    async fn connect(
        &self,
        identity: Option<Arc<dyn ResolvesClientCert>>,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = tls::roots_from_pem(self.site.pki.serving.pem().as_bytes()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(identity) => config.with_client_cert_resolver(identity),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.hub.tcp_addrs()[0]).await?;
        let name = SERVER_NAME.try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

/// What the hub says, to the end.
async fn rest(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    let mut said = Vec::new();
    let read = soon("the end of the connection", stream.read_to_end(&mut said)).await;
    assert!(read.is_ok() || !said.is_empty(), "{read:?}");
    said
}

/// A record that closes a path: type, length, code, text.
fn closes(said: &[u8], code: u8, text: &str) -> bool {
    let last = [&[5, 0, 1 + text.len() as u8, code], text.as_bytes()].concat();
    said.ends_with(&last)
}

/// Attach{incarnation: 7…, epoch} in its record.
fn attach(epoch: u8) -> Vec<u8> {
    let frame = [&[0x0a, 16][..], &[7; 16], &[0x10, epoch]].concat();
    let control = [&[0x0a, frame.len() as u8][..], &frame].concat();
    [&[1, 0, control.len() as u8][..], &control].concat()
}

const REFUSED: u8 = 3;
const VIOLATION: u8 = 6;

#[tokio::test]
async fn what_is_no_attach_is_refused_with_the_reason() {
    let world = World::new().await;
    let mut newer = attach(1);
    newer.extend([2, 0, 1, 0]);
    for (sent, why) in [
        (
            &[1, 0xff, 0xff][..],
            "a record of 65535 bytes exceeds the limit of 4096 bytes",
        ),
        (
            &[1, 0x10, 0x01],
            "a record of 4097 bytes exceeds the limit of 4096 bytes",
        ),
        (&[77, 0, 0], "a record has the unknown type 77"),
        (b"GET / HTTP/1.1\r\n\r\n", "a record has the unknown type 71"),
        (&[2, 0, 1, 0], "the first record is not Attach"),
        (&[3, 0, 0], "the first record is not Attach"),
        (&[1, 0, 2, 0x22, 0], "the first frame is not Attach"),
        (&[1, 0, 2, 0x0a, 0], "incarnation must have 16 bytes"),
        (&[1, 0, 1, 0xff], "not a control frame"),
    ] {
        let mut stream = world.hostile().await;
        stream.write_all(sent).await.unwrap();
        let said = rest(&mut stream).await;
        assert!(
            closes(&said, REFUSED, why),
            "{sent:?}: {:?}",
            String::from_utf8_lossy(&said)
        );
        world.is_undisturbed().await;
    }
}

#[tokio::test]
async fn who_begins_and_does_not_go_on_is_closed() {
    let world = World::new().await;
    // In the middle of a record, and slowly.
    let since = Instant::now();
    let mut slow = world.hostile().await;
    let whole = attach(1);
    let write = async {
        for byte in &whole[..whole.len() - 1] {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        rest(&mut slow).await
    };
    let said = soon("the end of a slow writer", write).await;
    assert!(closes(&said, REFUSED, "no Attach in time"), "{said:?}");
    assert!(since.elapsed() > Duration::from_secs(4), "{:?}", since.elapsed());
    // In the middle of a record, for good.
    let mut cut = world.hostile().await;
    cut.write_all(&whole[..9]).await.unwrap();
    cut.shutdown().await.unwrap();
    let said = rest(&mut cut).await;
    assert!(closes(&said, REFUSED, "the stream ended within a record"), "{said:?}");
    world.is_undisturbed().await;
}

#[tokio::test]
async fn who_shows_no_certificate_or_wants_something_else_does_not_get_in() {
    let world = World::new().await;
    // In TLS 1.3 the verdict comes with the first read.
    if let Ok(mut stream) = world.connect(None, ALPN).await {
        let read = soon("the hub's verdict", stream.read_u8()).await.unwrap_err();
        assert!(read.to_string().contains("CertificateRequired"), "{read}");
    }
    let stranger = Site::new().pki.node_identity("hostile", 1);
    if let Ok(mut stream) = world.connect(Some(stranger), ALPN).await {
        let read = soon("the hub's verdict", stream.read_u8()).await.unwrap_err();
        assert!(read.to_string().contains("alert"), "{read}");
    }
    let identity = world.site.pki.node_identity("hostile", 1);
    let web = world.connect(Some(identity), b"http/1.1").await.unwrap_err();
    assert!(web.to_string().contains("NoApplicationProtocol"), "{web}");
    // A node that the hub does not let in learns why.
    world.site.gate.revoked.lock().unwrap().insert("hostile".to_owned());
    let said = rest(&mut world.hostile().await).await;
    assert!(closes(&said, REFUSED, "node hostile is revoked"), "{said:?}");
    world.is_undisturbed().await;
}

#[tokio::test]
async fn an_attached_edge_that_breaks_the_rules_loses_its_session_and_nobody_else() {
    let world = World::new().await;
    for (epoch, (sent, why)) in [
        (&[77, 0, 0][..], "a record has the unknown type 77"),
        (&[2, 0x20, 0], "a record of 8192 bytes exceeds the limit of 4096 bytes"),
        (&[4, 0, 1, 0], "a record of type 4 has 1 bytes"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = world.hostile().await;
        stream.write_all(&attach(1 + epoch as u8)).await.unwrap();
        let session = soon("its session", world.hub.accept()).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let text = why.to_owned();
        assert_eq!(
            soon("its end", session.closed()).await.reason,
            CloseReason::Violation { text }
        );
        let said = rest(&mut stream).await;
        assert!(closes(&said, VIOLATION, why), "{:?}", String::from_utf8_lossy(&said));
        world.is_undisturbed().await;
    }
}

#[tokio::test]
async fn an_edge_that_asks_and_does_not_read_costs_little_and_ends() {
    let world = World::new().await;
    let mut stream = world.hostile().await;
    stream.write_all(&attach(1)).await.unwrap();
    let session = soon("its session", world.hub.accept()).await.unwrap();
    // Challenge{nonce of 4 KiB}, of which each has an answer of the same size.
    let challenge = [&[1, 0x0f, 0xf3, 0x22, 0xf0, 0x1f][..], &[9; 4080]].concat();
    assert_eq!(challenge.len(), 3 + 0xff3);
    let flood = async { while stream.write_all(&challenge).await.is_ok() {} };
    let closed = soon("its end", async {
        tokio::select! {
            closed = session.closed() => closed,
            () = flood => session.closed().await,
        }
    });
    let text = "more challenges than answers are read".to_owned();
    assert_eq!(closed.await.reason, CloseReason::Violation { text });
    world.is_undisturbed().await;
}
