//! Databases that nobody else uses: received ones that are being looked at, and copies that are
//! being converted. They are opened with a plain connection, without the shim.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::Error;
use super::extensions::Extensions;
use super::limits::Limits;

/// SQLite's progress handler is asked after about this many instructions.
const PROGRESS_INSTRUCTIONS: std::ffi::c_int = 10_000;

/// "File format write version" and "read version" in SQLite's header (SQLite: "Database File
/// Format", section 1.3).
const VERSIONS_OFFSET: u64 = 18;

/// How a database says that it is to be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JournalMode {
    /// With a rollback journal (`PRAGMA journal_mode=DELETE`).
    Delete = 1,
    /// With a WAL.
    Wal = 2,
}

/// Writes the journal mode into the header of a database that is not open.
///
/// # Errors
///
/// `Io`.
pub fn set_journal_mode(path: &Path, mode: JournalMode) -> Result<(), Error> {
    let fail = |source| Error::io("write", path, source);
    let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
    file.write_all_at(&[mode as u8; 2], VERSIONS_OFFSET)
        .map_err(fail)
}

/// Where a private database comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    /// It is a copy of ours, whose schema the writer runs every day.
    Copied,
    /// A client sent it: what its schema calls may do no harm.
    Received,
}

/// Opens a database in rollback mode that nobody else uses. What takes longer than `time_max`
/// fails as interrupted. No journal is kept: whoever owns the file throws it away after a failure.
pub(super) fn open(
    path: &Path,
    origin: Origin,
    extensions: &Extensions,
    time_max: Duration,
) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    for (option, is_on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (
            DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA,
            origin == Origin::Copied,
        ),
        // Schemas that the writer accepts must not be refused here.
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, true),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, true),
    ] {
        connection.set_db_config(option, is_on)?;
    }
    let limited = Limits::default().set(&connection);
    let ready = limited.and_then(|()| extensions.load(&connection));
    ready.map_err(|failure| Error::Refused(failure.message))?;
    let deadline = Instant::now() + time_max;
    let is_late = move || Instant::now() >= deadline;
    connection.progress_handler(PROGRESS_INSTRUCTIONS, Some(is_late))?;
    connection.execute_batch("PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;")?;
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = MEMORY;")?;
    connection.execute_batch("PRAGMA synchronous = OFF;")?;
    Ok(connection)
}

/// Copies a database in rollback mode into a new file, compacted and with pages of `page_bytes`.
///
/// # Errors
///
/// `Sqlite`.
pub fn compact(
    from: &Path,
    into: &Path,
    page_bytes: u32,
    extensions: &Extensions,
    time_max: Duration,
) -> Result<(), Error> {
    let connection = open(from, Origin::Copied, extensions, time_max)?;
    vacuum_into(&connection, into, page_bytes)
}

pub(super) fn vacuum_into(
    connection: &Connection,
    into: &Path,
    page_bytes: u32,
) -> Result<(), Error> {
    connection.pragma_update(None, "page_size", page_bytes)?;
    let into = into.to_string_lossy();
    connection.execute("VACUUM INTO ?1", [into.as_ref()])?;
    Ok(())
}
