//! Bounded queues, one per priority: a session's outbox and inbox.
//!
//! Owned by the session. Producers either get `Busy` ([`Queues::try_push`]) or wait ([`Queues::push`]); consumers take one
//! priority ([`Queues::pop`]: a path's lane) or the most urgent first ([`Queues::pop_any`]: the session's reader). Closing wakes
//! all of them; what is queued then is lost, which the contract allows.
//!
//! [`Backlog`] is what waits to be accepted: a channel of tokio has room for 32 items at once, and nearly always there is none.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::types::Priority;

/// Messages in one queue: enough to fill a pipe of 50 Mbit/s for 10 ms between two polls of the reader.
const MAX_COUNT: usize = 64;
/// Bytes in one queue; 4 queues × 2 directions bound a session at 2 MiB.
const MAX_BYTES: usize = 256 * 1024;

/// Why a push was not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    /// Full; try again after [`Queues::ready`].
    Busy,
    /// Closed for good.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    lanes: [VecDeque<Bytes>; 4],
    bytes: [usize; 4],
    closed: bool,
}

impl State {
    fn has_room(&self, lane: usize) -> bool {
        self.lanes[lane].len() < MAX_COUNT && self.bytes[lane] < MAX_BYTES
    }

    fn take(&mut self, lane: usize) -> Option<Bytes> {
        let message = self.lanes[lane].pop_front()?;
        self.bytes[lane] -= message.len();
        Some(message)
    }
}

/// Four bounded queues.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    state: Mutex<State>,
    filled: [Notify; 4],
    filled_any: Notify,
    room: Notify,
}

impl Queues {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the message, or says why not.
    pub(crate) fn try_push(&self, priority: Priority, message: Bytes) -> Result<(), PushError> {
        let lane = priority.index();
        {
            let mut state = self.lock();
            if state.closed {
                return Err(PushError::Closed);
            }
            if !state.has_room(lane) {
                return Err(PushError::Busy);
            }
            state.bytes[lane] += message.len();
            state.lanes[lane].push_back(message);
        }
        self.filled[lane].notify_one();
        self.filled_any.notify_one();
        Ok(())
    }

    /// Waits for room, then takes the message; false when closed.
    pub(crate) async fn push(&self, priority: Priority, message: Bytes) -> bool {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_push(priority, message.clone()) {
                Ok(()) => return true,
                Err(PushError::Closed) => return false,
                Err(PushError::Busy) => room.await,
            }
        }
    }

    /// The next message of this priority; `None` when closed. Cancel-safe.
    pub(crate) async fn pop(&self, priority: Priority) -> Option<Bytes> {
        let lane = priority.index();
        self.pop_by(&self.filled[lane], |state| state.take(lane)).await
    }

    /// The next message, the most urgent first, with its priority; `None` when closed. Cancel-safe.
    pub(crate) async fn pop_any(&self) -> Option<(Priority, Bytes)> {
        self.pop_by(&self.filled_any, |state| {
            Priority::ALL
                .into_iter()
                .find_map(|priority| Some((priority, state.take(priority.index())?)))
        })
        .await
    }

    async fn pop_by<T>(&self, filled: &Notify, take: impl Fn(&mut State) -> Option<T>) -> Option<T> {
        loop {
            let more = filled.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let taken = {
                let mut state = self.lock();
                match take(&mut state) {
                    Some(taken) => Some(taken),
                    None if state.closed => return None,
                    None => None,
                }
            };
            if let Some(taken) = taken {
                self.room.notify_waiters();
                return Some(taken);
            }
            more.await;
        }
    }

    /// Returns when every queue has room, or the queues are closed.
    pub(crate) async fn ready(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let state = self.lock();
                if state.closed || (0..Priority::ALL.len()).all(|lane| state.has_room(lane)) {
                    return;
                }
            }
            room.await;
        }
    }

    /// Closes: pushes fail, waiting consumers get `None` once the queue is drained.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        for filled in &self.filled {
            filled.notify_waiters();
        }
        self.filled_any.notify_waiters();
        self.room.notify_waiters();
    }
}

/// Items that wait for whoever takes them, at most so many.
#[derive(Debug)]
pub(crate) struct Backlog<T> {
    waiting: Mutex<VecDeque<T>>,
    limit: usize,
    filled: Notify,
    room: Notify,
}

impl<T> Backlog<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            limit,
            filled: Notify::new(),
            room: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room. Not cancel-safe: the item goes with the future.
    pub(crate) async fn push(&self, item: T) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut waiting = self.lock();
                if waiting.len() < self.limit {
                    waiting.push_back(item);
                    break;
                }
            }
            room.await;
        }
        self.filled.notify_one();
    }

    /// The oldest. Cancel-safe.
    pub(crate) async fn pop(&self) -> T {
        loop {
            let (item, more) = {
                let mut waiting = self.lock();
                (waiting.pop_front(), !waiting.is_empty())
            };
            if let Some(item) = item {
                self.room.notify_waiters();
                if more {
                    // Two words that came together are one.
                    self.filled.notify_one();
                }
                return item;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize) -> Bytes {
        Bytes::from(vec![7; size])
    }

    #[tokio::test]
    async fn the_most_urgent_message_comes_first() {
        let queues = Queues::default();
        queues.try_push(Priority::Bulk, message(3)).unwrap();
        queues.try_push(Priority::Urgent, message(1)).unwrap();
        assert_eq!(queues.pop_any().await.unwrap().0, Priority::Urgent);
        assert_eq!(queues.pop_any().await.unwrap().0, Priority::Bulk);
    }

    #[tokio::test]
    async fn a_full_queue_is_busy_and_others_are_not() {
        let queues = Queues::default();
        let mut taken = 0;
        while queues.try_push(Priority::Bulk, message(60_000)).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 5, "bounded by bytes");
        assert_eq!(queues.try_push(Priority::Urgent, message(1)), Ok(()));
        queues.pop(Priority::Bulk).await.unwrap();
        queues.ready().await;
        assert_eq!(queues.try_push(Priority::Bulk, message(1)), Ok(()));
    }

    #[tokio::test]
    async fn closing_wakes_everyone_after_the_queue_is_drained() {
        let queues = Queues::default();
        queues.try_push(Priority::Normal, message(1)).unwrap();
        queues.close();
        assert!(queues.pop(Priority::Normal).await.is_some());
        assert!(queues.pop(Priority::Normal).await.is_none());
        assert!(queues.pop_any().await.is_none());
        assert!(!queues.push(Priority::Bulk, message(1)).await);
        queues.ready().await;
    }

    #[tokio::test]
    async fn a_pusher_waits_for_room() {
        let queues = Queues::default();
        for _ in 0..MAX_COUNT {
            queues.try_push(Priority::Normal, message(1)).unwrap();
        }
        let push = queues.push(Priority::Normal, message(9));
        tokio::pin!(push);
        assert!(futures::poll!(push.as_mut()).is_pending());
        queues.pop(Priority::Normal).await.unwrap();
        assert!(push.await);
    }

    #[tokio::test]
    async fn a_backlog_is_bounded_and_each_item_is_taken_once_and_in_order() {
        let backlog = Backlog::new(2);
        let producer = async {
            for item in 0..100 {
                backlog.push(item).await;
                assert!(backlog.lock().len() <= 2);
            }
        };
        let taken = Mutex::new(Vec::new());
        let consumer = async || {
            loop {
                let item = backlog.pop().await;
                taken.lock().unwrap().push(item);
                if item >= 98 {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(producer, consumer(), consumer());
        assert_eq!(taken.into_inner().unwrap(), (0..100).collect::<Vec<_>>());
    }
}
