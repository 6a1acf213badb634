//! The leader removes members that have been silent for too long, if it is told to.
//!
//! The clock of a member starts when it was last heard by this leader, or when it became a member
//! under this leader, whichever is later: a leader knows nothing of what others have heard, and
//! who joins is not heard at once. The last majority is
//! never removed, because a removal needs the answers of a majority of those that would remain.

use std::collections::BTreeMap;
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
    let mut led: Option<(u64, Known)> = None;
    loop {
        tokio::time::sleep(interval).await;
        let Some(term) = inner.leading().map(|leader| leader.term) else {
            led = None;
            continue;
        };
        let mut known = match led.take() {
            Some((before, known)) if before == term => known,
            _ => Known::new(),
        };
        let silent = inner.silent_for_too_long(&mut known);
        led = Some((term, known));
        for id in silent {
            if !inner.reap_one(id).await {
                // What is in the way will not be gone at once, and one line about it is enough.
                tokio::time::sleep(RETRY).await;
                break;
            }
        }
    }
}

/// Since when the members are members under this leader.
type Known = BTreeMap<u64, Instant>;

impl Inner {
    /// The members whose time is up.
    fn silent_for_too_long(&self, known: &mut Known) -> Vec<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(heard) = &metrics.heartbeat else {
            return Vec::new();
        };
        let config = metrics.membership_config.membership();
        known.retain(|id, _| config.get_node(id).is_some());
        for (id, _) in config.nodes() {
            known.entry(*id).or_insert_with(Instant::now);
        }
        let is_silent = |id: &u64, limit: Duration| {
            let heard = heard.get(id).copied().flatten();
            let silence = heard.map_or(Duration::MAX, |heard| heard.elapsed());
            let known = known.get(id).map_or(Duration::ZERO, Instant::elapsed);
            !limit.is_zero() && silence.min(known) > limit
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
