//! The frames of the transaction that is being written: kept away from the WAL until it may commit.
//!
//! SQLite writes its frames here in place of the WAL file, reads them back from here when it
//! spilled its cache, and overwrites them: with a newer image of the same page, with new checksums,
//! or after a savepoint was rolled back. What a transaction changed is therefore only known at its
//! end, when SQLite syncs: the frames up to the first commit frame, and of these the last one of
//! each page.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::ffi::{self, ResultCode};
use super::image::{Image, Source};
use super::page_hashes::PageHashes;
use super::published::Published;
use super::shim::Shim;
use crate::planted::{self, Bug};
use crate::wal::format::{FRAME_HEADER_BYTES, WAL_HEADER_BYTES, frame_bytes, frame_offset};
use crate::wal::{DatabaseHash, PageCount, PageNumber, PageSize};

/// A buffer is given back to the allocator above this size, once its transaction has ended.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// What the pages of a transaction in flight are, in the order of their numbers.
///
/// There is at least one; none lies beyond the page count, none is the lock-byte page, and each has
/// the image that the transaction left it with.
pub struct Captured<'a> {
    pub(super) frames: &'a Frames,
    pub(super) last: &'a LastImages,
    pub(super) page_count: PageCount,
    pub(super) hashes_before: &'a PageHashes,
    pub(super) hash_after: DatabaseHash,
    pub(super) shim: &'a Shim,
    pub(super) source: &'a Source,
}

impl Captured<'_> {
    /// Freezes the database as it is without the transaction, while that waits for its verdict.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn image(&self) -> Result<Image, Error> {
        Image::freeze(self.shim.main, self.source, self.hashes_before)
    }

    /// The size of each image.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.frames.page_size
    }

    /// How many pages the database has after the transaction.
    #[must_use]
    pub const fn page_count(&self) -> PageCount {
        self.page_count
    }

    /// The pages as they were before the transaction.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn before(&self) -> Result<Published<'_>, Error> {
        Published::now(self.shim, self.page_size(), self.hashes_before.page_count())
    }

    /// The hash of the database before the transaction.
    #[must_use]
    pub const fn hash_before(&self) -> DatabaseHash {
        self.hashes_before.sum()
    }

    /// The hash of the database after the transaction.
    #[must_use]
    pub const fn hash_after(&self) -> DatabaseHash {
        self.hash_after
    }

    /// The numbers of the pages it changed, ascending.
    #[must_use]
    pub fn page_numbers(&self) -> &[PageNumber] {
        &self.last.pages
    }

    /// Reads the image of the page at this index of [`page_numbers`](Self::page_numbers).
    ///
    /// # Errors
    ///
    /// If the spool file cannot be read, if there is no such index, or if `image` does not have the
    /// page size.
    pub fn read(&self, index: usize, image: &mut [u8]) -> io::Result<()> {
        let frame = self.last.frames.get(index);
        let (Some(frame), true) = (frame, image.len() == self.page_size().len()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.frames.read_page(*frame, image)
    }
}

/// The pages of a transaction and, for each, the frame with its last image.
#[derive(Default)]
pub(super) struct LastImages {
    pub(super) pages: Vec<PageNumber>,
    pub(super) frames: Vec<u32>,
}

/// The last frame of a transaction: it says how large the database is afterwards.
#[derive(Clone, Copy)]
pub(super) struct CommitFrame {
    pub(super) frame: u32,
    pub(super) page_count: PageCount,
}

/// What a frame header says, without its checksum: that is SQLite's business.
#[derive(Clone, Copy)]
struct Header {
    page: u32,
    commit: u32,
}

/// Where to keep frames, and how many bytes of them.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) dir: PathBuf,
    pub(super) spool_bytes_max: usize,
    pub(super) transaction_bytes_max: u64,
}

/// Bytes that SQLite has written at the end of the WAL, and that are not in the file.
pub(super) struct Frames {
    page_size: PageSize,
    limits: Limits,
    /// Where in the WAL the first byte belongs.
    begin: u64,
    end: u64,
    /// The number of the first frame in the buffer.
    pub(super) frame_first: u32,
    headers: Vec<Header>,
    bytes: Vec<u8>,
    /// In place of `bytes` when these would be too many.
    spool: Option<File>,
    /// Why the last `SQLITE_FULL` was returned, for the client: SQLite only says that something is
    /// full. Outlives the transaction.
    pub(super) refusal: Option<String>,
}

impl Frames {
    pub(super) const fn new(page_size: PageSize, limits: Limits) -> Self {
        Self {
            page_size,
            limits,
            begin: 0,
            end: 0,
            frame_first: 1,
            headers: Vec::new(),
            bytes: Vec::new(),
            spool: None,
            refusal: None,
        }
    }

    /// Forgets everything: the transaction has ended, or the next one begins.
    pub(super) fn clear(&mut self) {
        self.begin = 0;
        self.end = 0;
        self.headers.clear();
        self.headers.shrink_to(KEPT_BYTES_MAX / size_of::<Header>());
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.spool = None;
    }

    /// Whether this offset of the WAL is, or will be, in the buffer and not in the file.
    pub(super) const fn covers(&self, offset: u64) -> bool {
        self.begin <= offset && offset < self.end
    }

    /// Where the WAL would end with the buffer written to it; 0 if the buffer is empty.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Takes a write of SQLite to the WAL.
    ///
    /// `SQLITE_FULL`, above the limit for one transaction, makes SQLite roll back.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), ResultCode> {
        if self.end == 0 {
            self.begin = offset;
            self.end = offset;
            self.frame_first = self.frame_at(offset.max(WAL_HEADER_BYTES as u64));
        }
        let end = offset + bytes.len() as u64;
        if offset < self.begin || offset > self.end {
            tracing::error!(offset, self.begin, self.end, "a WAL write out of sequence");
            return Err(ResultCode::IOERR_WRITE);
        }
        if end - self.begin > self.limits.transaction_bytes_max {
            self.refusal = Some(format!(
                "transaction too large: it changes more than {} bytes of pages \
                 (-max-transaction-bytes) and was rolled back; divide it into smaller ones",
                self.limits.transaction_bytes_max
            ));
            return Err(ResultCode::FULL);
        }
        self.note(bytes, offset)?;
        self.store(bytes, offset - self.begin).map_err(|error| {
            tracing::error!(%error, "cannot write the spool file");
            ResultCode::IOERR_WRITE
        })?;
        self.end = self.end.max(end);
        Ok(())
    }

    /// Looks at what is being written; anything that is no header and no page of a WAL is refused,
    /// because it would be released unread.
    fn note(&mut self, bytes: &[u8], offset: u64) -> Result<(), ResultCode> {
        if offset == 0 && bytes.len() == WAL_HEADER_BYTES {
            return Ok(());
        }
        let frame = self.frame_at(offset);
        let within = offset - frame_offset(frame, self.page_size);
        if within == FRAME_HEADER_BYTES as u64 && bytes.len() == self.page_size.len() {
            return Ok(());
        }
        if within != 0 || bytes.len() != FRAME_HEADER_BYTES {
            tracing::error!(offset, bytes = bytes.len(), "a WAL write of unknown shape");
            return Err(ResultCode::IOERR_WRITE);
        }
        let header = Header {
            page: word(bytes, 0),
            commit: word(bytes, 4),
        };
        let index = (frame - self.frame_first) as usize;
        if let Some(entry) = self.headers.get_mut(index) {
            *entry = header;
        } else {
            self.headers.push(header);
        }
        Ok(())
    }

    /// The frame in which an offset of the WAL lies, from 1.
    fn frame_at(&self, offset: u64) -> u32 {
        let frame = offset.saturating_sub(WAL_HEADER_BYTES as u64) / frame_bytes(self.page_size);
        u32::try_from(frame + 1).unwrap_or(u32::MAX)
    }

    fn store(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if let Some(spool) = &self.spool {
            return spool.write_all_at(bytes, at);
        }
        let begin = usize::try_from(at).expect("the buffer is in memory");
        let end = begin + bytes.len();
        if end > self.limits.spool_bytes_max {
            let spool = unlinked_file(&self.limits.dir)?;
            spool.write_all_at(&self.bytes, 0)?;
            self.bytes = Vec::new();
            spool.write_all_at(bytes, at)?;
            self.spool = Some(spool);
            return Ok(());
        }
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[begin..end].copy_from_slice(bytes);
        Ok(())
    }

    /// Reads bytes back. The offset is within the buffer.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if offset < self.begin || offset + bytes.len() as u64 > self.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let at = offset - self.begin;
        if let Some(spool) = &self.spool {
            return spool.read_exact_at(bytes, at);
        }
        let begin = usize::try_from(at).expect("the buffer is in memory");
        bytes.copy_from_slice(&self.bytes[begin..begin + bytes.len()]);
        Ok(())
    }

    /// Reads the page of a frame in the buffer.
    pub(super) fn read_page(&self, frame: u32, image: &mut [u8]) -> io::Result<()> {
        let offset = frame_offset(frame, self.page_size) + FRAME_HEADER_BYTES as u64;
        self.read(image, offset)
    }

    /// The frame that ends the transaction, if it is written. What follows it is the stale rest of
    /// a savepoint that was rolled back.
    pub(super) fn commit_frame(&self) -> Option<CommitFrame> {
        let index = self.headers.iter().position(|header| header.commit != 0)?;
        Some(CommitFrame {
            frame: self.frame_first + u32::try_from(index).ok()?,
            page_count: PageCount(self.headers[index].commit),
        })
    }

    /// The pages of the transaction, ascending, each with its last frame.
    ///
    /// Earlier frames of a page are images that the transaction itself replaced; frames beyond the
    /// page count belong to pages that it added, spilled and cut off again.
    pub(super) fn last_images(&self, commit: CommitFrame) -> LastImages {
        let count = if planted::is(Bug::RolledBackCaptured) {
            self.headers.len()
        } else {
            (commit.frame - self.frame_first + 1) as usize
        };
        let mut frames: Vec<(u32, u32)> = (self.frame_first..)
            .zip(&self.headers[..count])
            .map(|(frame, header)| (header.page, frame))
            .filter(|(page, _)| *page <= commit.page_count.0)
            .collect();
        frames.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        frames.dedup_by_key(|(page, _)| *page);
        let mut last = LastImages::default();
        for (page, frame) in frames {
            if let Some(page) = PageNumber::new(page)
                && page != self.page_size.lock_byte_page()
            {
                last.pages.push(page);
                last.frames.push(frame);
            }
        }
        last
    }

    /// Writes everything up to the end of a frame into the WAL file.
    pub(super) fn write_to(&self, wal: ffi::File, frame: u32) -> Result<(), ResultCode> {
        let end = frame_offset(frame, self.page_size) + frame_bytes(self.page_size);
        if self.spool.is_none() {
            let count = usize::try_from(end - self.begin).expect("the buffer is in memory");
            return wal.write(&self.bytes[..count], self.begin);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut offset = self.begin;
        while offset < end {
            let count = usize::try_from(end - offset).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES));
            self.read(&mut chunk[..count], offset)
                .map_err(|_| ResultCode::IOERR_READ)?;
            wal.write(&chunk[..count], offset)?;
            offset += count as u64;
        }
        Ok(())
    }
}

/// A file without a name, so that a crash leaves nothing behind.
fn unlinked_file(dir: &Path) -> io::Result<File> {
    let path = dir.join("capture.spool");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_be_bytes(word)
}
