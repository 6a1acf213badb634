//! Our own BEGIN, COMMIT and savepoints around the statements of clients.

use std::ffi::CStr;
use std::sync::Arc;

use rusqlite::Connection;

use super::authorizer::{Guard, Mode};
use super::raw::{Failure, Prepared};

/// The statements that open and close transactions. Prepared once; SQLite compiles them again after
/// some changes of the schema, and then asks the authorizer, hence the switch of mode for each.
#[derive(Debug)]
pub(crate) struct Control {
    guard: Arc<Guard>,
    begin_immediate: Prepared,
    begin_deferred: Prepared,
    commit: Prepared,
    rollback: Prepared,
    savepoint: Prepared,
    release: Prepared,
    rollback_to: Prepared,
}

impl Control {
    /// Prepares the statements.
    ///
    /// # Errors
    /// SQLite is out of memory.
    pub(crate) fn new(connection: &Connection, guard: &Arc<Guard>) -> Result<Self, Failure> {
        let prepare = |sql: &CStr| {
            let (prepared, _) = Prepared::new(connection, sql, 0)?;
            Ok::<_, Failure>(prepared.expect("a control statement is not blank"))
        };
        Ok(Self {
            guard: Arc::clone(guard),
            begin_immediate: prepare(c"BEGIN IMMEDIATE")?,
            begin_deferred: prepare(c"BEGIN")?,
            commit: prepare(c"COMMIT")?,
            rollback: prepare(c"ROLLBACK")?,
            savepoint: prepare(c"SAVEPOINT wallaby")?,
            release: prepare(c"RELEASE wallaby")?,
            rollback_to: prepare(c"ROLLBACK TO wallaby")?,
        })
    }

    /// Opens the transaction of a group.
    pub(crate) fn begin_immediate(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.begin_immediate)
    }

    /// Opens a transaction that only reads.
    pub(crate) fn begin_deferred(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.begin_deferred)
    }

    /// Commits; on the writer's connection this is where the cluster decides.
    pub(crate) fn commit(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.commit)
    }

    /// Rolls back everything.
    pub(crate) fn rollback(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.rollback)
    }

    /// Opens a savepoint. They nest: the two calls below end the innermost one.
    pub(crate) fn open_savepoint(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.savepoint)
    }

    /// Ends the innermost savepoint and keeps what was done in it.
    pub(crate) fn keep_savepoint(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.release)
    }

    /// Takes back what was done in the innermost savepoint, which stays open.
    pub(crate) fn return_to_savepoint(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.rollback_to)
    }

    /// Ends the innermost savepoint and takes back what was done in it.
    pub(crate) fn undo_savepoint(&mut self) -> Result<(), Failure> {
        run(&self.guard, &mut self.rollback_to)?;
        run(&self.guard, &mut self.release)
    }
}

fn run(guard: &Guard, prepared: &mut Prepared) -> Result<(), Failure> {
    guard.set_mode(Mode::Server);
    let result = prepared.step();
    prepared.reset();
    result.map(|_| ())
}
