//! One database of the `sqlite` layer with a gate that a test controls.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use wallaby::sqlite::{
    AutoVacuum, Backfill, Captured, Change, Checkpoint, Database, DatabaseOptions, Error, Gate,
    PageHashes, Record, RecordDraft, Redo, StartLock, Verdict, create, genesis_page,
};
use wallaby::wal::{
    ClusterId, Delta, DeltaHeader, DeltaWriter, Encoding, PageNumber, PageSize, Part, Position,
};

/// A position to record.
#[must_use]
pub const fn position(index: u64) -> Position {
    Position {
        term: 1,
        node: 1,
        index,
    }
}

/// A directory for a database; in memory where the system has such a place.
#[must_use]
pub fn data_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir()
        && let Ok(dir) = tempfile::tempdir_in(memory)
    {
        return dir;
    }
    tempfile::tempdir().expect("a temporary directory")
}

/// What the gate was asked and what it is to answer.
#[derive(Clone, Default)]
pub struct Decisions(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    discard: bool,
    patches: bool,
    asked: usize,
    released: Vec<Bytes>,
}

impl Decisions {
    /// Lets the gate answer "discard" from now on, or no longer.
    pub fn discard(&self, discard: bool) {
        self.0.lock().expect("no panic in the gate").discard = discard;
    }

    /// Lets it store what changed in pages, and not the pages, from now on or no longer.
    pub fn patches(&self, patches: bool) {
        self.0.lock().expect("no panic in the gate").patches = patches;
    }

    /// How many transactions have arrived.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.0.lock().expect("no panic in the gate").asked
    }

    /// The deltas released since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.0.lock().expect("no panic in the gate").released)
    }
}

impl Gate for Decisions {
    fn commit(&mut self, transaction: &Captured<'_>) -> Verdict {
        let mut state = self.0.lock().expect("no panic in the gate");
        state.asked += 1;
        if state.discard {
            return Verdict::Discard;
        }
        let encoded = if state.patches {
            let patches = transaction.patches(header(transaction));
            patches.expect("the captured pages")
        } else {
            encode(transaction)
        };
        state.released.push(encoded);
        Verdict::Release
    }
}

/// The delta of a transaction, in whole pages.
///
/// # Panics
///
/// If its pages cannot be read or are not what they are promised to be.
#[must_use]
pub fn encode(transaction: &Captured<'_>) -> Bytes {
    let mut writer = DeltaWriter::new(header(transaction), Encoding::Raw);
    let mut image = vec![0; transaction.page_size().len()];
    let pages = transaction.page_numbers();
    assert!(!pages.is_empty() && pages.is_sorted_by(|a, b| a < b));
    for (index, page) in pages.iter().enumerate() {
        transaction
            .read(index, &mut image)
            .expect("a captured page");
        writer.push(*page, &image);
    }
    writer.finish()
}

fn header(transaction: &Captured<'_>) -> DeltaHeader {
    DeltaHeader {
        cluster: ClusterId(1),
        origin: 1,
        epoch: 1,
        sequence: 1,
        base: Some(position(1)),
        page_size: transaction.page_size(),
        page_count: transaction.page_count(),
        hash_before: transaction.hash_before(),
        hash_after: transaction.hash_after(),
        part: Part::WHOLE,
    }
}

/// A database and its gate.
pub struct Replica {
    /// The database.
    pub database: Database,
    /// What its gate was asked, and is to answer.
    pub decisions: Decisions,
    path: PathBuf,
}

impl Replica {
    /// Makes an empty database in `dir`.
    ///
    /// # Panics
    ///
    /// If that fails.
    #[must_use]
    pub fn create(
        dir: &Path,
        page_size: PageSize,
        auto_vacuum: AutoVacuum,
        options: DatabaseOptions,
    ) -> Self {
        let lock = StartLock::acquire(dir, Duration::ZERO).expect("a lock");
        let page = genesis_page(page_size, auto_vacuum);
        let at = position(1);
        let hashes = create(&lock, &page, at, Some(at), b"").expect("a database");
        Self::open(lock, hashes, options)
    }

    /// Opens what redo has put in order.
    ///
    /// # Panics
    ///
    /// If that fails.
    #[must_use]
    pub fn open(lock: StartLock, hashes: PageHashes, options: DatabaseOptions) -> Self {
        let path = lock.path().to_owned();
        let decisions = Decisions::default();
        let gate = Box::new(decisions.clone());
        Self {
            database: Database::open(options, lock, hashes, gate).expect("an open database"),
            decisions,
            path,
        }
    }

    /// The writing connection.
    #[must_use]
    pub fn sql(&self) -> &Connection {
        self.database.connection()
    }

    /// The main file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A plain connection on the default VFS that can only read.
    ///
    /// # Panics
    ///
    /// If it cannot be opened.
    #[must_use]
    pub fn reader(&self) -> Connection {
        reader(&self.path)
    }

    /// Injects a delta.
    ///
    /// # Errors
    ///
    /// Those of [`Database::inject`].
    pub fn inject(&mut self, delta: &Delta) -> Result<(), Error> {
        let images = {
            let published = self.database.published()?;
            images(delta, |page, image| published.read(page, image))?
        };
        with_images(delta, images, |change| self.database.inject(change))
    }

    /// Makes a record durable that counts on the WAL as it is, so that it may be moved.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn count_on_wal(&mut self, index: u64) {
        let at = position(index);
        let draft = self.database.draft_overlay(at, Some(at), b"");
        draft.and_then(RecordDraft::save).expect("a record");
    }

    /// A checkpoint with its records, under the position of the one before.
    ///
    /// # Errors
    ///
    /// Those of [`Database::checkpoint`].
    ///
    /// # Panics
    ///
    /// If a record cannot be saved.
    pub fn checkpoint(&mut self, kind: Checkpoint) -> Result<Backfill, Error> {
        let dir = self.path.parent().expect("a file is in a directory");
        let record = Record::load(dir)?.expect("a record");
        self.count_on_wal(record.applied.index);
        let backfill = self.database.checkpoint(kind)?;
        if !backfill.complete {
            return Ok(backfill);
        }
        let (applied, data) = (record.applied, record.data);
        self.database
            .save_record(applied, data, &record.membership)?;
        self.database.checkpoint(kind)
    }

    /// All pages, as readers see them.
    ///
    /// # Panics
    ///
    /// If they cannot be read.
    pub fn pages(&mut self) -> Vec<Vec<u8>> {
        let image = self.database.image().expect("an image");
        (1..=image.page_count().0)
            .map(|number| {
                let mut page = vec![0; image.page_size().len()];
                let number = PageNumber::new(number).expect("from 1 on");
                image.read(number, &mut page).expect("a page");
                page
            })
            .collect()
    }
}

/// A plain connection on the default VFS that can only read.
///
/// # Panics
///
/// If it cannot be opened.
#[must_use]
pub fn reader(path: &Path) -> Connection {
    let flags =
        rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).expect("a connection");
    connection
        .execute_batch("PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0;")
        .expect("settings");
    connection
}

/// A page.
type Image<'a> = (PageNumber, Cow<'a, [u8]>);

/// The pages of a delta.
///
/// # Errors
///
/// Those of `old`, and of a delta that does not fit on what it gives.
pub fn images(
    delta: &Delta,
    old: impl FnMut(PageNumber, &mut [u8]) -> Result<(), Error>,
) -> Result<Vec<Image<'static>>, Error> {
    let owned = |(page, image): Image<'_>| (page, Cow::Owned(image.into_owned()));
    let images: Result<Vec<_>, Error> = delta.pages(old).map(|page| page.map(owned)).collect();
    let mut images = images?;
    images.sort_unstable_by_key(|(page, _)| *page);
    Ok(images)
}

/// Hands a delta of whole pages over in the form of a change.
///
/// # Panics
///
/// If it has patches, or its pages cannot be read.
pub fn with_change<T>(delta: &Delta, f: impl FnOnce(Change<'_, '_>) -> T) -> T {
    assert!(delta.is_whole(), "patches");
    let images: Result<Vec<_>, _> = delta.whole_pages().collect();
    with_images(delta, images.expect("sound pages"), f)
}

/// Hands a delta that has these pages over in the form of a change.
pub fn with_images<T>(
    delta: &Delta,
    images: Vec<Image<'_>>,
    f: impl FnOnce(Change<'_, '_>) -> T,
) -> T {
    let header = delta.header();
    let mut pages = images.into_iter().map(Ok);
    f(Change {
        page_count: header.page_count,
        hash_before: header.hash_before,
        hash_after: header.hash_after,
        pages: &mut pages,
    })
}

/// Redo from the record in `dir`, without opening the database. Each delta counts as an entry.
///
/// # Errors
///
/// Those of [`Redo`].
///
/// # Panics
///
/// If there is no record.
pub fn redo(dir: &Path, deltas: &[Delta]) -> Result<(StartLock, PageHashes), Error> {
    let record = Record::load(dir)?.expect("a record");
    let lock = StartLock::acquire(dir, Duration::ZERO)?;
    let mut redo = Redo::begin(lock, &record)?;
    for delta in deltas {
        redo.expect(delta.header().hash_before)?;
        let images = images(delta, |page, image| redo.read_sound(page, image))?;
        with_images(delta, images, |change| redo.apply(change))?;
    }
    let at = position(record.applied.index + deltas.len() as u64);
    redo.finish(at, Some(at), &record.membership)
}

/// Runs SQL on a leader and returns the deltas.
///
/// # Panics
///
/// When SQLite refuses it.
pub fn run(leader: &Replica, sql: &str) -> Vec<Delta> {
    leader.sql().execute_batch(sql).expect("the leader runs it");
    let released = leader.decisions.take().into_iter();
    let decode = |bytes| Delta::decode(bytes).expect("the leader encoded it");
    released.map(decode).collect()
}

/// Runs SQL on a leader, and injects what it changed into a follower.
///
/// # Panics
///
/// When SQLite or the follower refuses it.
pub fn both(leader: &Replica, follower: &mut Replica, sql: &str) {
    for delta in run(leader, sql) {
        follower.inject(&delta).expect("the follower takes it");
    }
}
