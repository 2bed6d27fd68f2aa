//! Values that Go reads from text by rules of its own, and writes in one form: quantities, times, base64.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// What Go says to a quantity that it cannot read.
const BAD_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Nanounits in one: quantities are exact down to these and rounded up beyond.
const NANO: i128 = 1_000_000_000;

/// The largest magnitude of a quantity with a binary suffix; larger ones are cut to it.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;

/// The largest of the others; Go has no bound here.
const MAX: i128 = 10_i128.pow(37);

/// In which family of suffixes a quantity was written; it is written back in the same.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Decimal,
    Binary,
    Exponent,
}

const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// A quantity in the one form in which the API writes it: `0.5` → `500m`, `1024Mi` → `1Gi`, `1000` → `1k`.
///
/// # Errors
///
/// What Go would say.
pub(super) fn canonical_quantity(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let (nanos, family) = parse_quantity(text).ok_or(BAD_QUANTITY)?;
    let nanos = match family {
        Family::Binary => nanos.clamp(-MAX_BINARY, MAX_BINARY),
        Family::Decimal | Family::Exponent => nanos,
    };
    Ok(write_quantity(nanos, family))
}

/// Nanounits and family.
fn parse_quantity(text: &str) -> Option<(i128, Family)> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let (factor, exponent, family) = parse_suffix(suffix)?;
    let nanos = scale(whole, fraction, factor, exponent);
    Some((if negative { -nanos } else { nanos }, family))
}

/// What the suffix multiplies by: a factor, a power of ten.
fn parse_suffix(suffix: &str) -> Option<(i128, i32, Family)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((1, *exponent, Family::Decimal));
    }
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        return Some((1 << (10 * (power + 1)), 0, Family::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let magnitude: i32 = digits.parse().unwrap_or(1_000).min(1_000);
    let exponent = if exponent.starts_with('-') {
        -magnitude
    } else {
        magnitude
    };
    Some((1, exponent, Family::Exponent))
}

/// |WHOLE.FRACTION × factor × 10^exponent| in nanounits, rounded up, at most [`MAX`]. Numbers with more digits than fit are cut.
fn scale(whole: &str, fraction: &str, factor: i128, exponent: i32) -> i128 {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() && fraction.is_empty() {
        return 0;
    }
    // More digits than this cannot change the result but by rounding up.
    let precision = if whole.len() > 19 { 9 } else { 18 };
    let kept = &fraction[..fraction.len().min(precision)];
    let cut = kept.len() < fraction.len();
    let digits = format!("{whole}{kept}");
    let mantissa: i128 = digits.parse().unwrap_or(MAX);
    let power = exponent + 9 - i32::try_from(kept.len()).unwrap_or(18);
    let Some(product) = mantissa.checked_mul(factor) else {
        return MAX;
    };
    let nanos = if power >= 0 {
        let ten = 10_i128.checked_pow(power.unsigned_abs());
        ten.and_then(|ten| product.checked_mul(ten)).unwrap_or(MAX)
    } else {
        match 10_i128.checked_pow(power.unsigned_abs()) {
            Some(ten) => product / ten + i128::from(product % ten != 0 || cut),
            None => 1,
        }
    };
    nanos.min(MAX)
}

fn write_quantity(nanos: i128, family: Family) -> String {
    if nanos == 0 {
        return "0".into();
    }
    let small = nanos.abs() < 1024 * NANO;
    if family == Family::Binary && !small && nanos % NANO == 0 {
        let (mut number, mut power) = (nanos / NANO, 0);
        while number % 1024 == 0 && power < BINARY.len() {
            number /= 1024;
            power += 1;
        }
        let suffix = power.checked_sub(1).map_or("", |p| BINARY[p]);
        return format!("{number}{suffix}");
    }
    let (mut number, mut exponent) = (nanos, -9);
    while number % 1000 == 0 && exponent < 18 {
        number /= 1000;
        exponent += 3;
    }
    if family == Family::Exponent {
        return match exponent {
            0 => number.to_string(),
            _ => format!("{number}e{exponent}"),
        };
    }
    let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| *s);
    format!("{number}{suffix}")
}

/// Goes through a time as Go does, up to its zone: the rest that does not fit, and the layout's element there.
fn time_elements(text: &str, micro: bool) -> Result<(), (&str, &'static str)> {
    let mut rest = text;
    let elements = [
        ("2006", ""),
        ("01", "-"),
        ("02", "-"),
        ("15", "T"),
        ("04", ":"),
        ("05", ":"),
    ];
    for (element, before) in elements {
        rest = rest.strip_prefix(before).ok_or((rest, before))?;
        let digits = rest
            .get(..element.len())
            .filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        rest = &rest[digits.ok_or((rest, element))?.len()..];
    }
    if micro {
        let fraction = rest.strip_prefix('.').and_then(|part| part.get(..6));
        let digits = fraction.filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        let after = digits.map(|_| &rest[7..]).ok_or((rest, ".000000"))?;
        if !after.starts_with(['Z', '+', '-']) {
            return Err((after, "Z07:00"));
        }
    }
    Ok(())
}

/// A time in UTC, in whole seconds or with six digits behind them.
///
/// # Errors
///
/// What Go would say.
pub(super) fn canonical_time(text: &str, micro: bool) -> Result<String, String> {
    let layout = if micro {
        "2006-01-02T15:04:05.000000Z07:00"
    } else {
        "2006-01-02T15:04:05Z07:00"
    };
    let fault = |rest: &str, element: &str| {
        format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}")
    };
    if let Err((rest, element)) = time_elements(text, micro) {
        return Err(fault(rest, element));
    }
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| fault(text, "2006"))?
        .to_offset(UtcOffset::UTC);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second, micros) = at.to_hms_micro();
    let month = u8::from(month);
    let mut out = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if micro {
        out.push_str(&format!(".{micros:06}"));
    }
    out.push('Z');
    Ok(out)
}

/// Go's `base64.StdEncoding`: padding is required, line breaks are passed over, bits behind the end do not matter.
///
/// # Errors
///
/// What Go would say.
pub(super) fn canonical_base64(text: &str) -> Result<String, String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&STANDARD, config);
    let decoded = if text.contains(['\r', '\n']) {
        engine.decode(text.replace(['\r', '\n'], ""))
    } else {
        engine.decode(text)
    };
    match decoded {
        Ok(bytes) => Ok(engine.encode(bytes)),
        Err(e) => {
            let at = match e {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len() - text.len() % 4,
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_written_in_one_form() {
        let cases = [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.1Ki", "102400m"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1e3", "1e3"),
            ("12E", "12E"),
            ("12e-1", "1200e-3"),
            ("0", "0"),
            ("0Mi", "0"),
            ("+1", "1"),
            ("-1.5", "-1500m"),
            ("0.1n", "1n"),
            ("100Ki", "100Ki"),
            ("110", "110"),
            ("16393244Ki", "16393244Ki"),
            (".5", "500m"),
            ("5.", "5"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999999", "99999999999999999999999"),
            ("16Ei", "9223372036854775807"),
            (" 1 ", "1"),
        ];
        for (text, canonical) in cases {
            assert_eq!(canonical_quantity(text).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_quantities_are_refused() {
        for text in [
            "", "-", ".", "1.2.3", "1 Gi", "Gi", "1gi", "1KiB", "e3", "1e", "--1", "0x1", "1é",
        ] {
            assert_eq!(canonical_quantity(text), Err(BAD_QUANTITY), "{text}");
        }
    }

    #[test]
    fn times_become_utc_seconds() {
        let time = |t| canonical_time(t, false);
        assert_eq!(time("2026-01-02T03:04:05.6+02:00").unwrap(), "2026-01-02T01:04:05Z");
        assert_eq!(
            canonical_time("2026-01-02T03:04:05.120000+01:00", true).unwrap(),
            "2026-01-02T02:04:05.120000Z"
        );
        assert!(
            canonical_time("2026-01-02T03:04:05Z", true)
                .unwrap_err()
                .ends_with("cannot parse \"Z\" as \".000000\"")
        );
        assert!(time("yesterday").unwrap_err().contains("cannot parse"));
    }

    #[test]
    fn base64_is_read_as_go_reads_it() {
        assert_eq!(canonical_base64("YWJj\nZA==").unwrap(), "YWJjZA==");
        assert_eq!(canonical_base64("").unwrap(), "");
        for bad in ["YWJ", "YWJj!", "_-__"] {
            assert!(
                canonical_base64(bad).unwrap_err().starts_with("illegal base64 data"),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,40}") {
            let _ = canonical_quantity(&text);
            let _ = canonical_time(&text, true);
            let _ = canonical_base64(&text);
        }

        #[test]
        fn a_canonical_quantity_stays_as_it_is(text in "[+-]?[0-9]{1,22}(\\.[0-9]{0,22})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,3}|)") {
            let once = canonical_quantity(&text).unwrap();
            prop_assert_eq!(canonical_quantity(&once).unwrap(), once);
        }
    }
}
