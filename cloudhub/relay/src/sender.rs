//! One class's sending side: what waits, what is on its way, and when it is sent again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use wire::proto::{Ack, Frame};
use wire::{ClassId, ClassRow, Delivery, Now};

use crate::faults::Faults;
use crate::link::{Item, SendError};
use crate::spare::remove;

/// Payload of one fragment; with its header it stays below a tunnel message.
const FRAGMENT: usize = 60 * 1024;
/// First repetition. The tunnel repeats lost packets itself: what is missing after this died with a path or a queue.
const REPEAT: Duration = Duration::from_secs(1);
/// Bookkeeping of one item, bytes; both ends count it against the budget.
pub(crate) const OVERHEAD: usize = 256;
/// Items on their way; fewer than a receiver's window.
const FLIGHTS: usize = 1024;
/// Repetitions back off to this.
const REPEAT_MAX: Duration = Duration::from_secs(8);

#[derive(Debug)]
struct Waiting {
    key: String,
    payload: Bytes,
    token: u64,
    /// Boot time after which it must not be delivered.
    deadline: Option<Duration>,
}

impl Waiting {
    fn cost(&self) -> usize {
        OVERHEAD + self.key.len() + self.payload.len()
    }
}

#[derive(Debug)]
struct Flight {
    item: Waiting,
    /// Fragments that wait to be sent (again).
    next: u32,
    fragments: u32,
    /// The receiver has it, though it has not committed it yet.
    received: bool,
    repeat_at: Duration,
    interval: Duration,
}

/// What happened to an item.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acked(u64),
    Dropped(u64),
}

#[derive(Debug)]
pub(crate) struct Sender {
    class: ClassId,
    row: &'static ClassRow,
    faults: Faults,
    waiting: VecDeque<Waiting>,
    flights: BTreeMap<u64, Flight>,
    in_flight: usize,
    next_seq: u64,
    pub(crate) fates: VecDeque<Fate>,
}

impl Sender {
    pub(crate) fn new(class: ClassId, row: &'static ClassRow, faults: Faults) -> Self {
        Self {
            class,
            row,
            faults,
            waiting: VecDeque::new(),
            flights: BTreeMap::new(),
            in_flight: 0,
            next_seq: 1,
            fates: VecDeque::new(),
        }
    }

    /// Takes an item; its time to live counts for expiring classes only.
    pub(crate) fn push(&mut self, now: Now, item: Item) -> Result<(), SendError> {
        let Item {
            key,
            payload,
            token,
            ttl,
            ..
        } = item;
        if payload.len() > wire::MAX_ITEM {
            return Err(SendError::TooLarge { size: payload.len() });
        }
        let deadline = ttl
            .filter(|_| self.row.delivery == Delivery::Expiring)
            .map(|ttl| now.boottime + ttl);
        if deadline.is_some_and(|d| d <= now.boottime) && !self.faults.expired_delivered {
            return Err(SendError::Expired);
        }
        let item = Waiting {
            key,
            payload,
            token,
            deadline,
        };
        if self.row.delivery == Delivery::LatestPerKey
            && let Some(at) = self.waiting.iter().position(|w| w.key == item.key)
        {
            if self.faults.superseded_last {
                let superseded = std::mem::replace(&mut self.waiting[at], item);
                self.waiting.push_back(superseded);
                return Ok(());
            }
            let superseded = std::mem::replace(&mut self.waiting[at], item);
            self.fates.push_back(Fate::Dropped(superseded.token));
            return Ok(());
        }
        if self.waiting.len() >= self.row.queue {
            if self.row.delivery != Delivery::Sampled {
                return Err(SendError::Busy);
            }
            if let Some(oldest) = self.waiting.pop_front() {
                self.fates.push_back(Fate::Dropped(oldest.token));
            }
        }
        self.waiting.push_back(item);
        Ok(())
    }

    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < self.row.queue
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.is_empty()
    }

    /// The next frame to send now.
    pub(crate) fn poll(&mut self, now: Now) -> Option<Frame> {
        self.expire(now);
        if let Some(seq) = self.due(now) {
            return self.frame(now, seq);
        }
        let has_room = self.in_flight < self.row.budget / 2 && self.flights.len() < FLIGHTS;
        if has_room || self.flights.is_empty() {
            let item = self.waiting.pop_front()?;
            let fragments = item.payload.len().div_ceil(FRAGMENT).max(1);
            let fragments = u32::try_from(fragments).expect("an item has at most MAX_ITEM bytes");
            let seq = self.next_seq;
            self.next_seq += 1;
            self.in_flight += item.cost();
            let flight = Flight {
                item,
                next: 0,
                fragments,
                received: false,
                repeat_at: Duration::MAX,
                interval: REPEAT,
            };
            self.flights.insert(seq, flight);
            return self.frame(now, seq);
        }
        None
    }

    /// The first item that has fragments to send now.
    fn due(&mut self, now: Now) -> Option<u64> {
        let due = |f: &Flight| (!f.received && f.next < f.fragments) || f.repeat_at <= now.boottime;
        let (seq, flight) = self.flights.iter_mut().find(|(_, flight)| due(flight))?;
        if flight.received {
            // It is there and not yet committed, or that acknowledgement was lost: one fragment asks for it.
            flight.next = flight.fragments - 1;
        } else if flight.next >= flight.fragments {
            flight.next = 0;
            flight.interval = (flight.interval * 2).min(REPEAT_MAX);
        }
        Some(*seq)
    }

    fn frame(&mut self, now: Now, seq: u64) -> Option<Frame> {
        let floor = self.floor();
        let class = u32::from(self.class.0);
        let flight = self.flights.get_mut(&seq)?;
        let fragment = flight.next;
        flight.next += 1;
        if flight.next >= flight.fragments {
            flight.repeat_at = now.boottime + flight.interval;
        }
        let start = fragment as usize * FRAGMENT;
        let end = (start + FRAGMENT).min(flight.item.payload.len());
        let ttl = flight.item.deadline.map_or(0, |deadline| {
            u64::try_from(deadline.saturating_sub(now.boottime).as_millis())
                .unwrap_or(u64::MAX)
                .max(1)
        });
        Some(Frame {
            class,
            seq,
            floor,
            fragment,
            fragments: flight.fragments,
            ttl_ms: ttl,
            key: flight.item.key.clone(),
            payload: flight.item.payload.slice(start..end),
        })
    }

    fn floor(&self) -> u64 {
        self.flights.keys().next().copied().unwrap_or(self.next_seq)
    }

    /// Gives up what must not be delivered any more.
    fn expire(&mut self, now: Now) {
        if self.row.delivery != Delivery::Expiring || self.faults.expired_delivered {
            return;
        }
        let late = |item: &Waiting| item.deadline.is_some_and(|d| d <= now.boottime);
        let fates = &mut self.fates;
        self.waiting.retain(|item| {
            let keep = !late(item);
            if !keep {
                fates.push_back(Fate::Dropped(item.token));
            }
            keep
        });
        let expired: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, f)| late(&f.item))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in expired {
            if let Some(flight) = remove(&mut self.flights, &seq) {
                self.in_flight -= flight.item.cost();
                self.fates.push_back(Fate::Dropped(flight.item.token));
            }
        }
    }

    /// Takes the receiver's acknowledgement. What `also` lists is received in an ordered class and committed in another.
    pub(crate) fn acked(&mut self, now: Now, ack: &Ack) {
        let ordered = matches!(self.row.delivery, Delivery::Ordered | Delivery::LatestPerKey);
        let mut committed: Vec<u64> = self.flights.range(..=ack.committed).map(|(seq, _)| *seq).collect();
        let mut received: Vec<u64> = self.flights.range(..=ack.received).map(|(seq, _)| *seq).collect();
        let list = if ordered { &mut received } else { &mut committed };
        list.extend(&ack.also);
        for seq in committed {
            self.finish(seq);
        }
        for seq in received {
            if !self.row.durable {
                self.finish(seq);
            } else if let Some(flight) = self.flights.get_mut(&seq).filter(|f| !f.received) {
                flight.received = true;
                flight.interval = REPEAT_MAX;
                flight.repeat_at = now.boottime + REPEAT_MAX;
            }
        }
    }

    fn finish(&mut self, seq: u64) {
        if let Some(flight) = remove(&mut self.flights, &seq) {
            self.in_flight -= flight.item.cost();
            self.fates.push_back(Fate::Acked(flight.item.token));
        }
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        let repeat = self.flights.values().map(|f| f.repeat_at);
        let expiry = self
            .flights
            .values()
            .map(|f| &f.item)
            .chain(&self.waiting)
            .filter_map(|i| i.deadline);
        repeat.chain(expiry).min().filter(|at| *at < Duration::MAX)
    }
}
