//! Traces of delivery opportunities in mahimahi's format, and a maker of some that look like LTE.
//!
//! One line is the millisecond of one opportunity to send 1500 bytes; a repeated line is another in the same millisecond; the last line's time
//! is the length, after which it begins again (Winstein, Sivaraman, Balakrishnan: "Stochastic Forecasts Achieve High Throughput and Low Delay
//! over Cellular Networks", NSDI 2013).

use std::fmt::{self, Write as _};

use serde::Deserialize;
use thiserror::Error;

use crate::draw::Sequence;
use crate::spec::SpecError;
use crate::{MS, SECOND, units};

/// Bytes that one opportunity sends.
pub(crate) const OPPORTUNITY: u64 = 1500;

/// The longest trace that is read: two hours at 100 Mbit/s.
const MOST: usize = 60_000_000;

/// A trace that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TraceError {
    /// A line that is no number.
    #[error("line {line}: '{text}' is no whole number of milliseconds")]
    Number {
        /// Counted from 1.
        line: usize,
        /// Its begin.
        text: String,
    },
    /// A time before the one above it.
    #[error("line {line}: {at} ms is before the line above")]
    Order {
        /// Counted from 1.
        line: usize,
        /// Milliseconds.
        at: u64,
    },
    /// No line, or a length of 0 ms.
    #[error("a trace has at least one opportunity, and its last is after 0 ms")]
    Empty,
    /// More opportunities than are read.
    #[error("more than {MOST} opportunities")]
    Long,
}

/// When a link may send 1500 bytes; it begins again at its end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Trace {
    /// Milliseconds, in order; the last is the length and is not 0.
    stamps: Vec<u64>,
}

impl TryFrom<String> for Trace {
    type Error = TraceError;

    fn try_from(text: String) -> Result<Self, TraceError> {
        Self::parse(&text)
    }
}

impl fmt::Display for Trace {
    /// mahimahi's format.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stamps.iter().try_for_each(|stamp| writeln!(to, "{stamp}"))
    }
}

impl Trace {
    /// Reads mahimahi's format; empty lines are passed over.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut stamps = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let number = number + 1;
            let begin = || {
                let mut text = String::new();
                // Writing to a string cannot fail.
                let _ = write!(text, "{line:.20}");
                text
            };
            let at: u64 = line.parse().map_err(|_| TraceError::Number {
                line: number,
                text: begin(),
            })?;
            if stamps.last().is_some_and(|last| *last > at) {
                return Err(TraceError::Order { line: number, at });
            }
            stamps.push(at);
        }
        Self::new(stamps)
    }

    fn new(stamps: Vec<u64>) -> Result<Self, TraceError> {
        match stamps.last() {
            None | Some(0) => Err(TraceError::Empty),
            Some(_) if stamps.len() > MOST => Err(TraceError::Long),
            // Further would leave the range of nanoseconds.
            Some(last) if *last > u64::MAX / MS / 2 => Err(TraceError::Long),
            Some(_) => Ok(Self { stamps }),
        }
    }

    /// Its length in nanoseconds.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.stamps.last().copied().unwrap_or_default() * MS
    }

    /// How many opportunities it has.
    #[must_use]
    pub fn opportunities(&self) -> usize {
        self.stamps.len()
    }

    /// Its capacity in bits a second, over its whole length.
    #[must_use]
    pub fn mean(&self) -> u64 {
        let bits = u128::from(OPPORTUNITY * 8) * self.stamps.len() as u128;
        u64::try_from(bits * u128::from(SECOND) / u128::from(self.length())).unwrap_or(u64::MAX)
    }

    /// What it could send between `from` and `to`, in bytes.
    #[must_use]
    pub fn capacity(&self, from: u64, to: u64) -> u64 {
        (self.first_at(to).saturating_sub(self.first_at(from))) * OPPORTUNITY
    }

    /// When opportunity `number` is, in nanoseconds; numbers go on where the trace begins again.
    pub(crate) fn time(&self, number: u64) -> u64 {
        let count = self.stamps.len() as u64;
        let stamp = usize::try_from(number % count).ok().and_then(|i| self.stamps.get(i));
        (number / count)
            .saturating_mul(self.length())
            .saturating_add(stamp.copied().unwrap_or_default() * MS)
    }

    /// The first opportunity that is not before `now`.
    pub(crate) fn first_at(&self, now: u64) -> u64 {
        let (round, within) = (now / self.length(), now % self.length());
        let index = self.stamps.partition_point(|stamp| stamp * MS < within);
        let mut first = round * self.stamps.len() as u64 + index as u64;
        // The end of one round is the begin of the next.
        while first > 0 && self.time(first - 1) >= now {
            first -= 1;
        }
        first
    }
}

/// A trace like LTE's, from a seed: the rate wanders, comes in grants, and goes away at times. Shapes after the recorded traces that
/// bonding.md §6 names; the numbers are ours.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lte {
    /// Names the trace.
    pub seed: u64,
    /// Bits a second over the whole length.
    #[serde(deserialize_with = "units::de_rate")]
    pub mean: u64,
    /// Nanoseconds until it begins again.
    #[serde(deserialize_with = "units::de_duration")]
    pub length: u64,
    /// Deviation of the rate's logarithm: 0 is steady, 0.5 a standing robot, 1 a driving one.
    pub volatility: f64,
    /// Nanoseconds in which the rate forgets what it was.
    #[serde(deserialize_with = "units::de_duration")]
    pub memory: u64,
    /// How many times a minute nothing is sent for a while.
    pub outages: f64,
    /// The longest of them, in nanoseconds; the mean is a third.
    #[serde(deserialize_with = "units::de_duration")]
    pub outage: u64,
}

impl Default for Lte {
    fn default() -> Self {
        Self {
            seed: 1,
            mean: 12_000_000,
            length: 120 * SECOND,
            volatility: 0.5,
            memory: 2 * SECOND,
            outages: 2.0,
            outage: 900 * MS,
        }
    }
}

/// Of a hundred milliseconds, so many have a grant; what there was no grant for is sent with the next one.
const GRANTS: f64 = 0.4;

impl Lte {
    /// Refuses what makes no trace.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), SpecError> {
        let finite = |field, value: f64, most: f64| match value.is_finite() && (0.0..=most).contains(&value) {
            true => Ok(()),
            false => Err(SpecError::Number {
                field,
                value,
                least: 0.0,
            }),
        };
        finite("rate.lte.volatility", self.volatility, 3.0)?;
        finite("rate.lte.outages", self.outages, 60.0)?;
        let opportunities = u128::from(self.mean) * u128::from(self.length) / u128::from(SECOND * OPPORTUNITY * 8);
        match self.length >= SECOND && opportunities >= 1 && opportunities <= MOST as u128 {
            true => Ok(()),
            false => Err(SpecError::NoRate("rate.lte")),
        }
    }

    /// The trace.
    ///
    /// # Panics
    /// When it is shorter than a second, or has no opportunity, or more than are read: a scenario is validated first.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let wanted = self.mean as f64 * self.length as f64 / SECOND as f64 / (OPPORTUNITY * 8) as f64;
        let mut draw = Sequence::new(self.seed);
        let rates = self.rates(&mut draw);
        let factor = wanted / rates.iter().sum::<f64>();
        let (mut stamps, mut owed) = (Vec::new(), 0.0);
        for (ms, rate) in rates.iter().enumerate() {
            owed += rate * factor;
            // In an outage nothing is sent, whatever is owed.
            if owed >= 1.0 && *rate > 0.0 && draw.unit() < GRANTS {
                stamps.extend(std::iter::repeat_n(ms as u64, owed as usize));
                owed = owed.fract();
            }
        }
        stamps.extend(std::iter::repeat_n(self.length / MS, owed.round().max(1.0) as usize));
        Trace::new(stamps).unwrap_or_else(|error| panic!("rate.lte: {error}"))
    }

    /// The rate of every millisecond, in any unit: exp of an Ornstein-Uhlenbeck process, with gaps of 0.
    fn rates(&self, draw: &mut Sequence) -> Vec<f64> {
        let keep = (-(MS as f64) / self.memory.max(MS) as f64).exp();
        let step = self.volatility * (1.0 - keep * keep).sqrt();
        let mut level = self.volatility * draw.normal();
        let mut gap = 0_u64;
        let begin = self.outages / 60_000.0;
        let mut rates: Vec<f64> = (0..self.length / MS)
            .map(|_| {
                level = level * keep + step * draw.normal();
                if gap == 0 && draw.unit() < begin {
                    let share = (-(1.0 - draw.unit()).ln() / 3.0).min(1.0);
                    gap = (share * (self.outage / MS) as f64) as u64;
                }
                let open = gap == 0;
                gap = gap.saturating_sub(1);
                if open { level.exp() } else { 0.0 }
            })
            .collect();
        if rates.iter().all(|rate| *rate == 0.0) {
            rates.fill(1.0);
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mahimahis_format_in_and_out_is_the_same() {
        let text = "0\n0\n3\n7\n7\n7\n20\n";
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.to_string(), text);
        assert_eq!(trace.length(), 20 * MS);
        assert_eq!(trace.mean(), 7 * 12_000 * 50);
        assert_eq!(trace.capacity(0, 20 * MS), 6 * OPPORTUNITY);
        assert_eq!(trace.capacity(0, 40 * MS), 13 * OPPORTUNITY);
    }

    #[test]
    fn wrong_traces_are_refused_with_the_line() {
        for (text, words) in [
            ("1\nx\n", "line 2: 'x'"),
            ("5\n4\n", "line 2: 4 ms"),
            ("", "at least one"),
            ("0\n0\n", "after 0 ms"),
            ("1\n18446744073709551615\n", "more than"),
        ] {
            let error = Trace::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn opportunities_go_on_where_the_trace_begins_again() {
        let trace = Trace::parse("0\n3\n10\n").unwrap();
        let times: Vec<u64> = (0..7).map(|n| trace.time(n) / MS).collect();
        assert_eq!(times, [0, 3, 10, 10, 13, 20, 20]);
        assert_eq!(trace.first_at(0), 0);
        assert_eq!(trace.first_at(1), 1);
        assert_eq!(trace.first_at(10 * MS), 2);
        assert_eq!(trace.first_at(10 * MS + 1), 4);
        assert_eq!(trace.first_at(20 * MS), 5);
    }

    #[test]
    fn an_lte_trace_has_its_mean_its_gaps_and_its_seed() {
        let lte = Lte {
            seed: 7,
            outages: 6.0,
            outage: 4 * SECOND,
            volatility: 1.0,
            ..Lte::default()
        };
        let trace = lte.trace();
        let error = (trace.mean() as f64 / lte.mean as f64 - 1.0).abs();
        assert!(error < 0.01, "{} for {}", trace.mean(), lte.mean);
        assert_eq!(trace.length(), lte.length);
        assert_eq!(trace, lte.trace());
        assert_ne!(trace, Lte { seed: 8, ..lte.clone() }.trace());
        let longest = trace.stamps.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!((500..=4500).contains(&longest), "{longest} ms");
        assert_eq!(Trace::parse(&trace.to_string()), Ok(trace));
    }

    #[test]
    fn an_lte_trace_wanders_as_it_is_told() {
        let spread = |volatility| {
            let trace = Lte {
                volatility,
                outages: 0.0,
                ..Lte::default()
            }
            .trace();
            let seconds: Vec<f64> = (0..120)
                .map(|s| trace.capacity(s * SECOND, (s + 1) * SECOND) as f64)
                .collect();
            let mean = seconds.iter().sum::<f64>() / 120.0;
            (seconds.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 120.0).sqrt() / mean
        };
        assert!(spread(0.0) < 0.05, "{}", spread(0.0));
        assert!((0.25..0.9).contains(&spread(0.5)), "{}", spread(0.5));
        assert!(spread(1.0) > spread(0.5));
    }
}
