//! A pool of threads that answer queries, each with its own read-only connection on SQLite's own
//! VFS. Connections are opened when first needed: the database does not exist before the cluster
//! has created it.
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

use rusqlite::{Connection, OpenFlags};

use super::authorizer::Guard;
use super::extensions::Extensions;
use super::limits::Limits;
use super::statement::Executor;
use super::tokens::{self, Keyword};
use super::values::{Reply, Request, Shape};
use super::writer::{SetupError, refused_as_a_whole, scope_of, set_up};

/// How the readers are set up.
#[derive(Clone, Debug)]
pub struct ReadersOptions {
    /// The database file.
    pub path: PathBuf,
    /// How many threads, each with a connection.
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
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Ends running statements once the pool is closing.
    cancelled: Arc<AtomicBool>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

enum Job {
    Read {
        request: Request,
        done: Box<dyn FnOnce(Reply) + Send>,
    },
    Classify {
        request: Request,
        done: Box<dyn FnOnce(Request, bool) + Send>,
    },
}

impl Readers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn open(options: ReadersOptions) -> io::Result<Self> {
        let count = options.threads.max(1);
        let shared = Arc::new(Shared {
            options,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            cancelled: Arc::default(),
        });
        let readers = Self {
            shared,
            threads: Arc::default(),
        };
        for number in 0..count {
            let shared = Arc::clone(&readers.shared);
            let thread = thread::Builder::new()
                .name(format!("reader-{number}"))
                .spawn(move || serve(&shared));
            match thread {
                Ok(thread) => lock(&readers.threads).push(thread),
                Err(error) => {
                    readers.close();
                    return Err(error);
                }
            }
        }
        Ok(readers)
    }

    /// Has `request` run as a query by one of the threads, which then calls `done` with the reply.
    /// Whatever the request's shape, nothing is written.
    ///
    /// # Errors
    /// The queue is full.
    pub fn submit(
        &self,
        request: Request,
        done: Box<dyn FnOnce(Reply) + Send>,
    ) -> Result<(), Full> {
        self.enqueue(Job::Read { request, done })
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
        self.enqueue(Job::Classify { request, done })
    }

    fn enqueue(&self, job: Job) -> Result<(), Full> {
        let mut queue = lock(&self.shared.queue);
        if queue.is_closed || queue.jobs.len() >= self.shared.options.queue_max {
            return Err(Full);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.arrived.notify_one();
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
        drop(waiting);
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A reader that panicked has nothing left to close.
            let _ = thread.join();
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

/// One connection with what runs on it. The order matters: prepared statements go first.
struct Reader {
    executor: Executor,
    connection: Connection,
    result_bytes_max: usize,
}

/// The body of a thread.
fn serve(shared: &Shared) {
    let mut reader: Option<Reader> = None;
    while let Some(job) = next_job(shared) {
        // A transaction left open would show an old state to all later queries.
        if reader
            .as_ref()
            .is_none_or(|reader| !reader.connection.is_autocommit())
        {
            reader = None;
            match Reader::open(shared) {
                Ok(opened) => reader = Some(opened),
                Err(error) => {
                    refuse(job, &error);
                    continue;
                }
            }
        }
        let Some(reader) = &mut reader else { continue };
        match job {
            Job::Read { request, done } => done(reader.run(&request)),
            Job::Classify { request, done } => {
                let is_read_only = is_read_only(&reader.executor, &reader.connection, &request);
                done(request, is_read_only);
            }
        }
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.is_closed {
            return None;
        }
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        queue = shared
            .arrived
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

fn refuse(job: Job, error: &SetupError) {
    match job {
        Job::Read { done, .. } => {
            done(Reply {
                outcomes: Vec::new(),
                error: Some(error.to_string()),
            });
        }
        // Whoever runs it next will meet the same error and report it.
        Job::Classify { request, done } => done(request, false),
    }
}

fn is_read_only(executor: &Executor, connection: &Connection, request: &Request) -> bool {
    request
        .statements
        .iter()
        .all(|statement| executor.is_read_only(connection, statement))
}

impl Reader {
    fn open(shared: &Shared) -> Result<Self, SetupError> {
        let options = &shared.options;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&options.path, flags)?;
        set_up(&connection, options.foreign_keys, &options.limits)?;
        options.extensions.load(&connection)?;
        connection.execute_batch("PRAGMA query_only=ON; PRAGMA wal_autocheckpoint=0;")?;
        let guard = Guard::new(options.foreign_keys, Arc::clone(&shared.cancelled));
        Ok(Self {
            executor: Executor::new(&connection, guard, options.foreign_keys)?,
            connection,
            result_bytes_max: options.limits.result_bytes_max,
        })
    }

    /// Runs the statements of a request: with `transaction` on one state of the database and up to
    /// the first failure, else each by itself.
    fn run(&mut self, request: &Request) -> Reply {
        if let Some(reply) = refused_as_a_whole(&self.executor, request) {
            return reply;
        }
        let begun = self.executor.forget_request(&self.connection);
        let begun = begun.and_then(|()| match request.transaction {
            true => self.executor.control.begin_deferred(),
            false => Ok(()),
        });
        if let Err(failure) = begun {
            return Reply {
                outcomes: Vec::new(),
                error: Some(failure.message),
            };
        }
        let mut scope = scope_of(request);
        scope.shape = Shape::Query;
        let mut reply = Reply::default();
        let mut bytes_left = self.result_bytes_max;
        for statement in request
            .statements
            .iter()
            .filter(|statement| !statement.sql.is_empty())
        {
            let (outcome, failure) =
                self.executor
                    .run(&self.connection, statement, scope, &mut bytes_left);
            reply.outcomes.push(outcome);
            if request.transaction && failure.is_some() {
                break;
            }
        }
        let outcomes = if request.transaction {
            &mut []
        } else {
            reply.outcomes.as_mut_slice()
        };
        // Should it fail, the next line or the next connection makes up for it.
        let _ = self.executor.end_request(&self.connection, outcomes);
        if !self.connection.is_autocommit() {
            // Should it fail, the connection is opened anew: see `serve`.
            let _ = self.executor.control.rollback();
        }
        reply
    }
}

/// No code that can panic runs under these locks; a poisoned one still holds a good value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
