//! What a path carries next. The path asks (pull): it has room in its congestion window and pacer, and takes what suits it best.
//!
//! In order: acknowledgements, probes, the streams' control frames, urgent messages, repairs, then by priority messages, streams and
//! packets in turns. Three rules may make a slow path decline, so that a faster one takes it:
//!
//! - *repairs, single copies and acknowledgements* belong to the fastest path; the longer one waits, the slower a path may be
//! - *ECF*: what would arrive earlier by waiting for the faster paths waits, until it has waited as long as the slow path takes
//! - *spread*: packets of an ordered flow do not take a path that is slower by more than the receiver would hold the others
//!
//! Nobody declines for a path that is suspect or does not ask, so nothing waits for ever. What a path may carry at all is its `policy`'s word.

use std::time::Duration;

use bytes::Bytes;

use super::Bond;
use super::datagrams;
use super::frame::{self, DATAGRAM_OVERHEAD, Frame, HEADER, Header, MESSAGE_OVERHEAD, Order, STREAM_OVERHEAD};
use super::messages::{SMALL, Take};
use super::path::{Content, Path, PathId};
use super::policy::Carries;
use super::streams::{self, Control};
use crate::types::Priority;

/// A datagram that does not even hold an acknowledgement is none.
const MIN_BUDGET: usize = 256;
/// A frame's rest below this is not worth its header.
const MIN_PIECE: usize = 64;
/// A path may always be so much slower than the best and still take what is urgent.
const EAGER: Duration = Duration::from_millis(4);
/// A path that has something on its way and has not asked for so long does not count as a faster one.
const ABSENT: Duration = Duration::from_millis(200);

/// What a packet is made of so far.
struct Draft<'a> {
    now: Duration,
    /// Index of the path.
    at: usize,
    id: PathId,
    limit: usize,
    /// What the path may carry now.
    carries: Carries,
    packet: &'a mut Vec<u8>,
    start: usize,
    contents: Vec<Content>,
    ack_now: bool,
}

impl Draft<'_> {
    fn length(&self) -> usize {
        self.packet.len() - self.start
    }

    fn room(&self, overhead: usize) -> usize {
        self.limit.saturating_sub(self.length() + overhead)
    }

    /// Whether something of this size should go into this packet: it fits, or no packet of this path would hold it.
    fn suits(&self, size: usize, overhead: usize) -> bool {
        size <= self.room(overhead) || self.length() == HEADER
    }

    fn put(&mut self, frame: &Frame, content: Content) {
        frame::put(self.packet, frame);
        self.contents.push(content);
    }
}

/// What came of offering one kind of traffic.
enum Offered {
    /// A frame was written; there may be room for another.
    More,
    /// The packet is full.
    Full,
    /// Nothing of it for this path now.
    Nothing,
}

impl Bond {
    /// Writes the next packet for a path behind what is in `buffer`: at most `budget` bytes. None when the path has nothing to
    /// carry now. The driver calls it while the path's congestion window and pacer have room; probes of a suspect path should leave even
    /// without room.
    pub fn poll_transmit(&mut self, now: Duration, id: PathId, budget: usize, buffer: &mut Vec<u8>) -> Option<usize> {
        self.advance(now);
        let at = self.index(id)?;
        let limit = budget.min(self.paths[at].max_datagram);
        if limit < MIN_BUDGET || !self.paths[at].has_room() {
            return None;
        }
        self.paths[at].pulled = now;
        let start = buffer.len();
        let sequence = (self.paths[at].next_sequence() & 0xffff_ffff) as u32;
        let header = Header {
            ack_now: false,
            sequence,
        };
        frame::put_header(buffer, header);
        let within_rate = self.paths[at].is_within_rate(now);
        let carries = if within_rate { self.carries(at) } else { Carries::URGENT };
        let mut draft = Draft {
            now,
            at,
            id,
            limit,
            carries,
            packet: buffer,
            start,
            contents: Vec::new(),
            ack_now: false,
        };
        self.write_ack(&mut draft);
        self.write_contents(&mut draft);
        let (length, contents, ack_now) = (draft.length(), draft.contents, draft.ack_now);
        if length == HEADER {
            buffer.truncate(start);
            self.paths[at].bucket.awaited = false;
            self.paths[at].bucket.awaited = !within_rate && self.is_backlogged(id);
            return None;
        }
        buffer[start] |= u8::from(ack_now);
        self.paths[at].spend(length);
        self.paths[at].record(now, length, contents);
        Some(length)
    }

    fn write_contents(&mut self, draft: &mut Draft<'_>) {
        let path = &self.paths[draft.at];
        let due = path
            .probe_at(self.config.keep_alive, self.best(|_| true) == Some(draft.at))
            .is_some_and(|at| at <= draft.now);
        if !path.is_live() {
            if due && !self.config.faults.readmit_never {
                let waiting = self.waits();
                self.paths[draft.at].probed(draft.now, waiting, self.config.is_hub);
                draft.ack_now = true;
                if self.live() == 0 {
                    // Nothing is lost by trying: when the path is back, the most urgent is there at once.
                    draft.limit -= 1;
                    self.offer_messages(draft, Priority::Urgent);
                    draft.limit += 1;
                }
                draft.put(&Frame::Probe, Content::Probe);
            }
            return;
        }
        let declined = std::mem::take(&mut self.declined);
        loop {
            match self.fill(draft) {
                Offered::More if draft.room(0) >= MIN_PIECE => {}
                _ => break,
            }
        }
        // It may decline for what was true once.
        let asks = self.declined && self.paths[draft.at].is_unmeasured(draft.now) && !self.spares_acks(draft.at);
        self.declined |= declined;
        if draft.contents.is_empty() && (due || asks) {
            draft.ack_now = true;
            draft.put(&Frame::Probe, Content::Probe);
        }
    }

    /// One more frame.
    fn fill(&mut self, draft: &mut Draft<'_>) -> Offered {
        if let Offered::More = self.offer_control(draft) {
            return Offered::More;
        }
        match self.offer_messages(draft, Priority::Urgent) {
            Offered::Nothing => {}
            offered => return offered,
        }
        match self.offer_repairs(draft) {
            Offered::Nothing => {}
            offered => return offered,
        }
        for priority in Priority::ALL {
            if !draft.carries.has(priority) {
                continue;
            }
            let turn = self.turns[priority.index()];
            for kind in (turn..turn + 3).map(|kind| kind % 3) {
                let offered = match kind {
                    0 if priority != Priority::Urgent => self.offer_messages(draft, priority),
                    1 => self.offer_stream(draft, priority),
                    2 => self.offer_datagram(draft, priority),
                    _ => Offered::Nothing,
                };
                if !matches!(offered, Offered::Nothing) {
                    self.turns[priority.index()] = (kind + 1) % 3;
                    return offered;
                }
            }
        }
        self.finish_what_is_barred(draft)
    }

    /// Messages that nobody may carry any more are finished where they take the room that urgent ones need.
    fn finish_what_is_barred(&mut self, draft: &mut Draft<'_>) -> Offered {
        if !self.outbox.is_stuck(draft.carries) {
            return Offered::Nothing;
        }
        let barred = self.barred();
        for priority in Priority::ALL.into_iter().filter(|priority| barred[priority.index()]) {
            match self.offer_begun(draft, priority) {
                Offered::Nothing => {}
                offered => return offered,
            }
        }
        Offered::Nothing
    }

    fn write_ack(&mut self, draft: &mut Draft<'_>) {
        if self.acks.is_due(draft.now) {
            let paths = self.ack_paths();
            self.acks.carry_on(draft.now, paths);
        }
        if self.acks.on.is_empty() {
            return;
        }
        let waited = draft.now.saturating_sub(self.acks.since);
        let chosen = self.acks.on.iter().position(|path| *path == draft.id);
        // When a chosen path has no room, another one helps out.
        let helps = self.helps_with_acks(draft.at, waited, EAGER);
        let Some(place) = chosen.or(helps.then_some(0)) else {
            return;
        };
        self.acks.on.swap_remove(place);
        let received = self.paths.iter_mut().map(|path| (path.id.0, &mut path.received));
        let blocks = self.acks.blocks(draft.now, received);
        if !blocks.is_empty() {
            frame::put(draft.packet, &Frame::Ack(blocks));
        }
    }

    /// The two best live paths, and metered ones for what they brought themselves; when none is live, the one that heard the peer last.
    fn ack_paths(&self) -> Vec<PathId> {
        let best = self.best(|at| !self.spares_acks(at));
        let second = self.best(|at| Some(at) != best && !self.spares_acks(at));
        let own = (0..self.paths.len()).filter(|at| {
            let path = &self.paths[*at];
            self.spares_acks(*at) && path.is_live() && path.received.is_unreported()
        });
        let heard = || {
            let paths = self.paths.iter().enumerate();
            paths.max_by_key(|(_, path)| path.received.heard).map(|(at, _)| at)
        };
        let chosen = best.or_else(heard).into_iter().chain(second).chain(own);
        chosen.map(|at| self.paths[at].id).collect()
    }

    /// The live path with the shortest round trip among those wanted.
    pub(super) fn best(&self, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let live = self.paths.iter().enumerate().filter(|(_, path)| path.is_live());
        let wanted = live.filter(|(at, _)| wanted(*at));
        wanted.min_by_key(|(_, path)| path.rtt.smoothed).map(|(at, _)| at)
    }

    /// Live paths.
    pub(super) fn live(&self) -> usize {
        self.paths.iter().filter(|path| path.is_live()).count()
    }

    /// The paths other than this one that could take the same and are asking.
    pub(super) fn others(&self, now: Duration, at: usize, priority: Priority) -> impl Iterator<Item = &Path> {
        self.paths.iter().enumerate().filter_map(move |(other, path)| {
            let asks = path.in_flight == 0 || now.saturating_sub(path.pulled) < ABSENT;
            (other != at && path.is_live() && asks && self.may_carry(other, priority)).then_some(path)
        })
    }

    /// Whether a path is fast enough for something that belongs to the fastest, which has waited since `since`. The path that has
    /// just lost it counts as slower: losses come in bursts.
    fn is_eager(&mut self, draft: &Draft<'_>, priority: Priority, since: Duration, lost_on: Option<PathId>) -> bool {
        if !self.is_its_turn(draft.now, draft.at, priority, since) {
            return false;
        }
        let expected = |path: &Path| {
            let again = if lost_on == Some(path.id) { 1.0 } else { path.loss() };
            path.rtt.smoothed.mul_f64(1.0 + again)
        };
        let own = expected(&self.paths[draft.at]);
        let best = self.others(draft.now, draft.at, priority).map(expected).min();
        let waited = draft.now.saturating_sub(since);
        let eager = best.is_none_or(|best| own <= best + EAGER.max(waited));
        self.declined |= !eager;
        eager
    }

    /// ECF: whether something of `queued` bytes that waits since `since` should not rather wait for the faster paths. What is little
    /// belongs to the fastest.
    fn is_worth(&mut self, draft: &Draft<'_>, priority: Priority, queued: usize, since: Duration) -> bool {
        if queued <= SMALL {
            // What a thin flow makes of the faster paths' rates says nothing of what they can.
            return self.is_eager(draft, priority, since, None);
        }
        if !self.is_its_turn(draft.now, draft.at, priority, since) {
            return false;
        }
        let own = self.paths[draft.at].rtt.smoothed;
        let faster = self
            .others(draft.now, draft.at, priority)
            .filter(|path| path.rtt.smoothed < own);
        let (rate, best) = faster.fold((0, own), |sum, path| {
            (sum.0 + path.rate(), sum.1.min(path.rtt.smoothed))
        });
        if best == own || rate == 0 {
            // With nothing known of the faster paths, the spread decides.
            return true;
        }
        let drained = Duration::from_micros((queued as u64).saturating_mul(1_000_000) / rate);
        let waited = draft.now.saturating_sub(since);
        let worth = best + drained >= own || waited >= own;
        self.declined |= !worth;
        worth
    }

    /// Whether the receiver would hold this path's packets for the faster ones' too long.
    fn is_within_spread(&mut self, draft: &Draft<'_>, priority: Priority, order: Order) -> bool {
        let spread = match order {
            Order::None => return true,
            Order::Short => Duration::from_millis(60),
            Order::Long => Duration::from_millis(150),
        };
        let own = self.paths[draft.at].rtt.least();
        let best = self
            .others(draft.now, draft.at, priority)
            .map(|path| path.rtt.least())
            .min();
        let within = best.is_none_or(|best| own <= best + spread);
        self.declined |= !within;
        within
    }

    fn offer_control(&mut self, draft: &mut Draft<'_>) -> Offered {
        if draft.room(0) < MIN_PIECE || !self.streams.has_control(draft.carries) {
            return Offered::Nothing;
        }
        let Some((id, control, value)) = self.streams.take_control(draft.carries) else {
            return Offered::Nothing;
        };
        let code = u32::try_from(value).unwrap_or(u32::MAX);
        let frame = match control {
            Control::Credit => Frame::Credit {
                id: id.0,
                offset: value,
            },
            Control::Reset => Frame::Reset { id: id.0, code },
            Control::Stop => Frame::Stop { id: id.0, code },
        };
        draft.put(&frame, Content::Control(id, control));
        Offered::More
    }

    fn offer_messages(&mut self, draft: &mut Draft<'_>, priority: Priority) -> Offered {
        if !self.outbox.wants(priority) || !draft.carries.has(priority) {
            return Offered::Nothing;
        }
        let copies = self.copies(priority);
        self.outbox.start(priority, draft.id, copies);
        self.offer_begun(draft, priority)
    }

    /// A piece of a message that has begun.
    fn offer_begun(&mut self, draft: &mut Draft<'_>, priority: Priority) -> Offered {
        let others = self.others(draft.now, draft.at, priority).next().is_some();
        let offers: Vec<_> = self.outbox.offers(priority, draft.id, others).take(8).collect();
        for offer in offers {
            let whole = offer.left.min(SMALL);
            if draft.room(MESSAGE_OVERHEAD) < whole.min(MIN_PIECE) || !draft.suits(whole.min(1024), MESSAGE_OVERHEAD) {
                return Offered::Full;
            }
            let wanted = offer.copy
                || self.is_eager(draft, priority, offer.since, None)
                || (offer.left > SMALL && self.is_worth(draft, priority, offer.left, offer.since));
            if !wanted {
                continue;
            }
            let interval = if offer.left > SMALL {
                self.paths[draft.at].rtt.smoothed * 3 / 2 + Duration::from_millis(20)
            } else {
                self.resend_interval()
            };
            let take = Take {
                id: offer.id,
                path: draft.id,
                room: draft.room(MESSAGE_OVERHEAD),
                interval,
                again: self.again(draft.at, priority),
            };
            let Some(piece) = self.outbox.take(draft.now, &take) else {
                continue;
            };
            let frame = Frame::Message {
                id: (piece.id & 0xffff_ffff) as u32,
                priority: piece.priority,
                offset: usize::try_from(piece.range.start).unwrap_or(0),
                size: piece.size,
                payload: piece.payload,
            };
            draft.ack_now |= priority <= Priority::Interactive;
            draft.put(&frame, Content::Message(piece.id, piece.range));
            return Offered::More;
        }
        Offered::Nothing
    }

    fn offer_repairs(&mut self, draft: &mut Draft<'_>) -> Offered {
        if let Some(repair) = self.datagrams.next_repair(draft.carries)
            && self.is_eager(draft, repair.priority, repair.since, repair.lost_on)
        {
            let overhead = DATAGRAM_OVERHEAD - HEADER;
            if !draft.suits(repair.size, overhead) {
                return Offered::Full;
            }
            let room = draft.room(overhead);
            if let Some(piece) = self.datagrams.repair(draft.carries, room) {
                write_datagram(draft, piece);
                return Offered::Full;
            }
        }
        if let Some((since, priority)) = self.streams.repair_since(draft.carries)
            && draft.room(STREAM_OVERHEAD) >= MIN_PIECE
            && self.is_eager(draft, priority, since, None)
            && let Some(piece) = self.streams.repair(priority, draft.room(STREAM_OVERHEAD))
        {
            self.stream_repairs += 1;
            write_stream(draft, piece);
            return Offered::More;
        }
        Offered::Nothing
    }

    fn offer_stream(&mut self, draft: &mut Draft<'_>, priority: Priority) -> Offered {
        let Some((since, queued)) = self.streams.backlog(priority) else {
            return Offered::Nothing;
        };
        if !self.is_worth(draft, priority, queued, since) {
            return Offered::Nothing;
        }
        if !draft.suits(queued.min(1024), STREAM_OVERHEAD) {
            return Offered::Full;
        }
        match self.streams.take(priority, draft.room(STREAM_OVERHEAD)) {
            Some(piece) => {
                write_stream(draft, piece);
                Offered::More
            }
            None => Offered::Nothing,
        }
    }

    fn offer_datagram(&mut self, draft: &mut Draft<'_>, priority: Priority) -> Offered {
        if !self.datagrams.may_start() {
            return Offered::Nothing;
        }
        let queued = self.datagrams.flows.bytes(priority);
        let since = self.datagrams.flows.backlog(priority).unwrap_or(draft.now);
        let Some((waiting, order)) = self.datagrams.flows.head(priority) else {
            return Offered::Nothing;
        };
        let size = waiting.packet.len();
        if !self.is_within_spread(draft, priority, order) || !self.is_worth(draft, priority, queued, since) {
            return Offered::Nothing;
        }
        let overhead = DATAGRAM_OVERHEAD - HEADER;
        if !draft.suits(size, overhead) {
            return Offered::Full;
        }
        match self.datagrams.start(draft.now, priority, draft.room(overhead)) {
            Some(piece) => {
                write_datagram(draft, piece);
                Offered::Full
            }
            None => Offered::Nothing,
        }
    }
}

fn write_datagram(draft: &mut Draft<'_>, piece: datagrams::Piece) {
    let content = Content::Datagram(piece.number, piece.part);
    let frame = Frame::Datagram {
        number: (piece.number & 0xffff_ffff) as u32,
        flow: piece.flow,
        sequence: piece.sequence,
        order: piece.order,
        part: piece.part,
        payload: piece.payload,
    };
    draft.put(&frame, content);
}

fn write_stream(draft: &mut Draft<'_>, piece: streams::Piece) {
    let frame = Frame::Stream {
        id: piece.id.0,
        priority: piece.priority,
        offset: piece.range.start,
        fin: piece.fin,
        payload: Bytes::from(piece.payload),
    };
    draft.ack_now |= piece.priority <= Priority::Interactive && piece.range.end - piece.range.start < 512;
    draft.put(&frame, Content::Stream(piece.id, piece.range, piece.fin));
}
