//! Handing the leadership over to another node.
//!
//! Raft lets a leader that hands over propose nothing more in its term, whether or not somebody
//! takes over. So it is asked to only when nothing is in flight and the successor has everything:
//! then it takes over within one round of votes. Meanwhile writes wait where they are routed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::admission::membership;
use super::errand::Report;
use super::running::Inner;

/// Holds writes back until it is dropped or kept.
struct Hold<'a> {
    inner: &'a Inner,
    kept: bool,
}

impl<'a> Hold<'a> {
    fn new(inner: &'a Inner, term: u64) -> Self {
        inner.handed_over_term.store(term, Ordering::Release);
        Self { inner, kept: false }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.inner.handed_over_term.store(0, Ordering::Release);
        }
    }
}

impl Inner {
    /// Hands over to the member of this name, or to the best one. With `wait`, ends when another
    /// node leads.
    pub(crate) async fn step_down(
        self: &Arc<Self>,
        to: Option<String>,
        wait: bool,
        timeout: Duration,
    ) -> Report {
        if !self.raft.is_leader() {
            return Report::NotLeader;
        }
        let successor = match self.successor(to.as_deref()) {
            Ok(successor) => successor,
            Err(why) => return Report::Impossible(format!("stepdown: {why}")),
        };
        let inner = Arc::clone(self);
        let named = to.is_some();
        let going = tokio::spawn(async move { inner.hand_over(successor, named, timeout).await });
        if !wait {
            return Report::Done;
        }
        let gone = going.await;
        gone.unwrap_or_else(|error| Report::Impossible(format!("stepdown: {error}")))
    }

    /// Hands over before this node closes, if it leads and another voter answers: the others need
    /// not first notice that their leader is gone. If it fails an election will find a leader.
    pub(crate) async fn hand_over_at_the_end(self: &Arc<Self>) {
        // Whatever becomes of it: a node that goes away must not campaign against its successor.
        self.raft.runtime_config().elect(false);
        let me = self.membership.raft_id();
        let config = membership(&self.raft);
        let mut heirs = config.voter_ids().filter(|voter| *voter != me);
        if !self.raft.is_leader() || !heirs.any(|voter| self.answers(voter)) {
            return;
        }
        match self.step_down(None, true, HOLD_MAX).await {
            Report::Done => tracing::info!("the leadership is handed over"),
            Report::Impossible(why) => tracing::info!(why, "the leadership is not handed over"),
            Report::NotLeader | Report::Refused(_) | Report::Written(_) => {}
        }
    }

    /// Who is to take over; the errors are rqlite's.
    fn successor(&self, to: Option<&str>) -> Result<u64, String> {
        let me = self.membership.raft_id();
        let config = membership(&self.raft);
        if let Some(name) = to {
            let found = config.nodes().find(|(_, node)| node.name == name);
            let (id, _) = found.ok_or("node not found in cluster")?;
            if *id == me {
                return Err("cannot step down to the current Leader".to_owned());
            }
            if !config.voter_ids().any(|voter| voter == *id) {
                return Err("a node without a vote cannot lead".to_owned());
            }
            return Ok(*id);
        }
        let matched = self.matched();
        let best = config
            .voter_ids()
            .filter(|voter| *voter != me)
            .max_by_key(|voter| {
                let at = matched.get(voter).copied().unwrap_or(0);
                (self.answers(*voter), at)
            });
        best.ok_or_else(|| "cannot find peer".to_owned())
    }

    /// How far the log of each peer is known to agree with ours.
    fn matched(&self) -> BTreeMap<u64, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let peers = metrics.replication.iter().flatten();
        peers
            .map(|(id, matched)| (*id, matched.map_or(0, |at| at.index)))
            .collect()
    }

    /// Whether a peer has answered a heartbeat of ours not long ago.
    pub(crate) fn answers(&self, peer: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics
            .heartbeat
            .as_ref()
            .and_then(|peers| peers.get(&peer));
        let limit = self.silence_max();
        heard.is_some_and(|last| last.is_some_and(|last| last.elapsed() < limit))
    }

    async fn hand_over(&self, to: u64, named: bool, timeout: Duration) -> Report {
        let deadline = Instant::now() + timeout;
        let failed = |why: &str| Report::Impossible(format!("stepdown: {why}"));
        // Not in the middle of a change of voters.
        let changing = tokio::time::timeout(timeout, self.admission.changing.lock()).await;
        let Ok(_changing) = changing else {
            return failed("another change of the cluster is under way");
        };
        let behind = |lag: u64| {
            let last = self.raft.metrics().borrow_watched().last_log_index;
            let matched = self.matched().get(&to).copied().unwrap_or(0);
            matched.saturating_add(lag) < last.unwrap_or(0)
        };
        // Writes are held back only for the last bit.
        while behind(NEAR_ENTRIES) {
            if Instant::now() > deadline || !self.raft.is_leader() {
                return failed("the node is too far behind to take over");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let term = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if !metrics.state.is_leader() {
                return Report::NotLeader;
            }
            metrics.vote.leader_id.term
        };
        let mut hold = Hold::new(self, term);
        let held_until = deadline.min(Instant::now() + HOLD_MAX);
        while self.flights.is_in_the_air() || behind(0) {
            if Instant::now() > held_until || !self.raft.is_leader() {
                return failed("the node did not catch up in time");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        hold.kept = true;
        tracing::info!(successor = self.name_of(to), "handing the leadership over");
        if let Err(error) = self.raft.trigger().transfer_leader(to).await {
            return failed(&error.to_string());
        }
        let me = self.membership.raft_id();
        let mut metrics = self.raft.metrics();
        let settled = metrics.wait_until(|metrics| {
            let leader = metrics.current_leader;
            leader.is_some_and(|leader| leader != me || metrics.vote.leader_id.term > term)
        });
        // Without an answer of the successor the others elect somebody by themselves.
        let patience = deadline
            .saturating_duration_since(Instant::now())
            .max(self.silence_max());
        match tokio::time::timeout(patience, settled).await {
            Ok(Ok(metrics)) if metrics.current_leader == Some(me) => {
                failed("no other node took over")
            }
            // Somebody else was faster; the new leader can hand over in turn.
            Ok(Ok(metrics)) if named && metrics.current_leader != Some(to) => Report::NotLeader,
            Ok(Ok(_)) => Report::Done,
            _ => failed("no other node has taken over yet"),
        }
    }
}

/// Some heartbeats' worth of groups.
const NEAR_ENTRIES: u64 = 64;
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Longer than a group takes to come back from a quorum that is well.
const HOLD_MAX: Duration = Duration::from_secs(2);
