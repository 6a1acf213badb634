//! What an operator may have a node do at once that it does by itself in time: a checkpoint, and
//! letting go of the log behind it. Only this node's files are concerned.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::oneshot;

use super::owner::Job;
use super::running::{Inner, Node};
use super::tasks::needed;

/// What a checkpoint that was asked for did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Checkpointed {
    /// Whether there was a WAL to move into the main file.
    pub has_moved_wal: bool,
    /// Whether the durable record of what the main file contains went forward.
    pub has_recorded: bool,
}

impl Node {
    /// Makes this node's main file contain all that is applied, and purges the log behind it but
    /// for `trailing` entries. `false`: there was nothing new.
    ///
    /// # Errors
    ///
    /// The text that says what was in the way.
    pub async fn snapshot(&self, trailing: u64) -> Result<bool, String> {
        let inner = self.inner().map_err(|refusal| refusal.to_string())?;
        let checkpointed = inner.checkpoint().await?;
        let recorded = inner.watches.recorded.borrow().clone();
        let recorded = recorded.map_or(0, |recorded| recorded.applied.index);
        let has_purged = inner
            .purge_to(recorded, recorded.saturating_sub(trailing))
            .await?;
        Ok(checkpointed.has_recorded || has_purged)
    }

    /// Makes this node's main file contain all that is applied.
    ///
    /// # Errors
    ///
    /// The text that says what was in the way.
    pub async fn checkpoint(&self) -> Result<Checkpointed, String> {
        let inner = self.inner().map_err(|refusal| refusal.to_string())?;
        inner.checkpoint().await
    }
}

impl Inner {
    async fn checkpoint(&self) -> Result<Checkpointed, String> {
        let (done, checkpointed) = oneshot::channel();
        self.owner.submit(Job::Checkpoint { done });
        match tokio::time::timeout(PATIENCE, checkpointed).await {
            Ok(Ok(checkpointed)) => checkpointed,
            Ok(Err(_)) => Err("this node is shutting down".to_owned()),
            Err(_) => Err(format!("a write has been under way for {PATIENCE:?}")),
        }
    }

    /// Purges the log up to an index that the record covers, but for what a node that is catching
    /// up needs. Whether there was anything to purge.
    async fn purge_to(&self, recorded: u64, upto: u64) -> Result<bool, String> {
        let upto = upto.min(needed(self));
        let purged = self.log.purged().map_or(0, |purged| purged.index);
        if upto <= purged {
            return Ok(false);
        }
        let stopped = |error: &dyn std::fmt::Display| format!("Raft has stopped: {error}");
        let trigger = self.raft.trigger();
        trigger.snapshot().await.map_err(|error| stopped(&error))?;
        // Raft purges nothing that it does not know to be in a snapshot.
        self.wait_metrics("the snapshot", |metrics| {
            metrics
                .snapshot
                .is_some_and(|snapshot| snapshot.index >= recorded)
        })
        .await?;
        trigger
            .purge_log(upto)
            .await
            .map_err(|error| stopped(&error))?;
        self.wait_metrics("the purge of the log", |metrics| {
            metrics.purged.is_some_and(|purged| purged.index >= upto)
        })
        .await?;
        Ok(true)
    }

    async fn wait_metrics(
        &self,
        what: &str,
        is_there: impl Fn(&openraft::RaftMetrics<crate::raft::TypeConfig>) -> bool,
    ) -> Result<(), String> {
        let mut metrics = self.raft.metrics();
        let waiting = async {
            while !is_there(&metrics.borrow_and_update()) {
                if metrics.changed().await.is_err() {
                    return Err("Raft has stopped".to_owned());
                }
            }
            Ok(())
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| Err(format!("{what} takes longer than {PATIENCE:?}")))
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
