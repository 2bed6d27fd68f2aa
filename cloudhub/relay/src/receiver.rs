//! One class's receiving side: reassembly, order, duplicates, expiry, acknowledgement.
//!
//! Everything that a peer can make this side keep is counted against the class's budget: payload, bookkeeping, and what
//! was handed out and is not committed. What has no room is not acknowledged, so that the peer repeats it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use wire::proto::{Ack, Frame};
use wire::{ClassId, ClassRow, Delivery, Now};

use crate::faults::Faults;
use crate::sender::OVERHEAD;
use crate::spare::remove;

/// Items beyond the last one in order that are kept; a sender has fewer on their way.
const WINDOW: u64 = 4096;
/// Sequence numbers that an acknowledgement lists one by one.
const ALSO: usize = 64;
/// Fragments of one item: a sender makes 70 of the largest.
const FRAGMENTS: u32 = 128;
/// Bookkeeping of one fragment, bytes.
const SLOT: usize = size_of::<Option<Bytes>>();
/// The longest key, bytes: class, kind, namespace, name and uid of an object are shorter.
const KEY: usize = 1024;

/// All numbers up to `low`, and some beyond.
#[derive(Debug, Default)]
struct Cursor {
    low: u64,
    beyond: BTreeSet<u64>,
}

impl Cursor {
    fn contains(&self, seq: u64) -> bool {
        seq <= self.low || self.beyond.contains(&seq)
    }

    fn insert(&mut self, seq: u64) {
        if seq > self.low {
            self.beyond.insert(seq);
            self.join();
        }
    }

    fn raise(&mut self, low: u64) {
        if low > self.low {
            self.low = low;
            self.beyond = self.beyond.split_off(&(low + 1));
            self.join();
        }
    }

    fn join(&mut self) {
        // A peer may have said that everything is done, up to the last number there is.
        while let Some(next) = self.low.checked_add(1).filter(|next| self.beyond.remove(next)) {
            self.low = next;
        }
    }
}

#[derive(Debug)]
struct Partial {
    key: String,
    fragments: Vec<Option<Bytes>>,
    missing: usize,
    size: usize,
    deadline: Option<Duration>,
}

impl Partial {
    fn cost(&self) -> usize {
        OVERHEAD + self.key.len() + SLOT * self.fragments.len() + self.size
    }
}

/// A whole item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) seq: u64,
    pub(crate) key: String,
    pub(crate) payload: Bytes,
}

impl Item {
    fn cost(&self) -> usize {
        OVERHEAD + self.key.len() + self.payload.len()
    }
}

#[derive(Debug)]
pub(crate) struct Receiver {
    class: ClassId,
    row: &'static ClassRow,
    faults: Faults,
    partial: BTreeMap<u64, Partial>,
    /// Whole items that wait for an earlier one (ordered classes).
    early: BTreeMap<u64, Item>,
    /// Cost of what is in `partial` and `early`.
    kept: usize,
    /// Cost of what was handed out and is not committed (durable classes).
    uncommitted: BTreeMap<u64, usize>,
    owed: usize,
    /// What was handed out or has expired.
    received: Cursor,
    /// What was committed or has expired.
    committed: Cursor,
    ack_due: bool,
}

impl Receiver {
    pub(crate) fn new(class: ClassId, row: &'static ClassRow, faults: Faults) -> Self {
        Self {
            class,
            row,
            faults,
            partial: BTreeMap::new(),
            early: BTreeMap::new(),
            kept: 0,
            uncommitted: BTreeMap::new(),
            owed: 0,
            received: Cursor::default(),
            committed: Cursor::default(),
            ack_due: false,
        }
    }

    fn is_ordered(&self) -> bool {
        matches!(self.row.delivery, Delivery::Ordered | Delivery::LatestPerKey)
    }

    /// Takes a frame and returns the items that can be handed out now.
    pub(crate) fn handle(&mut self, now: Now, frame: Frame) -> Vec<Item> {
        if !self.is_ordered() {
            self.skip_to(frame.floor.saturating_sub(1));
        }
        let seq = frame.seq;
        if self.received.contains(seq) || self.early.contains_key(&seq) {
            // Our acknowledgement was lost.
            self.ack_due = true;
            return Vec::new();
        }
        if seq - self.received.low > WINDOW || !self.store(now, frame) {
            return Vec::new();
        }
        let Some((item, in_time)) = self.complete(now, seq) else {
            return Vec::new();
        };
        self.ack_due = true;
        if self.is_ordered() {
            return self.in_order(item);
        }
        self.received.insert(seq);
        if !in_time {
            self.committed.insert(seq);
            return Vec::new();
        }
        self.hand_out(&item);
        vec![item]
    }

    /// Keeps a fragment; `false` when it makes no sense or there is no room.
    fn store(&mut self, now: Now, frame: Frame) -> bool {
        if frame.fragment >= frame.fragments || frame.fragments > FRAGMENTS || frame.key.len() > KEY {
            return false;
        }
        let count = frame.fragments as usize;
        let cost = OVERHEAD + frame.key.len() + SLOT * count + frame.payload.len();
        // The next item in order has room while its predecessors get committed: else a full window would never empty.
        let is_next = frame.seq == self.received.low + 1 && self.owed < self.row.budget;
        if self.kept + self.owed + cost > self.row.budget && !is_next {
            return false;
        }
        let before = self.partial.get(&frame.seq).map_or(0, Partial::cost);
        let partial = self.partial.entry(frame.seq).or_insert_with(|| Partial {
            key: frame.key,
            fragments: vec![None; count],
            missing: count,
            size: 0,
            deadline: (frame.ttl_ms > 0).then(|| now.boottime + Duration::from_millis(frame.ttl_ms)),
        });
        let is_new = partial.fragments.len() == count && partial.fragments[frame.fragment as usize].is_none();
        if is_new && partial.size + frame.payload.len() <= wire::MAX_ITEM {
            partial.missing -= 1;
            partial.size += frame.payload.len();
            partial.fragments[frame.fragment as usize] = Some(frame.payload);
        }
        self.kept += partial.cost() - before;
        true
    }

    /// The whole item, when all its fragments are there, and whether it has not expired.
    fn complete(&mut self, now: Now, seq: u64) -> Option<(Item, bool)> {
        if self.partial.get(&seq)?.missing > 0 {
            return None;
        }
        let partial = remove(&mut self.partial, &seq)?;
        self.kept -= partial.cost();
        let late = partial.deadline.is_some_and(|d| d <= now.boottime) && !self.faults.expired_delivered;
        let payload = match <[_; 1]>::try_from(partial.fragments) {
            Ok([only]) => only.unwrap_or_default(),
            Err(many) => {
                let mut whole = BytesMut::with_capacity(partial.size);
                many.into_iter()
                    .flatten()
                    .for_each(|part| whole.extend_from_slice(&part));
                whole.freeze()
            }
        };
        let key = partial.key;
        Some((Item { seq, key, payload }, !late))
    }

    fn in_order(&mut self, item: Item) -> Vec<Item> {
        self.kept += item.cost();
        self.early.insert(item.seq, item);
        let mut ready = Vec::new();
        while let Some(item) = remove(&mut self.early, &(self.received.low + 1)) {
            self.received.insert(item.seq);
            self.kept -= item.cost();
            self.hand_out(&item);
            ready.push(item);
        }
        ready
    }

    fn hand_out(&mut self, item: &Item) {
        if !self.row.durable || self.faults.ack_before_commit {
            self.committed.insert(item.seq);
        } else {
            self.owed += item.cost();
            self.uncommitted.insert(item.seq, item.cost());
        }
    }

    /// The sender waits for nothing up to `floor`.
    fn skip_to(&mut self, floor: u64) {
        if floor <= self.received.low {
            return;
        }
        self.received.raise(floor);
        self.committed.raise(floor);
        let rest = self.partial.split_off(&(floor + 1));
        let given_up = std::mem::replace(&mut self.partial, rest);
        self.kept -= given_up.values().map(Partial::cost).sum::<usize>();
    }

    /// The owner has made `seq` durable; in an ordered class everything before it too.
    pub(crate) fn commit(&mut self, seq: u64) {
        if !self.received.contains(seq) || self.committed.contains(seq) {
            return;
        }
        let first = if self.is_ordered() { 0 } else { seq };
        let done: Vec<u64> = self.uncommitted.range(first..=seq).map(|(seq, _)| *seq).collect();
        for seq in done {
            self.owed -= remove(&mut self.uncommitted, &seq).unwrap_or_default();
            self.committed.insert(seq);
        }
        self.ack_due = true;
    }

    pub(crate) fn poll(&mut self) -> Option<Ack> {
        if !std::mem::take(&mut self.ack_due) {
            return None;
        }
        let also = if self.is_ordered() {
            self.early.keys().copied().take(ALSO).collect()
        } else {
            self.committed.beyond.iter().copied().take(ALSO).collect()
        };
        Some(Ack {
            class: u32::from(self.class.0),
            committed: self.committed.low,
            received: self.received.low,
            also,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(class: ClassId) -> Receiver {
        Receiver::new(class, class.row().unwrap(), Faults::default())
    }

    fn frame(seq: u64, payload: &[u8]) -> Frame {
        Frame {
            seq,
            fragments: 1,
            payload: Bytes::copy_from_slice(payload),
            ..Frame::default()
        }
    }

    #[test]
    fn a_peer_cannot_make_it_keep_more_than_the_budget_and_one_item() {
        let now = Now::default();
        for class in [ClassId::EVENT, ClassId::DESIRED, ClassId::COMMAND, ClassId::STATUS] {
            let mut receiver = receiver(class);
            for seq in 2..5000 {
                // Many pieces, each of nothing.
                receiver.handle(
                    now,
                    Frame {
                        fragments: FRAGMENTS,
                        ..frame(seq, b"")
                    },
                );
            }
            for seq in (1..5000).rev() {
                receiver.handle(now, frame(seq, &[7; 2000]));
            }
            let limit = receiver.row.budget + wire::MAX_ITEM + 128 * 1024;
            assert!(receiver.kept + receiver.owed <= limit, "{class:?}");
            assert!(receiver.partial.len() + receiver.early.len() <= receiver.row.budget / OVERHEAD);
        }
    }

    #[test]
    fn numbers_up_to_the_last_one_overflow_nothing() {
        for class in [ClassId::COMMAND, ClassId::TELEMETRY, ClassId::EVENT] {
            let mut receiver = receiver(class);
            for (seq, floor) in [
                (1, u64::MAX),
                (u64::MAX, u64::MAX),
                (u64::MAX, 0),
                (7, 1),
                (u64::MAX - 1, 1),
            ] {
                receiver.handle(
                    Now::default(),
                    Frame {
                        floor,
                        ..frame(seq, b"x")
                    },
                );
                receiver.commit(seq);
                receiver.poll();
            }
        }
    }

    #[test]
    fn what_is_not_committed_holds_the_sender_back() {
        let now = Now::default();
        let mut receiver = receiver(ClassId::EVENT);
        let mut out = 0;
        for seq in 1..200 {
            out += receiver.handle(now, frame(seq, &[0; 60_000])).len() as u64;
        }
        assert!(out < 30, "{out} items of 60 kB are more than the budget");
        receiver.commit(out);
        assert_eq!(receiver.owed, 0);
        assert_eq!(receiver.poll().map(|ack| ack.committed), Some(out));
        assert_eq!(receiver.handle(now, frame(out + 1, b"next")).len(), 1);
    }

    #[test]
    fn a_durable_command_is_acknowledged_when_it_is_committed_and_not_before() {
        let now = Now::default();
        let mut receiver = receiver(ClassId::COMMAND);
        assert_eq!(receiver.handle(now, frame(2, b"second")).len(), 1);
        let ack = receiver.poll().unwrap();
        assert_eq!((ack.committed, ack.received, ack.also.len()), (0, 0, 0));
        receiver.commit(2);
        assert_eq!(receiver.poll().unwrap().also, [2]);
        assert_eq!(receiver.handle(now, frame(2, b"again")).len(), 0);
        assert_eq!(receiver.handle(now, frame(1, b"first")).len(), 1);
        receiver.commit(1);
        assert_eq!(receiver.poll().unwrap().committed, 2);
    }

    #[test]
    fn a_fragment_that_contradicts_the_others_changes_nothing() {
        let now = Now::default();
        let mut receiver = receiver(ClassId::DESIRED);
        let part = |fragment, fragments, payload: &[u8]| Frame {
            fragment,
            fragments,
            ..frame(1, payload)
        };
        assert!(receiver.handle(now, part(0, 2, b"one ")).is_empty());
        assert!(receiver.handle(now, part(0, 1, b"other")).is_empty());
        assert!(receiver.handle(now, part(5, 9, b"other")).is_empty());
        let items = receiver.handle(now, part(1, 2, b"two"));
        assert_eq!(items[0].payload, "one two");
    }
}
