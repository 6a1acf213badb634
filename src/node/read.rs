//! The read levels on the node that leads, and what each one costs.
//!
//! | level | costs | promise |
//! |---|---|---|
//! | none | nothing | the local database, whatever its age |
//! | weak | a look at the leader's own state | at most one election time-out stale |
//! | linearizable | one ReadIndex round, shared | sees all that was acknowledged before |
//! | strong | one log entry | the same, as rqlite does it |

use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::impls::ProgressResponder;

use super::api::{Level, ReadRequest, Refusal, Served};
use super::running::{Inner, NotLed};
use super::write::served;
use crate::raft::Payload;

impl Inner {
    /// A read on the node that leads.
    pub(crate) async fn lead_read(&self, read: ReadRequest) -> Result<Served, NotLed> {
        let ReadRequest {
            request,
            level,
            timeout,
            ..
        } = read;
        let deadline = Instant::now() + timeout;
        let raft_index = match level {
            Level::None => None,
            Level::Weak => {
                if self.leading().is_none() || !self.quorum_is_fresh() {
                    return Err(None);
                }
                None
            }
            Level::Linearizable => {
                let index = self
                    .rounds
                    .confirm(timeout.min(self.options.election_max() * 2))
                    .await;
                // A retry takes a fresh index: the old one may be from before the question.
                let Ok(index) = index else { return Err(None) };
                self.applied(index, deadline).await?;
                None
            }
            Level::Strong => {
                let index = self.mark(timeout).await?;
                self.applied(index, deadline).await?;
                Some(index)
            }
        };
        let reply = self.read(request).await.map_err(Some)?;
        Ok(served(reply, raft_index, &self.options.http_adv_addr))
    }

    /// Waits until an index is applied here.
    pub(crate) async fn applied(&self, index: u64, deadline: Instant) -> Result<(), NotLed> {
        let left = deadline.saturating_duration_since(Instant::now());
        tokio::time::timeout(left, self.frontier.wait_applied(index))
            .await
            .map_err(|_| {
                Some(Refusal::TimedOut(format!(
                    "index {index} is not applied here yet"
                )))
            })
    }

    /// Writes an entry that changes nothing, and waits until it is applied.
    async fn mark(&self, timeout: Duration) -> Result<u64, NotLed> {
        let Some(leader) = self.leading() else {
            return Err(None);
        };
        let (responder, outcome) = ProgressResponder::complete_only();
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

    /// Whether a quorum has answered within the lease: a leader that was cut off notices here.
    fn quorum_is_fresh(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let alone = metrics.membership_config.membership().voter_ids().count() == 1;
        let lease = self.options.election_max();
        alone
            || metrics
                .last_quorum_acked
                .is_some_and(|acked| acked.elapsed() < lease)
    }
}
