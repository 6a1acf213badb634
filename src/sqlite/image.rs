//! A frozen view of the database, for snapshots and backups that take their time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use super::error::Error;
use super::ffi;
use super::hash_table::HashTable;
use super::inject::{failed, read_header};
use super::page_hashes::PageHashes;
use super::start_lock::MainFile;
use super::witness::{Place, Witness, damaged_text};
use crate::wal::format::{FRAME_HEADER_BYTES, frame_offset};
use crate::wal::index::{self, BACKFILL_OFFSET, region_of_frame};
use crate::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize};

/// The database as it was at one commit, readable from any thread while writes go on.
///
/// As long as one lives no checkpoint runs, so the main file does not change and the WAL only
/// grows. It holds the descriptor of the main file: drop it before the last connection of the
/// process to the database is closed.
#[derive(Debug)]
pub struct Image {
    main: Arc<MainFile>,
    wal: Arc<File>,
    witness: Arc<Witness>,
    frames: LastFrames,
    page_size: PageSize,
    page_count: PageCount,
    hash: DatabaseHash,
    hashes: HashTable,
    _alive: Alive,
}

/// Counts the images that live.
#[derive(Clone, Debug, Default)]
pub(super) struct Alive(Arc<()>);

impl Alive {
    /// Whether there is an image.
    pub(super) fn any(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// The files and the state that an image freezes.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) main: Arc<MainFile>,
    pub(super) wal: Arc<File>,
    pub(super) witness: Arc<Witness>,
    pub(super) page_size: PageSize,
    pub(super) alive: Alive,
}

impl Image {
    /// Freezes the published commit, whose pages have these hashes; on the owner's thread, and not
    /// while SQLite publishes another one.
    pub(super) fn freeze(
        shim_main: ffi::File,
        source: &Source,
        hashes: &PageHashes,
    ) -> Result<Self, Error> {
        let header = read_header(shim_main)?;
        let region = shim_main.region(0).map_err(failed("map the WAL-index"))?;
        let all_backfilled = region.word(BACKFILL_OFFSET) == header.frame_max;
        let frame_max = if all_backfilled { 0 } else { header.frame_max };
        let frames = LastFrames {
            pages: pages_of_frames(shim_main, frame_max)?,
            last: OnceLock::new(),
        };
        Ok(Self {
            main: Arc::clone(&source.main),
            wal: Arc::clone(&source.wal),
            witness: Arc::clone(&source.witness),
            frames,
            page_size: source.page_size,
            page_count: hashes.page_count(),
            hash: hashes.sum(),
            hashes: hashes.freeze(),
            _alive: source.alive.clone(),
        })
    }

    /// The size of each page.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many pages the database has.
    #[must_use]
    pub const fn page_count(&self) -> PageCount {
        self.page_count
    }

    /// The hash of the database.
    #[must_use]
    pub const fn hash(&self) -> DatabaseHash {
        self.hash
    }

    /// The hash of one page, as recorded; `None` beyond the page count, zero for the lock-byte
    /// page.
    #[must_use]
    pub fn page_hash(&self, page: PageNumber) -> Option<PageHash> {
        self.hashes.get(page.number() as usize - 1)
    }

    /// Whether the WAL has the page: all others are in the main file as of the last record.
    #[must_use]
    pub fn is_in_wal(&self, page: PageNumber) -> bool {
        self.frames.of(page).is_some()
    }

    /// Reads one page. The lock-byte page is all zeros.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, the page is damaged or lies beyond the page count, or `image`
    /// does not have the page size.
    pub fn read(&self, page: PageNumber, image: &mut [u8]) -> io::Result<()> {
        if !self.page_count.contains(page) || image.len() != self.page_size.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if page == self.page_size.lock_byte_page() {
            image.fill(0);
            return Ok(());
        }
        let (place, read) = match self.frames.of(page) {
            Some(frame) => {
                let offset = frame_offset(frame, self.page_size) + FRAME_HEADER_BYTES as u64;
                let read = self.wal.read_exact_at(image, offset);
                (Place::Frame { frame, page }, read)
            }
            None => {
                let read = self.main.read_exact_at(image, page.offset(self.page_size));
                (Place::Main(page), read)
            }
        };
        // While an image lives nobody writes to what it reads.
        let found = read.is_ok().then_some(&*image);
        if let Err(damage) = self.witness.examine(place, found) {
            self.witness.blame(damage);
            return Err(io::Error::other(damaged_text(&self.witness, damage)));
        }
        read
    }
}

/// The last frame of each page that the main file does not have yet.
///
/// Whoever freezes the database holds up its writes, so he only copies what the WAL-index says; the
/// first reader makes a map of it.
#[derive(Debug)]
struct LastFrames {
    /// The page in each frame, from frame 1 on.
    pages: Vec<u32>,
    last: OnceLock<HashMap<u32, u32>>,
}

impl LastFrames {
    fn of(&self, page: PageNumber) -> Option<u32> {
        let last = self.last.get_or_init(|| {
            // Later frames win.
            let frames = self.pages.iter().zip(1..);
            frames.map(|(page, frame)| (*page, frame)).collect()
        });
        last.get(&page.number()).copied()
    }
}

/// Reads the page numbers of all frames from the WAL-index.
fn pages_of_frames(main: ffi::File, frame_max: u32) -> Result<Vec<u32>, Error> {
    let mut pages = Vec::with_capacity(frame_max as usize);
    let mut first = 1;
    while first <= frame_max {
        let number = region_of_frame(first).region;
        let region = main.region(number).map_err(failed("map the WAL-index"))?;
        let entries = u32::from(index::entries_in(number));
        let last = frame_max.min(index::frames_before(number) + entries);
        pages.extend((first..=last).map(|frame| region.word(region_of_frame(frame).page_offset())));
        first = last + 1;
    }
    Ok(pages)
}
