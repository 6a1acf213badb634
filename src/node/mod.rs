//! Layer 2: where SQLite, the log and the network meet.

mod api;

pub use api::{Level, MemberStatus, NodeStatus, ReadRequest, Refusal, Served, WriteRequest};

pub use crate::sqlite::{
    Answer, Outcome, Parameter, Reply, Request, Rows, Shape, Statement, Value,
};
