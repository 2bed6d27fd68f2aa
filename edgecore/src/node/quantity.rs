//! Kubernetes quantities, as far as a node's resources need them: `200m`, `1.5`, `100Mi`, `2G`, `1e3`.

/// Parses a quantity into thousandths; None where it is none, negative, or too large.
pub fn parse(text: &str) -> Option<u64> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || number == "." || fraction.len() > 9 || whole.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let thousandths = digits.checked_mul(factor(suffix)?)?.div_ceil(scale);
    u64::try_from(thousandths).ok()
}

/// Thousandths in one of a suffix.
fn factor(suffix: &str) -> Option<u128> {
    let binary = |power: u32| Some(1000 * 1024_u128.pow(power));
    let decimal = |power: u32| Some(1000 * 1000_u128.pow(power));
    match suffix {
        "" => Some(1000),
        "m" => Some(1),
        "k" => decimal(1),
        "M" => decimal(2),
        "G" => decimal(3),
        "T" => decimal(4),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        _ => match suffix.strip_prefix(['e', 'E'])?.parse::<u32>().ok()? {
            power if power <= 15 => Some(1000 * 10_u128.pow(power)),
            _ => None,
        },
    }
}

/// A threshold of eviction: a quantity in whole units, or a share of `capacity`. None where it is to be ignored: 0% and 100%.
pub fn threshold(text: &str, capacity: u64) -> Option<u64> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let share = share(percent).filter(|share| *share > 0.0 && *share < 100.0)?;
            Some((capacity as f64 * share / 100.0) as u64)
        }
        None => Some(parse(text)?.div_ceil(1000)),
    }
}

/// Whether kubelet would take `text` for a threshold: a quantity above zero, or a share from 0% to 100%.
pub fn is_threshold(text: &str) -> bool {
    match text.strip_suffix('%') {
        Some(percent) => share(percent).is_some(),
        None => parse(text).is_some_and(|quantity| quantity > 0),
    }
}

fn share(percent: &str) -> Option<f64> {
    percent.parse().ok().filter(|p| (0.0..=100.0).contains(p))
}

/// CPU as kubelet writes it: whole cores, else millicores.
pub fn cpu(milli: u64) -> String {
    if milli.is_multiple_of(1000) {
        (milli / 1000).to_string()
    } else {
        format!("{milli}m")
    }
}

/// Bytes as kubelet writes memory: in Ki where that is exact.
pub fn memory(bytes: u64) -> String {
    if bytes.is_multiple_of(1024) {
        format!("{}Ki", bytes / 1024)
    } else {
        bytes.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, milli) in [
            ("1", 1000),
            ("200m", 200),
            ("1.5", 1500),
            ("0.0001", 1),
            ("1Ki", 1_024_000),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
        ] {
            assert_eq!(parse(text), Some(milli), "{text}");
        }
        for text in ["", ".", "-1", "1 Mi", "1Qi", "1.2.3", "e3", "99999999999999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_threshold_is_a_share_or_an_amount() {
        assert_eq!(threshold("10%", 1000), Some(100));
        assert_eq!(threshold("100Mi", 0), Some(100 << 20));
        assert_eq!(threshold("101%", 10), None);
        for text in ["0%", "100%"] {
            assert!(is_threshold(text), "{text}");
            assert_eq!(threshold(text, 10), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(milli in 0_u64..1 << 40, bytes in 0_u64..1 << 50) {
            prop_assert_eq!(parse(&cpu(milli)), Some(milli));
            prop_assert_eq!(parse(&memory(bytes)), Some(bytes * 1000));
        }

        #[test]
        fn mangled_text_never_panics(text in ".{0,24}") {
            let _ = parse(&text);
            let threshold = threshold(&text, u64::MAX);
            prop_assert!(threshold.is_none_or(|t| t == 0) || is_threshold(&text));
        }
    }
}
