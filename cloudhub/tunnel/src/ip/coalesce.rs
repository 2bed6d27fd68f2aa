//! Consecutive packets of a flow joined into super-packets (GRO), so that the kernel takes them at once. Pure.
//!
//! What is joined is what cutting it again gives back, bit by bit (but for the ids of IPv4 packets that may not be fragmented, which mean
//! nothing: RFC 6864). So checksums are looked at first, and headers must be equal. Packets of one flow stay in order; what cannot be joined
//! is a packet of its own and ends what its flow has joined so far. Payloads are not copied.

use std::io::IoSlice;

use bytes::Bytes;

use super::checksum::Sum;
use super::header::{
    Gso, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, V4, V6, VNET, Vnet, be16, be32, flag, ip_header, is_v6, protocol,
    pseudo, put16, set_length,
};

/// Packets in one super-packet: what the kernel takes of UDP (UDP_MAX_SEGMENTS before 6.9), and 64 KiB of TCP.
const MAX_JOINED: usize = 64;
/// The largest IP packet, bytes.
const MAX_PACKET: usize = 65_535;
/// Headers that are rewritten: IP without options, TCP with all of its.
const MAX_HEADERS: usize = V6 + 60;

/// As a checksum it means what zero means, and cutting writes zero.
const OTHER_ZERO: u16 = 0xffff;

/// What the kernel takes joined, and gives so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joins {
    /// Super-packets of TCP; checksums are the reader's to complete then.
    pub(crate) tcp: bool,
    /// Super-packets of UDP datagrams.
    pub(crate) udp: bool,
}

/// What makes packets one flow here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    addresses: [u8; 32],
    ports: u32,
    protocol: u8,
    v6: bool,
}

/// A packet that may be joined with others.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Length of the IP header.
    ip: usize,
    /// Length of all headers.
    headers: usize,
    /// Bytes after them.
    payload: usize,
    tcp: bool,
}

/// A packet, or several that make one.
#[derive(Debug)]
struct Group {
    first: usize,
    more: Vec<usize>,
    shape: Option<Shape>,
    /// Nothing more may be added.
    closed: bool,
    /// All of it, bytes.
    length: usize,
}

/// How a batch of packets is to be written: groups in the order of their first packets.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    groups: Vec<Group>,
    /// The last group of each flow.
    flows: Vec<(Key, usize)>,
}

impl Plan {
    /// Plans a batch anew.
    pub(crate) fn make(&mut self, packets: &[Bytes], joins: Joins) {
        self.groups.clear();
        self.flows.clear();
        for (at, packet) in packets.iter().enumerate() {
            let Some(key) = key(packet) else {
                // Whose it is cannot be seen, so nobody passes it.
                self.flows.clear();
                self.groups.push(Group::new(at, packet, None));
                continue;
            };
            let shape = shape(packet, joins);
            let flow = self.flows.iter_mut().rev().find(|(flow, _)| *flow == key);
            let group = flow.as_ref().and_then(|(_, group)| self.groups.get_mut(*group));
            if let (Some(group), Some(shape)) = (group, shape)
                && group.takes(packets, packet, shape)
            {
                group.add(at, packet, shape);
                continue;
            }
            let last = self.groups.len();
            match flow {
                Some((_, group)) => *group = last,
                None => self.flows.push((key, last)),
            }
            self.groups.push(Group::new(at, packet, shape));
        }
    }

    /// How many writes it takes.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The bytes of one write, whose first are made in `head`.
    pub(crate) fn write<'a>(&self, at: usize, packets: &'a [Bytes], head: &'a mut Head) -> Vec<IoSlice<'a>> {
        let group = &self.groups[at];
        let first = &packets[group.first];
        let Some(shape) = group.shape.filter(|_| !group.more.is_empty()) else {
            head.0[..VNET].copy_from_slice(&Vnet::PLAIN.bytes());
            return vec![IoSlice::new(&head.0[..VNET]), IoSlice::new(first)];
        };
        let last = group.more.last().map_or(first, |last| &packets[*last]);
        group.write_headers(shape, (first, last), &mut head.0);
        let mut slices = Vec::with_capacity(2 + group.more.len());
        slices.push(IoSlice::new(&head.0[..VNET + shape.headers]));
        slices.push(IoSlice::new(&first[shape.headers..]));
        let more = group.more.iter().map(|more| &packets[*more][shape.headers..]);
        slices.extend(more.map(IoSlice::new));
        slices
    }
}

/// Room for the headers of a super-packet.
#[derive(Debug)]
pub(crate) struct Head([u8; VNET + MAX_HEADERS]);

impl Head {
    pub(crate) fn new() -> Self {
        Self([0; VNET + MAX_HEADERS])
    }
}

impl Group {
    fn new(at: usize, packet: &Bytes, shape: Option<Shape>) -> Self {
        Self {
            first: at,
            more: Vec::new(),
            closed: shape.is_none_or(|shape| shape.is_pushed(packet)),
            shape,
            length: packet.len(),
        }
    }

    fn takes(&self, packets: &[Bytes], packet: &[u8], shape: Shape) -> bool {
        let first = &packets[self.first];
        let Some(own) = self.shape.filter(|_| !self.closed) else {
            return false;
        };
        let count = 1 + self.more.len();
        count < MAX_JOINED
            && self.length + shape.payload <= MAX_PACKET
            && shape.payload <= own.payload
            && shape.headers == own.headers
            && have_equal_ip(first, packet, count)
            && (!shape.tcp || have_equal_tcp(first, packet, own, self.length - own.headers))
    }

    fn add(&mut self, at: usize, packet: &[u8], shape: Shape) {
        self.more.push(at);
        self.length += shape.payload;
        let segment = self.shape.map_or(0, |own| own.payload);
        self.closed = shape.payload < segment || shape.is_pushed(packet);
    }

    fn write_headers(&self, shape: Shape, (first, last): (&[u8], &[u8]), head: &mut [u8]) {
        let number = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let (protocol, offset) = if shape.tcp {
            (protocol::TCP, TCP_CHECKSUM)
        } else {
            (protocol::UDP, UDP_CHECKSUM)
        };
        let vnet = Vnet {
            needs_checksum: true,
            gso: match (shape.tcp, is_v6(first)) {
                (true, false) => Gso::Tcp4,
                (true, true) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            header: number(shape.headers),
            segment: number(shape.payload),
            start: number(shape.ip),
            offset: number(offset),
        };
        head[..VNET].copy_from_slice(&vnet.bytes());
        let packet = &mut head[VNET..VNET + shape.headers];
        packet.copy_from_slice(&first[..shape.headers]);
        set_length(packet, shape.ip, self.length);
        if shape.tcp {
            packet[shape.ip + 13] |= last[shape.ip + 13] & flag::PSH;
        } else {
            put16(packet, shape.ip + 4, number(self.length - shape.ip));
        }
        let sum = pseudo(packet, protocol, self.length - shape.ip).partial();
        let at = shape.ip + offset;
        packet[at..at + 2].copy_from_slice(&sum);
    }
}

impl Shape {
    /// The sender says that what it has said so far is whole.
    fn is_pushed(self, packet: &[u8]) -> bool {
        self.tcp && packet[self.ip + 13] & flag::PSH != 0
    }
}

/// The flow of a packet; None where it cannot be told.
pub(super) fn key(packet: &[u8]) -> Option<Key> {
    let header = ip_header(packet)?;
    let v6 = is_v6(packet);
    let mut addresses = [0; 32];
    let protocol = if v6 {
        addresses.copy_from_slice(&packet[8..40]);
        packet[6]
    } else {
        addresses[..8].copy_from_slice(&packet[12..20]);
        packet[9]
    };
    let is_fragment = !v6 && be16(packet, 6) & 0x3fff != 0;
    let known = protocol == protocol::TCP || protocol == protocol::UDP;
    if is_fragment || !known || packet.len() < header + 4 {
        return None;
    }
    Some(Key {
        addresses,
        ports: be32(packet, header),
        protocol,
        v6,
    })
}

/// What can be said of a packet that may be joined; None for others: with IPv4 options, flags that mean something, no data, or wrong
/// lengths or checksums. Its [`key`] is known.
fn shape(packet: &[u8], joins: Joins) -> Option<Shape> {
    let v6 = is_v6(packet);
    let (ip, length, protocol) = if v6 {
        (V6, V6 + usize::from(be16(packet, 4)), packet[6])
    } else {
        (ip_header(packet)?, usize::from(be16(packet, 2)), packet[9])
    };
    let is_plain = v6 || (ip == V4 && is_header_right(packet));
    if length != packet.len() || !is_plain {
        return None;
    }
    let tcp = protocol == protocol::TCP;
    if !(if tcp { joins.tcp } else { joins.udp }) {
        return None;
    }
    let headers = if tcp {
        let flags = *packet.get(ip + 13)?;
        // Others are told apart by the kernel too: SYN, FIN, RST, URG, CWR.
        if flags & !(flag::PSH | flag::ECE) != flag::ACK || packet.len() < ip + TCP {
            return None;
        }
        if be16(packet, ip + TCP_CHECKSUM) == OTHER_ZERO {
            return None;
        }
        ip + (usize::from(packet[ip + 12] >> 4) * 4).max(TCP)
    } else {
        let whole = packet.len() >= ip + UDP && usize::from(be16(packet, ip + 4)) == length - ip;
        if !whole || be16(packet, ip + UDP_CHECKSUM) == 0 {
            return None;
        }
        ip + UDP
    };
    let payload = length.checked_sub(headers).filter(|payload| *payload > 0)?;
    let sum = pseudo(packet, protocol, length - ip).bytes(&packet[ip..]);
    sum.is_right().then_some(Shape {
        ip,
        headers,
        payload,
        tcp,
    })
}

fn is_header_right(packet: &[u8]) -> bool {
    be16(packet, 10) != OTHER_ZERO && Sum::default().bytes(&packet[..V4]).is_right()
}

/// All of the IP header but lengths, checksum and id is equal, and the id is what cutting gives to the packet with this place.
fn have_equal_ip(first: &[u8], packet: &[u8], place: usize) -> bool {
    if is_v6(first) {
        return first[..4] == packet[..4] && first[6..8] == packet[6..8];
    }
    let may_not_be_fragmented = first[6] & 0x40 != 0;
    let id = be16(first, 4).wrapping_add((place & 0xffff) as u16);
    first[..2] == packet[..2] && first[6..10] == packet[6..10] && (may_not_be_fragmented || be16(packet, 4) == id)
}

/// All of the TCP header but PSH and the checksum is equal, and the data follows what there is.
fn have_equal_tcp(first: &[u8], packet: &[u8], shape: Shape, before: usize) -> bool {
    let ip = shape.ip;
    let sequence = be32(first, ip + 4).wrapping_add(u32::try_from(before).unwrap_or(u32::MAX));
    be32(packet, ip + 4) == sequence
        && first[ip + 8..ip + 13] == packet[ip + 8..ip + 13]
        && (first[ip + 13] ^ packet[ip + 13]) & !flag::PSH == 0
        && first[ip + 14..ip + 16] == packet[ip + 14..ip + 16]
        && first[ip + 18..shape.headers] == packet[ip + 18..shape.headers]
}
