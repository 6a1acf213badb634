//! The delta: the pages that a group changed, as one encoded value.
//!
//! Made once on the leader, carried in the log and over the network as the same bytes, and written
//! into the database by every node. All integers are little-endian. The layout, version 2:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | 89 57 41 4c 4c 44 0a 1a: not text, and changed by any newline conversion |
//! | 8 | 4 | version | 2, or 1; compared before anything else is looked at |
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
//! | 128 | 4 | n | entries of the page table, never zero |
//! | 132 | 4 | payload checksum | CRC-32 of the payload |
//! | 136 | 8 | payload length | in bytes |
//! | 144 | 12 | reserved | zero |
//! | 156 | 4 | header checksum | CRC-32 of bytes 0..156 and the page table |
//! | 160 | 12 n | page table | see below; no page twice; in one of several parts they ascend |
//! | 160 + 12 n | | payload | what the entries store, in their order, and nothing behind it |
//!
//! An entry of the page table, for one page, or for a block of 1 to 64 pages stored as patches:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | page number | of the first page |
//! | 4 | 4 | length | bytes in the payload: the page size if raw, fewer than its pages otherwise |
//! | 8 | 1 | encoding | 0 raw, 1 one Zstandard frame (RFC 8878), 2 a block of patches |
//! | 9 | 1 | more pages | how many pages follow the first; zero unless it is a block of patches |
//! | 10 | 2 | reserved | zero |
//!
//! Version 1 is the same without blocks of patches; it is read, and not written any more.
//!
//! A page number is at most the page count, and never the lock-byte page. A block of patches:
//!
//! | Field | Meaning |
//! |---|---|
//! | distances | for each page but the first: its number less that of the page before, not zero |
//! | patches | of all its pages, as in [`patch`](super::patch), at least one byte |
//!
//! Distances are LEB128, as in [`patch`](super::patch), of at most five bytes.
//!
//! A whole page fits on anything; a patch fits on one version of its page only, and makes something
//! else of any other. Whoever applies patches needs the pages as they were in the base, where a
//! page that did not exist counts as zeros. That they were the right ones, only the hashes can
//! prove: hash before of the database that the delta is applied to, and hash after of what it has
//! become.
//!
//! Whoever applies the only part of a group has all its pages in memory at once, no more than
//! [`IMAGE_BYTES_MAX`]; so they may be in any order. The parts of a larger group are read one after
//! the other: their pages are stored whole, and ascend.
//!
//! Neither checksum covers less than its name says, and the header's covers the payload's, so no
//! payload fits under another header. A reader refuses every kind of damage and repairs none: the
//! layers below (log, transport) have their own checksums and their own other copies.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::delta_pages::{Block, Stored, TableEntry, images};
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
    /// Made by another version of this program.
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
        if head[..8] != MAGIC || !VERSIONS.contains(&u32_at(head, 8)) {
            return None;
        }
        parse_header(head).ok()
    }
}

/// How a writer stores whole pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// Compressed, each page alone; a page that does not shrink is stored as it is.
    Zstd,
}

/// A checked delta: everything but the insides of compressed pages and of patches. Cheap to clone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delta {
    header: DeltaHeader,
    bytes: Bytes,
    entries: usize,
    pages: usize,
}

impl Delta {
    /// Checks the bytes. Allocates no more than their page numbers.
    ///
    /// # Errors
    ///
    /// Any [`DeltaError`].
    pub fn decode(bytes: Bytes) -> Result<Self, DeltaError> {
        let (header, entries, pages) = check(&bytes)?;
        Ok(Self {
            header,
            bytes,
            entries,
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
        let table = &bytes[HEADER_BYTES..payload_offset(self.entries)];
        let checksum = header_checksum(&bytes[..156], table);
        bytes[156..160].copy_from_slice(&checksum.to_le_bytes());
        Self {
            header: DeltaHeader {
                cluster,
                ..self.header
            },
            bytes: Bytes::from(bytes),
            entries: self.entries,
            pages: self.pages,
        }
    }

    /// How many pages it has, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a delta is never empty")]
    pub const fn len(&self) -> usize {
        self.pages
    }

    /// Whether it has no patches, so that it can be read without the versions before.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.page_table().all(|entry| entry.stored != Stored::Patch)
    }

    /// The numbers of its pages, in the order of the table.
    pub fn page_numbers(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.blocks().flat_map(|(_, _, block)| block)
    }

    /// How its pages are stored.
    pub fn page_table(&self) -> impl Iterator<Item = TableEntry> + '_ {
        let table = &self.bytes[HEADER_BYTES..payload_offset(self.entries)];
        let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
        entries.iter().map(|entry| {
            TableEntry::parse(entry, self.header.page_size)
                .expect("decode has checked the page table")
        })
    }

    /// Its pages, in the order of the table, each exactly one page size long. `old` is asked for
    /// the version before of each page that is stored as a patch, and finds room for it that is
    /// all zeros, which is what a page was that did not exist.
    ///
    /// An item is an error if a compressed page does not decompress to a page, if `old` fails or
    /// if patches do not fit on what it gives; the pages of a block have that one error together.
    /// Who must not apply half a delta reads to the end first, and then compares the hashes:
    /// patches may fit on what is not the version before.
    pub fn pages<'a, E: From<DeltaError> + 'a>(
        &'a self,
        old: impl FnMut(PageNumber, &mut [u8]) -> Result<(), E> + 'a,
    ) -> impl Iterator<Item = Result<(PageNumber, Cow<'a, [u8]>), E>> + 'a {
        images(self.header.page_size, self.blocks(), old)
    }

    /// Those of its pages that are stored whole, for whoever has no versions before.
    ///
    /// An item is an error if a compressed page does not decompress to a page.
    pub fn whole_pages(
        &self,
    ) -> impl Iterator<Item = Result<(PageNumber, Cow<'_, [u8]>), DeltaError>> {
        let whole = self
            .blocks()
            .filter(|(_, entry, _)| entry.stored != Stored::Patch);
        images(self.header.page_size, whole, |_, _| Ok(()))
    }

    /// Where each entry of the page table has its bytes, the entry, and its pages.
    fn blocks(&self) -> impl Iterator<Item = (usize, TableEntry, Block<'_>)> {
        let mut offset = payload_offset(self.entries);
        self.page_table().map(move |entry| {
            let begin = offset;
            offset += entry.bytes;
            let block = Block::parse(&entry, &self.bytes[begin..offset]);
            (begin, entry, block.expect("decode has checked the blocks"))
        })
    }
}

/// Everything that `decode` checks, in the order of the layout; but lengths first, checksums before
/// meaning.
fn check(bytes: &[u8]) -> Result<(DeltaHeader, usize, usize), DeltaError> {
    let magic = bytes.get(..8).ok_or(DeltaError::Short)?;
    if magic != MAGIC {
        return Err(DeltaError::NotADelta);
    }
    if bytes.len() < 12 {
        return Err(DeltaError::Short);
    }
    let version = u32_at(bytes, 8);
    if !VERSIONS.contains(&version) {
        return Err(DeltaError::Unsupported { version });
    }
    if bytes.len() < HEADER_BYTES {
        return Err(DeltaError::Short);
    }
    let n = u32_at(bytes, 128);
    if (bytes.len() as u64) < HEADER_BYTES as u64 + u64::from(n) * ENTRY_BYTES as u64 {
        return Err(DeltaError::Short);
    }
    let entries = n as usize;
    let (head, payload) = bytes.split_at(payload_offset(entries));
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
    let pages = check_table(&header, version, table, payload)?;
    Ok((header, entries, pages))
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

/// Gives how many pages there are.
fn check_table(
    header: &DeltaHeader,
    version: u32,
    table: &[u8],
    payload: &[u8],
) -> Result<usize, DeltaError> {
    let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
    if entries.is_empty() {
        return Err(corrupt("no pages", 128));
    }
    let different = corrupt("page lengths do not add up to the payload", 136);
    let (mut page_last, mut disorder) = (None, None);
    let (mut pages, mut rest) = (0, payload);
    let mut offset = HEADER_BYTES;
    for bytes in entries {
        let refuse = |what| corrupt(what, offset);
        let entry = TableEntry::parse(bytes, header.page_size).map_err(refuse)?;
        if entry.stored == Stored::Patch && version == 1 {
            return Err(refuse("unknown page encoding"));
        }
        if entry.stored == Stored::Patch && header.part != Part::WHOLE {
            return Err(refuse("patches in one of several parts"));
        }
        let (stored, behind) = rest.split_at_checked(entry.bytes).ok_or(different)?;
        for page in Block::parse(&entry, stored).map_err(refuse)? {
            check_page(header, page).map_err(refuse)?;
            if page_last >= Some(page) {
                disorder = disorder.or(Some(refuse("pages do not ascend")));
            }
            page_last = Some(page);
        }
        rest = behind;
        pages += entry.pages;
        offset += ENTRY_BYTES;
    }
    if !rest.is_empty() {
        return Err(different);
    }
    match disorder {
        Some(error) if header.part != Part::WHOLE => return Err(error),
        Some(_) if has_page_twice(header, entries, payload) => {
            return Err(corrupt("a page twice", HEADER_BYTES));
        }
        _ => {}
    }
    if header.part == Part::WHOLE && pages * header.page_size.len() > IMAGE_BYTES_MAX {
        return Err(corrupt("more pages than one part may have", 128));
    }
    Ok(pages)
}

/// Of a page table that is right otherwise.
fn has_page_twice(header: &DeltaHeader, table: &[[u8; ENTRY_BYTES]], payload: &[u8]) -> bool {
    let (mut pages, mut rest) = (Vec::new(), payload);
    for bytes in table {
        let entry = TableEntry::parse(bytes, header.page_size);
        let entry = entry.expect("every entry has been checked");
        let (stored, behind) = rest.split_at(entry.bytes);
        pages.extend(Block::parse(&entry, stored).expect("every block has been checked"));
        rest = behind;
    }
    pages.sort_unstable();
    pages.windows(2).any(|pair| pair[0] == pair[1])
}

fn check_page(header: &DeltaHeader, page: PageNumber) -> Result<(), &'static str> {
    if !header.page_count.contains(page) {
        return Err("page beyond the page count");
    }
    let is_lock_byte_page = page == header.page_size.lock_byte_page();
    if is_lock_byte_page && !planted::is(Bug::LockBytePageTaken) {
        return Err("lock-byte page");
    }
    Ok(())
}

pub(super) fn header_checksum(head: &[u8], table: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(table);
    hasher.finalize()
}

const fn payload_offset(entries: usize) -> usize {
    HEADER_BYTES + entries * ENTRY_BYTES
}

pub(super) const fn corrupt(what: &'static str, offset: usize) -> DeltaError {
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

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
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
/// The pages of the only part of a group have at most so many bytes altogether.
pub const IMAGE_BYTES_MAX: usize = 32 << 20;
pub(super) const VERSION: u32 = 2;
const VERSIONS: RangeInclusive<u32> = 1..=VERSION;
pub(super) const FLAG_BASE: u32 = 1;
pub(super) const ENCODING_RAW: u8 = 0;
pub(super) const ENCODING_ZSTD: u8 = 1;
pub(super) const ENCODING_PATCH: u8 = 2;
pub(super) const HEADER_BYTES: usize = 160;
pub(super) const ENTRY_BYTES: usize = 12;
