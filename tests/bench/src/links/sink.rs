//! What arrived, and what can be said of a part of it. Pure; times are nanoseconds of CLOCK_MONOTONIC, which all processes here share.

use serde::{Deserialize, Serialize};

/// Something that arrived: a packet, or what one read of a stream brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) at: u64,
    /// When its sender made it; 0 of streams.
    pub(crate) sent: u64,
    /// Counted by its sender from 0; 0 of streams.
    pub(crate) number: u64,
    pub(crate) bytes: u32,
}

/// From the one moment to just before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Window {
    pub(crate) fn seconds(self) -> f64 {
        self.to.saturating_sub(self.from) as f64 / 1e9
    }

    /// The part from `from` to `to` seconds behind its begin.
    pub(crate) fn part(self, from: f64, to: f64) -> Self {
        let at = |seconds: f64| self.from + (seconds * 1e9) as u64;
        Self {
            from: at(from),
            to: at(to),
        }
    }
}

/// What a window saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Each packet once.
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) duplicates: u64,
    /// Numbers below the largest that never came, whenever.
    pub(crate) missing: u64,
    /// Packets that came behind one with a larger number.
    pub(crate) late: u64,
    /// The longest time without an arrival, its edges included, ms.
    pub(crate) gap: f64,
    /// The first arrival; 0 without any.
    pub(crate) first: u64,
    /// From the sender's hand to the receiver's, ms.
    pub(crate) delay_p50: f64,
    pub(crate) delay_p95: f64,
}

impl Seen {
    /// Of a window of so many seconds.
    pub(crate) fn megabits(self, seconds: f64) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / seconds
    }
}

/// All that has arrived.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    arrivals: Vec<Arrival>,
}

impl Sink {
    pub(crate) fn add(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
    }

    pub(crate) fn clear(&mut self) {
        self.arrivals.clear();
    }

    /// What arrived in `window`.
    pub(crate) fn seen(&self, window: Window) -> Seen {
        let inside = |arrival: &&Arrival| arrival.at >= window.from && arrival.at < window.to;
        let within: Vec<&Arrival> = self.arrivals.iter().filter(inside).collect();
        let (is_numbered, missing) = self.missing();
        let mut seen = Seen {
            missing,
            first: within.first().map_or(0, |first| first.at),
            gap: gap(&within, window),
            ..Seen::default()
        };
        let mut delays = Vec::new();
        let mut known = std::collections::HashSet::new();
        let mut highest = None;
        for arrival in within {
            if is_numbered {
                if !known.insert(arrival.number) {
                    seen.duplicates += 1;
                    continue;
                }
                seen.late += u64::from(highest > Some(arrival.number));
                highest = highest.max(Some(arrival.number));
                delays.push(arrival.at.saturating_sub(arrival.sent) as f64 / 1e6);
            }
            seen.packets += 1;
            seen.bytes += u64::from(arrival.bytes);
        }
        delays.sort_by(f64::total_cmp);
        seen.delay_p50 = share(&delays, 0.5);
        seen.delay_p95 = share(&delays, 0.95);
        seen
    }

    /// Whether they have numbers, and how many of those never came.
    fn missing(&self) -> (bool, u64) {
        let mut numbers: Vec<u64> = self.arrivals.iter().map(|arrival| arrival.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let highest = numbers.last().copied().unwrap_or_default();
        match highest {
            0 => (false, 0),
            highest => (true, highest + 1 - numbers.len() as u64),
        }
    }
}

/// The longest time without an arrival, from the window's begin to its end, ms.
fn gap(within: &[&Arrival], window: Window) -> f64 {
    let ends = std::iter::once(window.from).chain(within.iter().map(|arrival| arrival.at));
    let begins = within.iter().map(|arrival| arrival.at).chain([window.to]);
    let gaps = ends.zip(begins).map(|(end, begin)| begin.saturating_sub(end));
    gaps.max().unwrap_or_default() as f64 / 1e6
}

/// The smallest of `sorted` that so large a share of them does not exceed; 0 of none.
pub(crate) fn share(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(arrivals: &[(u64, u64)]) -> Sink {
        let mut sink = Sink::default();
        for (at, number) in arrivals {
            sink.add(Arrival {
                at: at * 1_000_000,
                sent: (at - 5) * 1_000_000,
                number: *number,
                bytes: 100,
            });
        }
        sink
    }

    const ALL: Window = Window {
        from: 10_000_000,
        to: 100_000_000,
    };

    #[test]
    fn a_window_counts_each_packet_once_and_what_never_came() {
        let seen = sink(&[(10, 0), (20, 1), (30, 4), (40, 3), (41, 3), (100, 5)]).seen(ALL);
        assert_eq!((seen.packets, seen.bytes, seen.duplicates), (4, 400, 1));
        assert_eq!((seen.missing, seen.late), (1, 1));
        assert_eq!(seen.first, 10_000_000);
        assert_eq!((seen.delay_p50, seen.delay_p95), (5.0, 5.0));
    }

    #[test]
    fn a_gap_may_be_at_either_edge_of_the_window() {
        assert_eq!(sink(&[(10, 0), (20, 1), (99, 2)]).seen(ALL).gap, 79.0);
        assert_eq!(sink(&[(60, 1), (99, 2)]).seen(ALL).gap, 50.0);
        assert_eq!(sink(&[(10, 1), (30, 2)]).seen(ALL).gap, 70.0);
        assert_eq!(sink(&[]).seen(ALL).gap, 90.0);
    }

    #[test]
    fn what_a_stream_brings_has_no_numbers() {
        let seen = sink(&[(10, 0), (20, 0)]).seen(ALL);
        assert_eq!(
            (seen.packets, seen.bytes, seen.missing, seen.duplicates),
            (2, 200, 0, 0)
        );
        assert_eq!(seen.megabits(0.0016), 1.0);
        assert_eq!(ALL.part(0.01, 0.02).seconds(), 0.01);
    }

    #[test]
    fn a_share_is_a_sample() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(share(&hundred, 0.99), 99.0);
        assert_eq!(share(&[7.0], 0.0), 7.0);
        assert_eq!(share(&[], 0.5), 0.0);
    }
}
