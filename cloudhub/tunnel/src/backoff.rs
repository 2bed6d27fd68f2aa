//! How long to wait before the next attempt: full jitter from 100 ms up to 5 s. Pure.

use std::time::Duration;

/// The first delay's upper bound: two round trips of a slow link.
const FIRST: Duration = Duration::from_millis(100);
/// The last: a hub that is back is found within 5 s, and 10 000 edges spread over as much.
const LAST: Duration = Duration::from_secs(5);

/// Counts failed attempts. Reset it only after the peer has answered at the application level.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The peer answered: start over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The delay after one more failure; `jitter` is uniform in [0, 1).
    pub fn next(&mut self, jitter: f64) -> Duration {
        let limit = FIRST.saturating_mul(1 << self.failures.min(16)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        limit.mul_f64(jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_doubles_up_to_five_seconds_and_starts_over() {
        let mut backoff = Backoff::default();
        let limits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(limits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next(0.5).as_millis(), 50);
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.next(1.0), LAST);
    }
}
