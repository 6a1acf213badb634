//! Load for anything that speaks rqlite's HTTP API, and what the machine itself can do.
//!
//! A *load* is a workload on some connections for some time: in a closed loop, where each connection
//! sends its next request when it has the answer to the last, or in an open loop, where requests are
//! due at fixed times and their latency counts from then, however late they were sent. What came of
//! it is a [`Measurement`]. [`floors`] measures what nothing built on this machine can beat.

pub mod connection;
pub mod echo;
pub mod floors;
pub mod load;
pub mod measurement;
pub mod plot;
pub mod processes;
pub mod transaction;
pub mod workload;

pub use load::{Load, run};
pub use measurement::Measurement;
pub use transaction::Transaction;
pub use workload::Workload;
