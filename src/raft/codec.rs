//! Durable encodings of openraft's values: log id, vote, membership, entry.
//!
//! They stand in log records, in the checkpoint record, in snapshot manifests and on the wire. All
//! numbers are little-endian; reserved bytes are zero and checked. openraft's own serialisation is
//! never used: its layout moves with its versions.
//!
//! Log id, 24 bytes:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | term | the leader's term |
//! | 8 | 8 | node | the leader's Raft id |
//! | 16 | 8 | index | index in the log |
//!
//! Optional log id, 32 bytes: a byte 0 or 1, seven zeros, then the log id (zeros if 0).
//!
//! Vote, 24 bytes:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | term | term voted in |
//! | 8 | 8 | node | candidate voted for |
//! | 16 | 1 | committed | 1 = a quorum has granted it |
//! | 17 | 7 | reserved | zero |
//!
//! Entry, 32 bytes and its payload:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 24 | log id | as above |
//! | 24 | 1 | kind | 0 blank, 1 payload, 2 membership |
//! | 25 | 3 | reserved | zero |
//! | 28 | 4 | length | bytes of the payload; 0 for blank |
//! | 32 | length | payload | the bytes, or a membership as below without log id |
//!
//! Membership, 48 bytes and two lists:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 2 | version | 1, or 2 if a member has another role than that of a voter |
//! | 2 | 6 | reserved | zero |
//! | 8 | 32 | log id | optional log id of the entry that brought it |
//! | 40 | 4 | sets | voter sets: 1, or 2 while a change is under way |
//! | 44 | 4 | members | nodes known, voters and learners |
//! | 48 | | per set | u32 count, then that many ids of 8 bytes, ascending |
//! | | | per member | id u64; lengths of name, Raft and HTTP address, u32 each; the three texts |
//! | | 1 | role | only in version 2, after each member: 0 voter, 1 replica, 2 leaving |
//!
//! So a cluster without replicas can be read by programs that know nothing of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;

use super::fields::Fields;
use super::types::{
    Entry, LeaderId, LogId, Member, Membership, Payload, Role, StoredMembership, Vote,
};

/// Bytes of an encoded log id.
pub const LOG_ID_BYTES: usize = 24;
/// Bytes of an encoded optional log id.
pub const LOG_ID_OPTION_BYTES: usize = 32;
/// Bytes of an encoded vote.
pub const VOTE_BYTES: usize = 24;
/// Bytes of an encoded entry before its payload.
pub const ENTRY_HEAD_BYTES: usize = 32;

const MEMBERSHIP_VERSION: u16 = 1;
const MEMBERSHIP_VERSION_ROLES: u16 = 2;
const MEMBER_BYTES_MIN: usize = 20;
const ROLE_VOTER: u8 = 0;
const ROLE_REPLICA: u8 = 1;
const ROLE_LEAVING: u8 = 2;
const KIND_BLANK: u8 = 0;
const KIND_PAYLOAD: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end before the field at `offset` does.
    #[error("{what}: ends within the field at offset {offset}")]
    Truncated {
        /// The format.
        what: &'static str,
        /// Where the field begins.
        offset: usize,
    },
    /// The field at `offset` holds a value that is never written.
    #[error("{what}: impossible value at offset {offset}")]
    Invalid {
        /// The format.
        what: &'static str,
        /// Where the field begins.
        offset: usize,
    },
    /// Written by a newer version of Wallaby.
    #[error("{what}: version {version} is not supported by this program")]
    Unsupported {
        /// The format.
        what: &'static str,
        /// The version found.
        version: u32,
    },
    /// A payload of 4 GiB or more cannot be an entry.
    #[error("an entry of {bytes} bytes is too large")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// Appends a log id.
pub fn encode_log_id(log_id: &LogId, out: &mut Vec<u8>) {
    out.extend_from_slice(&log_id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&log_id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&log_id.index.to_le_bytes());
}

/// Reads a log id; `bytes` must be exactly that.
pub fn decode_log_id(bytes: &[u8]) -> Result<LogId, CodecError> {
    let mut fields = Fields::new("log id", bytes);
    let log_id = log_id(&mut fields)?;
    fields.end()?;
    Ok(log_id)
}

/// Appends an optional log id.
pub fn encode_log_id_option(log_id: Option<&LogId>, out: &mut Vec<u8>) {
    out.extend_from_slice(&[u8::from(log_id.is_some()), 0, 0, 0, 0, 0, 0, 0]);
    match log_id {
        Some(log_id) => encode_log_id(log_id, out),
        None => out.extend_from_slice(&[0; LOG_ID_BYTES]),
    }
}

/// Reads an optional log id; `bytes` must be exactly that.
pub fn decode_log_id_option(bytes: &[u8]) -> Result<Option<LogId>, CodecError> {
    let mut fields = Fields::new("log id", bytes);
    let log_id = log_id_option(&mut fields)?;
    fields.end()?;
    Ok(log_id)
}

/// Appends a vote.
pub fn encode_vote(vote: &Vote, out: &mut Vec<u8>) {
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&[u8::from(vote.committed), 0, 0, 0, 0, 0, 0, 0]);
}

/// Reads a vote; `bytes` must be exactly that.
pub fn decode_vote(bytes: &[u8]) -> Result<Vote, CodecError> {
    let mut fields = Fields::new("vote", bytes);
    let vote = vote(&mut fields)?;
    fields.end()?;
    Ok(vote)
}

/// An encoded entry in two pieces, so that the payload is never copied to be encoded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EncodedEntry {
    /// Log id, kind and length of the payload.
    pub head: [u8; ENTRY_HEAD_BYTES],
    /// What follows the head.
    pub payload: Bytes,
}

impl EncodedEntry {
    /// Bytes of head and payload together.
    pub fn bytes(&self) -> usize {
        ENTRY_HEAD_BYTES + self.payload.len()
    }
}

/// Encodes an entry; its payload is shared with it.
pub fn encode_entry_parts(entry: &Entry) -> Result<EncodedEntry, CodecError> {
    let (kind, payload) = match &entry.payload {
        EntryPayload::Blank => (KIND_BLANK, Bytes::new()),
        EntryPayload::Normal(payload) => (KIND_PAYLOAD, payload.0.clone()),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(None, membership.clone());
            (KIND_MEMBERSHIP, Bytes::from(encode_membership(&stored)))
        }
    };
    let Ok(length) = u32::try_from(payload.len()) else {
        return Err(CodecError::TooLarge {
            bytes: payload.len(),
        });
    };
    let mut head = [0; ENTRY_HEAD_BYTES];
    head[0..8].copy_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    head[8..16].copy_from_slice(&entry.log_id.leader_id.node_id.to_le_bytes());
    head[16..24].copy_from_slice(&entry.log_id.index.to_le_bytes());
    head[24] = kind;
    head[28..32].copy_from_slice(&length.to_le_bytes());
    Ok(EncodedEntry { head, payload })
}

/// Appends an entry, head and payload.
pub fn encode_entry(entry: &Entry, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let parts = encode_entry_parts(entry)?;
    out.extend_from_slice(&parts.head);
    out.extend_from_slice(&parts.payload);
    Ok(())
}

/// Reads an entry; `bytes` must be exactly that. The payload is a slice of `bytes`, not a copy.
// By value on purpose: the payload keeps sharing the buffer.
#[allow(clippy::needless_pass_by_value)]
pub fn decode_entry(bytes: Bytes) -> Result<Entry, CodecError> {
    let mut fields = Fields::new("entry", &bytes);
    let log_id = log_id(&mut fields)?;
    let kind = fields.u8()?;
    fields.zeros(3)?;
    let length = fields.count(1)?;
    let body = fields.slice(length)?;
    let payload = match kind {
        KIND_BLANK if length == 0 => EntryPayload::Blank,
        KIND_PAYLOAD => EntryPayload::Normal(Payload(bytes.slice_ref(body))),
        KIND_MEMBERSHIP => {
            let stored = decode_membership(body)?;
            if stored.log_id().is_some() {
                return Err(CodecError::Invalid {
                    what: "entry",
                    offset: ENTRY_HEAD_BYTES,
                });
            }
            EntryPayload::Membership(stored.membership().clone())
        }
        _ => {
            return Err(CodecError::Invalid {
                what: "entry",
                offset: LOG_ID_BYTES,
            });
        }
    };
    fields.end()?;
    Ok(Entry { log_id, payload })
}

/// Reads only the log id off an encoded entry.
pub(super) fn decode_entry_log_id(bytes: &[u8]) -> Result<LogId, CodecError> {
    log_id(&mut Fields::new("entry", bytes))
}

/// A membership as bytes.
pub fn encode_membership(stored: &StoredMembership) -> Vec<u8> {
    let mut out = Vec::new();
    let sets = stored.get_joint_config();
    let roles = has_roles(stored.membership());
    let version = if roles {
        MEMBERSHIP_VERSION_ROLES
    } else {
        MEMBERSHIP_VERSION
    };
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    encode_log_id_option(stored.log_id().as_ref(), &mut out);
    push_count(sets.len(), &mut out);
    push_count(stored.nodes().count(), &mut out);
    for set in sets {
        push_count(set.len(), &mut out);
        for id in set {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    for (id, member) in stored.nodes() {
        out.extend_from_slice(&id.to_le_bytes());
        let texts = [&member.name, &member.raft_addr, &member.http_addr];
        for text in texts {
            push_count(text.len(), &mut out);
        }
        for text in texts {
            out.extend_from_slice(text.as_bytes());
        }
        if roles {
            out.push(match member.role {
                Role::Voter => ROLE_VOTER,
                Role::Replica => ROLE_REPLICA,
                Role::Leaving => ROLE_LEAVING,
            });
        }
    }
    out
}

fn has_roles(membership: &Membership) -> bool {
    let mut nodes = membership.nodes();
    nodes.any(|(_, member)| member.role != Role::Voter)
}

/// Reads a membership; `bytes` must be exactly that.
pub fn decode_membership(bytes: &[u8]) -> Result<StoredMembership, CodecError> {
    let mut fields = Fields::new("membership", bytes);
    let version = fields.u16()?;
    if ![MEMBERSHIP_VERSION, MEMBERSHIP_VERSION_ROLES].contains(&version) {
        let version = u32::from(version);
        return Err(CodecError::Unsupported {
            what: "membership",
            version,
        });
    }
    fields.zeros(6)?;
    let log_id = log_id_option(&mut fields)?;
    let sets = fields.count(4)?;
    let members = fields.count(MEMBER_BYTES_MIN)?;
    let mut configs = Vec::new();
    for _ in 0..sets {
        configs.push(voter_set(&mut fields)?);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..members {
        let id = fields.u64()?;
        if nodes.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(fields.invalid(8));
        }
        let lengths = [fields.u32()?, fields.u32()?, fields.u32()?];
        let [name, raft_addr, http_addr] = lengths.map(|length| fields.string(length as usize));
        let (name, raft_addr, http_addr) = (name?, raft_addr?, http_addr?);
        let role = if version == MEMBERSHIP_VERSION_ROLES {
            role(&mut fields)?
        } else {
            Role::Voter
        };
        nodes.insert(
            id,
            Member {
                name,
                raft_addr,
                http_addr,
                role,
            },
        );
    }
    let offset = bytes.len() - fields.remaining();
    fields.end()?;
    let invalid = |offset| CodecError::Invalid {
        what: "membership",
        offset,
    };
    // openraft's own check: no empty voter set, and every voter is a node.
    let membership = Membership::new(configs, nodes).map_err(|_| invalid(offset))?;
    // One membership has one encoding.
    if has_roles(&membership) != (version == MEMBERSHIP_VERSION_ROLES) {
        return Err(invalid(0));
    }
    Ok(StoredMembership::new(log_id, membership))
}

fn role(fields: &mut Fields<'_>) -> Result<Role, CodecError> {
    match fields.u8()? {
        ROLE_VOTER => Ok(Role::Voter),
        ROLE_REPLICA => Ok(Role::Replica),
        ROLE_LEAVING => Ok(Role::Leaving),
        _ => Err(fields.invalid(1)),
    }
}

fn voter_set(fields: &mut Fields<'_>) -> Result<BTreeSet<u64>, CodecError> {
    let mut set = BTreeSet::new();
    for _ in 0..fields.count(8)? {
        let id = fields.u64()?;
        if set.last().is_some_and(|last| *last >= id) {
            return Err(fields.invalid(8));
        }
        set.insert(id);
    }
    Ok(set)
}

pub(super) fn log_id(fields: &mut Fields<'_>) -> Result<LogId, CodecError> {
    let leader_id = LeaderId {
        term: fields.u64()?,
        node_id: fields.u64()?,
    };
    Ok(LogId {
        leader_id,
        index: fields.u64()?,
    })
}

pub(super) fn log_id_option(fields: &mut Fields<'_>) -> Result<Option<LogId>, CodecError> {
    let present = fields.flag()?;
    fields.zeros(7)?;
    if present {
        return Ok(Some(log_id(fields)?));
    }
    fields.zeros(LOG_ID_BYTES)?;
    Ok(None)
}

pub(super) fn vote(fields: &mut Fields<'_>) -> Result<Vote, CodecError> {
    let leader_id = LeaderId {
        term: fields.u64()?,
        node_id: fields.u64()?,
    };
    let committed = fields.flag()?;
    fields.zeros(7)?;
    Ok(Vote {
        leader_id,
        committed,
    })
}

fn push_count(count: usize, out: &mut Vec<u8>) {
    let count = u32::try_from(count).expect("a cluster has no four billion nodes or letters");
    out.extend_from_slice(&count.to_le_bytes());
}

#[cfg(test)]
mod tests;
