//! Files in the data directory that no restart needs: copies on their way to a client, and data on
//! its way into the database. Their names begin with `scratch-`; what a crash left of them is
//! removed by the next start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::identity::random_u64;

/// A name for a file, which is removed together with SQLite's files beside it when this goes.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A name of which there is no file yet.
    pub(crate) fn name(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(format!("{PREFIX}{:016x}", random_u64()?));
        Ok(Self { path })
    }

    /// Makes the file, for this account only.
    pub(crate) fn create(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            // Most of them were never made.
            drop(fs::remove_file(path));
        }
    }
}

/// Checks that the disk has room for so many more bytes, and some to spare: a log that cannot be
/// written takes the node out of service.
pub(crate) fn check_room(dir: &Path, bytes: u64) -> Result<(), String> {
    let disk = rustix::fs::statvfs(dir)
        .map_err(|error| format!("{} cannot be looked at: {error}", dir.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(format!(
        "the disk has {} MiB free, and {} MiB are needed, of which {} stay free",
        free >> 20,
        bytes.saturating_add(SPARE_BYTES) >> 20,
        SPARE_BYTES >> 20
    ))
}

/// Removes what a crash left.
pub(crate) fn is_litter(name: &str) -> bool {
    name.starts_with(PREFIX)
}

const PREFIX: &str = "scratch-";
/// One segment of the log, which the node must be able to begin.
const SPARE_BYTES: u64 = 64 << 20;
