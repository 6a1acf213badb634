//! When this node last heard from its leader, and how old what it has applied may be.
//!
//! Every append and heartbeat says what the leader knows to be committed. Once that much is applied
//! here, the database contains everything that was committed when the message arrived. So the age
//! of the data is bounded by this node's own clock alone: no two clocks are compared, and the
//! leader has to send nothing for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is remembered of the messages of the leader.
#[derive(Debug, Default)]
pub(crate) struct Contact(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// When anything came from a node that takes itself for the leader, and from which.
    arrived: Option<(Instant, u64)>,
    last: Option<Instant>,
    /// Everything committed up to this moment is applied here.
    current: Option<Instant>,
    /// Moments, and the index that must be applied before they become `current`; oldest first.
    pending: VecDeque<(Instant, u64)>,
}

impl Contact {
    /// Notes a message of the leader that arrived at `at` and was accepted; `committed` is the last
    /// index that it said to be committed.
    pub(crate) fn heard(&self, at: Instant, committed: u64, applied: u64) {
        let mut heard = self.lock();
        heard.last = heard.last.max(Some(at));
        heard.settle(applied);
        if committed <= applied {
            heard.current = heard.current.max(Some(at));
            return;
        }
        // Under load there are thousands a second. What is not noted makes the data look older than
        // it is, never younger.
        let newest = heard.pending.back().map(|(noted, _)| *noted);
        let is_near = newest.is_some_and(|noted| at.saturating_duration_since(noted) < GRAIN);
        if !is_near && heard.pending.len() < PENDING_MAX {
            heard.pending.push_back((at, committed));
        }
    }

    /// Notes that a message of a node that takes itself for the leader arrived, before anything is
    /// done about it: an answer waits for the disk.
    pub(crate) fn arrived(&self, at: Instant, from: u64) {
        self.lock().arrived = Some((at, from));
    }

    /// How long ago something came from this node as the leader; `None`: something came from
    /// another one since, or never.
    pub(crate) fn silence_of(&self, leader: u64) -> Option<Duration> {
        let (at, from) = self.lock().arrived?;
        (from == leader).then(|| at.elapsed())
    }

    /// How long ago the leader was last heard; `None`: never.
    pub(crate) fn silence(&self) -> Option<Duration> {
        self.lock().last.map(|last| last.elapsed())
    }

    /// The greatest age that what is applied here can have; `None`: unknown.
    pub(crate) fn age(&self, applied: u64) -> Option<Duration> {
        let mut heard = self.lock();
        heard.settle(applied);
        heard.current.map(|current| current.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn settle(&mut self, applied: u64) {
        while let Some((at, committed)) = self.pending.front().copied() {
            if committed > applied {
                return;
            }
            self.pending.pop_front();
            self.current = self.current.max(Some(at));
        }
    }
}

/// Finer than any freshness that makes sense over a network.
const GRAIN: Duration = Duration::from_millis(5);
/// With the grain: at least a third of a second of messages that are not applied yet.
const PENDING_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_as_old_as_the_last_message_of_which_everything_is_applied() {
        let contact = Contact::default();
        assert_eq!((contact.silence(), contact.age(9)), (None, None));
        let begin = Instant::now();
        let moment = |ms| begin + Duration::from_millis(ms);
        contact.heard(moment(0), 5, 5);
        contact.heard(moment(100), 7, 5);
        contact.heard(moment(200), 9, 5);
        let current = |applied| {
            let mut heard = contact.lock();
            heard.settle(applied);
            heard.current
        };
        assert_eq!(current(6), Some(moment(0)));
        assert_eq!(current(7), Some(moment(100)));
        assert_eq!(current(8), Some(moment(100)));
        contact.heard(moment(300), 9, 9);
        assert_eq!(current(9), Some(moment(300)));
        assert_eq!(contact.lock().last, Some(moment(300)));
    }

    #[test]
    fn a_node_that_lags_does_not_remember_more_and_more() {
        let contact = Contact::default();
        let begin = Instant::now();
        for message in 0..10_000 {
            contact.heard(begin + Duration::from_millis(message), 7 + message, 5);
        }
        assert_eq!(contact.lock().pending.len(), PENDING_MAX);
        assert_eq!(contact.age(5), None);
    }
}
