//! The thread that makes durable what checkpoints have moved: it waits for the disk in place of the
//! owner thread, which goes on with writes.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use super::super::error::Error;
use super::super::health::Health;
use super::super::tally::{NodeCounter, Tally};
use super::super::upkeep::Checkpointed;
use super::{OwnerContext, Recorded};
use crate::sqlite::{Flusher, RecordDraft};

/// A record that is to be made durable, and what follows from that.
pub(super) struct Save {
    pub(super) draft: RecordDraft,
    pub(super) recorded: Recorded,
    /// An installed image that the record covers.
    pub(super) spool: Option<PathBuf>,
    /// Who is told then, and what.
    pub(super) askers: Vec<(Asker, Checkpointed)>,
}

/// Somebody who asked for a checkpoint.
pub(super) type Asker = oneshot::Sender<Result<Checkpointed, String>>;

enum Work {
    Flush(Flusher),
    Save(Box<Save>),
    /// Only says that all before is done.
    Pass(mpsc::Sender<()>),
}

/// The handle on the thread.
pub(super) struct Recorder {
    work: Option<mpsc::Sender<Work>>,
    pending: Arc<Pending>,
    thread: Option<JoinHandle<()>>,
}

/// Work that is not finished.
#[derive(Default)]
struct Pending {
    flushes: AtomicUsize,
    saves: AtomicUsize,
}

impl Recorder {
    pub(super) fn start(context: &OwnerContext) -> io::Result<Self> {
        let (work, queue) = mpsc::channel();
        let pending = Arc::new(Pending::default());
        let thread = RecorderThread {
            pending: Arc::clone(&pending),
            health: Arc::clone(&context.health),
            tally: Arc::clone(&context.tally),
            recorded: context.outlets.recorded.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || thread.run(&queue))?;
        Ok(Self {
            work: Some(work),
            pending,
            thread: Some(thread),
        })
    }

    /// Whether the main file is being synced, or waits for that.
    pub(super) fn is_flushing(&self) -> bool {
        self.pending.flushes.load(Ordering::Acquire) > 0
    }

    /// Whether a record is not durable yet.
    pub(super) fn is_saving(&self) -> bool {
        self.pending.saves.load(Ordering::Acquire) > 0
    }

    pub(super) fn flush(&self, flusher: Flusher) {
        self.pending.flushes.fetch_add(1, Ordering::AcqRel);
        self.submit(Work::Flush(flusher));
    }

    pub(super) fn save(&self, save: Save) {
        self.pending.saves.fetch_add(1, Ordering::AcqRel);
        self.submit(Work::Save(Box::new(save)));
    }

    /// Waits until all that was asked for is done, and nothing of the database is held any more.
    /// Blocks.
    pub(super) fn wait(&self) {
        let (done, is_done) = mpsc::channel();
        self.submit(Work::Pass(done));
        // A thread that is gone has nothing left to do.
        let _ = is_done.recv();
    }

    fn submit(&self, work: Work) {
        if let Some(queue) = &self.work {
            // The thread ends only with its queue; a panic has already aborted the process.
            let _ = queue.send(work);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // As above.
            drop(thread.join());
        }
    }
}

struct RecorderThread {
    pending: Arc<Pending>,
    health: Arc<Health>,
    tally: Arc<Tally<NodeCounter>>,
    recorded: watch::Sender<Option<Recorded>>,
}

impl RecorderThread {
    fn run(self, queue: &mpsc::Receiver<Work>) {
        for work in queue {
            match work {
                Work::Flush(flusher) => {
                    // A record saves more than a flush does, and one failure is the last.
                    if self.health.failure().is_none()
                        && let Err(error) = flusher.flush()
                    {
                        self.fail(&error.into());
                    }
                    drop(flusher);
                    self.pending.flushes.fetch_sub(1, Ordering::AcqRel);
                }
                Work::Save(save) => self.save(*save),
                // Whoever waited may be gone.
                Work::Pass(done) => drop(done.send(())),
            }
        }
    }

    fn save(&self, save: Save) {
        let Save {
            draft,
            recorded,
            spool,
            askers,
        } = save;
        let saved = match self.health.failure() {
            // After one failure there is no other: the kernel reports a page that it could not
            // write once, and the next sync would succeed without it.
            Some(failure) => Err(failure),
            None => self
                .try_save(draft, spool)
                .map_err(|error| self.fail(&error)),
        };
        if saved.is_ok() {
            self.tally.count(NodeCounter::Records);
            self.recorded.send_replace(Some(recorded));
        }
        self.pending.saves.fetch_sub(1, Ordering::AcqRel);
        for (asker, checkpointed) in askers {
            // Askers that went away are no reason to stop.
            let _ = asker.send(saved.clone().map(|()| checkpointed));
        }
    }

    fn try_save(&self, draft: RecordDraft, spool: Option<PathBuf>) -> Result<(), Error> {
        draft.save()?;
        if let Some(spool) = spool {
            tracing::debug!("the checkpoint record covers the received database");
            std::fs::remove_file(&spool)
                .map_err(Error::io(format!("remove {}", spool.display())))?;
        }
        Ok(())
    }

    /// Takes the node out of service: a main file that cannot be written is a broken disk.
    fn fail(&self, error: &Error) -> String {
        let why = format!("the checkpoint failed: {error}");
        self.health.fail(why.clone());
        why
    }
}
