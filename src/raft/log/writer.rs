//! The thread that writes: takes what is queued, writes it as one batch, syncs, acknowledges.
//!
//! There is one queue, and its order is the order on disk: a vote is never durable before the
//! entries submitted ahead of it, and an acknowledgement means that everything before is durable
//! too. While a sync runs the queue fills, so the batches grow by themselves under load.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::files::Files;
use super::format::{BatchWriter, Frontier, HEADER_BYTES, Record, SegmentHeader};
use super::queue::{Batch, Done, Shared};
use super::recover::Recovered;
use super::segment::{Segment, remove_purged};
use super::table::Location;
use super::{LogError, LogOptions};
use crate::planted::{self, Bug};
use crate::raft::LogId;
use crate::raft::codec::decode_entry_log_id;

/// The writer thread's own: nobody else touches the segments.
struct Writer {
    shared: Arc<Shared>,
    files: Arc<dyn Files>,
    options: LogOptions,
    /// Oldest first; never empty.
    segments: VecDeque<Segment>,
    /// What is on disk, entries apart; the next segment's header repeats it.
    written: Frontier,
    buffer: Vec<u8>,
    /// The thread ends because it was told to.
    ended: bool,
}

/// Starts the writer on a recovered log.
pub(super) fn start(
    files: &Arc<dyn Files>,
    options: LogOptions,
    recovered: Recovered,
) -> Result<(Arc<Shared>, Owner), LogError> {
    let Recovered { table, segments } = recovered;
    let written = table.frontier;
    let shared = Arc::new(Shared::new(table));
    let mut writer = Writer {
        shared: Arc::clone(&shared),
        files: Arc::clone(files),
        options,
        segments,
        written,
        buffer: Vec::new(),
        ended: false,
    };
    writer.count_bytes();
    let thread = thread::Builder::new()
        .name("log writer".to_owned())
        .spawn(move || writer.run());
    match thread {
        Ok(thread) => {
            let thread = Mutex::new(Some(thread));
            Ok((Arc::clone(&shared), Owner { shared, thread }))
        }
        Err(source) => {
            let file = files.path("");
            Err(LogError::Io {
                action: "start a thread to write",
                file,
                source,
            })
        }
    }
}

impl Writer {
    fn run(&mut self) {
        while let Some(batch) = self.shared.take(&self.options) {
            let mut waiting = Vec::new();
            if let Err(error) = self.write(batch, &mut waiting) {
                if planted::is(Bug::FailureForgotten) {
                    waiting.drain(..).for_each(|done| done.tell(None));
                    continue;
                }
                return self.latch(&error, waiting);
            }
        }
        match self.finish() {
            Ok(()) => self.ended = true,
            Err(error) => self.latch(&error, Vec::new()),
        }
    }

    /// Latches the log first and tells those who wait after: whoever has been refused finds it
    /// failed.
    fn latch(&mut self, error: &LogError, waiting: Vec<Done>) {
        let reason = error.to_string();
        tracing::error!(%reason, "the log has failed: this node must stop");
        self.ended = true;
        self.shared.fail(&reason, waiting);
    }

    fn current(&mut self) -> &mut Segment {
        self.segments
            .back_mut()
            .expect("recovery leaves one segment, and the last one is kept")
    }

    /// Writes a batch and acknowledges it. After an error those in `waiting` are still to be told.
    fn write(&mut self, batch: Batch, waiting: &mut Vec<Done>) -> Result<(), LogError> {
        let Batch {
            submissions,
            committed,
            bytes,
            sequence,
        } = batch;
        let mut records = Vec::new();
        for submission in submissions {
            records.extend(
                submission
                    .record
                    .map(|record| (record, submission.sequence)),
            );
            waiting.push(submission.done);
        }
        records.extend(committed.map(|log_id| (Record::Committed(log_id), sequence)));
        let placed = self.append(&records, bytes)?;
        {
            let mut state = self.shared.lock();
            for (log_id, sequence, location) in placed {
                state.table.place(log_id, sequence, location);
            }
            state.table.flush(sequence);
            state.durable_committed = self.written.committed;
        }
        self.shared.publish();
        waiting.drain(..).for_each(|done| done.tell(None));
        self.tidy(&records)
    }

    /// Writes records as one batch and syncs. Returns where the entries stand.
    fn append(
        &mut self,
        records: &[(Record, u64)],
        bytes: usize,
    ) -> Result<Vec<(LogId, u64, Location)>, LogError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        if !self.current().has_room(bytes) {
            self.roll(bytes)?;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let mut written = self.written;
        let segment = self.current();
        let mut batch = BatchWriter::new(buffer, segment.shared.place, segment.chain);
        let mut placed = Vec::new();
        for (record, sequence) in records {
            let (start, chain) = batch.push(record);
            match record {
                Record::Entry(entry) => {
                    let log_id = decode_entry_log_id(&entry.head)?;
                    let offset = segment.end + start as u64;
                    let location = Location {
                        segment: Arc::clone(&segment.shared),
                        offset,
                        chain,
                    };
                    placed.push((log_id, *sequence, location));
                    segment.highest_index = segment.highest_index.max(Some(log_id.index));
                    written.append(log_id);
                }
                Record::Vote(vote) => written.vote = Some(*vote),
                Record::TruncateAfter(kept) => written.truncate_after(*kept),
                Record::Purge(log_id) => written.purge(*log_id),
                Record::Committed(log_id) => written.committed = Some(*log_id),
            }
        }
        let (bytes, chain) = batch.finish(segment.end);
        segment.append(&bytes, chain)?;
        segment.claimed = false;
        let length = bytes.len() as u64;
        self.shared.written.fetch_add(length, Ordering::Relaxed);
        self.written = written;
        self.buffer = bytes;
        // One huge entry must not keep its size in memory for good.
        self.buffer.clear();
        self.buffer.shrink_to(self.options.batch_bytes_max);
        Ok(placed)
    }

    /// Begins the next segment, with room for a batch of `bytes`.
    fn roll(&mut self, bytes: usize) -> Result<(), LogError> {
        let written = self.written;
        let current = self.current();
        let header = SegmentHeader {
            identity: current.identity(),
            number: current.number() + 1,
            first_index: written.next_index(),
            previous_end: current.end,
            previous_chain: current.chain,
            frontier: written,
        };
        let capacity = self
            .options
            .segment_bytes
            .max(HEADER_BYTES as u64 + bytes as u64);
        let next = Segment::create(&self.files, &header, capacity)?;
        self.segments.push_back(next);
        Ok(())
    }

    /// What nobody waits for: deleting purged segments, and zeros for the batches to come.
    fn tidy(&mut self, records: &[(Record, u64)]) -> Result<(), LogError> {
        if records
            .iter()
            .any(|(record, _)| matches!(record, Record::Purge(_)))
        {
            remove_purged(self.files.as_ref(), &mut self.segments, self.written.purged)?;
        }
        self.current().grow()?;
        self.count_bytes();
        Ok(())
    }

    fn count_bytes(&self) {
        let bytes = self.segments.iter().map(|segment| segment.length).sum();
        self.shared.bytes.store(bytes, Ordering::Relaxed);
    }

    /// A batch without records: it says that all before it is durable, so that damage to the last
    /// batch of a log that was closed is not taken for a torn write.
    fn finish(&mut self) -> Result<(), LogError> {
        let segment = self.current();
        if segment.claimed {
            return Ok(());
        }
        let batch = BatchWriter::new(Vec::new(), segment.shared.place, segment.chain);
        let (bytes, chain) = batch.finish(segment.end);
        segment.append(&bytes, chain)?;
        segment.claimed = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Reached without `ended` only by a panic: whoever waits must not wait for ever.
        if !self.ended {
            self.shared
                .fail("the log writer ended unexpectedly", Vec::new());
        }
    }
}

/// Ends the writer when the last handle goes.
pub(super) struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    /// Lets the writer finish what is queued, and waits for it.
    pub(super) fn close(&self) {
        self.begin_close();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the writer has been reported by its Drop.
            drop(thread.join());
        }
    }

    fn begin_close(&self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.begin_close();
    }
}
