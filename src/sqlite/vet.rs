//! Looks at a received database in isolation, before it touches anything.
//!
//! | Looked at | Refused |
//! |---|---|
//! | length and header | shorter than a header, than a page, or than the header says |
//! | page size | no power of two from 512 to 65536; another one than here is converted |
//! | encoding | UTF-16: it cannot be changed without running all of its SQL again |
//! | content | whatever `PRAGMA integrity_check` finds |
//!
//! `quick_check` would be quicker, and lets an index pass that does not agree with its table.
//!
//! Both journal modes will do, and every `auto_vacuum`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use super::extensions::Extensions;
use super::private::{self, JournalMode, Origin};

/// What every SQLite database begins with.
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

const HEADER_BYTES: usize = 100;

/// Why a database cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is no sound database.
    #[error("the SQLite file is damaged: {0}")]
    Damaged(String),
    /// It is sound, and of a kind that is not served here.
    #[error("{0}")]
    Unsupported(String),
    /// Looking at it failed for reasons of our own.
    #[error(transparent)]
    Failed(Error),
}

/// A database that was found fit.
#[derive(Debug)]
pub struct Fit {
    /// Where it is: where it was, or where it was converted to.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Looks at the database at `path`, which nobody else uses, and gives it the form that it needs to
/// be taken here: no WAL, and pages of `page_bytes`. What has to be converted is written to
/// `converted`, which does not exist yet. Blocks for as long as reading the file takes, at most for
/// `time_max`.
///
/// # Errors
///
/// See [`Unfit`].
pub fn vet(
    path: &Path,
    converted: &Path,
    page_bytes: u32,
    extensions: &Extensions,
    time_max: Duration,
) -> Result<Fit, Unfit> {
    let header = Header::read(path)?;
    private::set_journal_mode(path, JournalMode::Delete).map_err(Unfit::Failed)?;
    let connection = private::open(path, Origin::Received, extensions, time_max);
    let connection = connection.map_err(damaged)?;
    let verdict: String = connection
        .query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))
        .map_err(|error| damaged(error.into()))?;
    if verdict != "ok" {
        return Err(Unfit::Damaged(verdict));
    }
    if header.page_bytes == page_bytes {
        return Ok(Fit {
            path: path.to_owned(),
            bytes: header.bytes,
        });
    }
    private::vacuum_into(&connection, converted, page_bytes).map_err(damaged)?;
    let bytes = std::fs::metadata(converted).map(|metadata| metadata.len());
    Ok(Fit {
        path: converted.to_owned(),
        bytes: bytes.map_err(|source| Unfit::Failed(Error::io("read", converted, source)))?,
    })
}

/// SQLite reports damage in many ways; what the operating system refused is reported as such.
fn damaged(error: Error) -> Unfit {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, OperationInterrupted, SystemIoFailure};

    let Error::Sqlite(rusqlite::Error::SqliteFailure(failure, message)) = &error else {
        return Unfit::Failed(error);
    };
    match failure.code {
        OperationInterrupted => Unfit::Unsupported(
            "the SQLite file took too long to check: load it in smaller pieces, as SQL".to_owned(),
        ),
        CannotOpen | DiskFull | SystemIoFailure => Unfit::Failed(error),
        _ => Unfit::Damaged(message.clone().unwrap_or_else(|| failure.to_string())),
    }
}

/// What the header says, as far as it matters here.
struct Header {
    page_bytes: u32,
    bytes: u64,
}

impl Header {
    fn read(path: &Path) -> Result<Self, Unfit> {
        let fail = |source| Unfit::Failed(Error::io("read", path, source));
        let file = File::open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        if length < HEADER_BYTES as u64 {
            let what = format!("its {length} bytes are fewer than a header has");
            return Err(Unfit::Damaged(what));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(fail)?;
        Self::parse(&header, length)
    }

    fn parse(header: &[u8; HEADER_BYTES], length: u64) -> Result<Self, Unfit> {
        let damaged = |what: String| Err(Unfit::Damaged(what));
        if !header.starts_with(MAGIC) {
            return damaged("it does not begin as one".to_owned());
        }
        let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        if !(512..=65536).contains(&page_bytes) || !page_bytes.is_power_of_two() {
            return damaged(format!("{page_bytes} is no page size"));
        }
        if !matches!(header[18..20], [1 | 2, 1 | 2]) {
            return damaged("its format is of an unknown version".to_owned());
        }
        match word(header, 56) {
            0 | 1 => {}
            2 | 3 => {
                return Err(Unfit::Unsupported(
                    "the SQLite file is encoded in UTF-16, and the database here in UTF-8: \
                     load it as SQL, made by `sqlite3 FILE .dump`"
                        .to_owned(),
                ));
            }
            _ => return damaged("its text encoding is unknown".to_owned()),
        }
        // SQLite believes the page count only if the counters agree: old versions did not write it.
        let counted = word(header, 28);
        let is_counted = counted > 0 && word(header, 24) == word(header, 92);
        let pages = if is_counted {
            u64::from(counted)
        } else {
            length / u64::from(page_bytes)
        };
        let bytes = pages * u64::from(page_bytes);
        if pages == 0 || length < bytes || !length.is_multiple_of(u64::from(page_bytes)) {
            return damaged(format!(
                "it has {length} bytes, and {pages} pages of {page_bytes} bytes by its header; \
                 it may have been cut off"
            ));
        }
        Ok(Self { page_bytes, bytes })
    }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_be_bytes(word)
}
