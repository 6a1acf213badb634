//! What SQLite says about itself and about a connection.

use rusqlite::Connection;
use rusqlite::types::ValueRef;

/// The pragmas that `/status` shows of each kind of connection, as rqlite does.
pub const PRAGMAS_SHOWN: [&str; 5] = [
    "busy_timeout",
    "foreign_keys",
    "journal_mode",
    "synchronous",
    "wal_autocheckpoint",
];

/// The version of the SQLite that was linked.
#[must_use]
pub fn library_version() -> &'static str {
    rusqlite::version()
}

/// The values of [`PRAGMAS_SHOWN`] on a connection; one that it does not answer is left out.
pub(super) fn pragmas(connection: &Connection) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in PRAGMAS_SHOWN {
        let value = connection.pragma_query_value(None, name, |row| {
            Ok(match row.get_ref(0)? {
                ValueRef::Integer(value) => value.to_string(),
                ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                _ => String::new(),
            })
        });
        found.extend(value.ok().map(|value| (name.to_owned(), value)));
    }
    found
}
