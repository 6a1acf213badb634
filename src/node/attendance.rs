//! Being a member: a node's own side of it, from its first request to join to its removal.
//!
//! ```text
//!            -join                    the leader said so
//!   Absent ---------> asks to join ----------------------> Settled
//!     |                    |  attempts used up                |  silence, another address,
//!     |                    v                                  |  or no place in the membership
//!     |                  fails                                v
//!     +-------------------------------------------------> asks whether it still is a member
//!                                                             |  no
//!                                                             v
//!                                          dismissed; right after a start with -join: joins again
//! ```
//!
//! Nobody tells a node that it was removed: others stop talking to it. So whoever hears nothing, or
//! finds no place for itself in the membership, asks all that it knows until a leader that is
//! confirmed to be one has answered. The same question tells the leader where the node is now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;

use super::admission::{is_settled, membership};
use super::running::Inner;
use super::search::Found;
use super::wire::{self, Joined, Joining, kind};
use crate::raft::Role;
use crate::transport::Priority;

/// What the membership that this node has says about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Nothing; `nobody`: there is no membership at all.
    Absent { nobody: bool },
    /// It is a member on its way in or out, or at another address.
    Amiss,
    /// It is a member, as it should be.
    Settled,
}

/// What this node still may do, and what it has tried.
struct Attempts {
    /// It may ask to become a member: right after a start with -join, and never later, or a node
    /// that is removed would come back by itself.
    may_join: bool,
    /// The leader has said that this node, which was a member, is none.
    was_removed: bool,
    made: u32,
    /// How often nobody knew a leader.
    leaderless: u32,
    begun: Instant,
    /// Why the last one failed.
    last: String,
}

/// Keeps this node a member, until it fails or is removed.
pub(crate) async fn attend(inner: Arc<Inner>) {
    let mut attempts = Attempts {
        may_join: !inner.membership.search.is_idle(),
        was_removed: false,
        made: 0,
        leaderless: 0,
        begun: Instant::now(),
        last: "none of them answered".to_owned(),
    };
    // Before Raft has answered once, its metrics say nothing.
    if inner.raft.with_raft_state(|_| ()).await.is_err() {
        return;
    }
    // A membership from an earlier life: whether it still holds is asked first.
    let mut first = true;
    while inner.health.failure().is_none() && inner.health.dismissal().is_none() {
        let place = inner.place();
        attempts.may_join &= !inner.membership.was_taken_in();
        if place == Place::Settled && inner.is_in_touch() {
            attempts.may_join = false;
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        }
        let asks_to_join = match place {
            Place::Absent { nobody: true } => attempts.may_join,
            Place::Absent { nobody: false } => {
                attempts.may_join && (attempts.was_removed || !first)
            }
            Place::Amiss | Place::Settled => attempts.may_join && attempts.was_removed,
        };
        first = false;
        if place == Place::Settled && attempts.begun.elapsed() < SILENCE_MAX {
            // It may well hear from its leader yet.
        } else if asks_to_join {
            inner.try_to_join(&mut attempts).await;
            continue;
        } else if place != (Place::Absent { nobody: true }) {
            inner.report(&mut attempts).await;
        }
        inner.pause(place, LOOK_INTERVAL).await;
    }
    inner.withdraw().await;
}

impl Attempts {
    fn are_used_up(&self, inner: &Inner) -> bool {
        let search = &inner.membership.search;
        // Those who start a cluster together have agreed on how long they wait for each other.
        let waits = search.bootstrap_expect > 0 && self.begun.elapsed() < search.time_max;
        self.made >= search.attempts && !waits
    }
}

impl Inner {
    fn place(&self) -> Place {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let config = metrics.membership_config.membership();
        match config.get_node(&metrics.id) {
            None => Place::Absent {
                nobody: config.nodes().next().is_none(),
            },
            Some(known)
                if known.is_at_the_place_of(self.member()) && is_settled(config, metrics.id) =>
            {
                Place::Settled
            }
            Some(_) => Place::Amiss,
        }
    }

    /// Whether this node leads, or has heard its leader not long ago.
    fn is_in_touch(&self) -> bool {
        let heard = self.contact.silence();
        self.raft.is_leader() || heard.is_some_and(|silence| silence < SILENCE_MAX)
    }

    /// Waits until this node was a member.
    async fn is_taken_in(&self) {
        while !self.membership.was_taken_in() {
            tokio::time::sleep(TAKEN_IN_INTERVAL).await;
        }
    }

    /// Asks once to become a member, and gives up when that was the last attempt.
    async fn try_to_join(&self, attempts: &mut Attempts) {
        let place = self.place();
        // What is not answered yet is forgotten once this node is a member without it: the node may
        // have been removed when the next one is asked, and the question would undo that.
        let answer = tokio::select! {
            answer = self.ask_around(false, &mut attempts.last) => answer,
            () = self.is_taken_in() => return,
        };
        match answer {
            Some(Joined::Welcome) => {
                attempts.may_join = false;
                tracing::info!("joined the cluster");
                self.check_role();
                // The news is on its way here.
                return self.pause(place, LOOK_INTERVAL).await;
            }
            Some(Joined::CatchingUp) => return,
            // The cluster is there, and nobody leads it now.
            Some(Joined::NotLeader(_)) => {
                NO_LEADER.clone_into(&mut attempts.last);
                attempts.leaderless += 1;
                if attempts
                    .leaderless
                    .is_multiple_of(LEADERLESS_BEFORE_WARNING)
                {
                    tracing::warn!(
                        "no leader has taken this node in yet; a majority of the cluster's voters \
                         must be running, and know what they have acknowledged"
                    );
                }
                return self.pause(place, self.membership.search.interval).await;
            }
            _ => attempts.made += 1,
        }
        if !attempts.are_used_up(self) {
            return self.pause(place, self.membership.search.interval).await;
        }
        attempts.may_join = false;
        if attempts.was_removed {
            return self.health.dismiss(REMOVED.to_owned());
        }
        self.health.fail(format!(
            "it could not join the cluster in {} attempts (-join-attempts, -join-interval): {}",
            attempts.made, attempts.last
        ));
    }

    /// Asks whether this node still is a member, and tells where it is.
    async fn report(&self, attempts: &mut Attempts) {
        let mut why = String::new();
        match self.ask_around(true, &mut why).await {
            // Heard from its leader: removed after this start, not before it.
            Some(Joined::Removed) if attempts.may_join && self.contact.silence().is_none() => {
                attempts.was_removed = true;
                let what = "the cluster has removed this node, which asks to be taken in again \
                            because it was started with -join";
                tracing::warn!("{what}");
            }
            Some(Joined::Removed) => self.health.dismiss(REMOVED.to_owned()),
            Some(Joined::Welcome) => self.check_role(),
            _ => {}
        }
    }

    /// Asks the leader, wherever it is. `NotLeader`: those that answered know none. `None`: nobody
    /// has answered, or only with a reason against it, which is `why`.
    async fn ask_around(&self, returns: bool, why: &mut String) -> Option<Joined> {
        let joining = Joining {
            raft_id: self.membership.raft_id(),
            member: self.member().clone().into(),
            returns,
            caller: self.membership.search.caller.clone(),
        };
        if self.raft.is_leader() {
            return Some(Arc::clone(&self.admission).welcome(joining).await);
        }
        let body = Bytes::from(wire::encode(&joining));
        let mut asked: Vec<String> = Vec::new();
        let mut next = self.acquaintances(returns).await;
        let mut leaderless = false;
        while let Some(addr) = next.pop() {
            if asked.contains(&addr) || asked.len() >= ASKED_MAX {
                continue;
            }
            asked.push(addr.clone());
            let peer = self.endpoint.peer(&addr, None);
            let reply = peer.request(kind::JOIN, Priority::Control, body.clone(), JOIN_PATIENCE);
            let answer = match reply.await {
                Ok(reply) => wire::decode::<Joined>(&reply),
                Err(error) => Err(error.to_string()),
            };
            match answer {
                Ok(Joined::NotLeader(leader)) => {
                    leaderless = true;
                    next.extend(leader);
                }
                Ok(Joined::Unauthorized(reason)) => {
                    self.membership.note_refusal(&addr, Some(&reason));
                    *why = reason;
                    return None;
                }
                Ok(Joined::Refused(reason)) => {
                    tracing::info!(leader = addr, why = reason, "not joined yet");
                    *why = format!("{addr}: {reason}");
                    return None;
                }
                Ok(answer) => return Some(answer),
                Err(error) => tracing::debug!(addr, error, "cannot be asked"),
            }
        }
        leaderless.then_some(Joined::NotLeader(None))
    }

    /// Whoever may know the leader, the best to ask last. A member does not need others to find it.
    async fn acquaintances(&self, returns: bool) -> Vec<String> {
        let me = self.membership.raft_id();
        let config = membership(&self.raft);
        let others = config.nodes().filter(|(id, _)| **id != me);
        let mut known: Vec<String> = others
            .map(|(id, member)| self.places.of(*id, &member.raft_addr))
            .collect();
        let search = &self.membership.search;
        let given = if returns {
            search.join.clone()
        } else {
            match search.look(false).await {
                Found::Nodes(given) => given,
                Found::Alone | Found::Silence => Vec::new(),
            }
        };
        known.extend(given.into_iter().rev());
        known.retain(|addr| *addr != self.member().raft_addr);
        known
    }

    /// Waits until this node's place changes, but not longer than this.
    async fn pause(&self, place: Place, at_most: Duration) {
        let mut metrics = self.raft.server_metrics();
        let changed = async {
            while self.place() == place {
                // Raft has stopped: there is nothing to wait for.
                if metrics.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        // Either way it is time to look again.
        let _ = tokio::time::timeout(at_most, changed).await;
    }

    /// Says so if the flags want another role than the cluster has on record: it counts.
    fn check_role(&self) {
        let config = membership(&self.raft);
        let known = config.get_node(&self.membership.raft_id());
        let Some(known) = known.filter(|known| known.role != self.member().role) else {
            return;
        };
        let what = if known.role == Role::Replica {
            "this node is a replica although -raft-non-voter is not given; to change that, remove \
             it from the cluster and start it with -join"
        } else {
            "this node votes although -raft-non-voter is given; to change that, remove it from the \
             cluster and start it with -join"
        };
        tracing::warn!("{what}");
    }

    /// Takes a node that was removed out of what the others do.
    async fn withdraw(&self) {
        if self.health.dismissal().is_none() {
            return;
        }
        // It would ask for votes for ever.
        self.raft.runtime_config().elect(false);
        if self.options.stops_when_removed
            && let Err(error) = self.raft.shutdown().await
        {
            tracing::warn!(%error, "Raft did not stop in order");
        }
    }
}

const LEADERLESS_BEFORE_WARNING: u32 = 3;
const NO_LEADER: &str = "they know no leader";
const REMOVED: &str = "it was removed from the cluster; start it again with -join to have it \
                       taken in again, or give it an empty data directory";
/// The leader answers a join when the newcomer has caught up, or after this minus a margin.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Far shorter than an address that does not answer is waited for.
const TAKEN_IN_INTERVAL: Duration = Duration::from_millis(50);
/// A leader is heard several times a second, and another one elected within one or two.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Redirects included.
const ASKED_MAX: usize = 64;
