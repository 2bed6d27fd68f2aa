//! Packets of the IP tunnel at the receiver: each delivered once, in the order of its flow within a bound.
//!
//! - a packet's number says whether it has been delivered; its flow and sequence say what it must wait for
//! - a packet waits at most [`hold`] for those before it: 400 ms in TCP flows, so that even the death of a path is repaired before
//!   TCP sees a gap; 80 ms in other flows; not at all in real-time ones
//! - what comes later than that is delivered at once, out of order
//! - in TCP flows a packet that need not wait is held back by what others of its path had to wait lately (`playout`)
//!
//! Bounds: [`MAX_HELD`] packets a flow and the edge's memory budget over all; beyond them the flow that has waited longest goes on
//! without what it waits for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::faults::Faults;
use super::flow::FLOW_IDLE;
use super::frame::{Order, Part};
use super::path::PathId;
use super::playout::Playout;
use super::ranges::{Window, expand};
use super::violation::Violation;

/// Packets that a flow may hold: 100 Mbit/s for 240 ms.
const MAX_HELD: usize = 2048;
/// What a packet costs beside its bytes: the tree's node, the packet's handle, its arrival.
const HELD_COST: usize = 128;
/// Numbers told apart: the sender has at most half as many on their way.
const WINDOW: u64 = 64 * 1024;
/// Nothing honest skips so many numbers or a flow's sequences at once: 10 s at 1 Gbit/s.
pub(crate) const MAX_JUMP: u64 = 1 << 20;
/// Halves that wait for their other half: at 100 Mbit/s for 300 ms.
const MAX_HALVES: usize = 4096;
/// A flow's state outlives the sender's, so that it never starts anew while the sender goes on.
const IDLE: Duration = FLOW_IDLE.saturating_mul(2);
/// Packets that the owner has not taken yet.
const MAX_READY: usize = 4096;

/// How long a packet waits for those before it.
pub(crate) fn hold(order: Order) -> Duration {
    match order {
        Order::None => Duration::ZERO,
        Order::Short => Duration::from_millis(80),
        Order::Long => Duration::from_millis(400),
    }
}

#[derive(Debug)]
struct Flow {
    generation: u16,
    /// All before this have arrived, or are no longer waited for.
    expected: u64,
    held: BTreeMap<u64, Held>,
    /// What has arrived in order, and when it may be delivered.
    playing: VecDeque<(Duration, Bytes)>,
    playout: Playout,
    /// Sequences and times in order of arrival; those that are no longer held are skipped.
    arrivals: VecDeque<(u64, Duration)>,
    deadline: Option<Duration>,
    order: Order,
    used: Duration,
}

#[derive(Debug)]
struct Held {
    at: Duration,
    /// None: it does not tell what its path's packets wait.
    path: Option<PathId>,
    packet: Bytes,
}

#[derive(Debug)]
struct Half {
    part: Part,
    payload: Bytes,
    since: Duration,
}

/// A packet or a half that arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// The path that brought it, or its second half.
    pub(crate) path: PathId,
    pub(crate) number: u32,
    pub(crate) flow: u16,
    pub(crate) sequence: u32,
    pub(crate) order: Order,
    pub(crate) part: Part,
    pub(crate) payload: Bytes,
}

/// All flows that arrive.
#[derive(Debug)]
pub(crate) struct Reorder {
    seen: Window,
    flows: HashMap<u16, Flow>,
    deadlines: BTreeSet<(Duration, u16)>,
    halves: BTreeMap<u64, Half>,
    budget: usize,
    bytes: usize,
    ready: VecDeque<Bytes>,
    faults: Faults,
    pub(crate) delivered: u64,
    pub(crate) duplicates: u64,
    /// Packets that a flow went on without.
    pub(crate) skipped: u64,
    /// Packets that came after their flow had gone on.
    pub(crate) late: u64,
    /// Packets dropped because the owner does not take them.
    pub(crate) overrun: u64,
}

impl Reorder {
    /// `budget`: bytes that may wait over all flows.
    pub(crate) fn new(budget: usize, faults: Faults) -> Self {
        Self {
            seen: Window::new(WINDOW),
            flows: HashMap::new(),
            deadlines: BTreeSet::new(),
            halves: BTreeMap::new(),
            budget,
            bytes: 0,
            ready: VecDeque::new(),
            faults,
            delivered: 0,
            duplicates: 0,
            skipped: 0,
            late: 0,
            overrun: 0,
        }
    }

    /// Takes a packet or a half; Ok(false) when there is no room, so that it must not be acknowledged.
    pub(crate) fn handle(&mut self, now: Duration, mut arrival: Arrival) -> Result<bool, Violation> {
        let number = expand(arrival.number, self.seen.end());
        if number > self.seen.end() + MAX_JUMP {
            return Err(Violation::Jump("packet"));
        }
        if self.seen.contains(number) && !self.faults.dedup_off {
            self.duplicates += 1;
            return Ok(true);
        }
        if arrival.part != Part::Whole {
            match self.join(now, number, arrival.part, &arrival.payload) {
                Joined::Whole(packet) => arrival.payload = packet,
                Joined::Waits => return Ok(true),
                Joined::NoRoom => return Ok(false),
            }
        }
        self.seen.insert(number);
        if let Some(half) = self.halves.remove(&number) {
            self.bytes -= half.payload.len() + HELD_COST;
        }
        self.place(now, arrival);
        self.keep_budget(now);
        Ok(true)
    }

    fn join(&mut self, now: Duration, number: u64, part: Part, payload: &Bytes) -> Joined {
        match self.halves.get(&number) {
            Some(half) if half.part == part => Joined::Waits,
            Some(half) => {
                let (first, second) = match part {
                    Part::First => (payload, &half.payload),
                    _ => (&half.payload, payload),
                };
                let mut packet = BytesMut::with_capacity(first.len() + second.len());
                packet.extend_from_slice(first);
                packet.extend_from_slice(second);
                Joined::Whole(packet.freeze())
            }
            None => {
                let cost = payload.len() + HELD_COST;
                if self.halves.len() >= MAX_HALVES || self.bytes + cost > self.budget {
                    return Joined::NoRoom;
                }
                self.bytes += cost;
                let half = Half {
                    part,
                    payload: compact(payload.clone()),
                    since: now,
                };
                self.halves.insert(number, half);
                Joined::Waits
            }
        }
    }

    fn place(&mut self, now: Duration, arrival: Arrival) {
        let (slot, generation) = (arrival.flow & 0xfff, arrival.flow >> 12);
        if arrival.order == Order::None || self.faults.order_off {
            return self.deliver(arrival.payload);
        }
        let flow = self.flows.entry(slot).or_insert_with(|| Flow::new(generation, now));
        let newer = generation.wrapping_sub(flow.generation) & 0xf;
        if newer >= 8 {
            // A straggler of the flow that had this slot before.
            self.late += 1;
            return self.deliver(arrival.payload);
        }
        if newer > 0 {
            self.release(now, slot, u64::MAX);
            self.flows.insert(slot, Flow::new(generation, now));
        }
        let Some(flow) = self.flows.get_mut(&slot) else { return };
        (flow.used, flow.order) = (now, arrival.order);
        let sequence = expand(arrival.sequence, flow.expected);
        if sequence < flow.expected {
            self.late += 1;
            return self.deliver(arrival.payload);
        }
        if sequence > flow.expected + MAX_JUMP {
            // This end forgot the flow, or never saw its beginning.
            self.release(now, slot, u64::MAX);
        }
        let Some(flow) = self.flows.get_mut(&slot) else { return };
        if sequence > flow.expected + MAX_JUMP {
            flow.expected = sequence;
        }
        let fills = flow.held.last_key_value().is_some_and(|(last, _)| sequence < *last);
        let held = Held {
            at: now,
            // What fills a gap is what others waited for.
            path: (!fills).then_some(arrival.path),
            packet: arrival.payload,
        };
        let size = held.packet.len() + HELD_COST;
        if sequence == flow.expected && flow.held.is_empty() {
            flow.expected += 1;
            let at = flow.due(now, &held);
            if at <= now && flow.playing.is_empty() {
                return self.deliver(held.packet);
            }
            flow.playing.push_back((at, compact(held.packet)));
        } else {
            let packet = compact(held.packet);
            flow.held.insert(sequence, Held { packet, ..held });
            flow.arrivals.push_back((sequence, now));
        }
        self.bytes += size;
        let full = flow.held.len() > MAX_HELD;
        let first = flow.held.first_key_value().map_or(0, |(first, _)| *first);
        self.release(now, slot, if full { first + 1 } else { 0 });
    }

    /// Lets go what a flow holds in order, going on without what is missing below `until`.
    fn release(&mut self, now: Duration, slot: u16, until: u64) {
        let Some(flow) = self.flows.get_mut(&slot) else { return };
        while let Some(entry) = flow.held.first_entry() {
            let sequence = *entry.key();
            if sequence != flow.expected && sequence >= until {
                break;
            }
            self.skipped += sequence - flow.expected;
            flow.expected = sequence + 1;
            let held = entry.remove();
            let at = flow.due(now, &held);
            flow.playing.push_back((at, held.packet));
        }
        while let Some((sequence, _)) = flow.arrivals.front()
            && *sequence < flow.expected
        {
            flow.arrivals.pop_front();
        }
        // Whoever goes on without what is missing makes the others wait no longer.
        let due = if until > 0 { Duration::MAX } else { now };
        while let Some((at, _)) = flow.playing.front()
            && (*at <= due || flow.playing.len() > MAX_HELD)
            && let Some((_, packet)) = flow.playing.pop_front()
        {
            self.bytes -= packet.len() + HELD_COST;
            self.delivered += 1;
            self.ready.push_back(packet);
        }
        let waits = flow.arrivals.front().map(|(_, at)| *at + hold(flow.order));
        let deadline = waits.into_iter().chain(flow.playing.front().map(|(at, _)| *at)).min();
        if flow.deadline != deadline {
            if let Some(old) = flow.deadline {
                self.deadlines.remove(&(old, slot));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, slot));
            } else {
                // A burst's capacity is not kept.
                (flow.arrivals, flow.playing) = (VecDeque::new(), VecDeque::new());
            }
            flow.deadline = deadline;
        }
        self.keep_ready();
    }

    fn deliver(&mut self, packet: Bytes) {
        self.delivered += 1;
        self.ready.push_back(packet);
        self.keep_ready();
    }

    fn keep_ready(&mut self) {
        while self.ready.len() > MAX_READY {
            self.ready.pop_front();
            self.overrun += 1;
        }
    }

    /// Frees memory: the flow that has waited longest goes on, and the oldest half goes.
    fn keep_budget(&mut self, now: Duration) {
        while self.bytes > self.budget && !self.faults.memory_unbounded {
            if let Some((_, slot)) = self.deadlines.first().copied() {
                self.go_on(now, slot);
            } else if let Some((_, half)) = self.halves.pop_first() {
                self.bytes -= half.payload.len() + HELD_COST;
            } else {
                break;
            }
        }
    }

    /// The packet of the flow that has waited longest is delivered, without what is missing before it.
    fn go_on(&mut self, now: Duration, slot: u16) {
        let waited = self.flows.get(&slot).and_then(|flow| flow.arrivals.front());
        let until = waited.map_or(1, |(sequence, _)| sequence + 1);
        self.release(now, slot, until);
    }

    /// Goes on where the time is over.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        while let Some((deadline, slot)) = self.deadlines.first().copied()
            && deadline <= now
        {
            let flow = self.flows.get(&slot);
            let over = flow.is_some_and(|flow| flow.has_waited(now));
            if over {
                self.go_on(now, slot);
            } else {
                self.release(now, slot, 0);
            }
        }
        while let Some((_, half)) = self.halves.first_key_value()
            && now.saturating_sub(half.since) > 2 * hold(Order::Long)
        {
            if let Some((_, half)) = self.halves.pop_first() {
                self.bytes -= half.payload.len() + HELD_COST;
            }
        }
    }

    /// Forgets flows that are idle.
    pub(crate) fn sweep(&mut self, now: Duration) {
        self.flows
            .retain(|_, flow| flow.deadline.is_some() || now.saturating_sub(flow.used) < IDLE);
        if self.flows.is_empty() {
            self.flows = HashMap::new();
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The next packet for the owner.
    pub(crate) fn poll(&mut self) -> Option<Bytes> {
        let packet = self.ready.pop_front();
        if packet.is_none() && self.ready.capacity() > 64 {
            self.ready = VecDeque::new();
        }
        packet
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Flow {
    fn new(generation: u16, now: Duration) -> Self {
        Self {
            generation,
            expected: 0,
            held: BTreeMap::new(),
            playing: VecDeque::new(),
            playout: Playout::default(),
            arrivals: VecDeque::new(),
            deadline: None,
            order: Order::Short,
            used: now,
        }
    }

    /// When a packet whose turn has come is delivered: as late as its path's packets are, and not before those in front of it.
    fn due(&mut self, now: Duration, held: &Held) -> Duration {
        let mut at = held.at;
        if let (Some(path), Order::Long) = (held.path, self.order) {
            self.playout.note(now, path, now.saturating_sub(held.at));
            at += self.playout.delay(path);
        }
        self.playing.back().map_or(at, |(before, _)| at.max(*before))
    }

    /// Whether a packet has waited for others as long as it may.
    fn has_waited(&self, now: Duration) -> bool {
        let first = self.arrivals.front();
        first.is_some_and(|(_, at)| *at + hold(self.order) <= now)
    }
}

enum Joined {
    Whole(Bytes),
    Waits,
    NoRoom,
}

/// A small payload would keep its whole datagram in memory.
fn compact(payload: Bytes) -> Bytes {
    if payload.len() < 512 {
        Bytes::copy_from_slice(&payload)
    } else {
        payload
    }
}
