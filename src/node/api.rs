//! The public interface of a node, as `http` and `cli` see it: requests in, answers and errors out.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::caller::Credentials;
use super::footprint::Footprint;
use super::progress::Progress;
use super::transfers::TransferStatus;
use crate::sqlite::{Reply, Request};

/// The guarantee a read asks for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Level {
    /// Answered by the node that received it, once it has applied what the leader had committed
    /// when a quorum confirmed it (ReadIndex).
    Linearizable,
    /// Answered from the local database, whatever its age.
    None,
    /// Like linearizable, with an entry written to the log first, as rqlite does.
    Strong,
    /// Answered by the leader after a look at its own state.
    #[default]
    Weak,
}

/// A write, or a mix of reads and writes, with its delivery options.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// The statements.
    pub request: Request,
    /// How long the client is willing to wait.
    pub timeout: Duration,
    /// On whose behalf; asked again by the authority of the node that executes it.
    pub caller: Option<Credentials>,
}

impl WriteRequest {
    /// A write on nobody's behalf.
    #[must_use]
    pub fn new(request: Request, timeout: Duration) -> Self {
        Self {
            request,
            timeout,
            caller: None,
        }
    }
}

/// A read with its delivery options.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// The statements; `Shape::Query` (or `Shape::Unified` when all are reads).
    pub request: Request,
    /// The guarantee asked for.
    pub level: Level,
    /// How long the client is willing to wait; then the statements are ended.
    pub timeout: Duration,
    /// How long it may take to find a leader that is confirmed, if less than that.
    pub confirm_timeout: Option<Duration>,
    /// The log index that the data must have reached at least, as from the answer to an earlier
    /// write; 0: any. Waited for on the node that serves the read; a write has no use for it.
    pub index_min: u64,
    /// On whose behalf; asked again by the authority of the node that executes it.
    pub caller: Option<Credentials>,
    /// How old the data may be; only for [`Level::None`], and not on the leader.
    pub freshness: Option<Freshness>,
}

/// How old the data of a read without guarantee may be at most.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Freshness {
    /// The leader was heard within this time.
    pub max: Duration,
    /// Besides, all that was committed at a moment within this time is applied here.
    pub strict: bool,
}

impl ReadRequest {
    /// A read on nobody's behalf.
    #[must_use]
    pub fn new(request: Request, level: Level, timeout: Duration) -> Self {
        Self {
            request,
            level,
            timeout,
            confirm_timeout: None,
            index_min: 0,
            caller: None,
            freshness: None,
        }
    }
}

/// What came of a request that was served.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Served {
    /// The results.
    pub reply: Reply,
    /// The log index of the entry that carried it; `None` if nothing was written to the log.
    pub raft_index: Option<u64>,
    /// The node that executed it: its HTTP address if this one, the leader's Raft address if
    /// forwarded.
    pub served_by: String,
}

/// What came of one of several writes, without its results.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct WriteBrief {
    /// Whether it was refused as a whole, so that none of its statements was run.
    pub refused: bool,
    /// How many statements failed.
    pub failed: u64,
    /// Why it was refused, or the error of the first statement that failed.
    pub error: Option<String>,
}

/// Why the cluster was not changed as asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AdministrationError {
    /// It cannot be done; the text says why and, if something can be done about it, what.
    #[error("{0}")]
    Impossible(String),
    /// Nobody could be asked, or not in time.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why a request was not served. For writes the three outcomes are kept apart: everything but
/// `Unknown` is certainly not committed and may be sent again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
pub enum Refusal {
    /// The write was not appended to the log, for the reason given; it may be sent again.
    #[error("not committed: {0}; it is safe to send the request again")]
    NotCommitted(String),
    /// The authority of the node that was to serve it does not permit it; the text says what.
    #[error("remote {0} not authorized")]
    NotPermitted(String),
    /// The node cannot do it now, for want of room; nothing was done.
    #[error("{0}")]
    Busy(String),
    /// Something failed on the node, and nothing was changed.
    #[error("{0}")]
    Failed(String),
    /// The statement needs a page of this node's files that is damaged; the text says which, and
    /// what to do. Nothing was done.
    #[error("{0}")]
    Damaged(String),
    /// The data is no database, a damaged one, or one of a kind that is not served; nothing was
    /// changed.
    #[error("{0}")]
    Unfit(String),
    /// The data is more than is taken; nothing was changed.
    #[error("{0}")]
    TooLarge(String),
    /// No leader was known until the time-out.
    #[error("leader not found")]
    LeaderNotFound,
    /// The database does not exist yet: the cluster has no leader that created it.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The queue of writes is full.
    #[error("too many writes are waiting ({0}); send the request again later")]
    Overloaded(String),
    /// The node stopped serving, and says why.
    #[error("this node has stopped serving: {0}")]
    OutOfService(String),
    /// The read could not be confirmed in time.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// The write may or may not have been committed; the server does not know and does not retry.
    #[error("outcome unknown: {0}; the write may or may not have been committed")]
    Unknown(String),
}

/// What a member does in the cluster.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MemberRole {
    /// It is to vote, and has not caught up yet.
    #[default]
    Joining,
    /// It leads.
    Leader,
    /// It is no member any more, or on its way out.
    Removed,
    /// It holds a copy and never votes.
    Replica,
    /// It votes.
    Voter,
}

impl MemberRole {
    /// Its name, as `/status` and `/nodes` show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Leader => "leader",
            Self::Removed => "removed",
            Self::Replica => "replica",
            Self::Voter => "voter",
        }
    }
}

/// One member of the cluster as this node sees it.
#[derive(Clone, Debug, Default)]
pub struct MemberStatus {
    /// The Raft id.
    pub raft_id: u64,
    /// `-node-id`, or the advertised Raft address.
    pub name: String,
    /// Advertised Raft address, `host:port`.
    pub raft_addr: String,
    /// Advertised HTTP address, `host:port`.
    pub http_addr: String,
    /// What it does in the cluster.
    pub role: MemberRole,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it is the leader.
    pub leader: bool,
    /// Whether it answered just now.
    pub reachable: bool,
    /// How long its answer took.
    pub elapsed: Duration,
    /// Its version, if it answered.
    pub version: String,
    /// Why it did not answer.
    pub error: Option<String>,
    /// How far it is, or was when it was last heard; `None`: it never was.
    pub progress: Option<Progress>,
    /// The transfer of the database that it receives, if it said so.
    pub catch_up: Option<CatchUp>,
}

/// How far a node is that receives the database.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CatchUp {
    /// How far, of 100.
    pub percent: u8,
    /// How fast pages arrive.
    pub bytes_per_second: u64,
}

/// What a node knows of damage to its database files.
#[derive(Clone, Debug, Default)]
pub struct RepairStatus {
    /// What is damaged now, and not served: page, file and offset of each.
    pub damaged: Vec<String>,
    /// How many damaged pages were found since the node started.
    pub found: u64,
    /// How many of them were repaired.
    pub repaired: u64,
    /// Pages of the database file that the scrub has read in this pass.
    pub scrubbed_pages: u32,
    /// Pages that it reads in this pass.
    pub scrub_pages: u32,
    /// Bytes that it reads per second at most; 0: it is off.
    pub scrub_rate: u64,
    /// When it was last at the end of the file.
    pub scrub_completed_at: Option<SystemTime>,
}

/// A node's own state.
#[derive(Clone, Debug, Default)]
pub struct NodeStatus {
    /// The Raft id.
    pub raft_id: u64,
    /// `-node-id`.
    pub name: String,
    /// Cluster id, 32 hex digits; empty while unassigned.
    pub cluster_id: String,
    /// `Leader`, `Follower`, `Candidate`, `Learner` or `Shutdown`.
    pub state: String,
    /// The leader's Raft id, name, Raft address and HTTP address, if known.
    pub leader: Option<MemberStatus>,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// The current term.
    pub term: u64,
    /// The last index in the log.
    pub last_log_index: u64,
    /// The last committed index that this node knows of.
    pub committed_index: u64,
    /// The last applied index.
    pub applied_index: u64,
    /// The term of the last applied entry; 0 if none.
    pub applied_term: u64,
    /// When an entry was last applied; `None` if none was since the node started.
    pub applied_at: Option<SystemTime>,
    /// Index of the last data entry that was not rejected.
    pub data_index: u64,
    /// The index below which the log was purged.
    pub purged_index: u64,
    /// Index of the last durable checkpoint record.
    pub checkpoint_index: u64,
    /// The term of that record; 0 if there is none.
    pub checkpoint_term: u64,
    /// Index of the entry that made the members what they are.
    pub membership_index: u64,
    /// The database's main file.
    pub database_path: String,
    /// What the data directory takes on the disk; no more than a second old.
    pub footprint: Footprint,
    /// Database hash, 32 hex digits.
    pub database_hash: String,
    /// Pages of the database.
    pub page_count: u32,
    /// Bytes per page; 0 before the genesis.
    pub page_size: u32,
    /// Bytes of SQLite's WAL.
    pub wal_bytes: u64,
    /// Bytes of the Raft log on disk.
    pub log_bytes: u64,
    /// Bytes written to the Raft log since the node started.
    pub log_written: u64,
    /// Entries cut off the end of the Raft log since the node started, because another leader
    /// replaced them.
    pub log_cut_off: u64,
    /// Whether the database exists and everything recovered is applied.
    pub ready: bool,
    /// How far this node is.
    pub progress: Option<Progress>,
    /// What room is short on the disk, if it is.
    pub shortage: Option<String>,
    /// Why the node stopped serving, if it did.
    pub out_of_service: Option<String>,
    /// What this node does in the cluster.
    pub role: MemberRole,
    /// That the cluster has removed this node, in a sentence, if it has.
    pub removed: Option<String>,
    /// What keeps checkpoints from completing, if anything.
    pub checkpoint_blocked: Option<String>,
    /// Damaged pages, and how they are looked for.
    pub repair: RepairStatus,
    /// Transfers of the database that are going on.
    pub transfers: Vec<TransferStatus>,
    /// The longest time that freezing the database for a transfer has kept writes waiting.
    pub freeze_longest: Duration,
    /// The longest time that a checkpoint has.
    pub checkpoint_longest: Duration,
    /// Five counters by stage name: Grouped, Executed, Appended, Committed, Applied.
    pub stages: Vec<(&'static str, u64)>,
    /// The data directory.
    pub data_dir: String,
    /// Advertised addresses.
    pub raft_addr: String,
    /// Advertised HTTP address.
    pub http_addr: String,
}
