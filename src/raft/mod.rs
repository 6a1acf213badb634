//! Layer raft.
