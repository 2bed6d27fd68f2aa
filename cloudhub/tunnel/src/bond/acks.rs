//! What arrived on which path, and when and where to say so.
//!
//! One frame says it for all paths: it is acknowledgement, gap report and answer to a probe. It goes 10 ms after the first packet that
//! asks for it, at once when a packet asks for that, soon when a gap has opened, and over the two best paths, so that neither the loss nor
//! the death of one delays it. The owner says which paths those are.

use std::time::Duration;

use super::frame::{AckBlock, MAX_RANGES};
use super::path::PathId;
use super::ranges::{RangeSet, expand};
use super::violation::Violation;

/// How long packets may wait for their acknowledgement.
const DELAY: Duration = Duration::from_millis(10);
/// Gaps are reported no more often: at 5 % loss and 50 Mbit/s a gap opens every 4 ms.
const GAP_DELAY: Duration = Duration::from_millis(4);
/// Answers to probes and small messages are sent no more often.
const NOW_DELAY: Duration = Duration::from_millis(1);
/// A path's state is repeated so long after its last packet, in case the acknowledgement was lost.
const REPEAT: Duration = Duration::from_millis(60);
/// Ranges that are remembered: twice what is said.
const MAX_KEPT: usize = 2 * MAX_RANGES;
/// Nothing honest skips so many packets of a path.
const MAX_JUMP: u64 = 1 << 20;
/// Packets repeated on a path, beyond a tenth of those that arrived, that close the session.
const MAX_DUPLICATES: u64 = 4096;

/// How a packet's arrival is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    Nothing,
    Soon,
    Now,
}

/// What was received on one path.
#[derive(Debug, Default)]
pub(crate) struct Received {
    seen: RangeSet,
    /// Below this everything counts as seen.
    floor: u64,
    largest: Option<u64>,
    largest_at: Duration,
    asked_at: Option<Duration>,
    unreported: bool,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) duplicates: u64,
    /// When anything came last.
    pub(crate) heard: Option<Duration>,
}

impl Received {
    /// The full sequence of a packet; None when it was seen before.
    pub(crate) fn sequence(&mut self, low: u32) -> Result<Option<u64>, Violation> {
        let near = self.largest.map_or(0, |largest| largest + 1);
        let sequence = expand(low, near);
        if sequence > near + MAX_JUMP {
            return Err(Violation::Jump("path"));
        }
        if sequence < self.floor || self.seen.contains(sequence) {
            self.duplicates += 1;
            if self.duplicates > MAX_DUPLICATES + self.packets / 10 {
                return Err(Violation::DuplicateFlood);
            }
            return Ok(None);
        }
        Ok(Some(sequence))
    }

    /// Whether something asks for an acknowledgement that was not given yet.
    pub(crate) fn is_unreported(&self) -> bool {
        self.unreported
    }

    /// Notes a packet; returns whether a gap has opened or closed.
    fn insert(&mut self, now: Duration, sequence: u64, asks: Asks) -> bool {
        let next = self.largest.map_or(self.floor, |largest| largest + 1);
        self.seen.insert(sequence..sequence + 1);
        if self.seen.len() > MAX_KEPT
            && let Some(oldest) = self.seen.pop_first()
        {
            self.floor = oldest.end;
        }
        if sequence >= next {
            (self.largest, self.largest_at) = (Some(sequence), now);
        }
        if asks != Asks::Nothing {
            self.asked_at = Some(now);
            self.unreported = true;
        }
        sequence != next
    }

    fn block(&self, now: Duration, path: u8) -> Option<AckBlock> {
        let largest = self.largest?;
        let distance = |sequence: u64| (largest + 1).saturating_sub(sequence);
        let ranges = self.seen.iter_down().take(MAX_RANGES);
        Some(AckBlock {
            path,
            largest: (largest & 0xffff_ffff) as u32,
            delay: now.saturating_sub(self.largest_at),
            ranges: ranges.map(|range| distance(range.end)..distance(range.start)).collect(),
        })
    }
}

/// When acknowledgements are due, and which paths are still to carry them.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    due: Option<Duration>,
    last: Option<Duration>,
    /// The paths that are still to carry one.
    pub(crate) on: Vec<PathId>,
    /// Since when they are to be carried.
    pub(crate) since: Duration,
}

impl Acks {
    /// A packet arrived and was kept.
    pub(crate) fn arrived(&mut self, now: Duration, received: &mut Received, sequence: u64, asks: Asks) {
        let gap = received.insert(now, sequence, asks);
        let not_before = |pause| self.last.map_or(now, |last: Duration| now.max(last + pause));
        let due = match asks {
            Asks::Nothing => return,
            Asks::Now => not_before(NOW_DELAY),
            Asks::Soon if gap => not_before(GAP_DELAY),
            Asks::Soon => now + DELAY,
        };
        self.due = Some(self.due.map_or(due, |have| have.min(due)));
    }

    /// Whether it is time to choose the paths that carry the next one.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// The next one goes over these.
    pub(crate) fn carry_on(&mut self, now: Duration, paths: Vec<PathId>) {
        if self.on.is_empty() {
            self.since = now;
        }
        self.on = paths;
        self.due = None;
        self.last = Some(now);
    }

    /// The blocks of an acknowledgement: of each path that has news or had some lately.
    pub(crate) fn blocks<'a>(
        &self,
        now: Duration,
        paths: impl Iterator<Item = (u8, &'a mut Received)>,
    ) -> Vec<AckBlock> {
        let told = paths.filter_map(|(path, received)| {
            let lately = received.asked_at.is_some_and(|at| now.saturating_sub(at) <= REPEAT);
            if !received.unreported && !lately {
                return None;
            }
            received.unreported = false;
            received.block(now, path)
        });
        told.collect()
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.due
    }
}
