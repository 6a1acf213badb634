//! Layer 2: where SQLite, the log and the network meet.
//!
//! One write, in order of the files it passes: `running` and `routing` bring it to the leader,
//! `write` queues and groups it, `owner` runs the group on the owner thread, `gate` captures it
//! inside xSync and hands it to `proposer`; the log and `network` make it durable on a quorum;
//! `apply` releases it on the leader and has `owner` inject it on the followers.
//!
//! | file | what |
//! |---|---|
//! | `api`, `options`, `error` | what others see |
//! | `running`, `routing`, `open`, `tasks`, `status` | the node and its life |
//! | `write`, `read`, `read_index`, `rounds` | what is done for clients |
//! | `owner`, `outlets`, `gate`, `flight`, `proposer` | the group in flight |
//! | `fence`, `frontier`, `apply`, `parts` | what a committed entry does |
//! | `lineage`, `repair`, `rebuild` | what is not as it should be, and whose fault that is |
//! | `image`, `manifest`, `spool` | a whole database, frozen, and on its way in |
//! | `image_sender`, `image_receiver`, `snapshot_frame`, `transfers` | catch-up by difference |
//! | `backup`, `load`, `upload`, `scratch`, `upkeep` | whole databases for and from clients |
//! | `network`, `peers`, `append_frame`, `wire` | what travels between nodes |
//! | `identity`, `listen`, `search`, `membership` | who this node is, and which cluster it is in |
//! | `attendance`, `places` | whether it is a member, and where others are |
//! | `admission`, `join_gate` | who may join |
//! | `recovery`, `refounding`, `memory` | how it starts, and starts again with fewer |
//! | `errand`, `handover`, `dismissal`, `reaping` | changing the cluster |
//! | `contact` | hearing from its leader |
//! | `progress`, `room` | how far each member is; room on this one's disk |
//! | `health`, `notices` | what is wrong, what an operator is told |
//! | `decoders` | the door of the fuzz targets |
//! | `stages`, `tally`, `footprint`, `facts` | how far, how often, how large, how SQLite is set |
//!
//! Invariants:
//! * Acknowledged means: flushed on a quorum, applied here, and committed by SQLite.
//! * Only `apply` decides about a flight, besides a certain refusal to append and the end of the
//!   process; only the owner thread touches the database.
//! * What is certainly not committed is routed again until the client's time is up; what may be
//!   committed is reported as unknown and never sent again.
//! * Whatever fails after the quorum's decision ends the process; the log has everything.
//!
//! It must never parse SQL or JSON, and never block an async worker.

mod admission;
mod api;
mod append_frame;
mod apply;
mod attendance;
mod backup;
mod beginning;
mod caller;
mod clients;
mod contact;
#[doc(hidden)]
pub mod decoders;
mod dismissal;
mod errand;
mod error;
mod facts;
mod fence;
mod flight;
mod footprint;
mod frontier;
mod gate;
mod gathering;
mod handover;
mod health;
mod identity;
mod image;
mod image_receiver;
mod image_sender;
mod join_gate;
mod lineage;
mod listen;
mod load;
mod logged;
mod manifest;
mod membership;
mod memory;
mod network;
mod notices;
mod offline;
mod open;
mod options;
mod outlets;
mod owner;
mod parts;
mod peers;
mod places;
mod progress;
mod proposer;
mod raft_config;
mod read;
mod read_index;
mod reaping;
mod rebuild;
mod recovery;
mod refounding;
mod repair;
mod replay;
mod room;
mod rounds;
mod routing;
mod running;
mod scratch;
mod scrub;
mod search;
mod snapshot_frame;
mod spool;
mod stages;
mod status;
mod tally;
mod tasks;
mod transfers;
mod upkeep;
mod upload;
mod wire;
mod write;

pub use api::{
    AdministrationError, CatchUp, Freshness, Level, MemberRole, MemberStatus, NodeStatus,
    ReadRequest, Refusal, RepairStatus, Served, WriteBrief, WriteRequest,
};
pub use backup::{Backup, BackupForm, BackupRequest};
pub use caller::{Authority, Credentials, Permission};
pub use error::Error;
pub use facts::SqliteFacts;
pub use footprint::Footprint;
pub use image::ImageReader;
pub use offline::{Offline, recover_offline};
pub use options::NodeOptions;
pub use progress::Progress;
pub use refounding::{Recovery, RecoveryMember};
pub use running::Node;
pub use search::{Discovery, Found};
pub use stages::Stage;
pub(crate) use tally::counted;
pub use tally::{Count, Counted, NodeCounter, Tally};
pub use transfers::TransferStatus;
pub use upkeep::Checkpointed;
pub use upload::{Content, Upload};

/// The files of a node as they are on disk, and the rule by which entries take effect: for tools
/// that look into a data directory, which may be in use. What is public of these types does not
/// write.
pub mod files {
    pub use super::fence::{Fence, Stage, Verdict};
    pub use super::identity::{FILE as IDENTITY, Identity};
    pub use super::manifest::Manifest;
    pub use super::spool::{INCOMING, INSTALLING, Incoming};
}

pub use crate::sqlite::{
    Answer, ExtensionError, Extensions, Outcome, Parameter, Reply, Request, Rows, STACK_BYTES,
    Shape, Statement, Syntax, Value,
};
pub use crate::transport::{CertificateOptions, ClusterKey, NamedClient, Watched, pem};

/// Raft with our types.
pub(crate) type Raft = openraft::Raft<crate::raft::TypeConfig, apply::StateMachine>;
