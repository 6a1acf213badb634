//! The group in flight: executed, proposed, and blocked inside xSync until its fate is known.
//!
//! ```text
//!   register --> Waiting --release--> Released --settled--> gone   (SQLite has published it)
//!                   |
//!                   +-----discard---> Discarded --settled--> gone  (SQLite has rolled back)
//! ```
//!
//! Release: apply of the flight's own last part. Discard: a data entry that is not ours, any entry
//! of a higher term, a snapshot install, or a refusal to append; besides, the end of the process.
//! There is no time-out: as long as this node may still be the leader of that term, the entry may
//! still commit, and SQLite must neither publish nor forget it.

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::oneshot;

use crate::wal::Position;

/// Why a flight was given up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Discard {
    /// Its last part was never appended, or was rejected by the fence: certainly not committed.
    NotCommitted(String),
    /// It may still be committed by another leader.
    Unknown(String),
}

/// The fate of a flight.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    /// Committed by the quorum at this position.
    Release(Position),
    /// Given up.
    Discard(Discard),
}

/// What the thread that is blocked inside xSync is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Signal {
    /// Its flight is decided.
    Decided(Fate),
    /// Somebody needs a frozen image of the database as it is before the flight. It cannot wait:
    /// the quorum that decides the flight may need the very follower that the image is for. Also
    /// sent when nobody does, to wake the thread.
    Hold,
}

/// The flight of this node, if one is in the air.
#[derive(Default)]
pub(crate) struct Flights {
    current: Mutex<Option<Flight>>,
}

struct Flight {
    sequence: u64,
    term: u64,
    signals: mpsc::Sender<Signal>,
    decided: bool,
    settled: Vec<oneshot::Sender<()>>,
}

impl Flights {
    /// Puts a flight into the air; the receiver is where its thread learns its fate.
    pub(crate) fn register(&self, sequence: u64, term: u64) -> mpsc::Receiver<Signal> {
        let (signals, receiver) = mpsc::channel();
        let flight = Flight {
            sequence,
            term,
            signals,
            decided: false,
            settled: Vec::new(),
        };
        let previous = self.lock().replace(flight);
        assert!(previous.is_none(), "one group is in flight at a time");
        receiver
    }

    /// Asks the thread of a flight in the air, if there is one, to look around: somebody wants a
    /// frozen image, or there is room for its next part.
    pub(crate) fn nudge(&self) {
        if let Some(flight) = self.lock().as_ref() {
            // The receiver lives in the gate until the flight is settled.
            let _ = flight.signals.send(Signal::Hold);
        }
    }

    /// Whether a group is in flight.
    pub(crate) fn is_in_the_air(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the delta with this sequence number of ours is the flight in the air, undecided.
    pub(crate) fn is_waiting(&self, sequence: u64) -> bool {
        self.lock()
            .as_ref()
            .is_some_and(|flight| flight.sequence == sequence && !flight.decided)
    }

    /// Releases the flight; the future ends when SQLite has published its pages. `None` if the
    /// flight is not in the air any more.
    pub(crate) fn release(
        &self,
        sequence: u64,
        position: Position,
    ) -> Option<oneshot::Receiver<()>> {
        self.decide(Fate::Release(position), |flight| {
            flight.sequence == sequence && !flight.decided
        })
    }

    /// Discards the flight with this sequence number, if it is undecided.
    pub(crate) fn discard(&self, sequence: u64, why: Discard) -> Option<oneshot::Receiver<()>> {
        self.decide(Fate::Discard(why), |flight| {
            flight.sequence == sequence && !flight.decided
        })
    }

    /// Discards whatever is in the air and undecided; the receiver also waits for the end of a
    /// flight that is decided already.
    pub(crate) fn discard_any(&self, why: &str) -> Option<oneshot::Receiver<()>> {
        self.decide(Fate::Discard(Discard::Unknown(why.to_owned())), |_| true)
    }

    /// Discards a flight that was proposed under an earlier term.
    pub(crate) fn discard_before(&self, term: u64, why: &str) -> Option<oneshot::Receiver<()>> {
        self.decide(Fate::Discard(Discard::Unknown(why.to_owned())), |flight| {
            flight.term < term
        })
    }

    /// Called by the flight's thread when SQLite is back in autocommit.
    pub(crate) fn settle(&self) {
        if let Some(flight) = self.lock().take() {
            for waiter in flight.settled {
                // A waiter that went away no longer cares.
                let _ = waiter.send(());
            }
        }
    }

    fn decide(
        &self,
        fate: Fate,
        applies: impl FnOnce(&Flight) -> bool,
    ) -> Option<oneshot::Receiver<()>> {
        let mut current = self.lock();
        let flight = current.as_mut().filter(|flight| applies(flight))?;
        let (settled, wait) = oneshot::channel();
        flight.settled.push(settled);
        if !flight.decided {
            flight.decided = true;
            // The receiver lives in the gate until the flight is settled.
            let _ = flight.signals.send(Signal::Decided(fate));
        }
        Some(wait)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Flight>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSITION: Position = Position {
        term: 3,
        node: 1,
        index: 9,
    };

    #[test]
    fn a_flight_is_released_once_and_waited_for_until_it_is_settled() {
        let flights = Flights::default();
        let fate = flights.register(5, 3);
        assert!(
            flights.release(4, POSITION).is_none(),
            "another sequence is not ours"
        );
        let mut settled = flights.release(5, POSITION).unwrap();
        assert_eq!(
            fate.try_recv(),
            Ok(Signal::Decided(Fate::Release(POSITION)))
        );
        assert!(flights.release(5, POSITION).is_none());
        assert!(settled.try_recv().is_err());
        flights.settle();
        assert_eq!(settled.try_recv(), Ok(()));
    }

    #[test]
    fn entries_of_the_same_term_leave_a_flight_alone() {
        let flights = Flights::default();
        let fate = flights.register(5, 3);
        assert!(flights.discard_before(3, "same term").is_none());
        assert!(fate.try_recv().is_err());
        assert!(flights.discard_before(4, "higher term").is_some());
        let expected = Fate::Discard(Discard::Unknown("higher term".to_owned()));
        assert_eq!(fate.try_recv(), Ok(Signal::Decided(expected)));
    }

    #[test]
    fn a_decided_flight_keeps_its_fate() {
        let flights = Flights::default();
        let fate = flights.register(5, 3);
        assert!(flights.release(5, POSITION).is_some());
        assert!(
            flights.discard_any("snapshot").is_some(),
            "but its end is waited for"
        );
        let signals: Vec<_> = fate.try_iter().collect();
        assert_eq!(signals, [Signal::Decided(Fate::Release(POSITION))]);
    }
}
