//! Prepared statements by their text.

use std::collections::HashMap;

use super::raw::Prepared;

/// How many statements one generation holds; a connection keeps at most twice as many.
const GENERATION_STATEMENTS_MAX: usize = 256;

/// A longer text (a bulk insert with its values inside) is not likely to come again.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Two generations: what was used since the last turn, and what was used in the one before. When
/// the younger is full it becomes the older, and what was not used for a whole turn is dropped.
#[derive(Debug, Default)]
pub(crate) struct StatementCache {
    younger: HashMap<String, Prepared>,
    older: HashMap<String, Prepared>,
}

impl StatementCache {
    /// Whether this text is here.
    pub(crate) fn contains(&self, sql: &str) -> bool {
        self.younger.contains_key(sql) || self.older.contains_key(sql)
    }

    /// Takes a statement out to run it.
    pub(crate) fn take(&mut self, sql: &str) -> Option<(String, Prepared)> {
        self.younger
            .remove_entry(sql)
            .or_else(|| self.older.remove_entry(sql))
    }

    /// Puts a statement back after it was reset.
    pub(crate) fn put(&mut self, sql: String, prepared: Prepared) {
        if sql.len() > TEXT_BYTES_MAX {
            return;
        }
        if self.younger.len() >= GENERATION_STATEMENTS_MAX {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(sql, prepared);
    }
}
