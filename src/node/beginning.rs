//! Where redo begins: at the state of the record, or at the one into which somebody has brought the
//! main file meanwhile.

use openraft::EntryPayload;

use super::error::{Error, REBUILD};
use super::options::NodeOptions;
use super::replay::READ_BYTES;
use crate::raft::log::Log;
use crate::sqlite::{self, Record, Redo, StartLock};
use crate::wal::{Delta, DeltaHeader, PageNumber};

/// A database at a state of the log.
pub(super) struct Beginning {
    pub(super) redo: Redo,
    /// The index of the last entry that the main file has.
    pub(super) covered: u64,
    /// Pages of the main file that are not as they were written.
    pub(super) damaged: Vec<PageNumber>,
}

impl Beginning {
    /// Puts the main file into the state of the record, or finds out which one it has. All of it is
    /// read if somebody else has touched it, or `is_doubtful`.
    pub(super) fn find(
        lock: StartLock,
        record: &Record,
        log: &Log,
        options: &NodeOptions,
        is_doubtful: bool,
    ) -> Result<Self, Error> {
        let is_changed = record.is_suspect(&lock)?;
        if is_changed {
            tracing::warn!("the database file was changed while the node was down");
        }
        let mut redo = match Redo::begin(lock, record) {
            Ok(redo) => redo,
            Err(error @ sqlite::Error::WalGone { .. }) => {
                tracing::warn!(%error, "somebody has opened the database while the node was down");
                let lock = StartLock::acquire(&options.data_dir, options.open_wait)?;
                let found = Self::adopted(lock, record, log)?;
                return found.ok_or_else(|| lost(&error, options));
            }
            Err(error) => return Err(error.into()),
        };
        let mut is_sound = true;
        if !redo.is_in_order() {
            match redo.mend_hashes(named(log, record)?) {
                Err(sqlite::Error::HashMismatch { .. }) if is_changed => is_sound = false,
                mended => mended?,
            }
        }
        let mut damaged = Vec::new();
        if is_sound && (is_changed || is_doubtful) {
            tracing::info!("reading all of the database file, to compare its pages");
            damaged = redo.verify()?;
        }
        if is_sound && damaged.is_empty() {
            return Ok(Self::at_record(redo, record, damaged));
        }
        if let Some(found) = Self::adopted(redo.into_lock(), record, log)? {
            return Ok(found);
        }
        let lock = StartLock::acquire(&options.data_dir, options.open_wait)?;
        let mut redo = Redo::begin(lock, record)?;
        redo.mend_hashes(named(log, record)?)?;
        let pages = damaged.len();
        tracing::error!(pages, "pages are not what was written there");
        Ok(Self::at_record(redo, record, damaged))
    }

    fn at_record(redo: Redo, record: &Record, damaged: Vec<PageNumber>) -> Self {
        Self {
            redo,
            covered: record.applied.index,
            damaged,
        }
    }

    /// Looks for the state of the main file in the log: SQLite moves the WAL into it when the last
    /// connection closes. `None`: it has no state that the log knows.
    fn adopted(lock: StartLock, record: &Record, log: &Log) -> Result<Option<Self>, Error> {
        tracing::info!("reading all of the database file, to find its state in the log");
        let redo = Redo::adopt(lock, record.page_size)?;
        let mut covered = (redo.hash() == record.hash).then_some(record.applied.index);
        each_delta(log, record, |index, bytes| {
            let header = DeltaHeader::peek(bytes);
            if header
                .is_some_and(|header| header.part.is_last() && header.hash_after == redo.hash())
            {
                covered = Some(index);
            }
            Ok(())
        })?;
        Ok(covered.map(|covered| Self {
            redo,
            covered,
            damaged: Vec::new(),
        }))
    }
}

/// The pages that entries after the record name: the table of hashes may be newer for these.
fn named(log: &Log, record: &Record) -> Result<Vec<PageNumber>, Error> {
    let mut pages = Vec::new();
    each_delta(log, record, |_, bytes| {
        let delta = Delta::decode(bytes.clone()).map_err(sqlite::Error::from)?;
        pages.extend(delta.page_numbers());
        pages.sort_unstable();
        pages.dedup();
        Ok(())
    })?;
    Ok(pages)
}

/// Looks at every delta after the record.
fn each_delta(
    log: &Log,
    record: &Record,
    mut look: impl FnMut(u64, &bytes::Bytes) -> Result<(), Error>,
) -> Result<(), Error> {
    let last = log.last().map_or(0, |last| last.index);
    let purged = log.purged().map_or(0, |purged| purged.index);
    let mut next = record.applied.index.max(purged) + 1;
    while next <= last {
        let entries = log.read_blocking(next, last, READ_BYTES)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            next = entry.log_id.index + 1;
            if let EntryPayload::Normal(payload) = entry.payload
                && !payload.0.is_empty()
            {
                look(entry.log_id.index, &payload.0)?;
            }
        }
    }
    Ok(())
}

fn lost(error: &sqlite::Error, options: &NodeOptions) -> Error {
    Error::Corrupt {
        what: format!("{error}, and the database file has no state that the log knows"),
        file: options.data_dir.join(StartLock::FILE_NAME),
        advice: REBUILD,
    }
}
