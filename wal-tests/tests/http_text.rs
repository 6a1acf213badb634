//! Numbers, strings and dates as Go writes them, which is what rqlite's clients read.

// Functions shared by tests are not seen as tests by the lint.
#![allow(clippy::unwrap_used)]

use wallaby::http::{date, json};

/// A generator of numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    /// A fresh seed, or the one in `WAL_SEED`; printed, so that a failure can be replayed.
    fn from_environment() -> Self {
        let seed = std::env::var("WAL_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap()).max(1);
        println!("WAL_SEED={seed} cargo test -p wal-tests --test http_text");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }
}

fn number(value: f64) -> String {
    let mut out = Vec::new();
    json::number(&mut out, value);
    String::from_utf8(out).unwrap()
}

fn string(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    json::text(&mut out, bytes);
    String::from_utf8(out).unwrap()
}

#[test]
fn doubles_are_written_as_go_writes_them() {
    let table = [
        (2.0, "2"),
        (0.0, "0"),
        (-0.0, "-0"),
        (0.1, "0.1"),
        (-1.5, "-1.5"),
        (1e20, "100000000000000000000"),
        (999_999_999_999_999_900_000.0, "999999999999999900000"),
        (1e21, "1e+21"),
        (-1.25e22, "-1.25e+22"),
        (1e-6, "0.000001"),
        (9.99e-7, "9.99e-7"),
        (1e-7, "1e-7"),
        (1e-10, "1e-10"),
        (5e-324, "5e-324"),
        (f64::MAX, "1.7976931348623157e+308"),
        (9_223_372_036_854_775_808.0, "9223372036854776000"),
        (0.000_056_684, "0.000056684"),
        (1.0 / 3.0, "0.3333333333333333"),
    ];
    for (value, expected) in table {
        assert_eq!(number(value), expected);
    }
}

#[test]
fn random_doubles_read_back_equal_from_the_fewest_digits() {
    let mut random = Random::from_environment();
    for _ in 0..20_000 {
        let value = f64::from_bits(random.next());
        if !value.is_finite() {
            continue;
        }
        let text = number(value);
        assert_eq!(
            text.parse::<f64>().unwrap().to_bits(),
            value.to_bits(),
            "{text}"
        );
        let plain = value == 0.0 || (1e-6..1e21).contains(&value.abs());
        assert_eq!(plain, !text.contains('e'), "{text}");
        assert!(
            serde_json::from_str::<serde_json::Value>(&text)
                .unwrap()
                .is_number()
        );
        let mantissa = text.split('e').next().unwrap().replace(['.', '-'], "");
        let digits = mantissa.trim_start_matches('0').trim_end_matches('0').len();
        if digits > 1 {
            let shorter = format!("{value:.*e}", digits - 2);
            assert_ne!(
                shorter.parse::<f64>().unwrap().to_bits(),
                value.to_bits(),
                "{text}"
            );
        }
    }
}

#[test]
fn strings_are_escaped_as_go_escapes_them() {
    let table: &[(&[u8], &str)] = &[
        (b"fiona", r#""fiona""#),
        (b"\"\\/", r#""\"\\/""#),
        (b"\x08\x0c\n\r\t", r#""\b\f\n\r\t""#),
        (b"\x00\x1f\x7f", "\"\\u0000\\u001f\x7f\""),
        (b"<a>&b", r#""\u003ca\u003e\u0026b""#),
        (
            "\u{2027}\u{2028}x\u{2029}\u{202a}".as_bytes(),
            "\"\u{2027}\\u2028x\\u2029\u{202a}\"",
        ),
        (
            "\u{3053}\u{e9}\u{1f600}\u{fffd}".as_bytes(),
            "\"\u{3053}\u{e9}\u{1f600}\u{fffd}\"",
        ),
        (b"a\xffb", r#""a\ufffdb""#),
        (b"\xe2\x82", r#""\ufffd\ufffd""#),
        (b"", r#""""#),
    ];
    for (bytes, expected) in table {
        assert_eq!(&string(bytes), expected);
    }
}

#[test]
fn random_strings_read_back_equal() {
    let mut random = Random::from_environment();
    for _ in 0..5_000 {
        let length = random.below(40);
        let original: String = (0..length)
            .filter_map(|_| {
                let plane = [0x40, 0x80, 0x100, 0x2100, 0x11_0000][random.below(5)];
                char::from_u32(u32::try_from(random.below(plane)).unwrap())
            })
            .collect();
        let written = string(original.as_bytes());
        assert!(
            written
                .bytes()
                .all(|byte| byte >= 0x20 && !b"<>&".contains(&byte)),
            "{written}"
        );
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), original);
    }
}

#[test]
fn dates_in_text_become_rfc_3339() {
    let table = [
        ("2024-01-02 03:04:05", "2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
        ("2024-01-02 03:04:05.120", "2024-01-02T03:04:05.12Z"),
        ("2024-01-02 03:04:05.000", "2024-01-02T03:04:05Z"),
        ("2024-01-02 03:04:05,5", "2024-01-02T03:04:05.5Z"),
        (
            "2024-01-02 03:04:05.1234567899",
            "2024-01-02T03:04:05.123456789Z",
        ),
        (
            "2024-01-02 03:04:05.123456+02:00",
            "2024-01-02T03:04:05.123456+02:00",
        ),
        ("2024-01-02T03:04:05-11:30", "2024-01-02T03:04:05-11:30"),
        ("2024-01-02 03:04:05-00:00", "2024-01-02T03:04:05Z"),
        ("2024-01-02 03:04", "2024-01-02T03:04:00Z"),
        ("2024-01-02T3:04", "2024-01-02T03:04:00Z"),
        ("2024-01-02   03:04", "2024-01-02T03:04:00Z"),
        ("2024-01-02", "2024-01-02T00:00:00Z"),
        ("2024-01-02Z", "2024-01-02T00:00:00Z"),
        ("2024-02-29", "2024-02-29T00:00:00Z"),
        ("2000-02-29", "2000-02-29T00:00:00Z"),
    ];
    for (stored, expected) in table {
        assert_eq!(date::from_text(stored.as_bytes()), expected, "{stored}");
    }
    let wrong = "|junk|Z|2024|2024-1-02|2024-01-2|2024-13-01|2024-00-01|2023-02-29|1900-02-29\
                 |2024-04-31|2024-01-00|2024-01-02 |2024-01-02T|2024-01-02 24:00|2024-01-02 03\
                 |2024-01-02 03:4|2024-01-02 03:60|2024-01-02 03:04:60|2024-01-02 03:04:05.\
                 |2024-01-02 03:04:05ZZ|2024-01-02 03:04+02:00|2024-01-02 03:04:05+0200\
                 |2024-01-02 03:04:05+25:00|2024-01-02 03:04:05 +02:00|2024-01-02x03:04\
                 |03:04:05|12024-01-02|\u{fffd}";
    for stored in wrong.split('|') {
        assert_eq!(
            date::from_text(stored.as_bytes()),
            "0001-01-01T00:00:00Z",
            "{stored}"
        );
    }
}

#[test]
fn dates_in_integers_become_rfc_3339() {
    let table = [
        (-1, "1969-12-31T23:59:59Z"),
        (1_704_164_645, "2024-01-02T03:04:05Z"),
        (1_704_164_645_678, "2024-01-02T03:04:05.678Z"),
        (-1_000_000_000_001, "1938-04-24T22:13:19.999Z"),
        (-62_135_596_800, "0001-01-01T00:00:00Z"),
        (253_402_300_800, "10000-01-01T00:00:00Z"),
        (1_000_000_000_000, "33658-09-27T01:46:40Z"),
    ];
    for (stored, expected) in table {
        assert_eq!(date::from_integer(stored), expected, "{stored}");
    }
    for extreme in [i64::MIN, i64::MAX] {
        assert!(date::from_integer(extreme).ends_with('Z'));
    }
}

#[test]
fn every_day_of_eight_centuries_has_its_date() {
    let (mut year, mut month, mut day) = (1600_i64, 1, 1);
    let from_1600_to_1970 = 370 * 365 + 90;
    for count in 0..800 * 365 {
        let expected = format!("{year}-{month:02}-{day:02}T00:00:00Z");
        assert_eq!(
            date::from_unix((count - from_1600_to_1970) * 86_400, 0),
            expected
        );
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let february = if leap { 29 } else { 28 };
        let last = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1];
        (year, month, day) = match (month, day) {
            (12, 31) => (year + 1, 1, 1),
            _ if day == last => (year, month + 1, 1),
            _ => (year, month, day + 1),
        };
    }
}
