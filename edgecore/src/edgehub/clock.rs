//! Whether the machine's clock is believed: a pure function of it and of what the hub has told.

use std::time::Duration;

/// How far the clock may be from the hub's: less than what any certificate or token lives.
const FAR: Duration = Duration::from_secs(3600);
/// How often the clock is looked at: as often as the node's conditions.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The time as a hub told it in this run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// Since 1970.
    pub(super) time: Duration,
    /// When it was told, CLOCK_BOOTTIME.
    pub(super) at: Duration,
}

/// Whether `wall` (since 1970) cannot be right at `boottime`. With no hub's word in this run it is only known not to be before `floor`.
pub(super) fn is_untrusted(wall: Duration, boottime: Duration, floor: Duration, told: Option<Told>) -> bool {
    match told {
        Some(told) => (told.time + boottime.saturating_sub(told.at)).abs_diff(wall) > FAR,
        None => wall < floor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_while_it_agrees_with_what_was_told() {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        let (floor, year) = (hours(400_000), hours(450_000));
        assert!(is_untrusted(hours(1), hours(1), floor, None), "it says 1970");
        assert!(!is_untrusted(year, hours(1), floor, None));
        let told = Some(Told {
            time: year,
            at: hours(1),
        });
        assert!(!is_untrusted(year + hours(5), hours(6), floor, told), "both went on");
        assert!(is_untrusted(hours(6), hours(6), floor, told), "still 1970");
        assert!(
            is_untrusted(year + hours(50), hours(6), floor, told),
            "it was set to tomorrow"
        );
    }
}
