//! One class's receiving side: reassembly, order, duplicates, expiry, acknowledgement.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use wire::proto::{Ack, Frame};
use wire::{ClassId, ClassRow, Delivery, Now};

use crate::faults::Faults;

/// Items beyond the last one in order that are kept; a sender within its budget has no more on its way.
const WINDOW: u64 = 4096;
/// Sequence numbers that an acknowledgement lists one by one.
const ALSO: usize = 64;

#[derive(Debug)]
struct Partial {
    key: String,
    fragments: Vec<Option<Bytes>>,
    missing: usize,
    deadline: Option<Duration>,
}

/// A whole item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) seq: u64,
    pub(crate) key: String,
    pub(crate) payload: Bytes,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    class: ClassId,
    row: &'static ClassRow,
    faults: Faults,
    partial: BTreeMap<u64, Partial>,
    /// Whole items that wait for an earlier one (ordered classes).
    early: BTreeMap<u64, Item>,
    /// Whole items that were handed out or dropped, beyond `received` (unordered classes).
    beyond: BTreeSet<u64>,
    kept: usize,
    /// All items up to here have arrived.
    received: u64,
    /// All items up to here are committed.
    committed: u64,
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
            beyond: BTreeSet::new(),
            kept: 0,
            received: 0,
            committed: 0,
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
        let duplicate = seq <= self.received || self.early.contains_key(&seq) || self.beyond.contains(&seq);
        if duplicate {
            // Our acknowledgement was lost.
            self.ack_due = true;
            return Vec::new();
        }
        if seq == 0 || seq > self.received + WINDOW || !self.store(now, frame) {
            return Vec::new();
        }
        self.ack_due = true;
        match self.complete(now, seq) {
            Some(item) if self.is_ordered() => self.in_order(item),
            Some(item) => vec![item],
            None => Vec::new(),
        }
    }

    /// Keeps a fragment; `false` when it makes no sense or there is no room.
    fn store(&mut self, now: Now, frame: Frame) -> bool {
        let count = frame.fragments as usize;
        if count == 0 || frame.fragment >= frame.fragments || count > wire::MAX_ITEM / 1024 {
            return false;
        }
        // The next item in order always has room: else a full window would never empty.
        if self.kept + frame.payload.len() > self.row.budget && frame.seq != self.received + 1 {
            return false;
        }
        let partial = self.partial.entry(frame.seq).or_insert_with(|| Partial {
            key: frame.key,
            fragments: vec![None; count],
            missing: count,
            deadline: (frame.ttl_ms > 0).then(|| now.boottime + Duration::from_millis(frame.ttl_ms)),
        });
        let Some(slot) = partial.fragments.get_mut(frame.fragment as usize) else {
            return false;
        };
        if slot.is_none() {
            self.kept += frame.payload.len();
            partial.missing -= 1;
            *slot = Some(frame.payload);
        }
        true
    }

    /// The whole item, when all its fragments are there and it has not expired.
    fn complete(&mut self, now: Now, seq: u64) -> Option<Item> {
        if self.partial.get(&seq)?.missing > 0 {
            return None;
        }
        let partial = self.partial.remove(&seq)?;
        let size: usize = partial.fragments.iter().flatten().map(Bytes::len).sum();
        let payload = match <[_; 1]>::try_from(partial.fragments) {
            Ok([only]) => only.unwrap_or_default(),
            Err(many) => many
                .into_iter()
                .flatten()
                .fold(BytesMut::with_capacity(size), |mut all, part| {
                    all.extend_from_slice(&part);
                    all
                })
                .freeze(),
        };
        if !self.is_ordered() {
            self.kept -= size;
            self.beyond.insert(seq);
            self.advance();
            if partial.deadline.is_some_and(|d| d <= now.boottime) && !self.faults.expired_delivered {
                return None;
            }
        }
        Some(Item {
            seq,
            key: partial.key,
            payload,
        })
    }

    fn in_order(&mut self, item: Item) -> Vec<Item> {
        self.early.insert(item.seq, item);
        let mut ready = Vec::new();
        while let Some(item) = self.early.remove(&(self.received + 1)) {
            self.received += 1;
            self.kept -= item.payload.len();
            ready.push(item);
        }
        if !self.row.durable || self.faults.ack_before_commit {
            self.committed = self.received;
        }
        ready
    }

    fn advance(&mut self) {
        while self.beyond.remove(&(self.received + 1)) {
            self.received += 1;
        }
    }

    /// The sender waits for nothing up to `floor`.
    fn skip_to(&mut self, floor: u64) {
        if floor <= self.received {
            return;
        }
        self.received = floor;
        self.beyond = self.beyond.split_off(&(floor + 1));
        let kept = self.partial.split_off(&(floor + 1));
        for partial in std::mem::replace(&mut self.partial, kept).into_values() {
            self.kept -= partial.fragments.iter().flatten().map(Bytes::len).sum::<usize>();
        }
        self.advance();
    }

    /// The owner has made everything up to `seq` durable.
    pub(crate) fn commit(&mut self, seq: u64) {
        let seq = seq.min(self.received);
        if seq > self.committed {
            self.committed = seq;
            self.ack_due = true;
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Ack> {
        if !std::mem::take(&mut self.ack_due) {
            return None;
        }
        let also = self.early.keys().chain(&self.beyond).copied().take(ALSO).collect();
        let committed = if self.is_ordered() {
            self.committed
        } else {
            self.received
        };
        Some(Ack {
            class: u32::from(self.class.0),
            committed,
            received: self.received,
            also,
        })
    }
}
