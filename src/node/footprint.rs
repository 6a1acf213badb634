//! What the data directory takes on the disk, for those who look at a node.
//!
//! Files are asked for their sizes by name and never opened: closing one would drop SQLite's locks.

use std::fs::{self, Metadata};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::sqlite::StartLock;

/// Sizes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    /// Bytes of everything in the data directory.
    pub dir_bytes: u64,
    /// Bytes of the database's main file.
    pub database_bytes: u64,
    /// When the main file or the WAL was last written; `None` before there is one.
    pub modified: Option<SystemTime>,
}

/// Measures, but not more often than makes sense.
#[derive(Debug, Default)]
pub(crate) struct Footprints(Mutex<Option<(Instant, Footprint)>>);

impl Footprints {
    /// The sizes now, or a moment ago.
    pub(crate) fn measure(&self, dir: &Path) -> Footprint {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, footprint)) = *last
            && at.elapsed() < FRESH_FOR
        {
            return footprint;
        }
        let footprint = Footprint::of(dir);
        *last = Some((Instant::now(), footprint));
        footprint
    }
}

impl Footprint {
    fn of(dir: &Path) -> Self {
        let main = dir.join(StartLock::FILE_NAME);
        let mut wal = main.clone().into_os_string();
        wal.push("-wal");
        let modified = |metadata: &Metadata| metadata.modified().ok();
        let main = fs::metadata(main).ok();
        let wal = fs::metadata(wal).ok();
        Self {
            dir_bytes: bytes_in(dir, DEPTH_MAX),
            database_bytes: main.as_ref().map_or(0, Metadata::len),
            modified: main.iter().chain(&wal).filter_map(modified).max(),
        }
    }
}

/// Bytes of the files in a directory and, so many levels deep, in those below. A file that goes
/// away meanwhile does not count.
fn bytes_in(dir: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => bytes_in(&entry.path(), depth - 1),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    });
    sizes.sum()
}

/// A few dozen files take a fraction of a millisecond; still nobody needs that on every call.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// The log and the spools are one level down; whatever else somebody put there is not walked.
const DEPTH_MAX: u32 = 2;
