//! The append frame: Raft's AppendEntries on the wire, with the deltas carried unchanged.
//!
//! | Size | Field | Meaning |
//! |---|---|---|
//! | 4 | head length | bytes of everything up to the payloads |
//! | 4 | entry count | |
//! | 17 | vote | term, node, committed |
//! | 25 | previous log id | presence, term, node, index |
//! | 25 | leader's commit | presence, term, node, index |
//! | ... | entries | for each: kind (0 whole, 1 payload), length, then see below |
//! | ... | payloads | of the entries of kind 1, in order, without padding |
//!
//! Entry of kind 0: `length` bytes as encoded for the log. Entry of kind 1 (normal entries): log id
//! (term, node, index), and `length` bytes among the payloads, which are the encoded delta itself
//! and are neither copied nor looked into. Integers are little-endian; the frame below carries the
//! CRC.

use bytes::{Buf as _, Bytes};
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;

use crate::raft::codec::{decode_entry, encode_entry};
use crate::raft::{Entry, LeaderId, LogId, Payload, TypeConfig, Vote};

/// Encodes the head; the payloads follow it unchanged.
pub(crate) fn encode(request: &AppendEntriesRequest<TypeConfig>) -> (Vec<u8>, Vec<Bytes>) {
    let mut head = Vec::with_capacity(FIXED_BYTES + request.entries.len() * 29);
    let mut payloads = Vec::new();
    head.extend_from_slice(&[0; 4]);
    let count = u32::try_from(request.entries.len()).expect("a frame has few entries");
    head.extend_from_slice(&count.to_le_bytes());
    head.extend_from_slice(&request.vote.leader_id.term.to_le_bytes());
    head.extend_from_slice(&request.vote.leader_id.node_id.to_le_bytes());
    head.push(u8::from(request.vote.committed));
    encode_log_id(&mut head, request.prev_log_id);
    encode_log_id(&mut head, request.leader_commit);
    for entry in &request.entries {
        if let EntryPayload::Normal(Payload(payload)) = &entry.payload {
            head.push(KIND_PAYLOAD);
            push_length(&mut head, payload.len());
            encode_id(&mut head, entry.log_id);
            payloads.push(payload.clone());
        } else {
            let mut whole = Vec::new();
            encode_entry(entry, &mut whole).expect("memberships are far below the limit");
            head.push(KIND_WHOLE);
            push_length(&mut head, whole.len());
            head.extend_from_slice(&whole);
        }
    }
    let head_bytes = u32::try_from(head.len()).expect("a head is small");
    head[..4].copy_from_slice(&head_bytes.to_le_bytes());
    (head, payloads)
}

/// Decodes a frame; payloads are slices of it.
pub(crate) fn decode(frame: &Bytes) -> Result<AppendEntriesRequest<TypeConfig>, String> {
    if frame.len() < FIXED_BYTES {
        return Err("an append frame is too short".to_owned());
    }
    let head_bytes = u32::from_le_bytes(frame[..4].try_into().expect("4 bytes")) as usize;
    if head_bytes < FIXED_BYTES || head_bytes > frame.len() {
        return Err("an append frame has a wrong head length".to_owned());
    }
    let mut payloads = frame.slice(head_bytes..);
    let mut head = Head(frame.slice(4..head_bytes));
    let count = head.u32()?;
    let leader_id = LeaderId {
        term: head.u64()?,
        node_id: head.u64()?,
    };
    let vote = Vote {
        leader_id,
        committed: head.u8()? != 0,
    };
    let prev_log_id = head.optional_log_id()?;
    let leader_commit = head.optional_log_id()?;
    // No entry is shorter than its kind and length, so the count cannot make us allocate much.
    let mut entries = Vec::with_capacity((count as usize).min(head.0.len() / 5));
    for _ in 0..count {
        let kind = head.u8()?;
        let length = head.u32()? as usize;
        entries.push(match kind {
            KIND_WHOLE => decode_entry(head.take(length)?).map_err(|error| error.to_string())?,
            KIND_PAYLOAD => {
                let log_id = head.log_id()?;
                if length > payloads.len() {
                    return Err("an append frame ends within a payload".to_owned());
                }
                let payload = EntryPayload::Normal(Payload(payloads.split_to(length)));
                Entry { log_id, payload }
            }
            _ => {
                return Err(format!(
                    "an append frame has an entry of unknown kind {kind}"
                ));
            }
        });
    }
    if !payloads.is_empty() || !head.0.is_empty() {
        return Err("an append frame has bytes left over".to_owned());
    }
    // Raft and the log rely on it, and would stop the node.
    let first = prev_log_id.map_or(0, |prev| prev.index.saturating_add(1));
    let indexes = entries.iter().map(|entry| entry.log_id.index);
    if !indexes.eq((first..).take(entries.len())) {
        return Err("an append frame has entries that do not follow one another".to_owned());
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

/// Bytes of a request that count against a window.
pub(crate) fn weight(request: &AppendEntriesRequest<TypeConfig>) -> usize {
    request
        .entries
        .iter()
        .map(|entry| match &entry.payload {
            EntryPayload::Normal(payload) => payload.0.len() + 64,
            _ => 256,
        })
        .sum()
}

fn push_length(head: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("entries are at most some MiB");
    head.extend_from_slice(&length.to_le_bytes());
}

fn encode_log_id(head: &mut Vec<u8>, id: Option<LogId>) {
    head.push(u8::from(id.is_some()));
    let nothing = LogId::new(
        LeaderId {
            term: 0,
            node_id: 0,
        },
        0,
    );
    encode_id(head, id.unwrap_or(nothing));
}

fn encode_id(head: &mut Vec<u8>, id: LogId) {
    let leader = id.committed_leader_id();
    head.extend_from_slice(&leader.term.to_le_bytes());
    head.extend_from_slice(&leader.node_id.to_le_bytes());
    head.extend_from_slice(&id.index.to_le_bytes());
}

/// The part of the head that is still to be read.
struct Head(Bytes);

impl Head {
    fn take(&mut self, length: usize) -> Result<Bytes, String> {
        if length > self.0.len() {
            return Err("an append frame ends within its head".to_owned());
        }
        Ok(self.0.split_to(length))
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?.get_u8())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(self.take(4)?.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(self.take(8)?.get_u64_le())
    }

    fn log_id(&mut self) -> Result<LogId, String> {
        let leader = LeaderId {
            term: self.u64()?,
            node_id: self.u64()?,
        };
        Ok(LogId::new(leader, self.u64()?))
    }

    fn optional_log_id(&mut self) -> Result<Option<LogId>, String> {
        let present = self.u8()? != 0;
        let id = self.log_id()?;
        Ok(present.then_some(id))
    }
}

const KIND_WHOLE: u8 = 0;
const KIND_PAYLOAD: u8 = 1;
const FIXED_BYTES: usize = 4 + 4 + 17 + 25 + 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> AppendEntriesRequest<TypeConfig> {
        let id = |index| {
            LogId::new(
                LeaderId {
                    term: 2,
                    node_id: 9,
                },
                index,
            )
        };
        let normal = |index, bytes: &'static [u8]| Entry {
            log_id: id(index),
            payload: EntryPayload::Normal(Payload(Bytes::from_static(bytes))),
        };
        AppendEntriesRequest {
            vote: Vote {
                leader_id: LeaderId {
                    term: 2,
                    node_id: 9,
                },
                committed: true,
            },
            prev_log_id: Some(id(4)),
            entries: vec![
                normal(5, b"first"),
                Entry {
                    log_id: id(6),
                    payload: EntryPayload::Blank,
                },
                normal(7, b""),
            ],
            leader_commit: None,
        }
    }

    fn frame() -> Bytes {
        let (mut bytes, payloads) = encode(&example());
        for payload in payloads {
            bytes.extend_from_slice(&payload);
        }
        Bytes::from(bytes)
    }

    #[test]
    fn a_frame_reads_as_it_was_written() {
        let read = decode(&frame()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", example()));
        let EntryPayload::Normal(payload) = &read.entries[0].payload else {
            panic!("normal")
        };
        assert_eq!(&payload.0[..], b"first");
    }

    #[test]
    fn every_truncation_is_an_error_and_no_flipped_bit_panics() {
        let bytes = frame();
        for length in 0..bytes.len() {
            assert!(decode(&bytes.slice(..length)).is_err(), "{length} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The CRC of the frame below refuses it; here it only must not panic.
            drop(decode(&Bytes::from(damaged)));
        }
    }
}
