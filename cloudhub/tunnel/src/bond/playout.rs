//! How long a TCP flow's packets wait for those before them, path by path, and what is therefore added to those that need not wait.
//!
//! Over three paths the packets of a busy flow arrive in order after the slowest path's time, or after a repair; a few packets alone take the
//! fastest path. A sender that takes the least round trip for the path's (BBR: a window of two times rate times that) would stop
//! for acknowledgements most of the time. So a packet is delivered no sooner after its arrival than packets of its path were in the last
//! seconds, on average: round trips inside are even. A flow that is thin or over one path has nothing to wait for, and nothing is added.

use std::time::Duration;

use super::path::PathId;

/// What was measured counts from one to two of these. BBR looks for a new least round trip 10 s after the last one: by then a flow that began
/// busily has been measured, and before it evenness costs more than it brings (acknowledgements in bunches widen BBR's window).
const WINDOW: Duration = Duration::from_secs(8);
/// So many packets of a flow in the last window make it a busy one: 1 Mbit/s.
const BUSY: u32 = 512;
/// No more is added.
const MOST: Duration = Duration::from_millis(100);
/// Less is not worth a timer.
const LEAST: Duration = Duration::from_millis(2);

/// One path's waits.
#[derive(Clone, Copy, Debug)]
struct Waits {
    path: PathId,
    /// Packets and the sum of their waits: of this window and the last one.
    of: [(u32, Duration); 2],
}

/// The waits of one flow.
#[derive(Debug, Default)]
pub(crate) struct Playout {
    since: Duration,
    waits: Vec<Waits>,
}

impl Playout {
    /// A packet that arrived after all that had left before it, or before them: it waited so long for them.
    pub(crate) fn note(&mut self, now: Duration, path: PathId, waited: Duration) {
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= 2 * WINDOW {
            self.waits.clear();
        }
        if elapsed >= WINDOW {
            self.since = now;
            for waits in &mut self.waits {
                waits.of = [(0, Duration::ZERO), waits.of[0]];
            }
            self.waits.retain(|waits| waits.of[1].0 > 0);
        }
        if let Some(waits) = self.waits.iter_mut().find(|waits| waits.path == path) {
            waits.of[0].0 += 1;
            waits.of[0].1 += waited;
        } else {
            let of = [(1, waited), (0, Duration::ZERO)];
            self.waits.push(Waits { path, of });
        }
    }

    /// How long after its arrival a packet of this path is delivered at the soonest.
    pub(crate) fn delay(&self, path: PathId) -> Duration {
        if self.waits.iter().map(|waits| waits.of[1].0).sum::<u32>() < BUSY {
            return Duration::ZERO;
        }
        let waits = self.waits.iter().find(|waits| waits.path == path);
        let [this, last] = waits.map_or_else(Default::default, |waits| waits.of);
        let mean = (this.1 + last.1) / (this.0 + last.0).max(1);
        if mean < LEAST { Duration::ZERO } else { mean.min(MOST) }
    }
}
