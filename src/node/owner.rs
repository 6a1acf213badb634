//! The owner thread: the one place in the process that writes the database.
//!
//! It runs groups (leader), injects deltas (follower), checkpoints, and hands out frozen images,
//! one job at a time and in the order in which they arrive. While a group waits for the quorum the
//! thread is blocked inside xSync; whoever needs it then must first decide that flight.

mod checkpoints;
mod groups;
mod recorder;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use checkpoints::Pace;
use recorder::Recorder;

use super::error::Error;
use super::fence::Fence;
use super::gate::{Desk, Landed, QuorumGate};
use super::health::Health;
use super::image::Held;
use super::image_receiver::Arrival;
use super::outlets::{Extent, Outlets};
use super::parts::{StagedParts, all_pages, first_hash};
use super::proposer::Ticket;
use super::repair::{Repairs, wait_mended};
use super::running::Inner;
use super::scratch::Scratch;
use super::tally::{NodeCounter, Tally};
use super::upkeep::Checkpointed;
use super::upload::Upload;
use crate::raft::StoredMembership;
use crate::raft::codec::encode_membership;
use crate::raft::log::Log;
use crate::sqlite::{
    self, Change, Database, DatabaseOptions, Installation, Interest, PageHashes, Readers,
    ReadersOptions, Reply, Request, SqlCommit, StartLock, Witness, Writer, WriterOptions,
};
use crate::wal::{DatabaseHash, Delta, PageNumber, Position};

/// The end of a group.
pub(crate) struct GroupEnd {
    /// One for each request that was run; without meaning unless `sql_commit` is `Done`.
    pub(crate) replies: Vec<Reply>,
    /// The requests behind those, which are still to be run: after a second kill the writer goes on
    /// with one request at a time.
    pub(crate) rest: Vec<Request>,
    /// Whether SQLite committed.
    pub(crate) sql_commit: SqlCommit,
    /// What became of its flights.
    pub(crate) landed: Landed,
    /// Whether it was one request whose statements were committed one by one.
    pub(crate) is_stepwise: bool,
    /// Why the requests were not run: they need a page that is damaged.
    pub(crate) refusal: Option<String>,
}

/// What the owner can be asked to do. Each answer goes to `done`.
pub(crate) enum Job {
    /// Checkpoint as far as possible, then stop.
    Close { done: oneshot::Sender<()> },
    /// Run a group of the writes that wait there, and answer it.
    Writes(Arc<Inner>),
    /// Checkpoint as far as possible now.
    Checkpoint {
        done: oneshot::Sender<Result<Checkpointed, String>>,
    },
    /// Load something, as a group of its own.
    Load {
        load: Load,
        ticket: Ticket,
        done: oneshot::Sender<Option<GroupEnd>>,
    },
    /// Answer those who asked for a frozen image.
    Hold,
    /// Publish an accepted delta of another node; for a last part, with the parts before it.
    Inject {
        delta: Delta,
        earlier: Option<StagedParts>,
        position: Position,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Make the database the one that was received.
    Install {
        arrival: Box<Arrival>,
        done: oneshot::Sender<Result<(), Error>>,
    },
}

/// What is loaded.
pub(crate) enum Load {
    /// A SQLite file that was found fit.
    Database {
        path: PathBuf,
        /// The file is one of these, and goes with them.
        _files: (Arc<Upload>, Scratch),
    },
    /// A long SQL text, for as long as somebody waits.
    Script(Request, Interest),
}

/// What the owner needs besides its jobs.
pub(crate) struct OwnerContext {
    pub(crate) database: DatabaseOptions,
    pub(crate) writer: WriterOptions,
    pub(crate) readers: ReadersOptions,
    pub(crate) desk: Arc<Desk>,
    pub(crate) log: Log,
    pub(crate) health: Arc<Health>,
    pub(crate) tally: Arc<Tally<NodeCounter>>,
    /// The data directory.
    pub(crate) dir: PathBuf,
    pub(crate) checkpoint_wal_bytes: u64,
    /// Entries since the last record that start a checkpoint; 0: none do.
    pub(crate) checkpoint_entries: u64,
    /// Bytes by which the WAL may grow while an image is frozen.
    pub(crate) snapshot_wal_bytes_max: u64,
    /// How often they are counted.
    pub(crate) checkpoint_interval: Duration,
    pub(crate) outlets: Outlets,
    pub(crate) repairs: Arc<Repairs>,
    /// How long to wait for another process that has the database open.
    pub(crate) open_wait: Duration,
}

/// The last durable checkpoint record, as far as Raft's snapshots are concerned.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) applied: Position,
    pub(crate) membership: StoredMembership,
}

/// The handle on the owner thread.
pub(crate) struct Owner {
    jobs: mpsc::Sender<Job>,
    desk: Arc<Desk>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    /// Starts the thread; with page hashes the database exists and is opened there first.
    pub(crate) fn start(
        context: OwnerContext,
        lock: StartLock,
        hashes: Option<PageHashes>,
        damaged: Vec<PageNumber>,
    ) -> Result<Arc<Self>, Error> {
        let (jobs, queue) = mpsc::channel();
        let desk = Arc::clone(&context.desk);
        let (opened, result) = mpsc::channel();
        let recorder = Recorder::start(&context).map_err(Error::io("start the recorder thread"))?;
        let thread = std::thread::Builder::new()
            .name("owner".to_owned())
            .spawn(move || {
                let (state, checkpoint) = (State::Closed(None), Pace::default());
                let mut thread = OwnerThread {
                    context,
                    state,
                    checkpoint,
                    recorder,
                    holds_since: None,
                };
                let outcome = match hashes {
                    Some(hashes) => thread.open(lock, &hashes, &damaged),
                    None => {
                        thread.state = State::Closed(Some(lock));
                        Ok(())
                    }
                };
                let failed = outcome.is_err();
                // The opener waits for this; if it is gone, nobody needs the thread either.
                if opened.send(outcome).is_ok() && !failed {
                    thread.run(&queue);
                }
            })
            .map_err(Error::io("start the owner thread"))?;
        result
            .recv()
            .map_err(|_| Error::Raft("the owner thread died".to_owned()))??;
        Ok(Arc::new(Self {
            jobs,
            desk,
            thread: std::sync::Mutex::new(Some(thread)),
        }))
    }

    /// Queues a job. After `Close` jobs are dropped, and their `done` with them.
    pub(crate) fn submit(&self, job: Job) {
        // A closed queue drops the job: the asker sees its oneshot closed.
        drop(self.jobs.send(job));
    }

    /// Freezes the database as it is published now, also while a group waits for the quorum.
    /// `None` before the genesis.
    pub(crate) async fn hold(&self) -> Option<Held> {
        let (done, held) = oneshot::channel();
        self.desk.request_hold(done);
        self.submit(Job::Hold);
        self.desk.flights.nudge();
        held.await.ok().flatten()
    }

    /// Waits for the thread after `Close`. Blocks.
    pub(crate) fn join(&self) {
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            // A panic has already aborted the process.
            drop(thread.join());
        }
    }
}

struct OwnerThread {
    context: OwnerContext,
    state: State,
    checkpoint: Pace,
    recorder: Recorder,
    /// Since when somebody waits for an image, which itself waits for a checkpoint.
    holds_since: Option<Instant>,
}

/// Whether there is a database.
enum State {
    /// Before the genesis, with the lock under which it will be created.
    Closed(Option<StartLock>),
    Open(Box<Open>),
}

struct Open {
    writer: Writer,
    database: Database,
    /// A received image that is installed but not yet covered by a checkpoint record.
    installed: Option<PathBuf>,
}

impl Open {
    /// Bytes of the WAL in use. Unreadable shared memory shows at the next commit, as a failure.
    fn wal_bytes(&self) -> u64 {
        self.database.wal_bytes().unwrap_or(0)
    }
}

impl OwnerThread {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        loop {
            match queue.recv_timeout(self.patience()) {
                Ok(Job::Close { done }) => {
                    self.close();
                    // The closer may have given up waiting.
                    let _ = done.send(());
                    return;
                }
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => self.checkpoint_in_pause(),
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            }
            self.serve_holds();
            self.publish_extent();
        }
    }

    /// Askers that went away are no reason to stop, so failed sends are ignored throughout.
    fn work(&mut self, job: Job) {
        match job {
            Job::Writes(inner) => {
                inner.run_queued(|requests, interests, ticket| {
                    let end = self.run_group(requests, interests, ticket);
                    self.publish_extent();
                    end
                });
                self.checkpoint_when_due();
            }
            Job::Load { load, ticket, done } => {
                let end = self.run_load(load, ticket);
                self.publish_extent();
                let _ = done.send(end);
                self.checkpoint_when_due();
            }
            Job::Checkpoint { done } => self.checkpoint_now(done),
            Job::Inject {
                delta,
                earlier,
                position,
                done,
            } => {
                let result = self.inject(&delta, earlier.as_ref(), position);
                self.publish_extent();
                let _ = done.send(result);
                self.checkpoint_when_due();
            }
            Job::Hold => {
                self.holds_since.get_or_insert_with(Instant::now);
                self.checkpoint_when_due();
            }
            Job::Install { arrival, done } => {
                let _ = done.send(self.install(*arrival));
            }
            Job::Close { .. } => unreachable!("the loop handles the end itself"),
        }
    }

    /// Answers those who want an image. What has waited for the last image to go should not wait
    /// for this one as well, so a checkpoint that is getting on comes first.
    fn serve_holds(&mut self) {
        let is_long = |since: Instant| since.elapsed() > HOLD_PATIENCE;
        if self
            .holds_since
            .is_none_or(|since| self.is_moving_wal() && !is_long(since))
        {
            return;
        }
        self.holds_since = None;
        match &self.state {
            State::Open(open) => self.context.desk.serve_holds(|| open.database.image()),
            State::Closed(_) => self.context.desk.refuse_holds(),
        }
    }

    /// Opens the database, after mending the pages that it cannot be opened without.
    fn open(
        &mut self,
        mut lock: StartLock,
        hashes: &PageHashes,
        damaged: &[PageNumber],
    ) -> Result<(), Error> {
        let repairs = Arc::clone(&self.context.repairs);
        let begun = Instant::now();
        loop {
            let (dir, path) = (lock.dir().to_owned(), lock.path().to_owned());
            let witness = repairs.witness_of(&path, hashes, damaged);
            let Err(error) = self.open_watched(lock, hashes.clone(), &witness) else {
                repairs.adopt(witness);
                return Ok(());
            };
            let found = witness.damaged();
            let Some(first) = found.first() else {
                return Err(error);
            };
            let what = witness.describe(first.place);
            tracing::error!(%error, what, "the database cannot be opened with this page damaged");
            lock = StartLock::acquire(&dir, self.context.open_wait)?;
            if !repairs.mend_closed(&lock, hashes, &found)? {
                if repairs.is_alone() || begun.elapsed() > MEND_PATIENCE {
                    // Not `Corrupt`: everything else is there, and must not be set aside.
                    let what = format!("{what} is not what was written there; {RESTORE}");
                    return Err(Error::Configuration(what));
                }
                std::thread::sleep(MEND_RETRY);
            }
        }
    }

    fn open_watched(
        &mut self,
        lock: StartLock,
        hashes: PageHashes,
        witness: &Arc<Witness>,
    ) -> Result<(), Error> {
        let gate = Box::new(QuorumGate(Arc::clone(&self.context.desk)));
        let options = self.context.database;
        let database = Database::open_watched(options, lock, hashes, gate, witness)?;
        let writer = Writer::new(database.connection(), &self.context.writer)?;
        // Filled before the readers are, who are asked first.
        let _ = self.context.outlets.pragmas.set(database.pragmas());
        let watched = Some(Arc::clone(witness));
        let readers = Readers::open_watched(self.context.readers.clone(), watched);
        let readers = readers.map_err(Error::io("start the read threads"))?;
        if self.context.outlets.readers.set(readers).is_err() {
            unreachable!("the database is opened once");
        }
        self.state = State::Open(Box::new(Open {
            writer,
            database,
            installed: None,
        }));
        self.publish_extent();
        Ok(())
    }

    fn inject(
        &mut self,
        delta: &Delta,
        earlier: Option<&StagedParts>,
        position: Position,
    ) -> Result<(), Error> {
        match &mut self.state {
            State::Open(open) => {
                let before = first_hash(earlier, delta)?;
                let mut injected = inject_delta(&mut open.database, delta, earlier);
                while let Err(sqlite::Error::Damaged(damage)) = injected
                    && wait_mended(&self.context.repairs, damage)
                {
                    injected = inject_delta(&mut open.database, delta, earlier);
                }
                // Perhaps it is only this node's memory that is wrong.
                if matches!(injected, Err(sqlite::Error::HashMismatch { .. }))
                    && open.database.hash() != before
                    && open.database.rehash(before)?
                {
                    injected = inject_delta(&mut open.database, delta, earlier);
                }
                injected.map_err(not_injected)?;
            }
            State::Closed(_) => self.create(delta, position)?,
        }
        self.context.desk.frontier.advance(|state| {
            state.fence = Fence::at(Some(position), Some(position));
        });
        Ok(())
    }

    /// The genesis: the first data entry is the database itself, one page.
    fn create(&mut self, delta: &Delta, position: Position) -> Result<(), Error> {
        let Some((PageNumber::FIRST, image)) = delta
            .whole_pages()
            .next()
            .transpose()
            .map_err(sqlite::Error::from)?
            .filter(|_| delta.len() == 1)
        else {
            let what = format!("the first data entry {position} is not the image of one page");
            return Err(Error::Raft(what));
        };
        let membership = encode_membership(&self.settled_membership());
        let lock = self.take_lock()?;
        let hashes = sqlite::create(&lock, &image, position, Some(position), &membership)?;
        if hashes.sum() != delta.header().hash_after {
            let (expected, found) = (delta.header().hash_after, hashes.sum());
            return Err(sqlite::Error::HashMismatch { expected, found }.into());
        }
        self.record_is(position);
        self.open(lock, &hashes, &[])
    }

    /// First durably under its final name, then in the database.
    fn install(&mut self, arrival: Arrival) -> Result<(), Error> {
        let dir = self.context.dir.clone();
        // What the main file has must be durable: the pages that are right there are not spooled.
        self.recorder.wait();
        let now = match &self.state {
            State::Open(open) => Some(open.database.image()?),
            State::Closed(_) => None,
        };
        let spool = arrival.adopt(&dir, now.as_ref())?;
        tracing::debug!("the received database is adopted");
        drop(now);
        let manifest = spool.manifest().clone();
        let mut pages = spool.pages();
        if let State::Open(open) = &mut self.state {
            let hash_before = open.database.hash();
            if !spool.is_empty() || hash_before != manifest.hash {
                let change = Change {
                    page_count: manifest.page_count,
                    hash_before,
                    hash_after: manifest.hash,
                    pages: &mut pages,
                };
                open.database.inject(change).map_err(not_injected)?;
            }
            open.installed = Some(spool.path().to_owned());
        } else {
            let lock = self.take_lock()?;
            let mut installation = Installation::replace(lock, manifest.page_size)?;
            installation.apply(Change {
                page_count: manifest.page_count,
                hash_before: DatabaseHash::default(),
                hash_after: manifest.hash,
                pages: &mut pages,
            })?;
            let (lock, hashes) = installation.finish()?;
            self.open(lock, &hashes, &[])?;
            if let State::Open(open) = &mut self.state {
                open.installed = Some(spool.path().to_owned());
            }
        }
        if let Some(data) = manifest.data {
            self.context.desk.lineage.note(data, manifest.hash);
        }
        self.context.desk.frontier.advance(|state| {
            state.fence = Fence::at(Some(manifest.applied), manifest.data);
            state.membership = manifest.membership.clone();
        });
        self.context.tally.count(NodeCounter::ImagesInstalled);
        // The image stays spooled until there is a record of it.
        self.want_checkpoint();
        Ok(())
    }

    fn take_lock(&mut self) -> Result<StartLock, Error> {
        match std::mem::replace(&mut self.state, State::Closed(None)) {
            State::Closed(Some(lock)) => Ok(lock),
            _ => Err(Error::Raft(
                "the database could not be created earlier".to_owned(),
            )),
        }
    }

    fn publish_extent(&self) {
        if let State::Open(open) = &self.state {
            // Both change on this thread only.
            let data = self.context.desk.frontier.reached().data;
            self.context.outlets.extent.send_replace(Extent {
                wal_bytes: open.wal_bytes(),
                page_count: open.database.page_count().0,
                page_size: open.database.page_size().bytes(),
                hash: open.database.hash().0,
                data_index: data.map_or(0, |data| data.index),
            });
        }
    }

    fn close(&mut self) {
        // Transfers end with the process.
        self.context.desk.freezes.revoke();
        self.checkpoint_at_end();
        if let State::Open(open) = std::mem::replace(&mut self.state, State::Closed(None)) {
            let Open {
                writer, database, ..
            } = *open;
            drop(writer);
            if let Err(error) = database.close() {
                tracing::warn!(%error, "closing the database failed");
            }
        }
    }
}

fn inject_delta(
    database: &mut Database,
    delta: &Delta,
    earlier: Option<&StagedParts>,
) -> Result<(), sqlite::Error> {
    let header = delta.header();
    let hash_before = first_hash(earlier, delta)?;
    // Patches would make anything out of the pages of another state, or say that they do not fit.
    let (expected, found) = (hash_before, database.hash());
    if expected != found {
        return Err(sqlite::Error::HashMismatch { expected, found });
    }
    let published = (!delta.is_whole()).then(|| database.published());
    let published = published.transpose()?;
    let old = |page, image: &mut [u8]| match &published {
        Some(published) => published.read(page, image),
        None => Ok(()),
    };
    let mut pages = all_pages(earlier, delta, old)?;
    database.inject(Change {
        page_count: header.page_count,
        hash_before,
        hash_after: header.hash_after,
        pages: &mut pages,
    })
}

/// Ends the process if files or shared memory failed under an injection: the cluster has committed
/// what may be half written now, so it must not be continued, only redone by the next start.
fn not_injected(error: sqlite::Error) -> Error {
    if matches!(error, sqlite::Error::Io { .. } | sqlite::Error::Vfs { .. }) {
        tracing::error!(%error, "what the cluster has committed cannot be written; aborting");
        std::process::abort();
    }
    error.into()
}

/// What to do about a page without which nothing works, and of which there is no copy.
const RESTORE: &str = "start the other nodes, which may have a good copy; without any, restore the \
     database from a backup: move the data directory away, start the node again, and POST the \
     backup to /db/load";
/// For the other nodes to be there: they may be starting too.
const MEND_PATIENCE: Duration = Duration::from_secs(60);
const MEND_RETRY: Duration = Duration::from_millis(200);
/// Moving some GiB takes longer, and a transfer that waits for that may be given up.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);
