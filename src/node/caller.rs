//! On whose behalf a request is made, and what callers may do.
//!
//! A node that hands a request on sends the caller's credentials along, and the node that serves
//! it asks its own authority again: a permission that was taken away on the leader holds even while
//! a follower does not know of it yet.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// The name and password that came with a request.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Credentials {
    /// The name of the user.
    pub username: String,
    /// The password as the caller gave it.
    pub password: String,
}

/// Shows the name only: a password never reaches a log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// One thing that callers may be allowed to do, by the names in rqlite's users file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Permission {
    /// `backup`: copy the database.
    Backup,
    /// `execute`: change data.
    Execute,
    /// `join`: become a voting member.
    Join,
    /// `join-read-only`: become a member that does not vote.
    JoinReadOnly,
    /// `leader-ops`: ask for the leader, and move the leadership.
    LeaderOps,
    /// `load`: replace the database.
    Load,
    /// `query`: read data.
    Query,
    /// `ready`: ask whether the node is ready.
    Ready,
    /// `remove`: remove a member.
    Remove,
    /// `snapshot`: take snapshots and clean up.
    Snapshot,
    /// `status`: see the state of node and cluster.
    Status,
    /// `ui`: use the console.
    Ui,
}

impl Permission {
    /// All permissions, by name.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::Backup, "backup"),
        (Self::Execute, "execute"),
        (Self::Join, "join"),
        (Self::JoinReadOnly, "join-read-only"),
        (Self::LeaderOps, "leader-ops"),
        (Self::Load, "load"),
        (Self::Query, "query"),
        (Self::Ready, "ready"),
        (Self::Remove, "remove"),
        (Self::Snapshot, "snapshot"),
        (Self::Status, "status"),
        (Self::Ui, "ui"),
    ];

    /// Its name in a users file.
    #[must_use]
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        let found = all.find(|(permission, _)| *permission == self);
        found.expect("the table has every permission").1
    }
}

/// Knows who may do what. A node without one allows everything to everybody.
pub trait Authority: fmt::Debug + Send + Sync {
    /// Whether this caller may do all of this, as far as that is known without effort; `None` is a
    /// caller without credentials. No answer: a password has to be checked, see
    /// [`Authority::permits`].
    fn permits_at_once(
        &self,
        caller: Option<&Credentials>,
        permissions: &[Permission],
    ) -> Option<bool>;

    /// Whether this caller may do all of this. May take as long, and as much memory, as checking a
    /// password does.
    fn permits(&self, caller: Option<&Credentials>, permissions: &[Permission]) -> bool;
}

/// Asks the authority, without letting strangers with wrong passwords take all of the machine.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    authority: Option<Arc<dyn Authority>>,
    checks: Semaphore,
}

impl Doorkeeper {
    pub(crate) fn new(authority: Option<Arc<dyn Authority>>) -> Self {
        Self {
            authority,
            checks: Semaphore::new(CHECKS_MAX),
        }
    }

    /// Whether there is an authority at all.
    pub(crate) fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Whether a caller may do all of this here. A password that has to be checked waits its turn,
    /// on a thread of its own; those known already do not wait behind it.
    pub(crate) async fn permits(
        &self,
        caller: Option<&Credentials>,
        permissions: &'static [Permission],
    ) -> bool {
        let Some(authority) = &self.authority else {
            return true;
        };
        if let Some(known) = authority.permits_at_once(caller, permissions) {
            return known;
        }
        let Ok(_turn) = self.checks.acquire().await else {
            return false;
        };
        // The same password may have been checked while this one waited.
        if let Some(known) = authority.permits_at_once(caller, permissions) {
            return known;
        }
        let (authority, caller) = (Arc::clone(authority), caller.cloned());
        let asking =
            tokio::task::spawn_blocking(move || authority.permits(caller.as_ref(), permissions));
        asking.await.unwrap_or(false)
    }
}

/// Passwords checked at a time: each takes a core, and tens of MiB.
const CHECKS_MAX: usize = 2;
