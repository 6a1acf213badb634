//! The thread that writes: takes what is queued, writes it as one batch, syncs, acknowledges.
//!
//! There is one queue, and its order is the order on disk: a vote is never durable before the
//! entries submitted ahead of it, and an acknowledgement means that everything before is durable
//! too. While a sync runs the queue fills, so the batches grow by themselves under load.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use openraft::storage::IOFlushed;
use tokio::sync::{oneshot, watch};

use super::files::Files;
use super::format::{BATCH_HEAD_BYTES, BatchWriter, Frontier, HEADER_BYTES, Record, SegmentHeader};
use super::recover::Recovered;
use super::segment::{Segment, remove_purged};
use super::table::{Location, Table};
use super::{DurableMark, LogError, LogOptions};
use crate::raft::codec::decode_entry_log_id;
use crate::raft::{LogId, TypeConfig, position_of};

/// Records of a batch: bounds the time that one sync keeps a vote waiting.
const BATCH_RECORDS_MAX: usize = 1024;

/// Who is told when a submission is durable.
pub(super) enum Done {
    Nobody,
    Openraft(IOFlushed<TypeConfig>),
    Caller(oneshot::Sender<Result<(), LogError>>),
}

impl Done {
    fn tell(self, failure: Option<&str>) {
        let result = || match failure {
            None => Ok(()),
            Some(reason) => Err(LogError::Failed {
                reason: reason.to_owned(),
            }),
        };
        match self {
            Self::Nobody => {}
            Self::Openraft(callback) => callback.io_completed(result().map_err(io::Error::other)),
            // A caller that has gone away needs no answer.
            Self::Caller(answer) => drop(answer.send(result())),
        }
    }
}

/// One step in the queue. Without a record it only waits for those before it.
struct Submission {
    sequence: u64,
    record: Option<Record>,
    done: Done,
}

/// What the handles and the writer share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to write.
    pub(super) work: Condvar,
    /// Notified after every sync.
    pub(super) progress: Condvar,
    pub(super) durable: watch::Sender<DurableMark>,
    pub(super) failed: watch::Sender<Option<String>>,
    /// Bytes of all segments.
    pub(super) bytes: AtomicU64,
}

/// The log as its callers see it, and what is still to be written.
pub(super) struct State {
    pub(super) table: Table,
    queue: VecDeque<Submission>,
    /// Number of the last submission.
    submitted: u64,
    /// A committed position to be recorded, and the submission it must not be written before:
    /// recovery must never find a committed entry missing that was merely still queued.
    committed_noted: Option<(LogId, u64)>,
    pub(super) durable_committed: Option<LogId>,
    /// Somebody waits for the committed position: do not wait for company.
    pub(super) flush_wanted: bool,
    closing: bool,
    failure: Option<String>,
}

impl State {
    /// An error if the log takes no more calls.
    pub(super) fn usable(&self) -> Result<(), LogError> {
        match &self.failure {
            Some(reason) => Err(LogError::Failed {
                reason: reason.clone(),
            }),
            None if self.closing => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    /// The number that the next submission will have.
    pub(super) fn next_sequence(&self) -> u64 {
        self.submitted + 1
    }

    /// Queues a step. The caller notifies the writer.
    pub(super) fn submit(&mut self, record: Option<Record>, done: Done) {
        self.submitted += 1;
        self.queue.push_back(Submission {
            sequence: self.submitted,
            record,
            done,
        });
    }

    /// Remembers that entries up to `log_id` are committed; written with the next batch.
    pub(super) fn note_committed(&mut self, log_id: LogId) {
        let known = &mut self.table.frontier.committed;
        if known.is_none_or(|known| known.index < log_id.index) {
            *known = Some(log_id);
            self.committed_noted = Some((log_id, self.submitted));
        }
    }

    fn mark(&self) -> DurableMark {
        let committed = self.durable_committed.as_ref().map(position_of);
        DurableMark {
            last: self.table.durable_last(),
            committed,
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work. `None` = the log is closing and everything is written.
    fn take(&self, options: &LogOptions) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            let committed_wanted =
                state.committed_noted.is_some() && (state.flush_wanted || state.closing);
            if !state.queue.is_empty() || committed_wanted {
                return Some(Batch::take(&mut state, options));
            }
            if state.closing {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Latches the log: everybody who waits, and everybody who calls later, is told.
    fn fail(&self, reason: &str, waiting: Vec<Done>) {
        let queue = {
            let mut state = self.lock();
            state.failure.get_or_insert_with(|| reason.to_owned());
            std::mem::take(&mut state.queue)
        };
        self.failed.send_replace(Some(reason.to_owned()));
        let queued = queue.into_iter().map(|submission| submission.done);
        waiting
            .into_iter()
            .chain(queued)
            .for_each(|done| done.tell(Some(reason)));
        self.wake();
    }

    /// Lets everybody who waits look again.
    fn wake(&self) {
        let mark = self.lock().mark();
        self.durable.send_replace(mark);
        self.progress.notify_all();
    }
}

/// What is written and synced at once.
struct Batch {
    submissions: Vec<Submission>,
    committed: Option<LogId>,
    /// Bytes of the batch.
    bytes: usize,
    /// Everything up to this submission is in this batch or an earlier one.
    sequence: u64,
}

impl Batch {
    fn take(state: &mut State, options: &LogOptions) -> Self {
        let segment_room = options.segment_bytes.saturating_sub(HEADER_BYTES as u64);
        let segment_room = usize::try_from(segment_room).unwrap_or(usize::MAX);
        let bytes_max = options.batch_bytes_max.min(segment_room);
        let mut batch = Self {
            submissions: Vec::new(),
            committed: None,
            bytes: BATCH_HEAD_BYTES,
            sequence: state.submitted - state.queue.len() as u64,
        };
        while batch.submissions.len() < BATCH_RECORDS_MAX {
            let next = state
                .queue
                .front()
                .map(|next| next.record.as_ref().map_or(0, Record::bytes));
            let Some(bytes) = next.map(|bytes| batch.bytes.saturating_add(bytes)) else {
                break;
            };
            if bytes > bytes_max && !batch.submissions.is_empty() {
                break;
            }
            let Some(submission) = state.queue.pop_front() else {
                break;
            };
            batch.bytes = bytes;
            batch.sequence = submission.sequence;
            batch.submissions.push(submission);
        }
        if let Some((log_id, after)) = state.committed_noted
            && after <= batch.sequence
        {
            batch.bytes += Record::Committed(log_id).bytes();
            batch.committed = Some(log_id);
            state.committed_noted = None;
            state.flush_wanted = false;
        }
        batch
    }
}

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
    let state = State {
        table,
        queue: VecDeque::new(),
        submitted: 0,
        committed_noted: None,
        durable_committed: written.committed,
        flush_wanted: false,
        closing: false,
        failure: None,
    };
    let shared = Arc::new(Shared {
        durable: watch::Sender::new(state.mark()),
        state: Mutex::new(state),
        work: Condvar::new(),
        progress: Condvar::new(),
        failed: watch::Sender::new(None),
        bytes: AtomicU64::new(0),
    });
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
            if let Err((error, waiting)) = self.write(batch) {
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

    /// Writes a batch and acknowledges it. With an error come those who were not acknowledged.
    fn write(&mut self, batch: Batch) -> Result<(), (LogError, Vec<Done>)> {
        let Batch {
            submissions,
            committed,
            bytes,
            sequence,
        } = batch;
        let (mut records, mut waiting) = (Vec::new(), Vec::new());
        for submission in submissions {
            records.extend(
                submission
                    .record
                    .map(|record| (record, submission.sequence)),
            );
            waiting.push(submission.done);
        }
        records.extend(committed.map(|log_id| (Record::Committed(log_id), sequence)));
        let placed = match self.append(&records, bytes) {
            Ok(placed) => placed,
            Err(error) => return Err((error, waiting)),
        };
        {
            let mut state = self.shared.lock();
            for (log_id, sequence, location) in placed {
                state.table.place(log_id, sequence, location);
            }
            state.table.flush(sequence);
            state.durable_committed = self.written.committed;
        }
        self.shared.wake();
        waiting.into_iter().for_each(|done| done.tell(None));
        self.tidy(&records).map_err(|error| (error, Vec::new()))
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
