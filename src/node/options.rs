//! What a node is told when it is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::caller::{Authority, Credentials};
use super::refounding::Recovery;
use super::search::Discovery;
use crate::raft::log::{Files, LogOptions};
use crate::sqlite::{Extensions, Limits};
use crate::transport::{CertificateOptions, Sockets, SystemSockets};

/// The options of a node; `wallaby serve` fills them from its flags.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// The node's name; `None`: the advertised Raft address. Fixed once the directory exists.
    pub name: Option<String>,
    /// The address that QUIC listens on, `host:port`.
    pub raft_addr: String,
    /// The address that other nodes dial; `None`: `raft_addr`.
    pub raft_adv_addr: Option<String>,
    /// The HTTP address that is told to others.
    pub http_adv_addr: String,
    /// Raft addresses of nodes to join or, with `bootstrap_expect`, to start a cluster with.
    pub join: Vec<String>,
    /// Who knows of further nodes, and may let this one start a cluster alone.
    pub discovery: Option<Arc<dyn Discovery>>,
    /// How many nodes start a new cluster together; 0: none.
    pub bootstrap_expect: u64,
    /// The nodes that are to go on as a cluster of their own, named by an operator.
    pub recovery: Option<Recovery>,
    /// Whether foreign keys are enforced.
    pub foreign_keys: bool,
    /// The file with the cluster key.
    pub cluster_key: Option<PathBuf>,
    /// Certificates of the operator's own, in place of the cluster key.
    pub node_certificates: Option<CertificateOptions>,
    /// Whether to talk to peers on other machines without authentication.
    pub insecure_cluster: bool,
    /// Threads that serve reads, at most.
    pub readers: usize,
    /// Bytes that SQLite may allocate in this process; 0: half of the machine's memory.
    pub heap_bytes_max: u64,
    /// How long to wait for another process to let go of the database file.
    pub open_wait: Duration,
    /// Bytes of SQLite's WAL that start a checkpoint.
    pub checkpoint_wal_bytes: u64,
    /// Log entries that start a checkpoint; 0: none do.
    pub checkpoint_entries: u64,
    /// How often the number of log entries is looked at.
    pub checkpoint_interval: Duration,
    /// Whether the leadership is handed over before the node closes.
    pub hands_over: bool,
    /// How long a node without a cluster looks for one before it gives up.
    pub settle_time_max: Duration,
    /// How often a node that never was a member asks to be one before it gives up; one that starts
    /// a cluster with others asks for at least `settle_time_max`.
    pub join_attempts: u32,
    /// Time between these attempts.
    pub join_interval: Duration,
    /// Whether the node holds a copy and never votes. Decided when it first joins: later the
    /// cluster's own record of it counts.
    pub replica: bool,
    /// Whether the node stops its Raft when it finds that the cluster has removed it.
    pub stops_when_removed: bool,
    /// Whether the node has itself removed from the cluster before it closes.
    pub leaves: bool,
    /// How long a voter may be silent before the leader removes it; zero: for ever.
    pub reap_voters: Duration,
    /// The same for a replica.
    pub reap_replicas: Duration,
    /// Time between heartbeats; `None`: 90 ms.
    pub heartbeat: Option<Duration>,
    /// Shortest election time-out; the longest is 1.6 times this. `None`: 250 ms.
    pub election: Option<Duration>,
    /// Largest log entry; a larger transaction travels in parts.
    pub entry_bytes_max: usize,
    /// Largest transaction; a larger one is refused and rolled back.
    pub transaction_bytes_max: u64,
    /// Memory for the pages of one transaction; above it they go to a spool file.
    pub spool_bytes_max: u64,
    /// Bytes of purged-able log that are kept for followers that lag.
    pub log_tail_bytes: u64,
    /// Bytes of log beyond that tail that are kept for nodes that are catching up just now.
    pub log_catch_up_bytes: u64,
    /// Bytes by which SQLite's WAL may grow while the database is frozen for a transfer or a
    /// backup; then the freeze is given up.
    pub snapshot_wal_bytes_max: u64,
    /// Bytes of a segment of the log; the log is purged by whole segments.
    pub log_segment_bytes: u64,
    /// The SQLite extensions that all connections of clients load.
    pub extensions: Extensions,
    /// Who may do what; `None`: everybody everything. Asked about what other nodes hand on.
    pub authority: Option<Arc<dyn Authority>>,
    /// The user as whom this node asks others to join or to start a cluster, where they have an
    /// authority.
    pub join_as: Option<Credentials>,
    /// The most bytes of result rows for one request, as they are held in memory.
    pub result_bytes_max: usize,
    /// Bytes per second of the database file that are read and compared in the background; 0: none.
    pub scrub_rate: u64,
    /// Time from the beginning of one reading of the whole file to that of the next.
    pub scrub_interval: Duration,
    /// Where the socket for other nodes comes from.
    pub sockets: Arc<dyn Sockets>,
    /// What the log is kept in; `None`: the directory `log` in the data directory.
    pub log_files: Option<Arc<dyn Files>>,
}

impl NodeOptions {
    /// The defaults of `wallaby serve` for a node on these addresses.
    #[must_use]
    pub fn new(data_dir: PathBuf, raft_addr: String, http_adv_addr: String) -> Self {
        Self {
            data_dir,
            name: None,
            raft_addr,
            raft_adv_addr: None,
            http_adv_addr,
            join: Vec::new(),
            discovery: None,
            bootstrap_expect: 0,
            recovery: None,
            foreign_keys: false,
            cluster_key: None,
            node_certificates: None,
            insecure_cluster: false,
            readers: READERS,
            heap_bytes_max: 0,
            open_wait: Duration::from_secs(10),
            checkpoint_wal_bytes: CHECKPOINT_WAL_BYTES,
            checkpoint_entries: CHECKPOINT_ENTRIES,
            checkpoint_interval: CHECKPOINT_INTERVAL,
            hands_over: true,
            settle_time_max: JOIN_INTERVAL * JOIN_ATTEMPTS,
            join_attempts: JOIN_ATTEMPTS,
            join_interval: JOIN_INTERVAL,
            replica: false,
            stops_when_removed: false,
            leaves: false,
            reap_voters: Duration::ZERO,
            reap_replicas: Duration::ZERO,
            heartbeat: None,
            election: None,
            entry_bytes_max: ENTRY_BYTES_MAX,
            transaction_bytes_max: TRANSACTION_BYTES_MAX,
            spool_bytes_max: SPOOL_BYTES_MAX,
            log_tail_bytes: LOG_TAIL_BYTES,
            log_catch_up_bytes: LOG_CATCH_UP_BYTES,
            snapshot_wal_bytes_max: SNAPSHOT_WAL_BYTES_MAX,
            log_segment_bytes: LogOptions::default().segment_bytes,
            extensions: Extensions::default(),
            authority: None,
            join_as: None,
            result_bytes_max: Limits::default().result_bytes_max,
            scrub_rate: SCRUB_RATE,
            scrub_interval: SCRUB_INTERVAL,
            sockets: Arc::new(SystemSockets),
            log_files: None,
        }
    }

    /// The address that other nodes dial.
    #[must_use]
    pub fn advertised_raft_addr(&self) -> &str {
        self.raft_adv_addr.as_deref().unwrap_or(&self.raft_addr)
    }

    /// Time between heartbeats.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat.unwrap_or(HEARTBEAT)
    }

    /// Shortest election time-out.
    #[must_use]
    pub fn election_min(&self) -> Duration {
        self.election.unwrap_or(ELECTION_MIN)
    }

    /// Longest election time-out, which is also the leader's lease.
    #[must_use]
    pub fn election_max(&self) -> Duration {
        self.election_min().mul_f64(1.6)
    }
}

/// 8 MiB/s: a thousandth of what memory gives, a hundredth of what a disk does; 100 GiB in less
/// than four hours.
pub(super) const SCRUB_RATE: u64 = 8 << 20;

/// Once a day.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Read threads: most of them only run while slow queries occupy the others.
pub(super) const READERS: usize = 64;

/// 4 MiB: about a thousand pages, checkpointed within milliseconds.
pub(super) const CHECKPOINT_WAL_BYTES: u64 = 4 << 20;

/// As many entries as rqlite lets its log grow by, and as often as it looks.
const CHECKPOINT_ENTRIES: u64 = 8192;
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// Five attempts, three seconds apart, as rqlite.
const JOIN_ATTEMPTS: u32 = 5;
const JOIN_INTERVAL: Duration = Duration::from_secs(3);

/// 2 MiB: bounds the flush that a heartbeat acknowledgement may have to wait for.
pub(super) const ENTRY_BYTES_MAX: usize = 2 << 20;

/// 4 GiB for one transaction.
pub(super) const TRANSACTION_BYTES_MAX: u64 = 4 << 30;

/// 64 MiB of page images in memory.
pub(super) const SPOOL_BYTES_MAX: u64 = 64 << 20;

/// 1 GiB: what a busy cluster writes in the minute in which a node installs what it received.
const LOG_CATCH_UP_BYTES: u64 = 1 << 30;

/// 1 GiB.
const SNAPSHOT_WAL_BYTES_MAX: u64 = 1 << 30;

/// 256 MiB: four segments.
pub(super) const LOG_TAIL_BYTES: u64 = 256 << 20;

/// See design: fail-over is the lease plus one random election time-out.
const HEARTBEAT: Duration = Duration::from_millis(90);
const ELECTION_MIN: Duration = Duration::from_millis(250);
