//! What a node says about itself and about the others.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::api::{MemberRole, MemberStatus, NodeStatus, Refusal};
use super::image::ImageReader;
use super::read_index::{Asking, Purpose};
use super::running::{Inner, Node};
use super::wire::{self, Greeting, Introduction, kind};
use crate::raft::{Member, Role};
use crate::sqlite::StartLock;
use crate::transport::Priority;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

impl Node {
    /// This node's own state.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let shell = &self.shell;
        let member = &shell.membership.member;
        let mut status = NodeStatus {
            raft_id: shell.membership.raft_id(),
            name: member.name.clone(),
            state: "Follower".to_owned(),
            data_dir: shell.options.data_dir.display().to_string(),
            raft_addr: member.raft_addr.clone(),
            http_addr: member.http_addr.clone(),
            out_of_service: shell.health.failure(),
            removed: shell.health.dismissal(),
            database_path: database_path(&shell.options.data_dir),
            ..NodeStatus::default()
        };
        if let Some(inner) = shell.inner.get() {
            inner.fill(&mut status);
        }
        status
    }

    /// All members, each asked whether it is there; waits for the slowest up to the time-out.
    pub async fn members(&self, timeout: Duration) -> Vec<MemberStatus> {
        if self.shell.health.dismissal().is_some() {
            return vec![self.removed()];
        }
        let Ok(inner) = self.inner() else {
            return Vec::new();
        };
        let mut asked = Vec::new();
        for member in inner.known_members() {
            let inner = std::sync::Arc::clone(inner);
            asked.push(tokio::spawn(
                async move { inner.ask(member, timeout).await },
            ));
        }
        let mut members = Vec::new();
        for answer in asked {
            members.extend(answer.await);
        }
        members
    }

    /// All that a node that was removed still knows for sure: itself.
    fn removed(&self) -> MemberStatus {
        let member = &self.shell.membership.member;
        MemberStatus {
            raft_id: self.shell.membership.raft_id(),
            name: member.name.clone(),
            raft_addr: member.raft_addr.clone(),
            http_addr: member.http_addr.clone(),
            role: MemberRole::Removed,
            reachable: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..MemberStatus::default()
        }
    }

    /// The leader, if this node heard of one not long ago; nobody is asked.
    #[must_use]
    pub fn leader(&self) -> Option<MemberStatus> {
        self.inner().ok()?.leader()
    }

    /// The leader, if it is another node; `None` if it is this one.
    ///
    /// # Errors
    ///
    /// [`Refusal::LeaderNotFound`], and what keeps this node from serving.
    pub fn leader_elsewhere(&self) -> Result<Option<MemberStatus>, Refusal> {
        let leader = self.inner()?.leader().ok_or(Refusal::LeaderNotFound)?;
        let me = self.shell.membership.raft_id();
        Ok(Some(leader).filter(|leader| leader.raft_id != me))
    }

    /// The leader, asked whether it is there for up to the time-out.
    pub async fn leader_asked(&self, timeout: Duration) -> Option<MemberStatus> {
        let inner = self.inner().ok()?;
        Some(inner.ask(inner.leader()?, timeout).await)
    }

    /// Whether this node is a replica: one that never votes, and answers reads from its own copy
    /// where the caller leaves the choice.
    #[must_use]
    pub fn is_replica(&self) -> bool {
        let shell = &self.shell;
        shell.inner.get().map_or(shell.options.replica, |inner| {
            let role = inner.role_of(shell.membership.raft_id());
            role == Some(MemberRole::Replica)
        })
    }

    /// Whether the leader is there, asked over the network unless it is this node.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub async fn leader_answers(&self, timeout: Duration) -> Result<(), String> {
        let inner = self.inner().map_err(|refusal| refusal.to_string())?;
        let leader = inner.leader().ok_or("there is no leader")?;
        let leader = inner.ask(leader, timeout).await;
        leader.error.map_or(Ok(()), Err)
    }

    /// Waits until everything is applied here that was committed when this was called. The leader
    /// is asked what that is: this node may have been away, and know of nothing since.
    ///
    /// # Errors
    ///
    /// The text that says what is missing when the time is up.
    pub async fn catch_up(&self, timeout: Duration) -> Result<(), String> {
        let asking = Asking {
            purpose: Purpose::Readiness,
            caller: None,
        };
        let deadline = Instant::now() + timeout;
        let caught_up = self.catch_up_with_leader(&asking, timeout, deadline).await;
        caught_up.map_err(|refusal| refusal.to_string())
    }

    /// A frozen image of the database, page by page.
    ///
    /// # Errors
    ///
    /// [`Refusal`] while there is no database.
    pub async fn image(&self) -> Result<ImageReader, Refusal> {
        let missing = || Refusal::NotReady("the database does not exist yet".to_owned());
        let inner = self.inner()?;
        if inner.frontier.reached().data.is_none() {
            return Err(missing());
        }
        let held = inner.owner.hold().await.ok_or_else(missing)?;
        ImageReader::new(held).ok_or_else(missing)
    }
}

fn database_path(dir: &std::path::Path) -> String {
    dir.join(StartLock::FILE_NAME).display().to_string()
}

impl Inner {
    fn fill(&self, status: &mut NodeStatus) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (state, extent) = (self.frontier.state(), *self.watches.extent.borrow());
        status.cluster_id = self
            .membership
            .cluster()
            .map_or_else(String::new, |id| id.to_string());
        status.state = format!("{:?}", metrics.state);
        status.term = metrics.current_term;
        status.last_log_index = metrics.last_log_index.unwrap_or(0);
        status.committed_index = metrics.local_committed.map_or(0, |id| id.index);
        status.applied_index = state.fence.last_applied.map_or(0, |at| at.index);
        status.applied_term = state.fence.last_applied.map_or(0, |at| at.term);
        status.applied_at = self.frontier.advanced_at();
        status.data_index = state.fence.last_data.map_or(0, |at| at.index);
        status.purged_index = metrics.purged.map_or(0, |id| id.index);
        let recorded = self.watches.recorded.borrow();
        let recorded = recorded.as_ref().map(|recorded| recorded.applied);
        status.checkpoint_index = recorded.map_or(0, |applied| applied.index);
        status.checkpoint_term = recorded.map_or(0, |applied| applied.term);
        let membership = metrics.membership_config.log_id();
        status.membership_index = membership.as_ref().map_or(0, |id| id.index);
        status.footprint = self.footprints.measure(&self.options.data_dir);
        status.database_hash = format!("{:032x}", extent.hash);
        status.page_count = extent.page_count;
        status.page_size = extent.page_size;
        status.wal_bytes = extent.wal_bytes;
        status.log_bytes = self.log.bytes();
        status.log_written = self.log.written();
        status.log_cut_off = self.log.cut_off();
        status.ready = state.fence.last_data.is_some() && status.out_of_service.is_none();
        status.checkpoint_blocked = self.watches.blocked.borrow().clone();
        status.stages = self.stages.all();
        status.repair = self.repairs.status(&self.options);
        status.transfers = self.images.transfers.all();
        status.freeze_longest = self.freezes.longest();
        status.checkpoint_longest = self.freezes.longest_checkpoint();
        drop(metrics);
        status.leader = self.leader();
        status.members = self.known_members();
        status.role = if status.removed.is_some() {
            MemberRole::Removed
        } else {
            self.role_of(status.raft_id).unwrap_or_default()
        };
        for member in &mut status.members {
            member.progress = self.progress_of(member.raft_id);
        }
        status.progress = self.progress_of(status.raft_id);
        status.shortage = self.room.shortage();
    }

    fn leader(&self) -> Option<MemberStatus> {
        self.known_members()
            .into_iter()
            .find(|member| member.leader)
    }

    /// How long a leader may be silent, or a quorum silent to a leader, before it is none to those
    /// who ask. Raft itself keeps it until another one is elected.
    pub(crate) fn silence_max(&self) -> Duration {
        self.options.election_max() * SILENT_ELECTIONS
    }

    /// The leader's id, unless it has been silent for too long.
    fn heard_leader(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let silence = if leader != metrics.id {
            self.contact.silence()
        } else if metrics.membership_config.membership().voter_ids().count() == 1 {
            Some(Duration::ZERO)
        } else {
            // None yet: the vote of the quorum was just now.
            let acked = metrics.last_quorum_acked;
            Some(acked.map_or(Duration::ZERO, |acked| acked.elapsed()))
        };
        let limit = self.silence_max();
        silence
            .is_some_and(|silence| silence < limit)
            .then_some(leader)
    }

    /// The members as the effective membership has them, nobody asked.
    pub(crate) fn known_members(&self) -> Vec<MemberStatus> {
        let leader = self.heard_leader();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let config = metrics.membership_config.membership();
        let voters: std::collections::BTreeSet<u64> = config.voter_ids().collect();
        let role = |id: &u64, member: &Member| match member.role {
            Role::Leaving => MemberRole::Removed,
            Role::Replica => MemberRole::Replica,
            Role::Voter if leader == Some(*id) => MemberRole::Leader,
            Role::Voter if voters.contains(id) => MemberRole::Voter,
            Role::Voter => MemberRole::Joining,
        };
        let describe = |(id, member): (&u64, &Member)| MemberStatus {
            role: role(id, member),
            raft_id: *id,
            name: member.name.clone(),
            raft_addr: member.raft_addr.clone(),
            http_addr: member.http_addr.clone(),
            voter: voters.contains(id),
            leader: leader == Some(*id),
            ..MemberStatus::default()
        };
        config.nodes().map(describe).collect()
    }

    /// What a member does, nobody asked; `None` if it is none.
    fn role_of(&self, id: u64) -> Option<MemberRole> {
        let members = self.known_members().into_iter();
        let mut found = members.filter(|member| member.raft_id == id);
        found.next().map(|member| member.role)
    }

    /// Asks a member whether it is there.
    pub(crate) async fn ask(&self, mut member: MemberStatus, timeout: Duration) -> MemberStatus {
        let begun = Instant::now();
        if member.raft_id == self.membership.raft_id() {
            member.reachable = true;
            member.catch_up = self.images.transfers.catch_up();
            member.version = env!("CARGO_PKG_VERSION").to_owned();
            member.elapsed = begun.elapsed();
            member.progress = self.progress_of(member.raft_id);
            return member;
        }
        let greeting = Greeting {
            raft_id: self.membership.raft_id(),
            member: self.member().clone().into(),
            bootstrap_expect: 0,
            caller: None,
        };
        let body = Bytes::from(wire::encode(&greeting));
        let peer = self.endpoint.peer(&member.raft_addr, Some(member.raft_id));
        let greeting = peer.request(kind::GREETING, Priority::Control, body, timeout);
        let (reply, ()) = tokio::join!(greeting, self.ask_stand(&member, timeout));
        member.progress = self.progress_of(member.raft_id);
        let reply = reply.map_err(|error| error.to_string());
        match reply.and_then(|reply| wire::decode::<Introduction>(&reply)) {
            Ok(introduction) => {
                member.reachable = true;
                member.catch_up = introduction.catch_up;
                member.version = introduction.version;
                member.elapsed = begun.elapsed();
            }
            Err(error) => {
                member.leader = false;
                member.error = Some(error);
            }
        }
        member
    }
}

/// A busy machine may not run a node for some heartbeats; elections take one or two time-outs.
const SILENT_ELECTIONS: u32 = 4;
