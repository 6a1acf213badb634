//! Durations as rqlited's flags write them, which is Go's form: `300ms`, `1.5s`, `2m30s`, `0`.

use std::time::Duration;

/// Reads one. Fractions of a nanosecond are dropped.
///
/// # Errors
///
/// Anything that is not a sequence of decimal numbers with units (`h`, `m`, `s`, `ms`, `us`, `ns`),
/// negative durations included: no flag has a use for them.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let malformed = || format!("`{text}` is not a duration such as 300ms, 1.5s or 2m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(malformed());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(malformed)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(malformed()),
        };
        let number: f64 = number.parse().map_err(|_| malformed())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| malformed())?;
        total = total.checked_add(part).ok_or_else(malformed)?;
        rest = tail;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("80ms", 80),
            ("1.5s", 1500),
            ("2m3s", 123_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1d",
            "1s2",
            "1..2s",
            "1e400s",
            "999999999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
