//! The round trip of one path, as its acknowledgements tell it.

use std::time::Duration;

use crate::least::Least;

/// The least round trip of one or two of these counts.
const WINDOW: Duration = Duration::from_secs(10);

/// Round-trip time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rtt {
    pub(crate) smoothed: Duration,
    variance: Duration,
    least: Least,
    /// When it was measured last; None: only by the handshake, which a busy machine makes long.
    measured: Option<Duration>,
}

impl Rtt {
    pub(super) fn new(now: Duration, first: Duration) -> Self {
        let first = first.clamp(Duration::from_millis(1), Duration::from_secs(3));
        Self {
            smoothed: first,
            variance: first / 4,
            least: Least::new(WINDOW, now, first),
            measured: None,
        }
    }

    pub(super) fn sample(&mut self, now: Duration, sample: Duration) {
        if self.measured.replace(now).is_none() && sample < self.smoothed {
            (self.smoothed, self.variance) = (sample, sample / 4);
        }
        let away = self.smoothed.abs_diff(sample);
        self.variance = (self.variance * 3 + away) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        self.least.note(now, sample);
    }

    /// Whether it was not measured for so long.
    pub(super) fn is_older(&self, now: Duration, than: Duration) -> bool {
        self.measured.is_none_or(|at| now.saturating_sub(at) >= than)
    }

    pub(crate) fn least(&self) -> Duration {
        self.least.get()
    }
}
