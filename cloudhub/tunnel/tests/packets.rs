//! IP packets between the two ends of a session: once each and in order, over lossy paths and over TCP; back-pressure, overflow, the end.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use site::namespace::{block_udp, isolated};
use site::relay::UdpRelay;
use site::{Site, soon};
use tokio::sync::watch;
use tunnel::bond::PathState;
use tunnel::{CloseReason, Edge, Fallback, Hub, PacketReceiver, PacketSender, SendError, Session, Transport, Uplink};

/// A packet of a TCP connection with data, as its flow and number say; the size, at least 48 bytes, follows from the number.
fn packet(flow: u16, number: u32) -> Bytes {
    let size = 48 + (number as usize * 37) % (1280 - 48);
    let mut packet = vec![0; size];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    (packet[8], packet[9]) = (64, 6);
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[20..22].copy_from_slice(&flow.to_be_bytes());
    (packet[32], packet[33]) = (0x50, 0x18);
    packet[40..44].copy_from_slice(&number.to_be_bytes());
    packet[44..].fill(number as u8);
    packet.into()
}

/// Its flow and its number; it must be as it was made.
fn read(received: &Bytes) -> (u16, u32) {
    let flow = u16::from_be_bytes(received[20..22].try_into().unwrap());
    let number = u32::from_be_bytes(received[40..44].try_into().unwrap());
    assert_eq!(*received, packet(flow, number), "flow {flow}, number {number}");
    (flow, number)
}

const FLOWS: u16 = 5;

/// So many packets of each flow, as fast as they are taken.
async fn send_all(sender: &PacketSender, count: u32) {
    let mut waiting: VecDeque<_> = (0..count)
        .flat_map(|number| (0..FLOWS).map(move |flow| packet(flow, number)))
        .collect();
    while let Err(error) = sender.send_batch(&mut waiting) {
        assert_eq!(error, SendError::Busy);
        sender.ready().await;
    }
}

/// All of them, each flow in order.
async fn receive_all(receiver: &mut PacketReceiver, count: u32) {
    let (mut expected, mut batch) = (HashMap::<u16, u32>::new(), Vec::new());
    while expected.len() < FLOWS.into() || expected.values().any(|number| *number < count) {
        receiver.recv(&mut batch).await.unwrap();
        assert!((1..=128).contains(&batch.len()), "a batch of {}", batch.len());
        for received in batch.drain(..) {
            let (flow, number) = read(&received);
            let expected = expected.entry(flow).or_default();
            assert_eq!(number, *expected, "in flow {flow}");
            *expected += 1;
        }
    }
}

/// Both ways at once.
async fn everything_crosses(at_edge: &Session, at_hub: &Session, count: u32) {
    let (to_hub, mut from_hub) = at_edge.packets().unwrap();
    let (to_edge, mut from_edge) = at_hub.packets().unwrap();
    soon("all packets", async {
        tokio::join!(
            send_all(&to_hub, count),
            send_all(&to_edge, count),
            receive_all(&mut from_hub, count),
            receive_all(&mut from_edge, count),
        )
    })
    .await;
    for session in [at_edge, at_hub] {
        assert_eq!(session.stats().packets_dropped, 0);
    }
}

async fn until(what: &str, test: impl Fn() -> bool) {
    soon(what, async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A session whose two paths both know that they are fast. One whose handshake met a busy machine takes that for its round trip, and is
/// left alone while the other carries all.
async fn two_alike(edge: &Edge, hub: &Hub) -> (Session, Session) {
    for _ in 0..10 {
        let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
        let (at_edge, at_hub) = (at_edge.unwrap(), at_hub.unwrap());
        for session in [&at_edge, &at_hub] {
            until("two paths", || session.paths().len() == 2).await;
        }
        let paths = [at_edge.paths(), at_hub.paths()].concat();
        if paths.iter().all(|path| path.stats.rtt < Duration::from_millis(100)) {
            return (at_edge, at_hub);
        }
        at_edge.close(CloseReason::Local);
        soon("its end at the hub", at_hub.closed()).await;
    }
    panic!("ten handshakes in a row were slow");
}

#[tokio::test]
async fn each_flow_is_in_order_and_whole_over_two_lossy_uplinks() {
    let site = Site::new();
    let hub = site.hub();
    let links = [
        UdpRelay::start(hub.local_addr()).await,
        UdpRelay::start(hub.local_addr()).await,
    ];
    let uplinks = ["lte", "wifi"].iter().zip(&links).map(|(name, link)| Uplink {
        hubs: vec![link.address.to_string()],
        ..Uplink::new(name, None)
    });
    let mut config = site.edge_config("a", hub.local_addr());
    let uplinks = watch::Sender::new(uplinks.collect());
    config.uplinks = uplinks.subscribe();
    let edge = Edge::new(config).unwrap();
    let (at_edge, at_hub) = two_alike(&edge, &hub).await;
    for link in &links {
        link.lose(30);
    }
    everything_crosses(&at_edge, &at_hub, 1000).await;
    for session in [&at_edge, &at_hub] {
        assert!(session.stats().repaired > 0, "nothing was lost: {:?}", session.stats());
        for path in session.paths() {
            assert!(path.stats.sent_packets > 500, "{path:?}");
        }
    }
}

async fn pair(site: &Site) -> (Hub, Edge, Session, Session) {
    let hub = site.hub();
    let edge = site.edge("a", hub.local_addr());
    let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    (hub, edge, at_edge.unwrap(), at_hub.unwrap())
}

#[test]
fn packets_cross_a_path_over_tcp() {
    isolated(async || {
        block_udp();
        let site = Site::new();
        let hub = site.hub_over_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let mut config = site.edge_config("a", hub.local_addr());
        config.fallback = Fallback {
            ports: vec![hub.tcp_addrs()[0].port()],
            proxy: None,
        };
        let edge = Edge::new(config).unwrap();
        let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
        let (at_edge, at_hub) = (at_edge.unwrap(), at_hub.unwrap());
        everything_crosses(&at_edge, &at_hub, 1000).await;
        for session in [&at_edge, &at_hub] {
            let paths = session.paths();
            let live: Vec<_> = paths
                .iter()
                .filter(|path| path.stats.state == PathState::Live)
                .collect();
            assert!(live.iter().all(|path| path.transport == Transport::Tcp), "{live:?}");
        }
    });
}

#[tokio::test]
async fn packets_have_one_owner_at_a_time_and_what_comes_without_one_is_dropped() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site).await;
    let (sender, _unused) = at_edge.packets().unwrap();
    sender.send(packet(1, 1)).unwrap();
    until("it arrived", || at_hub.stats().packets_delivered == 1).await;
    let (back, mut receiver) = at_hub.packets().unwrap();
    assert!(at_hub.packets().is_none() && at_hub.clone().packets().is_none());
    sender.send(packet(1, 2)).unwrap();
    let mut got = Vec::new();
    soon("the second", receiver.recv(&mut got)).await.unwrap();
    assert_eq!(got, [packet(1, 2)]);
    drop(back);
    assert!(at_hub.packets().is_none(), "one half is somebody's");
    drop(receiver);
    let (_back, mut receiver) = at_hub.packets().unwrap();
    sender.send(packet(1, 3)).unwrap();
    soon("the third", receiver.recv(&mut got)).await.unwrap();
    assert_eq!(got, [packet(1, 2), packet(1, 3)]);
}

#[tokio::test]
async fn what_an_owner_does_not_take_is_dropped_and_counted() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site).await;
    let (sender, _unused) = at_edge.packets().unwrap();
    let (_back, mut receiver) = at_hub.packets().unwrap();
    soon("ten thousand", send_all(&sender, 2000)).await;
    until("they arrived", || at_hub.stats().packets_delivered == 10_000).await;
    let mut got = Vec::new();
    let dropped = at_hub.stats().packets_dropped;
    while got.len() as u64 + dropped < 10_000 {
        soon("the rest", receiver.recv(&mut got)).await.unwrap();
    }
    assert_eq!(got.len(), 2048);
}

#[tokio::test]
async fn what_is_no_packet_or_too_large_stays_at_the_front_and_the_end_is_told() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site).await;
    let (sender, _unused) = at_edge.packets().unwrap();
    let (back, mut receiver) = at_hub.packets().unwrap();
    let mut batch = VecDeque::from([packet(0, 0), Bytes::from_static(b"hello"), packet(0, 1)]);
    assert_eq!(sender.send_batch(&mut batch), Err(SendError::NotIp));
    assert_eq!(batch.len(), 2);
    assert_eq!(batch[0], "hello");
    let mut large = packet(0, 0).to_vec();
    large.resize(4000, 0);
    let error = sender.send(large.into()).unwrap_err();
    assert!(
        matches!(error, SendError::PacketTooLarge { size: 4000, limit } if limit >= 2 * 1100),
        "{error}"
    );
    soon("room", sender.ready()).await;
    let mut got = Vec::new();
    soon("a packet", receiver.recv(&mut got)).await.unwrap();
    let ended = async { receiver.recv(&mut got).await };
    let (ended, ()) = soon("the end", async {
        tokio::join!(ended, async { at_edge.close(CloseReason::Local) })
    })
    .await;
    assert!(matches!(ended.unwrap_err().reason, CloseReason::PeerGoodbye { .. }));
    assert!(matches!(back.send(packet(0, 9)), Err(SendError::Closed(_))));
    assert!(matches!(sender.send(packet(0, 9)), Err(SendError::Closed(_))));
    soon("nothing to wait for", back.ready()).await;
}
