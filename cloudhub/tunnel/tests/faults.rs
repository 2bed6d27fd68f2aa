//! What goes wrong: restarted hubs, wrong certificates, revoked nodes, hostile peers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use site::killed::{KilledHub, rebind};
use site::relay::UdpRelay;
use site::{Pki, Site, becomes, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::bond::PathState;
use tunnel::{ALPN, ClockFloor, CloseReason, ConnectError, Edge, Presence, Priority, SERVER_NAME};

#[tokio::test]
async fn a_restarted_hub_is_noticed_at_once() {
    let site = Site::new();
    let (doomed, hub) = KilledHub::start(&site);
    let address = hub.local_addr();
    let edge = site.edge("a", address);
    let (session, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    let session = session.unwrap();
    doomed.kill(hub, at_hub);
    let restarted = soon("the port", rebind(&site, address)).await;
    let since = Instant::now();
    session.send(Priority::Urgent, Bytes::from_static(b"?")).unwrap();
    let closed = soon("the end", session.closed()).await;
    assert_eq!(closed.reason, CloseReason::Forgotten);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    let (again, _) = soon("the next session", async {
        tokio::join!(edge.connect(), restarted.accept())
    })
    .await;
    assert_eq!(again.unwrap().peer().epoch, 2);
}

#[tokio::test]
async fn a_silent_hub_under_traffic_is_suspect_within_three_seconds_and_away_after_ten() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start(hub.local_addr()).await;
    let edge = site.edge("a", relay.address);
    let (session, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    let (session, at_hub) = (session.unwrap(), at_hub.unwrap());
    relay.cut();
    let since = Instant::now();
    session.send(Priority::Normal, Bytes::from_static(b"?")).unwrap();
    soon("suspicion", async {
        while session.paths()[0].stats.state != PathState::Suspect {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    becomes(&session, Presence::Away).await;
    assert!(
        since.elapsed() > Duration::from_secs(5),
        "a short outage is none for people"
    );
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    // And at the hub, which hears nothing more.
    becomes(&at_hub, Presence::Away).await;
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
}

#[tokio::test]
async fn an_outage_of_five_seconds_loses_no_byte_of_a_stream() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start(hub.local_addr()).await;
    let edge = site.edge("a", relay.address);
    let (session, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    let (session, at_hub) = (session.unwrap(), at_hub.unwrap());
    let mut stream = session.open_stream().await.unwrap();
    stream.write_all(b"before").await.unwrap();
    let mut other = soon("a stream", at_hub.accept_stream()).await.unwrap();
    relay.cut();
    stream.write_all(b", within").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    relay.mend();
    let since = Instant::now();
    stream.write_all(b" and after").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    soon("the text", other.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "before, within and after");
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(
        session.stats().streams,
        1,
        "our direction of it is over, the hub's is not"
    );
}

#[tokio::test]
async fn a_silent_hub_is_noticed_within_ten_seconds_by_an_idle_edge() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start(hub.local_addr()).await;
    let edge = site.edge("a", relay.address);
    let session = soon("a session", edge.connect()).await.unwrap();
    relay.quiet().await;
    let since = Instant::now();
    relay.cut();
    becomes(&session, Presence::Away).await;
    // Ten, and what a loaded machine adds.
    assert!(since.elapsed() < Duration::from_millis(11_000), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_link_that_drops_large_packets_is_not_taken_for_dead() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start_with(hub.local_addr(), 1250).await;
    let edge = site.edge("a", relay.address);
    let (session, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    let (session, at_hub) = (session.unwrap(), at_hub.unwrap());
    // The probes for a larger MTU are lost meanwhile, and there is nothing else to acknowledge.
    let end = tokio::time::timeout(Duration::from_secs(4), session.closed()).await;
    assert!(end.is_err(), "{end:?}");
    let large = Bytes::from(vec![1; 50_000]);
    session.send(Priority::Bulk, large.clone()).unwrap();
    assert_eq!(soon("a message", at_hub.recv()).await.unwrap(), large);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_and_the_hub_lives() {
    let site = Site::new();
    let hub = site.hub();
    let mut config = site.edge_config("a", hub.local_addr());
    config.certificate = Pki::new().node_identity("a", 1);
    let edge = Edge::new(config).unwrap();
    let error = soon("a refusal", edge.connect()).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused { reason } if reason.contains("certificate")),
        "{error}"
    );
    let honest = site.edge("b", hub.local_addr());
    soon("a session", honest.connect()).await.unwrap();
}

#[tokio::test]
async fn a_hub_of_another_ca_is_not_talked_to() {
    let site = Site::new();
    let stranger = Site::new();
    let hub = stranger.hub();
    let edge = site.edge("a", hub.local_addr());
    let wait = tokio::time::timeout(Duration::from_millis(500), edge.connect()).await;
    assert!(wait.is_err(), "it goes on trying");
    assert!(hub.session("a").is_none());
}

#[tokio::test]
async fn a_revoked_node_is_cut_at_once_and_stays_out() {
    let site = Site::new();
    let hub = site.hub();
    let edge = site.edge("a", hub.local_addr());
    let session = soon("a session", edge.connect()).await.unwrap();
    soon("the hub's session", hub.accept()).await.unwrap();
    site.gate.revoked.lock().unwrap().insert("a".to_owned());
    let since = Instant::now();
    assert!(hub.revoke("a"));
    let closed = soon("the cut", session.closed()).await;
    assert_eq!(closed.reason, CloseReason::Revoked);
    assert!(since.elapsed() < Duration::from_secs(1));
    // A resumed handshake is asked again too.
    let error = soon("a refusal", edge.connect()).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused { reason } if reason.contains("revoked")),
        "{error}"
    );
    assert!(!hub.revoke("a"));
}

#[tokio::test]
async fn a_generation_below_the_recorded_one_is_refused_and_a_rotated_certificate_is_not() {
    let site = Site::new();
    let hub = site.hub();
    let edge = site.edge("a", hub.local_addr());
    let first = soon("a session", edge.connect()).await.unwrap();
    site.gate
        .least_generation
        .store(2, std::sync::atomic::Ordering::Relaxed);
    first.close(CloseReason::Local);
    let error = soon("a refusal", edge.connect()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }));
    edge.set_certificate(site.pki.node_identity("a", 2)).await.unwrap();
    soon("a session", edge.connect()).await.unwrap();
}

#[tokio::test]
async fn a_clock_behind_the_floor_judges_certificates_by_the_floor() {
    let site = Site::new();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Valid in years to come only: by the real clock it is not, by the floor it is, before its start too.
    let hub = site.hub_with(listen, site.pki.hub_identity_valid(Some((2080, 2090))));
    let mut config = site.edge_config("a", hub.local_addr());
    let year = 365 * 86_400;
    config.clock_floor = ClockFloor::new(Duration::from_secs(105 * year));
    soon("a session", Edge::new(config).unwrap().connect()).await.unwrap();
    // Past its end it is refused.
    let mut config = site.edge_config("b", hub.local_addr());
    config.clock_floor = ClockFloor::new(Duration::from_secs(125 * year));
    let late = Edge::new(config).unwrap();
    let wait = tokio::time::timeout(Duration::from_millis(500), late.connect()).await;
    assert!(wait.is_err());
    assert!(hub.session("b").is_none());
}

#[tokio::test]
async fn hostile_first_frames_and_datagrams_do_not_hurt_the_hub() {
    let site = Site::new();
    let hub = site.hub();
    let noise = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for size in [0, 1, 20, 21, 64, 1200, 9000] {
        let bytes: Vec<u8> = (0..size).map(|_| rand::random()).collect();
        noise.send_to(&bytes, hub.local_addr()).unwrap();
    }
    let hostile: [&[u8]; 5] = [
        &[0xff; 9000],          // a length above the limit
        &[0, 0],                // an empty frame
        &[0, 3, 0xff, 0xff, 1], // not protobuf
        &[0, 200, 1],           // cut
        &[0, 4, 0x0a, 2, 8, 5], // an Attach without an incarnation
    ];
    for (index, bytes) in hostile.iter().enumerate() {
        let connection = raw_connection(&site, &hub).await;
        let (mut writer, _reader) = connection.open_bi().await.unwrap();
        writer.write_all(bytes).await.unwrap();
        let _ = writer.finish();
        let end = soon("the cut", connection.closed()).await;
        assert!(
            matches!(end, quinn::ConnectionError::ApplicationClosed(_)),
            "case {index}: {end}"
        );
    }
    let honest = site.edge("b", hub.local_addr());
    soon("a session", honest.connect()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_breaks_the_rules_loses_its_session_with_the_reason_and_no_other() {
    let site = Site::new();
    let hub = site.hub();
    let honest = site.edge("b", hub.local_addr());
    let (other, _) = soon("a session", async { tokio::join!(honest.connect(), hub.accept()) }).await;
    let cases: [(&[u8], &str); 3] = [
        (&[0x17, 1, 2, 3, 4], "unknown byte"),
        // A header, and an acknowledgement of path 0's packet 5, which was never sent.
        (&[0x40, 0, 0, 0, 1, 0x30, 1, 0, 0, 0, 0, 5, 0, 0, 0, 0], "never sent"),
        // A stream of the edge that begins with a byte that means nothing.
        (&[0x40, 0, 0, 0, 1, 0x22, 0, 0, 0, 1, 99], "unknown byte 99"),
    ];
    for (bytes, what) in cases {
        let connection = raw_connection(&site, &hub).await;
        let (mut control, mut answer) = connection.open_bi().await.unwrap();
        let mut attach = vec![0, 20, 0x0a, 18, 0x0a, 16];
        attach.extend([7; 16]);
        control.write_all(&attach).await.unwrap();
        let session = soon("the session", hub.accept()).await.unwrap();
        soon("Welcome", answer.read_chunk(100, true)).await.unwrap();
        connection.send_datagram(Bytes::copy_from_slice(bytes)).unwrap();
        let closed = soon("the cut", session.closed()).await;
        assert!(
            matches!(&closed.reason, CloseReason::Violation { text } if text.contains(what)),
            "{what}: {}",
            closed.reason
        );
        assert!(session.recv().await.is_err());
        let told = soon("its reason", connection.closed()).await;
        assert!(told.to_string().contains(what), "{told}");
    }
    other.unwrap().send(Priority::Urgent, Bytes::from_static(b"!")).unwrap();
    assert_eq!(soon("a message", hub.session("b").unwrap().recv()).await.unwrap(), "!");
}

/// A quinn connection with node a's certificate that has not attached.
async fn raw_connection(site: &Site, hub: &tunnel::Hub) -> quinn::Connection {
    let config = site.edge_config("a", hub.local_addr());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(config.roots)
        .with_client_cert_resolver(config.certificate);
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    endpoint
        .connect_with(
            quinn::ClientConfig::new(Arc::new(crypto)),
            hub.local_addr(),
            SERVER_NAME,
        )
        .unwrap()
        .await
        .unwrap()
}
