//! The least of what was measured lately.

use std::time::Duration;

/// The least of this window and of the last one: a measurement counts for one to two windows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Least {
    window: Duration,
    since: Duration,
    of: [Duration; 2],
}

impl Least {
    /// Begins at `now` with a first measurement.
    pub(crate) fn new(window: Duration, now: Duration, first: Duration) -> Self {
        Self {
            window,
            since: now,
            of: [first; 2],
        }
    }

    /// Takes a measurement in.
    pub(crate) fn note(&mut self, now: Duration, measured: Duration) {
        if now.saturating_sub(self.since) >= self.window {
            (self.of, self.since) = ([measured, self.of[0]], now);
        }
        self.of[0] = self.of[0].min(measured);
    }

    /// The least.
    pub(crate) fn get(self) -> Duration {
        self.of[0].min(self.of[1])
    }
}
