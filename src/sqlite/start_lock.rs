//! The lock that keeps all other processes away from the main file while it is put in order.
//!
//! It covers every byte on which SQLite ever takes a lock (PENDING, RESERVED, SHARED: `os.h`, "file
//! locking constants"), so getting it proves that nobody has the database open, and holding it
//! keeps everybody out.
//!
//! Closing any descriptor of the main file drops all locks that this process holds on it, SQLite's
//! too (POSIX record locks). So there is one descriptor for everything that is not SQLite: redo,
//! images, syncs. It lives as long as the database.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::error::Error;
use crate::wal::{PageNumber, PageSize};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The main file, and the exclusive lock on it until [`Database::open`](super::Database::open) has
/// locks of its own.
#[derive(Debug)]
pub struct StartLock {
    dir: PathBuf,
    path: PathBuf,
    file: Arc<MainFile>,
}

/// The one descriptor of a main file in this process, outside of SQLite.
#[derive(Debug)]
pub(super) struct MainFile {
    file: Option<File>,
    real_path: PathBuf,
}

/// The main files that are open now.
static OPEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

impl MainFile {
    /// Opens the file, unless this process has it open already: one of the two would be closed
    /// first, and take the locks of the other with it.
    fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::io("open", path, source);
        let dir = path.parent().unwrap_or(path).canonicalize().map_err(fail)?;
        let real_path = dir.join(StartLock::FILE_NAME);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains(&real_path) {
            return Err(Error::InUse {
                file: path.to_owned(),
                pid: Some(std::process::id()),
                waited: Duration::ZERO,
            });
        }
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        if is_new {
            // Its name is durable before anything relies on it.
            let synced = File::open(&dir).and_then(|dir| dir.sync_all());
            synced.map_err(|source| Error::io("sync", &dir, source))?;
        }
        open.insert(real_path.clone());
        Ok(Self {
            file: Some(file),
            real_path,
        })
    }
}

impl Deref for MainFile {
    type Target = File;

    fn deref(&self) -> &File {
        self.file.as_ref().expect("taken only when dropped")
    }
}

impl Drop for MainFile {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.file.take());
        open.remove(&self.real_path);
    }
}

impl StartLock {
    /// The name of the main file in the data directory.
    pub const FILE_NAME: &'static str = "db.sqlite";

    /// Opens the main file in `dir`, creating it empty if there is none, and locks it.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process still has it open after `wait`, and at once if this one
    /// has; `Io`.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<Self, Error> {
        let path = dir.join(Self::FILE_NAME);
        let file = MainFile::open(&path)?;
        let begin = Instant::now();
        let mut told = false;
        loop {
            match fcntl_lock(&*file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::AGAIN | Errno::ACCESS) => {}
                Err(error) => return Err(Error::io("lock", &path, error.into())),
            }
            let pid = holder(&file);
            if begin.elapsed() >= wait {
                return Err(Error::InUse {
                    file: path,
                    pid,
                    waited: wait,
                });
            }
            if !told {
                tracing::warn!(pid, "another process has the database open, waiting for it");
                told = true;
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(Self {
            dir: dir.to_owned(),
            path,
            file: Arc::new(file),
        })
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The main file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The one descriptor of the main file.
    pub(super) const fn file(&self) -> &Arc<MainFile> {
        &self.file
    }

    /// The same files, for another thread. They are open until both are gone.
    pub(super) fn share(&self) -> Self {
        Self {
            dir: self.dir.clone(),
            path: self.path.clone(),
            file: Arc::clone(&self.file),
        }
    }

    /// The path of the WAL.
    pub(super) fn wal_path(&self) -> PathBuf {
        self.dir.join(format!("{}-wal", Self::FILE_NAME))
    }

    /// Makes the names in the data directory durable. A record may count on the WAL only once its
    /// name is: names are durable in any order, and the record's could be first.
    pub(super) fn sync_names(&self) -> Result<(), Error> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| Error::io("sync", &self.dir, error))
    }

    /// Deletes the WAL and the WAL-index, while the lock is held.
    pub(super) fn remove_wal(&self) -> Result<(), Error> {
        for suffix in ["-wal", "-shm"] {
            let path = self.dir.join(format!("{}{suffix}", Self::FILE_NAME));
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a page of the main file, durably, while the lock is held.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn mend(&self, size: PageSize, page: PageNumber, image: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all_at(image, page.offset(size));
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Error::io("mend", &self.path, error))
    }

    /// Lets others in. No SQLite connection of this process has a lock on the main file yet.
    pub(super) fn release(&self) -> Result<(), Error> {
        fcntl_lock(&**self.file, FlockOperation::NonBlockingUnlock)
            .map_err(|error| Error::io("unlock", &self.path, error.into()))
    }
}

/// The process that keeps us from locking the file.
fn holder(file: &File) -> Option<u32> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock)).ok()??;
    u32::try_from(lock.pid?.as_raw_nonzero().get()).ok()
}
