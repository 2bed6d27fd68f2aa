//! What must hold of cutting and joining whatever the bytes are: for `tests/fuzz`, and for the properties beside it.

use std::collections::VecDeque;

use bytes::Bytes;

use super::coalesce::{Head, Joins, Plan, key};
use super::examples::{self, Tcp, is_right};
use super::header::{Gso, VNET, Vnet, flag, pseudo};
use super::split::split;

const BOTH: Joins = Joins { tcp: true, udp: true };

/// Reads a list of packets, each behind its length in two bytes; or, after an odd first byte, one read of the device. Checks both.
///
/// # Errors
/// What does not hold.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    match bytes.split_first() {
        Some((kind, read)) if kind % 2 == 1 => check_read(read),
        Some((_, list)) => check_packets(&packets_of(list)),
        None => Ok(()),
    }
}

fn packets_of(mut list: &[u8]) -> Vec<Bytes> {
    let mut packets = Vec::new();
    while let [high, low, rest @ ..] = list {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (packet, rest) = rest.split_at(length);
        packets.push(Bytes::copy_from_slice(packet));
        list = rest;
    }
    packets
}

/// A read that is cut gives packets with right checksums, which come back when they are joined.
fn check_read(read: &[u8]) -> Result<(), String> {
    let mut packets = VecDeque::new();
    // No MTU: a SYN stays as it is.
    if split(&mut read.to_vec(), usize::MAX, &mut packets).is_err() {
        return if packets.is_empty() {
            Ok(())
        } else {
            Err("packets of a read that was refused".to_owned())
        };
    }
    let vnet = Vnet::read(read).ok_or("a header that cannot be read was")?;
    let plain = matches!((vnet.start, packets[0][0]), (20, 0x45) | (40, 0x60..=0x6f));
    let named = plain && matches!(packets[0][if vnet.start == 20 { 9 } else { 6 }], 6 | 17);
    if vnet.gso != Gso::None && named && !packets.iter().all(|packet| is_right(packet)) {
        return Err(format!("a wrong checksum: {packets:02x?}"));
    }
    check_packets(&Vec::from(packets))
}

/// Joined and cut again, each flow has its packets in its order.
pub(super) fn check_packets(packets: &[Bytes]) -> Result<(), String> {
    let (_, again) = joined(packets)?;
    let mut flows = Vec::new();
    for packet in packets {
        let flow = key(packet);
        if !flows.contains(&flow) {
            flows.push(flow);
        }
    }
    for flow in &flows {
        let of = |all: &[Bytes]| -> Vec<Vec<u8>> {
            let its = all.iter().filter(|packet| key(packet) == *flow);
            its.map(|packet| without_meaningless_id(packet)).collect()
        };
        if of(packets) != of(&again) {
            return Err(format!("{packets:02x?} come back as {again:02x?}"));
        }
    }
    if again.len() == packets.len() {
        Ok(())
    } else {
        Err(format!("{} packets come back as {}", packets.len(), again.len()))
    }
}

/// How many writes packets are joined to, and what cutting those gives.
pub(super) fn joined(packets: &[Bytes]) -> Result<(usize, Vec<Bytes>), String> {
    let mut plan = Plan::default();
    plan.make(packets, BOTH);
    let mut again = VecDeque::new();
    for at in 0..plan.len() {
        let mut head = Head::new();
        let mut write: Vec<u8> = plan
            .write(at, packets, &mut head)
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        if split(&mut write, usize::MAX, &mut again).is_err() {
            // What is no IP packet is written as it is, for the kernel to refuse.
            again.push_back(Bytes::copy_from_slice(&write[VNET..]));
        }
    }
    Ok((plan.len(), again.into()))
}

/// The id of an IPv4 packet that may not be fragmented means nothing (RFC 6864).
fn without_meaningless_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Reads of super-packets, and lists of packets of several flows.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let tcp = |v6, number: u32| Tcp {
        v6,
        id: number as u16,
        sequence: number * 100,
        payload: vec![number as u8; 100],
        flags: if number == 3 { flag::ACK | flag::PSH } else { flag::ACK },
        ..Tcp::default()
    };
    let mut all = Vec::new();
    for v6 in [false, true] {
        let start = if v6 { 40 } else { 20 };
        let whole = Tcp {
            payload: (0..=255).collect(),
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            ..tcp(v6, 1)
        };
        let mut udp = examples::udp(v6, 7, 7, &[3; 250]);
        let partial = pseudo(&udp, 17, udp.len() - start).partial();
        udp[start + 6..start + 8].copy_from_slice(&partial);
        let gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
        for (gso, packet, offset) in [
            (gso, whole.packet(), 16),
            (Gso::Udp, udp.clone(), 6),
            (Gso::None, udp, 6),
        ] {
            let vnet = Vnet {
                needs_checksum: true,
                gso,
                header: 0,
                segment: 100,
                start: start as u16,
                offset,
            };
            all.push([&[1], &vnet.bytes()[..], &packet].concat());
        }
        let mut list = vec![0];
        for number in 0..5 {
            for packet in [
                tcp(v6, number).packet(),
                examples::udp(v6, 5, number as u16, &[number as u8; 60]),
                examples::other(number as u16),
            ] {
                list.extend((packet.len() as u16).to_be_bytes());
                list.extend(packet);
            }
        }
        all.push(list);
    }
    all
}
