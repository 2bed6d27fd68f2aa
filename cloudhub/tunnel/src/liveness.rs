//! When a silent peer counts as dead. [`Liveness`] is pure; [`watch`] feeds it from a path's counters.
//!
//! The edge's transport sends a PING after 8 s without a word ([`PING_INTERVAL`]) and repeats it while unanswered. Who has
//! asked something (a PING, data) and hears nothing for [`ANSWER_WITHIN`], or hears nothing at all for [`SILENCE`], gives up:
//! a dead hub is noticed within 10 s, under traffic within 2 s.

use std::time::Duration;

use crate::path::{Counters, PathTransport};

/// Idle time after which the edge asks. With its ACK it is about 118 B, 1.3 MB a day.
pub const PING_INTERVAL: Duration = Duration::from_secs(8);
/// An answer takes one round trip; 1.5 s leaves room for two repeated probes, and 8 + 0.5 + 1.5 s is the promised 10.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Four round trips, where the link is slower than [`ANSWER_WITHIN`] assumes.
const ANSWER_WITHIN_RTTS: u32 = 4;
/// Nothing heard for so long: the peer's PING is 2 s overdue.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How often the counters are read: half a second of the 10.
const TICK: Duration = Duration::from_millis(500);

/// Whether the peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers, or had no reason to.
    Alive,
    /// It does not answer any more.
    Dead,
}

/// What is known of the peer's answers; time is monotonic, from any origin.
#[derive(Clone, Debug)]
pub struct Liveness {
    received: u64,
    heard_at: Duration,
    eliciting: u64,
    asked_at: Option<Duration>,
}

impl Liveness {
    /// Starts with a peer that has just been heard.
    pub fn new(now: Duration, counters: Counters) -> Self {
        Self {
            received: counters.received,
            heard_at: now,
            eliciting: counters.eliciting,
            asked_at: None,
        }
    }

    /// Looks at the counters again.
    pub fn observe(&mut self, now: Duration, counters: Counters) -> Verdict {
        if counters.received != self.received {
            *self = Self::new(now, counters);
            return Verdict::Alive;
        }
        if counters.eliciting != self.eliciting && self.asked_at.is_none() {
            self.asked_at = Some(now);
        }
        let answer_within = ANSWER_WITHIN.max(counters.rtt * ANSWER_WITHIN_RTTS);
        let unanswered = self.asked_at.is_some_and(|at| now.saturating_sub(at) >= answer_within);
        let silent = now.saturating_sub(self.heard_at) >= SILENCE.max(answer_within);
        if unanswered || silent {
            Verdict::Dead
        } else {
            Verdict::Alive
        }
    }
}

/// Resolves when the path's peer is dead. A tick that comes late counts for two at most: while this process was starved or stopped,
/// it could not have heard the answer.
pub(crate) async fn watch(path: &dyn PathTransport) {
    let mut now = Duration::ZERO;
    let mut liveness = Liveness::new(now, path.counters());
    loop {
        let before = tokio::time::Instant::now();
        tokio::time::sleep(TICK).await;
        now += before.elapsed().min(TICK * 2);
        if liveness.observe(now, path.counters()) == Verdict::Dead {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(received: u64, eliciting: u64) -> Counters {
        Counters {
            received,
            eliciting,
            rtt: Duration::from_millis(30),
        }
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_unanswered_ping_is_noticed_within_ten_seconds() {
        let mut liveness = Liveness::new(at(0), seen(5, 5));
        let mut now = 0;
        let dead_at = loop {
            now += 500;
            // The transport's PING leaves just after a tick, the worst case.
            let eliciting = if now > 8000 { 6 } else { 5 };
            if liveness.observe(at(now), seen(5, eliciting)) == Verdict::Dead {
                break now;
            }
        };
        assert!((9500..=10_000).contains(&dead_at), "{dead_at}");
    }

    #[test]
    fn data_without_an_answer_is_noticed_within_two_seconds() {
        let mut liveness = Liveness::new(at(0), seen(5, 5));
        assert_eq!(liveness.observe(at(500), seen(5, 9)), Verdict::Alive);
        assert_eq!(liveness.observe(at(1500), seen(5, 12)), Verdict::Alive);
        assert_eq!(liveness.observe(at(2000), seen(5, 12)), Verdict::Dead);
    }

    #[test]
    fn any_word_of_the_peer_starts_over() {
        let mut liveness = Liveness::new(at(0), seen(5, 5));
        assert_eq!(liveness.observe(at(500), seen(5, 9)), Verdict::Alive);
        assert_eq!(liveness.observe(at(1900), seen(6, 9)), Verdict::Alive);
        assert_eq!(liveness.observe(at(9000), seen(6, 9)), Verdict::Alive);
        assert_eq!(liveness.observe(at(11_900), seen(6, 9)), Verdict::Dead);
    }

    #[test]
    fn a_slow_link_gets_four_round_trips() {
        let slow = |received, eliciting| Counters {
            rtt: Duration::from_millis(900),
            ..seen(received, eliciting)
        };
        let mut liveness = Liveness::new(at(0), slow(1, 1));
        assert_eq!(liveness.observe(at(500), slow(1, 2)), Verdict::Alive);
        assert_eq!(liveness.observe(at(4000), slow(1, 3)), Verdict::Alive);
        assert_eq!(liveness.observe(at(4100), slow(1, 3)), Verdict::Dead);
    }
}
