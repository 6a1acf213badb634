//! openraft's state machine: a committed entry becomes a release, an injection, or nothing.
//!
//! Entries are applied one after the other. Nothing is released or injected before the local log
//! has flushed the entry: openraft may ask earlier, and a page that reaches the database before its
//! log record is durable could not be explained after a crash.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, StreamExt as _};
use openraft::storage::EntryResponder;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{oneshot, watch};

use super::admission::is_settled;
use super::error::Error;
use super::fence::Verdict;
use super::flight::{Discard, Flights};
use super::frontier::Frontier;
use super::gate::Origin;
use super::health::Health;
use super::image_receiver::Arrival;
use super::lineage::{Lineage, RESTART};
use super::owner::{Job, Owner, Recorded};
use super::parts::StagedParts;
use super::rebuild;
use super::repair::Repairs;
use super::tally::{NodeCounter, Tally};
use crate::planted::{self, Bug};
use crate::raft::log::Log;
use crate::raft::{
    Applied, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id_of,
    position_of,
};
use crate::sqlite;
use crate::wal::{Delta, Position};

/// What openraft passes around as the content of a snapshot.
pub(crate) enum SnapshotData {
    /// A received database, verified and synced.
    Incoming(Box<Arrival>),
    /// This node's own database; frozen only when it is sent.
    Own,
}

/// Applies committed entries.
pub(crate) struct StateMachine {
    pub(crate) owner: Arc<Owner>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) frontier: Arc<Frontier>,
    pub(crate) log: Log,
    pub(crate) health: Arc<Health>,
    pub(crate) origin: Origin,
    pub(crate) lineage: Arc<Lineage>,
    pub(crate) recorded: watch::Receiver<Option<Recorded>>,
    pub(crate) dir: PathBuf,
    pub(crate) repairs: Arc<Repairs>,
    pub(crate) spool_bytes_max: u64,
    pub(crate) parts: Option<StagedParts>,
    pub(crate) tally: Arc<Tally<NodeCounter>>,
    /// Whether this node was made a member since the process started.
    pub(crate) taken_in: Arc<AtomicBool>,
}

impl StateMachine {
    async fn apply_entry(&mut self, entry: Entry) -> io::Result<Applied> {
        let log_id = entry.log_id;
        let position = position_of(&log_id);
        let durable = self.log.wait_durable(position).await;
        durable.map_err(io::Error::other)?;
        let why = "a leader of a higher term has taken over";
        settled(self.flights.discard_before(position.term, why)).await;
        match entry.payload {
            EntryPayload::Blank => Ok(self.pass(position, None)),
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(log_id), membership);
                Ok(self.pass(position, Some(stored)))
            }
            EntryPayload::Normal(payload) if payload.0.is_empty() => Ok(self.pass(position, None)),
            EntryPayload::Normal(payload) => {
                let delta = Delta::decode(payload.0).map_err(io::Error::other)?;
                self.apply_delta(delta, position).await
            }
        }
    }

    /// An entry that leaves the database alone.
    fn pass(&mut self, position: Position, membership: Option<StoredMembership>) -> Applied {
        let config = membership.as_ref().map(StoredMembership::membership);
        if config.is_some_and(|config| is_settled(config, self.origin.node)) {
            self.taken_in.store(true, Ordering::Release);
        }
        self.frontier.advance(|state| {
            state.fence.pass(position);
            if let Some(membership) = membership {
                state.membership = membership;
            }
        });
        Applied::Nothing
    }

    async fn apply_delta(&mut self, delta: Delta, position: Position) -> io::Result<Applied> {
        let header = delta.header();
        if header.cluster != self.origin.cluster {
            let what = format!("entry {position} belongs to cluster {}", header.cluster);
            return Err(io::Error::other(what));
        }
        self.count(&delta);
        let (sequence, after) = (header.sequence, header.hash_after);
        let from_us = (header.origin, header.epoch) == (self.origin.node, self.origin.epoch);
        let ours = from_us && self.flights.is_waiting(sequence);
        let mut fence = self.frontier.state().fence;
        let verdict = fence.judge(header, position);
        if verdict == Verdict::Accept {
            // Before the next group can begin.
            self.lineage.note(position, after);
        }
        // A leftover part of a flight of ours that was refused earlier says nothing about the one
        // in the air; but whatever changes the database takes its base away.
        if !ours && (!from_us || verdict == Verdict::Accept) {
            let why = "another leader's transaction took its place";
            settled(self.flights.discard_any(why)).await;
        }
        match (verdict, ours) {
            (Verdict::Accept, true) => match self.flights.release(sequence, position) {
                Some(flight) => {
                    settled(Some(flight)).await;
                    self.parts = None;
                }
                // It was given up in this very moment: SQLite rolls back what is committed.
                None => {
                    settled(self.flights.discard_any("this node is shutting down")).await;
                    self.inject(delta, position).await?;
                }
            },
            (Verdict::Accept, false) => self.inject(delta, position).await?,
            // Our own parts as well: the flight may be refused while the log keeps what it had.
            (Verdict::Stage, _) => {
                self.stage(delta)?;
                self.frontier.advance(|state| state.fence = fence);
            }
            (Verdict::Reject, ours) => {
                if ours {
                    let why = "it was executed on another state of the database".to_owned();
                    settled(self.flights.discard(sequence, Discard::NotCommitted(why))).await;
                }
                self.parts = None;
                self.frontier.advance(|state| state.fence = fence);
            }
        }
        Ok(match verdict {
            Verdict::Accept => Applied::Data,
            Verdict::Reject => Applied::Rejected,
            Verdict::Stage => Applied::Staged,
        })
    }

    fn count(&self, delta: &Delta) {
        let stored: usize = delta.page_table().map(|entry| entry.bytes).sum();
        let images = delta.len() as u64 * u64::from(delta.header().page_size.bytes());
        self.tally.count(NodeCounter::Deltas);
        self.tally.add(NodeCounter::DeltaPages, delta.len() as u64);
        self.tally.add(NodeCounter::DeltaImageBytes, images);
        self.tally.add(NodeCounter::DeltaStoredBytes, stored as u64);
        let bytes = delta.bytes().len() as u64;
        self.tally.add(NodeCounter::DeltaBytes, bytes);
    }

    async fn inject(&mut self, delta: Delta, position: Position) -> io::Result<()> {
        let earlier = if delta.header().part.of > 1 {
            self.parts.take()
        } else {
            None
        };
        let staged = earlier.as_ref().map_or(0, StagedParts::len);
        if staged + 1 != delta.header().part.of as usize {
            let what = format!("{staged} parts are staged before the last part at {position}");
            return Err(io::Error::other(what));
        }
        self.parts = None;
        let origin = delta.header().origin;
        let (done, result) = oneshot::channel();
        self.owner.submit(Job::Inject {
            delta,
            earlier,
            position,
            done,
        });
        let result = result
            .await
            .map_err(|_| io::Error::other("the owner thread has ended"))?;
        let Err(error) = result else {
            return Ok(());
        };
        let what = format!("injecting entry {position}: {error}");
        let why = match error {
            Error::Sqlite(sqlite::Error::HashMismatch { .. })
                if self.repairs.has_diverged(position.index, origin).await =>
            {
                Some("the database is not the one that the others have")
            }
            // The others have changed the page meanwhile.
            Error::Sqlite(sqlite::Error::Damaged(_)) => Some("nobody has the page that is damaged"),
            _ => None,
        };
        if let Some(why) = why {
            let what = format!("{why}: {what}");
            rebuild::order(&self.dir, &what).map_err(io::Error::other)?;
            return Err(io::Error::other(format!("{what}; {RESTART}")));
        }
        Err(io::Error::other(what))
    }

    fn stage(&mut self, delta: Delta) -> io::Result<()> {
        if delta.header().part.is_first() {
            self.parts = Some(StagedParts::new(self.dir.clone(), self.spool_bytes_max));
        }
        let parts = self.parts.as_mut();
        let parts = parts.ok_or_else(|| io::Error::other("a part without the first one"))?;
        // Writing to the page cache; it blocks for no longer than copying the part does.
        parts.push(delta)
    }

    async fn install(&mut self, snapshot: SnapshotData) -> io::Result<()> {
        let SnapshotData::Incoming(arrival) = snapshot else {
            // openraft restores transient state machines this way; ours is at this point already.
            return Ok(());
        };
        settled(self.flights.discard_any("a snapshot replaced the database")).await;
        self.parts = None;
        let (done, result) = oneshot::channel();
        self.owner.submit(Job::Install { arrival, done });
        let result = result
            .await
            .map_err(|_| io::Error::other("the owner thread has ended"))?;
        result.map_err(io::Error::other)
    }

    /// Whatever apply cannot do takes the node out of service; openraft stops as well.
    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.health
                .fail(format!("applying the log failed: {error}"));
        }
        result
    }
}

impl Drop for StateMachine {
    /// openraft is done with it some time after Raft has stopped.
    fn drop(&mut self) {
        self.frontier.be_final();
    }
}

impl openraft::storage::RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = RecordBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.frontier.state();
        Ok((
            state.fence.settled().map(log_id_of),
            state.settled_membership().clone(),
        ))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = self.noted(next)?;
            let applied = self.apply_entry(entry).await;
            let applied = self.noted(applied)?;
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> RecordBuilder {
        let mut recorded = self.recorded.clone();
        if planted::is(Bug::PurgedBeforeRecord) {
            let state = self.frontier.state();
            let applied = state.fence.settled().map(|applied| Recorded {
                applied,
                membership: state.settled_membership().clone(),
            });
            recorded = watch::channel(applied).1;
        }
        RecordBuilder { recorded }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let result = self.install(snapshot).await;
        self.noted(result)
    }

    /// Called by the worker that also applies entries, so it must not wait for the owner thread,
    /// which may be waiting for an entry to be applied. The database is frozen by the sender.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<SnapshotData>>, io::Error> {
        let state = self.frontier.state();
        let Some(applied) = state
            .fence
            .settled()
            .filter(|_| state.fence.last_data.is_some())
        else {
            return Ok(None);
        };
        let meta = SnapshotMeta {
            last_log_id: Some(log_id_of(applied)),
            last_membership: state.settled_membership().clone(),
        };
        Ok(Some(Snapshot {
            meta,
            snapshot: SnapshotData::Own,
        }))
    }
}

/// "Building" a snapshot is naming the last durable checkpoint: the database file is the snapshot.
pub(crate) struct RecordBuilder {
    recorded: watch::Receiver<Option<Recorded>>,
}

impl RaftSnapshotBuilder<TypeConfig> for RecordBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot<SnapshotData>, io::Error> {
        let recorded = self.recorded.borrow().clone();
        let recorded = recorded.ok_or_else(|| io::Error::other("no checkpoint record yet"))?;
        let meta = SnapshotMeta {
            last_log_id: Some(log_id_of(recorded.applied)),
            last_membership: recorded.membership,
        };
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Own,
        })
    }
}

/// Waits until SQLite has finished the flight, if there is one.
async fn settled(flight: Option<oneshot::Receiver<()>>) {
    if let Some(flight) = flight {
        // The sender is dropped only with the flight itself.
        let _ = flight.await;
    }
}
