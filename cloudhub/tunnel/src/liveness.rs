//! When a silent peer counts as dead. [`Liveness`] is pure; the task that runs a path feeds it from the path's counters.
//!
//! The edge's transport sends a PING after a while without a word ([`PING_INTERVAL`], on a metered uplink [`PING_INTERVAL_METERED`]) and
//! repeats it while unanswered. Who has asked something (a PING, data) and hears nothing for [`ANSWER_WITHIN`] and [`QUIET`] suspects the path; who
//! hears nothing at all for the interval and [`OVERDUE`] takes it for dead: a dead hub is noticed within 10 s.
//!
//! A process that was stopped reads an answer late, and takes that for a round trip: after 30 s quinn's smoothed one says 4 s, and forgets
//! it over many answers. So the least of the last minute counts, and nothing delays the 10 s.

use std::time::Duration;

use crate::least::Least;
use crate::path::Counters;

/// Idle time after which the edge asks. With its ACK it is about 118 B, 1.3 MB a day.
pub const PING_INTERVAL: Duration = Duration::from_secs(8);
/// The same where each byte costs: 0.4 MB a day.
pub const PING_INTERVAL_METERED: Duration = Duration::from_secs(25);
/// An answer takes one round trip; 1.5 s leaves room for two repeated probes, and 8 + 0.5 + 1.5 s is the promised 10.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// And so long after the peer was heard last: a hub that has something for ten thousand edges at once needs a second or two until it answers
/// the last of them, and is not to be asked by all of them meanwhile. That a path is dead beside others that live, the bond sees sooner.
const QUIET: Duration = Duration::from_secs(4);
/// Four round trips, where the link is slower than [`ANSWER_WITHIN`] assumes.
const ANSWER_WITHIN_RTTS: u32 = 4;
/// The least round trip of one or two of these counts: some PINGs of an idle path.
const RTT_WINDOW: Duration = Duration::from_secs(30);
/// How late the peer's PING may be.
pub const OVERDUE: Duration = Duration::from_secs(2);
/// How often the counters are read: half a second of the 10.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// Whether the peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers, or had no reason to.
    Alive,
    /// It was asked and has not answered.
    Unanswered,
    /// Nothing at all has been heard for too long.
    Silent,
}

/// What is known of the peer's answers; time is monotonic, from any origin.
#[derive(Clone, Debug)]
pub struct Liveness {
    now: Duration,
    silence: Duration,
    received: u64,
    heard_at: Duration,
    eliciting: u64,
    asked_at: Option<Duration>,
    /// Of quinn's smoothed ones.
    rtt: Least,
}

impl Liveness {
    /// Starts at time 0 with a peer that has just been heard and pings, or is pinged, at this interval.
    pub fn new(ping_interval: Duration, counters: Counters) -> Self {
        Self {
            now: Duration::ZERO,
            silence: ping_interval + OVERDUE,
            received: counters.received,
            heard_at: Duration::ZERO,
            eliciting: counters.eliciting,
            asked_at: None,
            rtt: Least::new(RTT_WINDOW, Duration::ZERO, counters.rtt),
        }
    }

    /// How long an answer may take.
    fn answer_within(&self) -> Duration {
        let rtt = self.rtt.get();
        ANSWER_WITHIN.max(rtt * ANSWER_WITHIN_RTTS).min(self.silence)
    }

    /// Looks at the counters again, so long after the last look. A look that comes late counts for two ticks at most: while this
    /// process was starved or stopped, it could not have heard the answer.
    pub fn observe(&mut self, elapsed: Duration, counters: Counters) -> Verdict {
        self.now += elapsed.min(TICK * 2);
        if counters.received != self.received {
            self.received = counters.received;
            self.heard_at = self.now;
            self.eliciting = counters.eliciting;
            self.asked_at = None;
            self.rtt.note(self.now, counters.rtt);
            return Verdict::Alive;
        }
        if counters.eliciting != self.eliciting && self.asked_at.is_none() {
            self.asked_at = Some(self.now);
        }
        if self.now.saturating_sub(self.heard_at) >= self.silence {
            return Verdict::Silent;
        }
        match self.asked_at {
            Some(at) if self.now >= (at + self.answer_within()).max(self.heard_at + QUIET) => Verdict::Unanswered,
            _ => Verdict::Alive,
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
            ..Counters::default()
        }
    }

    fn peer() -> Liveness {
        Liveness::new(PING_INTERVAL, seen(5, 5))
    }

    /// The verdicts of so many ticks with these counters.
    fn ticks(liveness: &mut Liveness, count: u32, counters: Counters) -> Vec<Verdict> {
        (0..count).map(|_| liveness.observe(TICK, counters)).collect()
    }

    #[test]
    fn an_unanswered_ping_is_noticed_within_ten_seconds() {
        let mut liveness = peer();
        // The transport's PING leaves just after a tick, the worst case.
        assert!(
            ticks(&mut liveness, 16, seen(5, 5))
                .iter()
                .all(|it| *it == Verdict::Alive)
        );
        let after = ticks(&mut liveness, 4, seen(5, 6));
        assert_eq!(after[..3], [Verdict::Alive; 3]);
        assert_eq!(after[3], Verdict::Silent, "at 10 s");
    }

    #[test]
    fn data_without_an_answer_is_suspicious_after_four_seconds_and_the_end_after_ten() {
        let mut liveness = peer();
        assert_eq!(liveness.observe(TICK, seen(5, 9)), Verdict::Alive);
        let after = ticks(&mut liveness, 20, seen(5, 12));
        assert_eq!(after[..6], [Verdict::Alive; 6]);
        assert_eq!(after[6..18], [Verdict::Unanswered; 12]);
        assert_eq!(after[18..], [Verdict::Silent; 2]);
    }

    #[test]
    fn any_word_of_the_peer_starts_over() {
        let mut liveness = peer();
        ticks(&mut liveness, 3, seen(5, 9));
        assert_eq!(liveness.observe(TICK, seen(6, 9)), Verdict::Alive);
        assert!(
            ticks(&mut liveness, 19, seen(6, 9))
                .iter()
                .all(|it| *it == Verdict::Alive)
        );
        assert_eq!(liveness.observe(TICK, seen(6, 9)), Verdict::Silent);
        assert_eq!(liveness.observe(TICK, seen(7, 9)), Verdict::Alive);
    }

    #[test]
    fn a_slow_link_gets_four_round_trips() {
        let slow = |received, eliciting| Counters {
            rtt: Duration::from_millis(900),
            ..seen(received, eliciting)
        };
        let mut liveness = Liveness::new(PING_INTERVAL, slow(1, 1));
        let verdicts = ticks(&mut liveness, 9, slow(1, 2));
        assert_eq!(verdicts[..8], [Verdict::Alive; 8]);
        assert_eq!(verdicts[8], Verdict::Unanswered);
    }

    #[test]
    fn an_answer_that_a_stopped_process_read_late_delays_no_verdict() {
        // What quinn's estimator makes of 30 ms and one sample of 30 s: 4 round trips of it would be 15 s.
        let late = |received, eliciting| Counters {
            rtt: Duration::from_millis(3776),
            ..seen(received, eliciting)
        };
        let mut liveness = peer();
        assert_eq!(liveness.observe(Duration::from_secs(30), late(6, 5)), Verdict::Alive);
        let after = ticks(&mut liveness, 20, late(6, 6));
        assert_eq!(after[..7], [Verdict::Alive; 7]);
        assert_eq!(after[7], Verdict::Unanswered, "after 4 s");
        assert_eq!(after[19], Verdict::Silent, "after 10 s");
    }

    #[test]
    fn a_link_that_has_become_slow_is_believed_after_a_minute() {
        let slow = |received, eliciting| Counters {
            rtt: Duration::from_secs(1),
            ..seen(received, eliciting)
        };
        let mut liveness = peer();
        (6..136).for_each(|received| _ = liveness.observe(TICK, slow(received, 5)));
        let after = ticks(&mut liveness, 9, slow(135, 6));
        assert_eq!(after[..8], [Verdict::Alive; 8]);
        assert_eq!(after[8], Verdict::Unanswered);
    }

    #[test]
    fn a_metered_uplink_may_be_silent_for_longer() {
        let mut liveness = Liveness::new(PING_INTERVAL_METERED, seen(1, 1));
        let verdicts = ticks(&mut liveness, 54, seen(1, 1));
        assert_eq!(verdicts[..53], [Verdict::Alive; 53]);
        assert_eq!(verdicts[53], Verdict::Silent);
    }

    #[test]
    fn a_stopped_process_does_not_count() {
        let mut liveness = peer();
        assert_eq!(liveness.observe(Duration::from_secs(30), seen(5, 9)), Verdict::Alive);
    }
}
