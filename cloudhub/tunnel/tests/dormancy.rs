//! Sessions that no link carries for a while: what both ends keep, what they refuse, what wakes a session and what ends it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use site::killed::{KilledHub, rebind};
use site::relay::UdpRelay;
use site::{Epochs, Site, becomes, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tunnel::{CloseReason, Edge, Hub, OpenError, Presence, Priority, SendError, Session, Uplink};

/// What a message or a stream holds beyond its bytes is little; an end holds so much of a session at most.
const HELD: usize = 2_000_000;

async fn meet(edge: &Edge, hub: &Hub) -> (Session, Session) {
    let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    (at_edge.unwrap(), at_hub.unwrap())
}

fn over(name: &str, relays: &[&UdpRelay]) -> Uplink {
    Uplink {
        hubs: relays.iter().map(|relay| relay.address.to_string()).collect(),
        ..Uplink::new(name, None)
    }
}

/// Both ends notice that no link is there.
async fn both_are_away(at_edge: &Session, at_hub: &Session) {
    // An idle end asks every 8 s only.
    at_edge.send(Priority::Urgent, Bytes::from_static(b"?")).unwrap();
    at_hub.send(Priority::Urgent, Bytes::from_static(b"?")).unwrap();
    tokio::join!(becomes(at_edge, Presence::Away), becomes(at_hub, Presence::Away));
}

/// Sends as much as is taken; how many messages and bytes that was.
fn fill(session: &Session, priority: Priority) -> (usize, usize) {
    let message = Bytes::from(vec![9; 1000]);
    let mut taken = 0;
    loop {
        match session.send(priority, message.clone()) {
            Ok(()) => taken += 1,
            Err(error) => {
                assert_eq!(error, SendError::Busy);
                return (taken, taken * message.len());
            }
        }
        assert!(taken < 10_000, "{priority:?} is taken without end");
    }
}

#[tokio::test]
async fn a_dormant_session_refuses_what_is_new_and_goes_on_where_it_was() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start(hub.local_addr()).await;
    let edge = site.edge("a", relay.address);
    let (at_edge, at_hub) = meet(&edge, &hub).await;
    let mut stream = at_hub.open_stream().await.unwrap();
    stream.write_all(b"before, ").await.unwrap();
    let mut other = soon("a stream", at_edge.accept_stream()).await.unwrap();
    relay.cut();
    both_are_away(&at_edge, &at_hub).await;
    for session in [&at_edge, &at_hub] {
        assert!(!session.is_here());
        let refused = tokio::time::timeout(Duration::from_millis(100), session.open_stream()).await;
        assert_eq!(refused.expect("at once").unwrap_err(), OpenError::Away);
        for priority in [Priority::Normal, Priority::Bulk] {
            assert_eq!(fill(session, priority).0, 0, "{priority:?}");
        }
        let ready = tokio::time::timeout(Duration::from_millis(100), session.ready()).await;
        assert!(ready.is_err(), "there is no room before it goes on");
        let urgent = fill(session, Priority::Urgent).1 + fill(session, Priority::Interactive).1;
        assert!(urgent < HELD, "{urgent} bytes");
    }
    // A stream that was there takes its window and no more.
    let mut written = b"before, ".len();
    while let Ok(more) = tokio::time::timeout(Duration::from_millis(200), stream.write(&[b'x'; 10_000])).await {
        written += more.unwrap();
        assert!(written < HELD);
    }
    relay.mend();
    let since = Instant::now();
    tokio::join!(becomes(&at_edge, Presence::Here), becomes(&at_hub, Presence::Here));
    println!("it goes on {:?} after its link is back", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    let write = async {
        stream.write_all(b" and after").await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let mut text = String::new();
    let (_, read) = soon("the text", async {
        tokio::join!(write, other.read_to_string(&mut text))
    })
    .await;
    read.unwrap();
    assert_eq!(text.len(), written + b" and after".len());
    assert!(text.starts_with("before, xxx") && text.ends_with("xxx and after"));
    for session in [&at_edge, &at_hub] {
        session.open_stream().await.unwrap();
        assert_eq!(session.peer().epoch, 1);
    }
}

#[tokio::test]
async fn a_session_that_is_dormant_for_too_long_ends_at_both_ends() {
    let site = Site::new();
    let limit = Duration::from_secs(2);
    let mut config = site.hub_config("127.0.0.1:0".parse().unwrap(), site.pki.hub_identity());
    config.dormant_for = limit;
    let hub = Hub::bind(config).unwrap();
    let (lte, wifi) = (
        UdpRelay::start(hub.local_addr()).await,
        UdpRelay::start(hub.local_addr()).await,
    );
    wifi.cut();
    let uplinks = watch::Sender::new(vec![over("lte", &[&lte])]);
    let mut config = site.edge_config("a", hub.local_addr());
    (config.uplinks, config.dormant_for) = (uplinks.subscribe(), limit);
    let edge = Edge::new(config).unwrap();
    let (at_edge, at_hub) = meet(&edge, &hub).await;
    at_hub.send(Priority::Urgent, Bytes::from_static(b"!")).unwrap();
    soon("a message", at_edge.recv()).await.unwrap();
    // Its last uplink is unplugged, which it says; the new one leads nowhere.
    uplinks.send_replace(vec![over("wifi", &[&wifi])]);
    tokio::join!(becomes(&at_edge, Presence::Away), becomes(&at_hub, Presence::Away));
    let since = Instant::now();
    assert!(hub.session("a").is_some());
    assert!(
        !hub.redirect("a", &"elsewhere:1".parse().unwrap()),
        "nobody would hear it"
    );
    for session in [&at_edge, &at_hub] {
        assert_eq!(soon("the end", session.closed()).await.reason, CloseReason::LinkLost);
    }
    let took = since.elapsed();
    assert!(
        took >= limit - Duration::from_millis(100) && took < limit * 2,
        "{took:?}"
    );
    soon("its removal", async {
        while hub.session("a").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    wifi.mend();
    let (again, _) = meet(&edge, &hub).await;
    assert_eq!(again.peer().epoch, 2);
}

#[tokio::test]
async fn a_hub_that_was_started_again_meanwhile_is_met_in_a_new_session() {
    let site = Site::new();
    let (doomed, hub) = KilledHub::start(&site);
    let address = hub.local_addr();
    let relay = UdpRelay::start(address).await;
    let edge = site.edge("a", relay.address);
    let (at_edge, at_hub) = meet(&edge, &hub).await;
    relay.cut();
    both_are_away(&at_edge, &at_hub).await;
    doomed.kill(hub, Some(at_hub));
    let restarted = soon("the port", rebind(&site, address)).await;
    relay.mend();
    let since = Instant::now();
    let closed = soon("the end", at_edge.closed()).await;
    assert_eq!(closed.reason, CloseReason::Forgotten);
    let (again, _) = meet(&edge, &restarted).await;
    assert_eq!(again.peer().epoch, 2);
    println!("a new session {:?} after the link is back", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_hub_that_is_reached_elsewhere_meanwhile_goes_on_with_the_session() {
    let site = Site::new();
    let hub = site.hub();
    let (old, new) = (
        UdpRelay::start(hub.local_addr()).await,
        UdpRelay::start(hub.local_addr()).await,
    );
    let mut config = site.edge_config("a", hub.local_addr());
    config.uplinks = watch::Sender::new(vec![over("lte", &[&old, &new])]).subscribe();
    let edge = Edge::new(config).unwrap();
    let (at_edge, at_hub) = meet(&edge, &hub).await;
    let mut stream = at_edge.open_stream().await.unwrap();
    stream.write_all(b"before").await.unwrap();
    let mut other = soon("a stream", at_hub.accept_stream()).await.unwrap();
    old.cut();
    new.cut();
    both_are_away(&at_edge, &at_hub).await;
    new.mend();
    tokio::join!(becomes(&at_edge, Presence::Here), becomes(&at_hub, Presence::Here));
    stream.write_all(b" and after").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    soon("the text", other.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(at_edge.peer().epoch, 1);
    let paths = at_edge.paths();
    assert_eq!(paths.len(), 1, "the old path is gone: {paths:?}");
    assert_eq!(paths[0].remote, new.address);
}

#[tokio::test]
async fn an_edge_that_was_started_again_replaces_its_dormant_session() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start(hub.local_addr()).await;
    let edge = site.edge("a", relay.address);
    let (at_edge, at_hub) = meet(&edge, &hub).await;
    relay.cut();
    both_are_away(&at_edge, &at_hub).await;
    let mut config = site.edge_config("a", hub.local_addr());
    config.epochs = Arc::new(Epochs(AtomicU64::new(1)));
    let second = Edge::new(config).unwrap();
    let since = Instant::now();
    let (_again, new) = meet(&second, &hub).await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(new.peer().epoch, 2);
    assert_eq!(soon("the end", at_hub.closed()).await.reason, CloseReason::Replaced);
    assert_eq!(hub.session("a").unwrap().peer().epoch, 2);
    // The old one learns it when its link is back: by the hub's last word, or by its answer to one that it does not know.
    relay.mend();
    let closed = soon("the old one's end", at_edge.closed()).await;
    let known = [CloseReason::Replaced, CloseReason::Forgotten];
    assert!(known.contains(&closed.reason), "{}", closed.reason);
}

#[tokio::test]
async fn a_link_on_which_one_way_is_dead_is_none_at_either_end() {
    let site = Site::new();
    let hub = site.hub();
    let relay = UdpRelay::start(hub.local_addr()).await;
    let edge = site.edge("a", relay.address);
    let (at_edge, at_hub) = meet(&edge, &hub).await;
    relay.cut_down();
    let since = Instant::now();
    both_are_away(&at_edge, &at_hub).await;
    assert!(since.elapsed() < Duration::from_secs(13), "{:?}", since.elapsed());
    relay.mend();
    let since = Instant::now();
    tokio::join!(becomes(&at_edge, Presence::Here), becomes(&at_hub, Presence::Here));
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}
