//! Start-up: brings the main file to a later state of the log, page by page, before SQLite opens
//! it.
//!
//! The main file may hold any mixture of old, newer and half-written pages, and have any length: a
//! checkpoint was at work, or the power failed. All pages in which it can differ from the record
//! are named by the entries since the record, each with its whole image, so writing these in order
//! gives the exact file. The WAL is worth nothing after a power failure and is deleted first.

use std::os::unix::fs::FileExt;

use super::error::Error;
use super::inject::{Change, PageOrder, expect_hash};
use super::page_hashes::PageHashes;
use super::record::Record;
use super::start_lock::StartLock;
use crate::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize};

/// A main file that is being brought up to date, under the start lock.
pub struct Redo {
    lock: StartLock,
    hashes: PageHashes,
    expected: DatabaseHash,
}

impl Redo {
    /// Deletes the WAL and starts from the state of the record.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`, `Unsupported`.
    pub fn begin(lock: StartLock, record: &Record) -> Result<Self, Error> {
        lock.remove_wal()?;
        // The side file may be newer than the record too; only the sum at the end says.
        let hashes = PageHashes::load(lock.dir(), record.page_size, record.page_count)?;
        Ok(Self {
            lock,
            hashes,
            expected: record.hash,
        })
    }

    /// Deletes the WAL and starts from nothing: the next change is to bring every page.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn replace(lock: StartLock, page_size: PageSize) -> Result<Self, Error> {
        lock.remove_wal()?;
        Ok(Self {
            lock,
            hashes: PageHashes::new(page_size),
            expected: DatabaseHash::default(),
        })
    }

    /// Writes the pages of the next change. Its hash before must be the one of the state reached;
    /// its hash after is taken on trust until [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// `HashMismatch` if it does not continue the state reached; `Change`; `Delta`; `Io`.
    pub fn apply(&mut self, change: Change<'_, '_>) -> Result<(), Error> {
        expect_hash(change.hash_before, self.expected)?;
        let page_size = self.hashes.page_size();
        let mut order = PageOrder::new(page_size, self.hashes.page_count(), change.page_count);
        let mut last = None;
        self.hashes.resize(change.page_count);
        self.set_page_count(change.page_count)?;
        for item in change.pages {
            let (page, image) = item?;
            order.check(page, &image)?;
            self.lock
                .file()
                .write_all_at(&image, page.offset(page_size))
                .map_err(|e| Error::io("write", self.lock.path(), e))?;
            self.hashes.replace(page, PageHash::of(page, &image));
            last = Some(page);
        }
        if let Some(page) = last {
            order.finish(page)?;
        }
        self.expected = change.hash_after;
        Ok(())
    }

    /// Reads the whole main file, once everything is redone, and compares each page with its hash.
    ///
    /// # Errors
    ///
    /// `Page`, with the first page that differs; `Io`.
    pub fn verify(&self) -> Result<(), Error> {
        let page_size = self.hashes.page_size();
        self.set_page_count(self.hashes.page_count())?;
        let mut image = vec![0; page_size.len()];
        for number in 1..=self.hashes.page_count().0 {
            let page = PageNumber::new(number).expect("from 1 on");
            if page == page_size.lock_byte_page() {
                continue;
            }
            self.lock
                .file()
                .read_exact_at(&mut image, page.offset(page_size))
                .map_err(|e| Error::io("read", self.lock.path(), e))?;
            if self.hashes.get(page) != Some(PageHash::of(page, &image)) {
                return Err(Error::Page {
                    file: self.lock.path().to_owned(),
                    page: number,
                });
            }
        }
        Ok(())
    }

    /// Checks that the page hashes add up to the state expected, and makes the file durable.
    ///
    /// Pages that no change named are not read; [`Record::is_suspect`] says whether they should be,
    /// and [`verify`](Self::verify) does it.
    ///
    /// # Errors
    ///
    /// `HashMismatch`, `Io`.
    pub fn finish(mut self) -> Result<(StartLock, PageHashes), Error> {
        self.set_page_count(self.hashes.page_count())?;
        self.hashes.recompute_sum();
        expect_hash(self.expected, self.hashes.sum())?;
        self.lock
            .file()
            .sync_all()
            .map_err(|e| Error::io("sync", self.lock.path(), e))?;
        Ok((self.lock, self.hashes))
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
