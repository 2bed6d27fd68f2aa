//! Sessions over several uplinks: paths join and leave, and what one loses goes over another.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::time::{Duration, Instant};

use bytes::Bytes;
use site::relay::UdpRelay;
use site::{Site, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tunnel::bond::{Carries, PathState, Policy};
use tunnel::{CloseReason, Edge, Hub, Meter, Priority, SendError, Session, Uplink};

/// A robot with three links to one hub.
struct Robot {
    hub: Hub,
    links: Vec<UdpRelay>,
    uplinks: watch::Sender<Vec<Uplink>>,
    meter: Meter,
    edge: Edge,
}

const NAMES: [&str; 3] = ["g5", "lte", "wifi"];

fn over(name: &str, relay: &UdpRelay) -> Uplink {
    Uplink {
        hubs: vec![relay.address.to_string()],
        ..Uplink::new(name, None)
    }
}

impl Robot {
    async fn new(site: &Site) -> Self {
        let hub = site.hub();
        let mut links = Vec::new();
        for _ in NAMES {
            links.push(UdpRelay::start(hub.local_addr()).await);
        }
        let all = NAMES.iter().zip(&links).map(|(name, link)| over(name, link)).collect();
        let uplinks = watch::Sender::new(all);
        let mut config = site.edge_config("a", hub.local_addr());
        config.uplinks = uplinks.subscribe();
        let meter = config.meter.clone();
        let edge = Edge::new(config).unwrap();
        Self {
            hub,
            links,
            uplinks,
            meter,
            edge,
        }
    }

    async fn meet(&self) -> (Session, Session) {
        let (at_edge, at_hub) = soon("a session", async {
            tokio::join!(self.edge.connect(), self.hub.accept())
        })
        .await;
        (at_edge.unwrap(), at_hub.unwrap())
    }
}

fn names(session: &Session) -> Vec<String> {
    let mut names: Vec<_> = session.paths().into_iter().map(|path| path.uplink).collect();
    names.sort();
    names
}

async fn until(what: &str, test: impl Fn() -> bool) {
    soon(what, async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn have(sessions: [&Session; 2], wanted: &[&str]) {
    for session in sessions {
        until(&format!("paths over {wanted:?}"), || names(session) == wanted).await;
    }
}

#[tokio::test]
async fn all_uplinks_carry_one_session() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = robot.meet().await;
    have([&at_edge, &at_hub], &NAMES).await;
    let before: Vec<_> = robot.links.iter().map(UdpRelay::bytes).collect();
    let sent = vec![42_u8; 8_000_000];
    let mut stream = at_hub.open_stream().await.unwrap();
    let write = async {
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let read = async {
        let mut stream = at_edge.accept_stream().await.unwrap();
        stream.read_to_end(&mut got).await.unwrap();
    };
    soon("eight megabytes", async { tokio::join!(write, read) }).await;
    assert_eq!(got, sent);
    for (name, (link, before)) in NAMES.iter().zip(robot.links.iter().zip(before)) {
        let carried = link.bytes() - before;
        assert!(carried > 400_000, "{name} carried {carried} bytes");
    }
}

#[tokio::test]
async fn a_stream_outlives_each_of_its_uplinks_in_turn() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = robot.meet().await;
    have([&at_edge, &at_hub], &NAMES).await;
    let mut stream = at_edge.open_stream().await.unwrap();
    stream.write_all(b"?").await.unwrap();
    let mut other = soon("a stream", at_hub.accept_stream()).await.unwrap();
    let mut byte = [0];
    soon("a byte", other.read_exact(&mut byte)).await.unwrap();
    let mut worst = Duration::ZERO;
    for link in &robot.links {
        for turn in 0..40_u8 {
            if turn == 10 {
                link.cut();
            } else if turn == 30 {
                link.mend();
            }
            let since = Instant::now();
            other.write_all(&[turn]).await.unwrap();
            soon("the byte", stream.read_exact(&mut byte)).await.unwrap();
            assert_eq!(byte, [turn]);
            worst = worst.max(since.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let all_live = || {
            let paths = at_edge.paths();
            paths.len() == 3 && paths.iter().all(|path| path.stats.state == PathState::Live)
        };
        until("the path is back", all_live).await;
    }
    assert!(worst < Duration::from_secs(1), "{worst:?} for a byte");
    let suspicions: u64 = at_hub.paths().iter().map(|path| path.stats.suspicions).sum();
    assert!(suspicions > 0, "no cut was noticed");
}

#[tokio::test]
async fn urgent_messages_go_over_all_and_arrive_once() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = robot.meet().await;
    have([&at_edge, &at_hub], &NAMES).await;
    robot.links[0].cut();
    for number in 0..50_u32 {
        let since = Instant::now();
        at_hub
            .send(Priority::Urgent, Bytes::copy_from_slice(&number.to_be_bytes()))
            .unwrap();
        let message = soon("a message", at_edge.recv()).await.unwrap();
        assert_eq!(message, number.to_be_bytes().as_slice());
        assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    }
    let more = tokio::time::timeout(Duration::from_millis(300), at_edge.recv()).await;
    assert!(more.is_err(), "a copy was delivered too: {more:?}");
    assert!(at_hub.stats().message_copies >= 100, "{:?}", at_hub.stats());
}

#[tokio::test]
async fn uplinks_come_and_go_while_the_session_lives() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = robot.meet().await;
    have([&at_edge, &at_hub], &NAMES).await;
    // The first one, over which it began, too.
    robot
        .uplinks
        .send_modify(|uplinks| uplinks.retain(|uplink| uplink.name == "lte"));
    have([&at_edge, &at_hub], &["lte"]).await;
    let wifi = over("wifi", &robot.links[2]);
    robot.uplinks.send_modify(|uplinks| uplinks.push(wifi));
    have([&at_edge, &at_hub], &["lte", "wifi"]).await;
    at_edge.send(Priority::Bulk, Bytes::from_static(b"still here")).unwrap();
    assert_eq!(soon("a message", at_hub.recv()).await.unwrap(), "still here");
    assert_eq!(at_edge.peer().epoch, 1);
    // All at once too: the session waits for the one that is there then.
    robot.uplinks.send_replace(vec![over("g5", &robot.links[0])]);
    have([&at_edge, &at_hub], &["g5"]).await;
    at_hub.ready().await;
    at_hub.send(Priority::Bulk, Bytes::from_static(b"and here")).unwrap();
    assert_eq!(soon("a message", at_edge.recv()).await.unwrap(), "and here");
    assert_eq!(at_edge.peer().epoch, 1);
}

#[tokio::test]
async fn a_session_starts_over_whichever_uplink_works() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    robot.links[0].cut();
    robot.links[2].cut();
    let since = Instant::now();
    let (at_edge, at_hub) = robot.meet().await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(names(&at_hub), ["lte"]);
    robot.links[0].mend();
    robot.links[2].mend();
    have([&at_edge, &at_hub], &NAMES).await;
}

#[tokio::test]
async fn a_hub_that_is_back_without_the_session_is_not_joined() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = robot.meet().await;
    have([&at_edge, &at_hub], &NAMES).await;
    // The hub gives it up while one path of the edge is just being dialled again.
    robot.uplinks.send_modify(|uplinks| uplinks.truncate(2));
    have([&at_edge, &at_hub], &NAMES[..2]).await;
    at_hub.close(CloseReason::Local);
    let wifi = over("wifi", &robot.links[2]);
    robot.uplinks.send_modify(|uplinks| uplinks.push(wifi));
    soon("the end", at_edge.closed()).await;
    let (again, at_hub) = robot.meet().await;
    assert_eq!(again.peer().epoch, 2);
    have([&again, &at_hub], &NAMES).await;
}

/// wifi, and lte with a policy; g5 is away.
async fn wifi_and_lte(robot: &Robot, lte: Policy) -> (Session, Session) {
    robot.uplinks.send_modify(|uplinks| {
        uplinks.retain(|uplink| uplink.name != "g5");
        set(uplinks, lte);
    });
    let (at_edge, at_hub) = robot.meet().await;
    have([&at_edge, &at_hub], &["lte", "wifi"]).await;
    (at_edge, at_hub)
}

fn set(uplinks: &mut [Uplink], lte: Policy) {
    for uplink in uplinks.iter_mut().filter(|uplink| uplink.name == "lte") {
        uplink.policy = lte;
    }
}

const LTE: usize = 1;
const WIFI: usize = 2;

/// So many bulk messages of 60 KB from one end, and their arrival at the other.
async fn bulk(from: &Session, to: &Session, count: usize) {
    let send = async {
        for _ in 0..count {
            while let Err(error) = from.send(Priority::Bulk, Bytes::from(vec![3; 60_000])) {
                assert_eq!(error, SendError::Busy);
                from.ready().await;
            }
        }
    };
    let receive = async {
        for _ in 0..count {
            assert_eq!(to.recv().await.unwrap().len(), 60_000);
        }
    };
    soon("bulk", async { tokio::join!(send, receive) }).await;
}

#[tokio::test]
async fn a_metered_uplink_carries_control_and_bulk_waits_for_another() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = wifi_and_lte(&robot, Policy::metered()).await;
    let ends = [(&at_edge, &at_hub), (&at_hub, &at_edge)];
    let before = robot.links[LTE].bytes();
    for (from, to) in ends {
        bulk(from, to, 50).await;
    }
    let carried = robot.links[LTE].bytes() - before;
    assert!(carried < 100_000, "lte carried {carried} of 6 MB");

    robot.links[WIFI].cut();
    let suspected = |session: &Session| {
        let paths = session.paths();
        paths
            .iter()
            .any(|path| path.uplink == "wifi" && path.stats.state == PathState::Suspect)
    };
    // What is on its way over wifi counts as lost then; something must be.
    for (from, to) in ends {
        from.send(Priority::Urgent, Bytes::from_static(b"?")).unwrap();
        assert_eq!(soon("control", to.recv()).await.unwrap(), "?");
        until("wifi is suspect", || suspected(from)).await;
    }
    let before = robot.links[LTE].bytes();
    let mut waiting = [0, 0];
    for ((from, _), waiting) in ends.into_iter().zip(&mut waiting) {
        // Bounded: the sender is told.
        let mut busy = false;
        while !busy {
            match from.send(Priority::Bulk, Bytes::from(vec![4; 60_000])) {
                Ok(()) => *waiting += 1,
                Err(error) => {
                    assert_eq!(error, SendError::Busy);
                    busy = tokio::time::timeout(Duration::from_millis(100), from.ready())
                        .await
                        .is_err();
                }
            }
        }
        assert!((5..100).contains(waiting), "{waiting} wait");
    }
    for (from, to) in ends {
        for _ in 0..10 {
            from.send(Priority::Urgent, Bytes::from_static(b"control")).unwrap();
            assert_eq!(soon("control", to.recv()).await.unwrap(), "control");
        }
    }
    let carried = robot.links[LTE].bytes() - before;
    assert!(carried < 100_000, "lte carried {carried}");
    robot.links[WIFI].mend();
    for ((_, to), waiting) in ends.into_iter().zip(waiting) {
        for _ in 0..waiting {
            assert_eq!(soon("bulk that waited", to.recv()).await.unwrap().len(), 60_000);
        }
    }
}

#[tokio::test]
async fn the_hub_obeys_a_new_policy_of_a_path_that_lives() {
    let site = Site::new();
    let robot = Robot::new(&site).await;
    let (at_edge, at_hub) = wifi_and_lte(&robot, Policy::metered()).await;
    let known = |session: &Session| {
        let paths = session.paths();
        let lte = paths.iter().find(|path| path.uplink == "lte");
        lte.map(|lte| (lte.stats.id, lte.stats.policy))
    };
    let (id, policy) = known(&at_hub).unwrap();
    assert_eq!(policy, Policy::metered());
    robot.links[WIFI].cut();
    let generous = Policy {
        when_alone: Carries::ALL,
        ..Policy::metered()
    };
    robot.uplinks.send_modify(|uplinks| set(uplinks, generous));
    for session in [&at_edge, &at_hub] {
        until("both know", || known(session) == Some((id, generous))).await;
    }
    bulk(&at_hub, &at_edge, 10).await;
    bulk(&at_edge, &at_hub, 10).await;
    // A relay sees no headers of IP and UDP, and the meter looks twice a second.
    until("the meter has it all", || {
        let metered = robot.meter.read()["lte"].total();
        let seen = robot.links[LTE].bytes();
        metered >= seen && metered < seen + seen / 10
    })
    .await;
}
