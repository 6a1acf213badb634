//! How far the log has been applied: the fence, the membership, and a watch on both.
//!
//! One writer at a time: entries are applied one after the other. The owner thread advances it when
//! pages change (at the end of an injection or of SQLite's COMMIT), the apply task for every other
//! entry, so that the database and the frontier never disagree where the owner looks at them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::fence::Fence;
use crate::raft::StoredMembership;
use crate::wal::Position;

/// What readers of the frontier wait for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Reached {
    /// The last applied entry.
    pub(crate) applied: Option<Position>,
    /// The last accepted data entry; `None` before the genesis.
    pub(crate) data: Option<Position>,
}

impl Reached {
    /// The last applied index; 0 if none.
    pub(crate) fn index(&self) -> u64 {
        self.applied.map_or(0, |position| position.index)
    }
}

/// Shared between the apply task, the owner thread and everyone who waits for an index.
pub(crate) struct Frontier {
    state: Mutex<State>,
    reached: watch::Sender<Reached>,
    /// Nanoseconds of Unix time at the last advance; 0 before the first.
    advanced_ns: AtomicU64,
    is_final: watch::Sender<bool>,
}

/// The fence and the membership at the last applied entry.
#[derive(Clone)]
pub(crate) struct State {
    /// What decides about the next delta.
    pub(crate) fence: Fence,
    /// The last applied membership.
    pub(crate) membership: StoredMembership,
    /// While a stage is open: its floor, and the membership there.
    floor: Option<(Option<Position>, StoredMembership)>,
}

impl State {
    pub(crate) fn new(fence: Fence, membership: StoredMembership) -> Self {
        Self {
            fence,
            membership,
            floor: None,
        }
    }

    /// The membership that belongs to [`Fence::settled`]: what is durable, and what a snapshot
    /// carries, must not be of another entry than the pages beside it.
    pub(crate) fn settled_membership(&self) -> &StoredMembership {
        self.floor
            .as_ref()
            .map_or(&self.membership, |(_, membership)| membership)
    }

    /// Changes the state by one entry.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let result = change(self);
        // The entry that opens a stage is a delta, so the membership is still the floor's; another
        // stage that takes its place at once has a floor of its own.
        self.floor = self.fence.stage.map(|stage| match self.floor.take() {
            Some((floor, membership)) if floor == stage.floor => (floor, membership),
            _ => (stage.floor, self.membership.clone()),
        });
        result
    }
}

impl Frontier {
    pub(crate) fn new(fence: Fence, membership: StoredMembership) -> Self {
        let reached = Reached {
            applied: fence.last_applied,
            data: fence.last_data,
        };
        Self {
            state: Mutex::new(State::new(fence, membership)),
            reached: watch::Sender::new(reached),
            advanced_ns: AtomicU64::new(0),
            is_final: watch::Sender::new(false),
        }
    }

    /// The state now.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// Changes the state and wakes those who wait for it.
    pub(crate) fn advance<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = state.change(change);
        let reached = Reached {
            applied: state.fence.last_applied,
            data: state.fence.last_data,
        };
        drop(state);
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.advanced_ns.store(now, Ordering::Relaxed);
        self.reached.send_replace(reached);
        result
    }

    /// When the last entry was applied; `None` if none was since the node started.
    pub(crate) fn advanced_at(&self) -> Option<SystemTime> {
        let ns = self.advanced_ns.load(Ordering::Relaxed);
        (ns > 0).then(|| UNIX_EPOCH + Duration::from_nanos(ns))
    }

    /// A watch on what was reached.
    pub(crate) fn watch(&self) -> watch::Receiver<Reached> {
        self.reached.subscribe()
    }

    /// What was reached so far.
    pub(crate) fn reached(&self) -> Reached {
        *self.reached.borrow()
    }

    /// Waits until the index is applied.
    pub(crate) async fn wait_applied(&self, index: u64) {
        let mut watch = self.watch();
        // The sender lives in `self`, so the wait cannot fail while we are called.
        let _ = watch.wait_for(|reached| reached.index() >= index).await;
    }

    /// No further entry will be applied by this process.
    pub(crate) fn be_final(&self) {
        self.is_final.send_replace(true);
    }

    /// Waits until no further entry will be applied.
    pub(crate) async fn wait_final(&self) {
        let mut watch = self.is_final.subscribe();
        // As above.
        let _ = watch.wait_for(|is_final| *is_final).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
