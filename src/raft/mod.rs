//! Raft: the types openraft is configured with, their durable encodings, and the log on disk.
//!
//! This layer knows openraft and files. It knows nothing of SQLite or of the network: an entry's
//! payload is opaque bytes here.

pub mod codec;
mod fields;
pub mod log;
mod outcome;
mod types;

pub use outcome::Outcome;
pub use types::{
    Applied, Entry, LeaderId, LogId, Member, Membership, Payload, Role, Snapshot, SnapshotMeta,
    StoredMembership, TypeConfig, Vote, log_id_of, position_of,
};
