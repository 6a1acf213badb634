//! Where an entry stands in the log, and which cluster and node it belongs to.

use std::fmt;

/// A place in the log: the leader that proposed the entry (term and node) and the index.
///
/// Two entries with equal positions are the same entry (Raft paper, section 5.3, Log Matching). The
/// node is part of it because openraft lets two leaders share a term.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// The leader's term.
    pub term: u64,
    /// The leader's Raft id.
    pub node: u64,
    /// The index in the log.
    pub index: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}-{}", self.term, self.node, self.index)
    }
}

/// The identity of a cluster, drawn once by the node that initialises it. Never zero.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClusterId(pub u128);

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
