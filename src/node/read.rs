//! The read levels: who serves them, what each one costs, and what it promises.
//!
//! | level | served by | costs | promise |
//! |---|---|---|---|
//! | none | the node that was asked | nothing | what was committed once, whatever its age |
//! | weak | the leader | a look at its own state | at most one election time-out stale |
//! | linearizable | the node that was asked | a share of a round | all that was acknowledged |
//! | strong | the leader | one log entry | the same, as rqlite does it |
//!
//! A linearizable read, on a voter or on a node without a vote alike: ask the leader for its read
//! index, wait until that is applied *and published* here, and only then begin SQLite's read
//! transaction. A pause of any node at any moment only makes the read later, never older. When the
//! leadership changes before the index is reached the question is put again, and a retry always
//! takes a fresh index. See [`super::read_index`].
//!
//! A weak read looks at the leader's lease *after* it has read: a leader that was paused between
//! the two, and deposed meanwhile, would otherwise answer with the state before the pause.
//!
//! Any read may ask for a minimum: the log index that came with the answer to an earlier write. The
//! node that serves the read waits until it has applied it, for as long as the client does. So a
//! client sees its own writes on every node, at any level, without the leader.

use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;

use super::api::{Level, ReadRequest, Refusal, Served};
use super::read_index::{Asking, Purpose};
use super::running::{Inner, Node, NotLed};
use super::write::served;
use crate::planted::{self, Bug};
use crate::raft::{LeaderId, Outcome, Payload};

impl Node {
    /// A linearizable read, served by this node whoever leads.
    pub(crate) async fn read_here(
        &self,
        read: ReadRequest,
        purpose: Purpose,
    ) -> Result<Served, Refusal> {
        let deadline = Instant::now() + read.timeout;
        let asking = Asking {
            purpose,
            caller: read.caller,
        };
        let confirm_timeout = read.confirm_timeout.unwrap_or(read.timeout);
        self.catch_up_with_leader(&asking, confirm_timeout, deadline)
            .await?;
        let inner = self.inner()?;
        inner.applied(read.index_min, deadline).await?;
        let reply = inner.read(read.request, deadline).await?;
        Ok(served(reply, None, &inner.options.http_adv_addr))
    }
}

impl Inner {
    /// A read on the node that leads.
    pub(crate) async fn lead_read(&self, read: ReadRequest) -> Result<Served, NotLed> {
        let ReadRequest {
            request,
            level,
            timeout,
            index_min,
            ..
        } = read;
        let deadline = Instant::now() + timeout;
        let mut leader = None;
        let raft_index = match level {
            Level::None => None,
            Level::Weak => {
                leader = self.leading_freshly();
                if leader.is_none() {
                    return Err(None);
                }
                None
            }
            Level::Linearizable => {
                let confirmed = self.confirmed().await?;
                if !self.reach(confirmed, deadline).await.map_err(Some)? {
                    return Err(None);
                }
                None
            }
            Level::Strong => Some(self.mark(timeout).await?),
        };
        let index_min = index_min.max(raft_index.unwrap_or(0));
        self.applied(index_min, deadline).await.map_err(Some)?;
        let reply = self.read(request, deadline).await.map_err(Some)?;
        // Also if it was deposed and elected again: it may have read in between.
        if level == Level::Weak && self.leading_freshly() != leader {
            return Err(None);
        }
        Ok(served(reply, raft_index, &self.options.http_adv_addr))
    }

    /// Waits until an index is applied here.
    pub(crate) async fn applied(&self, index: u64, deadline: Instant) -> Result<(), Refusal> {
        if self.frontier.reached().index() >= index {
            return Ok(());
        }
        let waited = tokio::time::timeout_at(deadline.into(), self.frontier.wait_applied(index));
        waited.await.map_err(|_| {
            let reached = self.frontier.reached().index();
            Refusal::TimedOut(format!(
                "this node has applied the log up to index {reached}, and not to {index} yet; \
                 allow it more time with the parameter `timeout`, or ask another node"
            ))
        })
    }

    /// Writes an entry that changes nothing, and waits until it is applied.
    async fn mark(&self, timeout: Duration) -> Result<u64, NotLed> {
        let Some(leader) = self.leading() else {
            return Err(None);
        };
        let (responder, outcome) = Outcome::awaited();
        let proposal = self
            .raft
            .write(Payload(Bytes::new()))
            .with_leader(leader)
            .responder(responder);
        if proposal.await.is_err() {
            return Err(None);
        }
        match tokio::time::timeout(timeout, outcome).await {
            Ok(Ok(Ok(response))) => Ok(response.log_id.index),
            // A mark changes nothing, so it may be written again.
            Ok(_) => Err(None),
            Err(_) => {
                let why = format!("the quorum did not answer within {timeout:?}");
                Err(Some(Refusal::TimedOut(why)))
            }
        }
    }

    /// The leadership under which this node may execute, if a quorum has answered within the lease.
    fn leading_freshly(&self) -> Option<LeaderId> {
        self.leading().filter(|_| self.quorum_is_fresh())
    }

    /// Whether a quorum has answered within the lease: a leader that was cut off notices here.
    fn quorum_is_fresh(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        let lease = if planted::is(Bug::LeaseForEver) {
            Duration::MAX
        } else {
            self.options.election_max()
        };
        alone
            || metrics
                .last_quorum_acked
                .is_some_and(|acked| acked.elapsed() < lease)
    }
}
