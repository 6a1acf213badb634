//! When the owner thread moves the WAL into the main file: as the WAL grows, when there is nothing
//! else to do, and when it is asked to.

use std::time::{Duration, Instant};

use super::super::error::Error;
use super::super::tally::NodeCounter;
use super::super::upkeep::Checkpointed;
use super::{OwnerThread, Recorded, State};
use crate::raft::StoredMembership;
use crate::raft::codec::encode_membership;
use crate::sqlite::Checkpoint;
use crate::wal::Position;

/// When to try a checkpoint again.
#[derive(Default)]
pub(super) struct Pace {
    /// When the log's entries were counted last.
    counted: Option<Instant>,
    pub(super) tried: Option<Instant>,
    pub(super) incomplete: bool,
    /// Bytes of the WAL when no image was frozen.
    unfrozen_wal_bytes: u64,
    pub(super) applied: Option<Position>,
}

impl OwnerThread {
    pub(super) fn checkpoint_when_due(&mut self) {
        let threshold = self.context.checkpoint_wal_bytes;
        let State::Open(open) = &self.state else {
            return;
        };
        let wal_bytes = open.wal_bytes();
        if !open.database.is_frozen() {
            self.checkpoint.unfrozen_wal_bytes = wal_bytes;
        }
        if wal_bytes < threshold {
            if self.has_many_entries() {
                self.try_checkpoint(SHORT_WAIT);
            }
            return;
        }
        let grown = wal_bytes.saturating_sub(self.checkpoint.unfrozen_wal_bytes);
        if grown > self.context.snapshot_wal_bytes_max {
            self.context.desk.freezes.revoke();
        }
        let patient = wal_bytes > threshold.saturating_mul(4);
        let (wait, pause) = if patient {
            (LONG_WAIT, BACK_OFF)
        } else {
            (SHORT_WAIT, RETRY)
        };
        let tried = self.checkpoint.tried.filter(|_| self.checkpoint.incomplete);
        if tried.is_none_or(|tried| tried.elapsed() >= pause) {
            self.try_checkpoint(wait);
        }
    }

    pub(super) fn checkpoint_when_idle(&mut self) {
        let settled = self.context.desk.frontier.state().fence.settled();
        let behind = settled != self.checkpoint.applied;
        let used = matches!(&self.state, State::Open(open) if open.wal_bytes() > 0);
        // Reads at level strong write to the log and to nothing else.
        if (used && behind) || self.has_many_entries() {
            self.try_checkpoint(SHORT_WAIT);
        }
    }

    /// Whether enough entries were applied since the last record; looked at now and then.
    fn has_many_entries(&mut self) -> bool {
        let (limit, interval) = (
            self.context.checkpoint_entries,
            self.context.checkpoint_interval,
        );
        let counted = self.checkpoint.counted;
        if limit == 0 || counted.is_some_and(|counted| counted.elapsed() < interval) {
            return false;
        }
        self.checkpoint.counted = Some(Instant::now());
        let settled = self.context.desk.frontier.state().fence.settled();
        let recorded = self.context.outlets.recorded.borrow();
        let recorded = recorded.as_ref().map_or(0, |at| at.applied.index);
        settled.is_some_and(|settled| settled.index.saturating_sub(recorded) >= limit)
    }

    /// A checkpoint that was asked for.
    pub(super) fn checkpoint_now(&mut self) -> Result<Checkpointed, String> {
        let settled = self.context.desk.frontier.state().fence.settled();
        let recorded = self.context.outlets.recorded.borrow().clone();
        let recorded = recorded.map(|recorded| recorded.applied);
        let State::Open(open) = &self.state else {
            return Err("the database does not exist yet".to_owned());
        };
        let has_moved_wal = !open.database.is_backfilled().unwrap_or(true);
        if recorded == settled {
            return Ok(Checkpointed::default());
        }
        if !self.try_checkpoint(RECORD_WAIT) {
            let blocked = self.context.outlets.blocked.borrow().clone();
            return Err(blocked.unwrap_or_else(|| "this node has stopped serving".to_owned()));
        }
        Ok(Checkpointed {
            has_moved_wal,
            has_recorded: true,
        })
    }

    /// Moves the WAL into the main file and, if all of it went, makes the record durable. Failures
    /// take the node out of service: a main file that cannot be written is a broken disk. After one
    /// there is no other: the kernel reports a page that it could not write once, and the next sync
    /// would succeed without it.
    pub(super) fn try_checkpoint(&mut self, wait: Duration) -> bool {
        if self.context.health.failure().is_some() {
            return false;
        }
        let begun = Instant::now();
        let ended = self.checkpoint(wait);
        self.context.desk.freezes.checkpointed(begun.elapsed());
        match ended {
            Ok(complete) => complete,
            Err(error) => {
                self.context
                    .health
                    .fail(format!("the checkpoint failed: {error}"));
                false
            }
        }
    }

    fn checkpoint(&mut self, wait: Duration) -> Result<bool, Error> {
        let state = self.context.desk.frontier.state();
        let (State::Open(open), Some(settled)) = (&mut self.state, state.fence.settled()) else {
            return Ok(false);
        };
        // Before the first page reaches the main file: recovery must be certain to redo every entry
        // that may be in it, and it redoes up to the durable `committed`.
        let applied = state.fence.last_applied.expect("settled implies applied");
        self.context.log.persist_committed_blocking(applied)?;
        let backfill = match open.database.checkpoint(Checkpoint::Restart { wait }) {
            Ok(backfill) => backfill,
            // A frame of the WAL is damaged. Nothing of it has reached the main file.
            Err(error) => {
                let damage = open.database.take_damage().ok_or(error)?;
                let why = self.context.repairs.explain(damage);
                self.context.outlets.blocked.send_replace(Some(why));
                self.checkpoint.tried = Some(Instant::now());
                self.checkpoint.incomplete = true;
                return Ok(false);
            }
        };
        self.checkpoint.tried = Some(Instant::now());
        self.checkpoint.incomplete = !backfill.complete;
        let blocked = (!backfill.complete).then(|| {
            format!(
                "a reader or a running transfer holds back {} of {} WAL frames",
                u64::from(backfill.wal_frames).saturating_sub(u64::from(backfill.backfilled)),
                backfill.wal_frames
            )
        });
        self.context.outlets.blocked.send_replace(blocked);
        if !backfill.complete {
            self.context.tally.count(NodeCounter::CheckpointsIncomplete);
            return Ok(false);
        }
        self.context.tally.count(NodeCounter::Checkpoints);
        let membership = encode_membership(state.settled_membership());
        open.database
            .save_record(settled, state.fence.last_data, &membership)?;
        self.checkpoint.applied = Some(settled);
        self.context.tally.count(NodeCounter::Records);
        if let Some(spool) = open.installed.take() {
            tracing::debug!("the checkpoint record covers the received database");
            std::fs::remove_file(&spool)
                .map_err(Error::io(format!("remove {}", spool.display())))?;
        }
        self.context.outlets.recorded.send_replace(Some(Recorded {
            applied: settled,
            membership: state.settled_membership().clone(),
        }));
        Ok(true)
    }

    /// The membership as of the last entry below an open stage.
    pub(super) fn settled_membership(&self) -> StoredMembership {
        let state = self.context.desk.frontier.state();
        state.settled_membership().clone()
    }

    pub(super) fn record_is(&self, applied: Position) {
        let membership = self.settled_membership();
        self.context.outlets.recorded.send_replace(Some(Recorded {
            applied,
            membership,
        }));
    }
}

/// A leader's other writes wait while a checkpoint waits for a reader, so not for long.
const SHORT_WAIT: Duration = Duration::from_millis(5);
/// Above four times the threshold the WAL's growth is the greater evil.
const LONG_WAIT: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_millis(50);
const BACK_OFF: Duration = Duration::from_secs(1);
/// For a record that somebody asked for: a purge, an install, the end of the process.
pub(super) const RECORD_WAIT: Duration = Duration::from_millis(200);
