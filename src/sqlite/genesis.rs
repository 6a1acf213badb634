//! The empty database that every node of a cluster begins with.
//!
//! Nodes stay equal byte for byte only if they start equal. So one node makes page 1, in WAL mode
//! from the start, and proposes it; the others write what it made, because it names the SQLite
//! version of its maker. It must be in the file before SQLite first opens it: SQLite deletes the
//! WAL of a file of zero bytes.
//!
//! The fields of page 1 that are not zero (file format document, "The Database Header", and "B-tree
//! Pages" for the empty schema table), big-endian:
//!
//! | Offset | Size | Field              | Meaning                                         |
//! |-------:|-----:|--------------------|-------------------------------------------------|
//! |      0 |   16 | magic              | `SQLite format 3` and a zero byte               |
//! |     16 |    2 | page size          | bytes; 1 means 65536                            |
//! |     18 |    2 | versions           | 2, 2: WAL mode                                  |
//! |     21 |    3 | payload fractions  | 64, 32, 32                                      |
//! |     24 |    4 | change counter     | how many transactions SQLite needs to get here  |
//! |     28 |    4 | page count         | 1                                               |
//! |     52 |    4 | largest root page  | 1 with auto-vacuum                              |
//! |     64 |    4 | incremental vacuum | 1 with incremental auto-vacuum                  |
//! |     92 |    4 | valid for          | the change counter again                        |
//! |     96 |    4 | version number     | of the SQLite that wrote the file               |
//! |    100 |    1 | page type          | 13: leaf of a table                             |
//! |    105 |    2 | content begin      | the page size; 0 means 65536                    |

use std::os::unix::fs::FileExt;

use super::error::Error;
use super::page_hashes::PageHashes;
use super::record::Record;
use super::start_lock::StartLock;
use crate::wal::{PageCount, PageHash, PageNumber, PageSize, Position};

/// `PRAGMA auto_vacuum`, fixed when the database is created.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AutoVacuum {
    /// Free pages stay in the file.
    #[default]
    None,
    /// Each commit cuts free pages off.
    Full,
    /// `PRAGMA incremental_vacuum` cuts free pages off.
    Incremental,
}

/// Page 1 of an empty database in WAL mode, the same bytes as SQLite would write.
#[must_use]
pub fn genesis_page(page_size: PageSize, auto_vacuum: AutoVacuum) -> Vec<u8> {
    let mut page = vec![0; page_size.len()];
    page[..16].copy_from_slice(b"SQLite format 3\0");
    // 65536 does not fit in two bytes: the header has 1 for it, the b-tree page 0.
    let (size, content) = u16::try_from(page_size.bytes()).map_or((1, 0), |size| (size, size));
    page[16..18].copy_from_slice(&size.to_be_bytes());
    page[18..24].copy_from_slice(&[2, 2, 0, 64, 32, 32]);
    let root_largest = u32::from(auto_vacuum != AutoVacuum::None);
    // Switching auto-vacuum on is a transaction of its own.
    let change_counter = 1 + root_largest;
    put(&mut page, 24, change_counter);
    put(&mut page, 28, 1);
    put(&mut page, 52, root_largest);
    put(
        &mut page,
        64,
        u32::from(auto_vacuum == AutoVacuum::Incremental),
    );
    put(&mut page, 92, change_counter);
    put(&mut page, 96, rusqlite::version_number().unsigned_abs());
    page[100] = 13;
    page[105..107].copy_from_slice(&content.to_be_bytes());
    page
}

fn put(page: &mut [u8], offset: usize, value: u32) {
    page[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}

/// Makes the database of one page in the data directory, durably, with its checkpoint record.
///
/// What the main file held is lost: without a record it is what an earlier attempt left.
///
/// # Errors
///
/// `Io`, and `Change` if the image has no page size.
pub fn create(
    lock: &StartLock,
    page_1: &[u8],
    applied: Position,
    data: Option<Position>,
    membership: &[u8],
) -> Result<PageHashes, Error> {
    let page_size = u32::try_from(page_1.len())
        .ok()
        .and_then(PageSize::new)
        .ok_or(Error::change(
            "an image that is not one page long",
            PageNumber::FIRST,
        ))?;
    lock.remove_wal()?;
    let file = lock.file();
    file.set_len(0)
        .and_then(|()| file.write_all_at(page_1, 0))
        .map_err(|e| Error::io("write", lock.path(), e))?;
    let mut hashes = PageHashes::new(page_size);
    hashes.resize(PageCount(1));
    hashes.replace(PageNumber::FIRST, PageHash::of(PageNumber::FIRST, page_1));
    Record::save(lock, &mut hashes, applied, data, membership)?;
    Ok(hashes)
}
