//! The bytes of a WAL file: its header, its frames' headers, and the checksum that chains them.
//!
//! SQLite's "WAL-mode File Format" (file format document, section 4). A WAL is one header and any
//! number of frames; a frame is a header and one page. All integers are big-endian. The checksum
//! reads its input as 32-bit words in the byte order that the magic names.
//!
//! WAL header, 32 bytes at offset 0:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | 0x377f0682: checksum words are little-endian; 0x377f0683: big-endian |
//! | 4 | 4 | version | 3007000 |
//! | 8 | 4 | page size | a power of two from 512 to 65536 |
//! | 12 | 4 | checkpoint sequence | counts the restarts of this WAL |
//! | 16 | 8 | salts | two words; the first counts restarts, the second is random |
//! | 24 | 8 | checksum | of bytes 0..24, from (0, 0) |
//!
//! Frame n (from 1) begins at 32 + (n - 1) * (24 + page size); its header has 24 bytes:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | page number | never 0 |
//! | 4 | 4 | commit | database size in pages if this frame ends a transaction, else 0 |
//! | 8 | 8 | salts | those of the WAL header; others mark frames of an earlier generation |
//! | 16 | 8 | checksum | of bytes 0..8 and the page, from the checksum of what stands before |
//!
//! A damaged WAL header makes SQLite ignore the whole file; a damaged frame ends the WAL there.

use super::page::{PageCount, PageNumber, PageSize};

/// Why bytes are not a WAL, or not a WAL-index, that can be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WalError {
    /// The bytes contradict themselves: they were damaged, or never written completely.
    #[error("{what} is damaged at offset {offset}")]
    Corrupt {
        /// The part that is damaged.
        what: &'static str,
        /// Where it begins, in bytes from the start of what was parsed.
        offset: u64,
    },
    /// The bytes do not begin like a WAL.
    #[error("not a WAL: unknown magic number")]
    NotAWal,
    /// There are too few bytes.
    #[error("{found} bytes where {needed} are needed")]
    Short {
        /// How many bytes there are.
        found: u64,
        /// How many there must be at least.
        needed: u64,
    },
    /// The two copies of the WAL-index header differ, or were never set: a writer is at work or
    /// died there. Reading again may succeed.
    #[error("the WAL-index header is being written")]
    Unsettled,
    /// Written by a SQLite with another WAL format.
    #[error("WAL format version {version} is not supported")]
    Unsupported {
        /// The version found.
        version: u32,
    },
}

/// The two salt words of a WAL generation. SQLite copies them without ever swapping their bytes, so
/// they are bytes here too.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Salts(pub [u8; 8]);

impl Salts {
    /// The salts of the next generation, as `walRestartHdr` makes them: the first word counts on,
    /// the second is fresh. Readers notice a restart by the change.
    #[must_use]
    pub fn next(self, random: [u8; 4]) -> Self {
        let mut salts = [0; 8];
        let count = u32_at(&self.0, 0).wrapping_add(1);
        salts[..4].copy_from_slice(&count.to_be_bytes());
        salts[4..].copy_from_slice(&random);
        Self(salts)
    }
}

/// In which byte order the checksum reads its words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ByteOrder {
    /// Magic ...83: written on a big-endian machine.
    Big,
    /// Magic ...82: written on a little-endian machine, and by us.
    Little,
}

impl ByteOrder {
    const fn magic(self) -> u32 {
        match self {
            Self::Big => MAGIC | 1,
            Self::Little => MAGIC,
        }
    }
}

/// SQLite's running checksum; each frame continues where the one before it ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Checksum {
    /// The first word.
    pub s0: u32,
    /// The second word.
    pub s1: u32,
}

impl Checksum {
    /// Continues the sum over bytes whose number is a multiple of 8.
    ///
    /// # Panics
    ///
    /// If it is not: what remained would silently go unchecked.
    pub fn update(&mut self, order: ByteOrder, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(8), "whole pairs of words");
        match order {
            ByteOrder::Big => self.sum(bytes, u32::from_be_bytes),
            ByteOrder::Little => self.sum(bytes, u32::from_le_bytes),
        }
    }

    #[inline]
    fn sum(&mut self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) {
        let (mut s0, mut s1) = (self.s0, self.s1);
        let (pairs, _) = bytes.as_chunks::<8>();
        for &[a, b, c, d, e, f, g, h] in pairs {
            s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
            s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
        }
        *self = Self { s0, s1 };
    }

    fn at(bytes: &[u8], offset: usize) -> Self {
        Self {
            s0: u32_at(bytes, offset),
            s1: u32_at(bytes, offset + 4),
        }
    }

    fn put(self, bytes: &mut [u8], offset: usize) {
        put_u32(bytes, offset, self.s0);
        put_u32(bytes, offset + 4, self.s1);
    }
}

/// A checked WAL header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WalHeader {
    /// How the checksums of this file read their words.
    pub order: ByteOrder,
    /// The size of the page in each frame.
    pub page_size: PageSize,
    /// How often the WAL was restarted.
    pub checkpoint_sequence: u32,
    /// What each valid frame must carry.
    pub salts: Salts,
}

impl WalHeader {
    /// The header of a WAL that this machine writes.
    #[must_use]
    pub const fn new(page_size: PageSize, checkpoint_sequence: u32, salts: Salts) -> Self {
        Self {
            order: ByteOrder::Little,
            page_size,
            checkpoint_sequence,
            salts,
        }
    }

    /// Reads and checks the first 32 bytes of a WAL.
    ///
    /// # Errors
    ///
    /// All variants but `Unsettled`. SQLite treats each, except a wrong version, as an empty WAL.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalError> {
        let bytes = head::<WAL_HEADER_BYTES>(bytes)?;
        let order = match u32_at(bytes, 0) {
            MAGIC => ByteOrder::Little,
            magic if magic == MAGIC | 1 => ByteOrder::Big,
            _ => return Err(WalError::NotAWal),
        };
        let mut checksum = Checksum::default();
        checksum.update(order, &bytes[..24]);
        if checksum != Checksum::at(bytes, 24) {
            return Err(corrupt("WAL header checksum", 24));
        }
        let version = u32_at(bytes, 4);
        if version != VERSION {
            return Err(WalError::Unsupported { version });
        }
        Ok(Self {
            order,
            page_size: PageSize::new(u32_at(bytes, 8)).ok_or(corrupt("WAL page size", 8))?,
            checkpoint_sequence: u32_at(bytes, 12),
            salts: salts_at(bytes, 16),
        })
    }

    /// What a damaged header says nevertheless, unchecked: for tools that show as much of a file as
    /// can be read. `None` if it does not even name a page size.
    #[must_use]
    pub fn salvage(bytes: &[u8]) -> Option<Self> {
        let bytes = head::<WAL_HEADER_BYTES>(bytes).ok()?;
        Some(Self {
            order: if u32_at(bytes, 0) == ByteOrder::Big.magic() {
                ByteOrder::Big
            } else {
                ByteOrder::Little
            },
            page_size: PageSize::new(u32_at(bytes, 8))?,
            checkpoint_sequence: u32_at(bytes, 12),
            salts: salts_at(bytes, 16),
        })
    }

    /// The 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; WAL_HEADER_BYTES] {
        let mut bytes = [0; WAL_HEADER_BYTES];
        put_u32(&mut bytes, 0, self.order.magic());
        put_u32(&mut bytes, 4, VERSION);
        put_u32(&mut bytes, 8, self.page_size.bytes());
        put_u32(&mut bytes, 12, self.checkpoint_sequence);
        bytes[16..24].copy_from_slice(&self.salts.0);
        let mut checksum = Checksum::default();
        checksum.update(self.order, &bytes[..24]);
        checksum.put(&mut bytes, 24);
        bytes
    }

    /// The checksum that the first frame continues.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        Checksum::at(&self.encode(), 24)
    }
}

/// The header of one frame. Its checksum is only checked by [`Walker`](super::Walker), which knows
/// what stands before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHeader {
    /// The page that follows.
    pub page: PageNumber,
    /// The size of the database after the transaction that this frame ends; never `Some` of zero
    /// pages, which the format cannot express.
    pub commit: Option<PageCount>,
    /// The salts of the generation it was written in.
    pub salts: Salts,
    /// The running checksum up to and including this frame.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// The header of the next frame, whose checksum continues `before`.
    #[must_use]
    pub fn seal(
        page: PageNumber,
        commit: Option<PageCount>,
        image: &[u8],
        order: ByteOrder,
        salts: Salts,
        before: Checksum,
    ) -> Self {
        let mut header = Self {
            page,
            commit,
            salts,
            checksum: before,
        };
        let summed = header.encode();
        header.checksum.update(order, &summed[..8]);
        header.checksum.update(order, image);
        header
    }

    /// Reads the 24 bytes before a page.
    ///
    /// # Errors
    ///
    /// `Short`, and `Corrupt` for page number zero.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalError> {
        let bytes = head::<FRAME_HEADER_BYTES>(bytes)?;
        let commit = u32_at(bytes, 4);
        Ok(Self {
            page: PageNumber::new(u32_at(bytes, 0)).ok_or(corrupt("frame page number", 0))?,
            commit: (commit != 0).then_some(PageCount(commit)),
            salts: salts_at(bytes, 8),
            checksum: Checksum::at(bytes, 16),
        })
    }

    /// The 24 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put_u32(&mut bytes, 0, self.page.number());
        put_u32(&mut bytes, 4, self.commit.map_or(0, |count| count.0));
        bytes[8..16].copy_from_slice(&self.salts.0);
        self.checksum.put(&mut bytes, 16);
        bytes
    }
}

/// The size of a frame, header and page, in bytes.
#[must_use]
pub const fn frame_bytes(page_size: PageSize) -> u64 {
    FRAME_HEADER_BYTES as u64 + page_size.bytes() as u64
}

/// Where frame `frame` (counted from 1) begins in the WAL, in bytes. With the number of frames plus
/// one this is the size of the WAL.
#[must_use]
pub const fn frame_offset(frame: u32, page_size: PageSize) -> u64 {
    WAL_HEADER_BYTES as u64 + (frame as u64).saturating_sub(1) * frame_bytes(page_size)
}

pub(super) fn head<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], WalError> {
    bytes.first_chunk::<N>().ok_or(WalError::Short {
        found: bytes.len() as u64,
        needed: N as u64,
    })
}

pub(super) const fn corrupt(what: &'static str, offset: u64) -> WalError {
    WalError::Corrupt { what, offset }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_be_bytes(word)
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}

fn salts_at(bytes: &[u8], offset: usize) -> Salts {
    let mut salts = [0; 8];
    salts.copy_from_slice(&bytes[offset..offset + 8]);
    Salts(salts)
}

/// The size of the WAL header in bytes.
pub const WAL_HEADER_BYTES: usize = 32;
/// The size of a frame header in bytes.
pub const FRAME_HEADER_BYTES: usize = 24;
/// The magic with little-endian checksums; the lowest bit set means big-endian.
const MAGIC: u32 = 0x377f_0682;
/// The only version SQLite has ever written: 3.7.0.
const VERSION: u32 = 3_007_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_two_words_is_the_formula_done_by_hand() {
        let mut checksum = Checksum { s0: 1, s1: 2 };
        checksum.update(ByteOrder::Big, &[0, 0, 0, 3, 0, 0, 0, 4]);
        assert_eq!(checksum, Checksum { s0: 6, s1: 12 });
        let mut checksum = Checksum { s0: 1, s1: 2 };
        checksum.update(ByteOrder::Little, &[3, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(checksum, Checksum { s0: 6, s1: 12 });
    }

    #[test]
    fn headers_survive_the_round_trip_and_no_truncation_does() {
        for order in [ByteOrder::Big, ByteOrder::Little] {
            let mut header = WalHeader::new(PageSize::DEFAULT, 7, Salts([9; 8]));
            header.order = order;
            let bytes = header.encode();
            assert_eq!(WalHeader::parse(&bytes), Ok(header));
            for length in 0..bytes.len() {
                assert!(WalHeader::parse(&bytes[..length]).is_err());
                assert!(WalHeader::salvage(&bytes[..length]).is_none());
            }
            let mut damaged = bytes;
            damaged[30] ^= 1;
            assert!(WalHeader::parse(&damaged).is_err());
            assert_eq!(WalHeader::salvage(&damaged), Some(header));
            let frame = FrameHeader::seal(
                PageNumber::FIRST,
                Some(PageCount(3)),
                &[5; 4096],
                order,
                header.salts,
                header.checksum(),
            );
            assert_eq!(FrameHeader::parse(&frame.encode()), Ok(frame));
            assert_eq!(
                FrameHeader::parse(&[0; 24]),
                Err(corrupt("frame page number", 0))
            );
        }
    }

    #[test]
    fn a_restart_changes_both_salts() {
        let salts = Salts([0, 0, 0, 255, 1, 2, 3, 4]).next([7; 4]);
        assert_eq!(salts, Salts([0, 0, 1, 0, 7, 7, 7, 7]));
    }
}
