//! Where the members are: as the membership says, or as they have said themselves since.
//!
//! A member that comes back at another address needs a leader to have that recorded, and the leader
//! may need that member's vote to be one. So whoever is told of the new address uses it at once.
//! That is safe: the transport asks for the Raft id at the other end, so a wrong address leads to
//! nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use openraft::async_runtime::WatchReceiver as _;

use super::Raft;

/// The addresses of the members.
pub(crate) struct Places {
    raft: Arc<OnceLock<Raft>>,
    moved: Mutex<BTreeMap<u64, Move>>,
}

/// What a member has said, and what the membership said at that time: once that changes, it is the
/// newer of the two.
struct Move {
    from: String,
    to: String,
}

impl Places {
    pub(crate) fn new(raft: &Arc<OnceLock<Raft>>) -> Arc<Self> {
        Arc::new(Self {
            raft: Arc::clone(raft),
            moved: Mutex::default(),
        })
    }

    /// Where a member is to be dialed; `fallback` if it is none.
    pub(crate) fn of(&self, member: u64, fallback: &str) -> String {
        let known = self.recorded(member);
        let known = known.unwrap_or_else(|| fallback.to_owned());
        let moved = self.lock();
        match moved.get(&member) {
            Some(moved) if moved.from == known => moved.to.clone(),
            _ => known,
        }
    }

    /// Takes note of where a member says that it is. Others are not remembered.
    pub(crate) fn note(&self, member: u64, raft_addr: &str) {
        let Some(known) = self.recorded(member) else {
            return;
        };
        let mut moved = self.lock();
        if known == raft_addr {
            moved.remove(&member);
            return;
        }
        // Bounded by the members that there are.
        moved.retain(|id, _| self.recorded(*id).is_some());
        let to = raft_addr.to_owned();
        moved.insert(member, Move { from: known, to });
    }

    fn recorded(&self, member: u64) -> Option<String> {
        let metrics = self.raft.get()?.metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics.membership_config.membership().get_node(&member);
        member.map(|member| member.raft_addr.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Move>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
