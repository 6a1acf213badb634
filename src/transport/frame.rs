//! The format of everything that travels on a stream: frames, little-endian, version 1.
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | length | bytes of the payload |
//! | 4 | 1 | role | see [`Role`] |
//! | 5 | 1 | kind | the upper layer's message kind; zero except in `Request` and `Open` |
//! | 6 | 1 | priority | 0 control, 1 data, 2 bulk; zero except in `Request` and `Open` |
//! | 7 | 1 | reserved | zero |
//! | 8 | 4 | payload checksum | CRC-32 of the payload |
//! | 12 | 4 | header checksum | CRC-32 of bytes 0 to 11, then of the frame's number as 8 bytes |
//! | 16 | length | payload | |
//!
//! A frame's number counts the frames of one direction of one stream from zero. It is summed but
//! not sent, so a frame in the wrong place fails like a damaged one.
//!
//! The format has no version field of its own: the hello carries the version, and a frame before
//! the hello is accepted, the hello itself, keeps this format in every version.
//!
//! Damage of any kind ends the stream; nothing is skipped and nothing is guessed. QUIC encrypts and
//! authenticates every packet, so what these checksums find is a fault in memory or in a program.

use bytes::{Bytes, BytesMut};

use super::TransportError;
use super::client::Priority;
use super::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, HELLO_BYTES_MAX, READ_BYTES_MAX};
use crate::planted::{self, Bug};

/// What a frame is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The dialer says who it is; first on the first stream of a connection.
    Hello = 1,
    /// The answer to it.
    HelloReply = 2,
    /// A request that wants one reply.
    Request = 3,
    /// The reply.
    Reply = 4,
    /// The first frame of a long-lived stream.
    Open = 5,
    /// Every later frame of a long-lived stream, in both directions.
    Body = 6,
}

impl Role {
    /// The longest payload of a frame of this role, in bytes.
    #[must_use]
    pub const fn bytes_max(self) -> u32 {
        match self {
            Self::Hello | Self::HelloReply => HELLO_BYTES_MAX,
            Self::Body | Self::Open | Self::Reply | Self::Request => FRAME_BYTES_MAX,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Hello),
            2 => Some(Self::HelloReply),
            3 => Some(Self::Request),
            4 => Some(Self::Reply),
            5 => Some(Self::Open),
            6 => Some(Self::Body),
            _ => None,
        }
    }
}

/// The fields of a frame's header that carry meaning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// What the frame is for.
    pub role: Role,
    /// The upper layer's message kind; zero except in `Request` and `Open`.
    pub kind: u8,
    /// The urgency of the stream; `Control` except in `Request` and `Open`.
    pub priority: Priority,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// CRC-32 of the payload.
    pub payload_checksum: u32,
}

impl Header {
    fn decode(bytes: [u8; FRAME_HEADER_BYTES], number: u64) -> Result<Self, TransportError> {
        let [
            l0,
            l1,
            l2,
            l3,
            role,
            kind,
            priority,
            reserved,
            p0,
            p1,
            p2,
            p3,
            h0,
            h1,
            h2,
            h3,
        ] = bytes;
        let summed = [
            l0, l1, l2, l3, role, kind, priority, reserved, p0, p1, p2, p3,
        ];
        if header_checksum(&summed, number) != u32::from_le_bytes([h0, h1, h2, h3]) {
            return Err(TransportError::damaged("frame header: wrong checksum"));
        }
        let (Some(role), Some(priority)) = (Role::from_byte(role), Priority::from_byte(priority))
        else {
            return Err(TransportError::damaged("frame header: unknown role"));
        };
        let plain = kind == 0 && priority == Priority::Control;
        if reserved != 0 || !(plain || matches!(role, Role::Open | Role::Request)) {
            return Err(TransportError::damaged("frame header: a reserved field"));
        }
        Ok(Self {
            role,
            kind,
            priority,
            payload_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            payload_checksum: u32::from_le_bytes([p0, p1, p2, p3]),
        })
    }
}

/// A whole frame whose checksums were right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Bytes,
}

/// The bytes of the header of frame `number` of a stream.
#[must_use]
pub fn encode_header(header: &Header, number: u64) -> [u8; FRAME_HEADER_BYTES] {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    bytes[..4].copy_from_slice(&header.payload_bytes.to_le_bytes());
    bytes[4] = header.role as u8;
    bytes[5] = header.kind;
    bytes[6] = header.priority as u8;
    bytes[8..12].copy_from_slice(&header.payload_checksum.to_le_bytes());
    let checksum = header_checksum(&bytes[..12], number);
    bytes[12..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Takes frames out of the bytes of one direction of a stream, however they are cut.
#[derive(Debug)]
pub struct Decoder {
    expected: &'static [Role],
    number: u64,
    partial_header: BytesMut,
    header: Option<Header>,
    payload: BytesMut,
}

/// How far [`Decoder::feed`] came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// A frame is complete.
    Frame(Frame),
    /// A header is complete and within its cap; the payload comes next.
    Header(Header),
    /// All input is consumed and more is needed.
    Starved,
}

impl Decoder {
    /// A decoder at the beginning of a stream on which frames of these roles may come.
    #[must_use]
    pub fn new(expected: &'static [Role]) -> Self {
        Self {
            expected,
            number: 0,
            partial_header: BytesMut::new(),
            header: None,
            payload: BytesMut::new(),
        }
    }

    /// From the next frame on, expects other roles.
    pub(super) const fn expect(&mut self, expected: &'static [Role]) {
        self.expected = expected;
    }

    /// Consumes input up to the end of the next header or frame.
    ///
    /// Memory grows with the bytes that arrived, at most one step ahead of them, never to what a
    /// header claims: a peer that claims 64 MiB and sends nothing costs nothing.
    ///
    /// # Errors
    /// [`TransportError::Damaged`]; the stream is of no more use.
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Progress, TransportError> {
        let Some(header) = self.header else {
            return self.feed_header(input);
        };
        let length = header.payload_bytes as usize;
        let missing = length - self.payload.len();
        if self.payload.is_empty() && input.len() >= length {
            // The whole payload lies in one piece: it is shared, not copied.
            return self.finish(header, input.split_to(length));
        }
        let piece = input.split_to(missing.min(input.len()));
        if self.payload.capacity() - self.payload.len() < piece.len() {
            let step = self.payload.len().max(READ_BYTES_MAX).min(missing);
            self.payload.reserve(step.max(piece.len()));
        }
        self.payload.extend_from_slice(&piece);
        if self.payload.len() < length {
            return Ok(Progress::Starved);
        }
        let payload = std::mem::take(&mut self.payload).freeze();
        self.finish(header, payload)
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`TransportError::Damaged`] if it ended inside a frame.
    pub fn end(&self) -> Result<(), TransportError> {
        if self.header.is_some() || !self.partial_header.is_empty() {
            return Err(TransportError::damaged("the stream ended inside a frame"));
        }
        Ok(())
    }

    fn feed_header(&mut self, input: &mut Bytes) -> Result<Progress, TransportError> {
        let missing = FRAME_HEADER_BYTES - self.partial_header.len();
        let piece = input.split_to(missing.min(input.len()));
        self.partial_header.extend_from_slice(&piece);
        let Some(bytes) = self.partial_header.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(Progress::Starved);
        };
        let header = Header::decode(*bytes, self.number)?;
        if !self.expected.contains(&header.role) {
            let what = format!("a {:?} frame where none may come", header.role);
            return Err(TransportError::Damaged { what });
        }
        if header.payload_bytes > header.role.bytes_max() {
            let (length, cap) = (header.payload_bytes, header.role.bytes_max());
            let what = format!("a frame claims {length} bytes, more than the {cap} allowed");
            return Err(TransportError::Damaged { what });
        }
        self.partial_header.clear();
        self.header = Some(header);
        Ok(Progress::Header(header))
    }

    fn finish(&mut self, header: Header, payload: Bytes) -> Result<Progress, TransportError> {
        let is_sound = crc32fast::hash(&payload) == header.payload_checksum;
        if !is_sound && !planted::is(Bug::FrameChecksumIgnored) {
            return Err(TransportError::damaged("frame payload: wrong checksum"));
        }
        self.header = None;
        self.number += 1;
        Ok(Progress::Frame(Frame { header, payload }))
    }
}

fn header_checksum(summed: &[u8], number: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(summed);
    hasher.update(&number.to_le_bytes());
    hasher.finalize()
}
