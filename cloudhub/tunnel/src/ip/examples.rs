//! Packets for tests and for `tests/fuzz`, and a slow way to check them that shares nothing with what it checks.

use super::header::{flag, protocol};

/// A packet of a TCP connection.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) v6: bool,
    pub(crate) port: u16,
    pub(crate) id: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    /// A multiple of four bytes, or filled up to one.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            v6: false,
            port: 4000,
            id: 7,
            sequence: 1000,
            flags: flag::ACK,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Tcp {
    /// With right checksums.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.port.to_be_bytes());
        tcp.extend(80_u16.to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(5555_u32.to_be_bytes());
        let words = 5 + self.options.len().div_ceil(4);
        tcp.extend([(words << 4) as u8, self.flags, 1, 0xf5, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.resize(words * 4, 0);
        tcp.extend(&self.payload);
        whole(self.v6, self.id, protocol::TCP, tcp)
    }
}

/// A UDP datagram with right checksums.
pub(crate) fn udp(v6: bool, port: u16, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(port.to_be_bytes());
    udp.extend(53_u16.to_be_bytes());
    udp.extend(((8 + payload.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    whole(v6, id, protocol::UDP, udp)
}

/// An ICMP echo request, which is one of another protocol than those that are cut and joined.
pub(crate) fn other(id: u16) -> Vec<u8> {
    whole(false, id, 1, vec![8, 0, 0, 0, 0, 1, 0, id as u8])
}

fn whole(v6: bool, id: u16, protocol: u8, rest: Vec<u8>) -> Vec<u8> {
    let mut packet = Vec::new();
    if v6 {
        packet.extend([0x60, 2, 3, 4]);
        packet.extend((rest.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
    } else {
        packet.extend([0x45, 0]);
        packet.extend(((20 + rest.len()) as u16).to_be_bytes());
        packet.extend(id.to_be_bytes());
        packet.extend([0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    packet.extend(rest);
    correct(&mut packet);
    packet
}

/// Gives a packet without IP options or extensions right checksums, the slow way.
pub(crate) fn correct(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = slow(&packet[..20], 0);
        packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    }
    if let Some(at) = place(packet) {
        packet[at..at + 2].fill(0);
        let sum = transport(packet);
        // Zero would mean that there is none (RFC 768).
        let sum = if sum == 0xffff && at % 20 == 6 { 0 } else { sum };
        packet[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// Whether all checksums of a packet without IP options or extensions are right.
pub(crate) fn is_right(packet: &[u8]) -> bool {
    let ip = packet[0] >> 4 == 6 || slow(&packet[..20], 0) == 0xffff;
    ip && (place(packet).is_none() || transport(packet) == 0xffff)
}

fn place(packet: &[u8]) -> Option<usize> {
    let (header, protocol) = if packet[0] >> 4 == 4 {
        (20, packet[9])
    } else {
        (40, packet[6])
    };
    match protocol {
        protocol::TCP => Some(header + 16),
        protocol::UDP => Some(header + 6),
        _ => None,
    }
}

fn transport(packet: &[u8]) -> u16 {
    let (addresses, rest, protocol) = if packet[0] >> 4 == 4 {
        (&packet[12..20], &packet[20..], packet[9])
    } else {
        (&packet[8..40], &packet[40..], packet[6])
    };
    let before = slow(addresses, 0);
    let before = slow(&(rest.len() as u32).to_be_bytes(), before);
    let before = slow(&[0, protocol], before);
    slow(rest, before)
}

/// RFC 1071, byte by byte.
fn slow(bytes: &[u8], before: u16) -> u16 {
    let mut sum = u32::from(before);
    for (at, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
