//! What the kernel hands over at once, cut into packets as they cross the tunnel. Pure.
//!
//! - a packet whose checksum is left to the device gets it
//! - a super-packet (GSO) is cut into packets of the size that it names, each with lengths, ids, sequence numbers, flags and checksums as the
//!   kernel's own segmentation gives them. All share one buffer: a byte is copied once
//! - a SYN says what fits ([`clamp`](super::clamp))
//!
//! ECN, DSCP, hop limits and options are copied as they are.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::clamp::clamp;
use super::header::{
    Gso, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, VNET, Vnet, be16, be32, flag, ip_header, is_v6, protocol, pseudo, put16,
    set_length,
};

/// What was read is not what the kernel gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the device gave is no packet: {0}")]
pub(crate) struct Malformed(&'static str);

/// Adds the packets that one read of the device brought, [`Vnet`] first; returns how many. `mtu`: the largest inner packet, bytes, for SYNs.
///
/// # Errors
/// [`Malformed`]; nothing is added then.
pub(crate) fn split(read: &mut [u8], mtu: usize, into: &mut VecDeque<Bytes>) -> Result<usize, Malformed> {
    let vnet = Vnet::read(read).ok_or(Malformed("its header is unknown"))?;
    let packet = &mut read[VNET..];
    let header = ip_header(packet).ok_or(Malformed("no IP header"))?;
    if vnet.gso == Gso::None {
        if vnet.needs_checksum {
            complete(packet, vnet)?;
        }
        clamp(packet, mtu);
        into.push_back(Bytes::copy_from_slice(packet));
        return Ok(1);
    }
    let cut = Cut::new(packet, header, vnet)?;
    let payload = &packet[cut.headers..];
    let count = payload.len().div_ceil(cut.segment);
    let mut buffer = BytesMut::with_capacity(count * cut.headers + payload.len());
    for (at, piece) in payload.chunks(cut.segment).enumerate() {
        buffer.extend_from_slice(&packet[..cut.headers]);
        buffer.extend_from_slice(piece);
        cut.finish(&mut buffer, (at, count));
        into.push_back(buffer.split().freeze());
    }
    Ok(count)
}

/// Completes a checksum that holds the pseudo header's sum.
fn complete(packet: &mut [u8], vnet: Vnet) -> Result<(), Malformed> {
    let (start, at) = (
        usize::from(vnet.start),
        usize::from(vnet.start) + usize::from(vnet.offset),
    );
    if at + 2 > packet.len() {
        return Err(Malformed("its checksum is beyond its end"));
    }
    let checksum = super::checksum::Sum::default().bytes(&packet[start..]).checksum();
    // Zero would mean that there is none (RFC 768), and means the same as this.
    let checksum = if checksum == [0, 0] { [0xff, 0xff] } else { checksum };
    packet[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}

/// How a super-packet is cut.
struct Cut {
    /// Length of the IP header with options and extensions: where the transport header begins.
    ip: usize,
    /// Length of all headers.
    headers: usize,
    segment: usize,
    tcp: bool,
}

impl Cut {
    fn new(packet: &[u8], header: usize, vnet: Vnet) -> Result<Self, Malformed> {
        let (ip, segment) = (usize::from(vnet.start), usize::from(vnet.segment));
        let (v6, tcp) = match vnet.gso {
            Gso::Tcp4 => (false, true),
            Gso::Tcp6 => (true, true),
            _ => (is_v6(packet), false),
        };
        let next = if v6 { packet[6] } else { packet[9] };
        let wanted = if tcp { protocol::TCP } else { protocol::UDP };
        // IPv6's extension headers lie between.
        if v6 != is_v6(packet)
            || ip < header
            || (!v6 && ip != header)
            || segment == 0
            || (ip == header && next != wanted)
        {
            return Err(Malformed("its transport header is misplaced"));
        }
        let least = ip + if tcp { TCP } else { UDP };
        if packet.len() < least {
            return Err(Malformed("its transport header is cut off"));
        }
        let headers = if tcp {
            ip + usize::from(packet[ip + 12] >> 4) * 4
        } else {
            least
        };
        if headers < least || packet.len() <= headers {
            return Err(Malformed("it has no payload"));
        }
        Ok(Self {
            ip,
            headers,
            segment,
            tcp,
        })
    }

    /// Makes the headers of the packet with this place right.
    fn finish(&self, packet: &mut [u8], (at, count): (usize, usize)) {
        let length = packet.len();
        if !is_v6(packet) {
            // Each has an id of its own, as the kernel counts.
            let id = be16(packet, 4).wrapping_add((at & 0xffff) as u16);
            put16(packet, 4, id);
        }
        set_length(packet, if is_v6(packet) { super::header::V6 } else { self.ip }, length);
        let (protocol, checksum) = if self.tcp {
            self.finish_tcp(packet, (at, count));
            (protocol::TCP, self.ip + TCP_CHECKSUM)
        } else {
            put16(packet, self.ip + 4, u16::try_from(length - self.ip).unwrap_or(u16::MAX));
            (protocol::UDP, self.ip + UDP_CHECKSUM)
        };
        packet[checksum..checksum + 2].fill(0);
        let sum = pseudo(packet, protocol, length - self.ip).bytes(&packet[self.ip..]);
        let sum = match sum.checksum() {
            [0, 0] if !self.tcp => [0xff, 0xff],
            sum => sum,
        };
        packet[checksum..checksum + 2].copy_from_slice(&sum);
    }

    fn finish_tcp(&self, packet: &mut [u8], (at, count): (usize, usize)) {
        let before = u32::try_from(at * self.segment).unwrap_or(u32::MAX);
        let sequence = be32(packet, self.ip + 4).wrapping_add(before);
        packet[self.ip + 4..self.ip + 8].copy_from_slice(&sequence.to_be_bytes());
        let flags = &mut packet[self.ip + 13];
        if at + 1 < count {
            *flags &= !(flag::FIN | flag::PSH);
        }
        if at > 0 {
            *flags &= !flag::CWR;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::examples::{self, Tcp, is_right};
    use super::*;

    fn super_packet(packet: &[u8], vnet: Vnet) -> Vec<u8> {
        let mut read = vnet.bytes().to_vec();
        read.extend(packet);
        read
    }

    fn cut(mut read: Vec<u8>) -> Vec<Bytes> {
        let mut packets = VecDeque::new();
        let count = split(&mut read, 1280, &mut packets).unwrap();
        assert_eq!(count, packets.len());
        packets.into()
    }

    #[test]
    fn tcp_is_cut_as_the_kernel_does() {
        for v6 in [false, true] {
            let all = Tcp {
                v6,
                id: 0xffff,
                sequence: u32::MAX - 500,
                flags: flag::ACK | flag::PSH | flag::FIN | flag::CWR | flag::ECE,
                options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
                payload: (0..2500_u32).map(|at| at as u8).collect(),
                ..Tcp::default()
            };
            let vnet = Vnet {
                needs_checksum: true,
                gso: if v6 { Gso::Tcp6 } else { Gso::Tcp4 },
                header: 0,
                segment: 1000,
                start: if v6 { 40 } else { 20 },
                offset: 16,
            };
            let packets = cut(super_packet(&all.packet(), vnet));
            let expected = [
                (0, 1000, flag::ACK | flag::ECE | flag::CWR),
                (1000, 1000, flag::ACK | flag::ECE),
                (2000, 500, flag::ACK | flag::ECE | flag::PSH | flag::FIN),
            ];
            for (at, (packet, (from, length, flags))) in packets.iter().zip(expected).enumerate() {
                assert!(is_right(packet));
                let one = Tcp {
                    id: all.id.wrapping_add(at as u16),
                    sequence: all.sequence.wrapping_add(from as u32),
                    flags,
                    payload: all.payload[from..from + length].to_vec(),
                    ..all.clone()
                };
                assert_eq!(packet[..], one.packet(), "packet {at}");
            }
            assert_eq!(packets.len(), 3);
        }
    }

    #[test]
    fn udp_is_cut_into_datagrams() {
        for v6 in [false, true] {
            let payload = [[1; 700], [2; 700]].concat();
            let vnet = Vnet {
                needs_checksum: true,
                gso: Gso::Udp,
                header: 0,
                segment: 700,
                start: if v6 { 40 } else { 20 },
                offset: 6,
            };
            let all = [payload.clone(), vec![3; 9]].concat();
            let packets = cut(super_packet(&examples::udp(v6, 9, 5, &all), vnet));
            let expected = [(5, &payload[..700]), (6, &payload[700..]), (7, &[3; 9][..])];
            assert_eq!(packets.len(), 3);
            for (packet, (id, payload)) in packets.iter().zip(expected) {
                assert_eq!(packet[..], examples::udp(v6, 9, id, payload));
            }
        }
    }

    #[test]
    fn a_checksum_that_was_left_to_the_device_is_completed() {
        for (packet, offset) in [
            (
                Tcp {
                    payload: vec![7; 333],
                    ..Tcp::default()
                }
                .packet(),
                16,
            ),
            (examples::udp(false, 5, 5, &[9; 100]), 6),
        ] {
            let mut partial = packet.clone();
            let protocol = packet[9];
            let sum = pseudo(&packet, protocol, packet.len() - 20).partial();
            partial[20 + offset..22 + offset].copy_from_slice(&sum);
            let vnet = Vnet {
                needs_checksum: true,
                start: 20,
                offset: offset as u16,
                ..Vnet::PLAIN
            };
            assert_eq!(cut(super_packet(&partial, vnet)), [packet]);
        }
    }

    #[test]
    fn a_packet_of_any_other_kind_stays_as_it_is() {
        let packet = examples::other(3);
        assert_eq!(cut(super_packet(&packet, Vnet::PLAIN)), [packet]);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let packet = Tcp {
            payload: vec![1; 99],
            ..Tcp::default()
        }
        .packet();
        let right = Vnet {
            needs_checksum: true,
            gso: Gso::Tcp4,
            header: 0,
            segment: 50,
            start: 20,
            offset: 16,
        };
        let refused = |read: Vec<u8>| {
            let mut packets = VecDeque::new();
            assert!(split(&mut read.clone(), 1280, &mut packets).is_err(), "{read:?}");
            assert!(packets.is_empty());
        };
        for vnet in [
            Vnet { segment: 0, ..right },
            Vnet { start: 19, ..right },
            Vnet { start: 24, ..right },
            Vnet { start: 60_000, ..right },
            Vnet {
                gso: Gso::Tcp6,
                ..right
            },
            Vnet {
                gso: Gso::None,
                start: 130,
                ..right
            },
        ] {
            refused(super_packet(&packet, vnet));
        }
        for length in [0, 10, 20, 39, 40] {
            refused(super_packet(&packet[..length], right));
        }
        refused(Vec::new());
    }
}
