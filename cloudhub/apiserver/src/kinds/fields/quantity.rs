//! `resource.Quantity`: numbers with a suffix (`500m`, `128Mi`, `1e3`), exact down to 10^-9, and their canonical spelling.

use std::cmp::Ordering;

/// How a quantity was written, which its canonical spelling keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `128Mi`.
    Binary,
    /// `500m`, `2G`.
    Decimal,
    /// `1e3`.
    Exponent,
}

/// An amount of a resource.
#[derive(Debug, Clone)]
pub(crate) struct Quantity {
    /// Billionths. What is larger than fits is capped: 10^29 units are more than any resource has.
    nano: i128,
    format: Format,
    /// Set where the real server keeps the text as it came.
    kept: Option<String>,
}

/// Billionths in 1.
const NANO: i128 = 1_000_000_000;
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 9] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const WRONG_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const WRONG_NUMBER: &str = "unable to parse numeric part of quantity";
const WRONG_SUFFIX: &str = "unable to parse quantity's suffix";

/// What a suffix multiplies by: `base` to the power of `exponent`.
struct Suffix {
    base: i128,
    exponent: i32,
    format: Format,
}

fn suffix(text: &str) -> Option<Suffix> {
    if text.is_empty() {
        return Some(Suffix {
            base: 10,
            exponent: 0,
            format: Format::Decimal,
        });
    }
    if let Some(power) = BINARY.iter().position(|s| *s == text) {
        let exponent = 10 * (i32::try_from(power).ok()? + 1);
        return Some(Suffix {
            base: 2,
            exponent,
            format: Format::Binary,
        });
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == text) {
        return Some(Suffix {
            base: 10,
            exponent: *exponent,
            format: Format::Decimal,
        });
    }
    let exponent = text.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some(Suffix {
        base: 10,
        exponent,
        format: Format::Exponent,
    })
}

/// `number` × 10^`exponent`, capped, rounded away from 0: who asks for little gets some.
fn scaled(number: i128, exponent: i32) -> i128 {
    if number == 0 {
        return 0;
    }
    let Some(power) = 10_i128.checked_pow(exponent.unsigned_abs()) else {
        return match (exponent > 0, number > 0) {
            (true, true) => i128::MAX,
            (true, false) => -i128::MAX,
            (false, positive) => {
                if positive {
                    1
                } else {
                    -1
                }
            }
        };
    };
    if exponent >= 0 {
        return number.saturating_mul(power);
    }
    let whole = number / power;
    if number % power == 0 {
        whole
    } else {
        whole + number.signum()
    }
}

impl Quantity {
    /// Reads a quantity.
    ///
    /// # Errors
    /// The real server's words for what is no quantity.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, tail) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.is_empty() || !is_suffix_shaped(tail) {
            return Err(WRONG_FORMAT);
        }
        if fraction.contains('.') || whole.is_empty() && fraction.is_empty() {
            return Err(WRONG_NUMBER);
        }
        let suffix = suffix(tail).ok_or(WRONG_SUFFIX)?;
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let digits = format!("{whole}{fraction}");
        if digits.len() > 36 {
            return Err(WRONG_NUMBER);
        }
        let mut value: i128 = digits.parse().map_err(|_| WRONG_NUMBER)?;
        if text.starts_with('-') {
            value = -value;
        }
        let places = i32::try_from(fraction.len()).map_err(|_| WRONG_NUMBER)?;
        let (factor, exponent) = match suffix.format {
            Format::Binary => (1_i128 << suffix.exponent, 0),
            _ => (1, suffix.exponent),
        };
        debug_assert!(suffix.base == 10 || factor > 1, "a binary suffix has a factor");
        let nano = scaled(
            value.saturating_mul(factor),
            exponent.saturating_sub(places).saturating_add(9),
        );
        let mut quantity = Self {
            nano,
            format: suffix.format,
            kept: None,
        };
        if quantity.format == Format::Binary && nano > 0 && nano < NANO {
            quantity.format = Format::Decimal;
        }
        let thousands = exponent.saturating_sub(places) % 3 == 0;
        let short = !digits.ends_with("000") && !digits.starts_with('0') && digits.len() <= 18;
        if suffix.format != Format::Binary && thousands && short {
            quantity.kept = Some(text.to_owned());
        }
        Ok(quantity)
    }

    /// Reads one from JSON: a text, or a number as YAML writers leave it.
    ///
    /// # Errors
    /// As [`Quantity::parse`].
    pub(crate) fn from_json(value: &serde_json::Value) -> Result<Self, &'static str> {
        match value {
            serde_json::Value::String(text) => Self::parse(text),
            serde_json::Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(WRONG_FORMAT),
        }
    }

    /// Whether it is below 0.
    pub(crate) fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether it is 0.
    pub(crate) fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether it counts whole things.
    pub(crate) fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }

    /// Whole thousandths, rounded up: how CPU is counted.
    pub(crate) fn milli(&self) -> i128 {
        scaled(self.nano, -6)
    }

    /// Whole units, rounded up.
    pub(crate) fn units(&self) -> i128 {
        scaled(self.nano, -9)
    }

    /// Rounded up to whole thousandths, which is as fine as resources are counted.
    #[must_use]
    pub(crate) fn rounded_to_milli(mut self) -> Self {
        let milli = self.milli().saturating_mul(NANO / 1000);
        if milli != self.nano {
            self.nano = milli;
            self.kept = None;
        }
        self
    }

    /// As the real server stores it: `0.5` is `500m`, `1024Mi` is `1Gi`, `1000` is `1k`.
    pub(crate) fn canonical(&self) -> String {
        if let Some(text) = &self.kept {
            return text.clone();
        }
        if self.nano == 0 {
            return "0".into();
        }
        let binary = self.format == Format::Binary && self.is_whole() && self.nano.abs() >= 1024 * NANO;
        if binary {
            let (number, power) = reduced(self.nano / NANO, 1024, BINARY.len());
            return match power.checked_sub(1).and_then(|p| BINARY.get(p)) {
                Some(suffix) => format!("{number}{suffix}"),
                None => number.to_string(),
            };
        }
        let (number, power) = reduced(self.nano, 1000, 9);
        let exponent = 3 * i32::try_from(power).unwrap_or_default() - 9;
        if exponent == 0 {
            return number.to_string();
        }
        if self.format == Format::Exponent {
            return format!("{number}e{exponent}");
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        format!("{number}{suffix}")
    }
}

/// Divides by `base` as often as nothing is lost, at most `limit` times.
fn reduced(mut number: i128, base: i128, limit: usize) -> (i128, usize) {
    let mut power = 0;
    while power < limit && number % base == 0 {
        number /= base;
        power += 1;
    }
    (number, power)
}

/// Letters of suffixes, then a signed number.
fn is_suffix_shaped(tail: &str) -> bool {
    let rest = tail.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|b| b.is_ascii_digit())
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl std::ops::AddAssign<&Quantity> for Quantity {
    fn add_assign(&mut self, other: &Quantity) {
        self.nano = self.nano.saturating_add(other.nano);
        self.kept = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).unwrap().canonical()
    }

    #[test]
    fn a_quantity_is_spelt_as_the_real_server_spells_it() {
        for (text, spelt) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("0.1", "100m"),
            ("1", "1"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("250m", "250m"),
            ("1000", "1k"),
            ("128Mi", "128Mi"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("0.1Gi", "107374182400m"),
            ("512", "512"),
            ("1e3", "1e3"),
            ("1500e3", "1500e3"),
            ("1e4", "10e3"),
            ("0Mi", "0"),
            ("-1", "-1"),
            (".5", "500m"),
            ("1.", "1."),
            ("0.1n", "1n"),
        ] {
            assert_eq!(canonical(text), spelt, "{text}");
        }
    }

    #[test]
    fn quantities_compare_by_amount() {
        let of = |text| Quantity::parse(text).unwrap();
        assert_eq!(of("1Ki"), of("1024"));
        assert!(of("100m") < of("1"));
        assert!(of("1Gi") > of("1G"));
        assert!(of("-1").is_negative() && of("0.0").is_zero());
        assert_eq!(of("100m").milli(), 100);
        assert_eq!(of("1.1").units(), 2);
        assert!(of("1e400") > of("1E"));
    }

    #[test]
    fn what_is_no_quantity_says_why() {
        assert_eq!(Quantity::parse(""), Err(WRONG_FORMAT));
        assert_eq!(Quantity::parse("abc"), Err(WRONG_FORMAT));
        assert_eq!(Quantity::parse("1 Gi"), Err(WRONG_FORMAT));
        assert_eq!(Quantity::parse("1Gb"), Err(WRONG_FORMAT));
        assert_eq!(Quantity::parse("1KMi"), Err(WRONG_SUFFIX));
        assert_eq!(Quantity::parse("1MM"), Err(WRONG_SUFFIX));
    }
}
