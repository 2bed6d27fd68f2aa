//! An authenticated peer that breaks the rules: what it sends takes bounded memory and work, and closes the session with a reason.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tunnel::Priority;
use tunnel::bond::{Bond, Config, Event, Faults, PathConfig, PathId, Policy, Read, Violation};

use crate::inner::packet;
use crate::ms;

const PATH: PathId = PathId(1);

fn bond(config: Config) -> Bond {
    let mut bond = Bond::new(Duration::ZERO, config);
    let path = PathConfig {
        max_datagram: 1400,
        rtt: ms(20),
        policy: Policy::default(),
    };
    assert!(bond.add_path(Duration::ZERO, PATH, path));
    bond
}

/// A packet with a sequence and frames, by hand.
fn raw(sequence: u32, frames: &[u8]) -> Bytes {
    let mut bytes = vec![0x40];
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(frames);
    Bytes::from(bytes)
}

fn datagram(number: u32, flow: u16, sequence: u32, order: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![order];
    frame.extend(number.to_be_bytes());
    frame.extend(flow.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend(payload);
    frame
}

fn message(id: u32, offset: u16, size: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x10];
    frame.extend(id.to_be_bytes());
    frame.extend(offset.to_be_bytes());
    frame.extend((size - 1).to_be_bytes());
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend(payload);
    frame
}

fn ack(path: u8, largest: u32, ranges: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x30, 1, path];
    frame.extend(largest.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(ranges);
    frame
}

/// What closes the session, within so many packets.
fn until_closed(bond: &mut Bond, most: u32, mut frames: impl FnMut(u32) -> Vec<u8>) -> Option<(u32, Violation)> {
    (0..most).find_map(|n| {
        let now = Duration::from_micros(u64::from(n) * 50);
        bond.handle_timeout(now);
        let closed = bond.handle_input(now, PATH, raw(n, &frames(n))).err();
        while bond.poll_event().is_some() {}
        closed.map(|violation| (n, violation))
    })
}

#[test]
fn absurd_numbers_close_the_session() {
    let far = 1 << 30;
    let mut path = bond(Config::hub());
    path.handle_input(ms(1), PATH, raw(0, &[0x31])).unwrap();
    assert_eq!(
        path.handle_input(ms(1), PATH, raw(far, &[0x31])),
        Err(Violation::Jump("path"))
    );
    let closed = until_closed(&mut bond(Config::hub()), 2, |_| datagram(far, 0, 0, 2, &[0; 100]));
    assert_eq!(closed, Some((0, Violation::Jump("packet"))));
    let closed = until_closed(&mut bond(Config::hub()), 2, |_| message(far, 0, 9, &[0; 9]));
    assert_eq!(closed, Some((0, Violation::Jump("message"))));
    let closed = until_closed(&mut bond(Config::hub()), 2, |_| ack(1, far, &[0, 0]));
    assert_eq!(closed, Some((0, Violation::AckOfNothing)));
    // A flow's sequence is only its own: it starts anew there, and holds nothing.
    let mut flow = bond(Config::hub());
    assert_eq!(
        until_closed(&mut flow, 100, |n| datagram(n, 7, far + n * 3000, 2, &[0; 100])),
        None
    );
    assert!(flow.stats().held_bytes < 100_000);
    assert_eq!(Violation::Jump("path").reason(), "AbsurdSequence");
}

#[test]
fn a_flood_of_what_must_wait_stays_within_the_budget() {
    for config in [Config::hub(), Config::edge()] {
        let mut bond = bond(config);
        let (started, mut most) = (Instant::now(), 0);
        // Every second packet of 4096 flows: none may go on.
        for n in 0..60_000 {
            let now = Duration::from_micros(u64::from(n) * 5);
            let frame = datagram(n, (n % 4096) as u16, 1 + n / 4096 * 2, 2, &[0; 1300]);
            bond.handle_input(now, PATH, raw(n, &frame)).unwrap();
            bond.handle_timeout(now);
            while bond.poll_event().is_some() {}
            most = most.max(bond.stats().held_bytes);
        }
        println!(
            "reorder flood: {most} bytes held at most, {:.1?} for 60 000 packets",
            started.elapsed()
        );
        assert!(most <= config.reorder_budget + 2000, "{most}");
        // One honest flow is delivered all the same.
        let before = bond.stats().packets_delivered;
        for n in 60_000..60_010 {
            let frame = datagram(n, 0x1000 | 9, n - 60_000, 2, &[0; 1300]);
            bond.handle_input(ms(300), PATH, raw(n, &frame)).unwrap();
        }
        assert!(bond.stats().packets_delivered >= before + 10);
    }
}

/// The same check with the bound switched off: it sees.
#[test]
fn the_flood_check_catches_memory_without_a_bound() {
    let faults = Faults {
        memory_unbounded: true,
        ..Faults::default()
    };
    let mut bond = bond(Config {
        faults,
        ..Config::hub()
    });
    let frames = |n: u32| datagram(n, (n % 4096) as u16, 1 + n / 4096 * 2, 2, &[0; 1300]);
    // At most 200 ms pass: nothing is released by time.
    assert_eq!(until_closed(&mut bond, 4000, frames), None);
    assert!(bond.stats().held_bytes > 4_194_304 + 2000);
}

#[test]
fn halves_without_their_other_half_stay_few() {
    let mut bond = bond(Config::hub());
    let frames = |n: u32| datagram(n, 1, n, 2 | 4, &[0; 700]);
    assert_eq!(until_closed(&mut bond, 20_000, frames), None);
    assert!(bond.stats().held_bytes < 4096 * 850 && bond.stats().refused > 10_000);
}

#[test]
fn a_duplicate_flood_closes_the_session() {
    let mut bond = bond(Config::hub());
    let closed = (0..10_000).find_map(|_| bond.handle_input(ms(1), PATH, raw(5, &[0x31])).err());
    assert_eq!(closed, Some(Violation::DuplicateFlood));
}

#[test]
fn a_nack_storm_closes_the_session() {
    for what in 0..3 {
        let mut bond = bond(Config::hub());
        match what {
            0 => bond.send_datagram(ms(1), packet(6, 1, 0, 0, 1000)).unwrap(),
            1 => bond
                .send_message(ms(1), Priority::Normal, 1, Bytes::from(vec![0; 900]))
                .unwrap(),
            _ => {
                let id = bond.open_stream(Priority::Bulk).unwrap();
                bond.write(ms(1), id, &[0; 900]).unwrap();
            }
        }
        // It acknowledges every small packet, and never the large one before it.
        let (mut small, mut closed, mut sent) = (None, None, 0);
        for n in 0..80_000_u32 {
            let now = ms(2) + Duration::from_micros(u64::from(n) * 20);
            let mut buffer = Vec::new();
            while bond.poll_transmit(now, PATH, 925, &mut buffer).is_some() {
                if buffer.len() < 400 {
                    small = Some(u32::from_be_bytes(buffer[1..5].try_into().unwrap()));
                }
                sent += 1;
                buffer.clear();
            }
            bond.handle_timeout(now);
            if let Some(newest) = small {
                closed = bond.handle_input(now, PATH, raw(n, &ack(1, newest, &[0, 0]))).err();
            }
            if closed.is_some() {
                break;
            }
            // Something small to acknowledge.
            let _ = bond.send_message(now, Priority::Urgent, 1, Bytes::from_static(b"another"));
        }
        println!("NACK storm {what}: {closed:?} after {sent} packets");
        assert_eq!(closed, Some(Violation::NackStorm));
    }
}

#[test]
fn messages_and_streams_beyond_their_limits_close_the_session() {
    let closed = until_closed(&mut bond(Config::hub()), 4000, |n| message(n, 0, 60_000, &[0; 100]));
    assert!(matches!(closed, Some((..40, Violation::MessageFlood))), "{closed:?}");
    let two_sizes = |n: u32| message(0, 0, 500 + n as u16, &[0; 100]);
    assert!(matches!(
        until_closed(&mut bond(Config::hub()), 9, two_sizes),
        Some((1, Violation::MessageFlood))
    ));
    // Stream 2n, nothing at offset 0.
    let stream = |id: u8, offset: u8, fin: u8| vec![0x22 | fin, id, offset, 0, 1, 7];
    let closed = until_closed(&mut bond(Config::hub()), 200, |n| stream((2 * n).min(62) as u8, 0, 0));
    assert!(matches!(closed, Some((8..40, Violation::StreamFlood))), "{closed:?}");
    let beyond = [0x22, 0, 0x80, 1, 0, 0, 0, 1, 7];
    assert!(matches!(
        until_closed(&mut bond(Config::hub()), 2, |_| beyond.to_vec()),
        Some((0, Violation::Credit))
    ));
    let two_ends = |n: u32| stream(0, 3 + n as u8, 1);
    assert!(matches!(
        until_closed(&mut bond(Config::hub()), 3, two_ends),
        Some((1, Violation::TwoEnds))
    ));
    // Bytes with holes between them: what has no room is refused, not kept.
    let mut holes = bond(Config::hub());
    let frames = |n: u32| {
        vec![
            0x22,
            0,
            0x40 | ((n * 2 + 1) >> 8) as u8 & 0x3f,
            (n * 2 + 1) as u8,
            0,
            1,
            7,
        ]
    };
    assert_eq!(until_closed(&mut holes, 5000, frames), None);
    assert!(holes.stats().held_bytes < 20_000 && holes.stats().refused > 4000);
}

#[test]
fn noise_is_an_error_and_never_a_panic() {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    let mut bond = bond(Config::edge());
    let mut accepted = 0;
    for n in 0..200_000_u32 {
        let kind = [0, 2, 6, 10, 0x10, 0x20, 0x21, 0x30, 0x31, 0x32, 0x33, 0x34][usize::from(next()) % 12];
        let mut frames = vec![kind];
        // Small numbers reach further than random ones.
        frames.extend((0..next() % 40).map(|_| if next() % 3 == 0 { next() } else { 0 }));
        let now = Duration::from_micros(u64::from(n) * 10);
        accepted += u32::from(bond.handle_input(now, PATH, raw(n, &frames)).is_ok());
        bond.handle_timeout(now);
        while let Some(event) = bond.poll_event() {
            if let Event::StreamReadable(id) = event {
                while let Read::Bytes(_) = bond.read(id, 100) {}
            }
        }
        let mut buffer = Vec::new();
        while bond
            .poll_transmit(now, PATH, 1400, &mut buffer)
            .is_some_and(|_| buffer.len() < 20_000)
        {}
    }
    println!("noise: {accepted} of 200 000 packets were packets; {:?}", bond.stats());
    assert!(accepted > 10_000);
    assert!(bond.stats().held_bytes < 8 << 20);
}
