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
}

impl CounterTracker {
    /// Both counters begin at zero, whatever the connection did before.
    pub(crate) fn new() -> Self {
        Self {
            now: Counters::default(),
        }
    }

    /// The values to report.
    pub(crate) fn now(&self) -> Counters {
        self.now
    }

    /// Call right before a statement of a client, which may ask for `last_insert_rowid()`: ours is
    /// the one to be seen. (FTS5 writes its pending terms at our savepoints, and moves it.)
    pub(crate) fn show(&self, connection: &Connection) {
        raw::set_last_insert_id(connection, self.now.last_insert_id);
    }

    /// Takes over what an INSERT, UPDATE or DELETE of a client left behind. Other statements leave
    /// the counters alone as far as a client can tell, so they are not to be noted here.
    pub(crate) fn note(&mut self, connection: &Connection) {
        self.now = Counters {
            last_insert_id: connection.last_insert_rowid(),
            rows_affected: i64::try_from(connection.changes()).unwrap_or(i64::MAX),
        };
    }

    /// Goes back to earlier values: what set the present ones was rolled back.
    pub(crate) fn restore(&mut self, counters: Counters) {
        self.now = counters;
    }
}
