//! A pool of threads that answer queries, each with its own read-only connection on SQLite's own
//! VFS. Connections are opened when first needed: the database does not exist before the cluster
//! has created it.
//!
//! A few threads are enough for short queries, and more would only add switches. But a query can
//! take minutes, and as many of those as there are threads would keep everybody else out. So
//! whenever nothing was taken from the queue for a moment another thread is started, up to a bound,
//! and a query that has run for a while gives way to others: its thread asks the scheduler for a
//! lower priority, and ends with it.
//!
//! SQLite alone opens and closes the file here. Doing so by other means would drop the process's
//! locks on it (POSIX), and another process could then delete the WAL under us.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::extensions::Extensions;
use super::interest::Interest;
use super::limits::Limits;
use super::prompt::Prompt;
use super::reader::Reader;
use super::tokens::{self, Keyword};
use super::values::{Reply, Request};
use super::witness::{Damage, Witness};
use super::writer::SetupError;

/// How the readers are set up.
#[derive(Clone, Debug)]
pub struct ReadersOptions {
    /// The database file.
    pub path: PathBuf,
    /// How many threads there may be, each with a connection; most of them only while slow
    /// queries occupy the others.
    pub threads: usize,
    /// How many requests may wait for a thread.
    pub queue_max: usize,
    /// Whether the node enforces foreign keys (only for `PRAGMA foreign_keys` to say so).
    pub foreign_keys: bool,
    /// Bounds on what clients may ask for.
    pub limits: Limits,
    /// What each connection loads.
    pub extensions: Extensions,
}

/// A request was not taken: as many as may wait are waiting, or the readers are closing. What was
/// to be called with its reply has been dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many reads are waiting")]
pub struct Full;

/// A handle on the pool; clones share it.
#[derive(Clone)]
pub struct Readers {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

struct Shared {
    options: ReadersOptions,
    /// Every page is compared with what it knows.
    witness: Option<Arc<Witness>>,
    queue: Mutex<Queue>,
    /// Something is waiting in the queue, or the pool is closed.
    arrived: Condvar,
    /// Something is waiting and no thread is idle, or the pool is closed.
    crowded: Condvar,
    /// Ends running statements once the pool is closing.
    cancelled: Arc<AtomicBool>,
    /// What needs no thread of its own.
    prompt: Prompt,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
    /// How many threads there are, and how many of them wait for a job.
    threads: usize,
    idle: usize,
    /// How many jobs were taken so far.
    taken: u64,
}

enum Job {
    Read {
        request: Request,
        interest: Interest,
        done: Done,
    },
    Classify {
        request: Request,
        interest: Interest,
        done: Box<dyn FnOnce(Request, bool) + Send>,
    },
}

/// Takes the reply to a query, or says why there is none.
pub type Done = Box<dyn FnOnce(Result<Reply, Unread>) + Send>;

/// A query that met damage; it can be tried again once that is mended.
#[derive(Debug)]
pub struct Unread {
    /// What it met first.
    pub damage: Damage,
    /// The query.
    pub request: Request,
}

impl Readers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(options: ReadersOptions) -> io::Result<Self> {
        Self::open_watched(options, None)
    }

    /// The same; queries see no page that is not as the witness of the database knows it.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open_watched(
        options: ReadersOptions,
        witness: Option<Arc<Witness>>,
    ) -> io::Result<Self> {
        let count = options.threads.clamp(1, THREADS_KEPT);
        let shared = Arc::new(Shared {
            options,
            witness,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            crowded: Condvar::new(),
            cancelled: Arc::default(),
            prompt: Prompt::default(),
        });
        let readers = Self {
            shared,
            threads: Arc::default(),
        };
        let started = (0..count).try_for_each(|_| readers.start_thread());
        if let Err(error) = started.and_then(|()| readers.start_overseer()) {
            readers.close();
            return Err(error);
        }
        Ok(readers)
    }

    /// Starts one more thread that serves.
    fn start_thread(&self) -> io::Result<()> {
        let readers = self.clone();
        lock(&self.shared.queue).threads += 1;
        let thread = thread::Builder::new()
            .name("reader".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let end = serve(&readers.shared);
                lock(&readers.shared.queue).threads -= 1;
                if end == End::GaveWay
                    && let Err(error) = readers.start_thread()
                {
                    // The overseer tries again when somebody has to wait for it.
                    tracing::warn!(%error, "a thread for queries cannot be replaced");
                }
            });
        if thread.is_err() {
            lock(&self.shared.queue).threads -= 1;
        }
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread?);
        Ok(())
    }

    /// Starts the thread that sees to it that the queue moves on.
    fn start_overseer(&self) -> io::Result<()> {
        let readers = self.clone();
        let overseer = thread::Builder::new()
            .name("readers".to_owned())
            .spawn(move || readers.oversee())?;
        lock(&self.threads).push(overseer);
        Ok(())
    }

    fn oversee(&self) {
        let mut taken_before = None;
        loop {
            let mut queue = lock(&self.shared.queue);
            while !queue.is_closed && queue.jobs.is_empty() {
                taken_before = None;
                queue = wait(&self.shared.crowded, queue);
            }
            if queue.is_closed {
                return;
            }
            let stands_still = taken_before == Some(queue.taken);
            let may_grow = queue.threads < self.shared.options.threads.max(1);
            taken_before = Some(queue.taken);
            drop(queue);
            if stands_still
                && may_grow
                && let Err(error) = self.start_thread()
            {
                tracing::warn!(%error, "no further thread for queries can be started");
            }
            thread::sleep(STANDSTILL);
        }
    }

    /// Has `request` run as a query by one of the threads, which then calls `done` with the reply.
    /// Whatever the request's shape, nothing is written. It goes on for as long as there is
    /// interest in it; without, `done` is dropped or gets a reply with an interruption in it.
    ///
    /// # Errors
    /// The queue is full.
    pub fn submit(
        &self,
        request: Request,
        interest: Interest,
        done: Box<dyn FnOnce(Reply) + Send>,
    ) -> Result<(), Full> {
        let done = Box::new(|read: Result<Reply, Unread>| {
            done(read.unwrap_or_else(|unread| Reply {
                outcomes: Vec::new(),
                error: Some(format!("page {} is damaged", unread.damage.place.page())),
            }));
        });
        self.submit_watched(request, interest, done)
    }

    /// The same; `done` is told of damage.
    ///
    /// # Errors
    /// The queue is full.
    pub fn submit_watched(
        &self,
        request: Request,
        interest: Interest,
        done: Done,
    ) -> Result<(), Full> {
        self.enqueue(Job::Read {
            request,
            interest,
            done,
        })
    }

    /// Runs a query on the calling thread, if the same texts have taken next to no time before: to
    /// wake another thread, and be woken by it, takes longer than most queries. What turns out to
    /// take long after all is given up here, and to be submitted.
    ///
    /// # Errors
    /// The request: it has to be submitted.
    pub fn try_at_once(
        &self,
        request: Request,
        interest: &Interest,
    ) -> Result<Result<Reply, Unread>, Request> {
        let shared = &self.shared;
        shared
            .prompt
            .run(request, interest, || shared.open_reader())
    }

    /// Calls `done` with the request and whether all of its statements only read
    /// (`sqlite3_stmt_readonly`), so that it can be served like a query. At once if the first word
    /// of a statement tells, else on one of the threads.
    ///
    /// # Errors
    /// The queue is full.
    pub fn classify(
        &self,
        request: Request,
        interest: Interest,
        done: Box<dyn FnOnce(Request, bool) + Send>,
    ) -> Result<(), Full> {
        let certainly_writes = |keyword| {
            matches!(
                keyword,
                Keyword::Change | Keyword::Define | Keyword::DefineVirtual | Keyword::Vacuum
            )
        };
        let mut statements = request.statements.iter();
        if statements.any(|statement| certainly_writes(tokens::keyword(&statement.sql))) {
            done(request, false);
            return Ok(());
        }
        self.enqueue(Job::Classify {
            request,
            interest,
            done,
        })
    }

    fn enqueue(&self, job: Job) -> Result<(), Full> {
        let mut queue = lock(&self.shared.queue);
        if queue.jobs.len() >= self.shared.options.queue_max {
            queue.jobs.retain(|job| !job.interest().is_lost());
        }
        if queue.is_closed || queue.jobs.len() >= self.shared.options.queue_max {
            return Err(Full);
        }
        queue.jobs.push_back(job);
        let is_crowded = queue.idle < queue.jobs.len();
        drop(queue);
        self.shared.arrived.notify_one();
        if is_crowded {
            self.shared.crowded.notify_one();
        }
        Ok(())
    }

    /// Interrupts what is running, drops what is waiting, closes the connections and joins the
    /// threads. Later submissions are refused. Must not be called from a `done`.
    pub fn close(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        let mut queue = lock(&self.shared.queue);
        queue.is_closed = true;
        let waiting = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.arrived.notify_all();
        self.shared.crowded.notify_all();
        drop(waiting);
        self.shared.prompt.close();
        // The overseer may be adding one right now: then it is found in the next round.
        loop {
            let threads = std::mem::take(&mut *lock(&self.threads));
            if threads.is_empty() {
                return;
            }
            for thread in threads {
                // A reader that panicked has nothing left to close.
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Readers")
            .field("options", &self.shared.options)
            .finish()
    }
}

impl Job {
    fn interest(&self) -> &Interest {
        match self {
            Self::Read { interest, .. } | Self::Classify { interest, .. } => interest,
        }
    }
}

/// Why a thread ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// It has a low priority now, which an unprivileged process cannot raise again.
    GaveWay,
    /// It is not needed.
    Unneeded,
}

/// The body of a thread.
fn serve(shared: &Shared) -> End {
    let mut reader: Option<Reader> = None;
    while let Some(job) = next_job(shared) {
        if job.interest().is_lost() {
            continue;
        }
        // A transaction left open would show an old state to all later queries.
        if reader.as_ref().is_none_or(|reader| !reader.is_at_rest()) {
            reader = None;
            match shared.open_reader() {
                Ok(opened) => reader = Some(opened),
                Err(error) => {
                    refuse(job, &error, shared.witness.as_deref());
                    continue;
                }
            }
        }
        let Some(reader) = &mut reader else { continue };
        match job {
            Job::Read {
                request,
                interest,
                done,
            } => {
                let begun = Instant::now();
                let read = reader.read(request, &interest);
                if let Ok((request, _)) = &read {
                    shared.prompt.note(request, begun.elapsed());
                }
                done(read.map(|(_, reply)| reply));
            }
            Job::Classify {
                request,
                interest,
                done,
            } => {
                let is_read_only = reader.is_read_only(&request, &interest);
                done(request, is_read_only);
            }
        }
        if reader.has_given_way() {
            return End::GaveWay;
        }
    }
    End::Unneeded
}

/// The next job; `None` ends the thread: the pool is closed, or has more threads than it needs.
fn next_job(shared: &Shared) -> Option<Job> {
    let mut queue = lock(&shared.queue);
    queue.idle += 1;
    let mut is_spare = false;
    let job = loop {
        if queue.is_closed {
            break None;
        }
        if let Some(job) = queue.jobs.pop_front() {
            queue.taken += 1;
            break Some(job);
        }
        if is_spare && queue.threads > THREADS_KEPT {
            break None;
        }
        let waited = shared.arrived.wait_timeout(queue, SPARE_TIME);
        let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        queue = again;
        is_spare = timeout.timed_out();
    };
    queue.idle -= 1;
    job
}

fn refuse(job: Job, error: &SetupError, witness: Option<&Witness>) {
    match job {
        Job::Read { done, request, .. } => {
            // A page that a connection needs to be opened at all.
            let damage = witness.and_then(|witness| witness.damaged().first().copied());
            done(match damage {
                Some(damage) => Err(Unread { damage, request }),
                None => Ok(Reply {
                    outcomes: Vec::new(),
                    error: Some(error.to_string()),
                }),
            });
        }
        // Whoever runs it next will meet the same error and report it.
        Job::Classify { request, done, .. } => done(request, false),
    }
}

impl Shared {
    fn open_reader(&self) -> Result<Reader, SetupError> {
        Reader::open(&self.options, self.witness.as_ref(), &self.cancelled)
    }
}

fn wait<'q>(condvar: &Condvar, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
    condvar.wait(queue).unwrap_or_else(PoisonError::into_inner)
}

/// So many threads wait for queries at all times.
const THREADS_KEPT: usize = 4;
/// With nothing taken from the queue for so long, another thread is started.
const STANDSTILL: Duration = Duration::from_millis(20);
/// A thread beyond those that are kept ends after so long without a job.
const SPARE_TIME: Duration = Duration::from_secs(5);
/// Of a thread on which queries run: SQLite compiles nested statements recursively.
pub const STACK_BYTES: usize = 8 << 20;

/// No code that can panic runs under these locks; a poisoned one still holds a good value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
