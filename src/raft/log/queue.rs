//! What the handles and the writer share: the log as its callers see it, and the one queue.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use openraft::storage::IOFlushed;
use tokio::sync::{oneshot, watch};

use super::format::{BATCH_HEAD_BYTES, HEADER_BYTES, Record};
use super::table::Table;
use super::{DurableMark, LogError, LogOptions};
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
    pub(super) fn tell(self, failure: Option<&str>) {
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
pub(super) struct Submission {
    pub(super) sequence: u64,
    pub(super) record: Option<Record>,
    pub(super) done: Done,
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
    /// Bytes written to segments since the log was opened.
    pub(super) written: AtomicU64,
    /// Entries cut off since the log was opened.
    pub(super) cut_off: AtomicU64,
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
    pub(super) closing: bool,
    failure: Option<String>,
    /// Number of the last mark.
    revision: u64,
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

    fn mark(&mut self) -> DurableMark {
        self.revision += 1;
        let committed = self.durable_committed.as_ref().map(position_of);
        let (last, revision) = (self.table.durable_last(), self.revision);
        DurableMark {
            last,
            committed,
            revision,
        }
    }
}

impl Shared {
    pub(super) fn new(table: Table) -> Self {
        let durable_committed = table.frontier.committed;
        let mut state = State {
            table,
            queue: VecDeque::new(),
            submitted: 0,
            committed_noted: None,
            durable_committed,
            flush_wanted: false,
            closing: false,
            failure: None,
            revision: 0,
        };
        Self {
            durable: watch::Sender::new(state.mark()),
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            failed: watch::Sender::new(None),
            bytes: AtomicU64::new(0),
            written: AtomicU64::new(0),
            cut_off: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work. `None` = the log is closing and everything is written.
    pub(super) fn take(&self, options: &LogOptions) -> Option<Batch> {
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
    pub(super) fn fail(&self, reason: &str, waiting: Vec<Done>) {
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
        self.publish();
    }

    /// Publishes what is durable now, and lets everybody who waits look again. Not under the lock
    /// of the state: a receiver may hold the mark while it calls the log.
    pub(super) fn publish(&self) {
        let mark = self.lock().mark();
        self.durable.send_if_modified(|current| {
            let newer = mark.revision > current.revision;
            if newer {
                *current = mark;
            }
            newer
        });
        self.progress.notify_all();
    }
}

/// What is written and synced at once.
pub(super) struct Batch {
    pub(super) submissions: Vec<Submission>,
    pub(super) committed: Option<LogId>,
    /// Bytes of the batch.
    pub(super) bytes: usize,
    /// Everything up to this submission is in this batch or an earlier one.
    pub(super) sequence: u64,
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
