//! The way of a call to whoever leads, and again while it is certain that nothing was done with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;

use super::Raft;
use super::api::{Refusal, Served};
use super::running::{Inner, Node, NotLed};
use super::wire::{self, Forwarded};
use crate::transport::TransportError;

/// Where a call has to go.
pub(crate) enum Route {
    /// This node leads.
    Here,
    /// Another one does.
    There { node: u64, addr: String },
}

/// Who leads, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Led {
    pub(crate) leader: Option<u64>,
    /// The term and the candidate or leader of it that this node sides with.
    pub(crate) vote: (u64, u64),
}

impl Led {
    pub(crate) fn now(raft: &Raft) -> Self {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let vote = metrics.vote.leader_id;
        Self {
            leader: metrics.current_leader,
            vote: (vote.term, vote.node_id),
        }
    }
}

impl Node {
    /// Has something done by the leader, here or elsewhere: again and again while it answers
    /// `None`, which means that nothing was done, and until the deadline.
    ///
    /// # Errors
    ///
    /// What it was refused with; [`Refusal::LeaderNotFound`] when the time is up.
    pub(crate) async fn at_leader<T, F>(
        &self,
        deadline: Instant,
        attempt: impl Fn(Arc<Inner>, Route, Duration) -> F,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, NotLed>>,
    {
        loop {
            let inner = self.inner()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refusal::LeaderNotFound);
            }
            let attempted = match inner.route() {
                Some(route) => attempt(Arc::clone(inner), route, left).await,
                None => Err(None),
            };
            match attempted {
                Ok(done) => return Ok(done),
                Err(Some(refusal)) => return Err(refusal),
                Err(None) => inner.pause_of_routing(left).await,
            }
        }
    }
}

impl Inner {
    /// Where whoever leads can be found, as far as this node knows. A leader that has missed
    /// heartbeats is none: whatever were sent to one that is dead would have an unknown outcome,
    /// while a call that waits for a moment finds it again, or its successor.
    pub(crate) fn route(&self) -> Option<Route> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        if leader == metrics.id {
            return Some(Route::Here);
        }
        let silence = self.contact.silence_of(leader);
        if silence.is_none_or(|silence| silence > self.options.heartbeat() * HEARTBEATS_MISSED) {
            return None;
        }
        let member = metrics.membership_config.membership().get_node(&leader)?;
        Some(Route::There {
            node: leader,
            addr: member.raft_addr.clone(),
        })
    }

    /// What comes of work that another node does as the leader; `None` as soon as somebody else is
    /// known to lead. Only for what may be done twice.
    pub(crate) async fn while_leads<T>(
        &self,
        leader: u64,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut led = self.led.subscribe();
        let succeeded = led.wait_for(|led| led.leader.is_some_and(|now| now != leader));
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = succeeded => None,
        }
    }

    /// Waits before a call is routed again: until another leader is known, but not for long.
    async fn pause_of_routing(&self, left: Duration) {
        let mut led = self.led.subscribe();
        // It comes to the same if the time is up or the node closes.
        drop(tokio::time::timeout(ROUTE_INTERVAL.min(left), led.changed()).await);
    }
}

/// What the leader at this address answered to a forwarded call.
pub(crate) fn forwarded(reply: &[u8], addr: &str) -> Result<Served, NotLed> {
    match wire::decode(reply) {
        Ok(Forwarded::Served(served)) => Ok(Served {
            served_by: addr.to_owned(),
            ..served
        }),
        Ok(Forwarded::Refused(refusal)) => Err(Some(refusal)),
        Ok(Forwarded::NotLeader) => Err(None),
        Err(what) => Err(Some(Refusal::Unknown(what))),
    }
}

/// What a failed forward means: certainly nothing done, or unknown.
pub(crate) fn undelivered(error: &TransportError, writes: bool) -> NotLed {
    if let TransportError::TooLong { bytes_max, .. } = error {
        let what = format!("more than {bytes_max} bytes cannot be forwarded; ask the leader");
        Some(Refusal::NotCommitted(what))
    } else if error.nothing_was_delivered() || !writes {
        tracing::debug!(%error, "the leader cannot be reached; routing again");
        None
    } else {
        Some(Refusal::Unknown(format!(
            "the leader did not answer: {error}"
        )))
    }
}

/// The leader keeps the time of what it is asked; a little more for the way lets its own answer
/// win.
pub(crate) const FORWARD_MARGIN: Duration = Duration::from_millis(500);

/// How long to wait at most before a call is routed again.
const ROUTE_INTERVAL: Duration = Duration::from_millis(10);

/// One may be late on a busy machine.
const HEARTBEATS_MISSED: u32 = 2;
