//! Bounds on what one statement or request may take (SQLite: "Implementation Limits For SQLite").

use rusqlite::Connection;
use rusqlite::limits::Limit;

use super::raw::Failure;

/// Bounds on what a client may ask for; the defaults fit a server with a few GiB of memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The longest SQL statement in bytes.
    pub sql_bytes_max: i32,
    /// The longest text, BLOB or row in bytes. One instruction of SQLite's virtual machine can work
    /// on such a value for its whole length, and cannot be interrupted.
    pub value_bytes_max: i32,
    /// The longest pattern of LIKE and GLOB in bytes; matching takes up to its square.
    pub pattern_bytes_max: i32,
    /// The deepest nesting of an expression, which SQLite compiles recursively.
    pub expression_depth_max: i32,
    /// The most bytes of result rows for one request, as they are held in memory.
    pub result_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sql_bytes_max: 64 << 20,
            value_bytes_max: 64 << 20,
            pattern_bytes_max: 2000,
            expression_depth_max: 1000,
            result_bytes_max: 256 << 20,
        }
    }
}

impl Limits {
    /// Sets those that SQLite enforces itself. `SQLITE_LIMIT_ATTACHED` stays as it is: VACUUM needs
    /// it, and the authorizer refuses ATTACH.
    pub(crate) fn set(&self, connection: &Connection) -> Result<(), Failure> {
        for (limit, value) in [
            (Limit::SQLITE_LIMIT_SQL_LENGTH, self.sql_bytes_max),
            (Limit::SQLITE_LIMIT_LENGTH, self.value_bytes_max),
            (
                Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH,
                self.pattern_bytes_max,
            ),
            (Limit::SQLITE_LIMIT_EXPR_DEPTH, self.expression_depth_max),
            (Limit::SQLITE_LIMIT_FUNCTION_ARG, ARGUMENTS_MAX),
            (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, TRIGGER_DEPTH_MAX),
            (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
        ] {
            connection.set_limit(limit, value)?;
        }
        Ok(())
    }
}

/// Each argument of a function may be worth a pass over a long value. SQLite's own limit until
/// 2024.
const ARGUMENTS_MAX: i32 = 127;
/// Triggers that fire triggers are run recursively.
const TRIGGER_DEPTH_MAX: i32 = 200;
