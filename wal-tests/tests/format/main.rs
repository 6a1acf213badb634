//! The formats of layer `wal`, against SQLite as the oracle and against golden bytes.
//!
//! Random tests print their seed; `WAL_SEED=n cargo test -p wal-tests --test format` replays one.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test that is wrong about its numbers should end there"
)]

mod blocks;
mod delta;
mod hash;
mod patch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use wallaby::wal::format::{frame_bytes, frame_offset};
use wallaby::wal::index::{
    self, BACKFILL_OFFSET, REGION_BYTES, Region, append, clean_up, is_occupied, lookup,
    page_numbers_offset, region_of_frame,
};
use wallaby::wal::{
    ByteOrder, Checksum, End, FrameHeader, IndexHeader, PageNumber, PageSize, Stop, Transaction,
    Transactions, WalHeader,
};

// WALs written by SQLite.

#[test]
fn transactions_of_a_real_wal_are_those_sqlite_committed() {
    let mut random = Random::from_seed("transactions_of_a_real_wal");
    for page_size in page_sizes() {
        let database = Database::create(page_size);
        let rows = 12;
        for row in 0..rows {
            database.insert(row, random.below(3 * page_size.len()));
        }
        let image = fs::read(database.wal()).unwrap();
        let (transactions, end) = walk(&image);
        assert_eq!(transactions.len(), rows, "page size {page_size}");
        assert_eq!((end.stop, end.frames_open), (Stop::EndOfBytes, 0));
        let offset_end = frame_offset(end.frame_committed + 1, page_size);
        assert_eq!(offset_end, image.len() as u64);

        // The main file overlaid with the frames is the database that SQLite sees.
        let overlaid = database.path.with_extension("overlaid");
        copy_by_child(&database.path, &overlaid);
        overlay(&overlaid, &image, &transactions, page_size);
        assert_eq!(count_rows(&overlaid), rows);
    }
}

#[test]
fn of_a_cut_or_damaged_wal_the_same_transactions_survive_as_in_sqlite() {
    let mut random = Random::from_seed("of_a_cut_or_damaged_wal");
    for page_size in [512, 4096].map(size) {
        let database = Database::create(page_size);
        for row in 0..8 {
            database.insert(row, random.below(3 * page_size.len()));
        }
        let image = fs::read(database.wal()).unwrap();
        let mut survivors = Vec::new();
        for _ in 0..60 {
            let mut damaged = image.clone();
            let place = random.below(image.len());
            if random.below(2) == 0 {
                damaged.truncate(place);
            } else {
                damaged[place] ^= 1 << random.below(8);
            }
            let expected = database.rows_recovered_from(&damaged);
            let found = Transactions::of(&damaged).map_or(0, Iterator::count);
            assert_eq!(found, expected, "page size {page_size}, damage at {place}");
            survivors.push(found);
        }
        assert!(
            survivors.iter().any(|&count| count > 0 && count < 8),
            "no damage in between"
        );
    }
}

#[test]
fn a_wal_with_big_endian_checksums_yields_the_same_transactions() {
    let database = Database::create(size(1024));
    for row in 0..5 {
        database.insert(row, 3000);
    }
    let image = fs::read(database.wal()).unwrap();
    let swapped = with_big_endian_checksums(&image);
    assert_eq!(WalHeader::parse(&image).unwrap().order, ByteOrder::Little);
    assert_eq!(WalHeader::parse(&swapped).unwrap().order, ByteOrder::Big);
    assert_eq!(database.rows_recovered_from(&swapped), 5, "SQLite takes it");
    let ((found, end), (found_swapped, end_swapped)) = (walk(&image), walk(&swapped));
    assert_eq!(found, found_swapped);
    assert_eq!(end.frame_committed, end_swapped.frame_committed);
    assert_ne!(end.checksum, end_swapped.checksum);
}

#[test]
fn headers_of_a_real_wal_encode_to_the_bytes_they_were_parsed_from() {
    for page_size in page_sizes() {
        let database = Database::create(page_size);
        database.insert(1, 3 * page_size.len());
        let image = fs::read(database.wal()).unwrap();
        let header = WalHeader::parse(&image).unwrap();
        assert_eq!(header.encode()[..], image[..32]);
        let mut checksum = header.checksum();
        for frame in image[32..].chunks_exact(frame_bytes(page_size) as usize) {
            let parsed = FrameHeader::parse(frame).unwrap();
            let (page, commit) = (parsed.page, parsed.commit);
            let sealed = FrameHeader::seal(
                page,
                commit,
                &frame[24..],
                header.order,
                header.salts,
                checksum,
            );
            assert_eq!(sealed.encode()[..], frame[..24]);
            checksum = sealed.checksum;
        }
    }
}

#[test]
fn frames_of_an_earlier_generation_end_a_restarted_wal() {
    let database = Database::create(PageSize::DEFAULT);
    for row in 0..5 {
        database.insert(row, 9000);
    }
    let sequence = WalHeader::parse(&fs::read(database.wal()).unwrap())
        .unwrap()
        .checkpoint_sequence;
    database.checkpoint("RESTART");
    database.insert(5, 1);
    let image = fs::read(database.wal()).unwrap();
    let (transactions, end) = walk(&image);
    assert_eq!((transactions.len(), end.stop), (1, Stop::SaltMismatch));
    let restarted = WalHeader::parse(&image).unwrap();
    assert_eq!(restarted.checkpoint_sequence, sequence + 1);
}

// The WAL-index of a live connection.

#[test]
fn a_live_wal_index_agrees_with_the_frames_it_describes() {
    let mut random = Random::from_seed("a_live_wal_index_agrees");
    let page_size = size(512);
    let database = Database::create(page_size);
    let mut row = 0;
    // More than the first two regions hold.
    while database.wal_bytes() < frame_offset(9000, page_size) {
        database.insert(row, random.below(20_000));
        row += 1;
    }
    let image = fs::read(database.wal()).unwrap();
    let (transactions, end) = walk(&image);
    let index = database.index();
    assert!(index.len() >= 3, "the test should reach the third region");

    let header = IndexHeader::parse_copies(&index[0][..]).unwrap();
    let wal = WalHeader::parse(&image).unwrap();
    assert_eq!(header.encode()[..], index[0][..48]);
    assert_eq!(header.frame_max, end.frame_committed);
    assert_eq!(header.frame_checksum, end.checksum);
    assert_eq!(Some(header.page_count), end.page_count);
    assert_eq!(
        (header.page_size, header.salts),
        (Some(wal.page_size), wal.salts)
    );
    assert_eq!(
        index[0][BACKFILL_OFFSET..][..4],
        [0; 4],
        "nothing was checkpointed"
    );

    let pages: Vec<PageNumber> = transactions
        .iter()
        .flat_map(|t| t.frames.iter().map(|frame| frame.page))
        .collect();
    for limit in [
        end.frame_committed,
        1 + random.below(pages.len() - 1) as u32,
        4062,
        4063,
    ] {
        let mut expected = BTreeMap::new();
        for (frame, page) in (1..=limit).zip(&pages) {
            expected.insert(*page, frame);
        }
        for page in (1..=header.page_count.0 + 9).filter_map(PageNumber::new) {
            assert_eq!(
                find(&index, page, limit),
                expected.get(&page).copied(),
                "page {page}"
            );
        }
    }
    let ours = index_of(&pages);
    for (number, (ours, theirs)) in (0..).zip(ours.iter().zip(&index)) {
        let begin = page_numbers_offset(number);
        assert!(
            ours[begin..] == theirs[begin..],
            "region {number} differs from SQLite's"
        );
    }
}

#[test]
fn cleaning_up_equals_never_having_entered_the_frames() {
    let mut random = Random::from_seed("cleaning_up_equals");
    for _ in 0..20 {
        let kept = 1 + random.below(4000);
        let pages: Vec<PageNumber> = (0..kept + 1 + random.below(4096 - kept))
            .map(|_| PageNumber::new(1 + random.below(9000) as u32).unwrap())
            .collect();
        let mut cleaned = index_of(&pages).swap_remove(0);
        assert!(is_occupied(&cleaned, region_of_frame(kept as u32 + 1)));
        clean_up(&mut cleaned, kept as u32);
        assert!(
            cleaned == index_of(&pages[..kept]).swap_remove(0),
            "{kept} of {}",
            pages.len()
        );
    }
}

#[test]
fn no_region_content_makes_the_index_functions_panic() {
    let mut random = Random::from_seed("no_region_content");
    let mut region = boxed_region();
    for _ in 0..30 {
        region
            .iter_mut()
            .for_each(|byte| *byte = random.next().to_le_bytes()[0]);
        for _ in 0..50 {
            region[index::hash_slot_offset(random.below(8192) as u16)..][..2].fill(0);
        }
        let page = PageNumber::new(1 + random.below(1 << 31) as u32).unwrap();
        let frame = 2 + random.below(4000) as u32;
        for number in [0, 1, u32::MAX] {
            let _ = lookup(&region, number, page, u32::MAX);
        }
        let _ = append(&mut region, region_of_frame(frame), page);
        clean_up(&mut region, frame);
        assert!(!is_occupied(&region, region_of_frame(frame + 1)));
        let _ = IndexHeader::parse_copies(&region[..]);
    }
}

// Parts of the tests.

/// A database in WAL mode with one connection that is never checkpointed by itself.
struct Database {
    _directory: tempfile::TempDir,
    path: PathBuf,
    connection: Connection,
}

impl Database {
    /// With an empty table in the main file and an empty WAL: then each insert is one transaction.
    fn create(page_size: PageSize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL;
                 PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF;
                 PRAGMA cache_spill = OFF; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);"
            ))
            .unwrap();
        let database = Self {
            _directory: directory,
            path,
            connection,
        };
        database.checkpoint("TRUNCATE");
        database
    }

    fn insert(&self, row: usize, body_bytes: usize) {
        let sql = "INSERT INTO t VALUES (?1, randomblob(?2))";
        self.connection
            .execute(sql, [row as i64, body_bytes as i64])
            .unwrap();
    }

    fn checkpoint(&self, mode: &str) {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let busy: i64 = self
            .connection
            .query_row(&sql, [], |row| row.get(0))
            .unwrap();
        assert_eq!(busy, 0);
    }

    fn wal(&self) -> PathBuf {
        self.path.with_file_name("db-wal")
    }

    fn wal_bytes(&self) -> u64 {
        fs::metadata(self.wal()).unwrap().len()
    }

    /// The regions of the WAL-index as they are now.
    fn index(&self) -> Vec<Box<Region>> {
        let copy = self.path.with_extension("index");
        copy_by_child(&self.path.with_file_name("db-shm"), &copy);
        let bytes = fs::read(copy).unwrap();
        bytes
            .chunks_exact(REGION_BYTES)
            .map(|region| Box::new(region.try_into().unwrap()))
            .collect()
    }

    /// How many rows SQLite finds in a copy of the main file with this WAL beside it.
    fn rows_recovered_from(&self, wal: &[u8]) -> usize {
        let copy = self.path.with_file_name("recovered");
        let _ = fs::remove_file(self.path.with_file_name("recovered-shm"));
        copy_by_child(&self.path, &copy);
        fs::write(self.path.with_file_name("recovered-wal"), wal).unwrap();
        count_rows(&copy)
    }
}

/// Another process copies: reading the file of an open connection in this one would drop the
/// connection's POSIX locks.
fn copy_by_child(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

fn count_rows(path: &Path) -> usize {
    let connection = Connection::open(path).unwrap();
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok");
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    usize::try_from(rows).unwrap()
}

fn walk(image: &[u8]) -> (Vec<Transaction>, End) {
    let mut transactions = Transactions::of(image).unwrap();
    let found = transactions.by_ref().collect();
    (found, transactions.end().unwrap())
}

fn overlay(path: &Path, wal: &[u8], transactions: &[Transaction], page_size: PageSize) {
    let mut main = fs::read(path).unwrap();
    for transaction in transactions {
        main.resize(transaction.page_count.file_bytes(page_size) as usize, 0);
        for frame in &transaction.frames {
            let at = frame.page.offset(page_size) as usize;
            let image = &wal[frame.offset as usize + 24..][..page_size.len()];
            main[at..at + page_size.len()].copy_from_slice(image);
        }
    }
    fs::write(path, main).unwrap();
}

fn with_big_endian_checksums(image: &[u8]) -> Vec<u8> {
    let mut swapped = image.to_vec();
    swapped[3] |= 1;
    let mut sum = Checksum::default();
    sum.update(ByteOrder::Big, &swapped[..24]);
    swapped[24..28].copy_from_slice(&sum.s0.to_be_bytes());
    swapped[28..32].copy_from_slice(&sum.s1.to_be_bytes());
    let page_size = WalHeader::parse(image).unwrap().page_size;
    for frame in swapped[32..].chunks_exact_mut(frame_bytes(page_size) as usize) {
        sum.update(ByteOrder::Big, &frame[..8]);
        sum.update(ByteOrder::Big, &frame[24..]);
        frame[16..20].copy_from_slice(&sum.s0.to_be_bytes());
        frame[20..24].copy_from_slice(&sum.s1.to_be_bytes());
    }
    swapped
}

fn boxed_region() -> Box<Region> {
    Box::new([0; REGION_BYTES])
}

fn index_of(pages: &[PageNumber]) -> Vec<Box<Region>> {
    let mut regions: Vec<Box<Region>> = Vec::new();
    for (frame, page) in (1..).zip(pages) {
        let place = region_of_frame(frame);
        if place.is_first() {
            regions.push(boxed_region());
        }
        append(&mut regions[place.region as usize], place, *page).unwrap();
    }
    regions
}

fn find(index: &[Box<Region>], page: PageNumber, frame_max: u32) -> Option<u32> {
    let last = region_of_frame(frame_max).region;
    (0..=last)
        .rev()
        .find_map(|number| lookup(&index[number as usize], number, page, frame_max).unwrap())
}

fn size(bytes: u32) -> PageSize {
    PageSize::new(bytes).unwrap()
}

fn page_sizes() -> [PageSize; 8] {
    [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536].map(size)
}

/// `SplitMix64`: small, and good enough to choose test cases.
struct Random(u64);

impl Random {
    fn from_seed(test: &str) -> Self {
        let seed = std::env::var("WAL_SEED").map_or_else(
            |_| getrandom::u64().unwrap(),
            |seed| seed.parse().expect("WAL_SEED is a number"),
        );
        eprintln!("replay: WAL_SEED={seed} cargo test -p wal-tests --test format {test}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, but not including, the limit.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
