//! Inner flows of the IP tunnel at the sender: who is who, how urgent, in which order, and a queue each.
//!
//! - [`classify`] (pure): an IP packet → [`Key`] (5-tuple and DSCP; IPv6 flow label where ports are hidden), priority, [`Order`]
//! - [`Flows`]: at most [`MAX_FLOWS`] slots. A slot that is used again gets the next generation, so that the receiver knows a new
//!   flow from an old one's stragglers. Within a priority the flows take turns (deficit round robin); one that was quiet goes first
//!
//! On failure: a full queue is [`SendError::Busy`](super::SendError::Busy), never a drop; when every slot has packets waiting, a new flow is Busy too.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::codel::{self, Codel};
use super::frame::Order;
use crate::types::Priority;

/// Slots: 12 bits on the wire.
pub const MAX_FLOWS: usize = 4096;
/// A flow without packets for so long is forgotten.
pub(crate) const FLOW_IDLE: Duration = Duration::from_secs(60);
/// A turn of a flow: a packet of the usual size.
const QUANTUM: usize = 1514;
/// A flow that was quiet for so long goes before those that keep the queue full: less than 50 packets a second.
const QUIET: Duration = Duration::from_millis(20);

/// What makes packets one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    source: [u8; 16],
    destination: [u8; 16],
    /// Both ports, or the flow label.
    ports: u32,
    protocol: u8,
    dscp: u8,
}

/// How a packet is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) key: Key,
    pub(crate) priority: Priority,
    pub(crate) order: Order,
}

mod protocol {
    pub(super) const ICMP: u8 = 1;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ICMP6: u8 = 58;
    /// With ports where TCP has them: TCP, UDP, DCCP, SCTP, UDP-Lite.
    pub(super) const WITH_PORTS: [u8; 5] = [TCP, UDP, 33, 132, 136];
}

/// Stands for TCP where it only acknowledges: a number that IANA keeps for experiments.
const BARE_ACK: u8 = 253;

/// Whether a packet is a TCP acknowledgement without data and without SYN, FIN or RST.
fn is_bare_ack(packet: &[u8], protocol: u8) -> bool {
    let header = match packet[0] >> 4 {
        4 => usize::from(packet[0] & 0xf) * 4,
        _ => 40,
    };
    let fragment = packet[0] >> 4 == 4 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    let Some(tcp) = packet.get(header..).filter(|_| protocol == protocol::TCP && !fragment) else {
        return false;
    };
    tcp.len() >= 20 && usize::from(tcp[12] >> 4) * 4 >= tcp.len() && tcp[13] & 0x07 == 0 && tcp[13] & 0x10 != 0
}

/// Reads an IPv4 or IPv6 header; None where there is none.
pub(crate) fn classify(packet: &[u8]) -> Option<Class> {
    let key = match packet.first()? >> 4 {
        4 => key_of_v4(packet)?,
        6 => key_of_v6(packet)?,
        _ => return None,
    };
    let priority = match key.dscp {
        // Network control, expedited, voice, telephony, video (RFC 4594); AF4x.
        32 | 34 | 36 | 38 | 40 | 44 | 46 | 48 | 56 => Priority::Interactive,
        // Lower effort (RFC 8622) and the old scavenger CS1.
        1 | 8 => Priority::Bulk,
        _ => Priority::Normal,
    };
    if is_bare_ack(packet, key.protocol) {
        // A queue of its own before its connection's data, and no wait for others: the newest says all.
        let key = Key {
            protocol: BARE_ACK,
            ..key
        };
        return Some(Class {
            key,
            priority,
            order: Order::None,
        });
    }
    let realtime = matches!(key.dscp, 32 | 40 | 44 | 46);
    let order = match key.protocol {
        protocol::TCP => Order::Long,
        protocol::ICMP | protocol::ICMP6 => Order::None,
        _ if realtime => Order::None,
        _ => Order::Short,
    };
    Some(Class { key, priority, order })
}

fn key_of_v4(packet: &[u8]) -> Option<Key> {
    let header = usize::from(packet[0] & 0xf) * 4;
    if header < 20 || packet.len() < header {
        return None;
    }
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source[..4].copy_from_slice(&packet[12..16]);
    destination[..4].copy_from_slice(&packet[16..20]);
    // Fragments after the first have no ports, so none has.
    let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    Some(Key {
        source,
        destination,
        ports: if fragment {
            0
        } else {
            ports(packet[9], &packet[header..])
        },
        protocol: packet[9],
        dscp: packet[1] >> 2,
    })
}

fn key_of_v6(packet: &[u8]) -> Option<Key> {
    if packet.len() < 40 {
        return None;
    }
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&packet[8..24]);
    destination.copy_from_slice(&packet[24..40]);
    let head = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
    let protocol = packet[6];
    Some(Key {
        source,
        destination,
        ports: match ports(protocol, &packet[40..]) {
            0 => head & 0xf_ffff,
            ports => ports,
        },
        protocol,
        dscp: (head >> 22) as u8 & 0x3f,
    })
}

fn ports(protocol: u8, rest: &[u8]) -> u32 {
    match rest {
        [a, b, c, d, ..] if protocol::WITH_PORTS.contains(&protocol) => u32::from_be_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}

/// A packet that waits for a path.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) packet: Bytes,
    pub(crate) since: Duration,
    /// Its sender does not wait for room: to slow it down, something of it is dropped.
    pub(crate) is_routed: bool,
}

/// A packet that is leaving, with its place in its flow.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) packet: Bytes,
    /// Generation and slot.
    pub(crate) flow: u16,
    pub(crate) sequence: u32,
    pub(crate) order: Order,
}

#[derive(Debug)]
struct Flow {
    class: Class,
    generation: u16,
    next: u32,
    queue: VecDeque<Waiting>,
    codel: Codel,
    deficit: usize,
    used: Duration,
    /// Second chance for the hand that looks for a slot.
    referenced: bool,
}

/// All flows that leave.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    by_key: HashMap<Key, u16>,
    slots: Vec<Flow>,
    hand: usize,
    ready: [VecDeque<u16>; 4],
    bytes: [usize; 4],
    /// Since when packets of a priority have been waiting without a break.
    backlog: [Option<Duration>; 4],
    /// Packets dropped and marked so that their senders slow down.
    pub(crate) dropped: u64,
    pub(crate) marked: u64,
}

impl Flows {
    /// Queues a packet; false when there is no slot for its flow.
    pub(crate) fn push(&mut self, class: Class, waiting: Waiting) -> bool {
        let now = waiting.since;
        let Some(slot) = self.slot(now, class) else {
            return false;
        };
        let flow = &mut self.slots[usize::from(slot)];
        let lane = class.priority.index();
        if flow.queue.is_empty() {
            if now.saturating_sub(flow.used) >= QUIET || flow.next == 0 {
                flow.deficit = QUANTUM;
                self.ready[lane].push_front(slot);
            } else {
                self.ready[lane].push_back(slot);
            }
        }
        (flow.used, flow.referenced) = (now, true);
        self.bytes[lane] += waiting.packet.len();
        self.backlog[lane].get_or_insert(now);
        flow.queue.push_back(waiting);
        true
    }

    fn slot(&mut self, now: Duration, class: Class) -> Option<u16> {
        if let Some(slot) = self.by_key.get(&class.key) {
            return Some(*slot);
        }
        let mut flow = Flow {
            class,
            generation: 0,
            next: 0,
            queue: VecDeque::new(),
            codel: Codel::default(),
            deficit: 0,
            used: now,
            referenced: true,
        };
        let slot = if self.slots.len() < MAX_FLOWS {
            self.slots.push(flow);
            self.slots.len() - 1
        } else {
            let slot = self.evict(now)?;
            flow.generation = (self.slots[slot].generation + 1) & 0xf;
            self.by_key.remove(&self.slots[slot].class.key);
            self.slots[slot] = flow;
            slot
        };
        let slot = u16::try_from(slot).ok()?;
        self.by_key.insert(class.key, slot);
        Some(slot)
    }

    /// Whether packets of this flow wait.
    pub(crate) fn is_waiting(&self, key: &Key) -> bool {
        let slot = self.by_key.get(key);
        slot.is_some_and(|slot| !self.slots[usize::from(*slot)].queue.is_empty())
    }

    /// Whether there is a slot for a new flow.
    pub(crate) fn has_slot(&self) -> bool {
        self.ready.iter().map(VecDeque::len).sum::<usize>() < MAX_FLOWS
    }

    /// A slot without packets that was not used lately: two turns of the hand at most.
    fn evict(&mut self, now: Duration) -> Option<usize> {
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let flow = &mut self.slots[self.hand];
            let idle = !flow.referenced || now.saturating_sub(flow.used) >= FLOW_IDLE;
            if flow.queue.is_empty() && idle {
                return Some(self.hand);
            }
            flow.referenced = false;
        }
        None
    }

    /// The packet of this priority whose turn it is, and how its flow is put in order.
    pub(crate) fn head(&mut self, priority: Priority) -> Option<(&Waiting, Order)> {
        let lane = priority.index();
        loop {
            let slot = usize::from(*self.ready[lane].front()?);
            let flow = &mut self.slots[slot];
            let size = flow.queue.front().map_or(0, |waiting| waiting.packet.len());
            if flow.deficit >= size {
                break;
            }
            flow.deficit += QUANTUM;
            self.ready[lane].rotate_left(1);
        }
        let slot = usize::from(*self.ready[lane].front()?);
        let flow = &self.slots[slot];
        Some((flow.queue.front()?, flow.class.order))
    }

    /// Takes the packet that [`Self::head`] showed.
    pub(crate) fn take(&mut self, now: Duration, priority: Priority) -> Option<Leaving> {
        let lane = priority.index();
        let slot = *self.ready[lane].front()?;
        let flow = &mut self.slots[usize::from(slot)];
        let mut waiting = flow.queue.pop_front()?;
        flow.deficit = flow.deficit.saturating_sub(waiting.packet.len());
        self.bytes[lane] -= waiting.packet.len();
        let waited = now.saturating_sub(waiting.since);
        // The last one is not dropped: nothing would tell that it is missing.
        if waiting.is_routed && flow.codel.is_due(now, waited) && flow.queue.len() > 1 {
            if let Some(marked) = codel::mark(&waiting.packet) {
                waiting.packet = marked;
                self.marked += 1;
            } else if let Some(next) = flow.queue.pop_front() {
                self.bytes[lane] -= next.packet.len();
                self.dropped += 1;
            }
        }
        let leaving = Leaving {
            packet: waiting.packet,
            flow: (flow.generation << 12) | slot,
            sequence: flow.next,
            order: flow.class.order,
        };
        flow.next = flow.next.wrapping_add(1);
        if flow.queue.is_empty() {
            // A burst's capacity is not kept for a flow that is quiet.
            flow.queue = VecDeque::new();
            self.ready[lane].pop_front();
        }
        if self.ready[lane].is_empty() {
            self.backlog[lane] = None;
        }
        Some(leaving)
    }

    /// Drops what has waited longer than `lifetime` in the priorities that are `barred`; returns how many packets.
    pub(crate) fn expire(&mut self, now: Duration, lifetime: Duration, barred: [bool; 4]) -> u64 {
        let mut dropped = 0;
        for (lane, _) in barred.into_iter().enumerate().filter(|(_, barred)| *barred) {
            let slots = std::mem::take(&mut self.ready[lane]);
            for slot in slots {
                let flow = &mut self.slots[usize::from(slot)];
                while let Some(first) = flow.queue.front()
                    && now.saturating_sub(first.since) > lifetime
                {
                    self.bytes[lane] -= first.packet.len();
                    flow.queue.pop_front();
                    dropped += 1;
                }
                if !flow.queue.is_empty() {
                    self.ready[lane].push_back(slot);
                }
            }
            if self.ready[lane].is_empty() {
                self.backlog[lane] = None;
            }
        }
        dropped
    }

    /// Forgets the flows that have been idle, when all are: the slots keep their generations otherwise.
    pub(crate) fn sweep(&mut self, now: Duration) {
        while let Some(flow) = self.slots.last()
            && flow.queue.is_empty()
            && flow.generation == 0
            && now.saturating_sub(flow.used) >= 4 * FLOW_IDLE
        {
            self.by_key.remove(&flow.class.key);
            self.slots.pop();
        }
        if self.slots.is_empty() {
            *self = Self::default();
        }
    }

    /// Bytes that wait in a priority.
    pub(crate) fn bytes(&self, priority: Priority) -> usize {
        self.bytes[priority.index()]
    }

    /// Bytes that wait.
    pub(crate) fn total(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// Since when a priority has had packets waiting.
    pub(crate) fn backlog(&self, priority: Priority) -> Option<Duration> {
        self.backlog[priority.index()]
    }

    /// Slots in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, dscp: u8, ports: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![
            0x45,
            dscp << 2,
            0,
            24,
            0,
            0,
            0x40,
            0,
            64,
            protocol,
            0,
            0,
            10,
            0,
            0,
            1,
            10,
            0,
            0,
            2,
        ];
        packet.extend(ports);
        packet
    }

    fn waits(since: Duration, packet: Bytes) -> Waiting {
        Waiting {
            packet,
            since,
            is_routed: false,
        }
    }

    #[test]
    fn an_acknowledgement_without_data_is_a_flow_without_order() {
        let tcp = |flags: u8, data: usize| {
            let mut packet = v4(6, 0, [0, 80, 1, 2]);
            packet.resize(40 + data, 0);
            (packet[32], packet[33]) = (0x50, flags);
            classify(&packet).unwrap()
        };
        assert_eq!(tcp(0x10, 0).order, Order::None);
        assert_ne!(tcp(0x10, 0).key, tcp(0x10, 9).key);
        for data in [tcp(0x10, 1), tcp(0x11, 0), tcp(0x12, 0), tcp(0x14, 0)] {
            assert_eq!((data.order, data.key), (Order::Long, tcp(0x18, 100).key));
        }
    }

    fn v6(next: u8, label: u32) -> Vec<u8> {
        let mut packet = vec![0; 48];
        packet[..4].copy_from_slice(&(0x6000_0000 | label).to_be_bytes());
        packet[6] = next;
        packet
    }

    #[test]
    fn a_flow_is_its_five_tuple_and_dscp_or_its_label() {
        let key = |packet: &[u8]| classify(packet).unwrap().key;
        let tcp = v4(6, 0, [0, 80, 1, 2]);
        assert_eq!(key(&tcp), key(&tcp));
        assert_ne!(key(&tcp), key(&v4(6, 0, [0, 80, 1, 3])));
        assert_ne!(key(&tcp), key(&v4(6, 8, [0, 80, 1, 2])));
        assert_ne!(key(&tcp), key(&v4(17, 0, [0, 80, 1, 2])));
        let mut fragment = v4(17, 0, [9, 9, 9, 9]);
        fragment[6] = 0x20;
        let mut later = v4(17, 0, [1, 2, 3, 4]);
        later[7] = 9;
        assert_eq!(key(&fragment), key(&later), "a fragment has no ports");
        // ESP hides the ports.
        assert_ne!(key(&v6(50, 1)), key(&v6(50, 2)));
        assert!(classify(&[0x45; 10]).is_none() && classify(&[0x60; 39]).is_none() && classify(&[]).is_none());
    }

    #[test]
    fn urgency_comes_from_dscp_and_order_from_the_protocol() {
        let class = |packet: &[u8]| {
            let class = classify(packet).unwrap();
            (class.priority, class.order)
        };
        assert_eq!(class(&v4(6, 0, [0; 4])), (Priority::Normal, Order::Long));
        assert_eq!(class(&v4(17, 46, [0; 4])), (Priority::Interactive, Order::None));
        assert_eq!(class(&v4(17, 8, [0; 4])), (Priority::Bulk, Order::Short));
        assert_eq!(class(&v4(1, 0, [0; 4])), (Priority::Normal, Order::None));
        assert_eq!(class(&v6(58, 0)), (Priority::Normal, Order::None));
    }

    #[test]
    fn a_full_table_evicts_a_quiet_flow_and_gives_its_slot_the_next_generation() {
        let mut flows = Flows::default();
        let mut now = Duration::ZERO;
        let send = |flows: &mut Flows, now, n: u32| {
            let packet = Bytes::from(v4(17, 0, n.to_be_bytes()));
            flows.push(classify(&packet).unwrap(), waits(now, packet))
        };
        // One keeps a packet waiting; the others are quiet.
        assert!(send(&mut flows, now, 1_000_000));
        for n in 0..3 * MAX_FLOWS as u32 {
            now += Duration::from_millis(1);
            assert!(send(&mut flows, now, n));
            let flow = loop {
                flows.head(Priority::Normal).unwrap();
                let leaving = flows.take(now, Priority::Normal).unwrap();
                if leaving.packet[20..24] == n.to_be_bytes() {
                    break leaving.flow;
                }
                // The one that waits goes on waiting.
                assert!(send(&mut flows, now, 1_000_000));
            };
            if n as usize > MAX_FLOWS {
                assert!(flow >> 12 > 0, "slot {flow:#x} at {n}");
            }
        }
        assert_eq!(flows.len(), MAX_FLOWS);
    }

    #[test]
    fn a_quiet_flow_passes_a_full_queue_and_flows_take_turns() {
        let mut flows = Flows::default();
        let now = Duration::from_secs(1);
        let packet = |port: u8| {
            let mut packet = v4(6, 0, [port; 4]);
            packet.resize(1400, 0);
            Bytes::from(packet)
        };
        for _ in 0..10 {
            for port in [1, 2] {
                assert!(flows.push(classify(&packet(port)).unwrap(), waits(now, packet(port))));
            }
        }
        flows.head(Priority::Normal).unwrap();
        flows.take(now, Priority::Normal).unwrap();
        assert!(flows.push(classify(&packet(3)).unwrap(), waits(now, packet(3))));
        let order: Vec<u8> = std::iter::from_fn(|| {
            flows.head(Priority::Normal)?;
            Some(flows.take(now, Priority::Normal)?.packet[20])
        })
        .collect();
        assert_eq!(order[0], 3);
        let first_ten = &order[1..11];
        let ones = first_ten.iter().filter(|port| **port == 1).count();
        assert!((4..=6).contains(&ones), "{order:?}");
        assert_eq!(flows.total(), 0);
        assert_eq!(flows.backlog(Priority::Normal), None);
    }
}
