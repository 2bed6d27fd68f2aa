//! Byte streams: offset-addressed with credit, so that any path can carry any part of them.
//!
//! - [`Streams`]: the table, who may open what, what has something to send
//!   - [`sending::Sending`]: what the owner wrote until the peer has it
//!   - [`receiving::Receiving`]: reassembly within the credit that was granted
//!
//! A stream is over when both directions are: all of it acknowledged, and read to its end or reset. Late frames of a stream that
//! is over are acknowledged and ignored.

mod receiving;
mod sending;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use self::receiving::Receiving;
use self::sending::Sending;
use super::faults::Faults;
use super::path::Loss;
use super::policy::Carries;
use super::ranges::RangeSet;
use super::violation::Violation;
use crate::types::Priority;

/// A stream's number: even ones are opened by the edge, odd ones by the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Credit that every stream starts with, bytes: 20 Mbit/s at 6 ms, more follows with the first reading.
pub(crate) const INITIAL_CREDIT: u64 = 16 * 1024;
/// What an end holds of a stream until it is acknowledged, bytes: 80 Mbit/s at 50 ms.
const MAX_UNSENT: usize = 512 * 1024;

/// Streams that are over for the peer and not yet for this end.
const LINGERING: usize = 16;

/// What both ends agree on, and what this one spends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// This end opens streams with odd numbers.
    pub(crate) odd: bool,
    /// Streams that this end may have open at once.
    pub(crate) max_open: usize,
    /// Streams that the peer may have open at once.
    pub(crate) max_accepted: usize,
    /// Credit of one stream at most.
    pub(crate) window: u64,
    /// Credit of all streams beyond their first.
    pub(crate) budget: u64,
}

/// What happened on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Opened(StreamId, Priority),
    Readable(StreamId),
    Writable(StreamId),
    Reset(StreamId, u32),
    Stopped(StreamId, u32),
}

/// A control frame that a stream wants to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Control {
    Credit,
    Reset,
    Stop,
}

/// A piece of a stream to write.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) id: StreamId,
    pub(crate) priority: Priority,
    pub(crate) range: Range<u64>,
    pub(crate) fin: bool,
    pub(crate) payload: Vec<u8>,
}

/// A piece of a stream that arrived.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) id: u64,
    pub(crate) priority: Priority,
    pub(crate) offset: u64,
    pub(crate) fin: bool,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
struct Stream {
    priority: Priority,
    sending: Sending,
    receiving: Receiving,
    /// In the queue of its priority.
    queued: bool,
}

/// All streams of a session.
#[derive(Debug)]
pub(crate) struct Streams {
    rules: Rules,
    /// Boxed: a session has two or three, and a leaf of the tree has room for eleven.
    streams: BTreeMap<u64, Box<Stream>>,
    next: u64,
    /// Streams that the peer has opened, by their turn.
    opened: RangeSet,
    ready: [VecDeque<u64>; 4],
    backlog: [Option<Duration>; 4],
    /// Streams with pieces that were lost, a set a priority, and since when it has any.
    lost: [BTreeSet<u64>; 4],
    lost_since: [Option<Duration>; 4],
    controls: BTreeSet<(u64, Control)>,
    pub(crate) events: VecDeque<Event>,
    faults: Faults,
}

impl Streams {
    pub(crate) fn new(rules: Rules, faults: Faults) -> Self {
        Self {
            rules,
            streams: BTreeMap::new(),
            next: u64::from(rules.odd),
            opened: RangeSet::default(),
            ready: Default::default(),
            backlog: [None; 4],
            lost: Default::default(),
            lost_since: [None; 4],
            controls: BTreeSet::new(),
            events: VecDeque::new(),
            faults,
        }
    }

    /// Opens a stream; None when as many are open as the peer allows.
    pub(crate) fn open(&mut self, priority: Priority) -> Option<StreamId> {
        let own = self.streams.keys().filter(|id| *id % 2 == u64::from(self.rules.odd));
        if own.count() >= self.rules.max_open {
            return None;
        }
        let id = self.next;
        self.next += 2;
        self.streams.insert(id, Box::new(Stream::new(priority, self.faults)));
        Some(StreamId(id))
    }

    /// Takes as much as there is room for; None when the stream takes nothing any more.
    pub(crate) fn write(&mut self, now: Duration, id: StreamId, bytes: &[u8]) -> Option<usize> {
        let stream = self.streams.get_mut(&id.0)?;
        let written = stream.sending.write(bytes, MAX_UNSENT)?;
        self.note(now, id.0);
        Some(written)
    }

    /// No more will be written.
    pub(crate) fn finish(&mut self, now: Duration, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.sending.finish();
            self.note(now, id.0);
        }
    }

    /// Gives up what was written.
    pub(crate) fn reset(&mut self, id: StreamId, code: u32) {
        if let Some(stream) = self.streams.get_mut(&id.0)
            && stream.sending.reset(code)
        {
            self.forget_lost(id.0);
            self.controls.insert((id.0, Control::Reset));
        }
    }

    /// The owner wants no more of what the peer writes.
    pub(crate) fn stop(&mut self, id: StreamId, code: u32) {
        if let Some(stream) = self.streams.get_mut(&id.0) {
            if stream.receiving.stop(code) {
                self.controls.insert((id.0, Control::Stop));
            }
            self.close_if_over(id.0);
        }
    }

    /// Reads what comes next: at most `limit` bytes. `Read::End` once, at the end.
    pub(crate) fn read(&mut self, id: StreamId, limit: usize) -> Read {
        let others = self.streams.iter().filter(|(other, _)| **other != id.0);
        let granted: u64 = others.map(|(_, stream)| stream.receiving.beyond_first()).sum();
        // Credit that was granted cannot be taken back: whoever comes later gets an equal share all the same, so all have twice the budget at most.
        let share = self.rules.budget / self.streams.len().max(1) as u64;
        let spare = self.rules.budget.saturating_sub(granted).max(share);
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return Read::End;
        };
        let read = stream.receiving.read(limit);
        if matches!(read, Read::Bytes(_)) && stream.receiving.grant(self.rules.window, spare) {
            self.controls.insert((id.0, Control::Credit));
        }
        if matches!(read, Read::End) {
            self.close_if_over(id.0);
        }
        read
    }

    fn close_if_over(&mut self, id: u64) {
        if let Some(stream) = self.streams.get(&id)
            && stream.sending.is_over()
            && stream.receiving.is_over()
        {
            self.forget_lost(id);
            self.streams.remove(&id);
            for control in [Control::Credit, Control::Reset, Control::Stop] {
                self.controls.remove(&(id, control));
            }
        }
    }

    /// Puts a stream where its next piece is looked for.
    fn note(&mut self, now: Duration, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let lane = stream.priority.index();
        if stream.sending.has_lost() {
            self.lost[lane].insert(id);
            self.lost_since[lane].get_or_insert(now);
        }
        if stream.sending.has_new() && !stream.queued {
            stream.queued = true;
            self.ready[lane].push_back(id);
            self.backlog[lane].get_or_insert(now);
        }
    }

    /// Nothing of a stream is to be repaired any more.
    fn forget_lost(&mut self, id: u64) {
        if let Some(stream) = self.streams.get(&id) {
            let lane = stream.priority.index();
            self.lost[lane].remove(&id);
            if self.lost[lane].is_empty() {
                self.lost_since[lane] = None;
            }
        }
    }

    /// Which of these priorities has had a repair waiting for longest: since when.
    pub(crate) fn repair_since(&self, of: Carries) -> Option<(Duration, Priority)> {
        let lanes = Priority::ALL.into_iter().filter(|priority| of.has(*priority));
        let waiting = lanes.filter(|priority| !self.lost[priority.index()].is_empty());
        waiting
            .filter_map(|priority| Some((self.lost_since[priority.index()]?, priority)))
            .min()
    }

    /// A piece of this priority that was lost, of at most `room` bytes.
    pub(crate) fn repair(&mut self, priority: Priority, room: usize) -> Option<Piece> {
        let lane = priority.index();
        loop {
            let id = *self.lost[lane].first()?;
            let piece = self.streams.get_mut(&id).and_then(|stream| {
                let (range, fin, payload) = stream.sending.take_lost(room)?;
                Some((range, fin, payload, stream.sending.has_lost()))
            });
            if !piece.as_ref().is_some_and(|(.., more)| *more) {
                self.lost[lane].remove(&id);
                if self.lost[lane].is_empty() {
                    self.lost_since[lane] = None;
                }
            }
            let Some((range, fin, payload, _)) = piece else {
                continue;
            };
            return Some(Piece {
                id: StreamId(id),
                priority,
                range,
                fin,
                payload,
            });
        }
    }

    /// Since when streams of a priority have had something new to send, and how much the first of them has.
    pub(crate) fn backlog(&self, priority: Priority) -> Option<(Duration, usize)> {
        let lane = priority.index();
        let stream = self.streams.get(self.ready[lane].front()?);
        Some((
            self.backlog[lane]?,
            stream.map_or(0, |stream| stream.sending.new_bytes()),
        ))
    }

    /// A new piece of the stream whose turn it is, of at most `room` bytes.
    pub(crate) fn take(&mut self, priority: Priority, room: usize) -> Option<Piece> {
        let lane = priority.index();
        let piece = loop {
            let id = self.ready[lane].pop_front()?;
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let Some((range, fin, payload)) = stream.sending.take_new(room) else {
                continue;
            };
            if stream.sending.has_new() {
                stream.queued = true;
                self.ready[lane].push_back(id);
            }
            break Piece {
                id: StreamId(id),
                priority,
                range,
                fin,
                payload,
            };
        };
        if self.ready[lane].is_empty() {
            self.backlog[lane] = None;
        }
        Some(piece)
    }

    /// The next control frame of a stream of these priorities: the stream, what, and its number (credit or code).
    pub(crate) fn take_control(&mut self, of: Carries) -> Option<(StreamId, Control, u64)> {
        while let Some((id, control)) = self.next_control(of) {
            self.controls.remove(&(id, control));
            let Some(stream) = self.streams.get(&id) else { continue };
            let value = match control {
                Control::Credit => Some(stream.receiving.credit()),
                Control::Reset => stream.sending.reset_code().map(u64::from),
                Control::Stop => stream.receiving.stop_code().map(u64::from),
            };
            if let Some(value) = value {
                return Some((StreamId(id), control, value));
            }
        }
        None
    }

    fn next_control(&self, of: Carries) -> Option<(u64, Control)> {
        let may = |id: &u64| self.streams.get(id).is_none_or(|stream| of.has(stream.priority));
        self.controls.iter().find(|(id, _)| may(id)).copied()
    }

    /// Whether a control frame of these priorities waits.
    pub(crate) fn has_control(&self, of: Carries) -> bool {
        self.next_control(of).is_some()
    }

    /// The peer has a piece.
    pub(crate) fn acked(&mut self, id: StreamId, range: Range<u64>, fin: bool) {
        if let Some(stream) = self.streams.get_mut(&id.0) {
            if stream.sending.acked(range, fin, MAX_UNSENT) {
                self.events.push_back(Event::Writable(id));
            }
            if !stream.sending.has_lost() {
                self.forget_lost(id.0);
            }
            self.close_if_over(id.0);
        }
    }

    /// A piece was lost.
    pub(crate) fn lost(&mut self, loss: Loss, id: StreamId, range: Range<u64>, fin: bool) -> Result<(), Violation> {
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.sending.lost(range, fin, loss.reported)?;
            self.note(loss.now, id.0);
        }
        Ok(())
    }

    /// The peer has a control frame, or it was lost.
    pub(crate) fn control_done(&mut self, id: StreamId, control: Control, arrived: bool) {
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return;
        };
        match (control, arrived) {
            (Control::Reset, true) => stream.sending.reset_arrived(),
            (_, true) => {}
            (_, false) => {
                self.controls.insert((id.0, control));
            }
        }
        self.close_if_over(id.0);
    }

    /// The stream that a frame of the peer is about; None when it is over.
    fn known(&mut self, id: u64, priority: Option<Priority>) -> Result<Option<&mut Stream>, Violation> {
        let own = id % 2 == u64::from(self.rules.odd);
        if self.streams.contains_key(&id) {
            return Ok(self.streams.get_mut(&id).map(Box::as_mut));
        }
        if own {
            return if id < self.next {
                Ok(None)
            } else {
                Err(Violation::StreamFlood)
            };
        }
        let turn = id / 2;
        if self.opened.contains(turn) {
            return Ok(None);
        }
        // An end that has seen a stream end may open the next before we have seen the same.
        let theirs = self
            .streams
            .keys()
            .filter(|id| *id % 2 != u64::from(self.rules.odd))
            .count();
        let allowed = self.rules.max_accepted + LINGERING;
        let highest = self.opened.iter_down().next().map_or(0, |range| range.end);
        if theirs >= allowed || turn > highest + allowed as u64 {
            return Err(Violation::StreamFlood);
        }
        // Control frames of a stream that we know nothing of yet open it too.
        let priority = priority.unwrap_or(Priority::Interactive);
        self.opened.insert(turn..turn + 1);
        while self.opened.len() > 4 * allowed {
            // Turns that were left out so long ago are not taken any more.
            let second = self
                .opened
                .iter_down()
                .nth(self.opened.len() - 2)
                .map_or(0, |range| range.start);
            self.opened.insert(0..second);
        }
        self.streams.insert(id, Box::new(Stream::new(priority, self.faults)));
        self.events.push_back(Event::Opened(StreamId(id), priority));
        Ok(self.streams.get_mut(&id).map(Box::as_mut))
    }

    /// Takes a piece; Ok(false) when there is no room, so that it must not be acknowledged.
    pub(crate) fn handle_data(&mut self, data: Data) -> Result<bool, Violation> {
        let id = data.id;
        let Some(stream) = self.known(id, Some(data.priority))? else {
            return Ok(true);
        };
        let taken = stream.receiving.handle(data.offset, data.fin, data.payload)?;
        if stream.receiving.tell() {
            self.events.push_back(Event::Readable(StreamId(id)));
        }
        self.close_if_over(id);
        Ok(taken)
    }

    /// The peer may be sent more.
    pub(crate) fn handle_credit(&mut self, now: Duration, id: u64, offset: u64) -> Result<(), Violation> {
        if let Some(stream) = self.known(id, None)? {
            stream.sending.raise_credit(offset);
            self.note(now, id);
        }
        Ok(())
    }

    /// The peer gives up its direction.
    pub(crate) fn handle_reset(&mut self, id: u64, code: u32) -> Result<(), Violation> {
        if let Some(stream) = self.known(id, None)? {
            if stream.receiving.reset(code) {
                self.events.push_back(Event::Reset(StreamId(id), code));
            }
            self.close_if_over(id);
        }
        Ok(())
    }

    /// The peer wants no more of ours: our direction is reset.
    pub(crate) fn handle_stop(&mut self, id: u64, code: u32) -> Result<(), Violation> {
        if let Some(stream) = self.known(id, None)?
            && stream.sending.reset(code)
        {
            self.forget_lost(id);
            self.controls.insert((id, Control::Reset));
            self.events.push_back(Event::Stopped(StreamId(id), code));
        }
        Ok(())
    }

    /// Bytes of received pieces that wait, and their bookkeeping.
    pub(crate) fn received_bytes(&self) -> usize {
        self.streams.values().map(|stream| stream.receiving.bytes()).sum()
    }

    /// Streams that are not over.
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }
}

/// What reading gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The next bytes.
    Bytes(Bytes),
    /// Nothing yet: wait for `StreamReadable`.
    Blocked,
    /// The peer finished or reset it, and all was read.
    End,
}

impl Stream {
    fn new(priority: Priority, faults: Faults) -> Self {
        Self {
            priority,
            sending: Sending::new(),
            receiving: Receiving::new(faults),
            queued: false,
        }
    }
}
