//! The clock of sessions.

use std::time::Duration;

/// CLOCK_BOOTTIME, which does not stop while the machine sleeps.
pub fn boottime() -> Duration {
    // It cannot fail for a clock that every kernel since 2.6.39 has.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map(Duration::from).unwrap_or_default()
}
