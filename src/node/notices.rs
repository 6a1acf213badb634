//! What an operator is told about the cluster: one line when the leader changes, one when a peer
//! falls silent, and one when it is heard again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::routing::Led;
use super::running::Inner;
use super::tally::NodeCounter;

/// Reports each change of the leader, as this node sees it, and tells those who wait for one.
pub(crate) async fn leaders(inner: Arc<Inner>) {
    // Not of every entry, as from all of the metrics.
    let mut metrics = inner.raft.server_metrics();
    let mut known = None;
    loop {
        let (leader, term, vote) = {
            let metrics = metrics.borrow_and_update();
            let vote = metrics.vote.leader_id;
            (metrics.current_leader, vote.term, (vote.term, vote.node_id))
        };
        let led = Led { leader, vote };
        inner.led.send_if_modified(|known| {
            let is_new = *known != led;
            *known = led;
            is_new
        });
        // A leader may be known a moment before the vote for it, and with it its term, is durable.
        let is_durable = leader.is_none_or(|leader| leader == vote.1);
        let seen = leader.map(|leader| (leader, term));
        if is_durable && seen != known {
            inner.tally.count(NodeCounter::LeaderChanges);
            match leader {
                Some(leader) if leader == inner.membership.raft_id() => {
                    tracing::info!(term, "this node leads");
                }
                Some(leader) => {
                    tracing::info!(leader = inner.name_of(leader), term, "another node leads");
                }
                None => tracing::info!(term, "there is no leader"),
            }
            known = seen;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Reports, while this node leads, which peers do not answer its heartbeats.
pub(crate) async fn silence(inner: Arc<Inner>) {
    let limit = inner.options.election_max() * 4;
    let mut looks: BTreeMap<u64, u32> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if inner.health.failure().is_some() {
            return;
        }
        let metrics = inner.raft.metrics().borrow_watched().clone();
        // A follower hears from its leader only.
        let Some(heard) = metrics.heartbeat else {
            looks.clear();
            continue;
        };
        looks.retain(|peer, _| heard.contains_key(peer));
        for (peer, last) in heard.into_iter().filter(|(peer, _)| *peer != metrics.id) {
            let quiet = last.is_none_or(|last| last.elapsed() > limit);
            let looked = looks.entry(peer).or_default();
            // Twice, because a new leader has heard from nobody yet.
            if quiet {
                *looked = looked.saturating_add(1);
                if *looked == LOOKS_BEFORE_WARNING {
                    tracing::warn!(peer = inner.name_of(peer), "a peer does not answer");
                }
            } else {
                if *looked >= LOOKS_BEFORE_WARNING {
                    tracing::info!(peer = inner.name_of(peer), "a peer answers again");
                }
                *looked = 0;
            }
        }
    }
}

impl Inner {
    /// The name of a member, or its Raft id if it is none (any more).
    pub(crate) fn name_of(&self, id: u64) -> String {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics.membership_config.membership().get_node(&id);
        member.map_or_else(|| id.to_string(), |member| member.name.clone())
    }
}

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOKS_BEFORE_WARNING: u32 = 2;
