//! Start-up, where an image was received: puts the database of another node over the main file,
//! page by page, before SQLite opens it.
//!
//! The main file may hold any mixture of the state of the record and of the image, because an
//! installation may have been interrupted before. All pages in which the two differ come with their
//! whole image, so writing them gives the exact file, however often it is tried.
//!
//! In between the main file is no database, and if this process dies there, nobody is left to keep
//! others away from it. So its header names a format version that no SQLite reads meanwhile (file
//! format document, "File format version numbers"): whoever opens the file is told that it is none,
//! until a start has finished.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::error::Error;
use super::inject::{Change, PageOrder, expect_hash};
use super::overlay;
use super::page_hashes::PageHashes;
use super::record::Record;
use super::start_lock::StartLock;
use crate::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize};

/// A main file that is being replaced, under the start lock.
pub struct Installation {
    lock: StartLock,
    hashes: PageHashes,
    expected: DatabaseHash,
    /// The format versions in the header once it may be read again.
    versions: [u8; 2],
}

impl Installation {
    /// Starts from the state of the record: pages that the image does not bring are as they were
    /// there.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`, `Unsupported`.
    pub fn begin(lock: StartLock, record: &Record) -> Result<Self, Error> {
        match overlay::absorb(&lock, record) {
            // Somebody has moved the WAL into the main file: then pages that the image does not
            // bring may be wrong, which the caller finds out.
            Err(error @ Error::WalGone { .. }) => tracing::warn!(%error, "going on without it"),
            absorbed => absorbed?,
        }
        hide(&lock)?;
        lock.remove_wal()?;
        // The side file may be newer than the record; only the sum at the end says.
        let hashes = PageHashes::load_or_new(lock.dir(), record.page_size, record.page_count)?;
        Ok(Self {
            lock,
            hashes,
            expected: record.hash,
            versions: WAL_MODE,
        })
    }

    /// Deletes the WAL and starts from nothing: the next change is to bring every page.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn replace(lock: StartLock, page_size: PageSize) -> Result<Self, Error> {
        hide(&lock)?;
        lock.remove_wal()?;
        Ok(Self {
            lock,
            hashes: PageHashes::new(page_size),
            expected: DatabaseHash::default(),
            versions: WAL_MODE,
        })
    }

    /// Writes the pages of the image. Its hash before must be the one of the state started from;
    /// its hash after is taken on trust until [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// `HashMismatch` if it is made for another state; `Change`; `Delta`; `Io`.
    pub fn apply(&mut self, change: Change<'_, '_>) -> Result<(), Error> {
        expect_hash(change.hash_before, self.expected)?;
        let page_size = self.hashes.page_size();
        let mut order = PageOrder::new(page_size, self.hashes.page_count(), change.page_count);
        let mut last = None;
        self.hashes.resize(change.page_count);
        hide(&self.lock)?;
        self.set_page_count(change.page_count)?;
        for item in change.pages {
            let (page, mut image) = item?;
            order.check(page, &image)?;
            self.hashes.replace(page, PageHash::of(page, &image));
            if page == PageNumber::FIRST {
                let versions = &mut image.to_mut()[VERSIONS];
                self.versions.copy_from_slice(versions);
                versions.copy_from_slice(&UNREADABLE);
            }
            self.lock
                .file()
                .write_all_at(&image, page.offset(page_size))
                .map_err(|e| Error::io("write", self.lock.path(), e))?;
            last = Some(page);
        }
        if let Some(page) = last {
            order.finish(page)?;
        }
        self.expected = change.hash_after;
        Ok(())
    }

    /// Checks that the page hashes add up to the image, and makes the file durable.
    ///
    /// # Errors
    ///
    /// `HashMismatch`, `Io`.
    pub fn finish(mut self) -> Result<(StartLock, PageHashes), Error> {
        self.set_page_count(self.hashes.page_count())?;
        self.reveal()?;
        self.hashes.recompute_sum();
        if self.expected != self.hashes.sum() {
            let found = hashes_of(&self.lock, self.hashes.page_size())?;
            if let Err(error) = expect_hash(self.expected, found.sum()) {
                hide(&self.lock)?;
                return Err(error);
            }
            tracing::warn!("the table of page hashes was damaged and is made anew");
            self.hashes = found;
        }
        self.lock
            .file()
            .sync_all()
            .map_err(|e| Error::io("sync", self.lock.path(), e))?;
        Ok((self.lock, self.hashes))
    }

    /// Lets SQLite read the file again: all is in place.
    fn reveal(&self) -> Result<(), Error> {
        let (file, at) = (self.lock.file(), VERSIONS.start as u64);
        let mut found = [0; 2];
        let read = file.read_exact_at(&mut found, at);
        // A file that is too short for a header was not hidden.
        let revealed = match read {
            Ok(()) if found == UNREADABLE => file.write_all_at(&self.versions, at),
            _ => Ok(()),
        };
        revealed.map_err(|e| Error::io("write the header of", self.lock.path(), e))
    }

    fn set_page_count(&self, count: PageCount) -> Result<(), Error> {
        let file = self.lock.file();
        let bytes = count.file_bytes(self.hashes.page_size());
        let found = file.metadata().map(|metadata| metadata.len());
        // Setting the length it has would still change the modification time.
        found
            .and_then(|found| {
                if found == bytes {
                    Ok(())
                } else {
                    file.set_len(bytes)
                }
            })
            .map_err(|e| Error::io("set the length of", self.lock.path(), e))
    }
}

/// Makes SQLite refuse the file, if it has a header.
fn hide(lock: &StartLock) -> Result<(), Error> {
    let file = lock.file();
    let hidden = file.metadata().and_then(|found| {
        if found.len() < VERSIONS.end as u64 {
            return Ok(());
        }
        file.write_all_at(&UNREADABLE, VERSIONS.start as u64)
    });
    hidden.map_err(|e| Error::io("write the header of", lock.path(), e))
}

/// The hashes of all pages that the main file has, by reading all of it. A page that cannot be read
/// has none.
pub(super) fn hashes_of(lock: &StartLock, page_size: PageSize) -> Result<PageHashes, Error> {
    let bytes = lock.file().metadata().map(|metadata| metadata.len());
    let bytes = bytes.map_err(|e| Error::io("look at", lock.path(), e))?;
    let pages = u32::try_from(bytes / u64::from(page_size.bytes())).unwrap_or(u32::MAX);
    let mut found = PageHashes::new(page_size);
    found.resize(PageCount(pages));
    let mut image = vec![0; page_size.len()];
    for number in 1..=pages {
        let page = PageNumber::new(number).expect("from 1 on");
        if page == page_size.lock_byte_page() {
            continue;
        }
        if lock
            .file()
            .read_exact_at(&mut image, page.offset(page_size))
            .is_ok()
        {
            found.replace(page, PageHash::of(page, &image));
        }
    }
    Ok(found)
}

/// Where the header has the versions of the format, for writing and for reading.
const VERSIONS: Range<usize> = 18..20;
/// Those of every database of ours between two starts; see `genesis`.
const WAL_MODE: [u8; 2] = [2, 2];
/// SQLite refuses everything above 2 ("file is not a database").
const UNREADABLE: [u8; 2] = [0xff, 0xff];
