//! resource.Quantity: decimal numbers with SI or binary suffixes, exact to a milliunit (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).

/// A quantity in thousandths of its unit (millicores, milli-bytes). Saturates instead of overflowing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    milli: i128,
}

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no quantity: a number with a suffix such as m, k, M, G, Ki, Mi or Gi is expected")]
pub struct BadQuantity(pub String);

impl std::str::FromStr for Quantity {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity(text.to_owned());
        let split = text
            .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+'))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        // 30 digits are more than any resource has, and keep the arithmetic below in an i128.
        if number.is_empty() || number.len() > 30 {
            return Err(bad());
        }
        let (numerator, denominator) = scale(suffix).ok_or_else(bad)?;
        let (sign, digits) = match number.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all = format!("{whole}{fraction}");
        if !all.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let value: i128 = all.parse().map_err(|_| bad())?;
        let tens = 10_i128
            .checked_pow(u32::try_from(fraction.len()).map_err(|_| bad())?)
            .ok_or_else(bad)?;
        let top = value.saturating_mul(numerator).saturating_mul(1000);
        let bottom = denominator.saturating_mul(tens);
        // Rounds up, as Quantity does.
        Ok(Self {
            milli: sign * (top.saturating_add(bottom - 1) / bottom),
        })
    }
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        other => {
            let exponent: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs().min(24))?;
            if exponent >= 0 { (power, 1) } else { (1, power) }
        }
    })
}

impl Quantity {
    /// From thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self { milli: milli.into() }
    }
    /// In thousandths (CPU: millicores).
    pub fn milli(self) -> i64 {
        saturate(self.milli)
    }
    /// In whole units, rounded up (memory: bytes).
    pub fn value(self) -> i64 {
        saturate(self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) != 0))
    }
    /// This over `divisor`, rounded up: what resourceFieldRef shows.
    pub fn divided_by(self, divisor: Self) -> i64 {
        let divisor = if divisor.milli <= 0 { 1000 } else { divisor.milli };
        saturate(self.milli.saturating_add(divisor - 1).div_euclid(divisor))
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            milli: self.milli.saturating_add(other.milli),
        }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |a, b| a + b)
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().expect(text)
    }

    #[test]
    fn reads_what_kubernetes_writes() {
        assert_eq!(q("100m").milli(), 100);
        assert_eq!(q("1.5").milli(), 1500);
        assert_eq!(q("0.5Gi").value(), 1 << 29);
        assert_eq!(q("64Mi").value(), 64 << 20);
        assert_eq!(q("1e3").value(), 1000);
        assert_eq!(q("2E").value(), 2_000_000_000_000_000_000);
        assert_eq!(q("100n").milli(), 1);
        assert_eq!(q("9Ei").value(), i64::MAX);
        for bad in ["", "abc", "1x", "1.2.3", "--1", "Mi", "1e999x"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn divides_rounding_up() {
        assert_eq!(q("250m").divided_by(q("1")), 1);
        assert_eq!(q("250m").divided_by(q("1m")), 250);
        assert_eq!(q("65Mi").divided_by(q("1Mi")), 65);
        assert_eq!(q("1").divided_by(q("0")), 1);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }
        #[test]
        fn millis_survive(n in 0_i64..1_000_000_000) {
            proptest::prop_assert_eq!(q(&format!("{n}m")).milli(), n);
        }
    }
}
