//! Every sub-command and flag, with its default and its help text. What the values may be is
//! decided in `config`; how they are written on the command line in `arguments`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use wallaby::http::duration;

use crate::cli::discovery_flags::DiscoveryFlags;
use crate::cli::http_flags::HttpFlags;
use crate::cli::member_flags::MemberFlags;
use crate::cli::node_flags::NodeFlags;
use crate::cli::pace::PaceFlags;
use crate::cli::rqlited::RqlitedFlags;

/// The whole command line.
#[derive(clap::Parser)]
#[command(
    name = "wallaby",
    about = "A highly available SQLite behind rqlite's HTTP API",
    after_help = "Without a sub-command, `serve` is meant: `wallaby -node-id 1 data`.",
    args_override_self = true,
    disable_help_subcommand = true
)]
pub(crate) struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Run a node. Flags come first, the data directory last; one dash or two, as in rqlited.
    Serve(Box<ServeFlags>),
    /// Show three nodes on this machine survive the loss of their leader, with proof.
    Demo(DemoFlags),
    /// Read a password from stdin and print its hash for the file in -auth.
    HashPassword,
    /// Write a new cluster key to a file (default: cluster.key) that only you can read.
    Keygen {
        /// The file; it must not exist yet.
        #[arg(default_value = "cluster.key")]
        file: PathBuf,
    },
    /// Print the versions of Wallaby, SQLite and openraft.
    Version,
}

/// The flags of `wallaby demo`.
#[derive(clap::Args)]
pub(crate) struct DemoFlags {
    /// End after the proof instead of running until Ctrl-C.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) once: bool,
    /// Keep the nodes' data under this directory (default: a temporary one, removed at the end).
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Use the six ports from this one on (default: free ports chosen by the system).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1024..=65530))]
    pub(crate) port_base: Option<u16>,
}

/// The flags of `wallaby serve`; names and meanings are rqlited's where rqlited has them.
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct ServeFlags {
    /// Name of the node, fixed when it first starts (default: its advertised Raft address).
    #[arg(long, value_name = "NAME")]
    pub(crate) node_id: Option<String>,
    /// Where to listen for HTTP.
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:4001")]
    pub(crate) http_addr: String,
    /// HTTP address that others are told (default: -http-addr).
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http_adv_addr: Option<String>,
    /// Where to listen for other nodes (QUIC, so UDP).
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:4002")]
    pub(crate) raft_addr: String,
    /// Raft address that other nodes are told (default: -raft-addr).
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) raft_adv_addr: Option<String>,
    /// Nodes of the cluster to join: Raft addresses host:port, or http://host:port of a running
    /// node.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) join: Vec<String>,
    /// Start a cluster once this many of the nodes in -join have found each other; 0: do not wait.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) bootstrap_expect: u64,
    /// How nodes find each other without -join.
    #[command(flatten)]
    pub(crate) discovery: DiscoveryFlags,
    /// SQLite extensions to load: files, directories, .zip and .tar.gz archives; the same on every
    /// node.
    #[arg(long, value_name = "LIST", value_delimiter = ',',
        value_parser = clap::builder::OsStringValueParser::new().map(PathBuf::from))]
    pub(crate) extensions_path: Vec<PathBuf>,
    /// Bytes of SQLite's WAL that start a checkpoint; 0: never because of the WAL's size.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    pub(crate) raft_snap_wal_size: u64,
    /// Enforce foreign keys.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) fk: bool,
    /// File with the cluster's secret, made by `wallaby keygen`; the same on every node.
    #[arg(long, value_name = "FILE")]
    pub(crate) cluster_key: Option<PathBuf>,
    /// Certificates in place of the cluster key.
    #[command(flatten)]
    pub(crate) node_tls: NodeFlags,
    /// Accept nodes without a cluster key on an address that is not loopback.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) insecure_cluster: bool,
    /// Read-only connections to the database at most, one thread each; 0: as many as allowed
    /// (256). More than 4 are used only while slow queries occupy the others.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) db_max_ro_conns: usize,
    /// Bytes of memory for SQLite, beyond which statements fail; 0: half of the machine's.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) db_max_heap: u64,
    /// How long to wait at start for another process that has the database open.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = span)]
    pub(crate) db_open_wait: Duration,
    /// Bytes of the largest HTTP body that is read.
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20)]
    pub(crate) http_max_body: usize,
    /// What secures the HTTP interface.
    #[command(flatten)]
    pub(crate) http: HttpFlags,
    /// Interval of the leader's heartbeats (default: 90ms).
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub(crate) raft_heartbeat_timeout: Option<Duration>,
    /// How long a follower waits at least before it stands for election (default: 250ms).
    #[arg(long, value_name = "DURATION", value_parser = span)]
    pub(crate) raft_election_timeout: Option<Duration>,
    /// Queued writes that may wait; further ones are kept waiting for room.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) write_queue_capacity: usize,
    /// Queued writes that are sent to the leader together.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) write_queue_batch_size: usize,
    /// How long a queued write waits at most for others to be sent with it.
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = span)]
    pub(crate) write_queue_timeout: Duration,
    /// Run the queued writes that are sent together as one transaction.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) write_queue_tx: bool,
    /// Bytes of pages that one transaction may change; a larger one is rolled back with an error.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    pub(crate) max_transaction_bytes: u64,
    /// Bytes of one log entry; a transaction that needs more travels in parts.
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 20)]
    pub(crate) entry_bytes: usize,
    /// Bytes of one transaction kept in memory; what is beyond goes to a spool file.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub(crate) spool_bytes: u64,
    /// Bytes of the log kept behind the last checkpoint, for nodes that were away: within it they
    /// catch up from the log, beyond it they receive the whole database.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    pub(crate) log_tail: u64,
    /// Bytes of the log kept beyond that for nodes that are catching up just now.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub(crate) log_catch_up: u64,
    /// Bytes by which SQLite's WAL may grow while the database is frozen to be sent to a node or to
    /// a backup; then the freeze ends, and a transfer to a node goes on with a newer state.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub(crate) snapshot_wal_max: u64,
    /// Bytes of one segment of the log; what is no longer needed goes by whole segments.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub(crate) log_segment: u64,
    /// Bytes of the database file that are read and compared per second in the background, to find
    /// damage; 0: none.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    pub(crate) scrub_rate: u64,
    /// Time from one such reading of the whole file to the next.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = span)]
    pub(crate) scrub_interval: Duration,
    /// error, warn, info, debug or trace; the variable RUST_LOG wins.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: String,
    /// Be killed when the process with this id, which must be the parent, ends.
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) die_with_parent: Option<u32>,
    /// Print the versions of Wallaby, SQLite and openraft, and do nothing else.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) version: bool,
    /// How often, how long, how many times.
    #[command(flatten)]
    pub(crate) pace: PaceFlags,
    /// As what and for how long it is a member.
    #[command(flatten)]
    pub(crate) member: MemberFlags,
    /// What nothing here answers to.
    #[command(flatten)]
    pub(crate) rqlited: RqlitedFlags,
    /// Where the node keeps everything; made if it does not exist.
    #[arg(value_name = "DATA-DIRECTORY")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// A duration as Go writes it.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let malformed = || format!("`{text}` is not a duration such as 300ms, 1.5s or 2m30s");
    duration::parse(text).ok_or_else(malformed)
}

/// A boolean in any of the forms that Go's flag package takes.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}
