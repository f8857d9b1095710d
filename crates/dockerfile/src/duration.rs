//! Durations as Go writes and reads them: `1m30s`, `1.5h`, `300ms`.

const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Nanoseconds of a duration such as `1m30s`. The error is Go's sentence.
///
/// ```
/// use cooper_dockerfile::duration::{format, parse};
///
/// assert_eq!(parse("1m30s"), Ok(90_000_000_000));
/// assert_eq!(format(90_000_000_000), "1m30s");
/// ```
pub fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        if !number.bytes().any(|b| b.is_ascii_digit()) || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        total += number * scale;
        rest = after;
    }
    // 2^63 nanoseconds are about 292 years.
    if total >= 9.223_372_036_854_775e18 {
        return Err(invalid());
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    let nanoseconds = total.round() as i64;
    Ok(if negative { -nanoseconds } else { nanoseconds })
}

/// The way Go prints a duration of so many nanoseconds.
pub fn format(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let left = nanoseconds.unsigned_abs();
    let decimal = |value: u64, scale: u64, unit: &str| {
        let fraction = value % scale;
        if fraction == 0 {
            return format!("{}{unit}", value / scale);
        }
        let width = scale.ilog10() as usize;
        let digits = format!("{fraction:0width$}");
        format!("{}.{}{unit}", value / scale, digits.trim_end_matches('0'))
    };
    let text = match left {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{left}ns"),
        1_000..1_000_000 => decimal(left, 1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(left, 1_000_000, "ms"),
        _ => {
            let minutes = left / 60_000_000_000;
            let seconds = decimal(left % 60_000_000_000, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn there_and_back() {
        for (text, nanoseconds, formatted) in [
            ("0", 0, "0s"),
            ("30s", 30_000_000_000, "30s"),
            ("1m", 60_000_000_000, "1m0s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("300ms", 300_000_000, "300ms"),
            ("1500us", 1_500_000, "1.5ms"),
            ("5ns", 5, "5ns"),
            ("-2s", -2_000_000_000, "-2s"),
            ("1m1.5s", 61_500_000_000, "1m1.5s"),
        ] {
            assert_eq!(parse(text), Ok(nanoseconds), "{text}");
            assert_eq!(format(nanoseconds), formatted, "{text}");
        }
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("s", "time: invalid duration \"s\""),
            ("1..2s", "time: invalid duration \"1..2s\""),
        ] {
            assert_eq!(parse(text).unwrap_err(), error);
        }
        assert!(parse("9999999999h").is_err());
    }
}
