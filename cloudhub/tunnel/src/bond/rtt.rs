//! The round trip of one path, as its acknowledgements tell it.

use std::time::Duration;

/// Round-trip time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rtt {
    pub(crate) smoothed: Duration,
    variance: Duration,
    /// The least of this and of the last 10 s.
    least: [Duration; 2],
    since: Duration,
}

impl Rtt {
    pub(super) fn new(now: Duration, first: Duration) -> Self {
        let first = first.clamp(Duration::from_millis(1), Duration::from_secs(3));
        Self {
            smoothed: first,
            variance: first / 4,
            least: [first; 2],
            since: now,
        }
    }

    pub(super) fn sample(&mut self, now: Duration, sample: Duration) {
        let away = self.smoothed.abs_diff(sample);
        self.variance = (self.variance * 3 + away) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        if now.saturating_sub(self.since) > Duration::from_secs(10) {
            (self.least, self.since) = ([sample, self.least[0]], now);
        }
        self.least[0] = self.least[0].min(sample);
    }

    pub(crate) fn least(&self) -> Duration {
        self.least[0].min(self.least[1])
    }
}
