//! Sessions over loopback: messages, streams, epochs, goodbyes.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use site::{Epochs, Site, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{CloseReason, ConnectError, Edge, MAX_MESSAGE, Priority, SendError, Session};

async fn pair(site: &Site, node: &str) -> (tunnel::Hub, Edge, Session, Session) {
    let hub = site.hub();
    let edge = site.edge(node, hub.local_addr());
    let (at_edge, at_hub) = meet(&hub, &edge).await;
    (hub, edge, at_edge, at_hub)
}

async fn meet(hub: &tunnel::Hub, edge: &Edge) -> (Session, Session) {
    let (at_edge, at_hub) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
    (at_edge.unwrap(), at_hub.unwrap())
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let site = Site::new();
    let (hub, _edge, at_edge, at_hub) = pair(&site, "robot-1").await;
    let peer = at_hub.peer();
    assert_eq!(peer.node, "robot-1");
    assert_eq!(peer.epoch, 1);
    assert_eq!(peer.incarnation, [1; 16]);
    assert_eq!(peer.boot_id, "boot-1");
    assert_eq!(peer.agent, "agent-1");
    assert_eq!(peer.uplink, "default");
    assert_eq!(peer.local_addr_of_peer.unwrap().ip().to_string(), "127.0.0.1");
    assert_eq!(at_edge.peer().remote, hub.local_addr());
    assert!(at_edge.welcome().addresses.is_empty());
    assert_eq!(at_edge.welcome().hub_instance, at_hub.welcome().hub_instance);
    let skew = site::wall_now().abs_diff(at_edge.welcome().wall_time);
    assert!(skew < Duration::from_secs(60));
    assert!(hub.session("robot-1").is_some());
}

#[tokio::test]
async fn messages_of_all_sizes_come_back() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site, "a").await;
    let echo = async {
        while let Ok(message) = at_hub.recv().await {
            at_hub.ready().await;
            at_hub.send(Priority::Normal, message).unwrap();
        }
    };
    let sizes = [0, 1, 1000, 1160, 1200, 1453, 9000, MAX_MESSAGE - 1, MAX_MESSAGE];
    let talk = async {
        for priority in Priority::ALL {
            for size in sizes {
                let message = Bytes::from(vec![priority.index() as u8; size]);
                at_edge.send(priority, message.clone()).unwrap();
                let back = soon("the echo", at_edge.recv()).await.unwrap();
                assert_eq!(back.len(), size);
                assert_eq!(back, message);
            }
        }
    };
    tokio::select! {
        () = echo => panic!("the hub's session ended"),
        () = talk => {}
    }
    let too_large = Bytes::from(vec![0; MAX_MESSAGE + 1]);
    assert!(matches!(
        at_edge.send(Priority::Bulk, too_large),
        Err(SendError::TooLarge { .. })
    ));
}

#[tokio::test]
async fn a_reader_that_falls_behind_makes_the_sender_busy_and_loses_nothing_on_lanes() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site, "a").await;
    let mut sent = 0_u32;
    let busy = Instant::now();
    loop {
        let mut message = vec![0; 32 * 1024];
        message[..4].copy_from_slice(&sent.to_be_bytes());
        match at_edge.send(Priority::Bulk, Bytes::from(message)) {
            Ok(()) => sent += 1,
            Err(SendError::Busy) => {
                // Full for good once the windows are full too.
                let room = tokio::time::timeout(Duration::from_millis(300), at_edge.ready()).await;
                if room.is_err() {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(busy.elapsed() < Duration::from_secs(10));
    }
    assert!((10..200).contains(&sent), "{sent} messages of 32 KiB are held");
    at_edge.send(Priority::Urgent, Bytes::from_static(b"now")).unwrap();
    let mut bulk = Vec::new();
    let mut urgent_after = None;
    while bulk.len() < sent as usize || urgent_after.is_none() {
        let message = soon("a message", at_hub.recv()).await.unwrap();
        if message == "now" {
            urgent_after = Some(bulk.len());
        } else {
            bulk.push(u32::from_be_bytes(message[..4].try_into().unwrap()));
        }
    }
    assert_eq!(bulk, (0..sent).collect::<Vec<_>>());
    assert!(urgent_after.unwrap() < 40, "urgent does not wait behind bulk");
}

#[tokio::test]
async fn streams_are_half_closed_on_both_sides() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site, "a").await;
    for (opener, accepter) in [(&at_edge, &at_hub), (&at_hub, &at_edge)] {
        let mut stream = opener.open_stream().await.unwrap();
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut other = soon("a stream", accepter.accept_stream()).await.unwrap();
        let mut question = Vec::new();
        soon("the question", other.read_to_end(&mut question)).await.unwrap();
        assert_eq!(question, b"question");
        let answer = vec![42; 1_000_000];
        let write = async {
            other.write_all(&answer).await.unwrap();
            other.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (_, result) = soon("the answer", async {
            tokio::join!(write, stream.read_to_end(&mut read))
        })
        .await;
        result.unwrap();
        assert_eq!(read, answer);
    }
}

#[tokio::test]
async fn forty_streams_from_the_hub_run_at_once_and_the_edge_is_held_to_its_limit() {
    let site = Site::new();
    let (_hub, _edge, at_edge, at_hub) = pair(&site, "a").await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = soon("a stream", at_hub.open_stream()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        streams.push(stream);
    }
    for _ in 0..40 {
        soon("a stream", at_edge.accept_stream()).await.unwrap();
    }
    let limit = at_edge.welcome().limits.max_streams as usize;
    let mut mine = Vec::new();
    for _ in 0..limit {
        mine.push(soon("a stream", at_edge.open_stream()).await.unwrap());
    }
    let more = tokio::time::timeout(Duration::from_millis(100), at_edge.open_stream()).await;
    assert!(more.is_err(), "the hub allows {limit} streams");
}

#[tokio::test]
async fn a_goodbye_carries_its_reason() {
    let site = Site::new();
    let (hub, edge, _at_edge, at_hub) = pair(&site, "a").await;
    edge.shutdown("edgecore stops").await;
    let closed = soon("the end", at_hub.closed()).await;
    assert_eq!(
        closed.reason,
        CloseReason::PeerGoodbye {
            text: "edgecore stops".to_owned()
        }
    );
    assert!(at_hub.recv().await.is_err());
    assert!(at_hub.accept_stream().await.is_err());
    assert!(at_hub.open_stream().await.is_err());
    assert!(matches!(
        at_hub.send(Priority::Urgent, Bytes::new()),
        Err(SendError::Closed(_))
    ));
    soon("its removal", async {
        while hub.session("a").is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_stops_says_goodbye() {
    let site = Site::new();
    let (hub, _edge, at_edge, at_hub) = pair(&site, "a").await;
    hub.shutdown("upgrade").await;
    let closed = soon("the end", at_edge.closed()).await;
    assert_eq!(
        closed.reason,
        CloseReason::PeerGoodbye {
            text: "upgrade".to_owned()
        }
    );
    assert_eq!(at_hub.closed().await.reason, CloseReason::Local);
}

#[tokio::test]
async fn a_higher_epoch_replaces_the_session() {
    let site = Site::new();
    let (hub, _edge, first_at_edge, first_at_hub) = pair(&site, "a").await;
    let mut config = site.edge_config("a", hub.local_addr());
    config.epochs = Arc::new(Epochs(AtomicU64::new(7)));
    let second = Edge::new(config).unwrap();
    let (_at_edge, at_hub) = meet(&hub, &second).await;
    assert_eq!(at_hub.peer().epoch, 8);
    let closed = soon("the end", first_at_edge.closed()).await;
    assert_eq!(closed.reason, CloseReason::Replaced);
    assert_eq!(first_at_hub.closed().await.reason, CloseReason::Replaced);
    // The first connection's clean-up names its own session.
    assert_eq!(hub.session("a").unwrap().peer().epoch, 8);
}

#[tokio::test]
async fn a_lower_epoch_is_refused_with_the_current_one_and_the_edge_takes_a_higher() {
    let site = Site::new();
    let hub = site.hub();
    let mut config = site.edge_config("a", hub.local_addr());
    config.epochs = Arc::new(Epochs(AtomicU64::new(41)));
    let ahead = Edge::new(config).unwrap();
    meet(&hub, &ahead).await;
    // The same store, restored from an older backup: it starts at 1.
    let behind = site.edge("a", hub.local_addr());
    let (at_edge, _at_hub) = meet(&hub, &behind).await;
    assert_eq!(at_edge.peer().epoch, 43);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn another_incarnation_takes_over_from_one_that_does_not_answer() {
    let site = Site::new();
    let hub = site.hub();
    {
        // Its process is gone without a word: runtime and socket die together.
        let config = site.edge_config("a", hub.local_addr());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let edge = Edge::new(config).unwrap();
                let session = soon("a session", edge.connect()).await.unwrap();
                std::mem::forget((edge, session));
            });
            std::mem::forget(runtime);
        })
        .join()
        .unwrap();
    }
    soon("the first session", hub.accept()).await.unwrap();
    let mut config = site.edge_config("a", hub.local_addr());
    config.incarnation = [2; 16];
    let edge = Edge::new(config).unwrap();
    let (_at_edge, at_hub) = meet(&hub, &edge).await;
    assert_eq!(at_hub.peer().incarnation, [2; 16]);
    assert!(site.gate.quarantined.lock().unwrap().is_empty());
}

#[tokio::test]
async fn two_machines_with_one_identity_are_both_quarantined() {
    let site = Site::new();
    let (hub, first, first_at_edge, _at_hub) = pair(&site, "a").await;
    let mut config = site.edge_config("a", hub.local_addr());
    config.incarnation = [2; 16];
    let clone = Edge::new(config).unwrap();
    let refused = soon("a refusal", clone.connect()).await.unwrap_err();
    assert!(
        matches!(&refused, ConnectError::Refused { reason } if reason.contains("two machines")),
        "{refused}"
    );
    let closed = soon("the end", first_at_edge.closed()).await;
    assert!(matches!(closed.reason, CloseReason::Refused { .. }));
    let again = soon("a refusal", first.connect()).await.unwrap_err();
    assert!(matches!(again, ConnectError::Refused { .. }));
    assert_eq!(*site.gate.quarantined.lock().unwrap(), ["a"]);
    assert!(hub.session("a").is_none());
}
