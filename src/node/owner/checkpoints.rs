//! When the owner thread moves the WAL into the main file: as the WAL grows, when there is nothing
//! else to do, and when it is asked to.
//!
//! A checkpoint is taken in steps, with the jobs that wait between them: a record that counts on
//! the WAL as it is, which another thread makes durable; then pieces of what it counts on, as many
//! as it takes until little is left; then in one go a record for the rest, SQLite's own checkpoint
//! over it, and the record that the main file has everything. So however long the WAL has become, a
//! write waits for one step only.

use std::time::{Duration, Instant};

use super::super::error::Error;
use super::super::frontier;
use super::super::tally::NodeCounter;
use super::super::upkeep::Checkpointed;
use super::recorder::{Asker, Save};
use super::{OwnerThread, Recorded, State};
use crate::planted::{self, Bug};
use crate::raft::StoredMembership;
use crate::raft::codec::encode_membership;
use crate::sqlite::{self, Backfill, Checkpoint};
use crate::wal::{PageSize, Position};

/// How far a checkpoint is, and when to go on with it.
#[derive(Default)]
pub(super) struct Pace {
    next: Next,
    /// When the log's entries were counted last.
    counted: Option<Instant>,
    /// When to try again what a reader or an image was in the way of.
    retry_at: Option<Instant>,
    /// Bytes of the WAL when no image was frozen.
    unfrozen_wal_bytes: u64,
    /// What the last record covers, be it durable or not yet.
    applied: Option<Position>,
    /// Frames of the WAL at the last piece.
    frames_seen: u32,
    /// Bytes moved that nobody has been asked to make durable.
    unflushed_bytes: u64,
    /// Whether there is to be a record although the WAL is short.
    is_wanted: bool,
    askers: Vec<Waiting>,
}

/// When to take the next step.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Next {
    /// When a job gives a reason, or in a while.
    #[default]
    Idle,
    /// As soon as no job waits.
    Now,
    /// When the disk has done its part.
    Soon,
    /// When what holds it back may have gone.
    Later,
}

/// Somebody who asked for a checkpoint.
struct Waiting {
    asker: Asker,
    has_moved_wal: bool,
    /// Until when it may be held back.
    until: Option<Instant>,
}

impl OwnerThread {
    /// How long to wait for a job before the next step of a checkpoint.
    pub(super) fn patience(&self) -> Duration {
        match self.checkpoint.next {
            Next::Now => Duration::ZERO,
            Next::Soon => SOON,
            Next::Later if !self.checkpoint.askers.is_empty() => RETRY_ASKED,
            Next::Idle | Next::Later => IDLE_CHECKPOINT,
        }
    }

    /// When no job came for so long.
    pub(super) fn checkpoint_in_pause(&mut self) {
        if self.patience() == IDLE_CHECKPOINT {
            let settled = self.context.desk.frontier.state().fence.settled();
            let behind = settled != self.checkpoint.applied;
            let used = matches!(&self.state, State::Open(open) if open.wal_bytes() > 0);
            if used && behind {
                self.checkpoint.is_wanted = true;
            }
        }
        self.checkpoint_when_due();
    }

    /// Takes one step if a checkpoint is due. No step keeps the thread for long.
    pub(super) fn checkpoint_when_due(&mut self) {
        if self.context.health.failure().is_some() {
            self.checkpoint.next = Next::Idle;
            self.refuse_askers("this node has stopped serving");
        } else if !self.is_due() {
            self.checkpoint.next = Next::Idle;
        } else if self.is_pausing() {
            self.checkpoint.next = Next::Later;
        } else {
            self.step();
        }
    }

    /// Has a checkpoint begin now that nothing else asks for.
    pub(super) fn want_checkpoint(&mut self) {
        self.checkpoint.is_wanted = true;
        self.checkpoint.next = Next::Now;
    }

    /// Whether an image had better wait: it would keep the rest of the WAL where it is.
    pub(super) fn is_moving_wal(&self) -> bool {
        let is_under_way = matches!(self.checkpoint.next, Next::Now | Next::Soon);
        let State::Open(open) = &self.state else {
            return false;
        };
        is_under_way && open.database.backfilled().is_ok_and(|now| !now.complete)
    }

    fn is_due(&mut self) -> bool {
        let State::Open(open) = &self.state else {
            return false;
        };
        let (wal_bytes, is_frozen) = (open.wal_bytes(), open.database.is_frozen());
        // Unreadable shared memory shows at the next commit, as a failure.
        let is_complete = open.database.backfilled().is_ok_and(|now| now.complete);
        if !is_frozen {
            self.checkpoint.unfrozen_wal_bytes = wal_bytes;
        }
        let is_long = wal_bytes >= self.context.checkpoint_wal_bytes;
        let grown = wal_bytes.saturating_sub(self.checkpoint.unfrozen_wal_bytes);
        if is_long && grown > self.context.snapshot_wal_bytes_max {
            self.context.desk.freezes.revoke();
        }
        if self.has_many_entries() {
            self.checkpoint.is_wanted = true;
        }
        self.checkpoint.is_wanted
            || !self.checkpoint.askers.is_empty()
            || (is_long && (!is_complete || self.is_behind()))
    }

    /// Whether anything was applied since the last record.
    fn is_behind(&self) -> bool {
        let settled = self.context.desk.frontier.state().fence.settled();
        settled != self.checkpoint.applied
    }

    /// Whether it is too early to try again what was held back.
    fn is_pausing(&self) -> bool {
        let retry_at = self.checkpoint.retry_at;
        retry_at.is_some_and(|at| Instant::now() < at)
    }

    /// Whether the WAL is so long that its growth is the greater evil.
    fn is_patient(&self) -> bool {
        let limit = self.context.checkpoint_wal_bytes.saturating_mul(4);
        matches!(&self.state, State::Open(open) if open.wal_bytes() > limit)
    }

    /// Whether one huge job after the other adds more than can be moved between them: then moving
    /// takes as long as it takes, which is far less than those jobs.
    fn is_flooded(&self) -> bool {
        matches!(&self.state, State::Open(open) if open.wal_bytes() > FLOOD_BYTES)
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
        let recorded = recorded.as_ref().map(|recorded| recorded.applied);
        // One on its way counts too.
        let recorded = self
            .checkpoint
            .applied
            .or(recorded)
            .map_or(0, |at| at.index);
        settled.is_some_and(|settled| settled.index.saturating_sub(recorded) >= limit)
    }

    /// A checkpoint that was asked for.
    pub(super) fn checkpoint_now(&mut self, asker: Asker) {
        let settled = self.context.desk.frontier.state().fence.settled();
        let recorded = self.context.outlets.recorded.borrow().clone();
        let recorded = recorded.map(|recorded| recorded.applied);
        let State::Open(open) = &self.state else {
            let _ = asker.send(Err("the database does not exist yet".to_owned()));
            return;
        };
        if recorded == settled {
            let _ = asker.send(Ok(Checkpointed::default()));
            return;
        }
        let has_moved_wal = open.database.backfilled().is_ok_and(|now| !now.complete);
        self.checkpoint.askers.push(Waiting {
            asker,
            has_moved_wal,
            until: None,
        });
        self.checkpoint.retry_at = None;
        self.checkpoint_when_due();
    }

    /// Failures take the node out of service: a main file that cannot be written is a broken disk.
    /// After one there is no other: the kernel reports a page that it could not write once, and the
    /// next sync would succeed without it.
    fn step(&mut self) {
        let begun = Instant::now();
        let ended = self.try_step();
        self.context.desk.freezes.checkpointed(begun.elapsed());
        self.checkpoint.next = ended.unwrap_or_else(|error| self.fail(&error));
    }

    fn fail(&mut self, error: &Error) -> Next {
        let why = format!("the checkpoint failed: {error}");
        self.refuse_askers(&why);
        self.context.health.fail(why);
        Next::Idle
    }

    fn try_step(&mut self) -> Result<Next, Error> {
        let state = self.context.desk.frontier.state();
        let State::Open(open) = &self.state else {
            return Ok(Next::Idle);
        };
        let (now, reach) = (open.database.backfilled()?, open.database.reach()?);
        let size = open.database.page_size();
        if now.left() > piece(size) {
            if reach > now.backfilled {
                return self.move_pieces(now, reach);
            }
            if reach == 0 || now.left() > self.rest_frames_max(size) {
                return self.record_wal(&state);
            }
        }
        // The record before this one is not durable yet, or much of what was moved.
        if self.flush() || self.recorder.is_flushing() || self.recorder.is_saving() {
            return Ok(Next::Soon);
        }
        let wait = if self.is_patient() {
            LONG_WAIT
        } else {
            SHORT_WAIT
        };
        self.finish(&state, wait)
    }

    /// How many frames the last step may have. While one large job follows the other there is
    /// always more left than a piece: what was added since the record. A WAL that is never moved to
    /// its end never starts afresh, and grows for ever.
    fn rest_frames_max(&self, page_size: PageSize) -> u32 {
        if self.is_flooded() {
            u32::MAX
        } else {
            REST_BYTES / page_size.bytes()
        }
    }

    /// Has a record made durable that counts on the WAL as it is: before that no page is moved.
    fn record_wal(&mut self, state: &frontier::State) -> Result<Next, Error> {
        let (State::Open(open), Some(settled)) = (&mut self.state, state.fence.settled()) else {
            return Ok(Next::Idle);
        };
        // The log has its entry durably: nothing is applied before.
        if self.recorder.is_saving() {
            return Ok(Next::Soon);
        }
        let membership = state.settled_membership();
        let encoded = encode_membership(membership);
        let data = state.fence.last_data;
        let draft = open.database.draft_overlay(settled, data, &encoded)?;
        self.recorder.save(Save {
            draft,
            recorded: Recorded {
                applied: settled,
                membership: membership.clone(),
            },
            spool: open.installed.take(),
            askers: Vec::new(),
        });
        Ok(Next::Soon)
    }

    /// Has what was moved made durable, so that the last step has little to wait for. Whether there
    /// was anything.
    fn flush(&mut self) -> bool {
        let State::Open(open) = &self.state else {
            return false;
        };
        let is_much = self.checkpoint.unflushed_bytes > 0;
        if is_much && !self.recorder.is_flushing() {
            self.checkpoint.unflushed_bytes = 0;
            self.recorder.flush(open.database.flusher());
        }
        is_much
    }

    /// Moves a piece of the WAL, or several if it grows by more.
    fn move_pieces(&mut self, now: Backfill, reach: u32) -> Result<Next, Error> {
        let is_flooded = self.is_flooded();
        let (State::Open(open), pace) = (&mut self.state, &mut self.checkpoint) else {
            return Ok(Next::Idle);
        };
        let size = open.database.page_size();
        // Twice what the jobs since the last piece have added: the WAL grows shorter.
        let grown = now.wal_frames.saturating_sub(pace.frames_seen);
        let goal = now.backfilled.saturating_add(grown.saturating_mul(2));
        pace.frames_seen = now.wal_frames;
        let (begun, mut at) = (Instant::now(), now);
        loop {
            let before = at.backfilled;
            at = match open.database.backfill(reach, piece(size)) {
                Ok(at) => at,
                Err(error) => return self.met_damage(error),
            };
            let moved = at.backfilled.saturating_sub(before);
            if moved == 0 {
                break;
            }
            self.context.tally.count(NodeCounter::CheckpointPieces);
            pace.unflushed_bytes += u64::from(moved) * u64::from(size.bytes());
            let is_late = begun.elapsed() > PIECES_TIME_MAX && !is_flooded;
            if at.backfilled >= goal.min(reach) || is_late {
                break;
            }
        }
        // So that the record, and the kernel, never have much to write at once.
        if pace.unflushed_bytes >= FLUSH_BYTES {
            self.flush();
        }
        if at.backfilled == now.backfilled {
            return Ok(self.held_back(at, RETRY));
        }
        self.checkpoint.retry_at = None;
        Ok(Next::Now)
    }

    /// Moves the rest of the WAL into the main file in one go and, if all of it went, has that
    /// recorded before anything is added: only then may the WAL start afresh.
    fn finish(&mut self, state: &frontier::State, wait: Duration) -> Result<Next, Error> {
        let (State::Open(open), Some(settled)) = (&mut self.state, state.fence.settled()) else {
            return Ok(Next::Idle);
        };
        let applied = state.fence.last_applied.expect("settled implies applied");
        self.context.log.persist_committed_blocking(applied)?;
        self.recorder.wait();
        let (data, size) = (state.fence.last_data, open.database.page_size());
        let encoded = encode_membership(state.settled_membership());
        let mut at = open.database.backfilled()?;
        if open.database.reach()? < at.wal_frames && !at.complete {
            open.database
                .draft_overlay(settled, data, &encoded)?
                .save()?;
        }
        while at.left() > piece(size) {
            let before = at.backfilled;
            at = match open.database.backfill(at.wal_frames, piece(size)) {
                Ok(at) => at,
                Err(error) => return self.met_damage(error),
            };
            if at.backfilled == before {
                return Ok(self.held_back(at, RETRY));
            }
            self.context.tally.count(NodeCounter::CheckpointPieces);
        }
        let backfill = match open.database.checkpoint(Checkpoint::Full { wait }) {
            Ok(backfill) => backfill,
            Err(error) => return self.met_damage(error),
        };
        let pause = if wait > SHORT_WAIT { BACK_OFF } else { RETRY };
        if !backfill.complete {
            return Ok(self.held_back(backfill, pause));
        }
        self.context.outlets.blocked.send_replace(None);
        self.context.tally.count(NodeCounter::Checkpoints);
        if !planted::is(Bug::RestartBeforeRecord) {
            self.record_all(state, settled, &encoded)?;
        }
        self.restart_wal(wait, pause)
    }

    /// Records that the main file has everything, and waits for that.
    fn record_all(
        &mut self,
        state: &frontier::State,
        settled: Position,
        membership: &[u8],
    ) -> Result<(), Error> {
        let State::Open(open) = &mut self.state else {
            return Ok(());
        };
        let data = state.fence.last_data;
        let draft = open.database.draft_record(settled, data, membership)?;
        let askers = std::mem::take(&mut self.checkpoint.askers);
        self.recorder.save(Save {
            draft,
            recorded: Recorded {
                applied: settled,
                membership: state.settled_membership().clone(),
            },
            spool: open.installed.take(),
            askers: askers.into_iter().map(Waiting::answer).collect(),
        });
        self.recorder.wait();
        self.checkpoint.applied = Some(settled);
        self.checkpoint.is_wanted = false;
        self.checkpoint.unflushed_bytes = 0;
        Ok(())
    }

    /// Waits for the readers that keep the next transaction from starting the WAL afresh.
    fn restart_wal(&mut self, wait: Duration, pause: Duration) -> Result<Next, Error> {
        let State::Open(open) = &mut self.state else {
            return Ok(Next::Idle);
        };
        let backfill = match open.database.checkpoint(Checkpoint::Restart { wait }) {
            Ok(backfill) => backfill,
            Err(error) => return self.met_damage(error),
        };
        self.checkpoint.retry_at = backfill.is_held_back.then(|| Instant::now() + pause);
        Ok(Next::Idle)
    }

    /// A frame of the WAL is damaged. Nothing of it has reached the main file.
    fn met_damage(&mut self, error: sqlite::Error) -> Result<Next, Error> {
        let State::Open(open) = &self.state else {
            return Err(error.into());
        };
        let damage = open.database.take_damage().ok_or(error)?;
        let why = self.context.repairs.explain(damage);
        Ok(self.try_later(why, RETRY))
    }

    fn held_back(&mut self, backfill: Backfill, pause: Duration) -> Next {
        self.context.tally.count(NodeCounter::CheckpointsIncomplete);
        let why = format!(
            "a reader or a running transfer holds back {} of {} WAL frames",
            backfill.left(),
            backfill.wal_frames
        );
        self.try_later(why, pause)
    }

    fn try_later(&mut self, why: String, pause: Duration) -> Next {
        let now = Instant::now();
        for mut waiting in std::mem::take(&mut self.checkpoint.askers) {
            if *waiting.until.get_or_insert(now + RECORD_WAIT) <= now {
                // Whoever asked may have given up.
                let _ = waiting.asker.send(Err(why.clone()));
            } else {
                self.checkpoint.askers.push(waiting);
            }
        }
        let is_asked = !self.checkpoint.askers.is_empty();
        let pause = if is_asked { RETRY_ASKED } else { pause };
        self.checkpoint.retry_at = Some(now + pause);
        self.context.outlets.blocked.send_replace(Some(why));
        Next::Later
    }

    fn refuse_askers(&mut self, why: &str) {
        for waiting in std::mem::take(&mut self.checkpoint.askers) {
            // As above.
            let _ = waiting.asker.send(Err(why.to_owned()));
        }
    }

    /// The last checkpoint, in one go: nobody waits for anything else.
    pub(super) fn checkpoint_at_end(&mut self) {
        self.recorder.wait();
        if self.context.health.failure().is_some() {
            return;
        }
        let state = self.context.desk.frontier.state();
        if let Err(error) = self.finish(&state, RECORD_WAIT) {
            self.fail(&error);
        }
        self.recorder.wait();
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

impl Waiting {
    fn answer(self) -> (Asker, Checkpointed) {
        let checkpointed = Checkpointed {
            has_moved_wal: self.has_moved_wal,
            has_recorded: true,
        };
        (self.asker, checkpointed)
    }
}

/// How many frames one piece has: few enough for a millisecond, also with pages of 512 bytes, for
/// each frame costs a look into every part of the WAL-index.
fn piece(page_size: PageSize) -> u32 {
    (PIECE_BYTES / page_size.bytes()).clamp(1, PIECE_FRAMES_MAX)
}

const PIECE_BYTES: u32 = 1 << 20;
const PIECE_FRAMES_MAX: u32 = 256;
/// For several pieces at once, after a job that took much longer itself.
const PIECES_TIME_MAX: Duration = Duration::from_millis(20);
/// What may be moved in the last step when jobs follow one another closely: it takes some ten
/// milliseconds.
const REST_BYTES: u32 = 16 << 20;
/// 1 GiB.
const FLOOD_BYTES: u64 = 1 << 30;
/// 16 MiB.
const FLUSH_BYTES: u64 = 16 << 20;
/// An idle node checkpoints what it has, so that its next start is quick.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_millis(1);
/// A leader's other writes wait while a checkpoint waits for a reader, so not for long.
const SHORT_WAIT: Duration = Duration::from_millis(5);
/// Above four times the threshold the WAL's growth is the greater evil.
const LONG_WAIT: Duration = Duration::from_millis(25);
const RETRY: Duration = Duration::from_millis(50);
const RETRY_ASKED: Duration = Duration::from_millis(10);
const BACK_OFF: Duration = Duration::from_secs(1);
/// For a record that somebody asked for: a purge, the end of the process.
const RECORD_WAIT: Duration = Duration::from_millis(200);
