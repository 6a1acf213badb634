//! Start-up: brings the main file from the state of the record to a later state of the log, before
//! SQLite opens it.
//!
//! The main file is exactly what the record says, and stays so until everything is redone: pages
//! that entries change are kept beside it, in a file without a name. Then they become a WAL, as a
//! checkpoint would find it, with a record that counts on it, and only then are they moved into the
//! main file. A crash at any moment leaves one of the two records, and all that it counts on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::error::Error;
use super::ffi::randomness;
use super::inject::{Change, PageOrder, expect_hash};
use super::install::hashes_of;
use super::overlay::{self, Overlay};
use super::page_hashes::PageHashes;
use super::record::Record;
use super::start_lock::StartLock;
use crate::wal::{
    DatabaseHash, FrameHeader, PageCount, PageHash, PageNumber, PageSize, Position, Salts,
    WalHeader,
};

/// A database that is being brought up to date, under the start lock.
pub struct Redo {
    lock: StartLock,
    hashes: PageHashes,
    /// The hash of the state reached.
    reached: DatabaseHash,
    /// How many pages of the main file belong to the state reached, unless they were changed.
    main: PageCount,
    changed: Changed,
}

impl Redo {
    /// Starts from the state of the record: moves what it counts on into the main file, and deletes
    /// the WAL.
    ///
    /// # Errors
    ///
    /// `WalGone`, `Io`, `Corrupt`, `Unsupported`.
    pub fn begin(lock: StartLock, record: &Record) -> Result<Self, Error> {
        overlay::absorb(&lock, record)?;
        lock.remove_wal()?;
        let hashes = PageHashes::load_or_new(lock.dir(), record.page_size, record.page_count)?;
        Ok(Self {
            reached: record.hash,
            main: record.page_count,
            changed: Changed::new(record.page_size),
            hashes,
            lock,
        })
    }

    /// Starts from the main file as it is, whatever the record says: somebody has moved the WAL
    /// into it. Reads all of it. The WAL, if there is one, is deleted by
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn adopt(lock: StartLock, page_size: PageSize) -> Result<Self, Error> {
        let hashes = hashes_of(&lock, page_size)?;
        Ok(Self {
            reached: hashes.sum(),
            main: hashes.page_count(),
            changed: Changed::new(page_size),
            hashes,
            lock,
        })
    }

    /// Gives the files back as they are.
    #[must_use]
    pub fn into_lock(self) -> StartLock {
        self.lock
    }

    /// The hash of the state reached.
    #[must_use]
    pub const fn hash(&self) -> DatabaseHash {
        self.reached
    }

    /// Makes the hashes of these pages anew where the table does not add up to the state of the
    /// record: a crash between the table and the record leaves it newer. Those are pages that
    /// entries after the record name; if it is not them, all pages are read. Before any
    /// [`apply`](Self::apply), which does it without a hint.
    ///
    /// # Errors
    ///
    /// `HashMismatch` if the pages are not those of the record; `Io`.
    pub fn mend_hashes(
        &mut self,
        pages: impl IntoIterator<Item = PageNumber>,
    ) -> Result<(), Error> {
        if self.is_in_order() {
            return Ok(());
        }
        let mut image = vec![0; self.hashes.page_size().len()];
        for page in pages {
            if self.main.contains(page) && page != self.hashes.page_size().lock_byte_page() {
                self.read(page, &mut image)?;
                self.hashes.replace(page, PageHash::of(page, &image));
            }
        }
        if self.is_in_order() {
            return Ok(());
        }
        tracing::error!(
            file = %self.lock.path().display(),
            "the page hashes do not add up to the database hash; reading all pages"
        );
        let found = hashes_of(&self.lock, self.hashes.page_size())?;
        expect_hash(self.reached, found.sum())?;
        tracing::warn!(
            "all pages are right; the table of page hashes was damaged and is made anew"
        );
        self.hashes = found;
        Ok(())
    }

    /// Whether the table of hashes is that of the state reached.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.hashes.sum() == self.reached
    }

    /// Reads all pages of the main file and compares each with its hash, before anything is redone.
    /// Returns those that differ or cannot be read.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn verify(&self) -> Result<Vec<PageNumber>, Error> {
        let found = hashes_of(&self.lock, self.hashes.page_size())?;
        let pages = (1..=self.hashes.page_count().0).filter_map(PageNumber::new);
        let differs = |page: &PageNumber| found.get(*page) != self.hashes.get(*page);
        Ok(pages.filter(differs).collect())
    }

    /// Whether an entry has changed the page.
    #[must_use]
    pub fn has_changed(&self, page: PageNumber) -> bool {
        self.changed.pages.contains_key(&page)
    }

    /// Reads a page of the state reached; one that it does not have is all zeros.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn read(&self, page: PageNumber, image: &mut [u8]) -> Result<(), Error> {
        let file = self.lock.path();
        if self
            .changed
            .read(page, image)
            .map_err(|e| Error::io("read", file, e))?
        {
            return Ok(());
        }
        if !self.main.contains(page) {
            image.fill(0);
            return Ok(());
        }
        let offset = page.offset(self.hashes.page_size());
        let read = self.lock.file().read_exact_at(image, offset);
        read.map_err(|e| Error::io("read", file, e))
    }

    /// Reads a page of the state reached as [`read`](Self::read) does, and compares it with its
    /// hash. The table of these has to be in order: see [`expect`](Self::expect).
    ///
    /// # Errors
    ///
    /// `Page` if it is another one; `Io`.
    pub fn read_sound(&self, page: PageNumber, image: &mut [u8]) -> Result<(), Error> {
        self.read(page, image)?;
        if self.hashes.page_count().contains(page)
            && Some(PageHash::of(page, image)) != self.hashes.get(page)
        {
            return Err(Error::Page {
                file: self.lock.path().to_owned(),
                page: page.number(),
            });
        }
        Ok(())
    }

    /// Compares the state reached with the one that a change was made on, and has the table of
    /// hashes put in order.
    ///
    /// # Errors
    ///
    /// `HashMismatch`, `Io`.
    pub fn expect(&mut self, hash_before: DatabaseHash) -> Result<(), Error> {
        expect_hash(hash_before, self.reached)?;
        self.mend_hashes([])
    }

    /// Makes the next change.
    ///
    /// # Errors
    ///
    /// `HashMismatch` if it does not continue the state reached, or does not lead where it says;
    /// `Change`; `Delta`; `Io`.
    pub fn apply(&mut self, change: Change<'_, '_>) -> Result<(), Error> {
        self.expect(change.hash_before)?;
        let page_size = self.hashes.page_size();
        let mut order = PageOrder::new(page_size, self.hashes.page_count(), change.page_count);
        let mut last = None;
        self.hashes.resize(change.page_count);
        self.main = self.main.min(change.page_count);
        self.changed.cut(change.page_count);
        for item in change.pages {
            let (page, image) = item?;
            order.check(page, &image)?;
            self.hashes.replace(page, PageHash::of(page, &image));
            self.changed.write(&self.lock, page, &image)?;
            last = Some(page);
        }
        if let Some(page) = last {
            order.finish(page)?;
        }
        self.reached = change.hash_after;
        expect_hash(change.hash_after, self.hashes.sum())
    }

    /// Moves everything into the main file and records it.
    ///
    /// # Errors
    ///
    /// `HashMismatch`, `Io`.
    pub fn finish(
        mut self,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<(StartLock, PageHashes), Error> {
        self.mend_hashes([])?;
        if self.changed.pages.is_empty() && self.main == self.hashes.page_count() {
            Record::save(&self.lock, &mut self.hashes, applied, data, membership)?;
            self.lock.remove_wal()?;
            return Ok((self.lock, self.hashes));
        }
        self.lock.remove_wal()?;
        let (wal, overlay) = self.write_wal()?;
        let over = (&wal, overlay);
        let record = Record::save_over(
            &self.lock,
            over,
            &mut self.hashes,
            applied,
            data,
            membership,
        )?;
        overlay::absorb(&self.lock, &record)?;
        self.lock.remove_wal()?;
        Ok((self.lock, self.hashes))
    }

    /// Writes a WAL of one transaction with all pages that were changed.
    fn write_wal(&mut self) -> Result<(File, Overlay), Error> {
        let path = self.lock.wal_path();
        let failed = |e| Error::io("write", &path, e);
        let page_size = self.hashes.page_size();
        let header = WalHeader::new(page_size, 0, Salts(randomness()));
        let mut checksum = header.checksum();
        let wal = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let mut writer = BufWriter::with_capacity(WRITE_BYTES, &wal);
        writer.write_all(&header.encode()).map_err(failed)?;
        // A transaction has a page: this one if the changed ones were all cut off.
        let mut pages: Vec<PageNumber> = self.changed.pages.keys().copied().collect();
        if pages.is_empty() {
            pages.push(PageNumber::FIRST);
        }
        let mut image = vec![0; page_size.len()];
        for (at, page) in pages.iter().enumerate() {
            self.read(*page, &mut image)?;
            let commit = (at + 1 == pages.len()).then_some(self.hashes.page_count());
            let frame =
                FrameHeader::seal(*page, commit, &image, header.order, header.salts, checksum);
            checksum = frame.checksum;
            writer.write_all(&frame.encode()).map_err(failed)?;
            writer.write_all(&image).map_err(failed)?;
        }
        writer.flush().map_err(failed)?;
        drop(writer);
        self.lock.sync_names()?;
        let frames = u32::try_from(pages.len()).expect("page numbers have 32 bits");
        let overlay = Overlay {
            salts: header.salts,
            frames,
            checksum,
        };
        Ok((wal, overlay))
    }
}

/// The pages that were changed, each as it is now.
struct Changed {
    page_size: PageSize,
    /// The place of each in the file, counted in pages.
    pages: BTreeMap<PageNumber, u64>,
    places: u64,
    file: Option<File>,
}

impl Changed {
    const fn new(page_size: PageSize) -> Self {
        Self {
            page_size,
            pages: BTreeMap::new(),
            places: 0,
            file: None,
        }
    }

    /// Whether the page is there.
    fn read(&self, page: PageNumber, image: &mut [u8]) -> std::io::Result<bool> {
        let (Some(place), Some(file)) = (self.pages.get(&page), &self.file) else {
            return Ok(false);
        };
        file.read_exact_at(image, place * u64::from(self.page_size.bytes()))?;
        Ok(true)
    }

    fn write(&mut self, lock: &StartLock, page: PageNumber, image: &[u8]) -> Result<(), Error> {
        let path = lock.dir().join(SPOOL_NAME);
        let failed = |e| Error::io("write", &path, e);
        if self.file.is_none() {
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            std::fs::remove_file(&path).map_err(failed)?;
            self.file = Some(file);
        }
        let place = *self.pages.entry(page).or_insert_with(|| {
            self.places += 1;
            self.places - 1
        });
        let file = self.file.as_ref().expect("opened above");
        let offset = place * u64::from(self.page_size.bytes());
        file.write_all_at(image, offset).map_err(failed)
    }

    /// Forgets the pages beyond the end: they are new if they come back.
    fn cut(&mut self, count: PageCount) {
        self.pages.retain(|page, _| count.contains(*page));
    }
}

/// The name that the file beside the main file has for a moment.
const SPOOL_NAME: &str = "redo.spool";
const WRITE_BYTES: usize = 1 << 20;
