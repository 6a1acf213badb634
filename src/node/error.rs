//! Why a node could not be opened, or has to stop.

use std::io;
use std::path::PathBuf;

use crate::raft::log::LogError;
use crate::sqlite;
use crate::transport::TransportError;

/// A failure of the node itself; requests have [`super::Refusal`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other or the data directory.
    #[error("{0}")]
    Configuration(String),
    /// A file of ours does not read as we wrote it.
    #[error("{file} is damaged: {what}; {advice}")]
    Corrupt {
        /// What is wrong.
        what: String,
        /// Which file.
        file: PathBuf,
        /// What the operator can do.
        advice: &'static str,
    },
    /// The operating system refused something.
    #[error("{context}: {source}")]
    Io {
        /// What was attempted.
        context: String,
        /// The refusal.
        source: io::Error,
    },
    /// The log could not be opened or has failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Raft stopped.
    #[error("Raft: {0}")]
    Raft(String),
    /// A connection could not be set up.
    #[error(transparent)]
    Setup(#[from] sqlite::SetupError),
    /// The database could not be opened or has failed.
    #[error(transparent)]
    Sqlite(#[from] sqlite::Error),
    /// The network could not be set up.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl Error {
    /// An I/O error with what was attempted.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}

/// What to do about a damaged node: its peers have everything.
pub(crate) const REBUILD: &str = "rebuild the node from its peers: stop it, move its data \
     directory away, and start it again with -join and the address of a peer";
