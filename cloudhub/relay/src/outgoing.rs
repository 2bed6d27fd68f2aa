//! From a link into a transport whose queues fill up.
//!
//! A message that finds its queue full is held here, one a priority; what is more urgent goes on past it, and the owner
//! goes on receiving. So acknowledgements never wait behind bulk, and two ends that are both full do not wait for each
//! other.

use std::time::Duration;

use bytes::Bytes;
use wire::{Now, Priority};

use crate::link::{Link, Transmit};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// The transport has it (or it can never be sent and is dropped).
    Taken,
    /// The queue of its priority is full.
    Busy,
}

/// The most urgent first.
const PRIORITIES: [Priority; 4] = [
    Priority::Urgent,
    Priority::Interactive,
    Priority::Normal,
    Priority::Bulk,
];

/// Messages that wait for room, at most one a priority.
#[derive(Debug, Default)]
pub struct Outgoing {
    held: [Option<Transmit>; 4],
}

impl Outgoing {
    /// Hands over what the link has to send now; `Ok(false)` when something waits for room in the transport.
    ///
    /// # Errors
    /// What `push` says when the transport is closed.
    pub fn drain<E>(
        &mut self,
        link: &mut Link,
        now: Now,
        mut push: impl FnMut(Priority, Bytes) -> Result<Push, E>,
    ) -> Result<bool, E> {
        let mut limit = None;
        for priority in PRIORITIES {
            let Some(held) = self.held[priority as usize].take() else {
                continue;
            };
            if !self.push(held, &mut push)? {
                limit = Some(priority);
                break;
            }
        }
        loop {
            let next = match limit {
                None => link.poll_transmit(now),
                Some(limit) => link.poll_transmit_before(now, limit),
            };
            let Some(transmit) = next else {
                return Ok(limit.is_none());
            };
            let priority = transmit.priority;
            if !self.push(transmit, &mut push)? {
                limit = Some(priority);
            }
        }
    }

    /// When to call [`Self::drain`] again though nothing arrived and there is no more room: boot time. What is blocked has no time:
    /// however long it is overdue, only room helps.
    #[must_use]
    pub fn timeout(&self, link: &Link) -> Option<Duration> {
        let mut blocked = PRIORITIES
            .into_iter()
            .filter(|priority| self.held[*priority as usize].is_some());
        match blocked.next() {
            None => link.poll_timeout(),
            Some(limit) => link.poll_timeout_before(limit),
        }
    }

    /// Hands over all copies, or holds those that found no room.
    fn push<E>(
        &mut self,
        mut transmit: Transmit,
        push: &mut impl FnMut(Priority, Bytes) -> Result<Push, E>,
    ) -> Result<bool, E> {
        while transmit.copies > 0 {
            match push(transmit.priority, transmit.message.clone())? {
                Push::Taken => transmit.copies -= 1,
                Push::Busy => {
                    let priority = transmit.priority;
                    self.held[priority as usize] = Some(transmit);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Faults, Item};
    use std::convert::Infallible;
    use wire::ClassId;

    #[test]
    fn urgent_passes_what_waits_and_nothing_is_lost() {
        let now = Now::default();
        let mut link = Link::new(Faults::default());
        let mut outgoing = Outgoing::default();
        for _ in 0..3 {
            link.send(now, Item::new(ClassId::EVENT, Bytes::from_static(b"bulk")))
                .unwrap();
        }
        let mut sent = Vec::new();
        let mut full = |priority, _| -> Result<Push, Infallible> {
            if priority == Priority::Bulk {
                return Ok(Push::Busy);
            }
            sent.push(priority);
            Ok(Push::Taken)
        };
        assert_eq!(outgoing.drain(&mut link, now, &mut full), Ok(false));
        link.send(now, Item::new(ClassId::CONTROL, Bytes::from_static(b"urgent")))
            .unwrap();
        assert_eq!(outgoing.drain(&mut link, now, &mut full), Ok(false));
        assert_eq!(sent, [Priority::Urgent]);
        let mut count = 0;
        let all = outgoing.drain(&mut link, now, |_, _| -> Result<Push, Infallible> {
            count += 1;
            Ok(Push::Taken)
        });
        assert_eq!((all, count), (Ok(true), 3));
    }

    #[test]
    fn what_is_blocked_and_overdue_keeps_nobody_awake() {
        let mut now = Now::default();
        let mut link = Link::new(Faults::default());
        let mut outgoing = Outgoing::default();
        link.send(now, Item::new(ClassId::DESIRED, Bytes::from_static(b"a pod")))
            .unwrap();
        let all = outgoing.drain(&mut link, now, |_, _| Ok::<_, Infallible>(Push::Taken));
        assert_eq!(all, Ok(true));
        let repeat = outgoing.timeout(&link).expect("it is not acknowledged yet");
        // The session is dormant from here on.
        now.boottime = repeat;
        let blocked = |priority, _| -> Result<Push, Infallible> {
            Ok(if priority > Priority::Interactive {
                Push::Busy
            } else {
                Push::Taken
            })
        };
        assert_eq!(outgoing.drain(&mut link, now, blocked), Ok(false));
        now.boottime += Duration::from_secs(60);
        assert_eq!(outgoing.drain(&mut link, now, blocked), Ok(false));
        assert_eq!(outgoing.timeout(&link), None);
        // What is more urgent still has its time.
        link.send(now, Item::new(ClassId::CONTROL, Bytes::from_static(b"urgent")))
            .unwrap();
        assert_eq!(outgoing.drain(&mut link, now, blocked), Ok(false));
        assert!(outgoing.timeout(&link).is_some_and(|at| at > now.boottime));
        // And with room all go on.
        let all = outgoing.drain(&mut link, now, |_, _| Ok::<_, Infallible>(Push::Taken));
        assert_eq!(all, Ok(true));
        assert!(outgoing.timeout(&link).is_some_and(|at| at > now.boottime));
    }
}
