//! When the last bit of a packet has been sent, for each kind of rate.

use crate::SECOND;
use crate::spec::{Rate, RateStep};
use crate::trace::{OPPORTUNITY, Trace};

/// The sending side of a direction: knows until when it is busy.
#[derive(Debug)]
pub(crate) struct Sender {
    kind: Kind,
    /// When the packet sent last has left.
    free: u64,
}

#[derive(Debug)]
enum Kind {
    Unlimited,
    Steps(Vec<RateStep>),
    Trace {
        trace: Trace,
        /// The opportunity that is being filled, and how many bytes of it are used.
        number: u64,
        used: u64,
    },
}

impl Sender {
    pub(crate) fn new(rate: &Rate) -> Self {
        let trace = |trace| Kind::Trace {
            trace,
            number: 0,
            used: 0,
        };
        let kind = match rate {
            Rate::Unlimited => Kind::Unlimited,
            Rate::Fixed(rate) => Kind::Steps(vec![RateStep { at: 0, rate: *rate }]),
            Rate::Steps(steps) => Kind::Steps(steps.clone()),
            Rate::Trace(given) => trace(given.clone()),
            Rate::Lte(lte) => trace(lte.trace()),
        };
        Self { kind, free: 0 }
    }

    /// Bits a second: fixed, the trace's mean, or the first step's that is not a pause; none when unlimited.
    pub(crate) fn nominal(&self) -> Option<u64> {
        match &self.kind {
            Kind::Unlimited => None,
            Kind::Steps(steps) => steps.iter().map(|step| step.rate).find(|rate| *rate > 0),
            Kind::Trace { trace, .. } => Some(trace.mean()),
        }
    }

    /// Sends `bytes` after all that was given before, not before `now`; says when the last bit has left.
    pub(crate) fn send(&mut self, now: u64, bytes: u64) -> u64 {
        let start = now.max(self.free);
        self.free = match &mut self.kind {
            Kind::Unlimited => start,
            Kind::Steps(steps) => by_steps(steps, start, bytes),
            Kind::Trace { trace, number, used } => {
                if trace.time(*number) < now {
                    (*number, *used) = (trace.first_at(now), 0);
                }
                let mut left = bytes;
                while left > OPPORTUNITY - *used {
                    left -= OPPORTUNITY - *used;
                    (*number, *used) = (*number + 1, 0);
                }
                *used += left;
                trace.time(*number)
            }
        };
        self.free
    }
}

/// When `bytes` that begin at `start` have been sent, over as many steps as it takes.
fn by_steps(steps: &[RateStep], start: u64, bytes: u64) -> u64 {
    // In billionths of a bit, so that a rate times nanoseconds needs no division.
    let mut left = u128::from(bytes) * 8 * u128::from(SECOND);
    let mut now = start;
    let first = steps.partition_point(|step| step.at <= start).saturating_sub(1);
    for (index, step) in steps.iter().enumerate().skip(first) {
        let end = steps.get(index + 1).map_or(u64::MAX, |next| next.at);
        let here = u128::from(step.rate) * u128::from(end - now);
        if here >= left {
            return now.saturating_add(u64::try_from(left.div_ceil(u128::from(step.rate))).unwrap_or(u64::MAX));
        }
        left -= here;
        now = end;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MS;

    #[test]
    fn a_packet_crosses_steps_and_pauses() {
        let steps = [(0, 12_000_000), (10, 0), (20, 6_000_000)].map(|(ms, rate)| RateStep { at: ms * MS, rate });
        let mut sender = Sender::new(&Rate::Steps(steps.to_vec()));
        assert_eq!(sender.send(0, 1500), MS);
        // Half of it before the pause, half of it after, at half the rate.
        assert_eq!(sender.send(9 * MS + MS / 2, 1500), 21 * MS);
        assert_eq!(sender.send(0, 1500), 23 * MS);
    }

    #[test]
    fn an_opportunity_is_shared_and_an_unused_one_is_gone() {
        let mut sender = Sender::new(&Rate::Trace(Trace::parse("1\n2\n3\n4\n").unwrap()));
        assert_eq!(sender.send(0, 1000), MS);
        assert_eq!(sender.send(0, 500), MS);
        assert_eq!(sender.send(0, 1501), 3 * MS);
        assert_eq!(sender.send(3 * MS + 1, 1500), 4 * MS);
        assert_eq!(sender.send(9 * MS + 1, 10), 10 * MS);
    }
}
