//! IP packets on their way into the queues: how many may wait.
//!
//! - [`Bond::send_datagram`]: a sender that can wait is told Busy at what the paths carry in [`QUEUE_TIME`]
//! - [`Bond::route_datagram`]: a device's packets are taken as a router takes them. Who sends them does not see our queue and does not wait, so
//!   they are dropped at the end of a deeper one; never for less urgent ones, and those of a flow that has nothing waiting hardly ever

use std::time::Duration;

use bytes::Bytes;

use super::datagrams::LIFETIME;
use super::flow::{self, Class, Waiting};
use super::frame::DATAGRAM_OVERHEAD;
use super::path::Path;
use super::{Bond, SendError};
use crate::types::Priority;

/// Bytes of tunnel packets that may always wait for a path.
const MIN_QUEUE: usize = 128 * 1024;
/// Beyond them, what the paths carry in so long: an inner TCP needs about a round trip.
pub(super) const QUEUE_TIME: Duration = Duration::from_millis(100);
/// Tunnel packets that may wait at most, bytes.
const MAX_QUEUE: usize = 4 << 20;
/// The same of a router's queue: the slow start of one TCP connection fits, before anything is known of the paths.
const MIN_DEPTH: usize = 2 * MIN_QUEUE;
/// What a flow with nothing waiting may still add to a full queue: all flows together.
const RESERVE: usize = 64 * 1024;
/// What QUIC's first packets take, where there is no path.
const FIRST_DATAGRAM: usize = 1162;

impl Bond {
    /// Queues an IP packet. Busy is backpressure: wait until the paths have carried some of it.
    ///
    /// # Errors
    /// [`SendError::Busy`], [`SendError::NotIp`], [`SendError::TooLarge`] when no path takes even half of it.
    pub fn send_datagram(&mut self, now: Duration, packet: Bytes) -> Result<(), SendError> {
        self.advance(now);
        let class = self.judge(&packet)?;
        let barred = self.barred();
        if self.drops_unroutable(class, barred) {
            return Ok(());
        }
        let full = self.queued(barred, Priority::Bulk) >= self.depth(QUEUE_TIME, MIN_QUEUE);
        let waiting = Waiting {
            packet,
            since: now,
            is_routed: false,
        };
        if full || !self.datagrams.flows.push(class, waiting) {
            return Err(SendError::Busy);
        }
        Ok(())
    }

    /// Queues an IP packet, or drops and counts it where the queue is full.
    ///
    /// # Errors
    /// [`SendError::NotIp`], [`SendError::TooLarge`] when no path takes even half of it.
    pub fn route_datagram(&mut self, now: Duration, packet: Bytes) -> Result<(), SendError> {
        self.advance(now);
        let class = self.judge(&packet)?;
        let barred = self.barred();
        if self.drops_unroutable(class, barred) {
            return Ok(());
        }
        let quiet = !self.datagrams.flows.is_waiting(&class.key);
        let depth = self.depth(LIFETIME, MIN_DEPTH) + if quiet { RESERVE } else { 0 };
        let waiting = Waiting {
            packet,
            since: now,
            is_routed: true,
        };
        if self.queued(barred, class.priority) >= depth || !self.datagrams.flows.push(class, waiting) {
            self.datagrams.overflowed += 1;
        }
        Ok(())
    }

    fn judge(&self, packet: &[u8]) -> Result<Class, SendError> {
        let class = flow::classify(packet).ok_or(SendError::NotIp)?;
        let datagram = self.paths.iter().map(|path| path.max_datagram).max();
        let limit = 2 * datagram.unwrap_or(FIRST_DATAGRAM).saturating_sub(DATAGRAM_OVERHEAD);
        if packet.len() > limit {
            return Err(SendError::TooLarge {
                size: packet.len(),
                limit,
            });
        }
        Ok(class)
    }

    /// As a router without a route: others must not wait behind what nobody may carry. Counted as expired.
    fn drops_unroutable(&mut self, class: Class, barred: [bool; 4]) -> bool {
        let drops = barred[class.priority.index()] && self.datagrams.flows.bytes(class.priority) >= MIN_QUEUE / 2;
        self.datagrams.expired += u64::from(drops);
        drops
    }

    /// Bytes of packets that wait and may go, those of this priority and more urgent ones.
    fn queued(&self, barred: [bool; 4], up_to: Priority) -> usize {
        let counted = |priority: &Priority| *priority <= up_to && !barred[priority.index()];
        let lanes = Priority::ALL.into_iter().filter(counted);
        lanes.map(|priority| self.datagrams.flows.bytes(priority)).sum()
    }

    /// Whether packets wait that no live path may carry.
    pub(super) fn has_barred_datagrams(&self) -> bool {
        self.datagrams.flows.total() > self.queued(self.barred(), Priority::Bulk)
    }

    /// Whether [`Self::send_datagram`] takes more.
    #[must_use]
    pub fn has_room_for_datagram(&self) -> bool {
        let queued = self.queued(self.barred(), Priority::Bulk);
        self.datagrams.flows.has_slot() && queued < self.depth(QUEUE_TIME, MIN_QUEUE)
    }

    /// Whether [`Self::send_datagram`] takes a batch: half of the queue is free. A sender that waited goes on then, not for each packet.
    #[must_use]
    pub fn has_room_for_datagrams(&self) -> bool {
        let queued = self.queued(self.barred(), Priority::Bulk);
        self.datagrams.flows.has_slot() && queued <= self.depth(QUEUE_TIME, MIN_QUEUE) / 2
    }

    /// What the live paths carry in so long, and at least so much, bytes.
    fn depth(&self, time: Duration, least: usize) -> usize {
        let live = self.paths.iter().filter(|path| path.is_live());
        let rate: u64 = live.map(Path::rate).sum();
        let millis = u64::try_from(time.as_millis()).unwrap_or(0);
        let carried = usize::try_from(rate.saturating_mul(millis) / 1000).unwrap_or(usize::MAX);
        carried.clamp(least, MAX_QUEUE)
    }
}
