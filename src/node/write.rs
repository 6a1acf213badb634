//! The write path on the leader: requests queue up, and a group at a time is executed and proposed.
//!
//! One group is in flight at a time; while it waits for the quorum, the next one fills. That is
//! group commit: one SQLite transaction, one log entry, one fsync and one round trip for everything
//! that arrived meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::api::{Refusal, Served, WriteRequest};
use super::flight::Discard;
use super::owner::{GroupEnd, Job, Load};
use super::proposer::Ticket;
use super::running::{Inner, NotLed};
use super::stages::Stage;
use crate::planted::{self, Bug};
use crate::raft::LeaderId;
use crate::sqlite::{Interest, Reply, Request, SqlCommit, Writer};

/// Requests that wait for their group, which they do not leave: mostly one.
pub(crate) struct QueuedWrite {
    requests: Vec<Request>,
    bytes: usize,
    /// In all of them together.
    interest: Interest,
    /// One for each request.
    waiters: Vec<Waiter>,
}

/// The answer to one write of a group.
struct Written {
    reply: Reply,
    raft_index: Option<u64>,
}

/// The entrance of the write path.
pub(crate) struct WriteQueue {
    queue: mpsc::UnboundedSender<QueuedWrite>,
    room: Arc<Semaphore>,
}

impl WriteQueue {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<QueuedWrite>) {
        let (queue, receiver) = mpsc::unbounded_channel();
        (
            Self {
                queue,
                room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            },
            receiver,
        )
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
        let waiter = |_: &Request| {
            let (done, answer) = oneshot::channel();
            let _room = Some(Arc::clone(&room));
            let interest = Some(interest.clone());
            let waiter = Waiter {
                done,
                interest,
                _room,
            };
            (waiter, answer)
        };
        let (waiters, answers): (Vec<_>, Vec<_>) = requests.iter().map(waiter).unzip();
        let queued = QueuedWrite {
            requests,
            bytes,
            interest: interest.clone(),
            waiters,
        };
        if self.queue.send(queued).is_err() {
            return Err(Some(Refusal::NotCommitted(
                "this node is shutting down".to_owned(),
            )));
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
}

/// Runs groups until the node closes.
pub(crate) async fn run_groups(inner: Arc<Inner>, mut queue: mpsc::UnboundedReceiver<QueuedWrite>) {
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut group = Vec::new();
        fill(&mut group, first, &mut queue, &mut left_over);
        if group.is_empty() {
            continue;
        }
        match inner.leading() {
            Some(leader) => run_group(&inner, leader, group).await,
            None => answer(
                group.into_iter().flat_map(|write| write.waiters).collect(),
                || Err(None),
            ),
        }
    }
}

/// Takes what is queued, up to the limits of a group. A request that cannot share a transaction
/// (VACUUM) is a group of its own.
fn fill(
    group: &mut Vec<QueuedWrite>,
    first: QueuedWrite,
    queue: &mut mpsc::UnboundedReceiver<QueuedWrite>,
    left_over: &mut Option<QueuedWrite>,
) {
    let (mut bytes, mut requests) = (0, 0);
    let mut next = Some(first);
    while let Some(write) = next {
        let alone = write.requests.iter().any(Writer::runs_alone);
        let full = requests >= GROUP_REQUESTS_MAX || bytes + write.bytes > GROUP_BYTES_MAX;
        if !group.is_empty() && (alone || full) {
            *left_over = Some(write);
            return;
        }
        if !write.interest.is_lost() {
            bytes += write.bytes;
            requests += write.requests.len();
            group.push(write);
            if alone {
                return;
            }
        }
        next = queue.try_recv().ok();
    }
}

async fn run_group(inner: &Arc<Inner>, leader: LeaderId, group: Vec<QueuedWrite>) {
    let (mut requests, mut waiters) = (Vec::new(), Vec::new());
    for write in group {
        requests.extend(write.requests);
        waiters.extend(write.waiters);
    }
    inner.stages.add(Stage::Grouped, requests.len() as u64);
    while !requests.is_empty() {
        let end = run_transaction(inner, leader, requests, &mut waiters).await;
        requests = match end {
            Ok(Some(mut end)) => {
                let rest = std::mem::take(&mut end.rest);
                let later = waiters.split_off(end.replies.len().min(waiters.len()));
                // The replies of a refused transaction are none; all its waiters get the reason.
                let now = match end.sql_commit {
                    SqlCommit::Done => std::mem::replace(&mut waiters, later),
                    SqlCommit::Refused { .. } => {
                        waiters.extend(later);
                        std::mem::take(&mut waiters)
                    }
                };
                conclude(inner, leader, now, end);
                rest
            }
            Ok(None) => return answer(waiters, || Err(None)),
            Err(_) => {
                let why = "the node is stopping";
                return answer(waiters, || Err(Some(Refusal::Unknown(why.to_owned()))));
            }
        };
    }
}

/// Has the owner run the requests, or as many of them as share a transaction. If the outcome
/// becomes doubtful meanwhile the clients are told, but the flight goes on.
async fn run_transaction(
    inner: &Arc<Inner>,
    leader: LeaderId,
    requests: Vec<Request>,
    waiters: &mut Vec<Waiter>,
) -> Result<Option<GroupEnd>, oneshot::error::RecvError> {
    let interests = waiters.iter().map_while(|waiter| waiter.interest.clone());
    let interests = interests.collect();
    run_job(inner, leader, waiters, |ticket, done| Job::Group {
        requests,
        interests,
        ticket,
        done,
    })
    .await
}

async fn run_job(
    inner: &Arc<Inner>,
    leader: LeaderId,
    waiters: &mut Vec<Waiter>,
    job: impl FnOnce(Ticket, oneshot::Sender<Option<GroupEnd>>) -> Job,
) -> Result<Option<GroupEnd>, oneshot::error::RecvError> {
    let (doubt, mut doubted) = watch::channel(None);
    let ticket = Ticket {
        leader,
        doubt: Arc::new(doubt),
    };
    let (done, mut end) = oneshot::channel();
    inner.owner.submit(job(ticket, done));
    loop {
        tokio::select! {
            end = &mut end => return end,
            Ok(()) = doubted.changed() => {
                let why = doubted.borrow_and_update().clone().unwrap_or_default();
                answer(std::mem::take(waiters), || Err(Some(doubtful(&why))));
            }
        }
    }
}

/// What clients are told of a group that may be committed or not.
fn doubtful(why: &str) -> Refusal {
    if planted::is(Bug::UnknownReportedAsRefused) {
        return Refusal::NotCommitted(why.to_owned());
    }
    Refusal::Unknown(why.to_owned())
}

/// Runs a load as a group of its own, beside the queue: the owner thread takes one after the other.
pub(crate) async fn write_alone(
    inner: &Arc<Inner>,
    leader: LeaderId,
    load: Load,
    patience: Duration,
) -> Result<(Reply, Option<u64>), NotLed> {
    inner.stages.add(Stage::Grouped, 1);
    let (done, answered) = oneshot::channel();
    // A database is copied as a whole, and may be committed at any time.
    let interest = match &load {
        Load::Script(_, interest) => Some(interest.clone()),
        Load::Database { .. } => None,
    };
    let _waiting = interest.as_ref().map(Interest::waiting);
    let mut waiters = vec![Waiter {
        done,
        interest: None,
        _room: None,
    }];
    // A task of its own, because the client may go away while the flight goes on.
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let job = |ticket, done| Job::Load { load, ticket, done };
        match run_job(&inner, leader, &mut waiters, job).await {
            Ok(Some(end)) => conclude(&inner, leader, waiters, end),
            Ok(None) => answer(waiters, || Err(None)),
            Err(_) => {
                let why = "the node is stopping";
                answer(waiters, || Err(Some(Refusal::Unknown(why.to_owned()))));
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
            let inner = Arc::clone(inner);
            tokio::spawn(async move {
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

struct Waiter {
    done: oneshot::Sender<Result<Written, NotLed>>,
    /// `None`: it runs to its end whoever waits.
    interest: Option<Interest>,
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

/// Clients that went away are no reason to stop, so failed sends are ignored below.
fn deliver(waiters: Vec<Waiter>, replies: Vec<Reply>, raft_index: Option<u64>) {
    for (waiter, reply) in waiters.into_iter().zip(replies) {
        let _ = waiter.done.send(Ok(Written { reply, raft_index }));
    }
}

fn answer(waiters: Vec<Waiter>, answer: impl Fn() -> Result<Written, NotLed>) {
    for waiter in waiters {
        let _ = waiter.done.send(answer());
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
