//! What this node must have applied before it may serve a read as if it were the leader.
//!
//! A node that does not lead asks the leader, which has a quorum confirm that it still leads and
//! answers with an index that covers everything acknowledged until then. All who wait here share
//! one question, and all questions that wait there share one round: a read costs the leader almost
//! nothing, wherever it is served. Credentials travel with the question, because the leader's
//! authority counts as well; so callers share questions only with themselves.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::api::Refusal;
use super::caller::{Credentials, Permission};
use super::rounds::Rounds;
use super::routing::{Led, Route};
use super::running::{Inner, Node, NotLed};
use super::tally::NodeCounter;
use super::wire::{self, kind};
use crate::planted::{self, Bug};
use crate::raft::{log_id_of, position_of};
use crate::transport::Priority;
use crate::wal::Position;

/// "What do I have to apply before I may serve this for this caller?"
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) struct Asking {
    pub(crate) purpose: Purpose,
    pub(crate) caller: Option<Credentials>,
}

/// What is going to be served.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(crate) enum Purpose {
    Backup,
    Query,
    /// A mix of reads and writes that turned out to have no writes.
    Request,
    /// Nothing: whether this node has caught up is all that is asked.
    Readiness,
}

impl Purpose {
    /// What a caller needs for it, and the word for it in rqlite's refusals.
    const fn permissions(self) -> (&'static [Permission], &'static str) {
        match self {
            Self::Backup => (&[Permission::Backup], "backup"),
            Self::Query => (&[Permission::Query], "query"),
            Self::Request => (&[Permission::Query, Permission::Execute], "Request"),
            Self::Readiness => (&[], "readyz"),
        }
    }
}

/// The answer to [`Asking`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Asked {
    /// This much, as confirmed under the leadership that this entry is of.
    Index(wire::LogIdMirror),
    NotLeader,
    Refused(Refusal),
}

/// The questions of this node to the leader.
pub(crate) type Questions = Rounds<Asking, Result<Position, NotLed>>;

impl Questions {
    /// The questions of a node that is yet to be completed.
    pub(crate) fn of(node: Arc<OnceLock<Weak<Inner>>>) -> Self {
        Self::start(move |asking| {
            let inner = node.get().and_then(Weak::upgrade);
            async move {
                match inner {
                    Some(inner) => inner.ask_leader(&asking).await,
                    None => Err(None),
                }
            }
        })
    }
}

impl Node {
    /// Waits until this node has applied everything that was acknowledged when it was called.
    ///
    /// # Errors
    ///
    /// [`Refusal::LeaderNotFound`] when no leader has confirmed how much that is for
    /// `confirm_timeout`, [`Refusal::TimedOut`] when it is not applied by the deadline, and
    /// [`Refusal::NotPermitted`].
    pub(crate) async fn catch_up_with_leader(
        &self,
        asking: &Asking,
        confirm_timeout: Duration,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        loop {
            let confirmed_by = deadline.min(Instant::now() + confirm_timeout);
            let confirmed = self.read_index(asking, confirmed_by).await?;
            if self.inner()?.reach(confirmed, deadline).await? {
                return Ok(());
            }
        }
    }

    /// What has to be applied here before this node knows everything that was acknowledged when it
    /// was asked.
    async fn read_index(&self, asking: &Asking, deadline: Instant) -> Result<Position, Refusal> {
        self.at_leader(deadline, |inner, route, left| async move {
            match route {
                Route::Here => inner.confirmed().await,
                Route::There { .. } if planted::is(Bug::ReadIndexOfOneself) => {
                    inner.frontier.reached().applied.ok_or(None)
                }
                Route::There { .. } => {
                    let answer = inner.questions.ask(asking.clone(), left).await;
                    answer.unwrap_or(Err(None))
                }
            }
        })
        .await
    }
}

impl Inner {
    /// On the leader: what covers everything that was acknowledged before now.
    pub(crate) async fn confirmed(&self) -> Result<Position, NotLed> {
        if planted::is(Bug::ReadIndexUnconfirmed) {
            return self.frontier.reached().applied.ok_or(None);
        }
        let patience = self.options.election_max() * 2;
        self.confirmations.confirm(patience).await.ok_or(None)
    }

    /// Asks whoever leads at this moment, once.
    async fn ask_leader(&self, asking: &Asking) -> Result<Position, NotLed> {
        let (node, addr) = match self.route() {
            None => return Err(None),
            Some(Route::Here) => return self.confirmed().await,
            Some(Route::There { node, addr }) => (node, addr),
        };
        self.tally.count(NodeCounter::ReadIndexQuestions);
        let peer = self.endpoint.peer(&addr, Some(node));
        let body = Bytes::from(wire::encode(asking));
        let patience = self.options.election_max() * 4;
        let asked = peer.request(kind::READ_INDEX, Priority::Data, body, patience);
        let reply = self.while_leads(node, asked).await.ok_or(None)?;
        let reply = reply.map_err(|error| {
            tracing::debug!(%error, "the leader cannot be asked for a read index");
            None
        })?;
        match wire::decode::<Asked>(&reply) {
            Ok(Asked::Index(index)) => Ok(position_of(&index.into())),
            Ok(Asked::Refused(refusal)) => Err(Some(refusal)),
            Ok(Asked::NotLeader) | Err(_) => Err(None),
        }
    }

    /// Answers a node that does not lead.
    pub(crate) async fn asked_index(&self, asking: Asking) -> Asked {
        let (permissions, what) = asking.purpose.permissions();
        if !permissions.is_empty() && !self.permits(asking.caller, permissions).await {
            return Asked::Refused(Refusal::NotPermitted(what.to_owned()));
        }
        match self.confirmed().await {
            Ok(position) => Asked::Index(log_id_of(position).into()),
            Err(_) => Asked::NotLeader,
        }
    }

    /// Waits until what a leader confirmed is applied here, and published. `false`: another
    /// leadership came in between, which may never have that entry; ask again.
    pub(crate) async fn reach(
        &self,
        confirmed: Position,
        deadline: Instant,
    ) -> Result<bool, Refusal> {
        let leadership = (confirmed.term, confirmed.node);
        let mut led = self.led.subscribe();
        let awaited = !planted::is(Bug::ReadIndexNotAwaited);
        if awaited && self.frontier.reached().index() < confirmed.index {
            tokio::select! {
                applied = self.applied(confirmed.index, deadline) => applied?,
                _ = led.wait_for(|led| led.vote > leadership) => return Ok(false),
            }
        }
        Ok(Led::now(&self.raft).vote <= leadership)
    }
}
