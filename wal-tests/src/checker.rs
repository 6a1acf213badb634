//! Compares what writers were told with what is in the database. Checkers of what readers were told
//! are the modules.
//!
//! Verified: every acknowledged row is there, once, with its payload; no refused row is there; a
//! row of unknown fate is there at most once; rows of one request are there together or not at
//! all; no row is there that nobody wrote.
//!
//! Not verified: order and real time between writes, anything about reads (staleness,
//! monotonicity, read-your-writes), updates and deletes, isolation between requests, and whether
//! an answer came in reasonable time. A server that called every outcome unknown would pass,
//! which is why tests also demand a number of acknowledged rows.

pub mod append;
pub mod order;
#[cfg(test)]
mod planted;
pub mod register;
pub mod set;
pub mod witness;

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;

use crate::workload::{Fate, History};

/// A contradiction between what was said and what is there.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Violation {
    /// A row is there more than once.
    Duplicate(String),
    /// A row that nobody wrote.
    Invented(String),
    /// An acknowledged row is not there.
    Lost(String),
    /// A refused row is there.
    Refused(String),
    /// Some rows of a request are there and some are not; this one is not.
    Torn(String),
    /// A row holds something else than was written.
    WrongPayload(String),
}

/// Checks the rows in `item` of a database.
///
/// # Panics
///
/// When it contradicts the history, or cannot be read.
#[track_caller]
pub fn assert_kept(history: &History, database: &Connection) {
    let rows = items(database).expect("the table of the workload can be read");
    assert_eq!(check(history, &rows), []);
}

/// Key and payload of every row in `item`.
///
/// # Errors
///
/// What SQLite has against it.
pub fn items(database: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut select = database.prepare("SELECT key, payload FROM item")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// All violations, in order; none is what one wants to see. `rows` are key and payload.
#[must_use]
pub fn check(history: &History, rows: &[(String, String)]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, payload) in rows {
        found.entry(key).or_default().push(payload);
    }
    let mut present_by_request: HashMap<&str, bool> = HashMap::new();
    for attempt in &history.attempts {
        let key = || attempt.key.clone();
        let copies = found.remove(attempt.key.as_str()).unwrap_or_default();
        let present = !copies.is_empty();
        let whole = *present_by_request
            .entry(&attempt.request)
            .or_insert(present);
        match attempt.fate {
            Fate::Acknowledged if !present => violations.push(Violation::Lost(key())),
            Fate::Refused if present => violations.push(Violation::Refused(key())),
            Fate::Unknown if whole != present => violations.push(Violation::Torn(key())),
            Fate::Acknowledged | Fate::Refused | Fate::Unknown => {}
        }
        if copies.len() > 1 {
            violations.push(Violation::Duplicate(key()));
        }
        if copies.iter().any(|&payload| payload != attempt.payload) {
            violations.push(Violation::WrongPayload(key()));
        }
    }
    violations.extend(
        found
            .into_keys()
            .map(|key| Violation::Invented(key.to_owned())),
    );
    violations.sort();
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Attempt;

    /// Keys with the same first letter belong to one request.
    fn history(attempts: &[(&str, Fate)]) -> History {
        let attempt = |&(key, fate): &(&str, Fate)| Attempt {
            key: key.to_owned(),
            payload: format!("payload of {key}"),
            request: key[..1].to_owned(),
            fate,
        };
        History {
            attempts: attempts.iter().map(attempt).collect(),
        }
    }

    fn rows(keys: &[&str]) -> Vec<(String, String)> {
        keys.iter()
            .map(|key| ((*key).to_owned(), format!("payload of {key}")))
            .collect()
    }

    const WRITTEN: [(&str, Fate); 4] = [
        ("a1", Fate::Acknowledged),
        ("r1", Fate::Refused),
        ("u1", Fate::Unknown),
        ("u2", Fate::Unknown),
    ];

    #[test]
    fn what_was_promised_passes() {
        let history = history(&WRITTEN);
        assert_eq!(check(&history, &rows(&["a1"])), []);
        assert_eq!(check(&history, &rows(&["u2", "a1", "u1"])), []);
    }

    #[test]
    fn every_broken_promise_is_named() {
        let history = history(&WRITTEN);
        let convicted = |keys: &[&str]| check(&history, &rows(keys));
        assert_eq!(convicted(&[]), [Violation::Lost("a1".into())]);
        assert_eq!(convicted(&["a1", "r1"]), [Violation::Refused("r1".into())]);
        assert_eq!(convicted(&["a1", "u1"]), [Violation::Torn("u2".into())]);
        assert_eq!(
            convicted(&["a1", "a1"]),
            [Violation::Duplicate("a1".into())]
        );
        assert_eq!(convicted(&["a1", "x9"]), [Violation::Invented("x9".into())]);
        let wrong = [("a1".to_owned(), "other".to_owned())];
        assert_eq!(
            check(&history, &wrong),
            [Violation::WrongPayload("a1".into())]
        );
    }
}
