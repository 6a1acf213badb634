//! Who may join this node's cluster, or start one with it. Where there is an authority, that is
//! whoever has the permission `join`, as in rqlite, or for a replica `join-read-only`; the cluster
//! key is asked for before, by the transport.
//!
//! To greet a node, and so to learn what it is, needs nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::caller::{Credentials, Doorkeeper, Permission};

/// Asks the authority about nodes, and logs whom it turns away.
pub(crate) struct JoinGate {
    doorkeeper: Arc<Doorkeeper>,
    /// The last refusal that was logged: whoever is refused asks again every second.
    logged: Mutex<Option<(String, Instant)>>,
}

impl JoinGate {
    pub(crate) fn new(doorkeeper: Arc<Doorkeeper>) -> Self {
        Self {
            doorkeeper,
            logged: Mutex::default(),
        }
    }

    /// Lets a node in whose caller has one of these permissions, or says why not in a sentence for
    /// that node's operator.
    pub(crate) async fn admit(
        &self,
        raft_addr: &str,
        caller: Option<&Credentials>,
        one_of: &'static [Permission],
    ) -> Result<(), String> {
        for permission in one_of {
            let permission = std::slice::from_ref(permission);
            if self.doorkeeper.permits(caller, permission).await {
                return Ok(());
            }
        }
        let is_half = !one_of.contains(&Permission::JoinReadOnly)
            && self
                .doorkeeper
                .permits(caller, &[Permission::JoinReadOnly])
                .await;
        let names: Vec<&str> = one_of.iter().map(|&permission| permission.name()).collect();
        let names = names.join(" or ");
        let why = match caller {
            Some(caller) if is_half => format!(
                "not authorized: user {:?} has the permission join-read-only, and may bring in \
                 only a node that does not vote; start the node with -raft-non-voter, or as a user \
                 with the permission {names}",
                caller.username
            ),
            None if is_half => format!(
                "not authorized: without a user only a node that does not vote may be brought in; \
                 start the node with -raft-non-voter, or with -join-as a user with the permission \
                 {names}"
            ),
            None => format!(
                "not authorized: this cluster has users, and only one with the permission \
                 {names} may bring in a node; start the node with -join-as USER"
            ),
            Some(caller) => format!(
                "not authorized: user {:?} is unknown here, has another password, or lacks the \
                 permission {names}; look at the users file (-auth) of both nodes",
                caller.username
            ),
        };
        self.log(raft_addr, &why);
        Err(why)
    }

    fn log(&self, raft_addr: &str, why: &str) {
        let text = format!("{raft_addr}: {why}");
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = logged
            .as_ref()
            .is_none_or(|(last, at)| *last != text || at.elapsed() >= LOG_INTERVAL);
        if is_news {
            tracing::warn!(raft_addr, why, "a node that asked to join was refused");
            *logged = Some((text, Instant::now()));
        }
    }
}

/// The same refusal is news again after this long.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
