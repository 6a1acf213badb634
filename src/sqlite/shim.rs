//! What the writing connection's VFS does at each step of a transaction.
//!
//! The order at COMMIT, all on the owner's thread (`walFrames` in SQLite):
//!
//! 1. `xShmLock(WRITE)`: the buffer is emptied. The real lock is held for the life of the process.
//! 2. `xWrite` to the WAL: into the buffer, see [`Frames`].
//! 3. `xSync` of the WAL: the transaction is captured, the gate decides. Release: the buffer goes
//!    to the WAL file. Discard: the buffer is dropped, SQLite gets `SQLITE_IOERR_FSYNC` and rolls
//!    back. Never `SQLITE_BUSY`: SQLite would keep the transaction open, and the next COMMIT would
//!    write frames that recovery cannot read.
//! 4. SQLite enters the frames in the WAL-index and publishes its header (`xShmBarrier`).
//! 5. `xShmUnlock(WRITE)`.
//!
//! Everything before the end of step 3 is undone by a crash; nothing after it may fail. So what
//! could still fail is done before the gate is asked, and if something fails nevertheless the
//! process aborts: SQLite would roll back what the cluster has committed.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;

use super::capture::{Captured, CommitFrame, Frames, LastImages};
use super::ffi::{self, Lock, ResultCode};
use super::heap::Exempt;
use super::image::Source;
use super::inject::pages_added;
use super::overlay::Standing;
use super::page_hashes::PageHashes;
use super::witness::{Damage, Place, Witness};
use crate::planted::{self, Bug};
use crate::wal::format::{frame_bytes, frame_offset};
use crate::wal::{PageHash, PageNumber, PageSize, index};

/// WAL space is reserved in steps of this many bytes.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// Decides about a transaction inside xSync: the only place where a commit waits.
///
/// It runs on the thread of the writing connection, in the middle of its COMMIT. It must not use
/// that [`Database`](super::Database), and a panic in it aborts the process.
pub trait Gate: Send {
    /// Blocks until it is certain whether the transaction is committed.
    fn commit(&mut self, transaction: &Captured<'_>) -> Verdict;
}

/// What becomes of a transaction in flight.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is committed by the quorum: publish it.
    Release,
    /// It never will be, or only as a change of somebody else: roll it back.
    Discard,
}

/// The state behind the main file and the WAL of one writing connection.
pub(super) struct Shim {
    /// The real main file. Open as long as the connection is.
    pub(super) main: ffi::File,
    /// The real WAL, from SQLite's first read until it closes the connection.
    pub(super) wal: Cell<Option<ffi::File>>,
    /// Released by the gate, not yet published to readers.
    released: Cell<bool>,
    /// Meanwhile SQLite must not run out of memory.
    exempt: Cell<Option<Exempt>>,
    owner: RefCell<Option<Owner>>,
    /// Knows what every page must be.
    witness: OnceCell<Arc<Witness>>,
    /// The first damage that this connection met and nobody has asked for yet.
    damage: Cell<Option<Damage>>,
    /// Everything is about to be replaced, so what is read does not matter.
    is_lenient: Cell<bool>,
}

/// What only the writing connection of an open database has.
pub(super) struct Owner {
    pub(super) frames: Frames,
    pub(super) hashes: PageHashes,
    pub(super) gate: Box<dyn Gate>,
    /// The files again: to reserve space in the WAL, and to freeze images.
    pub(super) source: Option<Source>,
    /// What the durable checkpoint record counts on.
    pub(super) standing: Arc<Standing>,
    reserved: u64,
}

impl Owner {
    pub(super) fn new(frames: Frames, hashes: PageHashes, gate: Box<dyn Gate>) -> Self {
        Self {
            frames,
            hashes,
            gate,
            source: None,
            standing: Arc::default(),
            reserved: 0,
        }
    }
}

impl Shim {
    pub(super) const fn new(main: ffi::File) -> Self {
        Self {
            main,
            wal: Cell::new(None),
            released: Cell::new(false),
            exempt: Cell::new(None),
            owner: RefCell::new(None),
            witness: OnceCell::new(),
            damage: Cell::new(None),
            is_lenient: Cell::new(false),
        }
    }

    /// From now on every page is compared with what the witness knows.
    pub(super) fn trust_only(&self, witness: &Arc<Witness>) {
        // A connection has one database, and that has one witness.
        let _ = self.witness.set(Arc::clone(witness));
    }

    /// The damage that was met first since this was asked last.
    pub(super) fn take_damage(&self) -> Option<Damage> {
        self.damage.take()
    }

    /// Lets damaged pages be read: all of them are about to be replaced.
    pub(super) fn be_lenient(&self, is_lenient: bool) {
        self.is_lenient.set(is_lenient);
    }

    /// The place that a read of SQLite asks for, if it is known what belongs there, and matters.
    pub(super) fn place(&self, is_wal: bool, offset: u64, bytes: usize) -> Option<Place> {
        self.known_place(is_wal, offset, bytes)
            .filter(|_| !self.is_lenient.get())
    }

    /// The place that a read asks for, if it is known what belongs there.
    pub(super) fn known_place(&self, is_wal: bool, offset: u64, bytes: usize) -> Option<Place> {
        let witness = self.witness.get()?;
        if is_wal {
            witness.place_in_wal(offset, bytes)
        } else {
            witness.place_in_main(offset, bytes)
        }
    }

    /// Reads what is at a place, or a part of it, if it is what belongs there. Looks twice.
    pub(super) fn read_sound(
        &self,
        file: ffi::File,
        place: Place,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), ResultCode> {
        let witness = self.witness.get().ok_or(ResultCode::IOERR_READ)?;
        let size = witness.page_size().len();
        let mut damage = None;
        for _ in 0..2 {
            let examined = if bytes.len() == size {
                let read = file.read(bytes, offset);
                witness.examine(place, read.is_ok().then_some(&*bytes))
            } else {
                let within = usize::try_from(offset % size as u64).expect("less than a page");
                let mut image = vec![0; size];
                let read = file.read(&mut image, offset - within as u64);
                let part = &image[within..within + bytes.len()];
                bytes.copy_from_slice(part);
                witness.examine(place, read.is_ok().then_some(&image))
            };
            match examined {
                Ok(()) => return Ok(()),
                Err(found) => damage = Some(found),
            }
        }
        if let Some(damage) = damage {
            witness.blame(damage);
            self.damage.set(self.damage.get().or(Some(damage)));
        }
        Err(ResultCode::IOERR_READ)
    }

    /// Whether the WAL must not start afresh: the durable record counts on it.
    pub(super) fn needs_wal(&self) -> bool {
        let owner = self.owner.borrow();
        owner
            .as_ref()
            .is_some_and(|owner| owner.standing.needs_wal())
    }

    /// xWrite of the main file: a checkpoint.
    pub(super) fn write_main(&self, bytes: &[u8], offset: u64) -> Result<(), ResultCode> {
        let write = || self.main.write(bytes, offset);
        match self.witness.get() {
            Some(witness) => witness.write_main(offset, bytes, write),
            None => write(),
        }
    }

    /// xTruncate of the main file.
    pub(super) fn main_truncated(&self, bytes: u64) {
        if let Some(witness) = self.witness.get() {
            witness.cut_main(bytes);
        }
    }

    /// The WAL is written from this frame on.
    pub(super) fn cut_frames(&self, first: u32) {
        if let Some(witness) = self.witness.get() {
            witness.cut_frames(first);
        }
    }

    /// What was written to frames of the WAL.
    pub(super) fn frames_written(
        &self,
        written: impl Iterator<Item = (u32, PageNumber, PageHash)>,
    ) {
        if let Some(witness) = self.witness.get() {
            witness.frames_written(written);
        }
    }

    /// Makes this connection the only writer and checkpointer of the file, until it is closed.
    pub(super) fn own(&self, owner: Owner) -> Result<(), ResultCode> {
        self.main.region(0)?;
        let last = if planted::is(Bug::CheckpointerNotExcluded) {
            index::LOCK_WRITE
        } else {
            index::LOCK_CHECKPOINT
        };
        let (first, count) = (index::LOCK_WRITE, last + 1);
        self.main.lock(first, count, Lock::Exclusive)?;
        *self.owner.borrow_mut() = Some(owner);
        Ok(())
    }

    /// Runs `f` on what an owning connection has.
    pub(super) fn with_owner<T>(&self, f: impl FnOnce(&mut Owner) -> T) -> T {
        f(self
            .owner
            .borrow_mut()
            .as_mut()
            .expect("Database::open has called own"))
    }

    pub(super) fn is_owned(&self) -> bool {
        self.owner.borrow().is_some()
    }

    /// xRead of the WAL.
    pub(super) fn read_wal(&self, bytes: &mut [u8], offset: u64) -> Option<Result<(), ResultCode>> {
        let owner = self.owner.borrow();
        let frames = &owner.as_ref()?.frames;
        frames.covers(offset).then(|| {
            frames
                .read(bytes, offset)
                .map_err(|_| ResultCode::IOERR_READ)
        })
    }

    /// xWrite of the WAL. Without an owner there is nobody who could commit.
    pub(super) fn write_wal(&self, bytes: &[u8], offset: u64) -> Result<(), ResultCode> {
        let mut owner = self.owner.borrow_mut();
        let owner = owner.as_mut().ok_or(ResultCode::READONLY)?;
        if planted::is(Bug::CaptureAtWrite) {
            self.wal
                .get()
                .map_or(Ok(()), |wal| wal.write(bytes, offset))?;
        }
        owner.frames.write(bytes, offset)
    }

    /// xFileSize of the WAL, given the size of the real one.
    pub(super) fn wal_size(&self, real: u64) -> u64 {
        let owner = self.owner.borrow();
        owner
            .as_ref()
            .map_or(real, |owner| owner.frames.end().max(real))
    }

    /// xTruncate of the WAL: what was reserved in it is gone.
    pub(super) fn wal_truncated(&self, bytes: u64) {
        if let Some(owner) = self.owner.borrow_mut().as_mut() {
            owner.reserved = owner.reserved.min(bytes);
        }
    }

    /// xSync of the WAL: the end of a transaction if a commit frame is in the buffer.
    ///
    /// Other syncs, as by a checkpoint, have nothing to do. Nobody relies on the WAL after a power
    /// loss: the log has all of it.
    pub(super) fn sync_wal(&self) -> Result<(), ResultCode> {
        let mut owner = self.owner.borrow_mut();
        let Some(owner) = owner.as_mut() else {
            return Ok(());
        };
        let Some(commit) = owner.frames.commit_frame() else {
            return Ok(());
        };
        // Whatever was left out because of it, nothing that met damage is ever proposed.
        if self.damage.get().is_some() {
            owner.frames.clear();
            return Err(ResultCode::IOERR_FSYNC);
        }
        let wal = self.wal.get().ok_or(ResultCode::IOERR_FSYNC)?;
        let last = owner.frames.last_images(commit);
        let prepared = self.prepare(owner, commit, &last);
        let source = owner.source.as_ref().ok_or(ResultCode::IOERR_FSYNC)?;
        let verdict = prepared.map(|hashes| {
            let captured = Captured {
                frames: &owner.frames,
                last: &last,
                page_count: commit.page_count,
                hashes_before: &owner.hashes,
                hash_after: owner.hashes.preview(
                    commit.page_count,
                    last.pages.iter().copied().zip(hashes.iter().copied()),
                ),
                shim: self,
                source,
            };
            (owner.gate.commit(&captured), hashes)
        });
        match verdict {
            Ok((Verdict::Release, hashes)) => {
                self.cut_frames(owner.frames.frame_first);
                if let Err(code) = owner.frames.write_to(wal, commit.frame) {
                    abort("the WAL cannot be written after the commit", code.0);
                }
                let pages = last.pages.iter().zip(&hashes);
                let written = last.frames.iter().zip(pages);
                self.frames_written(written.map(|(frame, (page, hash))| (*frame, *page, *hash)));
                owner.frames.clear();
                owner.hashes.resize(commit.page_count);
                for (page, hash) in last.pages.iter().zip(hashes) {
                    owner.hashes.replace(*page, hash);
                }
                self.exempt.set(Some(Exempt::new()));
                self.released.set(true);
                Ok(())
            }
            Ok((Verdict::Discard, hashes)) => {
                if planted::is(Bug::DiscardedHashesLeft) {
                    owner.hashes.resize(commit.page_count);
                    for (page, hash) in last.pages.iter().zip(hashes) {
                        owner.hashes.replace(*page, hash);
                    }
                }
                owner.frames.clear();
                Err(ResultCode::IOERR_FSYNC)
            }
            Err(code) => {
                owner.frames.clear();
                Err(code)
            }
        }
    }

    /// Everything that can fail, done before the gate is asked. Returns the hashes of the pages.
    fn prepare(
        &self,
        owner: &mut Owner,
        commit: CommitFrame,
        last: &LastImages,
    ) -> Result<Vec<PageHash>, ResultCode> {
        let page_size = owner.hashes.page_size();
        check_pages(&owner.hashes, commit, last, page_size)?;
        let wal_bytes = frame_offset(commit.frame, page_size) + frame_bytes(page_size);
        reserve(owner, wal_bytes)?;
        for region in 0..=index::region_of_frame(commit.frame).region {
            if let Err(code) = self.main.region(region) {
                let why = format!("SQLite result code {}", code.0);
                return Err(no_space(owner, "WAL-index", &why));
            }
        }
        let mut image = vec![0; page_size.len()];
        let mut hashes = Vec::with_capacity(last.pages.len());
        for (page, frame) in last.pages.iter().zip(&last.frames) {
            owner
                .frames
                .read_page(*frame, &mut image)
                .map_err(|_| ResultCode::IOERR_READ)?;
            hashes.push(PageHash::of(*page, &image));
        }
        Ok(hashes)
    }

    /// Why this connection got its last `SQLITE_FULL`, once, if it came from here.
    pub(super) fn take_refusal(&self) -> Option<String> {
        self.owner.borrow_mut().as_mut()?.frames.refusal.take()
    }

    /// xShmLock of WRITE, both ways: no transaction is being written.
    pub(super) fn write_lock_changed(&self) {
        if self.released.get() {
            abort("SQLite gave a committed transaction up", 0);
        }
        if let Some(owner) = self.owner.borrow_mut().as_mut() {
            owner.frames.clear();
        }
    }

    /// xShmBarrier: SQLite publishes, or a reader of this connection looks at the header.
    pub(super) fn barrier(&self) {
        if let Some(owner) = self.owner.borrow().as_ref()
            && owner.frames.commit_frame().is_some()
        {
            abort(
                "SQLite published a transaction without asking for its commit",
                0,
            );
        }
        self.released.set(false);
        self.exempt.set(None);
    }
}

/// A transaction whose pages do not add up cannot be replicated.
fn check_pages(
    hashes: &PageHashes,
    commit: CommitFrame,
    last: &LastImages,
    page_size: PageSize,
) -> Result<(), ResultCode> {
    let old = hashes.page_count();
    let added = last
        .pages
        .iter()
        .filter(|page| !old.contains(**page))
        .count();
    if last.pages.is_empty() || added != pages_added(old, commit.page_count, page_size) {
        tracing::error!(
            before = old.0,
            after = commit.page_count.0,
            added,
            "SQLite left out pages by which the database grows"
        );
        return Err(ResultCode::IOERR_FSYNC);
    }
    Ok(())
}

/// Reserves space in the WAL, so that writing it after the commit cannot fail for want of it.
fn reserve(owner: &mut Owner, wal_bytes: u64) -> Result<(), ResultCode> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;

    if wal_bytes <= owner.reserved {
        return Ok(());
    }
    let Some(Source { wal, .. }) = &owner.source else {
        return Err(ResultCode::FULL);
    };
    let length = (wal_bytes - owner.reserved).max(RESERVE_BYTES);
    match fallocate(wal, FallocateFlags::KEEP_SIZE, owner.reserved, length) {
        // A file system that cannot reserve: then only the abort is left if space runs out.
        Ok(()) | Err(Errno::OPNOTSUPP) => {
            owner.reserved += length;
            Ok(())
        }
        Err(error) => Err(no_space(owner, "WAL", &error.to_string())),
    }
}

/// Refuses a transaction before it is proposed, and leaves word for its client.
fn no_space(owner: &mut Owner, what: &str, why: &str) -> ResultCode {
    tracing::warn!(why, "no space for the {what}");
    owner.frames.refusal = Some(format!(
        "no space for the {what} on the leader ({why}): nothing was changed; free some there, and \
         send the request again"
    ));
    ResultCode::FULL
}

/// Ends the process: what it did in memory no longer is what the cluster has committed. The next
/// start redoes it from the log.
fn abort(what: &str, code: i32) -> ! {
    tracing::error!(code, "{what}; aborting");
    std::process::abort();
}
