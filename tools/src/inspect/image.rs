//! A database as a reader sees it: the main file, and over it the transactions in its WAL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wallaby::wal::format::FRAME_HEADER_BYTES;
use wallaby::wal::{
    DatabaseHash, End, PageCount, PageHash, PageNumber, PageSize, Transaction, WalHeader,
};

use super::directory::holder;
use super::source::{Failure, Source};
use super::wal_file::WalFile;
use crate::pages::{DatabaseHeader, Pages};

/// The WAL over a main file, as far as it was read.
pub(super) struct Overlay {
    source: Source,
    /// Where the last committed frame of each page begins.
    frames: BTreeMap<PageNumber, u64>,
    page_count: Option<PageCount>,
    page_size: PageSize,
    /// How it ended.
    pub(super) end: End,
    /// How many transactions it has.
    pub(super) transactions: u64,
}

/// A database on disk.
pub(super) struct Image {
    main: Source,
    pub(super) overlay: Option<Overlay>,
    page_size: PageSize,
    page_count: PageCount,
    /// What page 1 says; why it cannot be read.
    pub(super) header: Result<DatabaseHeader, String>,
}

impl Image {
    /// Opens a main file and, if there is one, its WAL, of which frames up to `frame_max` count;
    /// none if that is 0.
    /// `page_size` is taken if the file does not tell.
    pub(super) fn open(
        path: &Path,
        page_size: Option<PageSize>,
        frame_max: Option<u32>,
    ) -> Result<Self, Failure> {
        let main = Source::open(path)?;
        let wal = Source::find(&beside(path, "-wal"))?;
        let wal = wal.filter(|_| frame_max != Some(0));
        let overlay = wal.and_then(|wal| Overlay::read(wal, frame_max.unwrap_or(u32::MAX)));
        let head = main.read(0, DATABASE_HEAD_BYTES)?;
        let parsed = DatabaseHeader::parse(&head);
        // The file may be empty as long as everything is in the WAL.
        let named = parsed.as_ref().ok().map(|header| header.page_size);
        let of_wal = overlay.as_ref().map(|overlay| overlay.page_size);
        let page_size = page_size.or(named).or(of_wal).unwrap_or(PageSize::DEFAULT);
        let overlay = overlay.filter(|overlay| overlay.page_size == page_size);
        let mut image = Self {
            main,
            overlay,
            page_size,
            page_count: PageCount(u32::MAX),
            header: Err("not read".to_owned()),
        };
        image.header = match image.page(PageNumber::FIRST) {
            Ok(page) => DatabaseHeader::parse(&page).map_err(str::to_owned),
            Err(error) => Err(error),
        };
        image.page_count = image.count()?;
        Ok(image)
    }

    /// As SQLite counts: what the last transaction in the WAL says; without one, what the header
    /// says if it is to be believed; else the length of the file.
    fn count(&self) -> Result<PageCount, Failure> {
        let pages = self.main.bytes()? / u64::from(self.page_size.bytes());
        let pages = u32::try_from(pages).unwrap_or(u32::MAX - 1);
        let overlaid = self.overlay.as_ref();
        if let Some(count) = overlaid.and_then(|overlay| overlay.page_count) {
            let last = overlaid.and_then(|overlay| overlay.frames.keys().next_back());
            let there = pages.max(last.map_or(0, |page| page.number()));
            return Ok(PageCount(count.0.min(there)));
        }
        Ok(match &self.header {
            Ok(header) if header.valid_for == header.change_counter && header.page_count.0 > 0 => {
                PageCount(header.page_count.0.min(pages))
            }
            _ => PageCount(pages),
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.main.path()
    }

    /// A process that has SQLite's locks on it, if the system says.
    pub(super) fn holder(&self) -> Option<String> {
        holder(self.path()).or_else(|| holder(&beside(self.path(), "-shm")))
    }

    /// A page of the main file, whatever the WAL has.
    pub(super) fn main_page(&self, page: PageNumber) -> Result<Vec<u8>, String> {
        let read = self
            .main
            .read(page.offset(self.page_size), self.page_size.len());
        match read {
            Ok(bytes) if bytes.len() == self.page_size.len() => Ok(bytes),
            Ok(_) => Err(format!("page {page} is beyond the end of the file")),
            Err(failure) => Err(failure.0),
        }
    }

    /// The frame that a page is read from, counted from 1; `None`: it is in the main file.
    pub(super) fn frame_of(&self, page: PageNumber) -> Option<u32> {
        let overlay = self.overlay.as_ref()?;
        let offset = overlay.frames.get(&page)?;
        let frame = wallaby::wal::format::frame_bytes(overlay.page_size);
        u32::try_from((offset - 32) / frame + 1).ok()
    }

    /// All pages that are hashed: not the one with SQLite's lock bytes.
    pub(super) fn numbers(&self) -> impl Iterator<Item = PageNumber> + use<> {
        let lock = self.page_size.lock_byte_page();
        (1..=self.page_count.0)
            .filter_map(PageNumber::new)
            .filter(move |page| *page != lock)
    }

    /// The hash of everything; pages that cannot be read are left out.
    pub(super) fn hash(&self) -> DatabaseHash {
        let hashes = self.numbers().filter_map(|page| self.page_hash(page));
        hashes.fold(DatabaseHash::default(), DatabaseHash::with)
    }

    pub(super) fn page_hash(&self, page: PageNumber) -> Option<PageHash> {
        self.page(page).ok().map(|image| PageHash::of(page, &image))
    }
}

impl Pages for Image {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn page_count(&self) -> PageCount {
        self.page_count
    }

    fn page(&self, page: PageNumber) -> Result<Vec<u8>, String> {
        let framed = self.overlay.as_ref().and_then(|overlay| {
            let offset = overlay.frames.get(&page)?;
            Some((overlay, offset + FRAME_HEADER_BYTES as u64))
        });
        let Some((overlay, offset)) = framed else {
            return self.main_page(page);
        };
        let bytes = overlay.source.read(offset, self.page_size.len());
        let bytes = bytes.map_err(|failure| failure.0)?;
        if bytes.len() == self.page_size.len() {
            Ok(bytes)
        } else {
            Err(format!(
                "the frame of page {page} is gone: the WAL was truncated"
            ))
        }
    }
}

impl Overlay {
    /// `None` if there is no WAL that SQLite would use.
    fn read(source: Source, frame_max: u32) -> Option<Self> {
        let wal = WalFile::open(source).ok()?;
        let header: WalHeader = *wal.header.as_ref().ok()?;
        let mut frames = BTreeMap::new();
        let (mut transactions, mut page_count) = (0, None);
        let take = |transaction: Transaction| {
            let last = transaction.frame_first as usize + transaction.frames.len() - 1;
            if last > frame_max as usize {
                return;
            }
            transactions += 1;
            page_count = Some(transaction.page_count);
            for frame in transaction.frames {
                frames.insert(frame.page, frame.offset);
            }
        };
        let end = wal.walk(header, take).ok()?;
        Some(Self {
            source: wal.source,
            frames,
            page_count,
            page_size: header.page_size,
            end,
            transactions,
        })
    }
}

/// The path of a file beside the main file.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The database header, for which page 1 has room whatever the page size.
const DATABASE_HEAD_BYTES: usize = 100;
