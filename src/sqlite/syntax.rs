//! Whether a text is SQL at all. No database is looked at and nothing is run, so a table that does
//! not exist is no error.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rusqlite::Connection;

use super::authorizer::{Guard, Mode};
use super::limits::Limits;
use super::raw::{self, Prepared};
use super::writer::{SetupError, set_up};

/// Recognises SQL with a connection of its own to an empty database in memory.
pub struct Syntax {
    connection: Connection,
}

impl Syntax {
    /// Sets one up.
    ///
    /// # Errors
    /// SQLite is out of memory.
    pub fn new() -> Result<Self, SetupError> {
        let connection = Connection::open_in_memory()?;
        set_up(&connection, false, &Limits::default())?;
        // Some pragmas act when they are compiled, on the whole process: the guard refuses them.
        let guard = Guard::new(false, Arc::new(AtomicBool::new(false)));
        raw::install(&connection, &guard)?;
        guard.set_mode(Mode::Read);
        Ok(Self { connection })
    }

    /// What SQLite's parser finds wrong with a text. Of several statements those are looked at that
    /// come before the first that does not compile here for another reason.
    #[must_use]
    pub fn error(&self, sql: &str) -> Option<String> {
        let terminated = CString::new(sql).ok()?;
        let mut offset = 0;
        while offset < sql.len() {
            match Prepared::new(&self.connection, &terminated, offset) {
                Ok((_, end)) => offset = end.max(offset + 1),
                Err(failure) => return Some(failure.message).filter(|text| is_syntax(text)),
            }
        }
        None
    }
}

/// The messages of SQLite's parser and tokenizer; all others are about names and rights.
fn is_syntax(message: &str) -> bool {
    message.ends_with(": syntax error")
        || message == "incomplete input"
        || message.starts_with("unrecognized token: ")
}
