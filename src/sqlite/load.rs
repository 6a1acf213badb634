//! Loads: a whole database in place of a group of requests.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ffi};

use super::counters::CounterTracker;
use super::extensions::Extensions;
use super::private::{self, Origin};
use super::raw::Failure;
use super::statement;
use super::values::Reply;
use super::writer::{GroupEnd, SqlCommit, Writer};

/// Copying pages takes as long as the disk needs, and nothing in it runs the SQL of the file.
const COPY_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Writer {
    /// Replaces the whole database by the one at `source`, which was found fit (see
    /// [`vet`](super::vet())), as one transaction of its own: all readers see the old one or the
    /// new one. Memory does not grow with it but for a few bytes per page. The counters begin at
    /// zero again.
    pub fn replace(&mut self, connection: &mut Connection, source: &Path) -> GroupEnd {
        let (reply, sql_commit) = match copy(source, connection) {
            Ok(()) => {
                self.executor.counters = CounterTracker::new();
                (Reply::default(), SqlCommit::Done)
            }
            Err(failure) if failure.code == ffi::SQLITE_IOERR_FSYNC => {
                (Reply::default(), SqlCommit::Refused { partial: false })
            }
            Err(failure) => {
                let reason = statement::full(connection, &failure).unwrap_or(failure.message);
                let reply = Reply {
                    outcomes: Vec::new(),
                    error: Some(reason),
                };
                (reply, SqlCommit::Done)
            }
        };
        GroupEnd {
            replies: vec![reply],
            sql_commit,
        }
    }
}

/// The pages go through the writing connection's pager, so that the shim captures them like those
/// of any transaction.
fn copy(source: &Path, connection: &mut Connection) -> Result<(), Failure> {
    // Only its pages are read: none of its SQL runs.
    let extensions = Extensions::default();
    let source = private::open(source, Origin::Received, &extensions, COPY_TIME_MAX)
        .map_err(|error| Failure::new(ffi::SQLITE_ERROR, error.to_string()))?;
    let backup = Backup::new(&source, connection)?;
    match backup.step(-1)? {
        StepResult::Done => Ok(()),
        other => Err(Failure::new(
            ffi::SQLITE_BUSY,
            format!("the database cannot be replaced now ({other:?}); nothing was changed"),
        )),
    }
}
