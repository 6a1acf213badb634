//! What rqlite makes of values in DATE, DATETIME and TIMESTAMP columns: RFC 3339.
//!
//! | Stored | Becomes |
//! |---|---|
//! | integer, magnitude up to 1e12 | that many seconds after 1970, UTC |
//! | larger integer | that many milliseconds after 1970, UTC |
//! | text `YYYY-MM-DD`, then nothing or `T` or spaces and a time of day | the same, completed |
//! | time of day | `H:MM` or `HH:MM`, `:SS`, fraction after `.` or `,`, zone `+HH:MM` |
//! | one `Z` at the end | dropped before reading; no zone means UTC |
//! | any other text | `0001-01-01T00:00:00Z` |
//!
//! A zone is kept, not converted. Fractions lose trailing zeros and digits after the ninth.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a text that is no date becomes: Go's zero time.
const ZERO: &str = "0001-01-01T00:00:00Z";

/// An integer of such a column as RFC 3339.
#[must_use]
pub fn from_integer(value: i64) -> String {
    const MILLISECONDS_ABOVE: u64 = 1_000_000_000_000;
    let (seconds, nanoseconds) = if value.unsigned_abs() > MILLISECONDS_ABOVE {
        // Go multiplies in 64 bits and wraps; the bytes of absurd values are compatible too.
        let nanoseconds = value.wrapping_mul(1_000_000);
        (
            nanoseconds.div_euclid(1_000_000_000),
            nanoseconds.rem_euclid(1_000_000_000),
        )
    } else {
        (value, 0)
    };
    from_unix(seconds, u32::try_from(nanoseconds).unwrap_or(0))
}

/// A moment as RFC 3339 in UTC.
pub(super) fn moment(time: SystemTime) -> String {
    let since: Duration = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    from_unix(
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        since.subsec_nanos(),
    )
}

/// A moment in seconds and nanoseconds after 1970 as RFC 3339 in UTC.
#[must_use]
pub fn from_unix(seconds: i64, nanoseconds: u32) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let sign = if year < 0 { "-" } else { "" };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let year = year.unsigned_abs();
    let mut out = format!("{sign}{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    fraction(&mut out, nanoseconds);
    out.push('Z');
    out
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
/// Years are counted from March, so that the leap day is the last of its year; 400 of them have
/// 146097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_MARCH_OF_YEAR_0: i64 = 719_468;
    let days = days + DAYS_TO_MARCH_OF_YEAR_0;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, after) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + after, month, day)
}

fn fraction(out: &mut String, nanoseconds: u32) {
    if nanoseconds > 0 {
        let digits = format!("{nanoseconds:09}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

/// A text of such a column as RFC 3339.
#[must_use]
pub fn from_text(text: &[u8]) -> String {
    let text = text.strip_suffix(b"Z").unwrap_or(text);
    parsed(&mut Cursor(text)).unwrap_or_else(|| ZERO.to_owned())
}

fn parsed(cursor: &mut Cursor<'_>) -> Option<String> {
    let year = u32::from(cursor.two()?) * 100 + u32::from(cursor.two()?);
    cursor.literal(b'-')?;
    let month = cursor.two().filter(|month| (1..=12).contains(month))?;
    cursor.literal(b'-')?;
    let day = cursor
        .two()
        .filter(|&day| day >= 1 && day <= month_days(year, month))?;
    let mut out = format!("{year:04}-{month:02}-{day:02}");
    if cursor.0.is_empty() {
        out.push_str("T00:00:00Z");
        return Some(out);
    }
    if cursor.literal(b'T').is_none() {
        cursor.literal(b' ')?;
        while cursor.literal(b' ').is_some() {}
    }
    let hour = cursor.one_or_two().filter(|&hour| hour < 24)?;
    cursor.literal(b':')?;
    let minute = cursor.two().filter(|&minute| minute < 60)?;
    if cursor.0.is_empty() {
        write!(out, "T{hour:02}:{minute:02}:00Z").ok()?;
        return Some(out);
    }
    cursor.literal(b':')?;
    let second = cursor.two().filter(|&second| second < 60)?;
    write!(out, "T{hour:02}:{minute:02}:{second:02}").ok()?;
    fraction(&mut out, cursor.nanoseconds());
    out.push_str(&cursor.zone()?);
    Some(out)
}

fn month_days(year: u32, month: u8) -> u8 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The part of a date that has not been read yet.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn literal(&mut self, wanted: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[wanted])?;
        Some(())
    }

    fn digit(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        let digit = first.is_ascii_digit().then(|| first - b'0')?;
        self.0 = rest;
        Some(digit)
    }

    fn two(&mut self) -> Option<u8> {
        Some(self.digit()? * 10 + self.digit()?)
    }

    fn one_or_two(&mut self) -> Option<u8> {
        let first = self.digit()?;
        Some(self.digit().map_or(first, |second| first * 10 + second))
    }

    /// A fraction of a second if one follows. A separator without a digit after it is left alone,
    /// and makes the text no date.
    fn nanoseconds(&mut self) -> u32 {
        let [b'.' | b',', b'0'..=b'9', ..] = self.0 else {
            return 0;
        };
        self.0 = &self.0[1..];
        let (mut nanoseconds, mut place) = (0, 100_000_000);
        while let Some(digit) = self.digit() {
            nanoseconds += u32::from(digit) * place;
            place /= 10;
        }
        nanoseconds
    }

    /// The zone and the end of the text. Go lets 24 hours and 60 minutes pass.
    fn zone(&mut self) -> Option<String> {
        let Some((&sign, rest)) = self.0.split_first() else {
            return Some("Z".to_owned());
        };
        if !matches!(sign, b'+' | b'-') {
            return None;
        }
        self.0 = rest;
        let hours = self.two().filter(|&hours| hours <= 24)?;
        self.literal(b':')?;
        let minutes = self.two().filter(|&minutes| minutes <= 60)?;
        let offset = u32::from(hours) * 60 + u32::from(minutes);
        match offset {
            _ if !self.0.is_empty() => None,
            0 => Some("Z".to_owned()),
            _ => Some(format!(
                "{}{:02}:{:02}",
                char::from(sign),
                offset / 60,
                offset % 60
            )),
        }
    }
}
