//! A node's data directory, read without opening the node: nothing is locked, nothing is written.

use std::path::{Path, PathBuf};

use wallaby::node::files::{IDENTITY, INCOMING, INSTALLING, Identity, Incoming, Manifest};
use wallaby::raft::log::LogIdentity;
use wallaby::sqlite::{PageHashes, Record, StartLock};
use wallaby::wal::{DatabaseHash, PageCount, PageNumber, PageSize, Position};

use super::image::{Image, beside};
use super::log::{Log, state_of};
use super::source::{Failure, Source};

/// What is in a data directory.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// The process that has it open, if the system says.
    pub(super) holder: Option<String>,
    pub(super) identity: Option<Result<Identity, String>>,
    pub(super) record: Option<Result<Record, String>>,
    /// Pages that a start-up would put into the database first.
    pub(super) installing: Option<Result<Installing, String>>,
    /// `None`: there is none.
    pub(super) log: Option<Log>,
}

/// A received image that is not in the main file yet.
pub(super) struct Installing {
    pub(super) pages: Incoming,
    pub(super) manifest: Manifest,
}

/// A state of the database from which entries of the log lead on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) applied: Position,
    pub(super) data: Option<Position>,
    pub(super) page_size: PageSize,
    pub(super) page_count: PageCount,
    pub(super) hash: DatabaseHash,
}

impl Directory {
    /// Reads everything but the database itself: first the record, then the log, so that on a
    /// running node the log leads on from the record.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let identity = read(&path.join(IDENTITY), |bytes, file| {
            Identity::decode(bytes, file).map_err(|error| error.to_string())
        })?;
        let record = read(&path.join(Record::FILE_NAME), |bytes, file| {
            Record::decode(bytes, file).map_err(|error| error.to_string())
        })?;
        let installing = Installing::find(&path.join(INSTALLING))?;
        let log_dir = path.join(LOG_DIR);
        let whose = identity.as_ref().and_then(|identity| {
            let identity = identity.as_ref().ok()?;
            let (cluster, node) = (identity.cluster?, identity.raft_id);
            Some(LogIdentity { cluster, node })
        });
        let log = log_dir
            .is_dir()
            .then(|| Log::open(&log_dir, whose))
            .transpose()?;
        let mut directory = Self {
            path: path.to_owned(),
            holder: holder(&log_dir.join(LOCK_FILE)),
            identity,
            record,
            installing,
            log,
        };
        let at = directory
            .base(u64::MAX)
            .map(|base| (base.applied, base.data));
        let at = at.or_else(|| directory.record().map(state_of));
        if let Some(log) = &mut directory.log {
            log.replay(at);
        }
        Ok(directory)
    }

    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_ref()?.as_ref().ok()
    }

    pub(super) fn installing(&self) -> Option<&Installing> {
        self.installing.as_ref()?.as_ref().ok()
    }

    /// The latest state up to an index that the main file, with the pages being installed, is at.
    pub(super) fn base(&self, index: u64) -> Option<Base> {
        let installing = self.installing().map(|installing| {
            let manifest = &installing.manifest;
            Base {
                applied: manifest.applied,
                data: manifest.data,
                page_size: manifest.page_size,
                page_count: manifest.page_count,
                hash: manifest.hash,
            }
        });
        let record = self.record().map(|record| Base {
            applied: record.applied,
            data: record.data,
            page_size: record.page_size,
            page_count: record.page_count,
            hash: record.hash,
        });
        let newer = installing.filter(|base| {
            base.applied.index <= index && record.is_none_or(|record| record.applied < base.applied)
        });
        newer.or(record)
    }

    /// The database as a reader sees it; of a node that was closed in order, as the next start finds
    /// it: that deletes the WAL, all of which is in the main file by then.
    pub(super) fn image(&self) -> Result<Image, Failure> {
        self.image_up_to(self.is_closed().then_some(0))
    }

    /// The state of the record: the main file, with the frames of the WAL that it counts on.
    pub(super) fn main_image(&self) -> Result<Image, Failure> {
        let overlay = self.record().and_then(|record| record.overlay);
        self.image_up_to(Some(overlay.map_or(0, |overlay| overlay.frames)))
    }

    fn image_up_to(&self, frame: Option<u32>) -> Result<Image, Failure> {
        let size = self.record().map(|record| record.page_size);
        Image::open(&self.main(), size, frame)
    }

    /// Whether the node does not run and was stopped in order.
    pub(super) fn is_closed(&self) -> bool {
        self.holder.is_none() && self.record().is_some_and(|record| record.is_closed)
    }

    pub(super) fn main(&self) -> PathBuf {
        self.path.join(StartLock::FILE_NAME)
    }

    pub(super) fn wal(&self) -> PathBuf {
        beside(&self.main(), "-wal")
    }

    pub(super) fn wal_index(&self) -> PathBuf {
        beside(&self.main(), "-shm")
    }

    /// The table of page hashes, as many entries as the file has.
    pub(super) fn hashes(&self) -> Option<Result<PageHashes, String>> {
        read_hashes(&self.path.join(PageHashes::FILE_NAME), self.record())
    }

    pub(super) fn incoming(&self) -> PathBuf {
        self.path.join(INCOMING)
    }

    /// How the node calls itself, or where it is.
    pub(super) fn name(&self) -> String {
        match &self.identity {
            Some(Ok(identity)) => identity.name.clone(),
            _ => self.path.display().to_string(),
        }
    }
}

impl Installing {
    fn find(path: &Path) -> Result<Option<Result<Self, String>>, Failure> {
        if Source::find(path)?.is_none() {
            return Ok(None);
        }
        let pages = match Incoming::read_only(path) {
            Ok(pages) => pages,
            Err(error) => return Ok(Some(Err(error.to_string()))),
        };
        let manifest = pages.trailer();
        Ok(Some(manifest.map(|manifest| Self { pages, manifest })))
    }

    /// A page that it has.
    pub(super) fn page(&self, page: PageNumber) -> Option<Vec<u8>> {
        self.pages.image(page)?.ok()
    }
}

/// Reads the table of page hashes in a file: as far as the record says, or to its end.
pub(super) fn read_hashes(
    path: &Path,
    record: Option<&Record>,
) -> Option<Result<PageHashes, String>> {
    let bytes = std::fs::metadata(path).ok()?.len();
    let entries = u32::try_from(bytes / 16)
        .unwrap_or(u32::MAX)
        .saturating_sub(1);
    let count = record.map_or(entries, |record| record.page_count.0.min(entries));
    let size = record.map(|record| record.page_size);
    let read = PageHashes::read(path, size, PageCount(count));
    Some(read.map_err(|error| error.to_string()))
}

/// A small file, decoded; `None` if it is not there.
fn read<T>(
    path: &Path,
    decode: impl FnOnce(&[u8], &Path) -> Result<T, String>,
) -> Result<Option<Result<T, String>>, Failure> {
    let Some(source) = Source::find(path)? else {
        return Ok(None);
    };
    Ok(Some(decode(&source.read(0, SMALL_FILE_BYTES_MAX)?, path)))
}

/// A process that has a lock on the file, by what the system tells everybody: asking for the lock
/// would take it.
pub(super) fn holder(file: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(file).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields.get(5)?.rsplit(':').next() == Some(inode.as_str());
        is_ours.then(|| fields[4].to_owned())
    })
}

/// The directory of the log in a data directory.
pub(super) const LOG_DIR: &str = "log";
/// The file that the owner of a log has locked.
const LOCK_FILE: &str = "lock";
/// More than any of the files that are read as a whole.
const SMALL_FILE_BYTES_MAX: usize = 2 << 20;
