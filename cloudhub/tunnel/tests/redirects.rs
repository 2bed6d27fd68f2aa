//! Two hubs of one installation: which of them an edge goes to.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use site::relay::UdpRelay;
use site::{Site, soon};
use tokio::sync::watch;
use tunnel::{CloseReason, Edge, Hub, HubAddresses, Priority, Session, Uplink};

async fn meet(hub: &Hub, edge: &Edge) -> (Session, Session) {
    let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    (at_edge.unwrap(), at_hub.unwrap())
}

fn at(hub: &Hub) -> HubAddresses {
    hub.local_addr().to_string().parse().unwrap()
}

/// One word each way, so that both ends have seen that the session works.
async fn talk(at_edge: &Session, at_hub: &Session) {
    for (from, to) in [(at_edge, at_hub), (at_hub, at_edge)] {
        from.send(Priority::Urgent, Bytes::from_static(b"word")).unwrap();
        assert_eq!(soon("a word", to.recv()).await.unwrap(), "word");
    }
}

#[tokio::test]
async fn an_edge_goes_where_its_hub_sends_it_and_stays_there() {
    let site = Site::new();
    let (old, new) = (site.hub(), site.hub());
    let edge = site.edge("a", old.local_addr());
    let (at_edge, at_hub) = meet(&old, &edge).await;
    talk(&at_edge, &at_hub).await;
    assert!(!old.redirect("nobody", &at(&new)));
    assert!(old.redirect("a", &at(&new)));
    let told = CloseReason::Redirected { to: at(&new) };
    assert_eq!(soon("the end", at_edge.closed()).await.reason, told);
    assert_eq!(soon("the end", at_hub.closed()).await.reason, told);
    let since = Instant::now();
    let (at_edge, at_hub) = meet(&new, &edge).await;
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "it goes at once: {:?}",
        since.elapsed()
    );
    assert_eq!(at_hub.peer().epoch, 2);
    talk(&at_edge, &at_hub).await;
    assert!(old.session("a").is_none());
    // What ends that session otherwise does not bring it back to the old one.
    at_hub.close(CloseReason::PeerGoodbye {
        text: "again".to_owned(),
    });
    soon("the end", at_edge.closed()).await;
    let (at_edge, _at_hub) = meet(&new, &edge).await;
    assert_eq!(at_edge.peer().epoch, 3);
}

#[tokio::test]
async fn an_edge_that_is_sent_nowhere_comes_back() {
    let site = Site::new();
    let hub = site.hub();
    let edge = site.edge("a", hub.local_addr());
    let (at_edge, at_hub) = meet(&hub, &edge).await;
    talk(&at_edge, &at_hub).await;
    // Nobody is there: the kernel says so, or nobody answers for three seconds.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(hub.redirect("a", &nobody.local_addr().unwrap().to_string().parse().unwrap()));
    soon("the end", at_edge.closed()).await;
    let (at_edge, _at_hub) = meet(&hub, &edge).await;
    assert_eq!(at_edge.peer().remote, hub.local_addr());
}

#[tokio::test]
async fn two_hubs_that_send_an_edge_to_each_other_do_not_make_it_run_in_circles() {
    let site = Site::new();
    let (one, other) = (site.hub(), site.hub());
    let edge = site.edge("a", one.local_addr());
    let circle = async {
        loop {
            let (from, to) = tokio::select! {
                session = one.accept() => (session.map(|_| &one), &other),
                session = other.accept() => (session.map(|_| &other), &one),
            };
            from.unwrap().redirect("a", &at(to));
        }
    };
    let mut sessions = 0;
    let count = async {
        loop {
            let session = edge.connect().await.unwrap();
            sessions += 1;
            session.closed().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(4), async { tokio::join!(circle, count) }).await;
    // Nobody has said a word in them: the pauses grow.
    assert!((2..40).contains(&sessions), "{sessions} sessions in four seconds");
}

async fn has_two_paths(session: &Session) {
    soon("a path over the other uplink", async {
        while session.paths().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// An address of loopback on which nobody listens, and that the kernel gives to no other test meanwhile: it gives 32768 and above.
fn free() -> SocketAddr {
    let ports = std::iter::repeat_with(|| rand::random_range(20_000..32_000));
    let mut free = ports.filter_map(|port| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok());
    free.next().unwrap().local_addr().unwrap()
}

/// An edge that begins with one uplink, and how to give it another.
fn one_uplink(site: &Site, hubs: [SocketAddr; 2]) -> (Edge, watch::Sender<Vec<Uplink>>) {
    let uplinks = watch::Sender::new(vec![Uplink::new("g5", None)]);
    let mut config = site.edge_config("a", hubs[0]);
    config.hubs.push(hubs[1].to_string());
    config.uplinks = uplinks.subscribe();
    (Edge::new(config).unwrap(), uplinks)
}

#[tokio::test]
async fn further_paths_go_where_the_first_one_went() {
    let site = Site::new();
    let (first, second) = (free(), site.hub());
    let (edge, uplinks) = one_uplink(&site, [first, second.local_addr()]);
    let (at_edge, at_hub) = meet(&second, &edge).await;
    talk(&at_edge, &at_hub).await;
    // The hub whose name comes first is back; it has no such session.
    let first = site.hub_at(first);
    uplinks.send_modify(|all| all.push(Uplink::new("lte", None)));
    has_two_paths(&at_hub).await;
    talk(&at_edge, &at_hub).await;
    assert!(first.session("a").is_none());
}

#[tokio::test]
async fn further_paths_go_where_the_instance_is_reached_directly() {
    let site = Site::new();
    let address = free();
    let direct = UdpRelay::start(address).await;
    let mut config = site.hub_config(address, site.pki.hub_identity());
    config.addresses = vec![direct.address.to_string()];
    let hub = Hub::bind(config).unwrap();
    let (edge, uplinks) = one_uplink(&site, [address, address]);
    let (at_edge, at_hub) = meet(&hub, &edge).await;
    assert_eq!((at_edge.welcome().addresses.len(), direct.bytes()), (1, 0));
    uplinks.send_modify(|all| all.push(Uplink::new("lte", None)));
    has_two_paths(&at_hub).await;
    assert!(direct.bytes() > 2000, "the handshake went there");
}
