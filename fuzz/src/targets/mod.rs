//! The bodies, one file for each.

pub(crate) mod answers;
pub(crate) mod bodies;
pub(crate) mod delta;
pub(crate) mod frames;
pub(crate) mod inject;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod messages;
pub(crate) mod patch;
pub(crate) mod snapshot;
pub(crate) mod sql;
mod sql_grammar;
pub(crate) mod stored;
pub(crate) mod urls;
pub(crate) mod users;
pub(crate) mod wal_index;
pub(crate) mod walker;
