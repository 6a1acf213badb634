//! Copies of the database for clients, from any node.
//!
//! A node that does not lead asks the leader for a read index, waits until it has applied that, and
//! sends its own pages, which are equal to the leader's byte for byte: everything that was
//! acknowledged before the question is in it, and the leader's disk and network have no part in it.
//!
//! The pages are frozen only while they are copied to a file in the data directory; however slow
//! the client is, checkpoints wait for a disk and never for a network. Conversions work on that
//! file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::OwnedSemaphorePermit;

use super::api::Refusal;
use super::caller::Credentials;
use super::image::Held;
use super::read_index::{Asking, Purpose};
use super::running::Node;
use super::scratch::{Scratch, check_room};
use crate::sqlite::{self, Extensions, JournalMode};

/// What a copy looks like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BackupForm {
    /// A SQLite file in rollback mode (`PRAGMA journal_mode=DELETE`).
    Delete,
    /// SQL; of these tables, if there are any.
    Sql(Vec<String>),
    /// A compacted SQLite file in rollback mode.
    Vacuumed,
    /// A SQLite file in WAL mode, as it is here.
    Wal,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// What the copy looks like.
    pub form: BackupForm,
    /// Whether it is compressed by gzip.
    pub is_compressed: bool,
    /// Whether to send what is here, whatever its age, without asking the leader.
    pub is_local: bool,
    /// How long the client is willing to wait for the leader.
    pub timeout: Duration,
    /// On whose behalf; asked again by the authority of the leader.
    pub caller: Option<Credentials>,
}

/// A copy that is ready to be sent. It takes room on the disk until it is dropped.
#[derive(Debug)]
pub struct Backup {
    file: Scratch,
    form: BackupForm,
    is_compressed: bool,
    bytes: u64,
    extensions: Extensions,
    _place: OwnedSemaphorePermit,
}

impl Backup {
    /// How many bytes will be written, where that is known beforehand.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let is_file = !matches!(self.form, BackupForm::Sql(_));
        (is_file && !self.is_compressed).then_some(self.bytes)
    }

    /// Writes all of it; memory is bounded by the longest row. Blocks as long as `out` does.
    ///
    /// # Errors
    ///
    /// The copy cannot be read, or `out` does not take it. What was written by then is no whole
    /// copy.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.is_compressed {
            return self.write_plain(out);
        }
        let mut gzip = GzEncoder::new(out, Compression::default());
        self.write_plain(&mut gzip)?;
        gzip.finish().map(|_| ())
    }

    fn write_plain(&self, out: &mut dyn Write) -> io::Result<()> {
        if let BackupForm::Sql(tables) = &self.form {
            return sqlite::dump(self.file.path(), tables, &self.extensions, out)
                .map_err(io::Error::other);
        }
        let copied = io::copy(&mut File::open(self.file.path())?, out)?;
        if copied == self.bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl Node {
    /// Makes a copy of the database.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]; `Overloaded` if many are being sent already, or the disk has no room.
    pub async fn backup(&self, request: BackupRequest) -> Result<Backup, Refusal> {
        let inner = self.inner()?;
        let place = Arc::clone(&inner.backups).try_acquire_owned();
        let place = place
            .map_err(|_| Refusal::Busy(format!("{BACKUPS_MAX} backups are being sent already")))?;
        if !request.is_local {
            let deadline = Instant::now() + request.timeout;
            let asking = Asking {
                purpose: Purpose::Backup,
                caller: request.caller.clone(),
            };
            self.catch_up_with_leader(&asking, request.timeout, deadline)
                .await?;
        }
        let missing = || Refusal::NotReady("the database does not exist yet".to_owned());
        if inner.frontier.reached().data.is_none() {
            return Err(missing());
        }
        let held = inner.owner.hold().await.ok_or_else(missing)?;
        let dir = inner.options.data_dir.clone();
        let extensions = inner.options.extensions.clone();
        let BackupRequest {
            form,
            is_compressed,
            ..
        } = request;
        let making = tokio::task::spawn_blocking(move || {
            let (file, bytes) = make(&dir, held, &form, &extensions)?;
            Ok(Backup {
                file,
                form,
                is_compressed,
                bytes,
                extensions,
                _place: place,
            })
        });
        making
            .await
            .unwrap_or_else(|error| Err(Refusal::Busy(error.to_string())))
    }
}

/// Copies the frozen pages, lets go of them, and gives the copy its form.
fn make(
    dir: &Path,
    held: Held,
    form: &BackupForm,
    extensions: &Extensions,
) -> Result<(Scratch, u64), Refusal> {
    let failed = |error: &dyn std::fmt::Display| {
        Refusal::Failed(format!("the backup could not be made: {error}"))
    };
    let manifest = held.manifest().ok_or_else(|| failed(&"no database"))?;
    let page_bytes = manifest.page_size.bytes();
    let bytes = u64::from(manifest.page_count.0) * u64::from(page_bytes);
    let copies = if *form == BackupForm::Vacuumed { 2 } else { 1 };
    check_room(dir, bytes * copies).map_err(Refusal::Busy)?;
    let file = Scratch::name(dir).map_err(|error| failed(&error))?;
    copy_pages(&held, u64::from(manifest.page_count.0), &file).map_err(|error| failed(&error))?;
    // From here on checkpoints run again.
    drop(held);
    if *form == BackupForm::Wal {
        return Ok((file, bytes));
    }
    sqlite::set_journal_mode(file.path(), JournalMode::Delete).map_err(|error| failed(&error))?;
    if *form != BackupForm::Vacuumed {
        return Ok((file, bytes));
    }
    let compacted = Scratch::name(dir).map_err(|error| failed(&error))?;
    // Made here, so that nobody else can read what SQLite writes into it.
    compacted.create().map_err(|error| failed(&error))?;
    let (from, into) = (file.path(), compacted.path());
    sqlite::compact(from, into, page_bytes, extensions, VACUUM_TIME_MAX)
        .map_err(|error| failed(&error))?;
    let metadata = std::fs::metadata(compacted.path()).map_err(|error| failed(&error))?;
    Ok((compacted, metadata.len()))
}

fn copy_pages(held: &Held, page_count: u64, file: &Scratch) -> io::Result<()> {
    let mut out = file.create()?;
    let mut next = 1;
    while next <= page_count {
        let run = held.run(next)?;
        next += held.pages_in(&run);
        out.write_all(&run)?;
    }
    Ok(())
}

/// Each holds a copy of the database on the disk.
pub(crate) const BACKUPS_MAX: usize = 4;
/// Far more than the largest database takes.
const VACUUM_TIME_MAX: Duration = Duration::from_secs(60 * 60);
