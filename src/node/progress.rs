//! How far each member is: what it said of itself when it was last heard. Every node asks every
//! other one from time to time, so that the last known values of one that is gone are known
//! everywhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use serde::{Deserialize, Serialize};

use super::api::MemberStatus;
use super::running::Inner;
use super::wire::{self, kind};
use crate::transport::Priority;

/// How far a member is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Progress {
    /// The last entry that it has applied.
    pub applied_index: u64,
    /// Entries that are committed, as far as is known here, and not applied there.
    pub lag_entries: u64,
    /// Their bytes, as far as this node's log has them: those that were purged do not count.
    pub lag_bytes: u64,
    /// The entry that its database was last changed by.
    pub data_index: u64,
    /// The hash of its database after that entry, 32 hex digits.
    pub database_hash: String,
    /// Whether its disk is almost full.
    pub lacks_room: bool,
    /// When it was last heard; `None` for this node itself.
    pub last_contact: Option<SystemTime>,
    /// Since when it does not answer.
    pub silent_since: Option<SystemTime>,
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Stand {
    committed: u64,
    applied: u64,
    data: u64,
    hash: u128,
    /// Its disk is almost full.
    lacks_room: bool,
}

/// What is known of the others, by Raft id.
#[derive(Debug, Default)]
pub(crate) struct Stands(Mutex<BTreeMap<u64, Heard>>);

#[derive(Clone, Copy, Debug)]
struct Heard {
    stand: Stand,
    at: SystemTime,
    silent_since: Option<SystemTime>,
}

impl Stands {
    /// Notes what a member said just now.
    fn note(&self, id: u64, stand: Stand) {
        let at = SystemTime::now();
        let heard = Heard {
            stand,
            at,
            silent_since: None,
        };
        self.lock().insert(id, heard);
    }

    /// Notes that a member did not answer.
    fn miss(&self, id: u64) {
        if let Some(heard) = self.lock().get_mut(&id) {
            heard.silent_since.get_or_insert_with(SystemTime::now);
        }
    }

    /// Forgets all but these.
    fn retain(&self, members: &[MemberStatus]) {
        let is_member = |id: u64| members.iter().any(|member| member.raft_id == id);
        self.lock().retain(|id, _| is_member(*id));
    }

    fn of(&self, id: u64) -> Option<Heard> {
        self.lock().get(&id).copied()
    }

    /// Whether a member said that its disk is not almost full.
    pub(crate) fn has_room(&self, id: u64) -> bool {
        self.of(id).is_some_and(|heard| !heard.stand.lacks_room)
    }

    /// The greatest index that any of them knew to be committed.
    fn committed(&self) -> u64 {
        let heard = self.lock();
        let committed = heard.values().map(|heard| heard.stand.committed);
        committed.max().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Heard>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the other members how far they are, again and again.
pub(crate) async fn follow(inner: Arc<Inner>) {
    while inner.health.failure().is_none() {
        let members = inner.known_members();
        inner.stands.retain(&members);
        let mut asked = tokio::task::JoinSet::new();
        for member in members {
            let inner = Arc::clone(&inner);
            asked.spawn(async move { inner.ask_stand(&member, ANSWER_TIME_MAX).await });
        }
        while asked.join_next().await.is_some() {}
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

impl Inner {
    /// How far this node is.
    pub(crate) fn stand(&self) -> Stand {
        let extent = *self.watches.extent.borrow();
        Stand {
            committed: self.known_committed(),
            applied: self.frontier.reached().index(),
            data: extent.data_index,
            hash: extent.hash,
            lacks_room: self.room.shortage().is_some(),
        }
    }

    /// Asks a member how far it is, and takes note of the answer or of its absence.
    pub(crate) async fn ask_stand(&self, member: &MemberStatus, timeout: Duration) {
        if member.raft_id == self.membership.raft_id() {
            return;
        }
        let peer = self.endpoint.peer(&member.raft_addr, Some(member.raft_id));
        let reply = peer
            .request(kind::STAND, Priority::Control, Bytes::new(), timeout)
            .await;
        match reply.map(|reply| wire::decode::<Option<Stand>>(&reply)) {
            Ok(Ok(Some(stand))) => self.stands.note(member.raft_id, stand),
            // It answers, and has nothing to say yet.
            Ok(_) => {}
            Err(_) => self.stands.miss(member.raft_id),
        }
    }

    /// How far a member is, as far as that is known.
    pub(crate) fn progress_of(&self, id: u64) -> Option<Progress> {
        if id == self.membership.raft_id() {
            return Some(self.progress(self.stand(), None, None));
        }
        let heard = self.stands.of(id)?;
        let contact = self.heard_by_raft(id).max(Some(heard.at));
        Some(self.progress(heard.stand, contact, heard.silent_since))
    }

    fn progress(
        &self,
        stand: Stand,
        last_contact: Option<SystemTime>,
        silent_since: Option<SystemTime>,
    ) -> Progress {
        let committed = self.stands.committed().max(self.known_committed());
        Progress {
            applied_index: stand.applied,
            lag_entries: committed.saturating_sub(stand.applied),
            lag_bytes: self.log.bytes_between(stand.applied, committed),
            data_index: stand.data,
            database_hash: format!("{:032x}", stand.hash),
            lacks_room: stand.lacks_room,
            last_contact,
            silent_since,
        }
    }

    fn known_committed(&self) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.cluster_committed.map_or(0, |id| id.index)
    }

    /// When Raft last heard a member: the leader its followers, and they the leader.
    fn heard_by_raft(&self, id: u64) -> Option<SystemTime> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let silence = match &metrics.heartbeat {
            Some(heard) => heard.get(&id).copied().flatten()?.elapsed(),
            None if metrics.current_leader == Some(id) => self.contact.silence()?,
            None => return None,
        };
        SystemTime::now().checked_sub(silence)
    }
}

/// Often enough for somebody who looks at it, and nothing beside the heartbeats.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
