//! Durations, rates and sizes as people write them in a scenario: `15ms`, `50Mbit`, `256KiB`.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::{MS, SECOND};

/// A quantity that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is no {what}: a number ≥ 0 with one of the units {units}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    units: String,
}

type Table = &'static [(&'static str, f64)];

const TIME: Table = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("ms", MS as f64),
    ("s", SECOND as f64),
    ("min", 60.0 * SECOND as f64),
];
const RATE: Table = &[("bit", 1.0), ("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
const SIZE: Table = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
];

/// Above this a float no longer holds every whole number.
const MOST: f64 = 9_007_199_254_740_992.0;

fn parse(text: &str, what: &'static str, table: Table) -> Result<u64, UnitError> {
    let error = || {
        let mut units = String::new();
        for (unit, _) in table {
            let _ = write!(units, "{}{unit}", if units.is_empty() { "" } else { ", " });
        }
        UnitError {
            text: text.to_owned(),
            what,
            units,
        }
    };
    let text = text.trim();
    if text == "0" {
        return Ok(0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
    let (number, unit) = text.split_at(digits);
    let factor = table.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(error)?.1;
    let value = (number.parse::<f64>().map_err(|_| error())? * factor).round();
    if !(0.0..MOST).contains(&value) {
        return Err(error());
    }
    Ok(value as u64)
}

/// Nanoseconds of `15ms`, `1.5s`, `250us`, `2min`, `0`.
///
/// # Errors
/// When it is no such duration.
pub fn duration(text: &str) -> Result<u64, UnitError> {
    parse(text, "duration", TIME)
}

/// Bits a second of `50Mbit`.
///
/// # Errors
/// When it is no such rate.
pub fn rate(text: &str) -> Result<u64, UnitError> {
    parse(text, "rate", RATE)
}

/// Bytes of `256KiB`.
///
/// # Errors
/// When it is no such size.
pub fn size(text: &str) -> Result<u64, UnitError> {
    parse(text, "size", SIZE)
}

/// What one field may be in a scenario: text with a unit.
fn field<'de, D: Deserializer<'de>>(from: D, read: fn(&str) -> Result<u64, UnitError>) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "text with a unit, as '15ms', '50Mbit' or '256KiB'")]
    enum Either {
        Text(String),
        Zero(u64),
    }
    match Either::deserialize(from)? {
        Either::Text(text) => read(&text),
        Either::Zero(number) => read(&number.to_string()),
    }
    .map_err(serde::de::Error::custom)
}

/// For `#[serde(deserialize_with)]`: nanoseconds.
pub(crate) fn de_duration<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    field(from, duration)
}

/// For `#[serde(deserialize_with)]`: bits a second.
pub(crate) fn de_rate<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    field(from, rate)
}

/// For `#[serde(deserialize_with)]`: bytes.
pub(crate) fn de_size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    field(from, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_others_refused_with_the_units() {
        assert_eq!(duration("15ms"), Ok(15 * MS));
        assert_eq!(duration("1.5s"), Ok(1500 * MS));
        assert_eq!(duration("0"), Ok(0));
        assert_eq!(rate("13.1Mbit"), Ok(13_100_000));
        assert_eq!(size("256KiB"), Ok(262_144));
        for bad in ["", "15", "ms", "-1ms", "1 h", "1e3ms", "99999999999999s", "1.2.3ms"] {
            let error = duration(bad).unwrap_err().to_string();
            assert!(error.contains("ns, us, ms, s, min"), "{error}");
        }
    }
}
