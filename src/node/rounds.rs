//! Questions that many ask at the same time: each round asks once, for everyone who was waiting
//! when it began. Who comes later waits for the next round, because the answer may be older than
//! his question.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Raft;
use super::tally::{NodeCounter, Tally};
use crate::raft::position_of;
use crate::wal::Position;

/// Asks questions of kind `Q`, each with rounds of its own, and hands out their answers.
pub(crate) struct Rounds<Q, A>(mpsc::UnboundedSender<(Q, oneshot::Sender<A>)>);

impl<Q, A> Rounds<Q, A>
where
    Q: Clone + Eq + Hash + Send + 'static,
    A: Clone + Send + 'static,
{
    /// Starts the task that runs the rounds; `ask` asks once.
    pub(crate) fn start<F>(ask: impl Fn(Q) -> F + Send + 'static) -> Self
    where
        F: Future<Output = A> + Send + 'static,
    {
        let (sender, mut arriving) = mpsc::unbounded_channel::<(Q, oneshot::Sender<A>)>();
        tokio::spawn(async move {
            // Those who wait for a round that has not begun. An entry without anybody stands for a
            // question that is being asked.
            let mut waiting: HashMap<Q, Vec<oneshot::Sender<A>>> = HashMap::new();
            let mut running = JoinSet::new();
            loop {
                let mut begin = Vec::new();
                tokio::select! {
                    arrived = arriving.recv() => {
                        let Some(first) = arrived else { return };
                        let more = std::iter::from_fn(|| arriving.try_recv().ok());
                        for (question, waiter) in std::iter::once(first).chain(more) {
                            waiting.entry(question.clone()).or_insert_with(|| {
                                begin.push(question);
                                Vec::new()
                            }).push(waiter);
                        }
                    }
                    Some(Ok(question)) = running.join_next(), if !running.is_empty() => {
                        begin.push(question);
                    }
                }
                for question in begin {
                    let waiters = waiting.get_mut(&question).map(std::mem::take);
                    let waiters = waiters.unwrap_or_default();
                    if waiters.iter().all(oneshot::Sender::is_closed) {
                        waiting.remove(&question);
                        continue;
                    }
                    let round = ask(question.clone());
                    running.spawn(async move {
                        let answer = round.await;
                        for waiter in waiters {
                            // Somebody who gave up needs no answer.
                            let _ = waiter.send(answer.clone());
                        }
                        question
                    });
                }
            }
        });
        Self(sender)
    }

    /// The answer of a round that begins after this moment; `None` if there was none in time.
    pub(crate) async fn ask(&self, question: Q, patience: Duration) -> Option<A> {
        let (answer, wait) = oneshot::channel();
        self.0.send((question, answer)).ok()?;
        tokio::time::timeout(patience, wait).await.ok()?.ok()
    }
}

/// The rounds in which a quorum confirms that this node leads (ReadIndex).
pub(crate) type Confirmations = Rounds<(), Option<Position>>;

impl Confirmations {
    /// Rounds of Raft once it runs, each of which may take this long.
    pub(crate) fn of(
        raft: Arc<OnceLock<Raft>>,
        patience: Duration,
        tally: Arc<Tally<NodeCounter>>,
    ) -> Self {
        Self::start(move |()| {
            let (raft, tally) = (Arc::clone(&raft), Arc::clone(&tally));
            async move {
                tally.count(NodeCounter::Confirmations);
                let confirmed = confirmed(raft.get()?, patience).await;
                let unconfirmed =
                    |error: &String| tracing::debug!(error, "the leadership is not confirmed");
                confirmed.inspect_err(unconfirmed).ok()
            }
        })
    }

    /// What must be applied before a read that starts now is linearizable, and under which
    /// leadership that was confirmed; `None` if this node could not prove that it leads.
    pub(crate) async fn confirm(&self, patience: Duration) -> Option<Position> {
        self.ask((), patience).await?
    }
}

/// One round: what must be applied before a read that starts now is linearizable, and under which
/// leadership that was confirmed. The error says why this node could not prove that it leads.
pub(crate) async fn confirmed(raft: &Raft, patience: Duration) -> Result<Position, String> {
    let round = raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match tokio::time::timeout(patience, round).await {
        Ok(Ok(linearizer)) => Ok(position_of(linearizer.read_log_id().log_id())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no quorum answered within {patience:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::Semaphore;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Rounds that end only when the test lets them, and number themselves.
    fn numbered() -> (Arc<Rounds<&'static str, usize>>, Arc<Semaphore>, Log) {
        let gate = Arc::new(Semaphore::new(0));
        let log = Log::default();
        let rounds = {
            let (gate, log) = (Arc::clone(&gate), Arc::clone(&log));
            Rounds::start(move |question| {
                let gate = Arc::clone(&gate);
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(question);
                    log.len()
                };
                async move {
                    gate.acquire().await.unwrap().forget();
                    number
                }
            })
        };
        (Arc::new(rounds), gate, log)
    }

    type Log = Arc<Mutex<Vec<&'static str>>>;

    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_comes_while_a_round_runs_shares_the_next_one() {
        let (rounds, gate, log) = numbered();
        let ask = |question| {
            let rounds = Arc::clone(&rounds);
            tokio::spawn(async move { rounds.ask(question, PATIENCE).await })
        };
        let first = ask("a");
        settle().await;
        let later: Vec<_> = (0..5).map(|_| ask("a")).collect();
        settle().await;
        assert_eq!(
            *log.lock().unwrap(),
            ["a"],
            "the next round waits for this one"
        );
        gate.add_permits(1);
        assert_eq!(first.await.unwrap(), Some(1));
        settle().await;
        assert_eq!(*log.lock().unwrap(), ["a", "a"]);
        gate.add_permits(1);
        for asked in later {
            assert_eq!(
                asked.await.unwrap(),
                Some(2),
                "one round for all who waited"
            );
        }
        settle().await;
        assert_eq!(
            log.lock().unwrap().len(),
            2,
            "nobody waits, so nobody is asked"
        );
    }

    #[tokio::test]
    async fn questions_do_not_wait_for_others_and_nobody_is_asked_for_who_gave_up() {
        let (rounds, gate, log) = numbered();
        let ask = |question, patience| {
            let rounds = Arc::clone(&rounds);
            tokio::spawn(async move { rounds.ask(question, patience).await })
        };
        let slow = ask("slow", PATIENCE);
        settle().await;
        let gone = ask("slow", Duration::ZERO);
        assert_eq!(gone.await.unwrap(), None);
        let other = ask("other", PATIENCE);
        settle().await;
        assert_eq!(*log.lock().unwrap(), ["slow", "other"]);
        gate.add_permits(2);
        assert_eq!(slow.await.unwrap(), Some(1));
        assert_eq!(other.await.unwrap(), Some(2));
        settle().await;
        assert_eq!(log.lock().unwrap().len(), 2);
        let again = ask("slow", PATIENCE);
        gate.add_permits(1);
        assert_eq!(
            again.await.unwrap(),
            Some(3),
            "a question can be asked again"
        );
    }
}
