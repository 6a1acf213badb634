//! Durations as Go's `time` package reads and writes them: `100ms`, `1.5s`, `2m3s`, `-1h`, `0`.

use std::time::Duration;

const NANOSECONDS_MAX: u64 = 1 << 63;

/// Reads a duration. `None`: not one (no unit, unknown unit, no digits, or beyond about 292 years).
/// A negative duration is well-formed in Go; waiting for it means not waiting, so it is zero here.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (nanoseconds, after) = term(rest)?;
        total = total
            .checked_add(nanoseconds)
            .filter(|&sum| sum <= NANOSECONDS_MAX)?;
        rest = after;
    }
    if negative {
        return Some(Duration::ZERO);
    }
    (total < NANOSECONDS_MAX).then(|| Duration::from_nanos(total))
}

/// One number with its unit, and what follows it.
fn term(text: &str) -> Option<(u64, &str)> {
    let digits_end = digits(text);
    let whole = match &text[..digits_end] {
        "" => 0,
        digits => digits
            .parse::<u64>()
            .ok()
            .filter(|&n| n <= NANOSECONDS_MAX)?,
    };
    let mut rest = &text[digits_end..];
    let mut fraction = "";
    if let Some(after) = rest.strip_prefix('.') {
        let end = digits(after);
        fraction = &after[..end];
        rest = &after[end..];
    }
    if digits_end == 0 && fraction.is_empty() {
        return None;
    }
    let unit_end = rest
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(rest.len());
    let unit = match &rest[..unit_end] {
        "ns" => 1,
        // Both the micro sign and the Greek letter are in use.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let value = whole.checked_mul(unit)?.checked_add(part(fraction, unit))?;
    (value <= NANOSECONDS_MAX).then_some((value, &rest[unit_end..]))
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len())
}

/// `0.fraction` of a unit in whole nanoseconds. An hour has 13 decimal digits of them, so digits
/// after the 18th cannot matter.
fn part(fraction: &str, unit: u64) -> u64 {
    let fraction = &fraction[..fraction.len().min(18)];
    let mut scale = 1_u128;
    let mut value = 0_u128;
    for digit in fraction.bytes() {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    u64::try_from(value * u128::from(unit) / scale).unwrap_or(0)
}

/// Writes a duration the way Go prints it: `33.149us` (with a micro sign), `1.5ms`, `2m3s`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let fraction = |unit: u128| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", nanoseconds / unit, nanoseconds % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanoseconds {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}\u{b5}s", fraction(1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(1_000_000)),
        _ => long(duration),
    }
}

/// A second and more: hours and minutes appear once anything above them is not zero.
fn long(duration: Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_nanos());
    let last = format!("{}.{rest:09}", seconds % 60);
    let last = last.trim_end_matches('0').trim_end_matches('.');
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{last}s"),
        (0, minutes) => format!("{minutes}m{last}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{last}s"),
    }
}
