//! Sites that block UDP: sessions over TCP, through a proxy, and back to QUIC. Each test has a network namespace of its own, in which nft
//! drops what the site does not let through.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use site::namespace::{Squid, block_udp, isolated, slow_down, unblock_udp};
use site::{Site, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tunnel::bond::PathState;
use tunnel::{ByteStream, Edge, Fallback, Hub, Priority, Proxy, Session, Transport};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A robot and its hub, which listens on TCP too.
struct Robot {
    hub: Hub,
    edge: Edge,
}

impl Robot {
    fn new(proxy: Option<Proxy>) -> Self {
        let site = Site::new();
        let hub = site.hub_over_tcp(ANY);
        let port = hub.tcp_addrs()[0].port();
        Self {
            edge: robot(&site, &hub, port, proxy),
            hub,
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

fn robot(site: &Site, hub: &Hub, port: u16, proxy: Option<Proxy>) -> Edge {
    let mut config = site.edge_config("a", hub.local_addr());
    config.fallback = Fallback {
        ports: vec![port],
        proxy,
    };
    Edge::new(config).unwrap()
}

/// What carries a session, live paths only.
fn carried(session: &Session) -> Vec<Transport> {
    let paths = session.paths().into_iter();
    let live = paths.filter(|path| path.stats.state == PathState::Live);
    live.map(|path| path.transport).collect()
}

async fn until(what: &str, test: impl Fn() -> bool) {
    soon(what, async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Some bytes in which nothing repeats.
fn some(size: u32) -> Vec<u8> {
    (0..size / 4)
        .flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_be_bytes())
        .collect()
}

/// Each way: a message of each priority, and a stream.
async fn everything_crosses(at_edge: &Session, at_hub: &Session) {
    for (from, to) in [(at_edge, at_hub), (at_hub, at_edge)] {
        for priority in Priority::ALL {
            for size in [1, 1000, tunnel::MAX_MESSAGE as u32] {
                let message = Bytes::from(some(size.next_multiple_of(4)));
                from.ready().await;
                from.send(priority, message.clone()).unwrap();
                let got = soon(&format!("{priority:?} message of {size} bytes"), to.recv()).await;
                assert!(got.unwrap() == message, "{priority:?} message of {size} bytes");
            }
        }
        let sent = some(4_000_000);
        let write = async {
            let mut stream = from.open_stream().await.unwrap();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            // It lives until the peer has all of it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let mut got = Vec::new();
        let read = async {
            let mut stream = to.accept_stream().await.unwrap();
            stream.read_to_end(&mut got).await.unwrap();
        };
        soon("four megabytes", async { tokio::join!(write, read) }).await;
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }
}

#[test]
fn where_udp_is_blocked_a_session_is_up_within_five_seconds_and_carries_everything() {
    isolated(async || {
        block_udp();
        let robot = Robot::new(None);
        let since = Instant::now();
        let (at_edge, at_hub) = robot.meet().await;
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        for session in [&at_edge, &at_hub] {
            assert_eq!(carried(session), [Transport::Tcp]);
        }
        everything_crosses(&at_edge, &at_hub).await;
        assert_eq!(carried(&at_edge), [Transport::Tcp]);
        // And the goodbye.
        robot.hub.shutdown("maintenance").await;
        let reason = soon("the end", at_edge.closed()).await.reason;
        assert_eq!(reason.to_string(), "peer said goodbye: maintenance");
    });
}

/// Bytes there and back over two ends of a stream.
struct Echo {
    ours: ByteStream,
    theirs: ByteStream,
    turn: u8,
}

impl Echo {
    async fn new(at_edge: &Session, at_hub: &Session) -> Self {
        let mut ours = at_edge.open_stream().await.unwrap();
        ours.write_all(&[0]).await.unwrap();
        let mut theirs = soon("a stream", at_hub.accept_stream()).await.unwrap();
        soon("its first byte", theirs.read_u8()).await.unwrap();
        Self { ours, theirs, turn: 0 }
    }

    /// Until `test`, one byte after another; the longest time for one.
    async fn until(&mut self, what: &str, test: impl Fn() -> bool) -> Duration {
        let mut worst = Duration::ZERO;
        soon(what, async {
            while !test() {
                let since = Instant::now();
                self.turn = self.turn.wrapping_add(1);
                self.ours.write_all(&[self.turn]).await.unwrap();
                assert_eq!(self.theirs.read_u8().await.unwrap(), self.turn);
                self.theirs.write_all(&[self.turn]).await.unwrap();
                assert_eq!(self.ours.read_u8().await.unwrap(), self.turn);
                worst = worst.max(since.elapsed());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        worst
    }
}

#[test]
fn a_session_goes_on_over_tcp_when_udp_is_dropped_and_over_quic_when_it_is_not() {
    isolated(async || {
        let robot = Robot::new(None);
        let (at_edge, at_hub) = robot.meet().await;
        assert_eq!(carried(&at_edge), [Transport::Quic]);
        let mut echo = Echo::new(&at_edge, &at_hub).await;
        block_udp();
        let over_tcp = || carried(&at_edge) == [Transport::Tcp] && carried(&at_hub) == [Transport::Tcp];
        let stall = echo.until("over TCP", over_tcp).await;
        assert!(stall < Duration::from_secs(5), "{stall:?} for a byte");
        unblock_udp();
        let over_quic = |session: &Session| {
            let paths = session.paths();
            paths.len() == 1 && paths[0].transport == Transport::Quic
        };
        let back = || over_quic(&at_edge) && over_quic(&at_hub);
        let stall = echo.until("over QUIC, and TCP closed", back).await;
        assert!(stall < Duration::from_secs(1), "{stall:?} for a byte");
        everything_crosses(&at_edge, &at_hub).await;
        assert_eq!(at_edge.peer().epoch, 1);
    });
}

#[test]
fn a_session_that_began_over_tcp_goes_on_over_quic_when_udp_passes() {
    isolated(async || {
        block_udp();
        let robot = Robot::new(None);
        let (at_edge, at_hub) = robot.meet().await;
        let mut echo = Echo::new(&at_edge, &at_hub).await;
        unblock_udp();
        let back = || at_edge.paths().len() == 1 && carried(&at_edge) == [Transport::Quic];
        let stall = echo.until("over QUIC, and TCP closed", back).await;
        assert!(stall < Duration::from_secs(1), "{stall:?} for a byte");
        assert_eq!(at_edge.peer().epoch, 1);
    });
}

#[test]
fn while_udp_passes_nobody_dials_over_tcp() {
    isolated(async || {
        let site = Site::new();
        let hub = site.hub();
        let listener = TcpListener::bind(ANY).await.unwrap();
        let edge = robot(&site, &hub, listener.local_addr().unwrap().port(), None);
        let (at_edge, at_hub) = tokio::join!(edge.connect(), hub.accept());
        let (at_edge, at_hub) = (at_edge.unwrap(), at_hub.unwrap());
        let dialled = tokio::time::timeout(Duration::from_secs(4), listener.accept()).await;
        assert!(dialled.is_err(), "{dialled:?}");
        assert_eq!(carried(&at_edge), [Transport::Quic]);
        at_edge
            .send(Priority::Urgent, Bytes::from_static(b"idle, not gone"))
            .unwrap();
        assert_eq!(soon("a message", at_hub.recv()).await.unwrap(), "idle, not gone");
    });
}

#[test]
fn urgent_messages_do_not_wait_behind_bulk_on_a_slow_link() {
    isolated(async || {
        block_udp();
        slow_down();
        let robot = Robot::new(None);
        let (at_edge, at_hub) = robot.meet().await;
        let bulk = async {
            let mut stream = at_hub.open_stream().await.unwrap();
            while stream.write_all(&[7; 65_536]).await.is_ok() {}
        };
        let sink = async {
            let mut stream = at_edge.accept_stream().await.unwrap();
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        let urgent = async {
            let mut took = Vec::new();
            for number in 0..40_u32 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let since = Instant::now();
                let message = Bytes::copy_from_slice(&number.to_be_bytes());
                at_hub.send(Priority::Urgent, message.clone()).unwrap();
                assert_eq!(soon("an urgent message", at_edge.recv()).await.unwrap(), message);
                took.push(since.elapsed());
            }
            took.sort();
            // The kernel alone would have taken seconds of bulk before it.
            assert!(took[took.len() / 2] < Duration::from_millis(250), "{took:?}");
            println!(
                "urgent beside bulk at 10 Mbit/s: median {:?}, worst {:?}",
                took[20], took[39]
            );
        };
        tokio::select! {
            () = urgent => {}
            () = bulk => panic!("the stream ended"),
            sunk = sink => panic!("{sunk:?}"),
        }
        let carried = at_edge.stats();
        assert!(at_edge.paths()[0].stats.received_bytes > 1_000_000, "{carried:?}");
    });
}

/// Until its port is free.
async fn gone(hub: Hub) {
    let address = hub.tcp_addrs()[0];
    drop(hub);
    soon("a free port", async {
        while std::net::TcpListener::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[test]
fn a_hub_that_is_on_none_of_the_ports_is_found_when_it_is() {
    isolated(async || {
        block_udp();
        let site = Site::new();
        let hub = site.hub_over_tcp(ANY);
        let address = hub.tcp_addrs()[0];
        let edge = robot(&site, &hub, address.port(), None);
        // Nobody is there, and then somebody else: a web server with a certificate of its own.
        gone(hub).await;
        let stranger = Site::new().hub_over_tcp(address);
        let early = tokio::time::timeout(Duration::from_secs(3), edge.connect()).await;
        assert!(early.is_err(), "{early:?}");
        gone(stranger).await;
        let hub = site.hub_over_tcp(address);
        let (at_edge, _) = soon("a session", async { tokio::join!(edge.connect(), hub.accept()) }).await;
        assert_eq!(carried(&at_edge.unwrap()), [Transport::Tcp]);
    });
}

#[test]
fn a_robot_reaches_its_hub_through_a_proxy() {
    isolated(async || {
        block_udp();
        let squid = Squid::start("http_access allow all").await;
        let robot = Robot::new(Some(squid.proxy()));
        let since = Instant::now();
        let (at_edge, at_hub) = robot.meet().await;
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        let via = Transport::TcpVia(squid.proxy().authority().to_owned());
        assert_eq!(via.to_string(), "tcp via 127.0.0.1:3128");
        assert_eq!(carried(&at_edge), [via]);
        everything_crosses(&at_edge, &at_hub).await;
        at_edge.close(tunnel::CloseReason::Local);
        let asked = format!("CONNECT {}", robot.hub.tcp_addrs()[0]);
        until("squid's word for it", || squid.log().contains(&asked)).await;
    });
}

#[test]
fn a_proxy_gets_the_password_that_the_file_says_now() {
    isolated(async || {
        block_udp();
        let dir = tempfile::tempdir().unwrap();
        let squid = Squid::start(&Squid::password(dir.path(), "open sesame")).await;
        let file = dir.path().join("proxy");
        std::fs::write(&file, "robot:wrong\n").unwrap();
        let robot = Robot::new(Some(squid.proxy().with_credentials(&file)));
        let refused = "through the proxy http://127.0.0.1:3128: it refuses: HTTP/1.1 407 Proxy Authentication Required";
        let meeting = robot.meet();
        tokio::pin!(meeting);
        tokio::select! {
            session = &mut meeting => panic!("{session:?}"),
            () = until("the proxy's refusal", || site::namespace::logged().contains(refused)) => {}
        }
        std::fs::write(&file, "robot:open sesame\n").unwrap();
        let (at_edge, at_hub) = meeting.await;
        everything_crosses(&at_edge, &at_hub).await;
    });
}

#[test]
fn a_proxy_that_refuses_is_named_with_its_words() {
    isolated(async || {
        block_udp();
        let squid = Squid::start("http_access deny all").await;
        let robot = Robot::new(Some(squid.proxy()));
        let connecting = robot.edge.connect();
        tokio::pin!(connecting);
        let refused = format!(
            "over TCP: {} through the proxy http://127.0.0.1:3128: it refuses: HTTP/1.1 403 Forbidden",
            robot.hub.tcp_addrs()[0]
        );
        tokio::select! {
            session = &mut connecting => panic!("{session:?}"),
            () = until("the proxy's refusal", || site::namespace::logged().contains(&refused)) => {}
        }
    });
}
