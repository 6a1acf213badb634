//! The log of this node: entries, vote, truncations, purges and the committed position, on disk.
//!
//! The log is a chain of segments. Everything that changes it is a record in one ordered queue; a
//! thread of its own takes what is queued, writes it as one batch at the end of the last segment,
//! syncs once, and then acknowledges in order. Nothing is ever overwritten: a truncation is a
//! record like any other, and a purge deletes whole segments once its record is durable.
//!
//! | file | |
//! |---|---|
//! | `files` | the only way to the file system |
//! | `format` | the bytes of segment headers, batches and records |
//! | `segment` | one segment file: create, grow, append, walk |
//! | `table` | which entries there are, where they stand, and the recent ones themselves |
//! | `recover`, `walk` | what to do about whatever is found at start-up, and finding it |
//! | `queue` | what was submitted and is not yet written |
//! | `writer` | the thread that writes |
//! | `store` | openraft's storage interface |
//! | `survey` | reading a segment for its own sake, past damage; for tools |
//!
//! After a failed write or sync the log is *latched*: every later call fails, nothing is retried. A
//! sync that failed once says nothing when it succeeds the second time, because the kernel may
//! have dropped the pages.

mod failure;
mod files;
mod format;
mod queue;
mod recover;
mod segment;
mod store;
mod survey;
mod table;
mod walk;
mod writer;

use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use crate::raft::{Entry, log_id_of, position_of};
use crate::wal::{ClusterId, Position};
use queue::Shared;
use writer::Owner;

pub use failure::LogError;
pub use files::{File, Files, RealFiles};
pub use format::HeaderFault;
pub use recover::Verdict;
pub use segment::SegmentName;
pub use survey::{Finding, LogRecord, SegmentFacts, Soundness, Survey};

/// The largest entry that is accepted, in bytes, encoded: far above what is ever proposed, far
/// below what the length fields hold.
pub const ENTRY_BYTES_MAX: usize = 1 << 30;

/// Sizes of the log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes of a segment. An entry that does not fit gets a segment of its own size.
    pub segment_bytes: u64,
    /// Bytes of records that are written and synced at once; one record may exceed it. Small
    /// enough that a vote or a heartbeat's answer never waits long for its sync.
    pub batch_bytes_max: usize,
    /// Bytes of recent entries kept in memory. Entries not yet durable are kept beyond it.
    pub cache_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            batch_bytes_max: 2 << 20,
            cache_bytes_max: 64 << 20,
        }
    }
}

/// Whose log it is. A log is opened only by the node, and in the cluster, it was created for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's Raft id.
    pub node: u64,
}

/// What is durable in this node's log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DurableMark {
    /// The last entry that is synced and still part of the log (or the last purged one). It steps
    /// back when the log is truncated. To wait for an entry use [`Log::wait_durable`]: comparing
    /// positions is wrong while a truncation is under way.
    pub last: Option<Position>,
    /// The committed position that recovery would find.
    pub committed: Option<Position>,
    /// Marks are published by several threads; an older one never replaces a newer one.
    revision: u64,
}

/// The log. Handles are cheap clones of one another.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    // When the last handle goes, the writer finishes what is queued and ends.
    owner: Arc<Owner>,
}

impl Log {
    /// Opens the log in a directory, or creates it there. A log of another cluster or node is
    /// refused, and so is one whose interior is damaged; a torn tail is cut, because it was never
    /// acknowledged.
    // By value: the log keeps the directory for itself.
    #[allow(clippy::needless_pass_by_value)]
    pub fn open(
        files: Arc<dyn Files>,
        identity: LogIdentity,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let recovered = recover::recover(&files, identity, &options)?;
        let (shared, owner) = writer::start(&files, options, recovered)?;
        Ok(Self {
            shared,
            owner: Arc::new(owner),
        })
    }

    /// Follows what is durable. Every sync notifies.
    pub fn durable(&self) -> watch::Receiver<DurableMark> {
        self.shared.durable.subscribe()
    }

    /// Waits until the entry at `position` is synced by this node.
    /// [`LogError::Missing`] = the log does not contain it, now or any more.
    pub async fn wait_durable(&self, position: Position) -> Result<(), LogError> {
        let mut durable = self.shared.durable.subscribe();
        loop {
            durable.mark_unchanged();
            {
                let state = self.shared.lock();
                match state.table.is_durable(position) {
                    Some(true) => return Ok(()),
                    Some(false) => state.usable()?,
                    None => return Err(LogError::Missing { position }),
                }
            }
            if durable.changed().await.is_err() {
                return Err(LogError::Closed);
            }
        }
    }

    /// Returns once a committed record of `position` or later is durable. Blocks: not for
    /// asynchronous code.
    pub fn persist_committed_blocking(&self, position: Position) -> Result<(), LogError> {
        let mut state = self.shared.lock();
        state.usable()?;
        state.note_committed(log_id_of(position));
        loop {
            let durable = state.durable_committed;
            if durable.is_some_and(|durable| durable.index >= position.index) {
                return Ok(());
            }
            state.usable()?;
            state.flush_wanted = true;
            self.shared.work.notify_one();
            let waited = self.shared.progress.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The durable committed position: as recovered at open, and moving on since.
    pub fn committed(&self) -> Option<Position> {
        self.shared
            .lock()
            .durable_committed
            .as_ref()
            .map(position_of)
    }

    /// The last entry, durable or not, or the last purged one if there is none.
    pub fn last(&self) -> Option<Position> {
        self.shared
            .lock()
            .table
            .frontier
            .last
            .as_ref()
            .map(position_of)
    }

    /// The last purged entry.
    pub fn purged(&self) -> Option<Position> {
        self.shared
            .lock()
            .table
            .frontier
            .purged
            .as_ref()
            .map(position_of)
    }

    /// Reads the entries from one index to another, both inclusive, stopping after `bytes_max`
    /// bytes but not before one entry. Entries that the log does not have are left out at both
    /// ends. Blocks: not for asynchronous code.
    pub fn read_blocking(
        &self,
        from_index: u64,
        to_index_inclusive: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LogError> {
        let end = to_index_inclusive.saturating_add(1);
        let plan = {
            let state = self.shared.lock();
            state.usable()?;
            state.table.plan(from_index, end, bytes_max)
        };
        plan.read()
    }

    /// The first index of the log's last `bytes` bytes of entries: purging below it keeps a tail of
    /// that size.
    pub fn index_of_tail(&self, bytes: u64) -> u64 {
        self.shared.lock().table.index_of_tail(bytes)
    }

    /// Bytes of the entries after one index up to another, as far as the log has them.
    pub fn bytes_between(&self, after_index: u64, to_index_inclusive: u64) -> u64 {
        let state = self.shared.lock();
        state.table.bytes_between(after_index, to_index_inclusive)
    }

    /// Bytes of all segments on disk.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Bytes of records written since the log was opened.
    pub fn written(&self) -> u64 {
        let written = &self.shared.written;
        written.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Entries cut off the end since the log was opened, because another leader replaced them.
    pub fn cut_off(&self) -> u64 {
        let cut_off = &self.shared.cut_off;
        cut_off.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Why the log is latched, if it is.
    pub fn failure(&self) -> Option<String> {
        self.shared.failed.borrow().clone()
    }

    /// Becomes `Some` when the log is latched: the node must stop serving.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Writes what is queued, says in the log that all of it is durable, and ends the writer.
    /// Every later call is answered [`LogError::Closed`]. Blocks until done.
    pub fn close(&self) {
        self.owner.close();
    }
}
