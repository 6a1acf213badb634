//! The disk under a node's log: syncs take time, and a power cut takes what was not synced.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wallaby::raft::log::{File, Files};

use super::threads;
use crate::files::{FaultyFiles, Keep};

/// The files of one log through all lives of its node. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Disk {
    files: FaultyFiles,
    lies: bool,
}

impl Disk {
    /// An empty disk. One that lies says that it has synced, and does so later: a run on such disks
    /// must be found out.
    #[must_use]
    pub fn new(lies: bool) -> Self {
        Self {
            files: FaultyFiles::new(),
            lies,
        }
    }

    /// As it is found after a crash.
    #[must_use]
    pub fn restart(&self, keep: Keep, seed: u64) -> Self {
        Self {
            files: self.files.restart(keep, seed),
            lies: self.lies,
        }
    }

    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        let lies = self.lies;
        Arc::new(DiskFile { file, lies })
    }
}

impl Files for Disk {
    fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.files.create(name).map(|file| self.file(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.files.open(name).map(|file| self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        threads::sync();
        self.files.sync_dir()
    }
}

struct DiskFile {
    file: Arc<dyn File>,
    lies: bool,
}

impl File for DiskFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    /// Durable at the end of the time that it takes: a power cut meanwhile finds nothing synced.
    fn sync_data(&self) -> io::Result<()> {
        threads::sync();
        if self.lies {
            let file = Arc::clone(&self.file);
            std::thread::spawn(move || {
                std::thread::sleep(LIE);
                // Nobody waits for it.
                drop(file.sync_data());
            });
            return Ok(());
        }
        self.file.sync_data()
    }
}

/// How long a disk that lies keeps what it says it has synced.
const LIE: Duration = Duration::from_millis(300);
