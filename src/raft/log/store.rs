//! openraft's storage interface, on the log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::atomic::Ordering;

use futures_util::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::format::Record;
use super::queue::{Done, State};
use super::{ENTRY_BYTES_MAX, Log, LogError};
use crate::planted::{self, Bug};
use crate::raft::codec::{CodecError, EncodedEntry, encode_entry_parts};
use crate::raft::{Entry, LogId, TypeConfig, Vote};

/// Bytes of entries handed to a replication stream, or to apply, at once.
const READ_BYTES_MAX: usize = 2 << 20;

impl Log {
    /// Queues something under the lock, and wakes the writer.
    fn submit<T>(&self, submit: impl FnOnce(&mut State) -> Result<T, LogError>) -> io::Result<T> {
        let mut state = self.shared.lock();
        let submitted = state.usable().and_then(|()| submit(&mut state));
        drop(state);
        self.shared.work.notify_one();
        submitted.map_err(LogError::into_io)
    }

    /// Reads entries; what is not in memory is read by a thread that may wait for the disk.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let plan = self.shared.lock().table.plan(start, end, bytes_max);
        let entries = if plan.from_disk {
            tokio::task::spawn_blocking(|| plan.read())
                .await
                .map_err(io::Error::other)?
        } else {
            plan.read()
        };
        entries.map_err(LogError::into_io)
    }
}

fn encode(entry: &Entry) -> Result<EncodedEntry, LogError> {
    let encoded = encode_entry_parts(entry)?;
    if encoded.bytes() > ENTRY_BYTES_MAX {
        return Err(CodecError::TooLarge {
            bytes: encoded.bytes(),
        }
        .into());
    }
    Ok(encoded)
}

fn append(
    state: &mut State,
    entries: Vec<(Entry, EncodedEntry)>,
    callback: IOFlushed<TypeConfig>,
) -> Result<(), LogError> {
    // All or nothing: the whole run is checked before its first entry is queued.
    let mut frontier = state.table.frontier;
    for (entry, _) in &entries {
        if !frontier.admits(entry.log_id.index) {
            let last = frontier.last.map(|last| last.index);
            return Err(LogError::Gap {
                index: entry.log_id.index,
                last,
            });
        }
        frontier.append(entry.log_id);
    }
    let mut left = entries.len();
    let mut done = Done::Openraft(callback);
    if left == 0 {
        // Nothing to write, but what was submitted before must be durable first.
        state.submit(None, done);
        return Ok(());
    }
    if planted::is(Bug::AckBeforeWrite) {
        std::mem::replace(&mut done, Done::Nobody).tell(None);
    }
    for (entry, encoded) in entries {
        left -= 1;
        let bytes = u32::try_from(encoded.bytes()).unwrap_or(u32::MAX);
        state.table.append(entry, bytes, state.next_sequence());
        let told = if left == 0 {
            std::mem::replace(&mut done, Done::Nobody)
        } else {
            Done::Nobody
        };
        state.submit(Some(Record::Entry(encoded)), told);
    }
    Ok(())
}

/// The indices that a range means, as start and exclusive end.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    /// As a stream of bounded reads: the backlog of a node that was away may exceed its memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let reads = stream::unfold((self.clone(), start, end), |(log, start, end)| async move {
            if start >= end {
                return None;
            }
            match log.read(start, end, READ_BYTES_MAX).await {
                Ok(entries) => {
                    let next = entries.last()?.log_id.index.saturating_add(1);
                    let entries: Vec<_> = entries.into_iter().map(Ok).collect();
                    Some((stream::iter(entries), (log, next, end)))
                }
                Err(error) => Some((stream::iter(vec![Err(error)]), (log, end, end))),
            }
        });
        Box::pin(reads.flatten())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.lock().table.frontier.vote)
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        Ok(self
            .shared
            .lock()
            .table
            .key_log_ids(range.start().index, range.end().index))
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let frontier = self.shared.lock().table.frontier;
        Ok(LogState {
            last_purged_log_id: frontier.purged,
            last_log_id: frontier.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (answer, answered) = oneshot::channel();
        self.submit(|state| {
            state.table.frontier.vote = Some(*vote);
            state.submit(Some(Record::Vote(*vote)), Done::Caller(answer));
            Ok(())
        })?;
        if planted::is(Bug::VoteNotSynced) {
            return Ok(());
        }
        let saved = answered.await.unwrap_or(Err(LogError::Closed));
        saved.map_err(LogError::into_io)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut state = self.shared.lock();
        state.usable().map_err(LogError::into_io)?;
        // Written with the next batch: losing it costs a longer redo, never an entry.
        if let Some(log_id) = committed {
            state.note_committed(log_id);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.lock().table.frontier.committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            let parts = encode(&entry).map_err(LogError::into_io)?;
            encoded.push((entry, parts));
        }
        self.submit(|state| append(state, encoded, callback))
    }

    async fn truncate_after(&mut self, kept: Option<LogId>) -> Result<(), io::Error> {
        // Not waited for: whatever is acknowledged later stands behind it in the queue.
        self.submit(|state| {
            let index = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index);
            let cut_off = index(state.table.frontier.last).saturating_sub(index(kept));
            self.shared.cut_off.fetch_add(cut_off, Ordering::Relaxed);
            state.table.truncate_after(kept);
            state.submit(Some(Record::TruncateAfter(kept)), Done::Nobody);
            Ok(())
        })?;
        // What was durable and is cut off is no longer part of the log.
        self.shared.publish();
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.submit(|state| {
            state.table.purge(log_id);
            state.submit(Some(Record::Purge(log_id)), Done::Nobody);
            Ok(())
        })
    }
}
