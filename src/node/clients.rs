//! Those who wait for a group of writes, and how they are answered.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::api::Refusal;
use super::running::NotLed;
use crate::planted::{self, Bug};
use crate::sqlite::{Interest, Reply};

/// The answer to one write of a group.
pub(crate) struct Written {
    pub(crate) reply: Reply,
    pub(crate) raft_index: Option<u64>,
}

/// Somebody who waits for one request.
pub(crate) struct Waiter {
    done: oneshot::Sender<Result<Written, NotLed>>,
    /// `None`: it runs to its end whoever waits.
    interest: Option<Interest>,
    _room: Option<Arc<OwnedSemaphorePermit>>,
    /// Where the answer is waited for.
    home: Handle,
}

impl Waiter {
    /// One that waits on the runtime of the caller.
    pub(crate) fn new(
        interest: Option<Interest>,
        room: Option<Arc<OwnedSemaphorePermit>>,
    ) -> (Self, oneshot::Receiver<Result<Written, NotLed>>) {
        let (done, answer) = oneshot::channel();
        let waiter = Self {
            done,
            interest,
            _room: room,
            home: Handle::current(),
        };
        (waiter, answer)
    }

    /// Where the answer is waited for.
    pub(crate) fn home(&self) -> &Handle {
        &self.home
    }
}

/// All who wait for a group that is being run, in the order of its requests. Whoever takes them
/// answers them: the owner thread when the group has ended, or the proposer when its outcome has
/// become doubtful although the flight goes on.
#[derive(Clone, Default)]
pub(crate) struct Clients(Arc<Mutex<Vec<Waiter>>>);

impl Clients {
    pub(crate) fn new(waiters: Vec<Waiter>) -> Self {
        Self(Arc::new(Mutex::new(waiters)))
    }

    /// Who waits for the requests, as far as they may be given up.
    pub(crate) fn interests(&self) -> Vec<Interest> {
        self.with(|waiters| {
            let interests = waiters.iter().map_while(|waiter| waiter.interest.clone());
            interests.collect()
        })
    }

    /// Takes those of the first requests.
    pub(crate) fn take(&self, count: usize) -> Vec<Waiter> {
        self.with(|waiters| {
            let later = waiters.split_off(count.min(waiters.len()));
            std::mem::replace(waiters, later)
        })
    }

    /// Takes all.
    pub(crate) fn take_all(&self) -> Vec<Waiter> {
        self.with(std::mem::take)
    }

    /// Tells them that nobody knows what will become of the group.
    pub(crate) fn doubt(&self, why: &str) {
        answer(self.take_all(), || Err(Some(doubtful(why))));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Waiter>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers each with its reply.
pub(crate) fn deliver(waiters: Vec<Waiter>, replies: Vec<Reply>, raft_index: Option<u64>) {
    let written = |reply| Ok(Written { reply, raft_index });
    send(
        waiters
            .into_iter()
            .zip(replies.into_iter().map(written))
            .collect(),
    );
}

/// Answers all the same.
pub(crate) fn answer(waiters: Vec<Waiter>, answer: impl Fn() -> Result<Written, NotLed>) {
    send(
        waiters
            .into_iter()
            .map(|waiter| (waiter, answer()))
            .collect(),
    );
}

/// From outside of a runtime each answer would cost a wake-up of one of its threads, which costs
/// more than the answer. So a task of the runtime hands them out, where they are waited for.
fn send(mut answers: Vec<(Waiter, Result<Written, NotLed>)>) {
    while answers.len() > 1 {
        let home = answers[0].0.home.clone();
        let (here, elsewhere) = answers
            .into_iter()
            .partition(|(waiter, _)| waiter.home.id() == home.id());
        answers = elsewhere;
        home.spawn(async move { hand_out(here) });
    }
    hand_out(answers);
}

/// Clients that went away are no reason to stop, so failed sends are ignored.
fn hand_out(answers: Vec<(Waiter, Result<Written, NotLed>)>) {
    for (waiter, answer) in answers {
        let _ = waiter.done.send(answer);
    }
}

/// What clients are told of a group that may be committed or not.
pub(crate) fn doubtful(why: &str) -> Refusal {
    if planted::is(Bug::UnknownReportedAsRefused) {
        return Refusal::NotCommitted(why.to_owned());
    }
    Refusal::Unknown(why.to_owned())
}
