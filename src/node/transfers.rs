//! Transfers of the database between nodes: how far each is, for `/status` and the log, and which
//! part of the log the receivers will need next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::api::CatchUp;

/// A transfer as it is shown.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TransferStatus {
    /// Raft id of the other node.
    pub peer: u64,
    /// Whether this node sends.
    pub is_sending: bool,
    /// What is going on: `preparing`, `comparing`, `verifying` or `installing`.
    pub phase: &'static str,
    /// The log index that the database is sent at; 0: not known yet.
    pub index: u64,
    /// How far the phase is.
    pub percent: u8,
    /// Bytes of pages sent or received, as they travel.
    pub bytes: u64,
    /// Of them, in the last second or so.
    pub bytes_per_second: u64,
}

/// All transfers of this node.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    running: BTreeMap<u64, Running>,
    /// By receiver: it needs the log behind this index, until the moment.
    needs: BTreeMap<u64, (u64, Option<Instant>)>,
}

#[derive(Debug)]
struct Running {
    shown: TransferStatus,
    begun: Instant,
    logged: Instant,
    /// When the rate was taken last, and the bytes then.
    rated: (Instant, u64),
}

/// One transfer; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Transfer {
    transfers: Arc<Transfers>,
    number: u64,
}

impl Transfers {
    pub(crate) fn begin(self: &Arc<Self>, peer: u64, is_sending: bool) -> Transfer {
        let now = Instant::now();
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let shown = TransferStatus {
            peer,
            is_sending,
            phase: "preparing",
            ..TransferStatus::default()
        };
        let running = Running {
            shown,
            begun: now,
            logged: now,
            rated: (now, 0),
        };
        state.running.insert(number, running);
        Transfer {
            transfers: Arc::clone(self),
            number,
        }
    }

    pub(crate) fn all(&self) -> Vec<TransferStatus> {
        let state = self.lock();
        let running = state.running.values();
        running.map(|running| running.shown.clone()).collect()
    }

    /// The transfer that this node receives, if any.
    pub(crate) fn catch_up(&self) -> Option<CatchUp> {
        let mut all = self.all().into_iter();
        let received = all.find(|transfer| !transfer.is_sending)?;
        Some(CatchUp {
            percent: received.percent,
            bytes_per_second: received.bytes_per_second,
        })
    }

    /// The lowest index behind which a receiver still needs the log.
    pub(crate) fn needed(&self) -> Option<u64> {
        let mut state = self.lock();
        let now = Instant::now();
        state
            .needs
            .retain(|_, (_, until)| until.is_none_or(|until| until > now));
        state.needs.values().map(|(index, _)| *index).min()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer {
    /// The database is sent at this index, and its receiver will need the log behind `needed`.
    pub(crate) fn at(&self, index: u64, needed: Option<u64>) {
        let mut state = self.transfers.lock();
        let Some(running) = state.running.get_mut(&self.number) else {
            return;
        };
        running.shown.index = index;
        let peer = running.shown.peer;
        if let Some(needed) = needed {
            state.needs.insert(peer, (needed, None));
        }
    }

    pub(crate) fn phase(&self, phase: &'static str) {
        self.change(|shown| {
            shown.phase = phase;
            shown.percent = 0;
        });
    }

    /// `done` of `all` pages are dealt with, and so many more bytes have travelled.
    pub(crate) fn advance(&self, done: u64, all: u64, bytes: usize) {
        self.change(|shown| {
            let percent = done.saturating_mul(100) / all.max(1);
            shown.percent = u8::try_from(percent.min(100)).unwrap_or(100);
            shown.bytes += bytes as u64;
        });
    }

    pub(crate) fn bytes(&self) -> u64 {
        let state = self.transfers.lock();
        let running = state.running.get(&self.number);
        running.map_or(0, |running| running.shown.bytes)
    }

    fn change(&self, change: impl FnOnce(&mut TransferStatus)) {
        let mut state = self.transfers.lock();
        let Some(running) = state.running.get_mut(&self.number) else {
            return;
        };
        change(&mut running.shown);
        let now = Instant::now();
        let (at, before) = running.rated;
        let passed = now.duration_since(at);
        if passed >= RATE_OVER {
            running.shown.bytes_per_second = rate(running.shown.bytes - before, passed);
            running.rated = (now, running.shown.bytes);
        } else if now.duration_since(running.begun) < RATE_OVER {
            running.shown.bytes_per_second = rate(running.shown.bytes, passed);
        }
        if now.duration_since(running.logged) >= LOG_EVERY {
            running.logged = now;
            let TransferStatus {
                peer,
                is_sending,
                phase,
                index,
                percent,
                bytes,
                bytes_per_second,
            } = running.shown;
            tracing::info!(
                peer,
                is_sending,
                phase,
                index,
                percent,
                bytes,
                bytes_per_second,
                "a transfer of the database goes on"
            );
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut state = self.transfers.lock();
        let Some(ended) = state.running.remove(&self.number) else {
            return;
        };
        if let Some((_, until)) = state.needs.get_mut(&ended.shown.peer) {
            // Its replication goes on from there, or the transfer is tried again.
            *until = Some(Instant::now() + NEEDED_FOR);
        }
    }
}

const RATE_OVER: Duration = Duration::from_secs(1);
const LOG_EVERY: Duration = Duration::from_secs(10);
/// A receiver that has the database asks for the entries behind it at once.
const NEEDED_FOR: Duration = Duration::from_secs(5);

/// Bytes per second.
fn rate(bytes: u64, over: Duration) -> u64 {
    let millis = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_shown_while_it_runs_and_keeps_the_log_for_a_while_longer() {
        let transfers = Arc::new(Transfers::default());
        let sending = transfers.begin(7, true);
        assert_eq!(transfers.needed(), None);
        sending.at(100, Some(90));
        sending.phase("comparing");
        sending.advance(1, 4, 512);
        let [shown] = &transfers.all()[..] else {
            panic!("one transfer");
        };
        assert_eq!((shown.percent, shown.bytes, shown.index), (25, 512, 100));
        assert_eq!(transfers.catch_up(), None);
        let receiving = transfers.begin(8, false);
        receiving.advance(3, 4, 1);
        assert_eq!(transfers.catch_up().map(|shown| shown.percent), Some(75));
        drop((sending, receiving));
        assert!(transfers.all().is_empty());
        assert_eq!(transfers.needed(), Some(90));
    }
}
