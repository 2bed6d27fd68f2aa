//! Packets of the IP tunnel on their way: kept from their first transmission until the peer has them or their time is over.
//!
//! Each has a number of its own (the peer drops what it has seen) beside its place in its flow. A packet that is larger than a
//! path's datagram goes in two halves, cut in the middle whatever the path, so that each half can be repaired over any path.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::flow::Flows;
use super::frame::{Order, Part};
use super::path::{Loss, PathId};
use super::policy::Carries;
use super::violation::Violation;
use crate::types::Priority;

/// Later than this nobody waits for a packet any more: TCP has repeated it. The receiver's longest hold is the same.
pub(crate) const LIFETIME: Duration = Duration::from_millis(400);
/// Bytes of packets on their way: 150 Mbit/s for 200 ms. Then new ones wait.
const MAX_KEPT: usize = 4 << 20;
/// Packets on their way: half of the peer's window of numbers, so that it never takes a repair for something seen.
const MAX_SPAN: usize = 32 * 1024;
/// Losses of one packet that the peer may report, those within a millisecond counted once. It may refuse the same packet each round trip while
/// it has no room, for as long as it holds others back; nothing is repeated for longer than [`LIFETIME`].
const MAX_REPORTS: u16 = 320;
const REPORTS_APART: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Kept {
    packet: Bytes,
    priority: Priority,
    flow: u16,
    sequence: u32,
    order: Order,
    sent: Duration,
    /// Halves that the peer has not acknowledged.
    missing: u8,
    /// Halves that are to be sent (again).
    resend: u8,
    resend_since: Duration,
    lost_on: Option<PathId>,
    reports: u16,
    counted: Duration,
}

/// A packet or a half of one, ready to be written.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) number: u64,
    pub(crate) flow: u16,
    pub(crate) sequence: u32,
    pub(crate) order: Order,
    pub(crate) part: Part,
    pub(crate) payload: Bytes,
}

/// What is to be repaired next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repair {
    pub(crate) since: Duration,
    /// Bytes of it that are to be sent.
    pub(crate) size: usize,
    pub(crate) priority: Priority,
    /// The path that lost it.
    pub(crate) lost_on: Option<PathId>,
}

/// What waits and what is on its way.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    pub(crate) flows: Flows,
    base: u64,
    kept: VecDeque<Option<Kept>>,
    bytes: usize,
    /// Those that are to be sent (again), a set a priority.
    resend: [BTreeSet<u64>; 4],
    /// Packets whose time was over before the peer had them.
    pub(crate) expired: u64,
    /// Packets that found the queue full.
    pub(crate) overflowed: u64,
    /// Halves and packets sent again.
    pub(crate) repaired: u64,
}

impl Datagrams {
    /// Whether a new packet may leave.
    pub(crate) fn may_start(&self) -> bool {
        self.bytes < MAX_KEPT && self.kept.len() < MAX_SPAN
    }

    /// Bytes kept for repair.
    pub(crate) fn kept(&self) -> usize {
        self.bytes
    }

    /// Lets the packet whose turn it is leave over a path that takes `room` bytes of it; None when not even half of it fits.
    pub(crate) fn start(&mut self, now: Duration, priority: Priority, room: usize) -> Option<Piece> {
        let size = self.flows.head(priority)?.0.packet.len();
        if size.div_ceil(2) > room {
            return None;
        }
        let leaving = self.flows.take(now, priority)?;
        self.bytes += size;
        self.kept.push_back(Some(Kept {
            packet: leaving.packet,
            priority,
            flow: leaving.flow,
            sequence: leaving.sequence,
            order: leaving.order,
            sent: now,
            missing: 3,
            resend: 3,
            resend_since: now,
            lost_on: None,
            reports: 0,
            counted: now,
        }));
        let number = self.base + self.kept.len() as u64 - 1;
        let piece = self.piece(number, room);
        if self.get(number).is_some_and(|kept| kept.resend != 0) {
            self.resend[priority.index()].insert(number);
        }
        piece
    }

    fn first_repair(&self, of: Carries) -> Option<u64> {
        let lanes = Priority::ALL.into_iter().filter(|priority| of.has(*priority));
        lanes
            .filter_map(|priority| self.resend[priority.index()].first().copied())
            .min()
    }

    /// The oldest packet of these priorities that is to be repaired.
    pub(crate) fn next_repair(&self, of: Carries) -> Option<Repair> {
        let number = self.first_repair(of)?;
        let kept = self.get(number)?;
        let size = match kept.resend {
            3 => kept.packet.len(),
            _ => kept.packet.len().div_ceil(2),
        };
        Some(Repair {
            since: kept.resend_since,
            size,
            priority: kept.priority,
            lost_on: kept.lost_on,
        })
    }

    /// A piece of that packet, of at most `room` bytes.
    pub(crate) fn repair(&mut self, of: Carries, room: usize) -> Option<Piece> {
        let number = self.first_repair(of)?;
        let piece = self.piece(number, room)?;
        self.repaired += 1;
        Some(piece)
    }

    /// The largest piece of a packet that fits.
    fn piece(&mut self, number: u64, room: usize) -> Option<Piece> {
        let kept = self.get_mut(number)?;
        let middle = kept.packet.len().div_ceil(2);
        let (part, range) = match kept.resend {
            3 if kept.packet.len() <= room => (Part::Whole, 0..kept.packet.len()),
            2 => (Part::Second, middle..kept.packet.len()),
            _ => (Part::First, 0..middle),
        };
        if range.len() > room {
            return None;
        }
        kept.resend &= !part.bits();
        let piece = Piece {
            number,
            flow: kept.flow,
            sequence: kept.sequence,
            order: kept.order,
            part,
            payload: kept.packet.slice(range),
        };
        let (lane, idle) = (kept.priority.index(), kept.resend == 0);
        if idle {
            self.resend[lane].remove(&number);
        }
        Some(piece)
    }

    /// The peer has a piece.
    pub(crate) fn acked(&mut self, number: u64, part: Part) {
        let Some(kept) = self.get_mut(number) else { return };
        kept.missing &= !part.bits();
        kept.resend &= kept.missing;
        let (done, idle, lane) = (kept.missing == 0, kept.resend == 0, kept.priority.index());
        if idle {
            self.resend[lane].remove(&number);
        }
        if done {
            self.forget(number);
        }
    }

    /// A piece is lost.
    pub(crate) fn lost(&mut self, loss: Loss, number: u64, part: Part) -> Result<(), Violation> {
        let Some(kept) = self.get_mut(number) else {
            return Ok(());
        };
        let again = part.bits() & kept.missing;
        if again == 0 {
            return Ok(());
        }
        if loss.reported && loss.now.saturating_sub(kept.counted) >= REPORTS_APART {
            (kept.reports, kept.counted) = (kept.reports.saturating_add(1), loss.now);
        }
        if kept.reports > MAX_REPORTS {
            return Err(Violation::NackStorm);
        }
        if kept.resend == 0 {
            kept.resend_since = loss.now;
        }
        kept.lost_on = Some(loss.path);
        kept.resend |= again;
        let lane = kept.priority.index();
        self.resend[lane].insert(number);
        Ok(())
    }

    /// Forgets what is too old.
    pub(crate) fn expire(&mut self, now: Duration) {
        while let Some(first) = self.kept.front() {
            if first
                .as_ref()
                .is_some_and(|kept| now.saturating_sub(kept.sent) <= LIFETIME)
            {
                break;
            }
            self.expired += u64::from(first.is_some());
            for lane in &mut self.resend {
                lane.remove(&self.base);
            }
            self.forget(self.base);
        }
    }

    /// When the oldest expires.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let first = self.kept.front()?.as_ref()?;
        Some(first.sent + LIFETIME + Duration::from_millis(1))
    }

    fn forget(&mut self, number: u64) {
        let place = number
            .checked_sub(self.base)
            .and_then(|place| usize::try_from(place).ok());
        if let Some(kept) = place.and_then(|place| self.kept.get_mut(place)?.take()) {
            self.bytes -= kept.packet.len();
        }
        while let Some(None) = self.kept.front() {
            self.kept.pop_front();
            self.base += 1;
        }
    }

    fn get(&self, number: u64) -> Option<&Kept> {
        let place = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.kept.get(place)?.as_ref()
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Kept> {
        let place = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.kept.get_mut(place)?.as_mut()
    }
}
