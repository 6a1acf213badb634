//! Queued writes: `/db/execute?queue` puts them here, and they are sent to the leader in batches.
//!
//! * The writes of this node reach the database in the order in which they were accepted. What is
//!   in the queue is in memory only: a node that crashes loses it, as in rqlite.
//! * Each request of a batch is run by itself: one that is refused, or whose statements fail,
//!   leaves the others alone. It is logged and counted.
//! * With `transaction` a batch is one transaction. If a statement fails, nothing of it is kept,
//!   and its requests are run again one by one, each a transaction of its own, so that a good
//!   request never depends on who else was in the queue.
//! * A batch holds requests of one caller, whose credentials travel with it.
//! * What is certainly not committed is sent again, until the node stops; what may be committed is
//!   not, because it could be applied twice.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::node::{Credentials, Node, Refusal, Request, Shape, WriteBrief};

/// How writes are queued.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Requests that the queue holds; further ones wait for room.
    pub capacity: usize,
    /// Requests of one batch.
    pub batch_size: usize,
    /// The longest that a request waits for others to share its batch.
    pub batch_time_max: Duration,
    /// Whether a batch is one transaction.
    pub transaction: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            capacity: 1024,
            batch_size: 128,
            batch_time_max: Duration::from_millis(50),
            transaction: false,
        }
    }
}

/// The queue's state, for `/status`.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueStatus {
    pub(super) options: QueueOptions,
    /// The number of the last request accepted.
    pub(super) sequence_number: u64,
    /// Requests accepted whose fate is open.
    pub(super) waiting: u64,
    /// Statements that failed or were refused since the node started.
    pub(super) statements_failed: u64,
    /// Requests given up since the node started: of unknown outcome, or never accepted by the
    /// leader.
    pub(super) requests_lost: u64,
}

/// Why a request was not queued: there was no room in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("queue is full; send the request again later")]
pub(super) struct Full;

/// What came of a request that was waited for.
pub(super) type Fate = Result<(), Refusal>;

/// The entrance of the queue.
pub(super) struct Queue {
    options: QueueOptions,
    entrance: Mutex<Entrance>,
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    counts: Arc<Counts>,
    courier: Mutex<Option<JoinHandle<()>>>,
}

struct Entrance {
    sequence_number: u64,
    /// `None` once closed.
    line: Option<mpsc::UnboundedSender<Queued>>,
}

#[derive(Default)]
struct Counts {
    waiting: AtomicU64,
    statements_failed: AtomicU64,
    requests_lost: AtomicU64,
}

/// A request in the queue.
struct Queued {
    /// Without statements it only waits for those before it.
    request: Request,
    bytes: usize,
    caller: Option<Credentials>,
    sequence_number: u64,
    done: Option<oneshot::Sender<Fate>>,
    _room: [OwnedSemaphorePermit; 2],
}

impl Queue {
    /// Starts a queue in front of a node.
    pub(super) fn start(node: Node, options: QueueOptions) -> Self {
        let (line, queue) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let courier = Courier {
            node,
            options,
            counts: Arc::clone(&counts),
        };
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let started = started.map_or(0, |since| since.as_nanos());
        Self {
            options,
            entrance: Mutex::new(Entrance {
                // As in rqlite: numbers go on rising over restarts.
                sequence_number: u64::try_from(started).unwrap_or(0),
                line: Some(line),
            }),
            requests: Arc::new(Semaphore::new(options.capacity)),
            bytes: Arc::new(Semaphore::new(BYTES_MAX)),
            counts,
            courier: Mutex::new(Some(tokio::spawn(courier.run(queue)))),
        }
    }

    /// Queues a request, as soon as there is room, and returns its number. `done` is told what came
    /// of it.
    pub(super) async fn push(
        &self,
        request: Request,
        caller: Option<Credentials>,
        done: Option<oneshot::Sender<Fate>>,
        patience: Duration,
    ) -> Result<u64, Full> {
        let bytes = request.weight().min(BYTES_MAX);
        let permits = u32::try_from(bytes).expect("capped by the queue");
        let room = async {
            let place = Arc::clone(&self.requests).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(permits).await;
            Some([place, bytes.ok()?])
        };
        let Ok(Some(room)) = timeout(patience, room).await else {
            return Err(Full);
        };
        // Numbers are given in the order of the queue.
        let mut entrance = lock(&self.entrance);
        let sequence_number = entrance.sequence_number + 1;
        let queued = Queued {
            request,
            bytes,
            caller,
            sequence_number,
            done,
            _room: room,
        };
        let line = entrance.line.as_ref().ok_or(Full)?;
        line.send(queued).map_err(|_| Full)?;
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        entrance.sequence_number = sequence_number;
        Ok(sequence_number)
    }

    /// Accepts nothing more, and waits until what is queued has been sent, for so long at most.
    pub(super) async fn close(&self, patience: Duration) {
        lock(&self.entrance).line = None;
        let Some(mut courier) = lock(&self.courier).take() else {
            return;
        };
        if timeout(patience, &mut courier).await.is_err() {
            courier.abort();
            let requests = self.counts.waiting.load(Ordering::Relaxed);
            tracing::error!(
                requests,
                "queued writes could not be sent before the node stopped"
            );
        }
    }

    /// The state now.
    pub(super) fn status(&self) -> QueueStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueStatus {
            options: self.options,
            sequence_number: lock(&self.entrance).sequence_number,
            waiting: count(&self.counts.waiting),
            statements_failed: count(&self.counts.statements_failed),
            requests_lost: count(&self.counts.requests_lost),
        }
    }
}

/// Takes requests out of the queue and to the leader.
struct Courier {
    node: Node,
    options: QueueOptions,
    counts: Arc<Counts>,
}

impl Courier {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Queued>) {
        let mut next = None;
        loop {
            let first = match next.take() {
                Some(first) => first,
                None => match queue.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            let batch = self.gather(first, &mut queue, &mut next).await;
            let batch = if self.options.transaction && batch.len() > 1 {
                self.deliver_as_one(batch).await
            } else {
                batch
            };
            self.deliver(batch).await;
        }
    }

    /// Adds to the first request those that may share its batch. Somebody who waits is not kept
    /// waiting for others to come.
    async fn gather(
        &self,
        first: Queued,
        queue: &mut mpsc::UnboundedReceiver<Queued>,
        next: &mut Option<Queued>,
    ) -> Vec<Queued> {
        let deadline = Instant::now() + self.options.batch_time_max;
        let mut awaited = first.done.is_some();
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < self.options.batch_size {
            let come = if awaited {
                queue.try_recv().ok()
            } else {
                timeout_at(deadline, queue.recv()).await.ok().flatten()
            };
            let Some(come) = come else { break };
            bytes += come.bytes;
            if come.caller != batch[0].caller || bytes > BATCH_BYTES_MAX {
                *next = Some(come);
                break;
            }
            awaited |= come.done.is_some();
            batch.push(come);
        }
        batch
    }

    /// Runs a batch as one transaction. Returns the requests if it failed.
    async fn deliver_as_one(&self, mut batch: Vec<Queued>) -> Vec<Queued> {
        for queued in &mut batch {
            queued.request.transaction = true;
        }
        let statements = batch.iter().flat_map(|queued| &queued.request.statements);
        let whole = Request {
            statements: statements.cloned().collect(),
            transaction: true,
            shape: Shape::Execute,
            statement_time_max: batch[0].request.statement_time_max,
            qualify_columns: false,
        };
        let caller = batch[0].caller.clone();
        let sent = self.node.execute_all(vec![whole], ATTEMPT, caller).await;
        match sent.and_then(|mut fates| fates.pop().unwrap_or_else(|| Ok(WriteBrief::default()))) {
            Ok(brief) if brief.failed == 0 && !brief.refused => {
                for queued in batch {
                    self.conclude(queued, Ok(WriteBrief::default()));
                }
                Vec::new()
            }
            Err(refusal @ (Refusal::NotPermitted(_) | Refusal::Unknown(_))) => {
                for queued in batch {
                    self.conclude(queued, Err(refusal.clone()));
                }
                Vec::new()
            }
            _ => batch,
        }
    }

    /// Sends requests until the fate of each is known.
    async fn deliver(&self, batch: Vec<Queued>) {
        let mut waiting = VecDeque::from(batch);
        let mut run_length = waiting.len();
        let mut refusals = 0;
        while let Some(first) = waiting.front() {
            if first.request.statements.is_empty() {
                if let Some(flush) = waiting.pop_front() {
                    self.conclude(flush, Ok(WriteBrief::default()));
                }
                continue;
            }
            let caller = first.caller.clone();
            let run = waiting.iter().take(run_length);
            let requests: Vec<_> = run.map(|queued| queued.request.clone()).collect();
            let start = Instant::now();
            let sent = self.node.execute_all(requests, ATTEMPT, caller).await;
            let fates = match sent {
                Ok(fates) => fates,
                // Nothing was done with any of them, or nobody knows.
                Err(refusal) => vec![Err(refusal); run_length.min(waiting.len())],
            };
            let mut put_back = None;
            for fate in fates {
                match fate {
                    Err(refusal) if !is_final(&refusal) => {
                        put_back = Some(refusal);
                        break;
                    }
                    fate => {
                        let Some(queued) = waiting.pop_front() else {
                            break;
                        };
                        self.conclude(queued, fate);
                        refusals = 0;
                    }
                }
            }
            let Some(refusal) = put_back else { continue };
            if !matches!(refusal, Refusal::NotCommitted(_)) {
                // Nobody leads, or not well: that passes.
                sleep(PAUSE).await;
                continue;
            }
            // One of them may be what no leader ever takes; alone it is found out.
            let was_alone = run_length == 1;
            run_length = 1;
            refusals += 1;
            let is_too_long = was_alone && start.elapsed() >= ATTEMPT;
            if (is_too_long || refusals > REFUSALS_MAX)
                && let Some(queued) = waiting.pop_front()
            {
                self.conclude(queued, Err(refusal));
                refusals = 0;
            }
            sleep(PAUSE).await;
        }
    }

    /// Counts, logs and answers. No SQL and no texts of errors (they quote SQL) in the log.
    fn conclude(&self, queued: Queued, fate: Result<WriteBrief, Refusal>) {
        let sequence_number = queued.sequence_number;
        let statements = queued.request.statements.len() as u64;
        match &fate {
            Ok(brief) if brief.failed > 0 || brief.refused => {
                let failed = if brief.refused {
                    statements
                } else {
                    brief.failed
                };
                let counter = &self.counts.statements_failed;
                counter.fetch_add(failed, Ordering::Relaxed);
                tracing::warn!(
                    sequence_number,
                    failed,
                    statements,
                    "queued statements failed"
                );
                tracing::debug!(sequence_number, error = ?brief.error, "the first error");
            }
            Ok(_) => {}
            Err(refusal) => {
                self.counts.requests_lost.fetch_add(1, Ordering::Relaxed);
                tracing::error!(sequence_number, %refusal, "a queued write was given up");
            }
        }
        self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(done) = queued.done {
            // A client that went away needs no answer.
            let _ = done.send(fate.map(drop));
        }
    }
}

/// Whether a request with this refusal must not, or need not, be sent again.
fn is_final(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::NotPermitted(_) | Refusal::Unknown(_))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of all requests together.
const BYTES_MAX: usize = 128 << 20;
/// One group of the leader's write path takes as much.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Nobody is in a hurry here, and what times out while it waits for the quorum is of unknown
/// outcome, and lost: as long as it may take until a quorum is back.
const ATTEMPT: Duration = Duration::from_secs(3600);
const PAUSE: Duration = Duration::from_millis(250);
/// With the pause: five seconds of refusals for one and the same request.
const REFUSALS_MAX: u32 = 20;
