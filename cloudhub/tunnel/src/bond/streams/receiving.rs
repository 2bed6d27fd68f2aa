//! The receiver's half of a stream: pieces put together within the credit granted.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};

use super::{INITIAL_CREDIT, Read};
use crate::bond::faults::Faults;
use crate::bond::violation::Violation;

/// What a piece costs beside its bytes.
const PIECE_COST: usize = 128;
/// Pieces that may wait whatever their size; beyond them 256 bytes a piece on average.
const FREE_PIECES: usize = 64;

#[derive(Debug)]
pub(super) struct Receiving {
    /// Offset of the first byte that was not read.
    read: u64,
    pieces: BTreeMap<u64, Bytes>,
    bytes: usize,
    highest: u64,
    credit: u64,
    end: Option<u64>,
    end_read: bool,
    reset: Option<u32>,
    stop: Option<u32>,
    /// The owner knows that there is something to read.
    told: bool,
    faults: Faults,
}

impl Receiving {
    pub(super) fn new(faults: Faults) -> Self {
        Self {
            read: 0,
            pieces: BTreeMap::new(),
            bytes: 0,
            highest: 0,
            credit: INITIAL_CREDIT,
            end: None,
            end_read: false,
            reset: None,
            stop: None,
            told: false,
            faults,
        }
    }

    /// Ok(false) when there is no room.
    pub(super) fn handle(&mut self, offset: u64, fin: bool, payload: Bytes) -> Result<bool, Violation> {
        let end = offset.checked_add(payload.len() as u64).ok_or(Violation::Credit)?;
        if end > self.credit {
            return Err(Violation::Credit);
        }
        if self.end.is_some_and(|have| end > have || (fin && end != have)) || (fin && end < self.highest) {
            return Err(Violation::TwoEnds);
        }
        if self.reset.is_some() {
            return Ok(true);
        }
        if offset > self.read && self.pieces.len() >= FREE_PIECES + self.bytes / 256 {
            return Ok(false);
        }
        self.highest = self.highest.max(end);
        if fin {
            self.end = Some(end);
        }
        if self.stop.is_some() {
            self.read = self.read.max(end);
            self.end_read |= self.end.is_some();
            return Ok(true);
        }
        self.insert(offset, end, &payload);
        Ok(true)
    }

    /// Keeps what is new of a piece.
    fn insert(&mut self, offset: u64, end: u64, payload: &Bytes) {
        let mut cursor = if self.faults.dedup_off {
            offset
        } else {
            offset.max(self.read)
        };
        while cursor < end {
            let before = self.pieces.range(..=cursor).next_back();
            if let Some((start, piece)) = before
                && start + piece.len() as u64 > cursor
            {
                cursor = start + piece.len() as u64;
                continue;
            }
            let next = self.pieces.range(cursor..).next().map_or(end, |(start, _)| *start);
            let stop = next.min(end);
            let at = |value: u64| usize::try_from(value - offset).unwrap_or(usize::MAX);
            let slice = payload.slice(at(cursor)..at(stop));
            // A small piece would keep its whole datagram in memory.
            let kept = if slice.len() < 512 {
                Bytes::copy_from_slice(&slice)
            } else {
                slice
            };
            self.bytes += kept.len() + PIECE_COST;
            self.pieces.insert(cursor, kept);
            cursor = stop;
        }
    }

    /// Whether the owner is to be told that it can read; once.
    pub(super) fn tell(&mut self) -> bool {
        let readable = self
            .pieces
            .first_key_value()
            .is_some_and(|(start, _)| *start <= self.read)
            || (self.end == Some(self.read) && !self.end_read);
        let tell = readable && !self.told;
        self.told |= readable;
        tell
    }

    pub(super) fn read(&mut self, limit: usize) -> Read {
        if self.reset.is_some() || self.stop.is_some() {
            self.end_read |= self.reset.is_some();
            return Read::End;
        }
        if let Some(mut entry) = self.pieces.first_entry()
            && *entry.key() <= self.read
        {
            let start = *entry.key();
            let piece = entry.get_mut();
            if piece.len() <= limit {
                let piece = entry.remove();
                self.read = self.read.max(start + piece.len() as u64);
                self.bytes -= piece.len() + PIECE_COST;
                return Read::Bytes(piece);
            }
            let head = piece.copy_to_bytes(limit.max(1));
            let rest = entry.remove();
            self.read = start + head.len() as u64;
            self.bytes -= head.len();
            self.pieces.insert(self.read, rest);
            return Read::Bytes(head);
        }
        if self.end == Some(self.read) {
            self.end_read = true;
            return Read::End;
        }
        self.told = false;
        Read::Blocked
    }

    /// Grants more when a quarter of the window is used, as far as `spare` goes; true when the peer is to be told. A stream that has
    /// brought little gets little: one that only waits must not keep what another could use.
    pub(super) fn grant(&mut self, window: u64, spare: u64) -> bool {
        let ahead = INITIAL_CREDIT + spare.min(window.saturating_sub(INITIAL_CREDIT)).min(self.read);
        let wanted = self.read + ahead;
        if self.end.is_some() || wanted < self.credit + ahead / 4 {
            return false;
        }
        self.credit = wanted;
        true
    }

    /// Credit that is open beyond what every stream has.
    pub(super) fn beyond_first(&self) -> u64 {
        (self.credit - self.read.min(self.credit)).saturating_sub(INITIAL_CREDIT)
    }

    pub(super) fn credit(&self) -> u64 {
        self.credit
    }

    pub(super) fn reset(&mut self, code: u32) -> bool {
        if self.reset.is_some() || self.end_read {
            return false;
        }
        self.reset = Some(code);
        self.discard();
        true
    }

    pub(super) fn stop(&mut self, code: u32) -> bool {
        if self.stop.is_some() || self.is_over() {
            return false;
        }
        self.stop = Some(code);
        self.end_read |= self.end.is_some();
        self.read = self.read.max(self.highest);
        self.discard();
        true
    }

    fn discard(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    pub(super) fn stop_code(&self) -> Option<u32> {
        self.stop
    }

    pub(super) fn is_over(&self) -> bool {
        self.end_read || self.reset.is_some()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
