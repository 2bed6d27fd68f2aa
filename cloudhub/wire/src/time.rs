//! Time as an argument.

use std::time::Duration;

/// What time it is, read by a driver and handed to the state machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// CLOCK_BOOTTIME: goes on during suspend, never back. All deadlines use it.
    pub boottime: Duration,
    /// Wall clock, since 1970.
    pub wall: Duration,
    /// Whether the wall clock has been confirmed by the hub or is later than anything in the store.
    pub wall_trusted: bool,
}

impl Now {
    /// A moment for which only the boot time matters.
    #[must_use]
    pub const fn at(boottime: Duration) -> Self {
        Self {
            boottime,
            wall: Duration::ZERO,
            wall_trusted: false,
        }
    }
}
