//! One end of a session: all classes in both directions.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use wire::proto::{Packet, packet};
use wire::{CLASSES, ClassId, DecodeError, Now, Priority};

use crate::faults::Faults;
use crate::receiver::Receiver;
use crate::sender::{Fate, Sender};

/// Why an item was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendError {
    /// The class's queue is full: send again after an [`Event::Acked`] of it.
    #[error("the queue of the class is full")]
    Busy,
    /// It has no time left to live.
    #[error("the item has expired")]
    Expired,
    /// It is larger than an item may be.
    #[error("{size} bytes are more than the {} that an item may have", wire::MAX_ITEM)]
    TooLarge {
        /// Its size, bytes.
        size: usize,
    },
    /// There is no such class.
    #[error("there is no class {0}")]
    Class(u8),
}

/// Something to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its class.
    pub class: ClassId,
    /// What a newer item of the same key supersedes (latest-per-key classes).
    pub key: String,
    /// At most [`wire::MAX_ITEM`] bytes.
    pub payload: Bytes,
    /// Comes back with what became of it.
    pub token: u64,
    /// After this it must not be delivered (expiring classes).
    pub ttl: Option<Duration>,
}

impl Item {
    /// An item without key, token and time to live.
    #[must_use]
    pub fn new(class: ClassId, payload: Bytes) -> Self {
        Self {
            class,
            key: String::new(),
            payload,
            token: 0,
            ttl: None,
        }
    }
}

/// What a link tells its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An item arrived. The owner of a durable class makes it durable, then calls [`Link::commit`].
    Received {
        /// Its class.
        class: ClassId,
        /// Its number in the class.
        seq: u64,
        /// Its key.
        key: String,
        /// What was sent.
        payload: Bytes,
    },
    /// The peer has an item (of a durable class: has committed it).
    Acked {
        /// Its class.
        class: ClassId,
        /// What the sender gave with it.
        token: u64,
    },
    /// An item will not be delivered: superseded, expired, or pushed out of a sampled queue.
    Dropped {
        /// Its class.
        class: ClassId,
        /// What the sender gave with it.
        token: u64,
    },
}

/// A message for the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Who goes first.
    pub priority: Priority,
    /// How many times to send it.
    pub copies: u8,
    /// At most [`wire::MAX_MESSAGE`] bytes.
    pub message: Bytes,
}

/// One end of a session.
#[derive(Debug)]
pub struct Link {
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    events: VecDeque<Event>,
    order: Vec<usize>,
}

impl Default for Link {
    fn default() -> Self {
        Self::new(Faults::default())
    }
}

impl Link {
    /// An end at the start of a session.
    #[must_use]
    pub fn new(faults: Faults) -> Self {
        let ids = |row: usize| ClassId(u8::try_from(row).expect("there are few classes"));
        let mut order: Vec<usize> = (0..CLASSES.len()).collect();
        order.sort_by_key(|class| CLASSES[*class].priority);
        Self {
            senders: CLASSES
                .iter()
                .enumerate()
                .map(|(n, row)| Sender::new(ids(n), row, faults))
                .collect(),
            receivers: CLASSES
                .iter()
                .enumerate()
                .map(|(n, row)| Receiver::new(ids(n), row, faults))
                .collect(),
            events: VecDeque::new(),
            order,
        }
    }

    /// Queues an item; its token comes back with its [`Event::Acked`] or [`Event::Dropped`].
    ///
    /// # Errors
    /// When the class's queue is full, the item is too large or has no time to live, or there is no such class.
    pub fn send(&mut self, now: Now, item: Item) -> Result<(), SendError> {
        let class = item.class.0;
        self.senders
            .get_mut(usize::from(class))
            .ok_or(SendError::Class(class))?
            .push(now, item)
    }

    /// Whether the class takes another item.
    #[must_use]
    pub fn has_room(&self, class: ClassId) -> bool {
        self.senders.get(usize::from(class.0)).is_some_and(Sender::has_room)
    }

    /// Whether everything that was sent is acknowledged.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.senders.iter().all(Sender::is_idle)
    }

    /// Takes a message from the tunnel.
    ///
    /// # Errors
    /// When it is malformed. A class that is not known is ignored: a newer peer may have one.
    pub fn handle_message(&mut self, now: Now, message: Bytes) -> Result<(), DecodeError> {
        let size = message.len();
        match wire::decode_packet(message)? {
            packet::Body::Frame(mut frame) => {
                if frame.payload.len() < size / 2 {
                    // A small payload would keep its whole message in memory.
                    frame.payload = Bytes::copy_from_slice(&frame.payload);
                }
                let Some(receiver) = self.receivers.get_mut(frame.class as usize) else {
                    return Ok(());
                };
                let class = ClassId(u8::try_from(frame.class).unwrap_or(u8::MAX));
                for item in receiver.handle(now, frame) {
                    let (seq, key, payload) = (item.seq, item.key, item.payload);
                    self.events.push_back(Event::Received {
                        class,
                        seq,
                        key,
                        payload,
                    });
                }
            }
            packet::Body::Ack(ack) => {
                if let Some(sender) = self.senders.get_mut(ack.class as usize) {
                    sender.acked(now, &ack);
                }
            }
        }
        Ok(())
    }

    /// The owner has made all items of `class` up to `seq` durable (of a class that is not ordered: this one).
    pub fn commit(&mut self, class: ClassId, seq: u64) {
        if let Some(receiver) = self.receivers.get_mut(usize::from(class.0)) {
            receiver.commit(seq);
        }
    }

    /// The next message to send now: acknowledgements first, then by priority.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Transmit> {
        self.poll_ack().or_else(|| self.poll_frame(now, |_| true))
    }

    /// The next message that is more urgent than `limit`.
    pub fn poll_transmit_before(&mut self, now: Now, limit: Priority) -> Option<Transmit> {
        if limit == Priority::Urgent {
            return None;
        }
        self.poll_ack()
            .or_else(|| self.poll_frame(now, |priority| priority < limit))
    }

    fn poll_ack(&mut self) -> Option<Transmit> {
        let receivers = &mut self.receivers;
        let ack = self.order.iter().find_map(|class| receivers[*class].poll())?;
        Some(Transmit {
            priority: Priority::Urgent,
            copies: 1,
            message: wire::encode(&Packet {
                body: Some(packet::Body::Ack(ack)),
            }),
        })
    }

    fn poll_frame(&mut self, now: Now, wanted: impl Fn(Priority) -> bool) -> Option<Transmit> {
        let senders = &mut self.senders;
        let wanted = self.order.iter().filter(|class| wanted(CLASSES[**class].priority));
        let (row, frame) = wanted
            .copied()
            .find_map(|class| Some((&CLASSES[class], senders[class].poll(now)?)))?;
        Some(Transmit {
            priority: row.priority,
            copies: row.copies,
            message: wire::encode(&Packet {
                body: Some(packet::Body::Frame(frame)),
            }),
        })
    }

    /// When to call [`Self::poll_transmit`] again though nothing arrived: boot time.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.senders.iter().filter_map(Sender::timeout).min()
    }

    /// The same of [`Self::poll_transmit_before`].
    #[must_use]
    pub fn poll_timeout_before(&self, limit: Priority) -> Option<Duration> {
        let senders = CLASSES.iter().zip(&self.senders);
        let wanted = senders.filter(|(row, _)| row.priority < limit);
        wanted.filter_map(|(_, sender)| sender.timeout()).min()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        for (number, sender) in self.senders.iter_mut().enumerate() {
            let class = ClassId(u8::try_from(number).unwrap_or(u8::MAX));
            while let Some(fate) = sender.fates.pop_front() {
                self.events.push_back(match fate {
                    Fate::Acked(token) => Event::Acked { class, token },
                    Fate::Dropped(token) => Event::Dropped { class, token },
                });
            }
        }
        self.events.pop_front()
    }
}
