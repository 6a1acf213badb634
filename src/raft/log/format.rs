//! The bytes of a segment: header, batches, records. Version 1.
//!
//! All numbers are little-endian, reserved bytes and padding are zero and checked, log ids and
//! votes are laid out by [`codec`](crate::raft::codec).
//!
//! Segment header, 512 bytes, durable before the segment gets its name:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `89 57 41 4C 4C 4F 47 0A` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | reserved | zero |
//! | 16 | 16 | cluster | cluster id |
//! | 32 | 8 | node | Raft id of the node whose log this is |
//! | 40 | 8 | number | segment number, from 1, without gaps |
//! | 48 | 8 | first index | index of the entry that is next when the segment begins |
//! | 56 | 8 | previous end | where the batches of the segment before end; 0 = there was none |
//! | 64 | 4 | previous chain | CRC of its last record (or of its header, if it has none) |
//! | 68 | 4 | reserved | zero |
//! | 72 | 32 | last | optional log id of the last entry before |
//! | 104 | 8 | voted | 1 = the vote is present; seven zeros |
//! | 112 | 24 | vote | the vote (zeros if none) |
//! | 136 | 32 | purged | optional log id of the last purged entry |
//! | 168 | 32 | committed | optional log id up to which entries are known committed |
//! | 200 | 308 | reserved | zero |
//! | 508 | 4 | CRC | of bytes 0 to 508 |
//!
//! The state in the header is what makes it safe to delete the segments before.
//!
//! Batch, one write and one sync, beginning at a multiple of 8:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `9C 42 54 0A` |
//! | 4 | 4 | length | bytes of the records that follow |
//! | 8 | 4 | records | how many records |
//! | 12 | 4 | CRC | of the other fields, the batch's own place, cluster id and node id |
//! | 16 | 8 | durable segment | everything before this segment ... |
//! | 24 | 8 | durable offset | ... and this offset in it was durable when the batch was written |
//! | 32 | length | records | |
//!
//! The CRC does not cover the records, so that a batch still tells what was durable before it when
//! one of its records, or everything in front of it, is damaged.
//!
//! Record, padded to a multiple of 8:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | length | bytes of the body, without padding |
//! | 4 | 4 | CRC | of the CRC before it, the segment number, the other fields and the body |
//! | 8 | 1 | kind | 1 entry, 2 vote, 3 truncate after, 4 purge, 5 committed |
//! | 9 | 7 | reserved | zero |
//! | 16 | length | body | an entry; a vote; an optional log id; a log id; a log id |
//!
//! The first record of a segment is chained to the CRC of the segment header.

use super::LogIdentity;
use crate::raft::codec::{
    self, CodecError, EncodedEntry, encode_log_id, encode_log_id_option, encode_vote,
};
use crate::raft::fields::Fields;
use crate::raft::{LogId, Vote};
use crate::wal::ClusterId;

pub(super) const HEADER_BYTES: usize = 512;
pub(super) const BATCH_HEAD_BYTES: usize = 32;
pub(super) const RECORD_HEAD_BYTES: usize = 16;

const MAGIC: [u8; 8] = *b"\x89WALLOG\n";
const VERSION: u32 = 1;
const HEADER_RESERVED_BYTES: usize = 308;
const BATCH_MAGIC: [u8; 4] = *b"\x9cBT\n";
const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_TRUNCATE_AFTER: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_COMMITTED: u8 = 5;

/// What the records up to some point amount to, entries apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Frontier {
    /// The last entry, or the last purged one if none is left.
    pub(super) last: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
}

impl Frontier {
    pub(super) fn append(&mut self, log_id: LogId) {
        self.last = Some(log_id);
    }

    pub(super) fn truncate_after(&mut self, kept: Option<LogId>) {
        if index_of(kept) >= index_of(self.last) {
            return;
        }
        // Nothing reaches behind the purged part: it is gone, and stays the end of an empty log.
        self.last = if index_of(kept) > index_of(self.purged) {
            kept
        } else {
            self.purged
        };
    }

    pub(super) fn purge(&mut self, log_id: LogId) {
        if index_of(Some(log_id)) > index_of(self.purged) {
            self.purged = Some(log_id);
        }
        if index_of(self.purged) > index_of(self.last) {
            self.last = self.purged;
        }
    }

    /// Whether an entry of this index can be the next one. An empty log may begin anywhere. The
    /// largest index is never used, so that counting on from an entry cannot overflow.
    pub(super) fn admits(&self, index: u64) -> bool {
        let follows = |last: LogId| last.index.checked_add(1) == Some(index);
        index < u64::MAX && self.last.is_none_or(follows)
    }

    pub(super) fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index.saturating_add(1))
    }
}

fn index_of(log_id: Option<LogId>) -> Option<u64> {
    log_id.map(|log_id| log_id.index)
}

/// A segment header, checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct SegmentHeader {
    pub(super) identity: LogIdentity,
    pub(super) number: u64,
    pub(super) first_index: u64,
    pub(super) previous_end: u64,
    pub(super) previous_chain: u32,
    pub(super) frontier: Frontier,
}

/// Why a segment header is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeaderFault {
    /// It is no segment header, or not as it was written.
    Damaged {
        /// Where, in bytes from the beginning of the segment.
        offset: u64,
    },
    /// Written by a newer version of this program.
    Unsupported {
        /// The version it names.
        version: u32,
    },
}

impl SegmentHeader {
    /// The header's bytes, and its CRC: the beginning of the chain of records.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.identity.cluster.0.to_le_bytes());
        out.extend_from_slice(&self.identity.node.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.first_index.to_le_bytes());
        out.extend_from_slice(&self.previous_end.to_le_bytes());
        out.extend_from_slice(&self.previous_chain.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        encode_log_id_option(self.frontier.last.as_ref(), &mut out);
        out.extend_from_slice(&[u8::from(self.frontier.vote.is_some()), 0, 0, 0, 0, 0, 0, 0]);
        match &self.frontier.vote {
            Some(vote) => encode_vote(vote, &mut out),
            None => out.extend_from_slice(&[0; codec::VOTE_BYTES]),
        }
        encode_log_id_option(self.frontier.purged.as_ref(), &mut out);
        encode_log_id_option(self.frontier.committed.as_ref(), &mut out);
        out.extend_from_slice(&[0; HEADER_RESERVED_BYTES]);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// Reads the header at the beginning of `segment`, and its CRC.
    pub(super) fn decode(segment: &[u8]) -> Result<(Self, u32), HeaderFault> {
        let damaged = |offset: usize| HeaderFault::Damaged {
            offset: offset as u64,
        };
        let Some(bytes) = segment.get(..HEADER_BYTES) else {
            return Err(damaged(segment.len()));
        };
        let (covered, crc) = bytes.split_at(HEADER_BYTES - 4);
        let mut fields = Fields::new("segment header", bytes);
        let magic: [u8; 8] = fields.array().map_err(|_| damaged(0))?;
        if magic != MAGIC {
            return Err(damaged(0));
        }
        // The version alone decides how the rest is read, the place of the CRC included.
        let version = fields.u32().map_err(|_| damaged(8))?;
        if version != VERSION {
            return Err(HeaderFault::Unsupported { version });
        }
        let stored = crc
            .iter()
            .rev()
            .fold(0_u32, |crc, byte| crc << 8 | u32::from(*byte));
        if crc32fast::hash(covered) != stored {
            return Err(damaged(0));
        }
        match Self::decode_fields(&mut fields) {
            Ok(header) => Ok((header, stored)),
            Err(CodecError::Invalid { offset, .. } | CodecError::Truncated { offset, .. }) => {
                Err(damaged(offset))
            }
            Err(_) => Err(damaged(0)),
        }
    }

    fn decode_fields(fields: &mut Fields<'_>) -> Result<Self, CodecError> {
        fields.zeros(4)?;
        let identity = LogIdentity {
            cluster: ClusterId(fields.u128()?),
            node: fields.u64()?,
        };
        let (number, first_index) = (fields.u64()?, fields.u64()?);
        let (previous_end, previous_chain) = (fields.u64()?, fields.u32()?);
        fields.zeros(4)?;
        let last = codec::log_id_option(fields)?;
        let voted = fields.flag()?;
        fields.zeros(7)?;
        let vote = if voted {
            Some(codec::vote(fields)?)
        } else {
            fields.zeros(codec::VOTE_BYTES)?;
            None
        };
        let purged = codec::log_id_option(fields)?;
        let committed = codec::log_id_option(fields)?;
        fields.zeros(HEADER_RESERVED_BYTES)?;
        let frontier = Frontier {
            last,
            vote,
            purged,
            committed,
        };
        Ok(Self {
            identity,
            number,
            first_index,
            previous_end,
            previous_chain,
            frontier,
        })
    }
}

/// Where a batch or record stands, as far as its CRC is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) identity: LogIdentity,
    pub(super) number: u64,
}

impl Place {
    fn batch_crc(self, head: &[u8; BATCH_HEAD_BYTES], offset: u64) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head[0..12]);
        hasher.update(&head[16..32]);
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher.update(&self.identity.cluster.0.to_le_bytes());
        hasher.update(&self.identity.node.to_le_bytes());
        hasher.finalize()
    }

    fn record_crc(self, chain: u32, head: &[u8; RECORD_HEAD_BYTES], body: [&[u8]; 2]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&chain.to_le_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&head[0..4]);
        hasher.update(&head[8..16]);
        hasher.update(body[0]);
        hasher.update(body[1]);
        hasher.finalize()
    }
}

/// One step of the log's history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Record {
    Entry(EncodedEntry),
    Vote(Vote),
    /// The entries after this one are no longer part of the log.
    TruncateAfter(Option<LogId>),
    /// The entries up to this one are no longer needed.
    Purge(LogId),
    /// The entries up to this one are committed by a quorum.
    Committed(LogId),
}

impl Record {
    /// Bytes that the record takes in a batch.
    pub(super) fn bytes(&self) -> usize {
        let body = match self {
            Self::Entry(entry) => entry.bytes(),
            Self::Vote(_) => codec::VOTE_BYTES,
            Self::TruncateAfter(_) => codec::LOG_ID_OPTION_BYTES,
            Self::Purge(_) | Self::Committed(_) => codec::LOG_ID_BYTES,
        };
        padded(RECORD_HEAD_BYTES + body)
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// Builds the bytes of one batch.
pub(super) struct BatchWriter {
    bytes: Vec<u8>,
    place: Place,
    chain: u32,
    records: u32,
}

impl BatchWriter {
    /// Begins a batch in a buffer that is used again and again; `chain` = CRC of the last record.
    pub(super) fn new(mut buffer: Vec<u8>, place: Place, chain: u32) -> Self {
        buffer.clear();
        buffer.resize(BATCH_HEAD_BYTES, 0);
        Self {
            bytes: buffer,
            place,
            chain,
            records: 0,
        }
    }

    /// Adds a record. Returns where in the batch it begins, and the CRC it is chained to.
    pub(super) fn push(&mut self, record: &Record) -> (usize, u32) {
        let mut small = Vec::new();
        let (kind, body): (u8, [&[u8]; 2]) = match record {
            Record::Entry(entry) => (KIND_ENTRY, [&entry.head, &entry.payload]),
            Record::Vote(vote) => {
                encode_vote(vote, &mut small);
                (KIND_VOTE, [&small, &[]])
            }
            Record::TruncateAfter(log_id) => {
                encode_log_id_option(log_id.as_ref(), &mut small);
                (KIND_TRUNCATE_AFTER, [&small, &[]])
            }
            Record::Purge(log_id) => {
                encode_log_id(log_id, &mut small);
                (KIND_PURGE, [&small, &[]])
            }
            Record::Committed(log_id) => {
                encode_log_id(log_id, &mut small);
                (KIND_COMMITTED, [&small, &[]])
            }
        };
        let (start, chain) = (self.bytes.len(), self.chain);
        let length = u32::try_from(body[0].len() + body[1].len())
            .expect("append has refused entries beyond ENTRY_BYTES_MAX");
        let mut head = [0; RECORD_HEAD_BYTES];
        head[0..4].copy_from_slice(&length.to_le_bytes());
        head[8] = kind;
        self.chain = self.place.record_crc(chain, &head, body);
        head[4..8].copy_from_slice(&self.chain.to_le_bytes());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(body[0]);
        self.bytes.extend_from_slice(body[1]);
        self.bytes.resize(padded(self.bytes.len()), 0);
        self.records += 1;
        (start, chain)
    }

    /// Completes the batch, to be written at `offset`, before which everything is durable. Returns
    /// its bytes and the CRC that the next batch is chained to.
    pub(super) fn finish(mut self, offset: u64) -> (Vec<u8>, u32) {
        let length = u32::try_from(self.bytes.len() - BATCH_HEAD_BYTES)
            .expect("a batch holds one entry or at most batch_bytes_max");
        let mut head = [0; BATCH_HEAD_BYTES];
        head[0..4].copy_from_slice(&BATCH_MAGIC);
        head[4..8].copy_from_slice(&length.to_le_bytes());
        head[8..12].copy_from_slice(&self.records.to_le_bytes());
        head[16..24].copy_from_slice(&self.place.number.to_le_bytes());
        head[24..32].copy_from_slice(&offset.to_le_bytes());
        let crc = self.place.batch_crc(&head, offset);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
        self.bytes[..BATCH_HEAD_BYTES].copy_from_slice(&head);
        (self.bytes, self.chain)
    }
}

/// A batch header, checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BatchHead {
    pub(super) bytes: usize,
    pub(super) records: u32,
    /// Segment and offset before which everything was durable.
    pub(super) durable: (u64, u64),
}

impl BatchHead {
    /// Reads the batch header at `offset` of a segment, if one was written there.
    pub(super) fn decode(segment: &[u8], offset: usize, place: Place) -> Option<Self> {
        let head: &[u8; BATCH_HEAD_BYTES] = segment
            .get(offset..)?
            .get(..BATCH_HEAD_BYTES)?
            .try_into()
            .ok()?;
        // Asked at every multiple of 8 behind a damaged record: the cheap question first.
        if head[0..4] != BATCH_MAGIC {
            return None;
        }
        let mut fields = Fields::new("batch", &head[4..]);
        let (bytes, records) = (fields.u32().ok()? as usize, fields.u32().ok()?);
        let crc = fields.u32().ok()?;
        let durable = (fields.u64().ok()?, fields.u64().ok()?);
        let sound = crc == place.batch_crc(head, offset as u64);
        sound.then_some(Self {
            bytes,
            records,
            durable,
        })
    }
}

/// A record whose CRC has been checked, its body still undecoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawRecord<'a> {
    kind: u8,
    /// The body without padding.
    pub(super) body: &'a [u8],
    /// Bytes with header and padding.
    pub(super) bytes: usize,
    /// Its CRC, which the next record is chained to.
    pub(super) chain: u32,
}

/// A record's meaning, without an entry's payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Entry(LogId),
    Vote(Vote),
    TruncateAfter(Option<LogId>),
    Purge(LogId),
    Committed(LogId),
}

impl<'a> RawRecord<'a> {
    /// Reads the record at the beginning of `bytes`, chained to `chain`.
    pub(super) fn decode(bytes: &'a [u8], place: Place, chain: u32) -> Option<Self> {
        let (record, is_sound) = Self::read(bytes, place, chain)?;
        is_sound.then_some(record)
    }

    /// The same, whatever its checksum: what lies between its length and its end, and whether the
    /// checksum is right. `None` if not even that can be.
    pub(super) fn read(bytes: &'a [u8], place: Place, chain: u32) -> Option<(Self, bool)> {
        let head: &[u8; RECORD_HEAD_BYTES] = bytes.get(..RECORD_HEAD_BYTES)?.try_into().ok()?;
        let mut fields = Fields::new("record", head);
        let (length, crc) = (fields.u32().ok()? as usize, fields.u32().ok()?);
        let kind = fields.u8().ok()?;
        fields.zeros(7).ok()?;
        let end = RECORD_HEAD_BYTES.checked_add(length)?;
        let body = bytes.get(RECORD_HEAD_BYTES..end)?;
        let padding = bytes.get(end..padded(end))?;
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        let is_sound = crc == place.record_crc(chain, head, [body, &[]]);
        let record = Self {
            kind,
            body,
            bytes: padded(end),
            chain: crc,
        };
        Some((record, is_sound))
    }

    /// What the record says. Its CRC is right, so an error is not a torn write.
    pub(super) fn step(&self) -> Result<Step, CodecError> {
        Ok(match self.kind {
            KIND_ENTRY => Step::Entry(codec::decode_entry_log_id(self.body)?),
            KIND_VOTE => Step::Vote(codec::decode_vote(self.body)?),
            KIND_TRUNCATE_AFTER => Step::TruncateAfter(codec::decode_log_id_option(self.body)?),
            KIND_PURGE => Step::Purge(codec::decode_log_id(self.body)?),
            KIND_COMMITTED => Step::Committed(codec::decode_log_id(self.body)?),
            _ => {
                return Err(CodecError::Invalid {
                    what: "record",
                    offset: 8,
                });
            }
        })
    }

    /// The body, if this is an entry.
    pub(super) fn entry(&self) -> Option<&'a [u8]> {
        (self.kind == KIND_ENTRY).then_some(self.body)
    }
}

#[cfg(test)]
mod tests;
