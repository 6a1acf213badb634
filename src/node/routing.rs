//! The way of a call to whoever leads, and again while it is certain that nothing was done with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver as _;

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
                Err(None) => tokio::time::sleep(ROUTE_INTERVAL.min(left)).await,
            }
        }
    }
}

impl Inner {
    /// Who leads, as far as this node knows.
    fn route(&self) -> Option<Route> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        if leader == metrics.id {
            return Some(Route::Here);
        }
        let member = metrics.membership_config.membership().get_node(&leader)?;
        Some(Route::There {
            node: leader,
            addr: member.raft_addr.clone(),
        })
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

/// How long to sleep before a call is routed again when nobody leads.
const ROUTE_INTERVAL: Duration = Duration::from_millis(10);
