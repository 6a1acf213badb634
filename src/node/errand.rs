//! What any node can be asked to do and only the leader can: change the cluster, and run the
//! writes of a queue. Routed like a client's statements, with the caller's credentials.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::api::{AdministrationError, Refusal, WriteBrief};
use super::caller::{Credentials, Permission};
use super::routing::{FORWARD_MARGIN, Route, undelivered};
use super::running::{Inner, Node, NotLed};
use super::wire::{self, kind};
use crate::sqlite::{Answer, Reply, Request, Writer};
use crate::transport::Priority;

/// An errand on its way to the leader.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Message {
    pub(crate) errand: Errand,
    pub(crate) timeout_ms: u64,
    pub(crate) caller: Option<Credentials>,
}

/// What the leader is asked to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Errand {
    /// Run these one after the other, each by itself.
    ExecuteAll(Vec<Request>),
    /// Remove the member of this name; `force`: also if too few of the others answer.
    Remove { name: String, force: bool },
    /// Hand the leadership over: to the member of this name, or to whoever is best for it.
    StepDown { to: Option<String>, wait: bool },
}

/// What came of an errand.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Report {
    Done,
    /// It cannot be done, as the text says.
    Impossible(String),
    /// The peer is not the leader (any more): ask whoever is.
    NotLeader,
    Refused(Refusal),
    Written(Vec<Result<WriteBrief, Refusal>>),
}

impl Errand {
    /// What a caller needs for it, and the word for it in rqlite's refusals.
    pub(crate) fn permissions(&self) -> (&'static [Permission], &'static str) {
        match self {
            Self::ExecuteAll(_) => (&[Permission::Execute], "Execute"),
            Self::Remove { .. } => (&[Permission::Remove], "remove node"),
            Self::StepDown { .. } => (&[Permission::LeaderOps], "stepdown"),
        }
    }
}

impl Node {
    /// Runs writes one after the other, each by itself: one that fails or is refused leaves the
    /// others alone. They are committed in this order, as far as they are: after one that is not,
    /// none of the later ones is.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]: nothing of it was done, except if it is `Unknown`.
    pub async fn execute_all(
        &self,
        requests: Vec<Request>,
        timeout: Duration,
        caller: Option<Credentials>,
    ) -> Result<Vec<Result<WriteBrief, Refusal>>, Refusal> {
        match self
            .errand(Errand::ExecuteAll(requests), timeout, caller)
            .await
        {
            Report::Written(briefs) => Ok(briefs),
            Report::Refused(refusal) => Err(refusal),
            other => Err(Refusal::Unknown(format!("the leader answered {other:?}"))),
        }
    }

    /// Removes the member of this name from the cluster; no such member is no error. The leader
    /// hands over first if it is the one. `force`: even if too few of the others answer for a
    /// majority; the removal is then complete only when enough of them do.
    ///
    /// # Errors
    ///
    /// [`AdministrationError`].
    pub async fn remove_member(
        &self,
        name: String,
        force: bool,
        timeout: Duration,
        caller: Option<Credentials>,
    ) -> Result<(), AdministrationError> {
        let errand = Errand::Remove { name, force };
        outcome(self.errand(errand, timeout, caller).await)
    }

    /// Has the leader hand over, to the member of this name or to one that is up to date. Ends when
    /// that is agreed on or, with `wait`, when another node leads.
    ///
    /// # Errors
    ///
    /// [`AdministrationError`].
    pub async fn step_down(
        &self,
        to: Option<String>,
        wait: bool,
        timeout: Duration,
        caller: Option<Credentials>,
    ) -> Result<(), AdministrationError> {
        let errand = Errand::StepDown { to, wait };
        outcome(self.errand(errand, timeout, caller).await)
    }

    /// Brings an errand to the leader, here or elsewhere, and again while it is certain that
    /// nothing was done, until the time is up.
    async fn errand(
        &self,
        errand: Errand,
        timeout: Duration,
        caller: Option<Credentials>,
    ) -> Report {
        let (errand, caller) = (&errand, &caller);
        let reported = self.at_leader(Instant::now() + timeout, |inner, route, left| async move {
            let report = match route {
                Route::Here => inner.run_errand(errand.clone(), left).await,
                Route::There { node, addr } => {
                    let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                    let message = Message {
                        errand: errand.clone(),
                        timeout_ms,
                        caller: caller.clone(),
                    };
                    inner.send_errand(node, &addr, &message, left).await
                }
            };
            match report {
                Report::NotLeader => Err(None),
                report => Ok(report),
            }
        });
        reported.await.unwrap_or_else(Report::Refused)
    }
}

impl Inner {
    async fn send_errand(
        &self,
        node: u64,
        addr: &str,
        message: &Message,
        timeout: Duration,
    ) -> Report {
        let body = Bytes::from(wire::encode(message));
        let peer = self.endpoint.peer(addr, Some(node));
        let patience = timeout + FORWARD_MARGIN;
        let reply = peer
            .request(kind::ERRAND, Priority::Data, body, patience)
            .await;
        match (reply, &message.errand) {
            (Ok(reply), _) => {
                let report = wire::decode(&reply);
                report.unwrap_or_else(|what| Report::Refused(Refusal::Unknown(what)))
            }
            (Err(error), Errand::ExecuteAll(_)) => match undelivered(&error, true) {
                Some(refusal) => Report::Refused(refusal),
                None => Report::NotLeader,
            },
            // To remove what is gone already does nothing.
            (Err(error), Errand::StepDown { .. }) if !error.nothing_was_delivered() => {
                let why = format!("the leader did not say whether it hands over: {error}");
                Report::Refused(Refusal::TimedOut(why))
            }
            (Err(error), _) => {
                tracing::debug!(%error, "the leader cannot be reached; routing again");
                Report::NotLeader
            }
        }
    }

    /// Runs an errand if this node leads. Changes of the cluster go on when the asker gives up.
    pub(crate) async fn run_errand(self: &Arc<Self>, errand: Errand, timeout: Duration) -> Report {
        match errand {
            Errand::ExecuteAll(requests) => match self.lead_all(requests, timeout).await {
                Ok(briefs) => Report::Written(briefs),
                Err(None) => Report::NotLeader,
                Err(Some(refusal)) => Report::Refused(refusal),
            },
            Errand::Remove { name, force } => self.dismiss(name, force, timeout).await,
            Errand::StepDown { to, wait } => self.step_down(to, wait, timeout).await,
        }
    }

    /// Writes on the node that leads, in order.
    async fn lead_all(
        &self,
        requests: Vec<Request>,
        timeout: Duration,
    ) -> Result<Vec<Result<WriteBrief, Refusal>>, NotLed> {
        let deadline = Instant::now() + timeout;
        let mut briefs = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        let mut failed = false;
        while let Some(first) = requests.next() {
            // What cannot share a transaction comes to an end before the next one begins.
            let alone = Writer::runs_alone(&first);
            let mut run = vec![first];
            while let Some(next) = requests.next_if(|next| !alone && !Writer::runs_alone(next)) {
                run.push(next);
            }
            if failed {
                let skipped = || Err(Refusal::NotCommitted("an earlier one was not".to_owned()));
                briefs.extend(run.iter().map(|_| skipped()));
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let written = if self.leading().is_none() {
                Err(None)
            } else {
                self.writes.write_all(run.clone(), left).await
            };
            let written = match written {
                Ok(written) => written,
                Err(refusal) if briefs.is_empty() => return Err(refusal),
                Err(refusal) => run.iter().map(|_| Err(refusal.clone())).collect(),
            };
            // The requests of one run share their fate, up to the first that was not committed.
            if briefs.is_empty() && written.iter().all(|one| matches!(one, Err(None))) {
                return Err(None);
            }
            failed = written.iter().any(Result::is_err);
            briefs.extend(written.into_iter().map(|one| match one {
                Ok((reply, _)) => Ok(brief(&reply)),
                Err(Some(refusal)) => Err(refusal),
                Err(None) => Err(Refusal::NotCommitted("leadership was lost".to_owned())),
            }));
        }
        Ok(briefs)
    }
}

fn brief(reply: &Reply) -> WriteBrief {
    let errors = || {
        reply
            .outcomes
            .iter()
            .filter_map(|outcome| match &outcome.answer {
                Answer::Failed(error) => Some(error),
                _ => None,
            })
    };
    WriteBrief {
        refused: reply.error.is_some(),
        failed: errors().count() as u64,
        error: reply.error.as_ref().or_else(|| errors().next()).cloned(),
    }
}

fn outcome(report: Report) -> Result<(), AdministrationError> {
    match report {
        Report::Done => Ok(()),
        Report::Impossible(why) => Err(AdministrationError::Impossible(why)),
        Report::Refused(refusal) => Err(AdministrationError::Refused(refusal)),
        other => {
            let what = format!("the leader answered {other:?}");
            Err(Refusal::TimedOut(what).into())
        }
    }
}
