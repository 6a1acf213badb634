//! `last_insert_id` and `rows_affected`: the writer's own, sticky across requests as in rqlite.
//!
//! SQLite cannot set `changes()`, so after a rollback the value to report is ours and not the
//! connection's, until a statement sets it anew.

use rusqlite::Connection;

use super::raw;

/// The two counters as a client sees them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counters {
    /// The rowid of the last row inserted.
    pub(crate) last_insert_id: i64,
    /// How many rows the last INSERT, UPDATE or DELETE changed.
    pub(crate) rows_affected: i64,
}

/// Follows the counters of one connection.
#[derive(Debug)]
pub(crate) struct CounterTracker {
    now: Counters,
    seen_changes: u64,
}

impl CounterTracker {
    /// Both counters begin at zero, whatever the connection did before.
    pub(crate) fn new(connection: &Connection) -> Self {
        raw::set_last_insert_id(connection, 0);
        Self {
            now: Counters::default(),
            seen_changes: connection.changes(),
        }
    }

    /// The values to report.
    pub(crate) fn now(&self) -> Counters {
        self.now
    }

    /// Takes over what a statement of a client left behind. `sets_changes`: it was an INSERT, UPDATE
    /// or DELETE; other statements leave `changes()` alone, and then ours stands.
    pub(crate) fn note(&mut self, connection: &Connection, sets_changes: bool) {
        let changes = connection.changes();
        if sets_changes || changes != self.seen_changes {
            self.now.rows_affected = i64::try_from(changes).unwrap_or(i64::MAX);
        }
        self.seen_changes = changes;
        self.now.last_insert_id = connection.last_insert_rowid();
    }

    /// Goes back to earlier values: what set the present ones was rolled back.
    pub(crate) fn restore(&mut self, connection: &Connection, counters: Counters) {
        raw::set_last_insert_id(connection, counters.last_insert_id);
        self.now = counters;
        self.seen_changes = connection.changes();
    }
}
