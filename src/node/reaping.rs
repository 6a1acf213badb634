//! The leader removes members that have been silent for too long, if it is told to.
//!
//! The clock of a member starts when it was last heard by this leader, or when this leader became
//! one, whichever is later: a leader knows nothing of what others have heard. The last majority is
//! never removed, because a removal needs the answers of a majority of those that would remain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::admission::membership;
use super::errand::Report;
use super::running::Inner;
use super::tally::NodeCounter;
use crate::raft::Role;

/// Looks after the members for as long as the node runs.
pub(crate) async fn reap(inner: Arc<Inner>) {
    let limits = [inner.options.reap_voters, inner.options.reap_replicas];
    let shortest = limits.into_iter().filter(|limit| !limit.is_zero()).min();
    let Some(shortest) = shortest else { return };
    let interval = (shortest / 4).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
    let mut leads_since: Option<(u64, Instant)> = None;
    loop {
        tokio::time::sleep(interval).await;
        let Some(term) = inner.leading().map(|leader| leader.term) else {
            leads_since = None;
            continue;
        };
        let since = match leads_since {
            Some((known, since)) if known == term => since,
            _ => Instant::now(),
        };
        leads_since = Some((term, since));
        for id in inner.silent_for_too_long(since) {
            if !inner.reap_one(id).await {
                // What is in the way will not be gone at once, and one line about it is enough.
                tokio::time::sleep(RETRY).await;
                break;
            }
        }
    }
}

impl Inner {
    /// The members whose time is up; `since`: when this node began to lead.
    fn silent_for_too_long(&self, since: Instant) -> Vec<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(heard) = &metrics.heartbeat else {
            return Vec::new();
        };
        let config = metrics.membership_config.membership();
        let is_silent = |id: &u64, limit: Duration| {
            let heard = heard.get(id).copied().flatten();
            let silence = heard.map_or(Duration::MAX, |heard| heard.elapsed());
            !limit.is_zero() && silence.min(since.elapsed()) > limit
        };
        let silent = config.nodes().filter(|(id, member)| {
            let limit = match member.role {
                Role::Replica => self.options.reap_replicas,
                // Also one on its way in: it may never come.
                Role::Voter => self.options.reap_voters,
                Role::Leaving => Duration::ZERO,
            };
            **id != metrics.id && is_silent(id, limit)
        });
        silent.map(|(id, _)| *id).collect()
    }

    /// Whether the member is gone.
    async fn reap_one(self: &Arc<Self>, id: u64) -> bool {
        let name = self.name_of(id);
        let _one = self.admission.changing.lock().await;
        if !membership(&self.raft)
            .nodes()
            .any(|(member, _)| *member == id)
        {
            return true;
        }
        match self.remove_one(id, false).await {
            Report::Done => {
                self.tally.count(NodeCounter::Reaped);
                tracing::warn!(name, "a member was silent for too long and is removed");
                true
            }
            report => {
                self.tally.count(NodeCounter::ReapsFailed);
                tracing::warn!(name, ?report, "a silent member is not removed");
                false
            }
        }
    }
}

const RETRY: Duration = Duration::from_secs(10);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(100);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
