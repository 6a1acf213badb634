//! What every page must hash to where it lies: in the main file, and in each frame of the WAL.
//!
//! SQLite has no checksum on a page of the main file, and looks at those of the WAL only when it
//! recovers. So every page that our connections read is compared with what was last written to
//! that very place, before SQLite sees it. What does not match is *damaged*: the read fails, the
//! place is remembered and reported, and whoever has a good image can [`mend`](Witness::mend) it.
//!
//! Two tables, because a place keeps its content while the database moves on: a page in the main
//! file is as of the last checkpoint that wrote it, a frame is as of the commit that wrote it. A
//! reader that SQLite lets read a place never meets a write to it (checkpoints write only pages
//! that every reader finds in the WAL; the WAL starts afresh only without readers), so the tables
//! need no versions. Whoever looks outside of a read transaction, as the scrub does, may meet one,
//! and looks again under the lock that all writes to the main file take.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::error::Error;
use super::hash_table::HashTable;
use super::page_hashes::PageHashes;
use super::start_lock::MainFile;
use crate::wal::format::{FRAME_HEADER_BYTES, WAL_HEADER_BYTES, frame_bytes, frame_offset};
use crate::wal::{PageHash, PageNumber, PageSize};

/// Where an image of a page lies.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Place {
    /// In a frame of the WAL, from 1.
    Frame {
        /// The number of the frame.
        frame: u32,
        /// The page in it.
        page: PageNumber,
    },
    /// In the main file.
    Main(PageNumber),
}

impl Place {
    /// The page.
    #[must_use]
    pub const fn page(self) -> PageNumber {
        match self {
            Self::Frame { page, .. } | Self::Main(page) => page,
        }
    }
}

/// An image that is not what was written to its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Damage {
    /// Where.
    pub place: Place,
    /// What the right image hashes to.
    pub expected: PageHash,
}

/// What can be said about a place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outlook {
    /// The last attempt to get a good image failed; there will be others.
    Bleak,
    /// A good image is being looked for.
    Mending,
    /// It is not known to be damaged.
    Sound,
}

/// The expected hashes of one database, and what was found not to match.
pub struct Witness {
    main_path: PathBuf,
    page_size: PageSize,
    expected: RwLock<Expected>,
    files: RwLock<Option<Files>>,
    /// Held by whoever writes to a place, across the write and the change of the table.
    writing: Mutex<()>,
    damaged: Mutex<BTreeMap<Place, Wound>>,
    notice: Notice,
    found: AtomicU64,
    mended: AtomicU64,
}

/// Called for each newly found damage; must not block, nor use the witness.
pub type Notice = Box<dyn Fn() + Send + Sync>;

/// Zero stands for "not known"; no page is refused for that.
struct Expected {
    main: HashTable,
    frames: Vec<(u32, PageHash)>,
}

struct Files {
    main: Arc<MainFile>,
    wal: Arc<File>,
}

#[derive(Clone, Copy)]
struct Wound {
    expected: PageHash,
    is_bleak: bool,
}

/// How far a scrub got.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Scrubbed {
    /// The page to go on with.
    pub next: u32,
    /// How many pages the main file has.
    pub pages: u32,
}

impl Witness {
    /// The witness of the database in a directory whose main file has everything, as when it is
    /// opened: these are the hashes of its pages.
    #[must_use]
    pub fn new(main_path: PathBuf, hashes: &PageHashes, notice: Notice) -> Self {
        Self {
            main_path,
            page_size: hashes.page_size(),
            expected: RwLock::new(Expected {
                main: hashes.freeze(),
                frames: Vec::new(),
            }),
            files: RwLock::new(None),
            writing: Mutex::new(()),
            damaged: Mutex::default(),
            notice,
            found: AtomicU64::new(0),
            mended: AtomicU64::new(0),
        }
    }

    /// The page size of the database.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many places were found damaged since the database was opened.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// How many of them have their right content again.
    #[must_use]
    pub fn mended(&self) -> u64 {
        self.mended.load(Ordering::Relaxed)
    }

    /// What is damaged now.
    #[must_use]
    pub fn damaged(&self) -> Vec<Damage> {
        let damaged = lock(&self.damaged);
        damaged
            .iter()
            .map(|(&place, wound)| Damage {
                place,
                expected: wound.expected,
            })
            .collect()
    }

    /// What can be said about a place.
    #[must_use]
    pub fn outlook(&self, place: Place) -> Outlook {
        match lock(&self.damaged).get(&place) {
            None => Outlook::Sound,
            Some(wound) if wound.is_bleak => Outlook::Bleak,
            Some(_) => Outlook::Mending,
        }
    }

    /// Notes that no good image of anything that is damaged now could be got.
    pub fn despair(&self) {
        for wound in lock(&self.damaged).values_mut() {
            wound.is_bleak = true;
        }
    }

    /// Names a place for people: page, file, and offset in it.
    #[must_use]
    pub fn describe(&self, place: Place) -> String {
        let name = self.main_path.display();
        match place {
            Place::Main(page) => {
                let offset = page.offset(self.page_size);
                format!("page {page} of {name} (offset {offset})")
            }
            Place::Frame { frame, page } => {
                let offset = frame_offset(frame, self.page_size) + FRAME_HEADER_BYTES as u64;
                format!("page {page} in {name}-wal (frame {frame}, offset {offset})")
            }
        }
    }

    /// Whether the WAL holds an image of this page, which the next checkpoint moves to the main
    /// file.
    #[must_use]
    pub fn is_in_wal(&self, page: PageNumber) -> bool {
        let expected = self.expected();
        expected
            .frames
            .iter()
            .any(|(other, _)| *other == page.number())
    }

    /// Which of these pages are to be found nowhere with these hashes.
    #[must_use]
    pub fn lacking(&self, pages: &[(PageNumber, PageHash)]) -> Vec<PageNumber> {
        let expected = self.expected();
        let frames: HashSet<(u32, u128)> = expected
            .frames
            .iter()
            .map(|(page, hash)| (*page, hash.0))
            .collect();
        let is_lacking = |(page, hash): &&(PageNumber, PageHash)| {
            expected.main.get(page.number() as usize - 1) != Some(*hash)
                && !frames.contains(&(page.number(), hash.0))
        };
        let lacking = pages.iter().filter(is_lacking);
        lacking.map(|(page, _)| *page).collect()
    }

    /// The hash of each page as it was committed last.
    #[must_use]
    pub fn current(&self) -> Vec<(PageNumber, PageHash)> {
        let expected = self.expected();
        let main = (1..).zip(expected.main.iter_from(0));
        let mut current: BTreeMap<u32, PageHash> = main.collect();
        current.extend(expected.frames.iter().copied());
        let known = current
            .into_iter()
            .filter(|(_, hash)| *hash != PageHash::default());
        known
            .filter_map(|(number, hash)| Some((PageNumber::new(number)?, hash)))
            .collect()
    }

    /// An image of this page with this hash, wherever it lies. Blocks.
    #[must_use]
    pub fn find(&self, page: PageNumber, hash: PageHash) -> Option<Vec<u8>> {
        let mut places = Vec::new();
        {
            let expected = self.expected();
            if expected.main.get(page.number() as usize - 1) == Some(hash) {
                places.push(Place::Main(page));
            }
            for (frame, entry) in (1..).zip(&expected.frames) {
                if *entry == (page.number(), hash) {
                    places.push(Place::Frame { frame, page });
                }
            }
        }
        let mut image = vec![0; self.page_size.len()];
        places.into_iter().rev().find_map(|place| {
            self.read(place, &mut image).ok()?;
            (PageHash::of(page, &image) == hash).then(|| image.clone())
        })
    }

    /// Compares up to `pages` pages of the main file, from `from` on, with their hashes; what does
    /// not match is damaged from then on. Blocks.
    #[must_use]
    pub fn scrub(&self, from: u32, pages: u32) -> Scrubbed {
        let total = u32::try_from(self.expected().main.len()).expect("page numbers are 32 bits");
        let upto = from.saturating_add(pages).min(total.saturating_add(1));
        let mut image = vec![0; self.page_size.len()];
        for number in from..upto {
            let page = PageNumber::new(number).expect("a scrub begins at page 1");
            let place = Place::Main(page);
            if page != self.page_size.lock_byte_page() && !self.is_sound(place, &mut image) {
                // A checkpoint may have been writing it.
                self.recheck(place);
            }
        }
        Scrubbed {
            next: upto.max(from),
            pages: total,
        }
    }

    /// Looks at a place again, while nobody writes: it is damaged from then on, or not any more.
    /// Blocks.
    pub fn recheck(&self, place: Place) -> bool {
        let _writing = self.writing();
        let mut image = vec![0; self.page_size.len()];
        let is_sound = self.is_sound(place, &mut image);
        match self.expectation(place) {
            Some(expected) if !is_sound => self.blame(Damage { place, expected }),
            _ => self.heal(|other| *other == place),
        }
        is_sound
    }

    /// Writes a good image to its damaged place, unless something else belongs there by now, and
    /// makes it durable. Whether it was written. Blocks.
    ///
    /// # Errors
    ///
    /// `Io`: the disk cannot be trusted any more.
    pub fn mend(&self, damage: Damage, image: &[u8]) -> Result<bool, Error> {
        let Damage { place, expected } = damage;
        if image.len() != self.page_size.len() || PageHash::of(place.page(), image) != expected {
            return Ok(false);
        }
        let _writing = self.writing();
        if self.expectation(place) != Some(expected) {
            return Ok(false);
        }
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let Some(files) = files.as_ref() else {
            return Ok(false);
        };
        let offset = self.offset(place);
        match place {
            Place::Main(_) => files
                .main
                .write_all_at(image, offset)
                .and_then(|()| files.main.sync_data()),
            // The checkpoint record may count on it.
            Place::Frame { .. } => files
                .wal
                .write_all_at(image, offset)
                .and_then(|()| files.wal.sync_data()),
        }
        .map_err(|error| Error::io("mend", &self.main_path, error))?;
        self.heal(|other| *other == place);
        Ok(true)
    }

    /// Notes a place as damaged; says so, once.
    pub fn blame(&self, damage: Damage) {
        let Damage { place, expected } = damage;
        let wound = Wound {
            expected,
            is_bleak: false,
        };
        let is_new = {
            let mut damaged = lock(&self.damaged);
            match damaged.get_mut(&place) {
                Some(known) if known.expected == expected => false,
                Some(known) => {
                    *known = wound;
                    false
                }
                None => damaged.insert(place, wound).is_none(),
            }
        };
        if is_new {
            self.found.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                page = place.page().number(),
                "damaged: {} is not what was written there; it is not served",
                self.describe(place)
            );
            (self.notice)();
        }
    }

    /// The files from now on; until then nothing can be found or mended.
    pub(super) fn attach(self: &Arc<Self>, main: Arc<MainFile>, wal: Arc<File>) -> Attached {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        *files = Some(Files { main, wal });
        Attached(Arc::clone(self))
    }

    /// The place that a read of SQLite in the main file asks for, if its content is known.
    ///
    /// Of the first page SQLite also reads the header alone, outside of any transaction; it takes
    /// only the page size from there. Parts of other pages are the ends of long values.
    pub(super) fn place_in_main(&self, offset: u64, bytes: usize) -> Option<Place> {
        let size = self.page_size.len() as u64;
        let (number, within) = (offset / size, offset % size);
        let page = PageNumber::new(u32::try_from(number).ok()?.checked_add(1)?)?;
        let is_part = bytes as u64 != size;
        if within + bytes as u64 > size || (is_part && page == PageNumber::FIRST) {
            return None;
        }
        let place = Place::Main(page);
        self.expectation(place).map(|_| place)
    }

    /// The same for the WAL.
    pub(super) fn place_in_wal(&self, offset: u64, bytes: usize) -> Option<Place> {
        let frame = offset.checked_sub(WAL_HEADER_BYTES as u64)? / frame_bytes(self.page_size);
        let frame = u32::try_from(frame).ok()?.checked_add(1)?;
        let begin = frame_offset(frame, self.page_size) + FRAME_HEADER_BYTES as u64;
        if bytes != self.page_size.len() || offset != begin {
            return None;
        }
        let (page, _) = *self.expected().frames.get(frame as usize - 1)?;
        let page = PageNumber::new(page)?;
        Some(Place::Frame { frame, page })
    }

    /// `Err` if this is not the image that belongs to a place; `None`: it could not be read.
    pub(super) fn examine(&self, place: Place, image: Option<&[u8]>) -> Result<(), Damage> {
        match self.expectation(place) {
            Some(expected)
                if image.map(|image| PageHash::of(place.page(), image)) != Some(expected) =>
            {
                Err(Damage { place, expected })
            }
            _ => Ok(()),
        }
    }

    /// Has a checkpoint write to the main file.
    pub(super) fn write_main<T>(
        &self,
        offset: u64,
        bytes: &[u8],
        write: impl FnOnce() -> Result<(), T>,
    ) -> Result<(), T> {
        let _writing = self.writing();
        write()?;
        let size = self.page_size.len();
        let first = offset / size as u64;
        for (index, image) in (first..).zip(bytes.chunks(size)) {
            let page = u32::try_from(index + 1).ok().and_then(PageNumber::new);
            let Some(page) = page else { return Ok(()) };
            // What is no whole page is not known any more.
            let is_whole = image.len() == size && offset.is_multiple_of(size as u64);
            let hash = if is_whole {
                PageHash::of(page, image)
            } else {
                PageHash::default()
            };
            let mut expected = self.expected_mut();
            let index = page.number() as usize - 1;
            if expected.main.len() <= index {
                expected.main.resize(index + 1);
            }
            expected.main.set(index, hash);
            drop(expected);
            self.heal(|place| *place == Place::Main(page));
        }
        Ok(())
    }

    /// Has a checkpoint cut the main file down.
    pub(super) fn cut_main(&self, bytes: u64) {
        let pages = usize::try_from(bytes / self.page_size.len() as u64).unwrap_or(usize::MAX);
        let mut expected = self.expected_mut();
        if pages < expected.main.len() {
            expected.main.resize(pages);
        }
        drop(expected);
        let is_cut = |page: PageNumber| page.number() as usize > pages;
        self.heal(|place| matches!(place, Place::Main(page) if is_cut(*page)));
    }

    /// The WAL is about to be written from this frame on; what was there is of no use to anybody.
    pub(super) fn cut_frames(&self, first: u32) {
        let _writing = self.writing();
        self.expected_mut()
            .frames
            .truncate((first as usize).saturating_sub(1));
        self.heal(|place| matches!(place, Place::Frame { frame, .. } if *frame >= first));
    }

    /// What was written to frames, before anybody is told of them.
    pub(super) fn frames_written(
        &self,
        written: impl Iterator<Item = (u32, PageNumber, PageHash)>,
    ) {
        let mut expected = self.expected_mut();
        for (frame, page, hash) in written {
            let index = frame as usize - 1;
            if expected.frames.len() <= index {
                expected.frames.resize(index + 1, (0, PageHash::default()));
            }
            expected.frames[index] = (page.number(), hash);
        }
    }

    fn is_sound(&self, place: Place, image: &mut [u8]) -> bool {
        match self.read(place, image) {
            Ok(()) => self.examine(place, Some(image)).is_ok(),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => true,
            Err(_) => self.examine(place, None).is_ok(),
        }
    }

    fn read(&self, place: Place, image: &mut [u8]) -> io::Result<()> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let files = files.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        match place {
            Place::Main(_) => files.main.read_exact_at(image, self.offset(place)),
            Place::Frame { .. } => files.wal.read_exact_at(image, self.offset(place)),
        }
    }

    fn offset(&self, place: Place) -> u64 {
        match place {
            Place::Main(page) => page.offset(self.page_size),
            Place::Frame { frame, .. } => {
                frame_offset(frame, self.page_size) + FRAME_HEADER_BYTES as u64
            }
        }
    }

    /// What belongs to a place; `None` if that is not known.
    fn expectation(&self, place: Place) -> Option<PageHash> {
        let expected = self.expected();
        let hash = match place {
            Place::Main(page) => expected.main.get(page.number() as usize - 1)?,
            Place::Frame { frame, page } => {
                let (number, hash) = *expected.frames.get(frame as usize - 1)?;
                if number != page.number() {
                    return None;
                }
                hash
            }
        };
        (hash != PageHash::default()).then_some(hash)
    }

    /// Takes places off the list of the damaged.
    fn heal(&self, is_healed: impl Fn(&Place) -> bool) {
        let mut damaged = lock(&self.damaged);
        if damaged.is_empty() {
            return;
        }
        let before = damaged.len();
        damaged.retain(|place, _| {
            if is_healed(place) {
                tracing::info!("mended: {} is as it should be again", self.describe(*place));
            }
            !is_healed(place)
        });
        let healed = (before - damaged.len()) as u64;
        self.mended.fetch_add(healed, Ordering::Relaxed);
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        lock(&self.writing)
    }

    fn expected(&self) -> RwLockReadGuard<'_, Expected> {
        self.expected.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected_mut(&self) -> RwLockWriteGuard<'_, Expected> {
        self.expected
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Witness")
            .field("main_path", &self.main_path)
            .finish_non_exhaustive()
    }
}

/// Takes the files away when the database is closed: the descriptor of the main file must not
/// outlive it.
pub(super) struct Attached(Arc<Witness>);

impl Attached {
    pub(super) const fn witness(&self) -> &Arc<Witness> {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut files = self.0.files.write().unwrap_or_else(PoisonError::into_inner);
        *files = None;
    }
}

/// The text for a client whose statement needs a page that is damaged.
#[must_use]
pub fn damaged_text(witness: &Witness, damage: Damage) -> String {
    let what = witness.describe(damage.place);
    format!("{what} is damaged on this node and is not served")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
