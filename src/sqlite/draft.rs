//! What is made durable beside the thread that owns the database.
//!
//! Both hold the descriptor of the main file: drop them before the last connection of the process
//! to the database is closed.

use std::fs::File;
use std::sync::Arc;

use super::error::Error;
use super::overlay::{Overlay, Standing};
use super::page_hashes::PageHashes;
use super::record::Record;
use super::start_lock::StartLock;
use crate::wal::Position;

/// A checkpoint record that is not durable yet, with the page hashes that belong to it.
///
/// While it waits more may be added to the WAL, but nothing of that reaches the main file: the
/// record that is durable by then does not count on it.
#[derive(Debug)]
#[must_use = "until it is saved, start-up begins at an older record"]
pub struct RecordDraft {
    pub(super) lock: StartLock,
    pub(super) hashes: PageHashes,
    pub(super) applied: Position,
    pub(super) data: Option<Position>,
    pub(super) membership: Vec<u8>,
    /// The frames that the record counts on, and the WAL that has them.
    pub(super) overlay: Option<(Arc<File>, Overlay)>,
    pub(super) standing: Arc<Standing>,
}

impl RecordDraft {
    /// Makes the main file or the WAL, the page hashes and then the record durable. Drafts are
    /// saved one after the other, in the order in which they were made. Blocks.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn save(mut self) -> Result<(), Error> {
        let (applied, data) = (self.applied, self.data);
        let (lock, hashes, membership) = (&self.lock, &mut self.hashes, &self.membership);
        match &self.overlay {
            None => Record::save(lock, hashes, applied, data, membership)?,
            Some((wal, overlay)) => {
                let over = (&**wal, *overlay);
                drop(Record::save_over(
                    lock, over, hashes, applied, data, membership,
                )?);
            }
        }
        self.standing
            .set(self.overlay.as_ref().map(|(_, overlay)| *overlay));
        Ok(())
    }
}

/// Makes durable what was moved into the main file so far, so that the record has less to wait for.
#[derive(Debug)]
pub struct Flusher(pub(super) StartLock);

impl Flusher {
    /// Syncs the main file. After an error nothing may be recorded any more: the kernel reports a
    /// page that it could not write only once. Blocks.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn flush(&self) -> Result<(), Error> {
        let synced = self.0.file().sync_data();
        synced.map_err(|error| Error::io("sync", self.0.path(), error))
    }
}
