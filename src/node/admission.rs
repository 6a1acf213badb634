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
use super::tally::{NodeCounter, Tally};
use super::wire::{self, Greeting, Introduction, Joined, Joining, kind};
use crate::raft::{Member, Membership};
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
        let admitted = tokio::spawn(async move {
            let _one = self.changing.lock().await;
            self.take_in(&raft, joining).await
        });
        match admitted.await {
            Ok(Ok(())) => Joined::Welcome,
            Ok(Err(why)) => Joined::Refused(why),
            Err(error) => Joined::Refused(error.to_string()),
        }
    }

    async fn take_in(&self, raft: &Raft, joining: Joining) -> Result<(), String> {
        let (id, member) = (joining.raft_id, Member::from(joining.member));
        let config = membership(raft);
        let known = config.get_node(&id).cloned();
        if known.as_ref() == Some(&member) && settled_voters(&config).contains(&id) {
            self.tally.count(NodeCounter::JoinsIgnored);
            return Ok(());
        }
        let namesakes = self.namesakes(&config, id, &member).await?;
        match known {
            Some(known) if known == member => {}
            Some(_) => {
                let nodes = BTreeMap::from([(id, member.clone())]);
                change(raft, ChangeMembers::SetNodes(nodes), false).await?;
                tracing::info!(
                    name = member.name,
                    addr = member.raft_addr,
                    "a node has moved"
                );
            }
            None => {
                let added = raft.add_learner(id, member.clone(), false).await;
                added.map_err(|error| error.to_string())?;
            }
        }
        if settled_voters(&config).contains(&id) {
            return Ok(());
        }
        caught_up(raft, id).await?;
        let voters: BTreeSet<u64> = config.voter_ids().collect();
        let replaced = namesakes.len() as u64;
        let (voters, learners) = namesakes.into_iter().partition(|old| voters.contains(old));
        change(
            raft,
            ChangeMembers::Batch(vec![
                ChangeMembers::AddVoterIds([id].into()),
                ChangeMembers::RemoveVoters(voters),
                ChangeMembers::RemoveNodes(learners),
            ]),
            false,
        )
        .await?;
        self.tally.count(NodeCounter::Joins);
        self.tally.add(NodeCounter::RemovedBeforeJoins, replaced);
        tracing::info!(
            name = member.name,
            addr = member.raft_addr,
            "a node has joined"
        );
        Ok(())
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

    /// Whenever this node leads with a joint configuration that nobody is working on, finishes it.
    pub(crate) async fn finish_changes(self: Arc<Self>) {
        let Some(raft) = self.raft.get() else { return };
        let mut metrics = raft.metrics();
        loop {
            if raft.is_leader() && membership(raft).get_joint_config().len() > 1 {
                let _one = self.changing.lock().await;
                let config = membership(raft);
                if let [_, .., last] = &config.get_joint_config()[..] {
                    let last = ChangeMembers::ReplaceAllVoters(last.clone());
                    if let Err(why) = change(raft, last, false).await {
                        tracing::warn!(why, "a membership change that was left is not finished");
                        tokio::time::sleep(RETRY).await;
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

/// Waits until a learner's log is close to ours.
async fn caught_up(raft: &Raft, id: u64) -> Result<(), String> {
    let mut metrics = raft.metrics();
    let near = metrics.wait_until(|metrics| {
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|peers| peers.get(&id));
        let matched = matched.copied().flatten().map_or(0, |id| id.index);
        matched + CAUGHT_UP_ENTRIES >= metrics.last_log_index.unwrap_or(0) && matched > 0
    });
    match tokio::time::timeout(CATCH_UP_PATIENCE, near).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err("it is still catching up".to_owned()),
    }
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

const GREETING_PATIENCE: Duration = Duration::from_millis(800);
const RETRY: Duration = Duration::from_millis(500);
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);
/// Close enough to become a voter: some heartbeats' worth of groups.
const CAUGHT_UP_ENTRIES: u64 = 64;
