//! What a node must be told before it can open.

use std::path::PathBuf;
use std::time::Duration;

/// The options of a node. Whoever fills them in has checked them; see `wallaby serve -help`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeOptions {
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// `-node-id`; `None`: the advertised Raft address.
    pub name: Option<String>,
    /// Where to listen for other nodes, `host:port`.
    pub raft_addr: String,
    /// The Raft address that other nodes are told; `None`: `raft_addr`.
    pub raft_adv_addr: Option<String>,
    /// The HTTP address that others are told.
    pub http_adv_addr: String,
    /// Raft addresses of nodes whose cluster to join, `host:port`.
    pub join: Vec<String>,
    /// How many nodes must have found each other before they start a cluster; 0: do not wait.
    pub bootstrap_expect: u64,
    /// Whether foreign keys are enforced.
    pub foreign_keys: bool,
    /// File of the cluster key.
    pub cluster_key: Option<PathBuf>,
    /// Whether nodes without a key are accepted on an address that is not loopback.
    pub insecure_cluster: bool,
    /// Read-only connections, one thread each.
    pub readers: usize,
    /// How long to wait at start for another process that has the database open.
    pub open_wait: Duration,
    /// Bytes of SQLite's WAL that start a checkpoint.
    pub checkpoint_wal_bytes: u64,
    /// Interval of heartbeats; `None`: the default.
    pub heartbeat: Option<Duration>,
    /// Shortest election time-out; `None`: the default.
    pub election: Option<Duration>,
    /// Bytes of one log entry.
    pub entry_bytes_max: usize,
    /// Bytes of pages that one transaction may change.
    pub transaction_bytes_max: u64,
    /// Bytes of one transaction kept in memory before it spools to a file.
    pub spool_bytes_max: u64,
}
