//! IP packets between their owner and the bond.
//!
//! - [`Driver::send_packets`] ← owner's task: as many as the bond has room for, under one lock
//! - bond → [`Incoming`] → [`Driver::take_packets`] → owner's task: a batch at a time, which it is woken for once
//!
//! On failure: an owner that is behind loses the newest packets, as behind a router with a full queue, and they are counted; what arrives
//! while nobody owns them is dropped.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Driver, State};
use crate::bond::SendError;
use crate::clock::boottime;

/// Packets that wait for their owner: at 1 Gbit/s for 10 ms and more, which the owner may be busy with what it took before.
const MAX_WAITING: usize = 2048;
/// Packets taken at a time: two super-packets of 64 KiB, and few enough for a path not to wait for the lock.
const TAKEN_AT_ONCE: usize = 128;
/// A queue's capacity that is kept over a lull, packets.
const KEPT_CAPACITY: usize = 64;

/// Packets that arrived.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Somebody has the session's packets.
    owned: bool,
    queue: VecDeque<Bytes>,
    /// Packets that found the queue full.
    dropped: u64,
    /// The owner waits for room in the bond.
    pub(super) wants_room: bool,
}

impl Incoming {
    /// One more, unless nobody wants it or there is no room for it.
    pub(super) fn push(&mut self, packet: Bytes) {
        if !self.owned {
            return;
        }
        if self.queue.len() >= MAX_WAITING {
            self.dropped += 1;
            return;
        }
        self.queue.push_back(packet);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Packets that were dropped because their owner was behind.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn take(&mut self, into: &mut Vec<Bytes>) {
        let count = self.queue.len().min(TAKEN_AT_ONCE);
        into.extend(self.queue.drain(..count));
        if self.queue.is_empty() && self.queue.capacity() > KEPT_CAPACITY {
            self.queue = VecDeque::new();
        }
    }
}

impl State {
    fn has_room_for_packets(&self) -> bool {
        self.over || self.bond.has_room_for_datagrams()
    }
}

impl Driver {
    /// For one owner; false while there is one.
    pub(crate) fn own_packets(&self) -> bool {
        !std::mem::replace(&mut self.peek().packets.owned, true)
    }

    /// There is no owner any more.
    pub(crate) fn disown_packets(&self) {
        let mut state = self.peek();
        state.packets.owned = false;
        state.packets.queue = VecDeque::new();
    }

    /// Hands packets to the bond, from the front until one is not taken; that one stays.
    pub(crate) fn send_packets(&self, packets: &mut VecDeque<Bytes>) -> Result<(), SendError> {
        let now = boottime();
        let mut state = self.change();
        while let Some(packet) = packets.front() {
            state.bond.send_datagram(now, packet.clone())?;
            packets.pop_front();
        }
        Ok(())
    }

    /// Hands all of them to the bond as a router would, which drops and counts what finds no room; returns how many are no packets for it.
    pub(crate) fn route_packets(&self, packets: &mut VecDeque<Bytes>) -> u64 {
        let now = boottime();
        let mut state = self.change();
        let mut refused = 0;
        for packet in packets.drain(..) {
            refused += u64::from(state.bond.route_datagram(now, packet).is_err());
        }
        refused
    }

    /// Returns when the bond has room for a batch of packets, or the session is over.
    pub(crate) async fn packets_ready(&self) {
        loop {
            let room = self.packet_room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut state = self.peek();
                if state.has_room_for_packets() {
                    return;
                }
                state.packets.wants_room = true;
            }
            room.await;
        }
    }

    /// Wakes the owner when there is room for what it has.
    pub(super) fn offer_room(&self, state: &mut State) {
        if state.packets.wants_room && state.has_room_for_packets() {
            state.packets.wants_room = false;
            self.packet_room.notify_waiters();
        }
    }

    /// Adds the packets that have arrived, a batch at most; waits for the first. False when the session is over. Cancel-safe; for one caller
    /// at a time.
    pub(crate) async fn take_packets(&self, into: &mut Vec<Bytes>) -> bool {
        loop {
            {
                let mut state = self.peek();
                if !state.packets.is_empty() {
                    state.packets.take(into);
                    return true;
                }
                if state.over {
                    return false;
                }
            }
            self.packets_arrived.notified().await;
        }
    }
}
