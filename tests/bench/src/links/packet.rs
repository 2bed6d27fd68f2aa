//! Packets and messages that carry their number and the time when they were made.

use bytes::Bytes;

use super::sink::Arrival;
use super::talk::{Load, now};

/// Bytes of an inner packet: fits a path's datagram with the bond's 16 bytes.
pub(crate) const MTU: usize = 1380;
/// QUIC, UDP and IPv4 headers around a datagram.
pub(crate) const AROUND: usize = 66;
/// Bytes of a request.
pub(crate) const REQUEST: usize = 256;
/// Bytes of a pod spec.
pub(crate) const SPEC: usize = tunnel::MAX_MESSAGE;
/// Where number and time are: behind IPv4's and TCP's headers.
const STAMP: usize = 40;

/// The next packet of a flow: an IPv4 packet without checksums, which nobody looks at.
pub(crate) fn packet(load: Load, number: u64) -> Bytes {
    let (protocol, dscp, port) = match load {
        Load::Datagrams => (17, 0, 7001_u16),
        Load::Realtime => (17, 46, 7002),
        Load::Ordered => (6, 0, 7003),
    };
    let mut packet = vec![0; MTU];
    packet[0] = 0x45;
    packet[1] = dscp << 2;
    packet[2..4].copy_from_slice(&(MTU as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 1, 0, 2]);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    // Of TCP: the number as its sequence, no options, ACK.
    packet[24..28].copy_from_slice(&(number as u32).to_be_bytes());
    packet[32] = 0x50;
    packet[33] = 0x10;
    stamp(&mut packet[STAMP..], number, now());
    Bytes::from(packet)
}

/// What arrives of a packet.
pub(crate) fn arrival(packet: &[u8], at: u64) -> Option<Arrival> {
    let (number, sent) = read_stamp(packet.get(STAMP..)?)?;
    let bytes = u32::try_from(packet.len()).ok()?;
    Some(Arrival {
        at,
        sent,
        number,
        bytes,
    })
}

/// A message that says its number and when it was due.
pub(crate) fn message(number: u64, due: u64, size: usize) -> Bytes {
    let mut message = vec![0; size];
    stamp(&mut message, number, due);
    Bytes::from(message)
}

/// What arrives of a message.
pub(crate) fn heard(message: &[u8], at: u64) -> Option<Arrival> {
    let (number, sent) = read_stamp(message)?;
    let bytes = u32::try_from(message.len()).ok()?;
    Some(Arrival {
        at,
        sent,
        number,
        bytes,
    })
}

fn stamp(into: &mut [u8], number: u64, at: u64) {
    into[..8].copy_from_slice(&number.to_be_bytes());
    into[8..16].copy_from_slice(&at.to_be_bytes());
}

fn read_stamp(from: &[u8]) -> Option<(u64, u64)> {
    let word = |at: usize| from.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    Some((word(0)?, word(8)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_messages_say_their_number_and_when_they_were_made() {
        for load in [Load::Datagrams, Load::Realtime, Load::Ordered] {
            let before = now();
            let packet = packet(load, 7);
            let seen = arrival(&packet, before + 9).unwrap();
            assert_eq!((seen.number, seen.bytes, packet.len()), (7, MTU as u32, MTU));
            assert!(seen.sent >= before && seen.sent <= now());
        }
        assert_eq!(
            heard(&message(3, 5, REQUEST), 1).map(|heard| (heard.number, heard.sent)),
            Some((3, 5))
        );
        assert_eq!(arrival(&[0; 20], 1), None);
        assert_eq!(heard(&[0; 15], 1), None);
    }
}
