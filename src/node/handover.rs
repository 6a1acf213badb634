//! The leadership is handed over before a node closes, so that the others need not first notice
//! that their leader is gone.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::running::Inner;

impl Inner {
    /// Hands the leadership to the voter that has most of the log, and waits until it has taken
    /// it. Without another voter, or if this node does not lead, nothing happens; if the other one
    /// does not take it in time, an election will find a leader.
    pub(crate) async fn hand_over(&self) {
        let Some(heir) = self.heir() else {
            return;
        };
        let mut metrics = self.raft.metrics();
        if let Err(error) = self.raft.trigger().transfer_leader(heir).await {
            tracing::debug!(%error, "the leadership cannot be handed over");
            return;
        }
        let own = self.membership.raft_id();
        let taken = metrics.wait_until(|metrics| {
            let leader = metrics.current_leader;
            leader.is_some_and(|leader| leader != own)
        });
        let patience = self.options.election_max().max(HANDOVER_MIN);
        match tokio::time::timeout(patience, taken).await {
            Ok(Ok(_)) => tracing::info!("the leadership is handed over"),
            _ => tracing::info!("nobody took the leadership over in time"),
        }
    }

    /// The voter that is to lead next.
    fn heir(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if !metrics.state.is_leader() {
            return None;
        }
        let matched = |id: u64| {
            let matched = metrics.replication.as_ref()?.get(&id)?.as_ref()?;
            Some(matched.index)
        };
        // Who does not answer cannot lead.
        let answers = |id: u64| {
            let heard = metrics.heartbeat.as_ref()?.get(&id)?.as_ref()?;
            Some(heard.elapsed() < self.options.election_max())
        };
        let voters = metrics.membership_config.membership().voter_ids();
        voters
            .filter(|&id| id != metrics.id && answers(id).unwrap_or(false))
            .filter_map(|id| matched(id).map(|index| (index, id)))
            .max()
            .map(|(_, id)| id)
    }
}

/// A round trip, a sync and a vote, on a machine that is busy.
const HANDOVER_MIN: Duration = Duration::from_secs(1);
