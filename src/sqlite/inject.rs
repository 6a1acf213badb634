//! Writes the pages of somebody else's transaction into the WAL, as a legitimate WAL writer.
//!
//! What SQLite does in `walFrames`, `walIndexAppend` and `walIndexWriteHdr`, on the same open files
//! and under the same locks, but with pages that come from outside. Readers of all processes see
//! the change from one moment to the next, and the writing connection notices it by the header.
//!
//! The order is what makes it safe: frames in the file, then entries in the hash tables, then the
//! second header copy, a barrier, the first copy. The frame that ends the transaction is written
//! last and only when all is known to be right, because recovery would believe it.

use std::borrow::Cow;

use super::error::Error;
use super::ffi::{self, Lock, ResultCode, randomness};
use super::page_hashes::PageHashes;
use super::shim::Shim;
use crate::planted::{self, Bug};
use crate::wal::format::{frame_bytes, frame_offset};
use crate::wal::index::{self, IndexHeader, region_of_frame};
use crate::wal::{
    ByteOrder, DatabaseHash, FrameHeader, PageCount, PageHash, PageNumber, PageSize, Salts,
    WalHeader,
};

/// Frames are gathered up to this many bytes before they are written.
const CHUNK_BYTES: usize = 64 * 1024;
const WAL_HEADER_BYTES: usize = crate::wal::format::WAL_HEADER_BYTES;

/// Pages, or why they cannot be read.
pub type Pages<'a, 'p> = dyn Iterator<Item = Result<(PageNumber, Cow<'p, [u8]>), Error>> + 'a;

/// A change to the whole database: what a transaction did elsewhere.
pub struct Change<'a, 'p> {
    /// How many pages the database has afterwards.
    pub page_count: PageCount,
    /// The hash of the database it was made on.
    pub hash_before: DatabaseHash,
    /// The hash of the database afterwards.
    pub hash_after: DatabaseHash,
    /// The pages, ascending, at least one; all those by which the database grows are among them.
    pub pages: &'a mut Pages<'a, 'p>,
}

/// Injects a change. On an error nothing is published.
pub(super) fn inject(shim: &Shim, change: Change<'_, '_>) -> Result<(), Error> {
    let (page_size, found, old_count) = shim.with_owner(|owner| {
        let hashes = &owner.hashes;
        (hashes.page_size(), hashes.sum(), hashes.page_count())
    });
    expect_hash(change.hash_before, found)?;
    let wal = shim.wal.get().ok_or(Error::Vfs {
        what: "find the WAL",
        code: libsqlite3_sys::SQLITE_CANTOPEN,
    })?;
    let mut tail = Tail::find(shim.main, wal, page_size)?;
    if !shim.needs_wal() {
        tail.restart_if_backfilled()?;
    }
    tail.begin()?;
    let first_frame = tail.frame_last.saturating_add(1);
    shim.cut_frames(first_frame);
    let mut order = PageOrder::new(page_size, old_count, change.page_count);
    let mut hashes = Vec::new();
    let mut held: Option<(PageNumber, Vec<u8>)> = None;
    for item in change.pages {
        let (page, image) = item?;
        order.check(page, &image)?;
        hashes.push((page, PageHash::of(page, &image)));
        // One page stays behind, until it is known whether it is the last.
        let mut next = image.into_owned();
        if let Some((page, image)) = &mut held {
            tail.push(*page, image, None)?;
            *page = hashes[hashes.len() - 1].0;
            std::mem::swap(image, &mut next);
        } else {
            held = Some((page, next));
        }
    }
    let (page, image) = held.ok_or_else(no_pages)?;
    order.finish(page)?;
    let after = shim.with_owner(|owner| {
        owner
            .hashes
            .preview(change.page_count, hashes.iter().copied())
    });
    expect_hash(change.hash_after, after)?;
    tail.push(page, &image, Some(change.page_count))?;
    tail.flush()?;
    let written = (first_frame..).zip(&hashes);
    shim.frames_written(written.map(|(frame, (page, hash))| (frame, *page, *hash)));
    tail.enter(&hashes)?;
    tail.publish(change.page_count);
    shim.with_owner(|owner| replace_all(&mut owner.hashes, change.page_count, &hashes));
    Ok(())
}

/// Whether the hash is the expected one.
pub(super) fn expect_hash(expected: DatabaseHash, found: DatabaseHash) -> Result<(), Error> {
    if expected == found {
        Ok(())
    } else {
        Err(Error::HashMismatch { expected, found })
    }
}

fn replace_all(hashes: &mut PageHashes, count: PageCount, pages: &[(PageNumber, PageHash)]) {
    hashes.resize(count);
    for (page, hash) in pages {
        hashes.replace(*page, *hash);
    }
}

const fn no_pages() -> Error {
    Error::Change {
        what: "a change without pages",
        page: 0,
    }
}

/// How many pages a transaction must bring when the database grows: all the new ones, but for the
/// lock-byte page, which SQLite never writes.
pub(super) fn pages_added(old: PageCount, new: PageCount, page_size: PageSize) -> usize {
    let lock_byte = page_size.lock_byte_page();
    let unwritten = u32::from(new.contains(lock_byte) && !old.contains(lock_byte));
    new.0.saturating_sub(old.0).saturating_sub(unwritten) as usize
}

/// Checks that pages come as a transaction leaves them.
pub(super) struct PageOrder {
    page_size: PageSize,
    old: PageCount,
    new: PageCount,
    last: u32,
    added: usize,
}

impl PageOrder {
    pub(super) const fn new(page_size: PageSize, old: PageCount, new: PageCount) -> Self {
        Self {
            page_size,
            old,
            new,
            last: 0,
            added: 0,
        }
    }

    pub(super) fn check(&mut self, page: PageNumber, image: &[u8]) -> Result<(), Error> {
        if page.number() <= self.last {
            return Err(Error::change("the pages are not in ascending order", page));
        }
        if !self.new.contains(page) {
            return Err(Error::change("a page beyond the page count", page));
        }
        if page == self.page_size.lock_byte_page() {
            return Err(Error::change("the lock-byte page", page));
        }
        if image.len() != self.page_size.len() {
            return Err(Error::change("an image that is not one page long", page));
        }
        self.last = page.number();
        self.added += usize::from(!self.old.contains(page));
        Ok(())
    }

    pub(super) fn finish(&self, last: PageNumber) -> Result<(), Error> {
        if self.added == pages_added(self.old, self.new, self.page_size) {
            Ok(())
        } else {
            Err(Error::change(
                "the database grows by pages that are missing",
                last,
            ))
        }
    }
}

/// The header of the WAL-index, both copies of which must agree: nobody else writes it.
pub(super) fn read_header(main: ffi::File) -> Result<IndexHeader, Error> {
    let region = main.region(0).map_err(failed("map the WAL-index"))?;
    let mut copies = [0; 2 * index::INDEX_HEADER_BYTES];
    region.read(0, &mut copies);
    IndexHeader::parse_copies(&copies).map_err(|error| {
        tracing::error!(%error, "the WAL-index is damaged");
        Error::Vfs {
            what: "read the header of the WAL-index",
            code: libsqlite3_sys::SQLITE_CORRUPT,
        }
    })
}

/// The error of a failed call of the VFS.
pub(super) fn failed(what: &'static str) -> impl Fn(ResultCode) -> Error {
    move |code| Error::Vfs { what, code: code.0 }
}

/// The end of the WAL, where frames are added.
struct Tail {
    main: ffi::File,
    wal: ffi::File,
    page_size: PageSize,
    /// As published, and from `begin` on with the salts and the checksum that the frames continue.
    header: IndexHeader,
    frame_last: u32,
    chunk: Vec<u8>,
    chunk_offset: u64,
}

impl Tail {
    fn find(main: ffi::File, wal: ffi::File, page_size: PageSize) -> Result<Self, Error> {
        let header = read_header(main)?;
        let foreign = header.order != ByteOrder::Little || header.page_size != Some(page_size);
        if header.frame_max > 0 && foreign {
            return Err(Error::Vfs {
                what: "continue a WAL of another kind",
                code: libsqlite3_sys::SQLITE_CORRUPT,
            });
        }
        Ok(Self {
            main,
            wal,
            page_size,
            header,
            frame_last: header.frame_max,
            chunk: Vec::new(),
            chunk_offset: 0,
        })
    }

    /// Goes back to the start of the WAL if the main file has all of it and no reader needs it
    /// (`walRestartLog`). With readers it just grows.
    ///
    /// The salts must change: readers and checkpoints compare them to notice.
    fn restart_if_backfilled(&mut self) -> Result<(), Error> {
        let region = self.main.region(0).map_err(failed("map the WAL-index"))?;
        let all = self.header.frame_max;
        if all == 0 || region.word(index::BACKFILL_OFFSET) != all {
            return Ok(());
        }
        let (first, count) = (index::LOCK_READ_0 + 1, 4);
        match self.main.lock(first, count, Lock::Exclusive) {
            Ok(()) => {}
            Err(ResultCode::BUSY) => return Ok(()),
            Err(code) => return Err(failed("lock out the readers of the WAL")(code)),
        }
        self.header.salts = self.header.salts.next(randomness());
        self.header.frame_max = 0;
        self.frame_last = 0;
        self.write_header(region);
        region.set_word(index::BACKFILL_OFFSET, 0);
        region.set_word(index::BACKFILL_ATTEMPTED_OFFSET, 0);
        for mark in 1..index::READ_MARKS {
            let value = if mark == 1 {
                0
            } else {
                index::READ_MARK_UNUSED
            };
            region.set_word(index::READ_MARKS_OFFSET + mark * 4, value);
        }
        self.main
            .lock(first, count, Lock::ReleaseExclusive)
            .map_err(failed("let the readers of the WAL in again"))
    }

    /// Writes a WAL header if the WAL is at its start.
    fn begin(&mut self) -> Result<(), Error> {
        if self.header.frame_max == 0 {
            if self.header.salts == Salts::default() {
                self.header.salts = Salts(randomness());
            }
            let sequence = self.sequence_next()?;
            let wal_header = WalHeader::new(self.page_size, sequence, self.header.salts);
            self.header.frame_checksum = wal_header.checksum();
            self.header.order = wal_header.order;
            self.header.page_size = Some(self.page_size);
            self.chunk.extend_from_slice(&wal_header.encode());
        } else {
            self.chunk_offset =
                frame_offset(self.frame_last, self.page_size) + frame_bytes(self.page_size);
        }
        Ok(())
    }

    fn sequence_next(&self) -> Result<u32, Error> {
        if self.wal.size().map_err(failed("measure the WAL"))? < WAL_HEADER_BYTES as u64 {
            return Ok(0);
        }
        let mut bytes = [0; WAL_HEADER_BYTES];
        self.wal
            .read(&mut bytes, 0)
            .map_err(failed("read the WAL"))?;
        let sequence = WalHeader::parse(&bytes).map(|header| header.checkpoint_sequence);
        Ok(sequence.map_or(0, |sequence| sequence.wrapping_add(1)))
    }

    /// Adds a frame; the last one of a transaction says how many pages the database has.
    fn push(
        &mut self,
        page: PageNumber,
        image: &[u8],
        commit: Option<PageCount>,
    ) -> Result<(), Error> {
        let header = FrameHeader::seal(
            page,
            commit,
            image,
            self.header.order,
            self.header.salts,
            self.header.frame_checksum,
        );
        self.header.frame_checksum = header.checksum;
        self.frame_last = self
            .frame_last
            .checked_add(1)
            .ok_or(Error::change("more frames than a WAL can have", page))?;
        self.chunk.extend_from_slice(&header.encode());
        self.chunk.extend_from_slice(image);
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.wal
            .write(&self.chunk, self.chunk_offset)
            .map_err(failed("write the WAL"))?;
        self.chunk_offset += self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }

    /// Enters the frames in the hash tables, region by region (`walIndexAppend`).
    fn enter(&self, pages: &[(PageNumber, PageHash)]) -> Result<(), Error> {
        let mut copy = Box::new([0; index::REGION_BYTES]);
        let mut frame = self.header.frame_max + 1;
        let mut left = pages;
        while !left.is_empty() {
            let first = region_of_frame(frame);
            let room = index::entries_in(first.region) - first.entry + 1;
            let (here, rest) = left.split_at(left.len().min(room.into()));
            let region = self
                .main
                .region(first.region)
                .map_err(failed("map the WAL-index"))?;
            region.read(0, &mut *copy);
            if !first.is_first() && index::is_occupied(&copy, first) {
                // A writer died after it entered frames and before it published them.
                index::clean_up(&mut copy, frame - 1);
            }
            for (page, _) in here {
                index::append(&mut copy, region_of_frame(frame), *page).map_err(|error| {
                    tracing::error!(%error, "the WAL-index is damaged");
                    failed("enter a frame in the WAL-index")(ResultCode(
                        libsqlite3_sys::SQLITE_CORRUPT,
                    ))
                })?;
                frame += 1;
            }
            // Who follows a hash slot must find the page number there.
            let begin = index::page_numbers_offset(first.region);
            region.write(begin, &copy[begin..index::HASH_TABLE_OFFSET]);
            region.write(index::HASH_TABLE_OFFSET, &copy[index::HASH_TABLE_OFFSET..]);
            left = rest;
        }
        Ok(())
    }

    /// Makes the frames visible to everybody.
    fn publish(&mut self, page_count: PageCount) {
        self.header.change = self.header.change.wrapping_add(1);
        self.header.frame_max = self.frame_last;
        self.header.page_count = if planted::is(Bug::NotShrunk) {
            page_count.max(self.header.page_count)
        } else {
            page_count
        };
        let region = self.main.region(0).expect("region 0 is mapped since open");
        self.write_header(region);
    }

    /// Second copy, barrier, first copy (`walIndexWriteHdr`): a reader between them sees copies
    /// that differ, and reads again.
    fn write_header(&self, region: ffi::Region) {
        let copy = self.header.encode();
        region.write(index::INDEX_HEADER_BYTES, &copy);
        self.main.barrier();
        region.write(0, &copy);
    }
}
