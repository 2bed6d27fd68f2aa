//! What an uplink's next connection knows of its last: TLS tickets, and how large a packet gets through. And what it is bound to.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use site::relay::UdpRelay;
use site::{Site, soon};
use tokio::sync::watch;
use tunnel::{Edge, Hub, Priority, Session, Uplink};

/// A certificate that counts how often it is asked for: a resumed handshake does without.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn ResolvesClientCert>,
    asked: AtomicUsize,
}

impl ResolvesClientCert for Counting {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.resolve(hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn over(name: &str, relay: &UdpRelay) -> Uplink {
    Uplink {
        hubs: vec![relay.address.to_string()],
        ..Uplink::new(name, None)
    }
}

async fn meet(edge: &Edge, hub: &Hub) -> (Session, Session) {
    let (at_edge, at_hub) = tokio::join!(edge.connect(), hub.accept());
    (at_edge.unwrap(), at_hub.unwrap())
}

async fn have(session: &Session, wanted: &[&str]) {
    let names = || {
        let mut names: Vec<_> = session.paths().into_iter().map(|path| path.uplink).collect();
        names.sort();
        names
    };
    soon(&format!("paths over {wanted:?}"), async {
        while names() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_uplink_is_added_again_by_a_ticket_and_still_judged() {
    let site = Site::new();
    let hub = site.hub();
    let (g5, lte) = (
        UdpRelay::start(hub.local_addr()).await,
        UdpRelay::start(hub.local_addr()).await,
    );
    let uplinks = watch::Sender::new(vec![over("g5", &g5)]);
    let certificate = Arc::new(Counting {
        inner: site.pki.node_identity("a", 1),
        asked: AtomicUsize::new(0),
    });
    let mut config = site.edge_config("a", hub.local_addr());
    config.uplinks = uplinks.subscribe();
    config.certificate = certificate.clone();
    let edge = Edge::new(config).unwrap();
    let (at_edge, at_hub) = soon("a session", meet(&edge, &hub)).await;
    for _ in 0..3 {
        uplinks.send_modify(|uplinks| uplinks.push(over("lte", &lte)));
        have(&at_hub, &["g5", "lte"]).await;
        uplinks.send_modify(|uplinks| uplinks.truncate(1));
        have(&at_hub, &["g5"]).await;
    }
    assert_eq!(certificate.asked.load(Ordering::Relaxed), 1, "full handshakes");
    assert_eq!(at_edge.peer().epoch, 1);

    // A ticket is no way round the hub's judgement.
    site.gate.least_generation.store(2, Ordering::Relaxed);
    uplinks.send_modify(|uplinks| uplinks.push(over("lte", &lte)));
    let joined = tokio::time::timeout(Duration::from_secs(1), have(&at_hub, &["g5", "lte"])).await;
    assert!(joined.is_err(), "a certificate of an old generation joined");
    assert_eq!(
        certificate.asked.load(Ordering::Relaxed),
        1,
        "it was refused by what the ticket holds"
    );
}

#[tokio::test]
async fn an_uplink_that_drops_large_packets_without_a_word_is_used_with_small_ones() {
    let site = Site::new();
    let hub = site.hub();
    let narrow = UdpRelay::start_with(hub.local_addr(), 1250).await;
    let mut config = site.edge_config("a", hub.local_addr());
    // Its flight is ten packets.
    config.certificate = site.pki.large_node_identity("a", 1);
    config.uplinks = watch::Sender::new(vec![over("lte", &narrow)]).subscribe();
    let edge = Edge::new(config).unwrap();
    let met = tokio::time::timeout(Duration::from_secs(30), meet(&edge, &hub)).await;
    let (at_edge, at_hub) = met.expect("a session over a link that takes 1250 bytes");
    at_edge.send(Priority::Bulk, Bytes::from(vec![7; 20_000])).unwrap();
    assert_eq!(soon("a message", at_hub.recv()).await.unwrap().len(), 20_000);
    // The same certificate needs no second try where packets get through.
    let wide = UdpRelay::start(hub.local_addr()).await;
    let mut config = site.edge_config("b", hub.local_addr());
    config.certificate = site.pki.large_node_identity("b", 1);
    config.uplinks = watch::Sender::new(vec![over("lte", &wide)]).subscribe();
    let edge = Edge::new(config).unwrap();
    let met = tokio::time::timeout(Duration::from_secs(3), meet(&edge, &hub)).await;
    met.expect("a session at the first try");
}

#[tokio::test]
async fn a_device_and_an_address_of_its_own_are_what_packets_leave_by() {
    let site = Site::new();
    let own = Ipv4Addr::new(127, 0, 0, 9);
    // Of a family without an address of its own any will do.
    for (hub, source) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(own)),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
    ] {
        let hub = site.hub_at(SocketAddr::new(hub, 0));
        let uplink = Uplink {
            sources: vec![own.into()],
            ..Uplink::new("lo", Some("lo"))
        };
        let mut config = site.edge_config("a", hub.local_addr());
        config.uplinks = watch::Sender::new(vec![uplink]).subscribe();
        let edge = Edge::new(config).unwrap();
        let (at_edge, at_hub) = soon("a session", meet(&edge, &hub)).await;
        assert_eq!(at_hub.peer().remote.ip(), source);
        assert_eq!(at_edge.peer().uplink, "lo");
        edge.shutdown("enough").await;
        soon("the end", at_hub.closed()).await;
    }
}

#[tokio::test]
async fn a_device_that_is_plugged_in_again_is_dialled_anew() {
    let site = Site::new();
    let hub = site.hub();
    let (g5, lte) = (
        UdpRelay::start(hub.local_addr()).await,
        UdpRelay::start(hub.local_addr()).await,
    );
    let at = |index| Uplink {
        index,
        ..over("lte", &lte)
    };
    let uplinks = watch::Sender::new(vec![over("g5", &g5), at(4)]);
    let mut config = site.edge_config("a", hub.local_addr());
    config.uplinks = uplinks.subscribe();
    let edge = Edge::new(config).unwrap();
    let (_at_edge, at_hub) = soon("a session", meet(&edge, &hub)).await;
    have(&at_hub, &["g5", "lte"]).await;
    let path = |session: &Session| {
        session
            .paths()
            .into_iter()
            .find(|path| path.uplink == "lte")
            .map(|path| path.remote)
    };
    let before = path(&at_hub);
    lte.quiet().await;
    let carried = lte.bytes();
    uplinks.send_modify(|uplinks| uplinks[1] = at(5));
    soon("a handshake over it", async {
        while lte.bytes() < carried + 2000 || path(&at_hub).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(before.is_some());
}
