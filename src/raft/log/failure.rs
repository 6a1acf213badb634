//! What can go wrong with the log.

use std::io;
use std::path::PathBuf;

use super::LogIdentity;
use crate::raft::codec::CodecError;
use crate::wal::Position;

/// Why the log cannot be opened, or a call on it failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that was durable is damaged or gone. Cutting it off could lose acknowledged
    /// writes (and a vote), so the node does not start.
    #[error(
        "the log is damaged in its interior: {what} in {} at offset {offset}. This node may have \
         acknowledged what was there, so it does not start. To rebuild it from its peers: leave \
         this process stopped, move the data directory away, and start the node again with -join",
        file.display()
    )]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// In which file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// Written by a newer version of Wallaby.
    #[error("{} has log version {version}, which this program does not support", file.display())]
    Unsupported {
        /// Which file.
        file: PathBuf,
        /// The version found.
        version: u32,
    },
    /// The log of another node, or of another cluster.
    #[error(
        "{} belongs to node {:x} of cluster {}, not to node {:x} of cluster {}",
        file.display(), found.node, found.cluster, expected.node, expected.cluster
    )]
    Foreign {
        /// Which file.
        file: PathBuf,
        /// Whose it is.
        found: LogIdentity,
        /// Who asked for it.
        expected: LogIdentity,
    },
    /// A write or sync has failed before. Nothing is retried: the node must stop.
    #[error("the log has failed and takes no more calls: {reason}")]
    Failed {
        /// The first failure.
        reason: String,
    },
    /// The log has been closed.
    #[error("the log is closed")]
    Closed,
    /// The log does not contain this entry.
    #[error("the log does not contain entry {position}")]
    Missing {
        /// Which entry.
        position: Position,
    },
    /// The caller's entries do not continue the log.
    #[error("entry {index} cannot follow entry {last:?}")]
    Gap {
        /// The index that was offered.
        index: u64,
        /// The last index of the log.
        last: Option<u64>,
    },
    /// An entry that cannot be encoded, or exceeds [`ENTRY_BYTES_MAX`](super::ENTRY_BYTES_MAX).
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl LogError {
    /// As openraft's interface wants it.
    pub(super) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}
