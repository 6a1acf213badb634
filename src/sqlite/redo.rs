//! Start-up: brings the main file to a later state of the log, page by page, before SQLite opens
//! it.
//!
//! The main file may hold any mixture of old, newer and half-written pages, and have any length: a
//! checkpoint was at work, or the power failed. All pages in which it can differ from the record
//! are named by the entries since the record, each with its whole image, so writing these in order
//! gives the exact file. The WAL is worth nothing after a power failure and is deleted first.
//!
//! In between the main file is no database, and if this process dies there, nobody is left to keep
//! others away from it. So its header names a format version that no SQLite reads meanwhile (file
//! format document, "File format version numbers"): whoever opens the file is told that it is none,
//! until a start has finished.

use std::ops::Range;
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
    /// The format versions in the header once it may be read again.
    versions: [u8; 2],
}

impl Redo {
    /// Deletes the WAL and starts from the state of the record.
    ///
    /// # Errors
    ///
    /// `Io`, `Corrupt`, `Unsupported`.
    pub fn begin(lock: StartLock, record: &Record) -> Result<Self, Error> {
        if !record.is_closed {
            hide(&lock)?;
        }
        lock.remove_wal()?;
        // The side file may be newer than the record too; only the sum at the end says.
        let loaded = PageHashes::load(lock.dir(), record.page_size, record.page_count);
        let hashes = match loaded {
            Ok(hashes) => hashes,
            // It can be made anew: see `finish`.
            Err(error) if is_made_anew(&error) => {
                tracing::error!(%error, "the table of page hashes cannot be read");
                let mut hashes = PageHashes::new(record.page_size);
                hashes.resize(record.page_count);
                hashes
            }
            Err(error) => return Err(error),
        };
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

    /// Reads the whole main file, once everything is redone, and compares each page with its hash.
    /// Returns those that differ or cannot be read.
    ///
    /// # Errors
    ///
    /// `Io`, if the length or the header of the file cannot be set.
    pub fn verify(&self) -> Result<Vec<PageNumber>, Error> {
        self.set_page_count(self.hashes.page_count())?;
        self.reveal()?;
        let mut damaged = Vec::new();
        self.each_page(|page, hash| {
            if hash != self.hashes.get(page) {
                damaged.push(page);
            }
        });
        Ok(damaged)
    }

    /// Hashes what is in the main file, page by page; `None`: it cannot be read.
    fn each_page(&self, mut look: impl FnMut(PageNumber, Option<PageHash>)) {
        let page_size = self.hashes.page_size();
        let mut image = vec![0; page_size.len()];
        for number in 1..=self.hashes.page_count().0 {
            let page = PageNumber::new(number).expect("from 1 on");
            if page == page_size.lock_byte_page() {
                continue;
            }
            let read = self
                .lock
                .file()
                .read_exact_at(&mut image, page.offset(page_size));
            look(page, read.is_ok().then(|| PageHash::of(page, &image)));
        }
    }

    /// Makes the table of hashes anew from the main file, if the table does not add up and the
    /// pages do: then it is the side file that is damaged.
    fn rebuild_hashes(&mut self) -> Result<(), Error> {
        let file = self.lock.path().display();
        tracing::error!(
            %file,
            "the page hashes do not add up to the database hash; reading all pages"
        );
        let mut found = PageHashes::new(self.hashes.page_size());
        found.resize(self.hashes.page_count());
        let (mut differing, mut first) = (0_u64, None);
        self.each_page(|page, hash| {
            if hash != self.hashes.get(page) {
                differing += 1;
                first = first.or(Some(page.number()));
            }
            found.replace(page, hash.unwrap_or_default());
        });
        tracing::error!(
            pages = differing,
            first,
            "pages that are not what the table of page hashes says"
        );
        expect_hash(self.expected, found.sum())?;
        tracing::warn!(
            "all pages are right; the table of page hashes was damaged and is made anew"
        );
        self.hashes = found;
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
        self.reveal()?;
        self.hashes.recompute_sum();
        if self.expected != self.hashes.sum()
            && let Err(error) = self.rebuild_hashes()
        {
            hide(&self.lock)?;
            return Err(error);
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

/// Whether the side file is damaged or gone, and not just out of reach. Its version is not covered
/// by any checksum, and whatever it is, the record's hash proves the new table.
fn is_made_anew(error: &Error) -> bool {
    match error {
        Error::Corrupt { .. } | Error::Unsupported { .. } => true,
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Where the header has the versions of the format, for writing and for reading.
const VERSIONS: Range<usize> = 18..20;
/// Those of every database of ours between two starts; see `genesis`.
const WAL_MODE: [u8; 2] = [2, 2];
/// SQLite refuses everything above 2 ("file is not a database").
const UNREADABLE: [u8; 2] = [0xff, 0xff];
