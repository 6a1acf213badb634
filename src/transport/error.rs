//! What can go wrong between two nodes.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::alert::{self, is_tls};
use crate::wal::ClusterId;

/// An error of the transport layer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TransportError {
    /// The socket could not be opened.
    #[error("cannot bind {addr}: {reason}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system or the options say.
        reason: String,
    },
    /// The connection or the stream ended before the exchange was complete. The peer may have
    /// acted on the request.
    #[error("connection with {addr} closed: {reason}")]
    Closed {
        /// The peer's address.
        addr: String,
        /// Why it ended.
        reason: String,
    },
    /// Bytes arrived that are not what the format says. The peer may have acted on the request.
    #[error("damaged data: {what}")]
    Damaged {
        /// What was damaged.
        what: String,
    },
    /// Certificate files that cannot be used.
    #[error("{what}")]
    Certificates {
        /// What is wrong, with flag and file.
        what: String,
    },
    /// A cluster key that cannot be used.
    #[error("cluster key: {what}")]
    Key {
        /// What is wrong with it.
        what: String,
    },
    /// The peer, or this side of the connection, has too much in hand. Nothing was delivered.
    #[error("{addr} has too much in hand; send again later")]
    Overloaded {
        /// The peer's address.
        addr: String,
    },
    /// One side does not accept the other: another cluster, another node, another version.
    /// Nothing was delivered, and trying again does not help until somebody changes something.
    #[error("{addr} refused: {reason}")]
    Refused {
        /// The peer's address.
        addr: String,
        /// Which side refused, and why.
        reason: String,
        /// The peer's cluster, if it is known and not ours.
        cluster: Option<ClusterId>,
    },
    /// TLS failed, or the settings would leave the node open to strangers. Nothing was delivered.
    #[error("{addr}: {reason}")]
    Security {
        /// The address concerned.
        addr: String,
        /// What failed, and what to do.
        reason: String,
    },
    /// No reply came before the deadline. The peer may have acted on the request.
    #[error("{addr} did not answer within {after:?}")]
    TimedOut {
        /// The peer's address.
        addr: String,
        /// The deadline.
        after: Duration,
    },
    /// The caller's message is longer than a frame may be. Nothing was delivered.
    #[error("a message of {bytes} bytes is longer than the {bytes_max} allowed")]
    TooLong {
        /// Its length in bytes.
        bytes: u64,
        /// The longest allowed.
        bytes_max: u32,
    },
    /// No connection could be made. Nothing was delivered.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// The peer's address.
        addr: String,
        /// Why.
        reason: String,
    },
}

impl TransportError {
    /// Whether it is certain that the peer's handler has not seen the request, so that it may be
    /// sent again without the danger of doing its work twice.
    #[must_use]
    pub const fn nothing_was_delivered(&self) -> bool {
        match self {
            Self::Closed { .. } | Self::Damaged { .. } | Self::TimedOut { .. } => false,
            Self::Bind { .. }
            | Self::Certificates { .. }
            | Self::Key { .. }
            | Self::Overloaded { .. }
            | Self::Refused { .. }
            | Self::Security { .. }
            | Self::TooLong { .. }
            | Self::Unreachable { .. } => true,
        }
    }

    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    pub(super) fn key(what: impl Into<String>) -> Self {
        Self::Key { what: what.into() }
    }

    /// An error while the connection is made, before the hello was accepted.
    pub(super) fn connecting(addr: &str, error: &ConnectionError) -> Self {
        let addr = addr.to_owned();
        let reason = error.to_string();
        match error {
            ConnectionError::TransportError(inner) if is_tls(inner.code.into()) => Self::Security {
                addr,
                reason: alert::found_here(inner.code.into(), &inner.reason),
            },
            ConnectionError::ConnectionClosed(close) if is_tls(close.error_code.into()) => {
                Self::Security {
                    addr,
                    reason: alert::found_there(close.error_code.into()),
                }
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                Self::Overloaded { addr }
            }
            ConnectionError::ApplicationClosed(close)
                if close.error_code == EndCode::Refused.into() =>
            {
                Self::Refused {
                    addr,
                    reason: String::from_utf8_lossy(&close.reason).into_owned(),
                    cluster: None,
                }
            }
            _ => Self::Unreachable { addr, reason },
        }
    }

    /// An error on a connection whose hello was accepted.
    pub(super) fn connection(addr: &str, error: &ConnectionError) -> Self {
        Self::Closed {
            addr: addr.to_owned(),
            reason: error.to_string(),
        }
    }

    pub(super) fn reading(addr: &str, error: &ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::ended(addr, *code),
            ReadError::ConnectionLost(error) => Self::connection(addr, error),
            _ => Self::Closed {
                addr: addr.to_owned(),
                reason: error.to_string(),
            },
        }
    }

    pub(super) fn writing(addr: &str, error: &WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::ended(addr, *code),
            WriteError::ConnectionLost(error) => Self::connection(addr, error),
            _ => Self::Closed {
                addr: addr.to_owned(),
                reason: error.to_string(),
            },
        }
    }

    fn ended(addr: &str, code: VarInt) -> Self {
        let addr = addr.to_owned();
        if code == EndCode::Overloaded.into() {
            return Self::Overloaded { addr };
        }
        let reason = if code == EndCode::Damaged.into() {
            "the peer received damaged data".to_owned()
        } else {
            "the peer gave up the stream".to_owned()
        };
        Self::Closed { addr, reason }
    }
}

/// Why this side ends a stream or a connection, as the peer sees it (QUIC application error codes,
/// RFC 9000 section 20.2). 0 is also what quinn sends for a half that was dropped.
#[derive(Clone, Copy, Debug)]
pub(super) enum EndCode {
    /// The work was given up, or the endpoint closes.
    Cancelled = 0,
    /// Bytes arrived that are not what the format says.
    Damaged = 1,
    /// The request was refused before it was read.
    Overloaded = 2,
    /// The hello was not accepted.
    Refused = 3,
    /// The node was assigned to a cluster; the connection has to be made again.
    Reassigned = 4,
}

impl From<EndCode> for VarInt {
    fn from(code: EndCode) -> Self {
        Self::from_u32(code as u32)
    }
}
