//! The leader's side of removing a member.
//!
//! A member is marked as leaving and loses its vote first, and is removed when it had the time to
//! know: a node that believes to have a vote would ask for the others' for ever. It would not get
//! them (they ask before they raise a term, and hold on to a leader that they hear), so one that is
//! down or cut off cannot disturb either when it comes back; it asks what has become of it. A
//! leader that finds a member so marked finishes the removal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;

use super::Raft;
use super::admission::{change, membership};
use super::api::{AdministrationError, Refusal};
use super::errand::Report;
use super::running::{Inner, Node};
use crate::raft::{Member, Membership, Role};

impl Inner {
    /// Removes the members of this name. Goes on when the asker gives up.
    pub(crate) async fn dismiss(
        self: &Arc<Self>,
        name: String,
        force: bool,
        timeout: Duration,
    ) -> Report {
        let deadline = Instant::now() + timeout;
        if !self.raft.is_leader() {
            return Report::NotLeader;
        }
        let me = self.membership.raft_id();
        let config = membership(&self.raft);
        let own = config.get_node(&me).is_some_and(|node| node.name == name);
        if own {
            if let Err(why) = self.check_majority(&config, me, force).await {
                return Report::Impossible(why);
            }
            return match self.step_down(None, true, timeout).await {
                // Whoever leads now does the rest.
                Report::Done => Report::NotLeader,
                other => other,
            };
        }
        let inner = Arc::clone(self);
        let removal = tokio::spawn(async move { inner.remove(&name, force).await });
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, removal).await {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => Report::Impossible(error.to_string()),
            Err(_) => {
                let why = "too few nodes have agreed to the removal so far; it goes on";
                Report::Refused(Refusal::TimedOut(why.to_owned()))
            }
        }
    }

    async fn remove(self: &Arc<Self>, name: &str, force: bool) -> Report {
        let _one = self.admission.changing.lock().await;
        // One that was just elected changes nothing before it has heard from a quorum.
        if self.leading().is_none() {
            return Report::NotLeader;
        }
        let config = membership(&self.raft);
        let named = config.nodes().filter(|(_, node)| node.name == name);
        for id in named.map(|(id, _)| *id).collect::<Vec<_>>() {
            let report = self.remove_one(id, force).await;
            if !matches!(report, Report::Done) {
                return report;
            }
        }
        Report::Done
    }

    /// Removes one member; to be called by whoever holds the lock on changes.
    pub(crate) async fn remove_one(self: &Arc<Self>, id: u64, force: bool) -> Report {
        let config = membership(&self.raft);
        let Some(member) = config.get_node(&id) else {
            return Report::Done;
        };
        if config.get_joint_config().len() > 1 {
            let why = "another change of the cluster is under way";
            return Report::Refused(Refusal::NotCommitted(why.to_owned()));
        }
        if let Err(why) = self.check_majority(&config, id, force).await {
            return Report::Impossible(why);
        }
        if let Err(why) = self.let_go(&config, id, member).await {
            let why = format!("{} could not be removed: {why}", member.name);
            return Report::Refused(Refusal::NotCommitted(why));
        }
        tracing::info!(name = member.name, "a node was removed from the cluster");
        Report::Done
    }

    async fn let_go(&self, config: &Membership, id: u64, member: &Member) -> Result<(), String> {
        let leaving = Member {
            role: Role::Leaving,
            ..member.clone()
        };
        let mut changes = vec![ChangeMembers::SetNodes(BTreeMap::from([(id, leaving)]))];
        if config.voter_ids().any(|voter| voter == id) {
            changes.push(ChangeMembers::RemoveVoters(BTreeSet::from([id])));
        }
        change(&self.raft, ChangeMembers::Batch(changes), true).await?;
        if self.answers(id) {
            // As long as it takes a node that is well, and no error if it is not.
            let told = told(&self.raft, id);
            let _ = tokio::time::timeout(FAREWELL, told).await;
        }
        let removed = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
        change(&self.raft, removed, false).await
    }

    /// Whether those that answer are a majority of the voters that would remain. They are asked
    /// now: one that answered a moment ago may be the reason why somebody tidies up.
    async fn check_majority(
        self: &Arc<Self>,
        config: &Membership,
        id: u64,
        force: bool,
    ) -> Result<(), String> {
        let voters: BTreeSet<u64> = config.voter_ids().collect();
        if !voters.contains(&id) {
            return Ok(());
        }
        let mut rest = self.known_members();
        rest.retain(|member| member.voter && member.raft_id != id);
        if rest.is_empty() {
            return Err("the last voter cannot be removed".to_owned());
        }
        if force {
            return Ok(());
        }
        let voters = rest.len();
        let asked: Vec<_> = rest
            .into_iter()
            .map(|member| {
                let inner = Arc::clone(self);
                tokio::spawn(async move { inner.ask(member, ASKED).await })
            })
            .collect();
        let mut answering = 0;
        for answer in asked {
            let there = answer.await.is_ok_and(|member| member.reachable);
            answering += usize::from(there);
        }
        if answering * 2 > voters {
            return Ok(());
        }
        Err(format!(
            "of the {voters} voters that would remain only {answering} can be reached, which is \
             no majority: the cluster would stop; bring the others up first, or add \
             \"force\":true"
        ))
    }
}

impl Node {
    /// Has the cluster remove this node, before it closes. Tries a few times, as rqlite does.
    ///
    /// # Errors
    ///
    /// Why it is still a member.
    pub(crate) async fn leave(&self) -> Result<(), AdministrationError> {
        let name = &self.shell.membership.member.name;
        let caller = &self.shell.options.join_as;
        let mut tries = 1;
        loop {
            let removal = self.remove_member(name.clone(), false, LEAVE_PATIENCE, caller.clone());
            match removal.await {
                // Answered when the others have agreed to it.
                Ok(()) => return Ok(()),
                Err(error @ AdministrationError::Impossible(_)) => return Err(error),
                Err(error) if tries >= LEAVE_TRIES => return Err(error),
                Err(_) => {}
            }
            tries += 1;
            tokio::time::sleep(LEAVE_INTERVAL).await;
        }
    }
}

/// Waits until a node has all of our log, and with it the news that it has no vote any more.
async fn told(raft: &Raft, id: u64) {
    let mut metrics = raft.metrics();
    let last = metrics.borrow_watched().last_log_index;
    let has_all = metrics.wait_until(|metrics| {
        let peers = metrics.replication.as_ref();
        let matched = peers.and_then(|peers| peers.get(&id)).copied().flatten();
        matched.map(|at| at.index) >= last
    });
    // An error means that Raft has stopped, which others notice.
    let _ = has_all.await;
}

const LEAVE_TRIES: u32 = 5;
const LEAVE_INTERVAL: Duration = Duration::from_millis(250);
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
const FAREWELL: Duration = Duration::from_secs(1);
/// Far longer than a node that is well takes to answer.
const ASKED: Duration = Duration::from_secs(2);
