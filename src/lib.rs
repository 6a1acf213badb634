//! Wallaby: a highly available SQLite.
pub mod http;
pub mod node;
pub mod raft;
pub mod sqlite;
pub mod transport;
pub mod wal;
