//! Every bound of the layer, with the arithmetic behind it.

use std::time::Duration;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;

/// The longest payload of a request, a reply or a frame of a stream, in bytes. An entry part is
/// 2 MiB by default; the largest single message is a forwarded HTTP request or the answer to one.
pub const FRAME_BYTES_MAX: u32 = 64 << 20;

/// The longest payload of a hello or its reply, in bytes: 48 in version 1, with room to grow.
pub(super) const HELLO_BYTES_MAX: u32 = 256;

/// How much of a stream is read at once, in bytes.
pub(super) const READ_BYTES_MAX: usize = 256 << 10;

/// How many bytes one stream may have under way: bandwidth x delay, enough for 1 Gbit/s at 33 ms.
pub(super) const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Long-lived streams that one connection may carry: an append stream and a snapshot, with the old
/// ones that have not ended yet.
pub(super) const LONG_STREAMS_MAX: u32 = 16;

/// What the accepting side allows: twice as many, for it learns later that a stream has ended.
pub(super) const LONG_STREAMS_ACCEPTED_MAX: u32 = 2 * LONG_STREAMS_MAX;

/// How many unread bytes one connection may hold. Requests are read as they arrive, so only
/// long-lived streams can stand still: 32 of them hold 32 x 4 MiB = 128 MiB and leave 64 MiB, so
/// a bulk stream that nobody reads never takes the credit that control requests need.
pub(super) const CONNECTION_WINDOW_BYTES: u32 =
    LONG_STREAMS_ACCEPTED_MAX * STREAM_WINDOW_BYTES + (64 << 20);

/// How many unacknowledged bytes one connection may send: as much as the other side can hold, so
/// that the credit of the streams is what binds, not a sum that one stream could use up.
pub(super) const SEND_WINDOW_BYTES: u64 = CONNECTION_WINDOW_BYTES as u64;

/// What the socket's buffers are asked to hold, in bytes: one entry part of 2 MiB in a burst.
pub(super) const SOCKET_BUFFER_BYTES: usize = 2 << 20;

/// Requests of data and bulk priority in flight on one connection; more wait for their turn.
pub(super) const DATA_REQUESTS_MAX: usize = 1024;

/// Streams that a connection may have open. The other side gives a stream's place back only with
/// the acknowledgement of its end, some milliseconds late; four times the data requests leaves
/// places for control even then.
pub(super) const STREAMS_MAX: u32 = 4096;

/// Bytes of requests that an endpoint holds for its handler, all peers together. A request beyond
/// it is refused before it is read.
pub(super) const REQUEST_BYTES_IN_HAND_MAX: u32 = 256 << 20;

/// Requests up to this size, in bytes, are not counted: heartbeats and votes must get through
/// while the rest is refused.
pub(super) const REQUEST_BYTES_UNCOUNTED: u32 = 64 << 10;

/// Connections that an endpoint accepts: five nodes, those that join, and what has not timed out
/// yet of connections that were made again.
pub(super) const CONNECTIONS_ACCEPTED_MAX: usize = 256;

/// From this many accepted connections on, a dialer must prove its address before it is given any
/// memory (QUIC Retry, RFC 9000 section 8.1.2).
pub(super) const CONNECTIONS_BEFORE_RETRY: usize = 64;

/// Links to peers that an endpoint remembers before it drops those that nobody uses.
pub(super) const LINKS_REMEMBERED: usize = 64;

/// How long a refused or closing connection may take to deliver its last words.
pub(super) const LINGER: Duration = Duration::from_millis(500);

/// The mean time between two log lines about peers that were turned away, so that a stranger
/// cannot fill the disk with them.
pub(super) const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// So many may follow each other at once: each node of a cluster that is set up wrongly has one.
pub(super) const COMPLAINTS_AT_ONCE: u32 = 32;

/// How long the same is not said again about the same peer, which tries every second.
pub(super) const COMPLAINT_AGAIN: Duration = Duration::from_secs(60);

/// Reasons and peers that are remembered for that.
pub(super) const COMPLAINTS_REMEMBERED: usize = 256;
