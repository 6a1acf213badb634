//! Query parameters of a URL, checked before routing as rqlite does.
//!
//! | Parameter | Kind | Default | Meaning |
//! |---|---|---|---|
//! | `transaction` | flag | off | all statements stand or fall together |
//! | `level` | text | `weak` | guarantee of a read; any case; unknown means `weak` |
//! | `qualify_columns` | flag | off | `table.column` for columns that come from a table |
//! | `timings`, `pretty`, `associative` | flag | off | form of the answer |
//! | `raft_index`, `blob_array` | flag | off | form of the answer |
//! | `raft_index` | number | 0 | the log index that a read has to see; waited for |
//! | `timeout` | duration | 30 s | how long the client waits; then its statements are ended |
//! | `linearizable_timeout` | duration | 10 s | how long finding the leader may take |
//! | `db_timeout` | duration | none | longest run of one statement; zero means none |
//! | `freshness` | duration | none | longest time without the leader, for level `none` |
//! | `freshness_strict` | flag | off | limits the age of the data by the same time as well |
//! | `redirect` | flag | off | sends the client to the leader rather than passing the call on |
//! | `retries` | integer | 0 | no effect: see below |
//! | `trailing_logs` | integer | | checked here |
//! | `queue`, `wait` | flag | off | `/db/execute`: answer before, or only after, it was sent |
//! | `wait` | flag | off | `POST /leader`: answer when another node leads |
//! | `q` | text | | the statement of a GET |
//! | `noparse`, `norwrandom`, `norwtime` | flag | | accepted: no statement is rewritten |
//! | `sync` | flag | off | `/readyz` |
//! | `noleader` | flag | off | `/readyz` and queued writes: do without one |
//! | `nonvoters`, `ver` | flag, text | | `/nodes` |
//! | `key` | text | | `/status`: one part of it, names joined by dots |
//!
//! rqlite passes a call on once, and `retries` times again if it fails. Here it is passed on again
//! and again until `timeout` while it is certain that nothing was done with it, and never when it
//! may have been; so there is nothing left to retry.
//!
//! Keys are case-sensitive, the first value counts, a flag is on whatever its value, and unknown
//! parameters are ignored.

use std::collections::HashMap;
use std::time::Duration;

use crate::node::{Freshness, Level};

use super::duration;

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const LINEARIZABLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The guarantee a client asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LevelAsked {
    /// `none` on a node without a vote, `weak` on one with.
    Auto,
    /// One of the four.
    Fixed(Level),
}

/// Why a query string was refused; the text is rqlite's, the status 400.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParameterError {
    /// A percent sign without two hexadecimal digits; the offending characters.
    #[error("invalid URL escape \"{0}\"")]
    Escape(String),
    /// `freshness_strict` says how to apply `freshness`, which is missing.
    #[error("freshness_strict requires freshness")]
    FreshnessMissing,
    /// Not a duration with a unit; the parameter's name.
    #[error("{0} is not a valid duration")]
    NotDuration(&'static str),
    /// Not an integer; the parameter's name.
    #[error("{0} is not a valid integer")]
    NotInteger(&'static str),
    /// Neither a log index nor one of the values that flags are given.
    #[error(
        "{0} is not a log index: give the number that came with the answer to a write, and a read \
         waits until the node that serves it has applied the log up to there"
    )]
    NotIndex(&'static str),
    /// `q` is there, and empty.
    #[error("query parameter not set")]
    QueryEmpty,
    /// A `;` where only `&` separates parameters.
    #[error("invalid semicolon separator in query")]
    Semicolon,
}

/// The query parameters of one call.
#[derive(Clone, Debug)]
pub struct Parameters {
    values: HashMap<String, String>,
    /// `timeout`.
    pub timeout: Duration,
    /// `linearizable_timeout`.
    pub linearizable_timeout: Duration,
    /// `db_timeout`.
    pub statement_time_max: Option<Duration>,
    /// `freshness` and `freshness_strict`; zero means none.
    pub freshness: Option<Freshness>,
    /// The value of `raft_index`; 0 if it is only a flag.
    pub index_min: u64,
}

impl Parameters {
    /// Reads a query string.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(query: &str) -> Result<Self, ParameterError> {
        let values = pairs(query)?;
        let read = |name: &'static str| -> Result<Option<Duration>, ParameterError> {
            match values.get(name) {
                None => Ok(None),
                Some(text) => {
                    let value = duration::parse(text);
                    value.map(Some).ok_or(ParameterError::NotDuration(name))
                }
            }
        };
        let timeout = read("timeout")?.unwrap_or(TIMEOUT_DEFAULT);
        let freshness = read("freshness")?.filter(|max| !max.is_zero());
        let statement_time_max = read("db_timeout")?.filter(|time| !time.is_zero());
        let linearizable_timeout =
            read("linearizable_timeout")?.unwrap_or(LINEARIZABLE_TIMEOUT_DEFAULT);
        for name in ["retries", "trailing_logs"] {
            if values
                .get(name)
                .is_some_and(|text| text.parse::<i64>().is_err())
            {
                return Err(ParameterError::NotInteger(name));
            }
        }
        let index_min = match values.get("raft_index").map_or("", String::as_str) {
            // What some clients give to flags.
            "" | "false" | "true" => 0,
            text => index(text, "raft_index")?,
        };
        if values.contains_key("freshness_strict") && !values.contains_key("freshness") {
            return Err(ParameterError::FreshnessMissing);
        }
        if values.get("q").is_some_and(String::is_empty) {
            return Err(ParameterError::QueryEmpty);
        }
        let strict = values.contains_key("freshness_strict");
        Ok(Self {
            freshness: freshness.map(|max| Freshness { max, strict }),
            values,
            timeout,
            linearizable_timeout,
            statement_time_max,
            index_min,
        })
    }

    /// Whether a flag is there.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a text parameter, if it is there.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// `level`.
    #[must_use]
    pub fn level(&self) -> LevelAsked {
        match self
            .text("level")
            .unwrap_or_default()
            .to_ascii_lowercase()
            .as_str()
        {
            "auto" => LevelAsked::Auto,
            "linearizable" => LevelAsked::Fixed(Level::Linearizable),
            "none" => LevelAsked::Fixed(Level::None),
            "strong" => LevelAsked::Fixed(Level::Strong),
            _ => LevelAsked::Fixed(Level::Weak),
        }
    }
}

/// A log index; `name` is where it was found.
///
/// # Errors
/// [`ParameterError::NotIndex`].
pub(super) fn index(text: &str, name: &'static str) -> Result<u64, ParameterError> {
    text.parse().map_err(|_| ParameterError::NotIndex(name))
}

/// Splits a query string into names and values; the first value of a name counts.
fn pairs(query: &str) -> Result<HashMap<String, String>, ParameterError> {
    let mut values = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return Err(ParameterError::Semicolon);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (unescape(name, true)?, unescape(value, true)?);
        values.entry(name).or_insert(value);
    }
    Ok(values)
}

/// Undoes percent encoding, and `+` for a space where `plus_is_space`. Bytes that are not UTF-8
/// become U+FFFD: SQL texts and names are text.
///
/// # Errors
/// A percent sign without two hexadecimal digits.
pub fn unescape(text: &str, plus_is_space: bool) -> Result<String, ParameterError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let digit = |at: usize| {
                    after
                        .get(at)
                        .and_then(|&byte| char::from(byte).to_digit(16))
                };
                let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                    let shown = &after[..after.len().min(2)];
                    let shown = String::from_utf8_lossy(shown).replace('\\', "\\\\");
                    return Err(ParameterError::Escape(format!(
                        "%{}",
                        shown.replace('"', "\\\"")
                    )));
                };
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = &after[2..];
            }
            b'+' if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
    }
    Ok(String::from_utf8(out)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}
