//! ReadIndex rounds: one confirmation of leadership for everyone who was waiting when it began.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};

use super::Raft;

/// Asks for rounds.
#[derive(Clone)]
pub(crate) struct Rounds(mpsc::UnboundedSender<oneshot::Sender<Result<u64, String>>>);

impl Rounds {
    /// Starts the task that runs the rounds.
    pub(crate) fn start(raft: Arc<OnceLock<Raft>>, patience: Duration) -> Self {
        let (ask, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<Result<u64, String>>>();
        tokio::spawn(async move {
            while let Some(first) = asked.recv().await {
                // Whoever asks after this moment waits for the next round.
                let mut waiting = vec![first];
                while let Ok(next) = asked.try_recv() {
                    waiting.push(next);
                }
                let result = match raft.get() {
                    Some(raft) => round(raft, patience).await,
                    None => Err("Raft does not run yet".to_owned()),
                };
                for waiter in waiting {
                    // A reader that gave up needs no answer.
                    let _ = waiter.send(result.clone());
                }
            }
        });
        Self(ask)
    }

    /// The index that must be applied before a read that starts now is linearizable; an error says
    /// why this node could not prove that it leads.
    pub(crate) async fn confirm(&self, patience: Duration) -> Result<u64, String> {
        let (answer, wait) = oneshot::channel();
        self.0
            .send(answer)
            .map_err(|_| "the node is closing".to_owned())?;
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the node is closing".to_owned()),
            Err(_) => Err(format!("no quorum answered within {patience:?}")),
        }
    }
}

/// One round: the index that must be applied before a read that starts now is linearizable.
pub(crate) async fn round(raft: &Raft, patience: Duration) -> Result<u64, String> {
    let round = raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match tokio::time::timeout(patience, round).await {
        Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no quorum answered within {patience:?}")),
    }
}
