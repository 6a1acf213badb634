//! The hash of every page, in memory and in a side file.
//!
//! With them a change costs the pages it names, never the size of the database: the database hash
//! is kept up to date by taking the old hash of a page away and adding the new one. The side file
//! is updated in place, so a checkpoint writes only the entries that changed since the last one.
//!
//! The side file, `pages.hash` (little-endian):
//!
//! | Offset | Size | Field     | Meaning                                        |
//! |-------:|-----:|-----------|------------------------------------------------|
//! |      0 |    4 | magic     | `WBPH`                                         |
//! |      4 |    4 | version   | 1                                              |
//! |      8 |    4 | page size | bytes                                          |
//! |     12 |    4 | reserved  | zero                                           |
//! |   16 n |   16 | hash      | of page n; zero for the lock-byte page         |
//!
//! It has no checksum of its own: after a crash it may be newer than the checkpoint record, page by
//! page. Redo makes those entries anew, and what then proves the whole table is its sum.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::Error;
use super::hash_table::HashTable;
use crate::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize};

const FILE_NAME: &str = "pages.hash";
const MAGIC: [u8; 4] = *b"WBPH";
const VERSION: u32 = 1;
const ENTRY_BYTES: usize = 16;
/// How many entries are written with one system call at most.
const RUN_ENTRIES_MAX: usize = 65_536;

/// The hashes of all pages of one database.
#[derive(Clone, Debug)]
pub struct PageHashes {
    page_size: PageSize,
    hashes: HashTable,
    /// One bit per page: the side file does not have this hash yet.
    changed: Vec<u64>,
    /// The bits that went into the last draft, which has them still to save, perhaps.
    drafted: Vec<u64>,
    /// Whether that draft is saved; in a draft, whether it is.
    is_saved: Arc<AtomicBool>,
    sum: DatabaseHash,
}

impl PageHashes {
    /// The name of the side file in the data directory.
    pub const FILE_NAME: &'static str = FILE_NAME;

    /// The table of a database without pages.
    #[must_use]
    pub fn new(page_size: PageSize) -> Self {
        Self {
            page_size,
            hashes: HashTable::new(),
            changed: Vec::new(),
            drafted: Vec::new(),
            is_saved: Arc::default(),
            sum: DatabaseHash(0),
        }
    }

    /// The page size of the database.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many pages the database has.
    #[must_use]
    pub fn page_count(&self) -> PageCount {
        PageCount(u32::try_from(self.hashes.len()).expect("resized by a PageCount"))
    }

    /// The hash of the whole database.
    #[must_use]
    pub const fn sum(&self) -> DatabaseHash {
        self.sum
    }

    /// The hash of one page; `None` beyond the page count.
    #[must_use]
    pub fn get(&self, page: PageNumber) -> Option<PageHash> {
        self.hashes.get(index_of(page))
    }

    /// The hashes as they are now; what changes later does not show there.
    pub(super) fn freeze(&self) -> HashTable {
        self.hashes.clone()
    }

    /// The database hash there would be with this page count and these pages replaced.
    ///
    /// The pages are ascending and within the page count.
    pub(super) fn preview(
        &self,
        page_count: PageCount,
        pages: impl Iterator<Item = (PageNumber, PageHash)>,
    ) -> DatabaseHash {
        let mut sum = self.sum;
        for cut in self.hashes.iter_from(page_count.0 as usize) {
            sum = sum.without(cut);
        }
        for (page, hash) in pages {
            sum = sum.with(hash).without(self.get(page).unwrap_or_default());
        }
        sum
    }

    /// Cuts off the pages beyond the page count, or adds pages whose hash is still zero.
    pub fn resize(&mut self, page_count: PageCount) {
        let pages = page_count.0 as usize;
        for cut in self.hashes.iter_from(pages) {
            self.sum = self.sum.without(cut);
        }
        let old = self.hashes.len();
        self.hashes.resize(pages);
        self.changed.resize(pages.div_ceil(64), 0);
        for added in old..pages {
            self.mark(added);
        }
    }

    /// Replaces the hash of a page within the page count.
    pub fn replace(&mut self, page: PageNumber, hash: PageHash) {
        let index = index_of(page);
        if let Some(old) = self.hashes.get(index) {
            self.sum = self.sum.without(old).with(hash);
            self.hashes.set(index, hash);
            self.mark(index);
        }
    }

    /// Adds all entries up again.
    pub fn recompute_sum(&mut self) {
        self.sum = self
            .hashes
            .iter_from(0)
            .fold(DatabaseHash(0), DatabaseHash::with);
    }

    /// Reads the side file of a data directory. Entries it does not have are zero; extra ones are
    /// ignored.
    pub(super) fn load(
        dir: &Path,
        page_size: PageSize,
        page_count: PageCount,
    ) -> Result<Self, Error> {
        Self::read(&path_in(dir), Some(page_size), page_count)
    }

    /// The same; a table of zeros where the side file is damaged or gone, and not just out of
    /// reach: it can be made anew, and whatever it is, the record's hash proves the table.
    pub(super) fn load_or_new(
        dir: &Path,
        page_size: PageSize,
        page_count: PageCount,
    ) -> Result<Self, Error> {
        let error = match Self::load(dir, page_size, page_count) {
            Err(error @ (Error::Corrupt { .. } | Error::Unsupported { .. })) => error,
            Err(Error::Io { source, what, file }) if source.kind() == io::ErrorKind::NotFound => {
                Error::Io { what, file, source }
            }
            loaded => return loaded,
        };
        tracing::error!(%error, "the table of page hashes cannot be read");
        let mut hashes = Self::new(page_size);
        hashes.resize(page_count);
        Ok(hashes)
    }

    /// Reads a side file. Entries it does not have are zero; extra ones are ignored. Without a page
    /// size, the one that the file names is taken.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Unsupported`, `Io`.
    pub fn read(
        path: &Path,
        page_size: Option<PageSize>,
        page_count: PageCount,
    ) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let page_size = check_header(&mut file, path, page_size)?;
        let mut hashes = HashTable::new();
        let mut bytes = Vec::new();
        let mut left = u64::from(page_count.0) * ENTRY_BYTES as u64;
        while left > 0 {
            bytes.clear();
            let part = left.min((RUN_ENTRIES_MAX * ENTRY_BYTES) as u64);
            let read = (&mut file)
                .take(part)
                .read_to_end(&mut bytes)
                .map_err(|e| Error::io("read", path, e))?;
            for bytes in bytes.as_chunks::<ENTRY_BYTES>().0 {
                hashes.push(entry(bytes));
            }
            if (read as u64) < part {
                break;
            }
            left -= part;
        }
        let mut table = Self {
            hashes,
            ..Self::new(page_size)
        };
        table.changed.resize(table.hashes.len().div_ceil(64), 0);
        table.resize(page_count);
        table.recompute_sum();
        Ok(table)
    }

    /// The table as it is now, to be saved on another thread while this one goes on. Drafts are
    /// saved in the order in which they were made; what one leaves unsaved is in the next one.
    pub(super) fn draft(&mut self) -> Self {
        if !self.is_saved.load(Ordering::Acquire) {
            for (changed, drafted) in self.changed.iter_mut().zip(&self.drafted) {
                *changed |= drafted;
            }
        }
        self.is_saved = Arc::default();
        let draft = self.clone();
        let none = vec![0; self.changed.len()];
        self.drafted = std::mem::replace(&mut self.changed, none);
        draft
    }

    /// Writes the entries that changed into the side file and makes them durable.
    pub(super) fn save(&mut self, dir: &Path) -> Result<(), Error> {
        let path = path_in(dir);
        self.write(&path)
            .map_err(|e| Error::io("write", &path, e))?;
        self.changed.fill(0);
        self.is_saved.store(true, Ordering::Release);
        Ok(())
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)?;
        file.write_all_at(&header(self.page_size), 0)?;
        let mut bytes = Vec::new();
        let mut index = 0;
        while let Some(first) = self.next_changed(index) {
            bytes.clear();
            index = first;
            while index < self.hashes.len()
                && self.is_changed(index)
                && index - first < RUN_ENTRIES_MAX
            {
                let hash = self.hashes.get(index).unwrap_or_default();
                bytes.extend_from_slice(&hash.0.to_le_bytes());
                index += 1;
            }
            file.write_all_at(&bytes, ((first + 1) * ENTRY_BYTES) as u64)?;
        }
        file.sync_all()
    }

    fn next_changed(&self, from: usize) -> Option<usize> {
        let mut index = from;
        while index < self.hashes.len() {
            if self.changed[index / 64] >> (index % 64) == 0 {
                index = (index / 64 + 1) * 64;
            } else if self.is_changed(index) {
                return Some(index);
            } else {
                index += 1;
            }
        }
        None
    }

    fn is_changed(&self, index: usize) -> bool {
        self.changed[index / 64] >> (index % 64) & 1 == 1
    }

    fn mark(&mut self, index: usize) {
        self.changed[index / 64] |= 1 << (index % 64);
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

const fn index_of(page: PageNumber) -> usize {
    page.number() as usize - 1
}

const fn entry(bytes: &[u8; ENTRY_BYTES]) -> PageHash {
    PageHash(u128::from_le_bytes(*bytes))
}

fn header(page_size: PageSize) -> [u8; ENTRY_BYTES] {
    let mut header = [0; ENTRY_BYTES];
    header[0..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&VERSION.to_le_bytes());
    header[8..12].copy_from_slice(&page_size.bytes().to_le_bytes());
    header
}

/// The page size that the header names, which must be the one `expected`.
fn check_header(
    file: &mut File,
    path: &Path,
    expected: Option<PageSize>,
) -> Result<PageSize, Error> {
    let mut found = [0; ENTRY_BYTES];
    file.read_exact(&mut found)
        .map_err(|_| Error::corrupt("the header is cut short", path, 0))?;
    let word = |offset: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|byte| found[offset + byte]);
        u32::from_le_bytes([a, b, c, d])
    };
    if found[0..4] != MAGIC {
        return Err(Error::corrupt("not a table of page hashes", path, 0));
    }
    let version = word(4);
    if version != VERSION {
        return Err(Error::Unsupported {
            file: path.to_owned(),
            version,
        });
    }
    let another = || Error::corrupt("the page size is another one", path, 8);
    let named = PageSize::new(word(8)).ok_or_else(another)?;
    if found != header(expected.unwrap_or(named)) {
        return Err(another());
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32) -> PageNumber {
        PageNumber::new(number).unwrap()
    }

    #[test]
    fn only_the_sum_of_what_is_left_remains_after_a_shrink() {
        let mut hashes = PageHashes::new(PageSize::DEFAULT);
        hashes.resize(PageCount(200));
        for number in 1..=200 {
            hashes.replace(page(number), PageHash(u128::from(number) << 100));
        }
        let preview = hashes.preview(PageCount(2), std::iter::once((page(2), PageHash(9))));
        hashes.resize(PageCount(2));
        hashes.replace(page(2), PageHash(9));
        assert_eq!(hashes.sum(), DatabaseHash(9 + (1 << 100)));
        assert_eq!(preview, hashes.sum());
    }
}
