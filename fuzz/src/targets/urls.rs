//! Query strings, and what stands in their parameters: durations, dates and escapes.

use std::fmt::Write as _;

use wallaby::http::parameters::{Parameters, unescape};
use wallaby::http::{date, duration};

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

/// `&a` becomes two texts of their own and a place in a map that has grown by doubling.
const BOUND: Bound = Bound {
    per_byte: 160,
    ..Bound::PLAIN
};

/// See the module.
///
/// # Panics
/// If a value is lost or changed on its way.
pub fn urls(data: &[u8]) -> Reached {
    let text = String::from_utf8_lossy(data);
    let parsed = bounded(BOUND, text.len(), || Parameters::parse(&text));
    for plus_is_space in [false, true] {
        // Any text comes through when it is escaped.
        let mut escaped = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' => escaped.push(char::from(byte)),
                b' ' if plus_is_space => escaped.push('+'),
                _ => write!(escaped, "%{byte:02X}").expect("memory"),
            }
        }
        assert_eq!(unescape(&escaped, plus_is_space), Ok(text.to_string()));
        let _ = bounded(Bound::PLAIN, text.len() * 2, || {
            unescape(&text, plus_is_space)
        });
    }
    if let Some(read) = bounded(Bound::PLAIN, text.len(), || duration::parse(&text)) {
        let written = duration::format(read);
        assert_eq!(duration::parse(&written), Some(read), "{written}");
    }
    let moment = bounded(Bound::PLAIN, data.len(), || date::from_text(data));
    assert!(moment.len() >= 20, "{moment}");
    let Ok(parameters) = parsed else {
        return Reached::Refused;
    };
    // The first value of a name counts.
    let names: Vec<&str> = text
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').map_or(pair, |pair| pair.0))
        .collect();
    for name in &names {
        let name = unescape(name, true).expect("accepted as a whole");
        assert!(parameters.flag(&name), "{name:?} is lost");
        assert!(parameters.text(&name).is_some());
    }
    let _ = parameters.level();
    if parameters.text("q").is_some() {
        assert_ne!(parameters.text("q"), Some(""));
    }
    Reached::accepted(!names.is_empty())
}

/// Names and values that mean something.
pub(crate) const WORDS: [&str; 26] = [
    "q=",
    "&",
    "=",
    "%",
    "%2",
    "+",
    ";",
    "timeout=",
    "freshness=",
    "freshness_strict",
    "level=",
    "strong",
    "linearizable_timeout=",
    "db_timeout=",
    "raft_index=",
    "retries=",
    "1h2m3s",
    "1.5us",
    "-",
    "ns",
    "\u{b5}s",
    "9223372036854775807",
    "18446744073709551615",
    "2024-02-29T",
    "23:59:59",
    ".999999999",
];

pub(crate) fn samples() -> Vec<Sample> {
    [
        ("query", "q=SELECT%201+%2B+1&level=strong&pretty"),
        (
            "times",
            "timeout=1.5s&db_timeout=100ms&linearizable_timeout=2m3s",
        ),
        ("fresh", "freshness=1h&freshness_strict&level=NONE"),
        ("index", "raft_index=17&raft_index=18"),
        (
            "flags",
            "transaction&timings&associative&&redirect=&retries=3",
        ),
        ("no-query", "q="),
        ("semicolon", "a;b"),
        ("escape", "q=%4"),
        ("not-utf-8", "q=%ff%fe"),
        ("no-duration", "timeout=fast"),
        ("no-index", "raft_index=-1"),
        ("strict-alone", "freshness_strict"),
        ("duration", "1h2m3.25s"),
        ("date", "2024-02-29 23:59:59.5+01:00Z"),
    ]
    .into_iter()
    .map(|(name, text)| Sample::new(name, text.as_bytes().to_vec()))
    .collect()
}
