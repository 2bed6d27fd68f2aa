//! Where things are in an IP packet, and the 10 bytes that the device puts before one (virtio_net_hdr). Pure.

use super::checksum::Sum;

/// Length of [`Vnet`] before each packet.
pub(crate) const VNET: usize = 10;
/// An IPv4 header without options.
pub(crate) const V4: usize = 20;
/// IPv6's fixed header.
pub(crate) const V6: usize = 40;
/// UDP's header, and the place of the checksum in it.
pub(crate) const UDP: usize = 8;
/// Where UDP has its checksum.
pub(crate) const UDP_CHECKSUM: usize = 6;
/// TCP's header without options.
pub(crate) const TCP: usize = 20;
/// Where TCP has its checksum.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// IANA's protocol numbers.
pub(crate) mod protocol {
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
}

/// Bits of TCP's flags.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const ECE: u8 = 0x40;
    pub(crate) const CWR: u8 = 0x80;
}

/// What a packet is made of several by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gso {
    /// It is one packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams.
    Udp,
}

/// `struct virtio_net_hdr`, in the machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vnet {
    /// The checksum holds the pseudo header's sum only.
    pub(crate) needs_checksum: bool,
    /// Several packets in one.
    pub(crate) gso: Gso,
    /// All headers, bytes; a hint.
    pub(crate) header: u16,
    /// Payload of each packet, bytes.
    pub(crate) segment: u16,
    /// Where the checksummed part begins: the transport header.
    pub(crate) start: u16,
    /// Where the checksum is in it.
    pub(crate) offset: u16,
}

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The first packet says that the congestion window was reduced.
const GSO_ECN: u8 = 0x80;

impl Vnet {
    /// Of one packet that is as it should be.
    pub(crate) const PLAIN: Self = Self {
        needs_checksum: false,
        gso: Gso::None,
        header: 0,
        segment: 0,
        start: 0,
        offset: 0,
    };

    /// Reads it; None when the bytes are too few or say what nobody has asked for.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let [flags, gso, a, b, c, d, e, f, g, h] = *bytes.first_chunk::<VNET>()?;
        let gso = match gso & !GSO_ECN {
            0 => Gso::None,
            GSO_TCP4 => Gso::Tcp4,
            GSO_TCP6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            gso,
            header: u16::from_ne_bytes([a, b]),
            segment: u16::from_ne_bytes([c, d]),
            start: u16::from_ne_bytes([e, f]),
            offset: u16::from_ne_bytes([g, h]),
        })
    }

    /// Writes it.
    pub(crate) fn bytes(self) -> [u8; VNET] {
        let flags = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        let gso = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP_L4,
        };
        let [a, b] = self.header.to_ne_bytes();
        let [c, d] = self.segment.to_ne_bytes();
        let [e, f] = self.start.to_ne_bytes();
        let [g, h] = self.offset.to_ne_bytes();
        [flags, gso, a, b, c, d, e, f, g, h]
    }
}

/// A big-endian number in a packet that is long enough.
pub(crate) fn be16(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// The same of 32 bits.
pub(crate) fn be32(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// Writes a number into a packet that is long enough.
pub(crate) fn put16(packet: &mut [u8], at: usize, number: u16) {
    packet[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

/// Whether it says that it is IPv6; nothing else of it is looked at.
pub(crate) fn is_v6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

/// The length of the IP header with IPv4's options and without IPv6's extensions; None where there is no IP header.
pub(crate) fn ip_header(packet: &[u8]) -> Option<usize> {
    let length = match packet.first()? >> 4 {
        4 => usize::from(packet[0] & 0xf) * 4,
        6 => V6,
        _ => return None,
    };
    (length >= V4 && packet.len() >= length).then_some(length)
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) of a packet with an IP header.
pub(crate) fn pseudo(packet: &[u8], protocol: u8, length: usize) -> Sum {
    let addresses = if is_v6(packet) { &packet[8..40] } else { &packet[12..20] };
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    Sum::default().bytes(addresses).number(protocol.into()).number(length)
}

/// Sets the lengths and the header checksum for a packet of so many bytes.
pub(crate) fn set_length(packet: &mut [u8], header: usize, length: usize) {
    let number = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
    if is_v6(packet) {
        put16(packet, 4, number(length - V6));
    } else {
        put16(packet, 2, number(length));
        packet[10..12].fill(0);
        let checksum = Sum::default().bytes(&packet[..header]).checksum();
        packet[10..12].copy_from_slice(&checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_precedes_a_packet_is_read_as_it_was_written() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            let vnet = Vnet {
                needs_checksum: gso != Gso::None,
                gso,
                header: 0x102,
                segment: 0x304,
                start: 0x506,
                offset: 0x708,
            };
            assert_eq!(Vnet::read(&vnet.bytes()), Some(vnet));
        }
        assert_eq!(Vnet::PLAIN.bytes(), [0; VNET]);
        assert_eq!(Vnet::read(&[0; 9]), None);
        assert_eq!(
            Vnet::read(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]),
            None,
            "UFO was not asked for"
        );
    }
}
