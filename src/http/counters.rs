//! What the HTTP interface counts, as `/debug/vars` shows it, in rqlite's words.

use crate::node::counted;

counted! {
    /// What the HTTP interface counts.
    pub(super) enum HttpCounter {
        /// Calls of `/db/execute`.
        Executions = ("http", "executions"),
        /// Statements in them.
        ExecuteStatements = ("http", "execute_stmts_rx"),
        /// Calls that found no leader.
        LeaderNotFound = ("http", "leader_not_found"),
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
        /// Calls of `/status`.
        Status = ("http", "num_status"),
    }
}
