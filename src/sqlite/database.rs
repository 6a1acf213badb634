//! The database of this node, open for writing: by SQL on one connection, and by injected changes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionState};

use super::backfill;
use super::capture::{Frames, Limits};
use super::checkpoint::{self, Backfill, Checkpoint};
use super::draft::{Flusher, RecordDraft};
use super::error::Error;
use super::facts;
use super::heap::Exempt;
use super::image::{Alive, Image, Source};
use super::inject::{self, Change, failed, read_header};
use super::overlay::Overlay;
use super::page_hashes::PageHashes;
use super::published::Published;
use super::record::Record;
use super::shim::{Gate, Owner};
use super::start_lock::StartLock;
use super::vfs;
use super::witness::{Attached, Damage, Witness};
use crate::wal::format::frame_offset;
use crate::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize, Position};

/// The oldest SQLite that will do: older ones have the WAL-reset defect (fixed in 3.51.3), and the
/// order of calls that the shim relies on was read in this one.
const VERSION_MIN: i32 = 3_054_000;

/// How long opening waits for another process that looks at the file in the same instant.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// Checks the version of the SQLite that was linked.
///
/// # Errors
///
/// [`Error::Version`].
pub fn assert_version() -> Result<(), Error> {
    if rusqlite::version_number() < VERSION_MIN {
        return Err(Error::Version {
            found: rusqlite::version().to_owned(),
        });
    }
    Ok(())
}

/// Limits of an open database.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseOptions {
    /// A transaction with more bytes of frames than this goes to a spool file instead of memory.
    pub spool_bytes_max: usize,
    /// A transaction with more bytes of frames than this fails with `SQLITE_FULL`.
    pub transaction_bytes_max: u64,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self {
            spool_bytes_max: 64 * 1024 * 1024,
            transaction_bytes_max: 4 * 1024 * 1024 * 1024,
        }
    }
}

/// The database, and the only right to write to it. Used by one thread at a time.
pub struct Database {
    // Dropped in this order: nothing uses the shim's files after the connection closed them, and
    // the descriptor in the lock outlives the locks of the connection.
    connection: Connection,
    shim: vfs::Handle,
    attached: Attached,
    lock: StartLock,
    page_size: PageSize,
}

impl Database {
    /// Pragmas of the connection that writes, by name.
    #[must_use]
    pub fn pragmas(&self) -> Vec<(String, String)> {
        facts::pragmas(&self.connection)
    }

    /// Opens the database that [`Redo`](super::Redo), [`Installation`](super::Installation) or
    /// [`create`](super::create) has put in order, and lets other processes read it.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the file is not the database that the hashes are of; `Sqlite`, `Io`, `Vfs`.
    pub fn open(
        options: DatabaseOptions,
        lock: StartLock,
        hashes: PageHashes,
        gate: Box<dyn Gate>,
    ) -> Result<Self, Error> {
        let witness = Witness::new(lock.path().to_owned(), &hashes, Box::new(|| ()));
        Self::open_watched(options, lock, hashes, gate, &Arc::new(witness))
    }

    /// The same; the witness of these hashes tells of pages that are damaged, also if opening fails
    /// because of one.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_watched(
        options: DatabaseOptions,
        lock: StartLock,
        hashes: PageHashes,
        gate: Box<dyn Gate>,
        witness: &Arc<Witness>,
    ) -> Result<Self, Error> {
        assert_version()?;
        vfs::register()?;
        let (page_size, page_count) = (hashes.page_size(), hashes.page_count());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags_and_vfs(lock.path(), flags, vfs::NAME)?;
        let shim = vfs::shim_of(&connection)?;
        shim.trust_only(witness);
        let limits = Limits {
            dir: lock.dir().to_owned(),
            spool_bytes_max: options.spool_bytes_max,
            transaction_bytes_max: options.transaction_bytes_max,
        };
        let frames = Frames::new(page_size, limits);
        // SQLite opens the file at its first read. With the WAL's locks taken before the start lock
        // is given back, there is no moment in which another process could write.
        shim.own(Owner::new(frames, hashes, gate))
            .map_err(failed("lock the WAL-index"))?;
        lock.release()?;
        connection.busy_timeout(OPEN_WAIT)?;
        configure(&connection, &lock)?;
        check_pages(&connection, &lock, page_size, page_count)?;
        // From here on nobody can be in the way; what is locked stays locked.
        connection.busy_timeout(Duration::ZERO)?;
        let wal = Arc::new(open_wal(&lock.wal_path())?);
        lock.sync_names()?;
        let attached = witness.attach(Arc::clone(lock.file()), Arc::clone(&wal));
        let source = Source {
            main: Arc::clone(lock.file()),
            wal,
            witness: Arc::clone(witness),
            page_size,
            alive: Alive::default(),
        };
        shim.with_owner(|owner| owner.source = Some(source));
        Ok(Self {
            connection,
            shim,
            attached,
            lock,
            page_size,
        })
    }

    /// The writing connection. Each of its commits goes through the gate.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The same, for SQLite's backup interface, which wants it for itself.
    #[must_use]
    pub const fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Makes a change that was executed elsewhere. All readers see it at once.
    ///
    /// Nothing is published before the hash afterwards is known to be right. Memory grows by a few
    /// bytes per page.
    ///
    /// # Errors
    ///
    /// `HashMismatch`, `Change` and `Delta` leave the database as it was, and usable; after `Io`
    /// and `Vfs` it must be closed and redone. `InTransaction` if the writing connection is at
    /// work.
    pub fn inject(&mut self, change: Change<'_, '_>) -> Result<(), Error> {
        let _exempt = Exempt::new();
        self.expect_rest()?;
        inject::inject(&self.shim, change)
    }

    /// The pages as they are published now.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn published(&self) -> Result<Published<'_>, Error> {
        Published::now(&self.shim, self.page_size, self.page_count())
    }

    /// The hash of the whole database.
    #[must_use]
    pub fn hash(&self) -> DatabaseHash {
        self.shim.with_owner(|owner| owner.hashes.sum())
    }

    /// How many pages the database has.
    #[must_use]
    pub fn page_count(&self) -> PageCount {
        self.shim.with_owner(|owner| owner.hashes.page_count())
    }

    /// The size of each page.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// A copy of the hashes of all pages: 16 bytes for each.
    #[must_use]
    pub fn page_hashes(&self) -> PageHashes {
        self.shim.with_owner(|owner| owner.hashes.clone())
    }

    /// Reads all pages, and corrects the hashes kept in memory where they are not those of the
    /// pages. Whether the database hash is the expected one then; if not, nothing is corrected.
    ///
    /// # Errors
    ///
    /// `Io`, `Vfs`, `InTransaction`.
    pub fn rehash(&mut self, expected: DatabaseHash) -> Result<bool, Error> {
        let image = self.image()?;
        let mut bytes = vec![0; self.page_size.len()];
        let (mut wrong, mut sum) = (Vec::new(), DatabaseHash::default());
        for number in 1..=image.page_count().0 {
            let page = PageNumber::new(number).expect("from 1 on");
            if page == self.page_size.lock_byte_page() {
                continue;
            }
            image
                .read(page, &mut bytes)
                .map_err(|error| Error::io("read", self.lock.path(), error))?;
            let hash = PageHash::of(page, &bytes);
            sum = sum.with(hash);
            if self.shim.with_owner(|owner| owner.hashes.get(page)) != Some(hash) {
                wrong.push((page, hash));
            }
        }
        if sum != expected {
            return Ok(false);
        }
        for (page, hash) in wrong {
            tracing::error!(page = page.number(), "its hash in memory was wrong");
            self.shim
                .with_owner(|owner| owner.hashes.replace(page, hash));
        }
        self.shim.with_owner(|owner| owner.hashes.recompute_sum());
        Ok(true)
    }

    /// Knows what every page must be.
    #[must_use]
    pub const fn witness(&self) -> &Arc<Witness> {
        self.attached.witness()
    }

    /// The damage that the writing connection met first since this was asked last. Until it is
    /// asked, nothing is committed.
    #[must_use]
    pub fn take_damage(&self) -> Option<Damage> {
        self.shim.take_damage()
    }

    /// Whether damaged pages may be read, for a transaction that replaces all of them.
    pub fn be_lenient(&self, is_lenient: bool) {
        self.shim.be_lenient(is_lenient);
    }

    /// Moves WAL content into the main file, all of which a durable record must count on. The WAL
    /// starts afresh only when one counts on it no more. Does nothing while an [`Image`] lives.
    ///
    /// # Errors
    ///
    /// `NotRecorded`; `Sqlite`, `Vfs`; `InTransaction`.
    pub fn checkpoint(&mut self, kind: Checkpoint) -> Result<Backfill, Error> {
        let _exempt = Exempt::new();
        self.expect_rest()?;
        if self.is_frozen() {
            return self.held_back();
        }
        let now = self.backfilled()?;
        if !now.complete && self.reach()? < now.wal_frames {
            return Err(Error::NotRecorded);
        }
        let kind = if self.shim.needs_wal() {
            kind.without_restart()
        } else {
            kind
        };
        checkpoint::run(&self.connection, self.shim.main, kind)
    }

    /// Up to which frame of the WAL the durable record counts on it; 0: on none.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn reach(&self) -> Result<u32, Error> {
        let header = read_header(self.shim.main)?;
        let reach = |owner: &mut Owner| owner.standing.reach(&header);
        Ok(self.shim.with_owner(reach).min(header.frame_max))
    }

    /// Moves at most so many frames of the WAL into the main file, none beyond `upto` or beyond the
    /// [`reach`](Self::reach) of the record, and never the last one: that is left to
    /// [`checkpoint`](Self::checkpoint). Waits for nobody. Does nothing while an [`Image`] lives.
    ///
    /// # Errors
    ///
    /// As [`checkpoint`](Self::checkpoint).
    pub fn backfill(&mut self, upto: u32, frames_max: u32) -> Result<Backfill, Error> {
        let _exempt = Exempt::new();
        self.expect_rest()?;
        if self.is_frozen() {
            return self.held_back();
        }
        let upto = upto.min(self.reach()?);
        backfill::run(&self.shim, self.page_size, upto, frames_max)
    }

    fn held_back(&self) -> Result<Backfill, Error> {
        Ok(Backfill {
            complete: false,
            is_held_back: true,
            ..Backfill::now(self.shim.main)?
        })
    }

    /// Records durably that the main file contains everything up to `applied`, and that `data` is
    /// the last data entry. After a complete checkpoint, before any other change.
    ///
    /// # Errors
    ///
    /// `NotCheckpointed`, `Io`.
    pub fn save_record(
        &mut self,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<(), Error> {
        self.draft_record(applied, data, membership)?.save()
    }

    /// The same in two steps: the draft is made here, and saved on any thread. Changes and further
    /// checkpoints need not wait for that.
    ///
    /// # Errors
    ///
    /// `NotCheckpointed`.
    pub fn draft_record(
        &mut self,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<RecordDraft, Error> {
        if !self.backfilled()?.complete {
            return Err(Error::NotCheckpointed);
        }
        Ok(self.draft(applied, data, membership, None))
    }

    /// A record that counts on all of the WAL as it is now: once it is saved, this may be moved.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn draft_overlay(
        &mut self,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<RecordDraft, Error> {
        if self.backfilled()?.complete {
            return self.draft_record(applied, data, membership);
        }
        let overlay = Overlay::of(&read_header(self.shim.main)?);
        let wal = self.with_source(|source| Arc::clone(&source.wal));
        Ok(self.draft(applied, data, membership, Some((wal, overlay))))
    }

    fn draft(
        &self,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
        overlay: Option<(Arc<File>, Overlay)>,
    ) -> RecordDraft {
        let (hashes, standing) = self.shim.with_owner(|owner| {
            let standing = Arc::clone(&owner.standing);
            (owner.hashes.draft(), standing)
        });
        RecordDraft {
            lock: self.lock.share(),
            hashes,
            applied,
            data,
            membership: membership.to_vec(),
            overlay,
            standing,
        }
    }

    /// Something that makes durable what was moved into the main file, on any thread.
    #[must_use]
    pub fn flusher(&self) -> Flusher {
        Flusher(self.lock.share())
    }

    /// Whether an [`Image`] lives.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.with_source(|source| source.alive.any())
    }

    /// How far the checkpoints before have got.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn backfilled(&self) -> Result<Backfill, Error> {
        Backfill::now(self.shim.main)
    }

    /// How many bytes of the WAL are in use.
    ///
    /// # Errors
    ///
    /// `Vfs`.
    pub fn wal_bytes(&self) -> Result<u64, Error> {
        Ok(match Backfill::now(self.shim.main)?.wal_frames {
            0 => 0,
            frames => frame_offset(frames.saturating_add(1), self.page_size),
        })
    }

    /// Freezes the current commit.
    ///
    /// # Errors
    ///
    /// `Vfs`; `InTransaction`.
    pub fn image(&self) -> Result<Image, Error> {
        self.expect_rest()?;
        self.shim
            .with_owner(|owner| Image::freeze(self.shim.main, source_of(owner), &owner.hashes))
    }

    fn with_source<T>(&self, f: impl FnOnce(&Source) -> T) -> T {
        self.shim.with_owner(|owner| f(source_of(owner)))
    }

    /// Closes the writing connection, and notes in the checkpoint record that it did. The WAL
    /// stays; the next start makes nothing of it.
    ///
    /// Close the readers of this process before, and drop the images: the descriptor of the main
    /// file that goes with them would take the readers' locks along.
    ///
    /// # Errors
    ///
    /// `Sqlite`, if a statement is still in use; `Io` and others, if the record cannot be written.
    pub fn close(self) -> Result<(), Error> {
        let Self {
            connection,
            lock,
            attached,
            ..
        } = self;
        drop(attached);
        connection.close().map_err(|(_, error)| error)?;
        Record::close(&lock)
    }

    /// The injector and checkpoints work below SQLite, and would pull the WAL away under a
    /// statement.
    fn expect_rest(&self) -> Result<(), Error> {
        match self.connection.transaction_state(Some(c"main"))? {
            TransactionState::None => Ok(()),
            _ => Err(Error::InTransaction),
        }
    }
}

fn source_of(owner: &Owner) -> &Source {
    let source = owner.source.as_ref();
    source.expect("set when the database was opened")
}

/// Settings on which the capture depends; the authorizer keeps others from changing them.
fn configure(connection: &Connection, lock: &StartLock) -> Result<(), Error> {
    let mode: String = connection.query_row("PRAGMA journal_mode", (), |row| row.get(0))?;
    if mode != "wal" {
        return Err(Error::corrupt(
            "the database is not in WAL mode",
            lock.path(),
            18,
        ));
    }
    // Below FULL, SQLite publishes a commit without xSync: without asking anybody.
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;")?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", (), |_| Ok(()))?;
    Ok(())
}

/// Checks that the file has the size of the database that it should be.
fn check_pages(
    connection: &Connection,
    lock: &StartLock,
    page_size: PageSize,
    page_count: PageCount,
) -> Result<(), Error> {
    let size: u32 = connection.query_row("PRAGMA page_size", (), |row| row.get(0))?;
    let count: u32 = connection.query_row("PRAGMA page_count", (), |row| row.get(0))?;
    if size != page_size.bytes() {
        return Err(Error::corrupt(
            "the page size is another one",
            lock.path(),
            16,
        ));
    }
    if count != page_count.0 {
        return Err(Error::corrupt(
            "the number of pages is another one",
            lock.path(),
            28,
        ));
    }
    Ok(())
}

/// The WAL a second time, which is harmless: SQLite takes no locks on it.
fn open_wal(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("open", path, e))
}
