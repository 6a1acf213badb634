//! On whose behalf a request is made, and what callers may do.
//!
//! A node that hands a request on sends the caller's credentials along, and the node that serves
//! it asks its own authority again: a permission that was taken away on the leader holds even while
//! a follower does not know of it yet.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name and password that came with a request.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
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
}

/// Knows who may do what. A node without one allows everything to everybody.
pub trait Authority: fmt::Debug + Send + Sync {
    /// Whether this caller may do this; `None` is a caller without credentials. May take as long as
    /// checking a password does.
    fn permits(&self, caller: Option<&Credentials>, permission: Permission) -> bool;
}
