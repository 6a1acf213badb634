//! The delta: the pages that a group changed, as one encoded value.
//!
//! Made once on the leader, carried in the log and over the network as the same bytes, and written
//! into the database by every node. All integers are little-endian. The layout, version 1:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | 89 57 41 4c 4c 44 0a 1a: not text, and changed by any newline conversion |
//! | 8 | 4 | version | 1; compared before anything else is looked at |
//! | 12 | 4 | flags | bit 0: there is a base; the others are zero |
//! | 16 | 16 | cluster | the cluster it belongs to, never zero |
//! | 32 | 8 | origin | the Raft id of the node that executed the group |
//! | 40 | 8 | epoch | drawn by that process when it started |
//! | 48 | 8 | sequence | counts the groups of that process |
//! | 56 | 8 | base term | position of the data entry it was executed on; |
//! | 64 | 8 | base node | these three are zero if there is no base |
//! | 72 | 8 | base index | |
//! | 80 | 4 | page size | a power of two from 512 to 65536 |
//! | 84 | 4 | page count | pages of the database after the group |
//! | 88 | 16 | hash before | of the database before the group, in part 1; else zero |
//! | 104 | 16 | hash after | of the database after the group, in the last part; else zero |
//! | 120 | 4 | part number | from 1 |
//! | 124 | 4 | parts | how many parts the group has |
//! | 128 | 4 | n | pages in this delta, never zero |
//! | 132 | 4 | payload checksum | CRC-32 of the payload |
//! | 136 | 8 | payload length | in bytes |
//! | 144 | 12 | reserved | zero |
//! | 156 | 4 | header checksum | CRC-32 of bytes 0..156 and the page table |
//! | 160 | 12 n | page table | see below; strictly ascending by page number |
//! | 160 + 12 n | | payload | the pages one after the other, and nothing behind them |
//!
//! An entry of the page table:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | page number | at most the page count, never the lock-byte page |
//! | 4 | 4 | length | bytes in the payload: the page size if raw, fewer otherwise |
//! | 8 | 1 | encoding | 0 raw, 1 one Zstandard frame (RFC 8878) |
//! | 9 | 3 | reserved | zero |
//!
//! Neither checksum covers less than its name says, and the header's covers the payload's, so no
//! payload fits under another header. A reader refuses every kind of damage and repairs none: the
//! layers below (log, transport) have their own checksums and their own other copies.

use std::borrow::Cow;

use bytes::Bytes;
use zstd::bulk::Decompressor;

use super::hash::DatabaseHash;
use super::page::{PageCount, PageNumber, PageSize};
use super::position::{ClusterId, Position};
use crate::planted::{self, Bug};

/// Why bytes are not a delta that can be applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeltaError {
    /// Damaged, or made by a program with a defect.
    #[error("delta: {what} at offset {offset}")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the start of the delta.
        offset: u64,
    },
    /// The bytes do not begin like a delta.
    #[error("not a delta")]
    NotADelta,
    /// The bytes end too early.
    #[error("delta: ends too early")]
    Short,
    /// Made by a later version of this program.
    #[error("delta: version {version} is not supported")]
    Unsupported {
        /// The version found.
        version: u32,
    },
}

/// Which part of a group a delta is. A group that is too large for one log entry becomes several.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Part {
    /// The only part of a group that fits in one.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Whether this part carries the hash before.
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.number == 1
    }

    /// Whether this part carries the hash after, and completes the group.
    #[must_use]
    pub const fn is_last(self) -> bool {
        self.number == self.of
    }
}

/// What a delta says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeltaHeader {
    /// The cluster it belongs to, never zero.
    pub cluster: ClusterId,
    /// The Raft id of the node that executed the group.
    pub origin: u64,
    /// What that process drew when it started. With `sequence` it lets the node recognise its own.
    pub epoch: u64,
    /// Counts the groups of that process.
    pub sequence: u64,
    /// The data entry whose state it was executed on; `None` for the first of a cluster. The fence.
    pub base: Option<Position>,
    /// The page size of the database.
    pub page_size: PageSize,
    /// How many pages the database has afterwards.
    pub page_count: PageCount,
    /// The hash of the database before, in part 1; zero in the others.
    pub hash_before: DatabaseHash,
    /// The hash of the database after, in the last part; zero in the others.
    pub hash_after: DatabaseHash,
    /// Which part of the group this is.
    pub part: Part,
}

impl DeltaHeader {
    /// What the beginning of an encoded delta says, without a look at its checksums and pages. For
    /// those who pass it on; whoever applies it decodes it.
    #[must_use]
    pub fn peek(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..HEADER_BYTES)?;
        if head[..8] != MAGIC || u32_at(head, 8) != VERSION {
            return None;
        }
        parse_header(head).ok()
    }
}

/// How a writer stores pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// Compressed, each page alone; a page that does not shrink is stored as it is.
    Zstd,
}

/// A checked delta: everything but the insides of compressed pages. Cheap to clone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delta {
    header: DeltaHeader,
    bytes: Bytes,
    pages: usize,
}

impl Delta {
    /// Checks the bytes. Allocates nothing.
    ///
    /// # Errors
    ///
    /// Any [`DeltaError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DeltaError> {
        let (header, pages) = check(&bytes)?;
        Ok(Self {
            header,
            bytes,
            pages,
        })
    }

    /// What it says about itself.
    #[must_use]
    pub const fn header(&self) -> &DeltaHeader {
        &self.header
    }

    /// The bytes it was decoded from.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same delta as one of another cluster.
    ///
    /// # Panics
    ///
    /// If that cluster's id is zero, which no reader would take.
    #[must_use]
    pub fn in_cluster(&self, cluster: ClusterId) -> Self {
        assert!(cluster.0 != 0, "a cluster id is never zero");
        let mut bytes = self.bytes.to_vec();
        bytes[16..32].copy_from_slice(&cluster.0.to_le_bytes());
        let table = &bytes[HEADER_BYTES..payload_offset(self.pages)];
        let checksum = header_checksum(&bytes[..156], table);
        bytes[156..160].copy_from_slice(&checksum.to_le_bytes());
        Self {
            header: DeltaHeader {
                cluster,
                ..self.header
            },
            bytes: Bytes::from(bytes),
            pages: self.pages,
        }
    }

    /// How many pages it has, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a delta is never empty")]
    pub const fn len(&self) -> usize {
        self.pages
    }

    /// The numbers of its pages, ascending.
    pub fn page_numbers(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.entries().map(|entry| entry.page)
    }

    /// Its pages, ascending, each exactly one page size long.
    ///
    /// An item is an error if a compressed page does not decompress to that. Who must not apply
    /// half a delta reads to the end first.
    pub fn pages(&self) -> impl Iterator<Item = Result<(PageNumber, Cow<'_, [u8]>), DeltaError>> {
        let mut decompressor = None;
        let mut offset = payload_offset(self.pages);
        self.entries().map(move |entry| {
            let begin = offset;
            offset += entry.length;
            let stored = &self.bytes[begin..offset];
            let image = if entry.raw {
                Cow::Borrowed(stored)
            } else {
                Cow::Owned(
                    decompress(&mut decompressor, stored, self.header.page_size).ok_or(corrupt(
                        "a compressed page does not have the page size",
                        begin,
                    ))?,
                )
            };
            Ok((entry.page, image))
        })
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let table = &self.bytes[HEADER_BYTES..payload_offset(self.pages)];
        let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
        entries.iter().map(|entry| {
            Entry::parse(entry, self.header.page_size).expect("decode has checked the page table")
        })
    }
}

/// A checked entry of the page table.
struct Entry {
    page: PageNumber,
    length: usize,
    raw: bool,
}

impl Entry {
    fn parse(bytes: &[u8; ENTRY_BYTES], page_size: PageSize) -> Result<Self, &'static str> {
        let page = PageNumber::new(u32_at(bytes, 0)).ok_or("page number zero")?;
        let length = u32_at(bytes, 4);
        let raw = match bytes[8] {
            ENCODING_RAW => true,
            ENCODING_ZSTD => false,
            _ => return Err("unknown page encoding"),
        };
        if bytes[9..] != [0; 3] {
            return Err("reserved bytes in the page table");
        }
        let possible = if raw {
            length == page_size.bytes()
        } else {
            (1..page_size.bytes()).contains(&length)
        };
        if !possible {
            return Err("impossible page length");
        }
        Ok(Self {
            page,
            length: length as usize,
            raw,
        })
    }
}

/// Everything that `decode` checks, in the order of the layout; but lengths first, checksums before
/// meaning.
fn check(bytes: &[u8]) -> Result<(DeltaHeader, usize), DeltaError> {
    let magic = bytes.get(..8).ok_or(DeltaError::Short)?;
    if magic != MAGIC {
        return Err(DeltaError::NotADelta);
    }
    if bytes.len() < 12 {
        return Err(DeltaError::Short);
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return Err(DeltaError::Unsupported { version });
    }
    if bytes.len() < HEADER_BYTES {
        return Err(DeltaError::Short);
    }
    let n = u32_at(bytes, 128);
    if (bytes.len() as u64) < HEADER_BYTES as u64 + u64::from(n) * ENTRY_BYTES as u64 {
        return Err(DeltaError::Short);
    }
    let pages = n as usize;
    let (head, payload) = bytes.split_at(payload_offset(pages));
    let (head, table) = head.split_at(HEADER_BYTES);
    if header_checksum(&head[..156], table) != u32_at(head, 156) {
        return Err(corrupt("header checksum", 156));
    }
    let header = parse_header(head)?;
    if head[144..156] != [0; 12] {
        return Err(corrupt("reserved bytes", 144));
    }
    let payload_bytes = u64_at(head, 136);
    if (payload.len() as u64) < payload_bytes {
        return Err(DeltaError::Short);
    }
    if payload.len() as u64 != payload_bytes {
        return Err(corrupt("payload length", 136));
    }
    if crc32fast::hash(payload) != u32_at(head, 132) {
        return Err(corrupt("payload checksum", 132));
    }
    check_table(&header, table, payload_bytes)?;
    Ok((header, pages))
}

fn parse_header(head: &[u8]) -> Result<DeltaHeader, DeltaError> {
    let position = Position {
        term: u64_at(head, 56),
        node: u64_at(head, 64),
        index: u64_at(head, 72),
    };
    let base = match u32_at(head, 12) {
        0 if head[56..80] == [0; 24] => None,
        0 => return Err(corrupt("a base position without its flag", 56)),
        FLAG_BASE => Some(position),
        _ => return Err(corrupt("unknown flags", 12)),
    };
    let header = DeltaHeader {
        cluster: ClusterId(u128_at(head, 16)),
        origin: u64_at(head, 32),
        epoch: u64_at(head, 40),
        sequence: u64_at(head, 48),
        base,
        page_size: PageSize::new(u32_at(head, 80)).ok_or(corrupt("page size", 80))?,
        page_count: PageCount(u32_at(head, 84)),
        hash_before: DatabaseHash(u128_at(head, 88)),
        hash_after: DatabaseHash(u128_at(head, 104)),
        part: Part {
            number: u32_at(head, 120),
            of: u32_at(head, 124),
        },
    };
    check_header(&header).map_or(Ok(header), Err)
}

/// The rules between the fields of a header, for those we read and those we write.
pub(super) fn check_header(header: &DeltaHeader) -> Option<DeltaError> {
    let part = header.part;
    if header.cluster.0 == 0 {
        return Some(corrupt("cluster id zero", 16));
    }
    if part.number == 0 || part.number > part.of {
        return Some(corrupt("part number out of range", 120));
    }
    if !part.is_first() && header.hash_before != DatabaseHash::default() {
        return Some(corrupt("hash before on a later part", 88));
    }
    if !part.is_last() && header.hash_after != DatabaseHash::default() {
        return Some(corrupt("hash after on an earlier part", 104));
    }
    None
}

fn check_table(header: &DeltaHeader, table: &[u8], payload_bytes: u64) -> Result<(), DeltaError> {
    let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
    if entries.is_empty() {
        return Err(corrupt("no pages", 128));
    }
    let mut page_last = None;
    let mut total = 0;
    let mut offset = HEADER_BYTES;
    for bytes in entries {
        let entry = Entry::parse(bytes, header.page_size).map_err(|what| corrupt(what, offset))?;
        if page_last >= Some(entry.page) {
            return Err(corrupt("pages do not ascend", offset));
        }
        if !header.page_count.contains(entry.page) {
            return Err(corrupt("page beyond the page count", offset));
        }
        let is_lock_byte_page = entry.page == header.page_size.lock_byte_page();
        if is_lock_byte_page && !planted::is(Bug::LockBytePageTaken) {
            return Err(corrupt("lock-byte page", offset));
        }
        page_last = Some(entry.page);
        total += entry.length as u64;
        offset += ENTRY_BYTES;
    }
    if total == payload_bytes {
        Ok(())
    } else {
        Err(corrupt("page lengths do not add up to the payload", 136))
    }
}

/// `None` if the frame is bad or does not give exactly one page. The output has the size of a page
/// and zstd does not write beyond it, whatever the frame claims.
fn decompress(
    decompressor: &mut Option<Decompressor<'static>>,
    stored: &[u8],
    page_size: PageSize,
) -> Option<Vec<u8>> {
    let decompressor = decompressor.get_or_insert_with(|| {
        Decompressor::new().expect("a decompressor needs nothing but memory")
    });
    let mut image = vec![0; page_size.len()];
    let length = decompressor
        .decompress_to_buffer(stored, &mut image[..])
        .ok()?;
    (length == image.len()).then_some(image)
}

pub(super) fn header_checksum(head: &[u8], table: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(table);
    hasher.finalize()
}

const fn payload_offset(pages: usize) -> usize {
    HEADER_BYTES + pages * ENTRY_BYTES
}

const fn corrupt(what: &'static str, offset: usize) -> DeltaError {
    DeltaError::Corrupt {
        what,
        offset: offset as u64,
    }
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

fn u128_at(bytes: &[u8], offset: usize) -> u128 {
    u128::from_le_bytes(array_at(bytes, offset))
}

/// 0x89 is not ASCII, so no text begins like this; 0x0a is lost where newlines are converted.
pub(super) const MAGIC: [u8; 8] = [0x89, b'W', b'A', b'L', b'L', b'D', 0x0a, 0x1a];
pub(super) const VERSION: u32 = 1;
pub(super) const FLAG_BASE: u32 = 1;
pub(super) const ENCODING_RAW: u8 = 0;
pub(super) const ENCODING_ZSTD: u8 = 1;
pub(super) const HEADER_BYTES: usize = 160;
pub(super) const ENTRY_BYTES: usize = 12;
