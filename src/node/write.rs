//! The write path on the leader: requests queue up, and a group at a time is executed and proposed.
//!
//! One group is in flight at a time; while it waits for the quorum, the next one fills. That is
//! group commit: one SQLite transaction, one log entry, one fsync and one round trip for everything
//! that arrived meanwhile, and for what arrives while it is held (see [`Gathering`]). The owner
//! thread takes its groups from the queue itself, and answers itself: each thread in between would
//! have to be woken, and that is what a small write costs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use super::api::{Refusal, Served, WriteRequest};
use super::clients::{Clients, Waiter, answer, deliver, doubtful};
use super::flight::Discard;
use super::gathering::Gathering;
use super::owner::{GroupEnd, Job, Load};
use super::proposer::Ticket;
use super::running::{Inner, NotLed};
use super::stages::Stage;
use crate::planted::{self, Bug};
use crate::raft::LeaderId;
use crate::sqlite::{Interest, Reply, Request, SqlCommit, Writer};

/// Requests that wait for their group, which they do not leave: mostly one.
struct QueuedWrite {
    requests: Vec<Request>,
    bytes: usize,
    /// In all of them together.
    interest: Interest,
    /// One for each request.
    waiters: Vec<Waiter>,
}

/// The entrance of the write path.
pub(crate) struct WriteQueue {
    line: Mutex<Line>,
    /// The owner thread waits here while it holds a group.
    gathered: Condvar,
    /// Whose queue it is.
    inner: OnceLock<Weak<Inner>>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Line {
    writes: VecDeque<QueuedWrite>,
    /// Whether the owner thread has been told that there are some.
    is_announced: bool,
    is_closed: bool,
    gathering: Gathering,
}

impl WriteQueue {
    pub(crate) fn new() -> Self {
        Self {
            line: Mutex::default(),
            gathered: Condvar::new(),
            inner: OnceLock::new(),
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
        }
    }

    /// The owner thread is told on behalf of this node from now on; once.
    pub(crate) fn connect(&self, inner: &Arc<Inner>) {
        let connected = self.inner.set(Arc::downgrade(inner));
        assert!(connected.is_ok(), "connected once");
    }

    /// Takes nothing more, and gives up what waits: nothing runs it any more.
    pub(crate) fn close(&self) {
        let mut line = self.line();
        line.is_closed = true;
        let writes = std::mem::take(&mut line.writes);
        drop(line);
        self.gathered.notify_one();
        drop(writes);
    }

    /// Queues a write and waits for its answer. Refused at once if too much is queued already. Who
    /// gives up waiting ends it, unless it may be committed already.
    pub(crate) async fn write(&self, write: WriteRequest) -> Result<(Reply, Option<u64>), NotLed> {
        let mut written = self.write_all(vec![write.request], write.timeout).await?;
        let missing = || Some(Refusal::NotCommitted("it was not run".to_owned()));
        written.pop().ok_or_else(missing)?
    }

    /// Queues writes that are run in this order and in one group, each by itself, and waits for
    /// their answers; given up together, too.
    pub(crate) async fn write_all(
        &self,
        requests: Vec<Request>,
        timeout: Duration,
    ) -> Result<Vec<Result<(Reply, Option<u64>), NotLed>>, NotLed> {
        let bytes = requests.iter().map(Request::weight).sum::<usize>();
        let permits = u32::try_from(bytes.min(QUEUE_BYTES_MAX)).expect("capped by the queue");
        let room = Arc::clone(&self.room).try_acquire_many_owned(permits);
        let Ok(room) = room else {
            let why = format!("more than {} MiB are queued", QUEUE_BYTES_MAX >> 20);
            return Err(Some(Refusal::Overloaded(why)));
        };
        let room = Arc::new(room);
        let interest = Interest::default();
        // Also when the client goes away: then this future is dropped.
        let _waiting = interest.waiting();
        let waiter = |_: &Request| Waiter::new(Some(interest.clone()), Some(Arc::clone(&room)));
        let (waiters, answers): (Vec<_>, Vec<_>) = requests.iter().map(waiter).unzip();
        let queued = QueuedWrite {
            requests,
            bytes,
            interest: interest.clone(),
            waiters,
        };
        if !self.push(queued) {
            let why = "this node is shutting down".to_owned();
            return Err(Some(Refusal::NotCommitted(why)));
        }
        let deadline = tokio::time::Instant::now() + timeout;
        let mut written = Vec::with_capacity(answers.len());
        for answer in answers {
            let answer = tokio::time::timeout_at(deadline, answer).await;
            written.push(match answer {
                Ok(Ok(written)) => written.map(|written| (written.reply, written.raft_index)),
                Ok(Err(_)) if interest.lose() => {
                    let why = "the node is shutting down".to_owned();
                    Err(Some(Refusal::NotCommitted(why)))
                }
                Ok(Err(_)) => Err(Some(Refusal::Unknown(
                    "the node stopped meanwhile".to_owned(),
                ))),
                // Given up as a whole: the others will not be run either.
                Err(_) if interest.lose() => {
                    let why = format!("it was not finished within {timeout:?}");
                    return Err(Some(Refusal::NotCommitted(why)));
                }
                Err(_) => {
                    let why = format!("the quorum did not answer within {timeout:?}");
                    Err(Some(Refusal::Unknown(why)))
                }
            });
        }
        Ok(written)
    }

    /// `false`: it is closed.
    fn push(&self, queued: QueuedWrite) -> bool {
        let mut line = self.line();
        if line.is_closed {
            return false;
        }
        line.writes.push_back(queued);
        let is_complete = line.gathering.is_complete(line.writes.len());
        let is_announced = std::mem::replace(&mut line.is_announced, true);
        drop(line);
        if is_complete {
            self.gathered.notify_one();
        }
        if !is_announced {
            self.announce();
        }
        true
    }

    /// Has the owner thread run a group, after what it was asked for before.
    fn announce(&self) {
        // Without a node there is nobody left to answer to.
        if let Some(inner) = self.inner.get().and_then(Weak::upgrade) {
            let owner = Arc::clone(&inner.owner);
            owner.submit(Job::Writes(inner));
        }
    }

    /// Holds the next group for clients that are about to come back, where that pays.
    fn gather(&self) {
        let mut line = self.line();
        let waiting = line.writes.len();
        let Some(limit) = line.gathering.begin(waiting) else {
            return;
        };
        let begun = Instant::now();
        let is_missing =
            |line: &mut Line| !line.is_closed && line.gathering.misses(line.writes.len());
        let held = self.gathered.wait_timeout_while(line, limit, is_missing);
        let (mut line, _) = held.unwrap_or_else(PoisonError::into_inner);
        let arrived = line.writes.len().saturating_sub(waiting);
        line.gathering.ended(waiting, arrived, begun.elapsed());
    }

    /// Takes what is queued, up to the limits of a group. A request that cannot share a transaction
    /// (VACUUM) is a group of its own.
    fn take_group(&self) -> (Vec<Request>, Vec<Waiter>) {
        let (mut bytes, mut requests, mut waiters) = (0, Vec::new(), Vec::new());
        let mut line = self.line();
        while let Some(write) = line.writes.front() {
            let alone = write.requests.iter().any(Writer::runs_alone);
            let full =
                requests.len() >= GROUP_REQUESTS_MAX || bytes + write.bytes > GROUP_BYTES_MAX;
            if !requests.is_empty() && (alone || full) {
                break;
            }
            let write = line.writes.pop_front().expect("there is a first one");
            if write.interest.is_lost() {
                continue;
            }
            bytes += write.bytes;
            requests.extend(write.requests);
            waiters.extend(write.waiters);
            if alone {
                break;
            }
        }
        (requests, waiters)
    }

    /// After a group of `answered` requests: has the next one run, if there is any.
    fn go_on(&self, answered: usize, flight: Duration) {
        let mut line = self.line();
        let expected = answered + line.writes.len();
        line.gathering.group_ended(expected, flight);
        line.is_announced = !line.writes.is_empty();
        let is_announced = line.is_announced;
        drop(line);
        if is_announced {
            self.announce();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Runs a group of what is queued and answers it, on the owner thread, which runs the requests
    /// with `run`.
    pub(crate) fn run_queued(
        self: &Arc<Self>,
        run: impl FnMut(Vec<Request>, &[Interest], &Ticket) -> Option<GroupEnd>,
    ) {
        self.writes.gather();
        let begun = Instant::now();
        let (requests, waiters) = self.writes.take_group();
        let answered = requests.len();
        if !requests.is_empty() {
            match self.leading() {
                Some(leader) => self.run_group(leader, requests, waiters, run),
                None => answer(waiters, || Err(None)),
            }
        }
        self.writes.go_on(answered, begun.elapsed());
    }

    fn run_group(
        self: &Arc<Self>,
        leader: LeaderId,
        mut requests: Vec<Request>,
        waiters: Vec<Waiter>,
        mut run: impl FnMut(Vec<Request>, &[Interest], &Ticket) -> Option<GroupEnd>,
    ) {
        self.stages.add(Stage::Grouped, requests.len() as u64);
        let ticket = Ticket {
            leader,
            clients: Clients::new(waiters),
        };
        while !requests.is_empty() {
            let interests = ticket.clients.interests();
            let Some(mut end) = run(requests, &interests, &ticket) else {
                return answer(ticket.clients.take_all(), || Err(None));
            };
            requests = std::mem::take(&mut end.rest);
            // The replies of a refused transaction are none; all its waiters get the reason.
            let waiters = match end.sql_commit {
                SqlCommit::Done => ticket.clients.take(end.replies.len()),
                SqlCommit::Refused { .. } => ticket.clients.take_all(),
            };
            conclude(self, leader, waiters, end);
        }
    }
}

/// Runs a load as a group of its own, beside the queue: the owner thread takes one after the other.
pub(crate) async fn write_alone(
    inner: &Arc<Inner>,
    leader: LeaderId,
    load: Load,
    patience: Duration,
) -> Result<(Reply, Option<u64>), NotLed> {
    inner.stages.add(Stage::Grouped, 1);
    // A database is copied as a whole, and may be committed at any time.
    let interest = match &load {
        Load::Script(_, interest) => Some(interest.clone()),
        Load::Database { .. } => None,
    };
    let _waiting = interest.as_ref().map(Interest::waiting);
    let (waiter, answered) = Waiter::new(None, None);
    let ticket = Ticket {
        leader,
        clients: Clients::new(vec![waiter]),
    };
    let clients = ticket.clients.clone();
    // A task of its own, because the client may go away while the flight goes on.
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let (done, end) = oneshot::channel();
        inner.owner.submit(Job::Load { load, ticket, done });
        match end.await {
            Ok(Some(end)) => conclude(&inner, leader, clients.take_all(), end),
            Ok(None) => answer(clients.take_all(), || Err(None)),
            Err(_) => {
                let why = "the node is stopping";
                answer(clients.take_all(), || {
                    Err(Some(Refusal::Unknown(why.to_owned())))
                });
            }
        }
    });
    match tokio::time::timeout(patience, answered).await {
        Ok(Ok(written)) => written.map(|written| (written.reply, written.raft_index)),
        Ok(Err(_)) => {
            let why = "the node stopped meanwhile".to_owned();
            Err(Some(Refusal::Unknown(why)))
        }
        Err(_) if interest.is_some_and(|interest| interest.lose()) => {
            let why = format!("it was not finished within {patience:?}");
            Err(Some(Refusal::NotCommitted(why)))
        }
        Err(_) => {
            let why = format!("the quorum did not answer within {patience:?}");
            Err(Some(Refusal::Unknown(why)))
        }
    }
}

/// Turns the end of a group into answers.
fn conclude(inner: &Arc<Inner>, leader: LeaderId, waiters: Vec<Waiter>, end: GroupEnd) {
    if let Some(why) = end.refusal {
        return answer(waiters, || Err(Some(Refusal::Damaged(why.clone()))));
    }
    match (end.sql_commit, end.landed.discarded, end.landed.committed) {
        (SqlCommit::Done, None, Some(position)) if !end.is_stepwise => {
            let index = Some(position.index);
            deliver(waiters, end.replies, index);
        }
        // Nothing was written, so nothing proved that this node still leads: its answers may be
        // about a state that is long gone. They are held until a round that begins now, and it must
        // be the same leadership: a node deposed and elected again executed them in between. A
        // request that commits statement by statement may have begun with a write and ended so.
        (SqlCommit::Done, None, committed) => {
            let index = committed.map(|position| position.index);
            let Some(home) = waiters.first().map(|waiter| waiter.home().clone()) else {
                return;
            };
            let inner = Arc::clone(inner);
            home.spawn(async move {
                let patience = inner.options.election_max() * 2;
                if planted::is(Bug::UnwrittenAnsweredAtOnce) {
                    return deliver(waiters, end.replies, index);
                }
                match inner.confirmations.confirm(patience).await {
                    Some(_) if inner.leading() == Some(leader) => {
                        deliver(waiters, end.replies, index);
                    }
                    _ if index.is_some() => {
                        let why = "leadership could not be confirmed after a part of it";
                        answer(waiters, || Err(Some(Refusal::Unknown(why.to_owned()))));
                    }
                    _ => answer(waiters, || Err(None)),
                }
            });
        }
        // Part of the group is committed and the rest is not; only VACUUM's neighbours can get
        // here.
        (_, Some(_), Some(_)) => {
            let why = "leadership was lost between two of its statements";
            answer(waiters, || Err(Some(Refusal::Unknown(why.to_owned()))));
        }
        (_, Some(Discard::NotCommitted(why)), None) => {
            tracing::debug!(
                why,
                "a group was not committed; its requests are routed again"
            );
            answer(waiters, || Err(None));
        }
        (_, Some(Discard::Unknown(why)), None) => {
            answer(waiters, || Err(Some(doubtful(&why))));
        }
        (SqlCommit::Refused { .. }, None, _) => {
            let why = "SQLite rolled the group back";
            answer(waiters, || Err(Some(Refusal::NotCommitted(why.to_owned()))));
        }
    }
}

/// Builds the answer of the node that executed a request.
pub(crate) fn served(reply: Reply, raft_index: Option<u64>, served_by: &str) -> Served {
    Served {
        reply,
        raft_index,
        served_by: served_by.to_owned(),
    }
}

/// Enough for thousands of clients; a group of this size takes SQLite about a millisecond.
const GROUP_REQUESTS_MAX: usize = 1024;
/// Request bytes of one group: keeps the pages of a group near the size of one log entry.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Above this the clients are told to come back.
const QUEUE_BYTES_MAX: usize = 256 << 20;
