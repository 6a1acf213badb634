//! What the HTTP interface counts, as `/debug/vars` shows it, in rqlite's words.

use crate::node::counted;

use super::routes::Endpoint;

counted! {
    /// What the HTTP interface counts.
    pub(super) enum HttpCounter {
        /// Calls of `/db/backup`.
        Backups = ("http", "backups"),
        /// Calls of `/boot`.
        Boots = ("http", "boot"),
        /// Calls of `/db/execute`.
        Executions = ("http", "executions"),
        /// Statements in them.
        ExecuteStatements = ("http", "execute_stmts_rx"),
        /// Calls that found no leader.
        LeaderNotFound = ("http", "leader_not_found"),
        /// Calls of `/db/load`.
        Loads = ("http", "loads"),
        /// Calls of `/db/query`.
        Queries = ("http", "queries"),
        /// Statements in them.
        QueryStatements = ("http", "query_stmts_rx"),
        /// Calls of `/readyz`.
        Readyz = ("http", "num_readyz"),
        /// Calls of `/db/request`.
        Requests = ("http", "requests"),
        /// Statements in them.
        RequestStatements = ("http", "request_stmts_rx"),
        /// Calls of `/snapshot`.
        Snapshots = ("http", "user_snapshots"),
        /// Calls of `/status`.
        Status = ("http", "num_status"),
    }
}

impl HttpCounter {
    /// What a call of an endpoint counts as, besides what the endpoint counts itself.
    pub(super) fn of(endpoint: Endpoint) -> Option<Self> {
        match endpoint {
            Endpoint::Backup => Some(Self::Backups),
            Endpoint::Boot => Some(Self::Boots),
            Endpoint::Load => Some(Self::Loads),
            Endpoint::Ready => Some(Self::Readyz),
            Endpoint::Snapshot => Some(Self::Snapshots),
            Endpoint::Status => Some(Self::Status),
            _ => None,
        }
    }
}
