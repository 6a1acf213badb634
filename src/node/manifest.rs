//! What a snapshot is of: its place in the log, its membership, its size and its hash.
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `8E 57 4C 42 53 4E 0A 1A` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | page size | bytes |
//! | 16 | 4 | page count | |
//! | 20 | 4 | membership length | bytes, at most 1 MiB |
//! | 24 | 24 | applied | term, node, index: everything up to here is in the pages |
//! | 48 | 24 | data | last accepted data entry; all zero if none |
//! | 72 | 16 | hash | of all pages |
//! | 88 | n | membership | as in the log |
//! | 88+n | 4 | CRC-32 | of everything before it |
//!
//! Integers are little-endian. `applied` and `data` travel together: a node that starts from a
//! snapshot must fence exactly like one that applied every entry.

use crate::raft::StoredMembership;
use crate::raft::codec::{decode_membership, encode_membership};
use crate::wal::{DatabaseHash, PageCount, PageSize, Position};

/// The head of a snapshot, on the wire and in its spool file.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The last entry that is in the pages.
    pub applied: Position,
    /// The last data entry accepted.
    pub data: Option<Position>,
    /// The membership there.
    pub membership: StoredMembership,
    /// The page size of the database.
    pub page_size: PageSize,
    /// How many pages it has.
    pub page_count: PageCount,
    /// The hash of all of them.
    pub hash: DatabaseHash,
}

impl Manifest {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let membership = encode_membership(&self.membership);
        let mut bytes = Vec::with_capacity(HEAD_BYTES + membership.len() + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.page_size.bytes().to_le_bytes());
        bytes.extend_from_slice(&self.page_count.0.to_le_bytes());
        let membership_bytes = u32::try_from(membership.len()).expect("memberships are small");
        bytes.extend_from_slice(&membership_bytes.to_le_bytes());
        encode_position(&mut bytes, Some(self.applied));
        encode_position(&mut bytes, self.data);
        bytes.extend_from_slice(&self.hash.0.to_le_bytes());
        bytes.extend_from_slice(&membership);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// A text that says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEAD_BYTES + 4 || bytes[..8] != MAGIC {
            return Err("not a snapshot manifest".to_owned());
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(format!(
                "unsupported snapshot version {version}; this is {VERSION}"
            ));
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err("wrong checksum of the snapshot manifest".to_owned());
        }
        let membership = &body[HEAD_BYTES..];
        if membership.len() as u64 != u64::from(u32_at(bytes, 20)) {
            return Err("wrong length of the membership".to_owned());
        }
        let membership = decode_membership(membership).map_err(|error| error.to_string())?;
        Ok(Self {
            applied: decode_position(bytes, 24).ok_or("a snapshot of nothing")?,
            data: decode_position(bytes, 48),
            membership,
            page_size: PageSize::new(u32_at(bytes, 12)).ok_or("impossible page size")?,
            page_count: match u32_at(bytes, 16) {
                0 => return Err("a snapshot without pages".to_owned()),
                count => PageCount(count),
            },
            hash: DatabaseHash(u128::from_le_bytes(
                bytes[72..88].try_into().expect("16 bytes"),
            )),
        })
    }
}

fn encode_position(bytes: &mut Vec<u8>, position: Option<Position>) {
    let position = position.unwrap_or(Position {
        term: 0,
        node: 0,
        index: 0,
    });
    bytes.extend_from_slice(&position.term.to_le_bytes());
    bytes.extend_from_slice(&position.node.to_le_bytes());
    bytes.extend_from_slice(&position.index.to_le_bytes());
}

/// Raft ids are never zero, so a zero node means "none".
fn decode_position(bytes: &[u8], offset: usize) -> Option<Position> {
    let node = u64_at(bytes, offset + 8);
    (node != 0).then(|| Position {
        term: u64_at(bytes, offset),
        node,
        index: u64_at(bytes, offset + 16),
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
}

const MAGIC: [u8; 8] = [0x8e, b'W', b'L', b'B', b'S', b'N', b'\n', 0x1a];
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 88;

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        Manifest {
            applied: Position {
                term: 2,
                node: 3,
                index: 4,
            },
            data: Some(Position {
                term: 1,
                node: 3,
                index: 2,
            }),
            membership: StoredMembership::default(),
            page_size: PageSize::DEFAULT,
            page_count: PageCount(9),
            hash: DatabaseHash(77),
        }
    }

    #[test]
    fn a_manifest_reads_as_it_was_written() {
        assert_eq!(Manifest::decode(&example().encode()), Ok(example()));
        let mut without_data = example();
        without_data.data = None;
        assert_eq!(Manifest::decode(&without_data.encode()), Ok(without_data));
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let bytes = example().encode();
        for length in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..length]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
