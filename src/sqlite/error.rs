//! What can go wrong with the database, as situations a caller can act on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::witness::Damage;
use crate::wal::{DatabaseHash, DeltaError, PageNumber};

/// An error of the `sqlite` layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused or failed.
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A file of the database could not be read or written. Fatal for a database that is open.
    #[error("cannot {what} {}: {source}", file.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The VFS underneath SQLite failed. Fatal for a database that is open.
    #[error("cannot {what}: {} (SQLite result code {code})", rusqlite::ffi::code_to_str(*code))]
    Vfs {
        /// What was tried, as a verb.
        what: &'static str,
        /// The extended result code.
        code: i32,
    },
    /// A file holds something that no version of this program wrote.
    #[error("{} is damaged at offset {offset}: {what}", file.display())]
    Corrupt {
        /// What is wrong there.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Where, in bytes.
        offset: u64,
    },
    /// A file was written by a newer version of this program.
    #[error("{} has format version {version}, which this program does not know", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The version it names.
        version: u32,
    },
    /// The database is not, or would not become, the one the change is about. Nothing was changed.
    #[error("the database hash is {found}, expected {expected}")]
    HashMismatch {
        /// What the change names.
        expected: DatabaseHash,
        /// What was found here.
        found: DatabaseHash,
    },
    /// A change that no transaction can produce. Nothing was changed.
    #[error("impossible change: {what} (page {page})")]
    Change {
        /// What is impossible about it.
        what: &'static str,
        /// The page concerned.
        page: u32,
    },
    /// A page of the main file does not have the hash that it should have.
    #[error("page {page} of {} is not as it was written", file.display())]
    Page {
        /// The main file.
        file: PathBuf,
        /// The first such page.
        page: u32,
    },
    /// The version of a page that a change was made from is damaged here; it is being mended.
    #[error("page {}, which the change needs, is damaged", .0.place.page())]
    Damaged(Damage),
    /// The pages of a change could not be read. Nothing was changed.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// A transaction or an unfinished statement is open on the writing connection.
    #[error("a transaction is open on the writing connection")]
    InTransaction,
    /// Not everything in the WAL has reached the main file, so there is nothing to record.
    #[error("the checkpoint is not complete")]
    NotCheckpointed,
    /// The durable record does not count on what is in the WAL, so nothing of it may reach the main
    /// file yet.
    #[error("the frames of the WAL are not recorded yet")]
    NotRecorded,
    /// The WAL on which the checkpoint record counts is not there, or is another one.
    #[error("{} does not have what the checkpoint record counts on: {what}", file.display())]
    WalGone {
        /// The WAL.
        file: PathBuf,
        /// What is missing.
        what: String,
    },
    /// Another process has the database open.
    #[error(
        "{} is in use by {}, waited {waited:?}: stop that process and start again",
        file.display(),
        process(*pid)
    )]
    InUse {
        /// The main file.
        file: PathBuf,
        /// The process that holds a lock on it, if the system says which.
        pid: Option<u32>,
        /// How long was waited for it.
        waited: Duration,
    },
    /// SQLite refused a setting.
    #[error("SQLite: {0}")]
    Refused(String),
    /// The SQLite that was linked is too old.
    #[error("SQLite {found} is too old, 3.54.0 or later is needed")]
    Version {
        /// Its version.
        found: String,
    },
}

impl Error {
    pub(super) fn io(what: &'static str, file: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            file: file.to_owned(),
            source,
        }
    }

    pub(super) fn corrupt(what: &'static str, file: &Path, offset: u64) -> Self {
        Self::Corrupt {
            what,
            file: file.to_owned(),
            offset,
        }
    }

    pub(super) const fn change(what: &'static str, page: PageNumber) -> Self {
        Self::Change {
            what,
            page: page.number(),
        }
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}
