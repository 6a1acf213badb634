//! The bytes of the WAL-index (the `-shm` file): which frame holds which page.
//!
//! SQLite's "WAL-Index File Format" (walformat document; `walIndexAppend`, `walFindFrame`,
//! `walCleanupHash`). The WAL-index is shared memory in regions of 32 KiB. Its
//! integers have the byte order of the machine; only little-endian machines are supported.
//!
//! The bytes live in memory that other processes write at the same time. The functions on slices
//! are for copies of it, and for tests; who works on the memory itself does volatile accesses of
//! its own at the offsets computed here. The order that readers rely on: frames in the WAL file,
//! then page numbers and hash slots, then header copy 1, a barrier, header copy 0.
//!
//! Region 0 begins with 136 bytes:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 48 | header, copy 0 | read first by readers, written last |
//! | 48 | 48 | header, copy 1 | written first |
//! | 96 | 4 | nBackfill | frames that are in the database file already |
//! | 100 | 20 | aReadMark | five marks; a reader under mark k uses frames up to it |
//! | 120 | 8 | locks | file locks: write, checkpoint, recover, read 0..=4; no content |
//! | 128 | 4 | nBackfillAttempted | frames that a checkpoint may have begun to copy |
//! | 132 | 4 | unused | |
//!
//! A header copy:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | iVersion | 3007000 |
//! | 4 | 4 | unused | 0 |
//! | 8 | 4 | iChange | counts transactions |
//! | 12 | 1 | isInit | 1 |
//! | 13 | 1 | bigEndCksum | 1 if the checksums of the WAL read big-endian words |
//! | 14 | 2 | szPage | page size; 65536 is written as 1 |
//! | 16 | 4 | mxFrame | last committed frame, 0 for none |
//! | 20 | 4 | nPage | database size in pages |
//! | 24 | 8 | aFrameCksum | checksum of frame mxFrame, two words |
//! | 32 | 8 | aSalt | as in the WAL header, same bytes |
//! | 40 | 8 | aCksum | checksum of bytes 0..40, two words |
//!
//! Then, in every region:
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 (136 in region 0) | up to 16384 | page numbers | u32: 4062 in region 0, else 4096 |
//! | 16384 | 16384 | hash table | 8192 x u16: 0, or an entry (from 1) of this region |
//!
//! A page is looked up from slot (number * 383) mod 8192 on, slot by slot up to an empty one; the
//! highest matching entry within the reader's limit wins.

use super::format::{ByteOrder, Checksum, Salts, WalError, corrupt, head};
use super::page::{PageCount, PageNumber, PageSize};

#[cfg(target_endian = "big")]
compile_error!("the WAL-index is written in the byte order of the machine: little-endian only");

/// A checked WAL-index header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IndexHeader {
    /// Counts transactions; readers drop their page cache when the header changes.
    pub change: u32,
    /// How the checksums of the WAL read their words.
    pub order: ByteOrder,
    /// The page size; `None` as long as the WAL has never had a header.
    pub page_size: Option<PageSize>,
    /// The last committed frame; 0 if the WAL holds none.
    pub frame_max: u32,
    /// The size of the database in pages.
    pub page_count: PageCount,
    /// The checksum of frame `frame_max`, which the next frame continues.
    pub frame_checksum: Checksum,
    /// The salts of the WAL's generation.
    pub salts: Salts,
}

impl IndexHeader {
    /// Reads one copy and checks it against its own checksum.
    ///
    /// # Errors
    ///
    /// `Short`; `Unsettled` if it was never set or its checksum does not hold, as while a writer is
    /// at it; `Unsupported`; `Corrupt` if the values are impossible although the checksum holds.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalError> {
        let bytes = head::<INDEX_HEADER_BYTES>(bytes)?;
        if bytes[12] == 0 || checksum_of(bytes) != checksum_at(bytes, 40) {
            return Err(WalError::Unsettled);
        }
        let version = u32_at(bytes, 0);
        if version != VERSION {
            return Err(WalError::Unsupported { version });
        }
        let page_size = match u16_at(bytes, 14) {
            0 => None,
            1 => PageSize::new(65536),
            stored => {
                let size = PageSize::new(u32::from(stored));
                Some(size.ok_or(corrupt("WAL-index page size", 14))?)
            }
        };
        let frame_max = u32_at(bytes, FRAME_MAX_OFFSET);
        if frame_max > 0 && page_size.is_none() {
            return Err(corrupt("WAL-index page size", 14));
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[32..40]);
        Ok(Self {
            change: u32_at(bytes, 8),
            order: if bytes[13] == 0 {
                ByteOrder::Little
            } else {
                ByteOrder::Big
            },
            page_size,
            frame_max,
            page_count: PageCount(u32_at(bytes, 20)),
            frame_checksum: checksum_at(bytes, 24),
            salts: Salts(salts),
        })
    }

    /// Reads both copies from the start of region 0. That they are equal is what tells a reader
    /// that no writer was between the two.
    ///
    /// # Errors
    ///
    /// As [`IndexHeader::parse`]; `Unsettled` also if the copies differ.
    pub fn parse_copies(bytes: &[u8]) -> Result<Self, WalError> {
        let bytes = head::<{ 2 * INDEX_HEADER_BYTES }>(bytes)?;
        let (first, second) = bytes.split_at(INDEX_HEADER_BYTES);
        if first != second {
            return Err(WalError::Unsettled);
        }
        Self::parse(first)
    }

    /// One copy.
    #[must_use]
    pub fn encode(&self) -> [u8; INDEX_HEADER_BYTES] {
        let mut bytes = [0; INDEX_HEADER_BYTES];
        put_u32(&mut bytes, 0, VERSION);
        put_u32(&mut bytes, 8, self.change);
        bytes[12] = 1;
        bytes[13] = u8::from(self.order == ByteOrder::Big);
        let stored = match self.page_size {
            None => 0,
            // 65536 is the one size that does not fit; SQLite writes 1 for it.
            Some(size) => u16::try_from(size.bytes()).unwrap_or(1),
        };
        bytes[14..16].copy_from_slice(&stored.to_le_bytes());
        put_u32(&mut bytes, FRAME_MAX_OFFSET, self.frame_max);
        put_u32(&mut bytes, 20, self.page_count.0);
        put_u32(&mut bytes, 24, self.frame_checksum.s0);
        put_u32(&mut bytes, 28, self.frame_checksum.s1);
        bytes[32..40].copy_from_slice(&self.salts.0);
        let checksum = checksum_of(&bytes);
        put_u32(&mut bytes, 40, checksum.s0);
        put_u32(&mut bytes, 44, checksum.s1);
        bytes
    }
}

/// Where a frame is entered: the region, and its entry there, counted from 1 as in the hash slots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// The region, counted from 0.
    pub region: u32,
    /// The entry within the region, from 1 to [`entries_in`] that region.
    pub entry: u16,
}

impl Place {
    /// Whether this is the region's first entry: who writes it must zero the region's page numbers
    /// and hash table before, because they hold what an earlier generation left.
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.entry == 1
    }

    /// Where the page number of this entry stands in its region, in bytes.
    #[must_use]
    pub const fn page_offset(self) -> usize {
        page_numbers_offset(self.region) + (self.entry as usize - 1) * 4
    }

    /// The frame that is entered here.
    #[must_use]
    pub const fn frame(self) -> u32 {
        frames_before(self.region).saturating_add(self.entry as u32)
    }
}

/// The bytes of one region.
pub type Region = [u8; REGION_BYTES];

/// Where a frame is entered.
///
/// # Panics
///
/// For frame 0, which does not exist.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a region has fewer entries than 2^16, and there are fewer regions than frames"
)]
pub const fn region_of_frame(frame: u32) -> Place {
    assert!(frame != 0, "frames are counted from 1");
    // As if region 0 had 4096 entries too, of which the 136 bytes of headers take the first 34.
    let slot = (frame - 1) as u64 + (ENTRIES - ENTRIES_FIRST) as u64;
    let region = (slot / ENTRIES as u64) as u32;
    Place {
        region,
        entry: (frame - frames_before(region)) as u16,
    }
}

/// How many frames are entered in the regions before this one.
#[must_use]
pub const fn frames_before(region: u32) -> u32 {
    if region == 0 {
        0
    } else {
        (ENTRIES_FIRST as u32).saturating_add((region - 1).saturating_mul(ENTRIES as u32))
    }
}

/// How many entries the region has.
#[must_use]
pub const fn entries_in(region: u32) -> u16 {
    if region == 0 { ENTRIES_FIRST } else { ENTRIES }
}

/// Where the page numbers begin in the region, in bytes; they end at [`HASH_TABLE_OFFSET`].
#[must_use]
pub const fn page_numbers_offset(region: u32) -> usize {
    if region == 0 { INDEX_HEADERS_BYTES } else { 0 }
}

/// The hash slot where the search for a page begins.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "masked to 13 bits")]
pub const fn hash(page: PageNumber) -> u16 {
    (page.number().wrapping_mul(383) & (SLOTS as u32 - 1)) as u16
}

/// The hash slot to try next.
#[must_use]
pub const fn next_probe(slot: u16) -> u16 {
    (slot + 1) & (SLOTS - 1)
}

/// Where a hash slot stands in its region, in bytes.
#[must_use]
pub const fn hash_slot_offset(slot: u16) -> usize {
    HASH_TABLE_OFFSET + slot as usize * 2
}

/// Whether a page number stands at `place`. If it does where the next frame is to be entered, a
/// writer died before it published its header: [`clean_up`] must come first.
#[must_use]
pub fn is_occupied(region: &Region, place: Place) -> bool {
    u32_at(region, place.page_offset()) != 0
}

/// Enters a frame. The first entry of a region zeroes what stood in it.
///
/// # Errors
///
/// `Corrupt` if the hash table has more slots in use than it can have.
pub fn append(region: &mut Region, place: Place, page: PageNumber) -> Result<(), WalError> {
    if place.is_first() {
        region[page_numbers_offset(place.region)..].fill(0);
    }
    let mut slot = hash(page);
    let mut collisions_left = place.entry;
    while u16_at(region, hash_slot_offset(slot)) != 0 {
        // Each earlier entry takes one slot, so no chain is longer than their number.
        if collisions_left == 0 {
            return Err(overfull());
        }
        collisions_left -= 1;
        slot = next_probe(slot);
    }
    put_u32(region, place.page_offset(), page.number());
    let offset = hash_slot_offset(slot);
    region[offset..offset + 2].copy_from_slice(&place.entry.to_le_bytes());
    Ok(())
}

/// The last frame up to `frame_max` that holds the page, among those entered in this region. Ask
/// the regions from the last one down; the first that answers has the page.
///
/// # Errors
///
/// `Corrupt` if the hash table has no empty slot.
pub fn lookup(
    region: &Region,
    region_index: u32,
    page: PageNumber,
    frame_max: u32,
) -> Result<Option<u32>, WalError> {
    lookup_words(
        |offset| u32_at(region, offset),
        region_index,
        page,
        frame_max,
    )
}

/// The same in memory that cannot be borrowed; `word` reads the one at an offset that is a multiple
/// of four.
///
/// # Errors
///
/// As [`lookup`].
pub fn lookup_words(
    word: impl Fn(usize) -> u32,
    region_index: u32,
    page: PageNumber,
    frame_max: u32,
) -> Result<Option<u32>, WalError> {
    let mut found = None;
    let mut slot = hash(page);
    for _ in 0..SLOTS {
        let offset = hash_slot_offset(slot);
        let [low0, low1, high0, high1] = word(offset & !3).to_le_bytes();
        let entry = u16::from_le_bytes(if offset.is_multiple_of(4) {
            [low0, low1]
        } else {
            [high0, high1]
        });
        if entry == 0 {
            return Ok(found);
        }
        // A slot beyond the entries is damage; it names no frame.
        if entry <= entries_in(region_index) {
            let place = Place {
                region: region_index,
                entry,
            };
            if place.frame() <= frame_max
                && word(place.page_offset()) == page.number()
                && found.is_none_or(|earlier| earlier < place.frame())
            {
                found = Some(place.frame());
            }
        }
        slot = next_probe(slot);
    }
    Err(overfull())
}

/// Drops the entries of frames beyond `frame_max` from the region that holds frame `frame_max`:
/// what a rolled-back or dead writer left behind. Later regions are zeroed by their first entry.
///
/// Dropping cannot break a chain: entries were made in frame order, so every slot that goes was
/// filled after all that stay.
///
/// # Panics
///
/// If `frame_max` is 0: then nothing may be dropped, the next entry is a first one.
pub fn clean_up(region: &mut Region, frame_max: u32) {
    let limit = region_of_frame(frame_max);
    for slot in 0..SLOTS {
        let offset = hash_slot_offset(slot);
        if u16_at(region, offset) > limit.entry {
            region[offset..offset + 2].fill(0);
        }
    }
    region[limit.page_offset() + 4..HASH_TABLE_OFFSET].fill(0);
}

const fn overfull() -> WalError {
    corrupt("WAL-index hash table", HASH_TABLE_OFFSET as u64)
}

fn checksum_of(bytes: &[u8; INDEX_HEADER_BYTES]) -> Checksum {
    let mut checksum = Checksum::default();
    checksum.update(ByteOrder::Little, &bytes[..40]);
    checksum
}

fn checksum_at(bytes: &[u8], offset: usize) -> Checksum {
    Checksum {
        s0: u32_at(bytes, offset),
        s1: u32_at(bytes, offset + 4),
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(word)
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

/// The size of a region in bytes.
pub const REGION_BYTES: usize = 32768;
/// The size of one copy of the header in bytes.
pub const INDEX_HEADER_BYTES: usize = 48;
/// What stands before the page numbers of region 0, in bytes: two headers and the checkpoint state.
pub const INDEX_HEADERS_BYTES: usize = 136;
/// Where mxFrame stands within a header copy, in bytes.
pub const FRAME_MAX_OFFSET: usize = 16;
/// Where nBackfill stands in region 0, in bytes.
pub const BACKFILL_OFFSET: usize = 96;
/// Where the five read marks begin in region 0, in bytes.
pub const READ_MARKS_OFFSET: usize = 100;
/// How many read marks there are; mark 0 is never used, its readers ignore the WAL.
pub const READ_MARKS: usize = 5;
/// A read mark that no reader uses.
pub const READ_MARK_UNUSED: u32 = 0xffff_ffff;
/// Where the eight lock bytes begin in region 0, in bytes.
pub const LOCKS_OFFSET: usize = 120;
/// The lock of the one writer, as an index into the lock bytes and for `xShmLock`.
pub const LOCK_WRITE: u8 = 0;
/// The lock of the one checkpointer.
pub const LOCK_CHECKPOINT: u8 = 1;
/// The lock of the process that rebuilds the WAL-index.
pub const LOCK_RECOVER: u8 = 2;
/// The lock of read mark 0; mark k has the lock `LOCK_READ_0 + k`.
pub const LOCK_READ_0: u8 = 3;
/// Where nBackfillAttempted stands in region 0, in bytes.
pub const BACKFILL_ATTEMPTED_OFFSET: usize = 128;
/// Where the hash table begins in every region, in bytes.
pub const HASH_TABLE_OFFSET: usize = 16384;
/// How many slots a hash table has: twice the entries, so that chains stay short and end.
pub const SLOTS: u16 = 8192;
/// Entries of each region but the first.
pub const ENTRIES: u16 = 4096;
/// Entries of region 0: the headers take the room of 34.
pub const ENTRIES_FIRST: u16 = 4062;
/// The only version SQLite has ever written: 3.7.0.
const VERSION: u32 = 3_007_000;

const _: () = assert!(INDEX_HEADERS_BYTES == (ENTRIES - ENTRIES_FIRST) as usize * 4);
const _: () = assert!(HASH_TABLE_OFFSET + SLOTS as usize * 2 == REGION_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32) -> PageNumber {
        PageNumber::new(number).unwrap()
    }

    #[test]
    fn frames_map_to_places_and_back_around_each_border() {
        for frame in (1..20_000).chain([u32::MAX - 1, u32::MAX]) {
            let place = region_of_frame(frame);
            assert!(place.entry >= 1 && place.entry <= entries_in(place.region));
            assert_eq!(place.frame(), frame);
        }
        let place = |frame| {
            let place = region_of_frame(frame);
            (place.region, place.entry, place.page_offset())
        };
        assert_eq!(place(1), (0, 1, 136));
        assert_eq!(place(4062), (0, 4062, 16380));
        assert_eq!(place(4063), (1, 1, 0));
        assert_eq!(place(8158), (1, 4096, 16380));
        assert_eq!(place(8159), (2, 1, 0));
    }

    #[test]
    fn header_survives_the_round_trip_with_every_page_size() {
        for size in [0, 512, 4096, 32768, 65536] {
            let header = IndexHeader {
                change: 3,
                order: ByteOrder::Little,
                page_size: PageSize::new(size),
                frame_max: size,
                page_count: PageCount(10),
                frame_checksum: Checksum { s0: 1, s1: 2 },
                salts: Salts([8; 8]),
            };
            let copy = header.encode();
            assert_eq!(IndexHeader::parse(&copy), Ok(header));
            let mut both = [copy, copy].concat();
            assert_eq!(IndexHeader::parse_copies(&both), Ok(header));
            both[60] ^= 1;
            assert_eq!(IndexHeader::parse_copies(&both), Err(WalError::Unsettled));
            both[12] ^= 1;
            assert_eq!(IndexHeader::parse_copies(&both), Err(WalError::Unsettled));
        }
        assert_eq!(IndexHeader::parse(&[0; 48]), Err(WalError::Unsettled));
    }

    #[test]
    fn clean_up_forgets_later_frames_and_keeps_earlier_ones_reachable() {
        let mut region = [0xee; REGION_BYTES];
        // Pages 1 and 8193 share a hash slot.
        for (frame, number) in [(1, 1), (2, 8193), (3, 2), (4, 1), (5, 8193)] {
            append(&mut region, region_of_frame(frame), page(number)).unwrap();
        }
        assert_eq!(lookup(&region, 0, page(1), 5), Ok(Some(4)));
        assert_eq!(lookup(&region, 0, page(1), 3), Ok(Some(1)));
        assert_eq!(lookup(&region, 0, page(8193), 5), Ok(Some(5)));
        assert!(is_occupied(&region, region_of_frame(4)));
        clean_up(&mut region, 3);
        assert!(!is_occupied(&region, region_of_frame(4)));
        assert_eq!(lookup(&region, 0, page(1), 5), Ok(Some(1)));
        assert_eq!(lookup(&region, 0, page(8193), 5), Ok(Some(2)));
        assert_eq!(lookup(&region, 0, page(7), 5), Ok(None));
    }

    #[test]
    fn a_hash_table_without_an_empty_slot_is_an_error_and_not_a_loop() {
        let mut region = [0xff; REGION_BYTES];
        assert!(lookup(&region, 1, page(1), 5).is_err());
        assert!(append(&mut region, region_of_frame(2), page(1)).is_err());
    }
}
