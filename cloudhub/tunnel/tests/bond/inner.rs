//! What crosses the IP tunnel: one CUBIC connection, and a sender of numbered packets that takes all there is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tunnel::bond::{Bond, Event};

use crate::cubic::Cubic;
use crate::ms;
use crate::transport::{Receiver, Room, Sender};
use crate::world::Owner;

/// Inner MTU: fits a path's datagram with the bond's 16 bytes.
pub(crate) const MTU: usize = 1380;

/// An IPv4 packet of a flow with a number, and something else that it carries. Of TCP with 80 bytes: an acknowledgement with options.
pub(crate) fn packet(protocol: u8, port: u16, number: u64, other: u64, size: usize) -> Bytes {
    let mut packet = vec![0; size.max(60)];
    packet[0] = 0x45;
    packet[9] = protocol;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    (packet[32], packet[33]) = (if size == 80 { 0xf0 } else { 0x50 }, 0x10);
    packet[40..48].copy_from_slice(&number.to_be_bytes());
    packet[48..56].copy_from_slice(&other.to_be_bytes());
    Bytes::from(packet)
}

/// Flow, number and the rest of what [`packet`] made.
pub(crate) fn parse(packet: &Bytes) -> (u16, u64, u64) {
    let number = |at: usize| u64::from_be_bytes(packet[at..at + 8].try_into().expect("eight bytes"));
    (u16::from_be_bytes([packet[20], packet[21]]), number(40), number(48))
}

/// One TCP connection with CUBIC from the edge to the hub, through a device that takes all it sends.
pub(crate) struct Tcp {
    sender: Sender<Cubic>,
    receiver: Receiver,
    starts: Duration,
    next: u64,
    /// What each packet that is out carries.
    segments: HashMap<u64, u64>,
    resend: VecDeque<u64>,
    acks: HashMap<u64, Vec<u64>>,
    ack: u64,
    got: BTreeSet<u64>,
    in_order: u64,
    /// Segments that it had to send again.
    pub(crate) repeated: u64,
    /// When the data in order moved on, and bytes so far.
    pub(crate) history: Vec<(Duration, u64)>,
    timed_out: bool,
}

impl Tcp {
    pub(crate) fn new(starts: Duration) -> Self {
        Self {
            sender: Sender::new(starts, Cubic::new(MTU as u64), ms(60), false).with_least_timeout(ms(200)),
            receiver: Receiver::with_memory(2048),
            starts,
            next: 0,
            segments: HashMap::new(),
            resend: VecDeque::new(),
            acks: HashMap::new(),
            ack: 0,
            got: BTreeSet::new(),
            in_order: 0,
            repeated: 0,
            history: Vec::new(),
            timed_out: false,
        }
    }

    /// Payload in order between two moments, Mbit/s.
    pub(crate) fn rate(&self, from: Duration, to: Duration) -> f64 {
        let at = |moment: Duration| {
            let place = self.history.partition_point(|(at, _)| *at <= moment);
            place.checked_sub(1).map_or(0, |place| self.history[place].1)
        };
        (at(to) - at(from)) as f64 * 8.0 / (to - from).as_secs_f64() / 1e6
    }

    fn lose(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            self.resend.extend(self.segments.remove(&number));
        }
    }

    fn send(&mut self, now: Duration, bond: &mut Bond) -> Option<Duration> {
        if self.sender.timeout().is_some_and(|at| at <= now) {
            let lost = self.sender.on_timeout(now);
            self.lose(lost);
            // First a tail probe, then the timeout proper.
            if self.sender.timed_out() && self.timed_out {
                let lost = self.sender.give_up();
                self.lose(lost);
            }
            self.timed_out = self.sender.timed_out();
        }
        loop {
            match self.sender.room(now) {
                Room::Now => {}
                Room::At(at) => return Some(at),
                Room::Full => return None,
            }
            let segment = match self.resend.pop_front() {
                Some(segment) => {
                    self.repeated += 1;
                    segment
                }
                None => {
                    self.next += 1;
                    self.next - 1
                }
            };
            let number = self.sender.on_sent(now, MTU as u64);
            self.segments.insert(number, segment);
            let routed = bond.route_datagram(now, packet(6, 80, number, segment, MTU));
            routed.expect("a packet that fits");
        }
    }

    /// The longest time in which nothing came in order, between two moments.
    pub(crate) fn gap(&self, from: Duration, to: Duration) -> Duration {
        let moments = self.history.iter().map(|(at, _)| *at);
        longest_gap(moments, from, to)
    }

    fn answer(&mut self, now: Duration, bond: &mut Bond) {
        if let Some(numbers) = self.receiver.ack(now) {
            self.ack += 1;
            self.acks.insert(self.ack, numbers);
            let routed = bond.route_datagram(now, packet(6, 81, self.ack, 0, 80));
            routed.expect("a packet that fits");
        }
    }
}

impl Owner for Tcp {
    fn act(&mut self, now: Duration, [edge, hub]: [&mut Bond; 2]) -> Option<Duration> {
        if now < self.starts {
            return Some(self.starts);
        }
        let resumed = self.send(now, edge);
        self.answer(now, hub);
        [resumed, self.sender.timeout(), self.receiver.due]
            .into_iter()
            .flatten()
            .min()
    }

    fn event(&mut self, now: Duration, end: usize, bond: &mut Bond, event: Event) {
        let Event::Datagram(packet) = event else { return };
        let (port, number, segment) = parse(&packet);
        if end == 1 && port == 80 {
            self.receiver.on_packet(now, number);
            if segment >= self.in_order {
                self.got.insert(segment);
            }
            let before = self.in_order;
            while self.got.remove(&self.in_order) {
                self.in_order += 1;
            }
            if self.in_order > before {
                self.history.push((now, self.in_order * (MTU as u64 - 40)));
            }
            self.answer(now, bond);
        } else if end == 0 && port == 81 {
            let Some(numbers) = self.acks.remove(&number) else {
                return;
            };
            let (acked, lost) = self.sender.on_ack(now, &numbers, true);
            if !acked.is_empty() {
                self.timed_out = false;
            }
            for number in acked {
                self.segments.remove(&number);
            }
            self.lose(lost);
        }
    }
}

fn longest_gap(moments: impl Iterator<Item = Duration>, from: Duration, to: Duration) -> Duration {
    let mut last = from;
    let mut longest = Duration::ZERO;
    for at in moments.filter(|at| *at >= from && *at <= to).chain([to]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

/// Sends as many packets of one flow as the bond takes, edge to hub, or one in each of a time.
pub(crate) struct Flood {
    protocol: u8,
    dscp: u8,
    pub(crate) every: Duration,
    due: Duration,
    /// When each left.
    sent: Vec<Duration>,
    next: u64,
    /// When each came out, and its number.
    pub(crate) arrivals: Vec<(Duration, u64)>,
}

impl Flood {
    pub(crate) fn new(protocol: u8, dscp: u8) -> Self {
        Self {
            protocol,
            dscp,
            every: Duration::ZERO,
            due: Duration::ZERO,
            sent: Vec::new(),
            next: 0,
            arrivals: Vec::new(),
        }
    }

    /// The same with one packet in each of a time.
    pub(crate) fn paced(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// Inner bytes delivered between two moments, Mbit/s.
    pub(crate) fn rate(&self, from: Duration, to: Duration) -> f64 {
        let count = self.arrivals.iter().filter(|(at, _)| *at > from && *at <= to).count();
        (count * MTU * 8) as f64 / (to - from).as_secs_f64() / 1e6
    }

    /// How long the packets that left between two moments were on their way, ms.
    pub(crate) fn delays(&self, from: Duration, to: Duration) -> Vec<f64> {
        let sent = |number: u64| self.sent[usize::try_from(number).expect("counted")];
        let arrivals = self.arrivals.iter().map(|(at, number)| (sent(*number), *at));
        let inside = arrivals.filter(|(sent, _)| *sent > from && *sent <= to);
        inside.map(|(sent, at)| (at - sent).as_secs_f64() * 1e3).collect()
    }

    /// The longest gap between two arrivals, between two moments.
    pub(crate) fn gap(&self, from: Duration, to: Duration) -> Duration {
        longest_gap(self.arrivals.iter().map(|(at, _)| *at), from, to)
    }
}

impl Owner for Flood {
    fn act(&mut self, now: Duration, [edge, _]: [&mut Bond; 2]) -> Option<Duration> {
        while self.due <= now && edge.has_room_for_datagram() {
            self.due = if self.every.is_zero() {
                self.due
            } else {
                now + self.every
            };
            let mut packet = packet(self.protocol, 9, self.next, 0, MTU).to_vec();
            packet[1] = self.dscp << 2;
            if edge.send_datagram(now, Bytes::from(packet)).is_err() {
                break;
            }
            self.sent.push(now);
            self.next += 1;
        }
        // Without room, whoever makes some wakes us.
        (self.due > now).then_some(self.due)
    }

    fn event(&mut self, now: Duration, end: usize, _bond: &mut Bond, event: Event) {
        if let (1, Event::Datagram(packet)) = (end, event) {
            self.arrivals.push((now, parse(&packet).1));
        }
    }
}
