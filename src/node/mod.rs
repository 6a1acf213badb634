//! Layer 2: where SQLite, the log and the network meet.

mod api;
mod options;

pub use api::{Level, MemberStatus, NodeStatus, ReadRequest, Refusal, Served, WriteRequest};
pub use options::NodeOptions;
