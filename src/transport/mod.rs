//! Layer 1, transport: requests, replies and streams of bytes between nodes, over QUIC.
//!
//! It owns the UDP socket, the TLS identities and the connections. It knows nothing of Raft, of
//! SQLite or of what the bytes mean.
//!
//! | file | what |
//! |---|---|
//! | `alert`, `complaints` | why TLS failed, in words; what the log says of refused peers |
//! | `key` | the cluster key, its text form and what is derived from it |
//! | `certificate` | the cluster CA, the certificate of a node |
//! | `pki`, `pem`, `named` | certificates of the operator's own, their files, common names |
//! | `renewal`, `watched` | files that are read again when they change |
//! | `tls`, `trust` | who is trusted: TLS 1.3 settings for each [`Security`]; who still is |
//! | `frame` | the format of everything on a stream |
//! | `stream` | frames over one QUIC stream |
//! | `hello` | who is at the other end: the first stream of each connection |
//! | `sockets` | where the socket comes from |
//! | `endpoint` | the socket, its options, the local identity |
//! | `client` | [`Peer`]: one connection per dialing direction, made again when it fails |
//! | `server` | accepts connections, hands requests to the [`Handler`] |
//! | `limits` | every bound, with its arithmetic |
//!
//! Invariants:
//! * No request of a peer reaches the handler before TLS and the hello have accepted the peer.
//! * Each request has its own QUIC stream, so none waits behind another; [`Priority::Control`] is
//!   sent before data, and data before bulk.
//! * A length that a peer claims is compared with its cap before anything is allocated, and memory
//!   then grows only with the bytes that arrived.
//! * An end of a stream that the sender did not ask for (crash, cancellation) never looks like a
//!   clean end: it is a reset.
//! * The layer never repeats a request that may have been delivered; see
//!   [`TransportError::nothing_was_delivered`].

mod alert;
mod certificate;
mod client;
mod complaints;
mod endpoint;
mod error;
mod frame;
mod hello;
mod key;
mod limits;
mod named;
pub mod pem;
mod pki;
mod renewal;
mod server;
mod sockets;
mod stream;
mod tls;
mod trust;
mod watched;

pub use client::{Peer, Priority};
pub use endpoint::{Endpoint, EndpointOptions, PeerIdentity, Security};
pub use error::TransportError;
pub use frame::{Decoder, Frame, Header, Progress, Role, encode_header};
pub use hello::{Hello, HelloReply, Verdict};
pub use key::ClusterKey;
pub use limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
pub use named::NamedClient;
pub use pki::CertificateOptions;
pub use server::{BoxFuture, Handler};
pub use sockets::{Sockets, SystemSockets};
pub use stream::{FrameReader, FrameWriter};
pub use watched::Watched;
