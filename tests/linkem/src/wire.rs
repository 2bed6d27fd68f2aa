//! A direction that holds the packets until they are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::direction::{Cause, Counters, Direction, Fate};

/// A packet on its way.
#[derive(Debug)]
struct Transit<T> {
    due: u64,
    /// Of two that are due at once, the one offered first goes first.
    order: u64,
    left_at: u64,
    bytes: u64,
    copy: bool,
    corrupt: bool,
    packet: T,
}

impl<T> PartialEq for Transit<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}
impl<T> Eq for Transit<T> {}
impl<T> PartialOrd for Transit<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Transit<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// A packet that arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival<T> {
    /// When it was due, nanoseconds since the scenario began.
    pub due: u64,
    /// Whether a bit of it must be flipped.
    pub corrupt: bool,
    /// What was sent.
    pub packet: T,
}

/// A [`Direction`] with its packets. `T` is what stands for a packet; it is cloned for a copy.
#[derive(Debug)]
pub struct Wire<T> {
    direction: Direction,
    transit: BinaryHeap<Reverse<Transit<T>>>,
    most: usize,
    order: u64,
}

impl<T: Clone> Wire<T> {
    /// Holds at most `most` packets; further ones are dropped as by a full queue.
    #[must_use]
    pub fn new(direction: Direction, most: usize) -> Self {
        Self {
            direction,
            transit: BinaryHeap::new(),
            most,
            order: 0,
        }
    }

    /// Sends `packet`, `bytes` long on the wire, at `now`; says why it will not arrive, if so.
    pub fn send(&mut self, now: u64, bytes: usize, packet: T) -> Option<Cause> {
        let (at, duplicate, corrupt) = match self.direction.offer(now, bytes) {
            Fate::Drop(cause) => return Some(cause),
            Fate::Deliver { at, duplicate, corrupt } => (at, duplicate, corrupt),
        };
        if self.transit.len() >= self.most {
            self.direction.overflow(bytes as u64);
            return Some(Cause::Queue);
        }
        let (left_at, bytes) = (self.direction.left_at(), bytes as u64);
        let transit = |due, order, copy, packet| {
            Reverse(Transit {
                due,
                order,
                left_at,
                bytes,
                copy,
                corrupt,
                packet,
            })
        };
        if let Some(due) = duplicate {
            self.transit
                .push(transit(due.max(at), self.order + 1, true, packet.clone()));
        }
        self.transit.push(transit(at, self.order, false, packet));
        self.order += 2;
        None
    }

    /// When the next packet is due; silence may still swallow it.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.transit.peek().map(|Reverse(next)| next.due)
    }

    /// The next packet that is due at `now`.
    pub fn poll(&mut self, now: u64) -> Option<Arrival<T>> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(next) = self.transit.pop()?;
            if !self.direction.is_silent_at(next.left_at) {
                return Some(Arrival {
                    due: next.due,
                    corrupt: next.corrupt,
                    packet: next.packet,
                });
            }
            if !next.copy {
                self.direction.swallow(next.bytes);
            }
        }
        None
    }

    /// How many packets are on the way or wait.
    #[must_use]
    pub fn in_transit(&self) -> usize {
        self.transit.len()
    }

    /// The model behind it.
    pub fn direction(&mut self) -> &mut Direction {
        &mut self.direction
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> &Counters {
        self.direction.stats()
    }
}
