//! Messages: from a bounded queue a priority, in one piece or many, over one path or several, until the peer has them.
//!
//! - small ones ([`SMALL`]) in as many copies as asked, each over a path of its own; where paths lose much, the fastest carries its copy
//!   again a little later. Without an answer another copy follows at 1.25 round trips of the fastest path, over the next one
//! - larger ones once, in pieces over the paths that suit; what is unanswered after 1.5 round trips goes again
//! - at the receiver a message's number says whether it was delivered; what is incomplete waits within a budget
//!
//! Numbers are given when a message starts, so a window of them bounds both ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::faults::Faults;
use super::path::{Loss, PathId};
use super::policy::Carries;
use super::ranges::{RangeSet, Window, expand};
use super::violation::Violation;
use crate::types::Priority;

/// Up to this size a message is worth several copies, bytes.
pub(crate) const SMALL: usize = 2048;
/// Messages that wait in one priority.
const MAX_WAITING: usize = 64;
/// Bytes that wait in one priority.
const MAX_WAITING_BYTES: usize = 256 * 1024;
/// Messages on their way at once.
const MAX_ACTIVE: usize = 128;
/// Their bytes, at which no other starts.
const MAX_ACTIVE_BYTES: usize = 512 * 1024;
/// Numbers from the oldest on its way to the newest.
const MAX_SPAN: u64 = 512;
/// The receiver's window over completed numbers.
const WINDOW: u64 = 4 * MAX_SPAN;
/// What the receiver keeps of incomplete messages, bytes: the sender has less on its way.
const MAX_PARTIAL: usize = 2 * MAX_ACTIVE_BYTES;
/// What a started message costs beside its bytes.
const PARTIAL_COST: usize = 256;
/// Delivered bytes that the owner has not taken; beyond them messages are dropped, which the contract allows: relay repeats.
const MAX_READY: usize = 1 << 20;
/// Losses of a small message that the peer may report: at 20 % loss one in 10^22 gets there.
const MAX_ATTEMPTS: u8 = 32;
/// The longest wait before another repetition.
const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// One copy of a small message on its way over a path.
#[derive(Debug)]
struct Pass {
    path: PathId,
    next: u64,
    /// All of it was sent, and nothing of it was lost.
    flying: bool,
    /// How often, and when, it goes over the same path again.
    again: u32,
    again_at: Option<Duration>,
}

#[derive(Debug)]
struct Outgoing {
    priority: Priority,
    payload: Bytes,
    since: Duration,
    copies: usize,
    acked: RangeSet,
    passes: Vec<Pass>,
    /// Large messages: what was sent once, and what is to be sent again.
    next: u64,
    resend: RangeSet,
    due: Option<Duration>,
    interval: Duration,
    attempts: u32,
    /// When the peer told of losses last.
    reported_at: Option<Duration>,
    /// How often the timer has repeated it.
    round: u32,
    last_path: Option<PathId>,
}

impl Outgoing {
    fn is_small(&self) -> bool {
        self.payload.len() <= SMALL
    }

    /// An empty message counts as one byte.
    fn end(&self) -> u64 {
        self.payload.len().max(1) as u64
    }

    fn wants(&self) -> bool {
        if self.is_small() {
            self.passes.len() < self.copies || self.passes.iter().any(|pass| pass.next < self.end())
        } else {
            self.next < self.end() || !self.resend.is_empty()
        }
    }

    /// A path's copy, which is begun where there is none.
    fn pass(&mut self, path: PathId, again: u32) -> &mut Pass {
        let at = self.passes.iter().position(|pass| pass.path == path);
        let at = at.unwrap_or_else(|| {
            self.passes.push(Pass {
                path,
                next: 0,
                flying: false,
                again,
                again_at: None,
            });
            self.passes.len() - 1
        });
        &mut self.passes[at]
    }

    /// What this path should send of it.
    fn next_range(&self, path: PathId, room: u64) -> Option<Range<u64>> {
        let end = self.end();
        if !self.is_small() {
            if let Some(range) = self.resend.first() {
                return Some(range.start..range.end.min(range.start + room));
            }
            return (self.next < end).then(|| self.next..end.min(self.next + room));
        }
        if let Some(pass) = self.passes.iter().find(|pass| pass.path == path) {
            return (pass.next < end).then(|| pass.next..end.min(pass.next + room));
        }
        (self.passes.len() < self.copies).then(|| 0..end.min(room))
    }
}

/// A piece of a message to write.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) id: u64,
    pub(crate) priority: Priority,
    pub(crate) range: Range<u64>,
    pub(crate) size: usize,
    pub(crate) payload: Bytes,
}

/// What a path takes of a message.
#[derive(Debug)]
pub(crate) struct Take {
    pub(crate) id: u64,
    pub(crate) path: PathId,
    /// Bytes at most.
    pub(crate) room: usize,
    /// How long to wait for an answer.
    pub(crate) interval: Duration,
    /// How often a copy goes over this path again, and after how long.
    pub(crate) again: (u32, Duration),
}

/// A piece of a message that arrived.
#[derive(Debug)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    pub(crate) priority: Priority,
    pub(crate) offset: usize,
    pub(crate) size: usize,
    pub(crate) payload: Bytes,
}

/// What a path is offered, for the scheduler to decide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) id: u64,
    /// Since when it could have been sent.
    pub(crate) since: Duration,
    /// A copy: whichever path is asked takes it.
    pub(crate) copy: bool,
    /// Bytes of it that are left.
    pub(crate) left: usize,
}

/// The sender's side.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: [VecDeque<(Duration, usize, Bytes)>; 4],
    waiting_bytes: [usize; 4],
    active: BTreeMap<u64, Outgoing>,
    active_bytes: usize,
    /// Those of `active` that have something to send, a set a priority.
    wanting: [BTreeSet<u64>; 4],
    dues: BTreeSet<(Duration, u64)>,
    /// Copies that go over their path again; those whose message has arrived meanwhile are passed over.
    again: BTreeSet<(Duration, u64, PathId)>,
    next_id: u64,
    pub(crate) sent: u64,
    pub(crate) copies: u64,
}

impl Outbox {
    /// Queues a message; false when its priority's queue is full.
    pub(crate) fn push(&mut self, now: Duration, priority: Priority, copies: usize, payload: Bytes) -> bool {
        let lane = priority.index();
        if !self.has_room(priority) {
            return false;
        }
        self.waiting_bytes[lane] += payload.len();
        self.waiting[lane].push_back((now, copies, payload));
        true
    }

    /// Whether a priority takes another message.
    pub(crate) fn has_room(&self, priority: Priority) -> bool {
        let lane = priority.index();
        self.waiting[lane].len() < MAX_WAITING && self.waiting_bytes[lane] < MAX_WAITING_BYTES
    }

    /// Whether anything of this priority could be sent now.
    pub(crate) fn wants(&self, priority: Priority) -> bool {
        !self.wanting[priority.index()].is_empty() || (self.may_start() && !self.waiting[priority.index()].is_empty())
    }

    /// Whether everything that was taken has arrived.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.iter().all(VecDeque::is_empty)
    }

    /// Whether messages of these priorities wait for room that those on their way take.
    pub(crate) fn is_stuck(&self, of: Carries) -> bool {
        let mut lanes = Priority::ALL.into_iter().filter(|priority| of.has(*priority));
        !self.may_start() && lanes.any(|priority| !self.waiting[priority.index()].is_empty())
    }

    fn may_start(&self) -> bool {
        let span = self
            .active
            .first_key_value()
            .map_or(0, |(oldest, _)| self.next_id - oldest);
        self.active.len() < MAX_ACTIVE && self.active_bytes < MAX_ACTIVE_BYTES - 64 * 1024 && span < MAX_SPAN
    }

    /// Starts messages of a priority that wait until this path has one to carry, as far as the window allows; `copies` says how many a
    /// small one gets at least.
    pub(crate) fn start(&mut self, priority: Priority, path: PathId, copies: usize) {
        let lane = priority.index();
        while self.may_start() && self.offers(priority, path, false).next().is_none() {
            let Some((since, own, payload)) = self.waiting[lane].pop_front() else {
                return;
            };
            self.waiting_bytes[lane] -= payload.len();
            self.active_bytes += payload.len() + PARTIAL_COST;
            let id = self.next_id;
            self.next_id += 1;
            self.sent += 1;
            self.wanting[lane].insert(id);
            let outgoing = Outgoing {
                priority,
                payload,
                since,
                copies: own.max(copies).max(1),
                acked: RangeSet::default(),
                passes: Vec::new(),
                next: 0,
                resend: RangeSet::default(),
                due: None,
                interval: Duration::ZERO,
                attempts: 0,
                reported_at: None,
                round: 0,
                last_path: None,
            };
            self.active.insert(id, outgoing);
        }
    }

    /// What this path could send now, in order of age. `others` says whether there is another path to prefer for a repetition.
    pub(crate) fn offers(&self, priority: Priority, path: PathId, others: bool) -> impl Iterator<Item = Offer> {
        let wanting = self.wanting[priority.index()].iter();
        wanting.filter_map(move |id| {
            let outgoing = self.active.get(id)?;
            let range = outgoing.next_range(path, u64::MAX - outgoing.end())?;
            if others && outgoing.round > 0 && outgoing.last_path == Some(path) && range.start == 0 {
                return None;
            }
            Some(Offer {
                id: *id,
                since: outgoing.since,
                copy: outgoing.is_small() && (outgoing.copies > 1 || outgoing.round > 0 || range.start > 0),
                left: usize::try_from(range.end - range.start).unwrap_or(usize::MAX),
            })
        })
    }

    /// Takes a piece of a message for a path.
    pub(crate) fn take(&mut self, now: Duration, wanted: &Take) -> Option<Piece> {
        let Take {
            id,
            path,
            room,
            interval,
            again: (again, gap),
        } = *wanted;
        let outgoing = self.active.get_mut(&id)?;
        let range = outgoing.next_range(path, room as u64)?;
        if outgoing.is_small() {
            if range.start == 0 {
                self.copies += 1;
            }
            let flying = range.end >= outgoing.end();
            let pass = outgoing.pass(path, again);
            (pass.next, pass.flying) = (range.end, flying);
            if flying && pass.again > 0 {
                pass.again -= 1;
                pass.again_at = Some(now + gap);
                self.again.insert((now + gap, id, path));
            }
        } else {
            outgoing.resend.remove(&range);
            outgoing.next = outgoing.next.max(range.end);
        }
        outgoing.last_path = Some(path);
        outgoing.interval = outgoing.interval.max(interval);
        let due = now + outgoing.interval;
        if outgoing.due.is_none() || !outgoing.is_small() {
            if let Some(old) = outgoing.due.replace(due) {
                self.dues.remove(&(old, id));
            }
            self.dues.insert((due, id));
        }
        let bytes = &outgoing.payload;
        let slice = usize::try_from(range.start).unwrap_or(0)..usize::try_from(range.end).unwrap_or(0).min(bytes.len());
        let piece = Piece {
            id,
            priority: outgoing.priority,
            size: bytes.len(),
            payload: bytes.slice(slice),
            range,
        };
        self.note(id);
        Some(piece)
    }

    /// Keeps `wanting` true.
    fn note(&mut self, id: u64) {
        let Some(outgoing) = self.active.get(&id) else { return };
        let wanting = &mut self.wanting[outgoing.priority.index()];
        if outgoing.wants() {
            wanting.insert(id);
        } else {
            wanting.remove(&id);
        }
    }

    /// The peer has a piece.
    pub(crate) fn acked(&mut self, id: u64, range: Range<u64>) {
        let Some(outgoing) = self.active.get_mut(&id) else {
            return;
        };
        outgoing.resend.remove(&range);
        outgoing.acked.insert(range);
        if outgoing.acked.covers(&(0..outgoing.end())) {
            if let Some(due) = outgoing.due {
                self.dues.remove(&(due, id));
            }
            self.active_bytes -= outgoing.payload.len() + PARTIAL_COST;
            self.wanting[outgoing.priority.index()].remove(&id);
            remove(&mut self.active, id);
        } else {
            self.note(id);
        }
    }

    /// A piece was lost.
    pub(crate) fn lost(&mut self, loss: Loss, id: u64, range: Range<u64>) -> Result<(), Violation> {
        let now = loss.now;
        let Some(outgoing) = self.active.get_mut(&id) else {
            return Ok(());
        };
        // After an outage one word tells of all copies that were sent into it.
        if loss.reported && outgoing.reported_at.replace(now) != Some(now) {
            outgoing.attempts = outgoing.attempts.saturating_add(1);
        }
        let pieces = 1 + outgoing.payload.len() / 512;
        if outgoing.attempts as usize > usize::from(MAX_ATTEMPTS) * pieces {
            return Err(Violation::NackStorm);
        }
        if outgoing.is_small() {
            if let Some(pass) = outgoing.passes.iter_mut().find(|pass| pass.path == loss.path) {
                pass.flying = false;
            }
            // Nothing is on its way any more: do not wait for the timer.
            let end = outgoing.end();
            let over = |pass: &Pass| !pass.flying && pass.next >= end;
            if !outgoing.passes.is_empty() && outgoing.passes.iter().all(over) {
                if let Some(old) = outgoing.due.replace(now) {
                    self.dues.remove(&(old, id));
                }
                self.dues.insert((now, id));
                self.handle_timeout(now);
            }
        } else if !outgoing.acked.covers(&range) {
            outgoing.resend.insert(range);
            self.note(id);
        }
        Ok(())
    }

    /// Repeats what has waited too long for its answer, and what goes twice over its path.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        while let Some((due, id, path)) = self.again.first().copied()
            && due <= now
        {
            self.again.pop_first();
            let passes = self.active.get_mut(&id).map(|outgoing| outgoing.passes.iter_mut());
            if let Some(pass) = passes.and_then(|mut passes| passes.find(|pass| pass.path == path))
                && pass.again_at == Some(due)
            {
                (pass.next, pass.again_at) = (0, None);
                self.note(id);
            }
        }
        while let Some((due, id)) = self.dues.first().copied()
            && due <= now
        {
            self.dues.pop_first();
            let Some(outgoing) = self.active.get_mut(&id) else {
                continue;
            };
            outgoing.due = None;
            if outgoing.is_small() {
                repeat_small(outgoing);
            } else {
                // All that was sent and is not there.
                outgoing.resend.insert(0..outgoing.next);
                let acked: Vec<_> = outgoing.acked.iter_down().cloned().collect();
                acked.iter().for_each(|range| outgoing.resend.remove(range));
            }
            outgoing.interval = (outgoing.interval * 3 / 2).min(MAX_INTERVAL);
            self.note(id);
        }
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        let due = self.dues.first().map(|(due, _)| *due);
        due.into_iter().chain(self.again.first().map(|(at, ..)| *at)).min()
    }
}

/// Removes a message; the last one takes the tree's leaf with it, so that idle sessions keep none.
fn remove<V>(messages: &mut BTreeMap<u64, V>, id: u64) -> Option<V> {
    let message = messages.remove(&id);
    if messages.is_empty() {
        *messages = BTreeMap::new();
    }
    message
}

/// One more copy, over any path: what is flying may still arrive.
fn repeat_small(outgoing: &mut Outgoing) {
    outgoing.passes.clear();
    outgoing.copies = 1;
    outgoing.round += 1;
}

#[derive(Debug)]
struct Partial {
    buffer: Vec<u8>,
    have: RangeSet,
}

/// The receiver's side.
#[derive(Debug)]
pub(crate) struct Inbox {
    seen: Window,
    partial: BTreeMap<u64, Partial>,
    partial_bytes: usize,
    ready: VecDeque<(Priority, Bytes)>,
    ready_bytes: usize,
    faults: Faults,
    pub(crate) delivered: u64,
    pub(crate) duplicates: u64,
    /// Messages dropped because the owner does not take them.
    pub(crate) overrun: u64,
}

impl Inbox {
    pub(crate) fn new(faults: Faults) -> Self {
        Self {
            seen: Window::new(WINDOW),
            partial: BTreeMap::new(),
            partial_bytes: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            faults,
            delivered: 0,
            duplicates: 0,
            overrun: 0,
        }
    }

    /// Takes a piece.
    pub(crate) fn handle(&mut self, fragment: &Fragment) -> Result<(), Violation> {
        let Fragment {
            priority,
            offset,
            size,
            ref payload,
            ..
        } = *fragment;
        let id = expand(fragment.id, self.seen.end());
        if id > self.seen.end() + WINDOW {
            return Err(Violation::Jump("message"));
        }
        if self.seen.contains(id) && !self.faults.dedup_off {
            self.duplicates += 1;
            return Ok(());
        }
        if payload.len() == size {
            self.complete(id, priority, Bytes::copy_from_slice(payload));
            return Ok(());
        }
        let partial = match self.partial.get_mut(&id) {
            Some(partial) => partial,
            None => {
                self.partial_bytes += size + PARTIAL_COST;
                if self.partial_bytes > MAX_PARTIAL {
                    return Err(Violation::MessageFlood);
                }
                self.partial.entry(id).or_insert(Partial {
                    buffer: vec![0; size],
                    have: RangeSet::default(),
                })
            }
        };
        if partial.buffer.len() != size {
            return Err(Violation::MessageFlood);
        }
        let Some(place) = partial.buffer.get_mut(offset..offset + payload.len()) else {
            return Err(Violation::MessageFlood);
        };
        place.copy_from_slice(payload);
        partial.have.insert(offset as u64..(offset + payload.len()) as u64);
        if partial.have.covers(&(0..size as u64)) {
            let whole = std::mem::take(&mut partial.buffer);
            self.complete(id, priority, Bytes::from(whole));
        }
        Ok(())
    }

    fn complete(&mut self, id: u64, priority: Priority, message: Bytes) {
        if remove(&mut self.partial, id).is_some() {
            self.partial_bytes -= message.len() + PARTIAL_COST;
        }
        self.seen.insert(id);
        if self.ready_bytes >= MAX_READY && !self.faults.memory_unbounded {
            self.overrun += 1;
            return;
        }
        self.delivered += 1;
        self.ready_bytes += message.len() + PARTIAL_COST;
        self.ready.push_back((priority, message));
    }

    /// The next message for the owner.
    pub(crate) fn poll(&mut self) -> Option<(Priority, Bytes)> {
        let (priority, message) = self.ready.pop_front()?;
        self.ready_bytes -= message.len() + PARTIAL_COST;
        Some((priority, message))
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.partial_bytes + self.ready_bytes
    }
}
