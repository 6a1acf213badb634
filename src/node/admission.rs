//! The leader's side of joining: learner first, voter when it has caught up.
//!
//! A change of voters is two log entries, driven by whoever asked for it. If that one goes away in
//! between, the joint configuration stays, in which a majority of the old and of the new voters is
//! needed. So changes run in tasks of their own, and every leader finishes what it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;

use super::Raft;
use super::rounds;
use super::tally::{NodeCounter, Tally};
use super::wire::{self, Greeting, Introduction, Joined, Joining, kind};
use crate::raft::{Member, Membership, Role};
use crate::transport::{Endpoint, Priority};

/// Takes nodes in, one at a time.
pub(crate) struct Admission {
    raft: Arc<OnceLock<Raft>>,
    endpoint: Endpoint,
    raft_id: u64,
    tally: Arc<Tally<NodeCounter>>,
    /// Held by whoever changes the membership or hands the leadership over.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Admission {
    pub(crate) fn new(
        raft: &Arc<OnceLock<Raft>>,
        endpoint: &Endpoint,
        raft_id: u64,
        tally: &Arc<Tally<NodeCounter>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            raft: Arc::clone(raft),
            endpoint: endpoint.clone(),
            raft_id,
            tally: Arc::clone(tally),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// The answer to whoever asks to join where this node does not lead.
    pub(crate) fn leads_elsewhere(&self) -> Option<Joined> {
        match self.raft.get() {
            None => Some(Joined::NotLeader(None)),
            Some(raft) if !raft.is_leader() => Some(Joined::NotLeader(leader_addr(raft))),
            Some(_) => None,
        }
    }

    /// Takes a node in. It goes on when the asker gives up; asking again is harmless.
    pub(crate) async fn welcome(self: Arc<Self>, joining: Joining) -> Joined {
        if let Some(elsewhere) = self.leads_elsewhere() {
            return elsewhere;
        }
        let Some(raft) = self.raft.get().cloned() else {
            return Joined::NotLeader(None);
        };
        let id = joining.raft_id;
        let still = raft.clone();
        let admitted = tokio::spawn(async move {
            let begun = {
                let _one = self.changing.lock().await;
                self.take_in(&raft, joining).await?
            };
            if let Some(answer) = begun {
                return Ok(answer);
            }
            // As long as the database is large; others may come and go meanwhile.
            if !caught_up(&raft, id).await {
                return Ok(Joined::CatchingUp);
            }
            let _one = self.changing.lock().await;
            self.complete(&raft, id).await
        });
        match admitted.await {
            Ok(Ok(joined)) => joined,
            Ok(Err(_)) if !still.is_leader() => Joined::NotLeader(leader_addr(&still)),
            Ok(Err(why)) => Joined::Refused(why),
            Err(error) => Joined::Refused(error.to_string()),
        }
    }

    /// Whether a node is a member that stays one.
    pub(crate) fn knows(&self, id: u64) -> bool {
        let config = self.raft.get().map(membership);
        config.is_some_and(|config| staying(&config, id).is_some())
    }

    /// Brings a node in as far as it goes before it has caught up; `None`: the rest is left to do.
    async fn take_in(&self, raft: &Raft, joining: Joining) -> Result<Option<Joined>, String> {
        let id = joining.raft_id;
        let config = membership(raft);
        let Some(known) = staying(&config, id).cloned() else {
            if joining.returns {
                return gone(raft, id).await.map(Some);
            }
            let member = Member::from(joining.member);
            return self.add(raft, &config, id, &member).await.map(|()| None);
        };
        // What it is a member for was decided when it joined.
        let member = Member {
            role: known.role,
            ..Member::from(joining.member)
        };
        let stays = known.is_at_the_place_of(&member);
        if !stays {
            self.note_move(raft, id, &known, &member).await?;
        }
        if is_settled(&config, id) {
            if stays {
                self.tally.count(NodeCounter::JoinsIgnored);
            }
            return Ok(Some(Joined::Welcome));
        }
        Ok(None)
    }

    /// Makes a node a member that receives the log and does not vote.
    async fn add(
        &self,
        raft: &Raft,
        config: &Membership,
        id: u64,
        member: &Member,
    ) -> Result<(), String> {
        self.namesakes(config, id, member).await?;
        self.check_place(id, member).await?;
        if config.get_node(&id).is_some() {
            // Its removal was left half done, and it is to come back.
            let left = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
            change(raft, left, false).await?;
        }
        let added = raft.add_learner(id, member.clone(), false).await;
        added.map(drop).map_err(|error| error.to_string())
    }

    async fn note_move(
        &self,
        raft: &Raft,
        id: u64,
        from: &Member,
        to: &Member,
    ) -> Result<(), String> {
        if from.name != to.name {
            return Err(format!("it is known here as {:?}", from.name));
        }
        if id != self.raft_id {
            self.check_place(id, to).await?;
        }
        let nodes = BTreeMap::from([(id, to.clone())]);
        change(raft, ChangeMembers::SetNodes(nodes), false).await?;
        if from.raft_addr != to.raft_addr {
            self.tally.count(NodeCounter::RemovedBeforeJoins);
        }
        tracing::info!(
            name = to.name,
            addr = to.raft_addr,
            http_addr = to.http_addr,
            "a node has moved"
        );
        Ok(())
    }

    /// Gives a member that has caught up the vote, if it is to have one, and removes those whose
    /// place it takes.
    async fn complete(&self, raft: &Raft, id: u64) -> Result<Joined, String> {
        let config = membership(raft);
        let member = staying(&config, id).ok_or("it was removed meanwhile")?;
        let namesakes = self.namesakes(&config, id, member).await?;
        let voters: BTreeSet<u64> = config.voter_ids().collect();
        let replaced = namesakes.len() as u64;
        let (old_voters, learners) = namesakes.into_iter().partition(|old| voters.contains(old));
        let mut changes = vec![
            ChangeMembers::RemoveVoters(old_voters),
            ChangeMembers::RemoveNodes(learners),
        ];
        if member.role == Role::Voter {
            changes.push(ChangeMembers::AddVoterIds(BTreeSet::from([id])));
        }
        if member.role == Role::Voter || replaced > 0 {
            change(raft, ChangeMembers::Batch(changes), false).await?;
        }
        self.tally.count(NodeCounter::Joins);
        self.tally.add(NodeCounter::RemovedBeforeJoins, replaced);
        tracing::info!(
            name = member.name,
            addr = member.raft_addr,
            role = ?member.role,
            "a node has joined"
        );
        Ok(Joined::Welcome)
    }

    /// A node that cannot be reached where it says that it is would be a member in name only.
    async fn check_place(&self, id: u64, member: &Member) -> Result<(), String> {
        if self.is_alive(id, member).await {
            return Ok(());
        }
        Err(format!(
            "the leader does not reach it at {}, the address that it advertises (-raft-adv-addr)",
            member.raft_addr
        ))
    }

    /// Members of the same name, which the newcomer replaces: it lost its data directory. One that
    /// is alive is not replaced; then two nodes were given one name.
    async fn namesakes(
        &self,
        config: &Membership,
        id: u64,
        member: &Member,
    ) -> Result<BTreeSet<u64>, String> {
        let namesakes = config
            .nodes()
            .filter(|(other, node)| **other != id && node.name == member.name);
        let mut replaced = BTreeSet::new();
        for (old, node) in namesakes {
            if *old == self.raft_id || self.is_alive(*old, node).await {
                return Err(format!(
                    "a node named {:?} is alive at {}; start this one with another -node-id",
                    node.name, node.raft_addr
                ));
            }
            tracing::info!(
                name = node.name,
                "a node returns with an empty data directory"
            );
            replaced.insert(*old);
        }
        Ok(replaced)
    }

    async fn is_alive(&self, id: u64, node: &Member) -> bool {
        let greeting = Greeting {
            raft_id: self.raft_id,
            member: Member::default().into(),
            bootstrap_expect: 0,
            caller: None,
        };
        let body = Bytes::from(wire::encode(&greeting));
        let peer = self.endpoint.peer(&node.raft_addr, Some(id));
        let reply = peer
            .request(kind::GREETING, Priority::Control, body, GREETING_PATIENCE)
            .await;
        reply.is_ok_and(|reply| {
            wire::decode::<Introduction>(&reply).is_ok_and(|answer| answer.raft_id == id)
        })
    }

    /// Whenever this node leads and finds a change of the members that nobody is working on,
    /// finishes it: a joint configuration, or a member that has lost its vote to be removed.
    pub(crate) async fn finish_changes(self: Arc<Self>) {
        let Some(raft) = self.raft.get() else { return };
        let mut metrics = raft.server_metrics();
        loop {
            let is_left = {
                let metrics = metrics.borrow_and_update();
                let config = metrics.membership_config.membership();
                metrics.state.is_leader() && rest_of_change(config).is_some()
            };
            if is_left {
                let _one = self.changing.lock().await;
                if let Some(rest) = rest_of_change(&membership(raft)) {
                    match change(raft, rest, false).await {
                        Ok(()) => tracing::info!("a membership change that was left is finished"),
                        Err(why) => {
                            let what = "a membership change that was left is not finished";
                            tracing::warn!(why, "{what}");
                            tokio::time::sleep(RETRY).await;
                            continue;
                        }
                    }
                }
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The leader's Raft address, if it is known.
pub(crate) fn leader_addr(raft: &Raft) -> Option<String> {
    let leader = raft.metrics().borrow_watched().current_leader?;
    membership(raft)
        .get_node(&leader)
        .map(|node| node.raft_addr.clone())
}

/// The effective membership.
pub(crate) fn membership(raft: &Raft) -> Membership {
    let config = raft.metrics().borrow_watched().membership_config.clone();
    config.membership().clone()
}

/// Those who vote and are not on their way in or out.
pub(crate) fn settled_voters(config: &Membership) -> BTreeSet<u64> {
    match &config.get_joint_config()[..] {
        [voters] => voters.clone(),
        _ => BTreeSet::new(),
    }
}

/// A member that is not being removed.
fn staying(config: &Membership, id: u64) -> Option<&Member> {
    let known = config.get_node(&id);
    known.filter(|known| known.role != Role::Leaving)
}

/// Whether nothing is left to do for a member.
pub(crate) fn is_settled(config: &Membership, id: u64) -> bool {
    let Some(member) = staying(config, id) else {
        return false;
    };
    let namesake = |(other, node): (&u64, &Member)| *other != id && node.name == member.name;
    match member.role {
        Role::Leaving => false,
        Role::Replica => !config.nodes().any(namesake),
        Role::Voter => settled_voters(config).contains(&id),
    }
}

/// What completes a change that was begun.
fn rest_of_change(config: &Membership) -> Option<ChangeMembers<u64, Member>> {
    if let [_, .., last] = &config.get_joint_config()[..] {
        return Some(ChangeMembers::ReplaceAllVoters(last.clone()));
    }
    let leaving = config
        .nodes()
        .filter(|(_, node)| node.role == Role::Leaving);
    let leaving: BTreeSet<u64> = leaving.map(|(id, _)| *id).collect();
    (!leaving.is_empty()).then_some(ChangeMembers::RemoveNodes(leaving))
}

/// The answer to a node that takes itself for a member and is none. It will act on it, so it must
/// come from a leader that is one, and about something that is committed.
async fn gone(raft: &Raft, id: u64) -> Result<Joined, String> {
    rounds::confirmed(raft, CONFIRM_PATIENCE).await?;
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let committed = &metrics.committed_membership_config;
    if staying(committed.membership(), id).is_some() {
        return Err("it is being removed".to_owned());
    }
    Ok(Joined::Removed)
}

/// Waits a while until a learner's log is close to ours.
async fn caught_up(raft: &Raft, id: u64) -> bool {
    let mut metrics = raft.metrics();
    let near = metrics.wait_until(|metrics| {
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|peers| peers.get(&id));
        let matched = matched.copied().flatten().map_or(0, |id| id.index);
        matched + CAUGHT_UP_ENTRIES >= metrics.last_log_index.unwrap_or(0) && matched > 0
    });
    let waited = tokio::time::timeout(CATCH_UP_PATIENCE, near).await;
    matches!(waited, Ok(Ok(_)))
}

/// Changes the membership; `retain`: who loses the vote stays as a learner.
pub(crate) async fn change(
    raft: &Raft,
    change: ChangeMembers<u64, Member>,
    retain: bool,
) -> Result<(), String> {
    let changed = raft.change_membership(change, retain).await;
    changed.map(drop).map_err(|error| error.to_string())
}

/// A machine that is busy answers late, and one that is alive must not be taken for dead.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);
const CONFIRM_PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(500);
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);
/// Close enough to become a voter: some heartbeats' worth of groups.
const CAUGHT_UP_ENTRIES: u64 = 64;
