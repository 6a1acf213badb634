//! Whether anybody still waits for the answer to a request. A statement whose request has lost its
//! interest is interrupted: nobody would ever see what it comes to.
//!
//! A request that writes is *sealed* right before its COMMIT. Who gives up before that knows for
//! certain that nothing of it is committed; who gives up later does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// The interest in one request; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    state: Arc<AtomicU8>,
}

/// Somebody who waits; interest is lost when this is dropped.
#[derive(Debug)]
pub struct Waiting(Interest);

/// What came of an attempt to seal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sealing {
    /// It was sealed before, by somebody who goes on from there.
    Already,
    /// Nobody waits any more.
    Lost,
    /// It is sealed by this call.
    Sealed,
}

impl Interest {
    /// Gives the request up. `true`: it is not sealed, so nothing of it will be committed.
    pub fn lose(&self) -> bool {
        self.state.fetch_or(LOST, Ordering::AcqRel) & SEALED == 0
    }

    /// Whether it was given up.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state.load(Ordering::Acquire) & LOST != 0
    }

    /// Loses the interest when what this returns is dropped.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting(self.clone())
    }

    /// From here on the request may be committed.
    pub(crate) fn seal(&self) -> Sealing {
        let sealed = self
            .state
            .compare_exchange(0, SEALED, Ordering::AcqRel, Ordering::Acquire);
        match sealed {
            Ok(_) => Sealing::Sealed,
            Err(state) if state & LOST != 0 => Sealing::Lost,
            Err(_) => Sealing::Already,
        }
    }

    /// Takes the seal off again: everything was rolled back.
    pub(crate) fn unseal(&self) {
        self.state.fetch_and(!SEALED, Ordering::AcqRel);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Whoever goes away without asking does not want to know.
        let _ = self.0.lose();
    }
}

const LOST: u8 = 1;
const SEALED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_before_the_seal_is_certain_and_later_is_not() {
        let interest = Interest::default();
        assert!(!interest.is_lost());
        assert!(interest.lose(), "nothing was sealed");
        assert!(interest.is_lost());
        assert_eq!(interest.seal(), Sealing::Lost);
        assert!(interest.lose(), "and asking again says the same");

        let interest = Interest::default();
        assert_eq!(interest.seal(), Sealing::Sealed);
        assert_eq!(interest.seal(), Sealing::Already);
        assert!(!interest.lose(), "it may be committed");
        assert_eq!(interest.seal(), Sealing::Lost);

        let interest = Interest::default();
        assert_eq!(interest.seal(), Sealing::Sealed);
        interest.unseal();
        assert!(interest.lose(), "what was sealed was rolled back");
    }

    #[test]
    fn a_dropped_waiter_is_a_lost_interest() {
        let interest = Interest::default();
        let waiting = interest.waiting();
        assert!(!interest.is_lost());
        drop(waiting);
        assert!(interest.is_lost());
    }
}
