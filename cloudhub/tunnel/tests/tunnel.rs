//! The IP tunnel between two machines, with the kernel's own TCP, UDP and ICMP on both: whatever is sent crosses, in order, whatever happens
//! to the links below. Each test has namespaces of its own.

#![allow(clippy::unwrap_used, reason = "tests")]

mod site;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use site::hosts::{EDGE, HUB, Machines, Tunnel};
use site::namespace::{block_udp, isolated};
use site::soon;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tunnel::bond::PathState;
use tunnel::{CloseReason, Transport};

/// Some bytes in which nothing repeats.
fn some(size: u32) -> Vec<u8> {
    let number = |at: u32| at.wrapping_mul(0x9e37_79b9).to_be_bytes();
    (0..size / 4).flat_map(number).collect()
}

/// A connection of the edge's machine to the hub's.
async fn connect(tunnel: &Tunnel, family: usize) -> (TcpStream, TcpStream) {
    let address = SocketAddr::new(HUB[family].parse().unwrap(), 0);
    let listener = tunnel.machines.at_hub(|| std::net::TcpListener::bind(address).unwrap());
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let both = async { tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept()) };
    let (ours, theirs) = soon("a connection", both).await;
    (ours.unwrap(), theirs.unwrap().0)
}

/// So many bytes from one end to the other.
async fn transfer(from: &mut TcpStream, to: &mut TcpStream, sent: &[u8]) {
    let mut got = vec![0; sent.len()];
    let (written, read) = tokio::join!(from.write_all(sent), to.read_exact(&mut got));
    written.unwrap();
    read.unwrap();
    assert!(got == sent, "{} bytes were changed on their way", sent.len());
}

async fn transfer_both_ways(ours: &mut TcpStream, theirs: &mut TcpStream, sent: &[u8]) {
    let (mut our_reader, mut our_writer) = ours.split();
    let (mut their_reader, mut their_writer) = theirs.split();
    let (mut here, mut there) = (vec![0; sent.len()], vec![0; sent.len()]);
    let all = async {
        tokio::try_join!(
            our_writer.write_all(sent),
            their_writer.write_all(sent),
            our_reader.read_exact(&mut here),
            their_reader.read_exact(&mut there)
        )
    };
    soon("all bytes", all).await.unwrap();
    assert!(here == sent && there == sent, "bytes were changed on their way");
}

/// UDP sockets of both machines, connected with each other.
async fn datagrams(tunnel: &Tunnel, family: usize, tos: u32) -> (UdpSocket, UdpSocket) {
    let bind = |address: &str| {
        let address = SocketAddr::new(address.parse().unwrap(), 0);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
        if address.is_ipv4() {
            socket.set_tos_v4(tos).unwrap();
        }
        let _ = socket.set_recv_buffer_size(4 << 20);
        socket.bind(&address.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket.into()).unwrap()
    };
    let ours = bind(EDGE[family]);
    let theirs = tunnel.machines.at_hub(|| bind(HUB[family]));
    ours.connect(theirs.local_addr().unwrap()).await.unwrap();
    theirs.connect(ours.local_addr().unwrap()).await.unwrap();
    (ours, theirs)
}

/// Sends an echo request of so many bytes, IP header included, from the edge's machine, and waits for the answer.
async fn ping(family: usize, size: usize) {
    let address: IpAddr = HUB[family].parse().unwrap();
    let (domain, protocol, header, kinds) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 20, [8, 0]),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 40, [128, 129]),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket.connect(&SocketAddr::new(address, 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    // It reads and writes as a UDP socket does.
    let socket = UdpSocket::from_std(socket.into()).unwrap();
    let mut request = vec![7; size - header];
    request[..8].copy_from_slice(&[kinds[0], 0, 0, 0, 0x12, 0x34, 0, 1]);
    if address.is_ipv4() {
        let sum: u32 = request
            .chunks(2)
            .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        request[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
    socket.send(&request).await.unwrap();
    let mut answer = vec![0; 2000];
    let length = soon("an answer", async {
        loop {
            let length = socket.recv(&mut answer).await.unwrap();
            // IPv4's raw sockets bring its header too, and all sockets all that comes.
            let from = if address.is_ipv4() { header } else { 0 };
            if length > from + 8 && answer[from] == kinds[1] && answer[from + 4..from + 8] == request[4..8] {
                return length - from;
            }
        }
    })
    .await;
    assert_eq!(length, request.len());
}

#[test]
fn tcp_and_ping_cross_by_ipv4_and_ipv6_whole() {
    isolated(async || {
        let tunnel = Tunnel::new(Machines::new(1, 1500), 1).await;
        let sent = some(8_000_000);
        for family in [0, 1] {
            ping(family, 84).await;
            ping(family, 1280).await;
            let (mut ours, mut theirs) = connect(&tunnel, family).await;
            transfer_both_ways(&mut ours, &mut theirs, &sent).await;
        }
        let [edge, hub] = tunnel.stats();
        for stats in [edge, hub] {
            assert_eq!((stats.malformed, stats.refused), (0, 0), "{stats:?}");
            assert!(
                stats.reads * 3 < stats.read_packets,
                "no super-packets are read: {stats:?}"
            );
            assert!(
                stats.writes * 2 < stats.written_packets,
                "no super-packets are written: {stats:?}"
            );
        }
    });
}

#[test]
fn a_packet_of_1280_bytes_crosses_an_uplink_whose_datagrams_have_1200() {
    isolated(async || {
        // 1200 bytes of UDP, which is all that QUIC may count on.
        let mut tunnel = Tunnel::new(Machines::new(1, 1228), 1).await;
        for family in [0, 1] {
            ping(family, 1280).await;
            let (mut ours, mut theirs) = connect(&tunnel, family).await;
            transfer_both_ways(&mut ours, &mut theirs, &some(1_000_000)).await;
            let (ours, theirs) = datagrams(&tunnel, family, 0).await;
            let payload = some(1232);
            soon("a datagram", ours.send(&payload)).await.unwrap();
            let mut got = vec![0; 2000];
            let length = soon("a datagram", theirs.recv(&mut got)).await.unwrap();
            assert!(got[..length] == payload);
        }
        assert_eq!(tunnel.session().await.stats().packets_overflowed, 0);
    });
}

#[test]
fn datagrams_of_a_flow_arrive_in_order_over_two_uplinks() {
    isolated(async || {
        let tunnel = Tunnel::new(Machines::new(2, 1500), 2).await;
        let (ours, theirs) = datagrams(&tunnel, 0, 0).await;
        let (ours6, theirs6) = datagrams(&tunnel, 1, 0).await;
        const COUNT: u32 = 4000;
        let send = async |socket: &UdpSocket| {
            for number in 0..COUNT {
                let mut datagram = number.to_be_bytes().to_vec();
                datagram.resize(4 + (number as usize * 7) % 1200, number as u8);
                socket.send(&datagram).await.unwrap();
                if number % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let receive = async |socket: &UdpSocket| {
            let mut datagram = vec![0; 2000];
            for number in 0..COUNT {
                let length = socket.recv(&mut datagram).await.unwrap();
                assert_eq!(datagram[..4], number.to_be_bytes());
                assert_eq!(length, 4 + (number as usize * 7) % 1200);
            }
        };
        soon("all datagrams", async {
            tokio::join!(send(&ours), receive(&theirs), send(&theirs6), receive(&ours6))
        })
        .await;
    });
}

#[test]
fn what_is_expedited_passes_bulk() {
    isolated(async || {
        let machines = Machines::new(1, 1500);
        machines.slow_down(0, "10mbit");
        let mut tunnel = Tunnel::new(machines, 1).await;
        let session = tunnel.session().await;
        let (ours, _theirs) = datagrams(&tunnel, 0, 0).await;
        let (ef, echo) = datagrams(&tunnel, 0, 46 << 2).await;
        // Three times what the link carries, from somebody who does not care.
        let bulk = async {
            loop {
                for _ in 0..6 {
                    let _ = ours.send(&[3; 1200]).await;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let answer = async {
            let mut datagram = [0; 160];
            while let Ok(length) = echo.recv(&mut datagram).await {
                echo.send(&datagram[..length]).await.unwrap();
            }
        };
        let ask = async {
            // Until bulk fills the queues.
            tokio::time::sleep(Duration::from_millis(1000)).await;
            let (mut took, mut waiting) = (Vec::new(), 0);
            for number in 0..60_u8 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let since = Instant::now();
                ef.send(&[number; 160]).await.unwrap();
                let mut datagram = [0; 160];
                soon("the echo", ef.recv(&mut datagram)).await.unwrap();
                assert_eq!(datagram, [number; 160]);
                took.push(since.elapsed());
                waiting = waiting.max(session.stats().queued_bytes);
            }
            took.sort();
            (took, waiting)
        };
        let (took, waiting) = tokio::select! {
            asked = ask => asked,
            () = bulk => panic!("bulk ended"),
            () = answer => panic!("the echo ended"),
        };
        println!(
            "EF beside bulk at 10 Mbit/s: median {:?}, worst {:?}; {waiting} bytes of bulk wait",
            took[30], took[59]
        );
        // What waits takes 150 ms and more.
        assert!(took[30] < Duration::from_millis(100), "{took:?}");
        assert!(waiting > 200_000, "{waiting} bytes of bulk wait");
    });
}

#[test]
fn a_connection_that_fills_the_queue_is_marked_where_it_understands_that_and_else_loses_a_packet() {
    for ecn in ["1", "0"] {
        isolated(async || {
            let machines = Machines::new(1, 1500);
            machines.slow_down(0, "5mbit");
            let set = || std::fs::write("/proc/sys/net/ipv4/tcp_ecn", ecn).unwrap();
            set();
            machines.at_hub(set);
            let mut tunnel = Tunnel::new(machines, 1).await;
            let session = tunnel.session().await;
            let (mut ours, mut theirs) = connect(&tunnel, 0).await;
            let since = Instant::now();
            soon("all bytes", transfer(&mut ours, &mut theirs, &some(5_000_000))).await;
            let stats = session.stats();
            println!(
                "tcp_ecn {ecn}: 5 MB at 5 Mbit/s took {:?}; {} marked, {} dropped early, {} at the queue's end",
                since.elapsed(),
                stats.packets_marked,
                stats.packets_dropped_early,
                stats.packets_overflowed
            );
            let [marked, dropped] = [stats.packets_marked, stats.packets_dropped_early].map(|count| count > 0);
            assert_eq!([marked, dropped], [ecn == "1", ecn == "0"]);
        });
    }
}

#[test]
fn a_transfer_goes_on_when_an_uplink_dies() {
    isolated(async || {
        let mut tunnel = Tunnel::new(Machines::new(2, 1500), 2).await;
        let session = tunnel.session().await;
        let (mut ours, mut theirs) = connect(&tunnel, 0).await;
        let chunk = some(1_000_000);
        let mut worst = Duration::ZERO;
        for turn in 0..20 {
            if turn == 6 {
                tunnel.machines.cut(0);
            }
            let since = Instant::now();
            soon("a megabyte", transfer(&mut ours, &mut theirs, &chunk)).await;
            soon("a megabyte", transfer(&mut theirs, &mut ours, &chunk)).await;
            worst = worst.max(since.elapsed());
        }
        println!("2 MB took {worst:?} at worst when an uplink died");
        assert!(worst < Duration::from_secs(3), "{worst:?}");
        let paths = session.paths();
        let dead = paths.iter().find(|path| path.uplink == "up0");
        assert!(
            dead.is_none_or(|path| path.stats.state == PathState::Suspect),
            "{paths:?}"
        );
    });
}

#[test]
fn the_tunnel_crosses_a_path_over_tcp() {
    isolated(async || {
        let machines = Machines::new(1, 1500);
        block_udp();
        let mut tunnel = Tunnel::new(machines, 1).await;
        let session = tunnel.session().await;
        assert_eq!(session.paths()[0].transport, Transport::Tcp);
        for family in [0, 1] {
            ping(family, 1280).await;
            let (mut ours, mut theirs) = connect(&tunnel, family).await;
            transfer_both_ways(&mut ours, &mut theirs, &some(4_000_000)).await;
        }
    });
}

#[test]
fn a_connection_outlives_the_session_that_carried_it() {
    isolated(async || {
        let mut tunnel = Tunnel::new(Machines::new(1, 1500), 1).await;
        let (mut ours, mut theirs) = connect(&tunnel, 1).await;
        transfer_both_ways(&mut ours, &mut theirs, &some(1_000_000)).await;
        let session = tunnel.session().await;
        session.close(CloseReason::Local);
        soon("its end", tunnel.at_edge.wait_for(Option::is_none)).await.unwrap();
        transfer_both_ways(&mut ours, &mut theirs, &some(1_000_000)).await;
        let next = tunnel.session().await;
        assert!(next.peer().epoch > session.peer().epoch);
    });
}
