//! The sender's half of a stream: what was written, from the first byte that the peer lacks.

use std::collections::VecDeque;
use std::ops::Range;

use super::INITIAL_CREDIT;
use crate::bond::ranges::RangeSet;
use crate::bond::violation::Violation;

/// Pieces of one stream that the peer may report lost without anything being acknowledged in between: far beyond what a path
/// loses before it is suspect.
const MAX_LOST_IN_A_ROW: u32 = 20_000;

#[derive(Debug)]
pub(super) struct Sending {
    buffer: VecDeque<u8>,
    /// Offset of the buffer's first byte.
    base: u64,
    /// Offset of the first byte that was never sent.
    next: u64,
    credit: u64,
    acked: RangeSet,
    lost: RangeSet,
    finished: bool,
    fin_sent: bool,
    fin_acked: bool,
    reset: Option<u32>,
    reset_arrived: bool,
    /// A writer was refused and waits.
    blocked: bool,
    losses: u32,
}

/// Range, whether the stream ends with it, and the bytes.
type Taken = (Range<u64>, bool, Vec<u8>);

impl Sending {
    pub(super) fn new() -> Self {
        Self {
            buffer: VecDeque::new(),
            base: 0,
            next: 0,
            credit: INITIAL_CREDIT,
            acked: RangeSet::default(),
            lost: RangeSet::default(),
            finished: false,
            fin_sent: false,
            fin_acked: false,
            reset: None,
            reset_arrived: false,
            blocked: false,
            losses: 0,
        }
    }

    fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Takes what fits; None when the stream is finished or reset.
    pub(super) fn write(&mut self, bytes: &[u8], limit: usize) -> Option<usize> {
        if self.finished || self.reset.is_some() {
            return None;
        }
        let room = limit.saturating_sub(self.buffer.len()).min(bytes.len());
        self.buffer.extend(&bytes[..room]);
        self.blocked |= room < bytes.len();
        Some(room)
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// False when it was reset or wholly acknowledged before.
    pub(super) fn reset(&mut self, code: u32) -> bool {
        if self.reset.is_some() || self.fin_acked {
            return false;
        }
        self.reset = Some(code);
        self.base = self.end();
        self.next = self.base;
        self.buffer = VecDeque::new();
        self.acked.clear();
        self.lost.clear();
        true
    }

    pub(super) fn reset_code(&self) -> Option<u32> {
        self.reset
    }

    pub(super) fn reset_arrived(&mut self) {
        self.reset_arrived = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.reset_arrived || (self.fin_acked && self.buffer.is_empty())
    }

    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Bytes that were never sent and may be.
    pub(super) fn new_bytes(&self) -> usize {
        usize::try_from(self.end().min(self.credit).saturating_sub(self.next)).unwrap_or(usize::MAX)
    }

    pub(super) fn has_new(&self) -> bool {
        self.reset.is_none()
            && (self.next < self.end().min(self.credit) || (self.finished && !self.fin_sent && self.next == self.end()))
    }

    pub(super) fn take_new(&mut self, room: usize) -> Option<Taken> {
        if !self.has_new() {
            return None;
        }
        let end = self.end().min(self.credit).max(self.next).min(self.next + room as u64);
        let range = self.next..end;
        self.next = end;
        Some(self.cut(range))
    }

    pub(super) fn take_lost(&mut self, room: usize) -> Option<Taken> {
        let first = self.lost.first()?;
        let range = first.start..first.end.min(first.start + room as u64);
        self.lost.remove(&range);
        Some(self.cut(range))
    }

    fn cut(&mut self, range: Range<u64>) -> Taken {
        let fin = self.finished && range.end == self.end();
        self.fin_sent |= fin;
        let place = |offset: u64| usize::try_from(offset.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let (start, end) = (place(range.start), place(range.end).min(self.buffer.len()));
        let bytes = self.buffer.range(start.min(end)..end).copied().collect();
        (range, fin, bytes)
    }

    /// True when a writer that waited may go on.
    pub(super) fn acked(&mut self, range: Range<u64>, fin: bool, limit: usize) -> bool {
        self.losses = 0;
        self.fin_acked |= fin;
        if self.reset.is_some() {
            return false;
        }
        self.lost.remove(&range);
        self.acked.insert(range.start.max(self.base)..range.end.max(self.base));
        if let Some(first) = self.acked.first()
            && first.start <= self.base
        {
            let count = usize::try_from(first.end - self.base).unwrap_or(usize::MAX);
            self.buffer.drain(..count.min(self.buffer.len()));
            self.base = first.end;
            self.acked.pop_first();
            if self.buffer.is_empty() {
                // A burst's capacity is not kept.
                self.buffer = VecDeque::new();
            }
        }
        let told = self.blocked && self.buffer.len() <= limit / 2;
        self.blocked &= !told;
        told
    }

    pub(super) fn lost(&mut self, range: Range<u64>, fin: bool, reported: bool) -> Result<(), Violation> {
        if self.reset.is_some() {
            return Ok(());
        }
        self.losses += u32::from(reported);
        if self.losses > MAX_LOST_IN_A_ROW {
            return Err(Violation::NackStorm);
        }
        if fin && !self.fin_acked {
            self.fin_sent = false;
        }
        let range = range.start.max(self.base)..range.end.max(self.base);
        self.lost.insert(range.clone());
        let acked: Vec<_> = self
            .acked
            .iter_down()
            .filter(|have| have.end > range.start)
            .cloned()
            .collect();
        acked.iter().for_each(|have| self.lost.remove(have));
        Ok(())
    }

    pub(super) fn raise_credit(&mut self, offset: u64) {
        self.credit = self.credit.max(offset);
    }
}
