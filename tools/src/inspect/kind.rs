//! What a path is: by what the file begins with, never by its name alone.

use std::path::{Path, PathBuf};

use wallaby::raft::log::{LogIdentity, SegmentName};
use wallaby::wal::{WalError, WalHeader};

use super::directory::{Directory, LOG_DIR};
use super::image::Image;
use super::log::{Log, Segment};
use super::source::{Failure, Source};
use super::wal_file::WalFile;
use super::wal_index::WalIndex;

/// What a file can be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Kind {
    /// A checkpoint record.
    Checkpoint,
    /// A SQLite database.
    Database,
    /// One delta.
    Delta,
    /// Who a node is.
    Identity,
    /// A snapshot's manifest.
    Manifest,
    /// The hash of every page.
    PageHashes,
    /// A segment of the log.
    Segment,
    /// Received pages.
    Spool,
    /// A SQLite WAL.
    Wal,
    /// A SQLite WAL-index.
    WalIndex,
}

/// What there is to look at.
pub(super) enum Subject {
    Database(Box<Image>),
    Directory(Box<Directory>),
    Log(Box<Log>),
    Segment(Box<Segment>, Option<LogIdentity>),
    /// A file that is read as a whole.
    Small(Kind, PathBuf, Vec<u8>),
    Wal(WalFile),
    WalIndex(WalIndex),
}

impl Subject {
    /// Opens a path; `kind` overrides what its beginning says.
    pub(super) fn open(path: &Path, kind: Option<Kind>) -> Result<Self, Failure> {
        let metadata = std::fs::metadata(path);
        let metadata = metadata
            .map_err(|error| Failure::new(format!("cannot open {}: {error}", path.display())))?;
        if metadata.is_dir() {
            return Self::directory(path);
        }
        let source = Source::open(path)?;
        let kind = match kind {
            Some(kind) => kind,
            None => recognise(&source)?,
        };
        Ok(match kind {
            Kind::Database => Self::Database(Box::new(Image::open(path, None, None)?)),
            Kind::Segment => {
                let segment = Segment::open(source)?;
                // The log it is from says whose it is, should its own header not.
                let whose = path.parent().and_then(|dir| Log::open(dir, None).ok());
                let whose = whose.and_then(|log| {
                    let mut facts = log
                        .segments
                        .iter()
                        .filter_map(|other| other.facts.as_ref().ok());
                    facts.next().map(|facts| facts.identity)
                });
                Self::Segment(Box::new(segment), whose)
            }
            Kind::Wal => Self::Wal(WalFile::open(source)?),
            Kind::WalIndex => Self::WalIndex(WalIndex::open(source)?),
            small => {
                let bytes = source.read_all()?;
                Self::Small(small, path.to_owned(), bytes)
            }
        })
    }

    fn directory(path: &Path) -> Result<Self, Failure> {
        let known = ["identity", "checkpoint", "db.sqlite", LOG_DIR];
        if known.iter().any(|name| path.join(name).exists()) {
            return Ok(Self::Directory(Box::new(Directory::open(path)?)));
        }
        let log = Log::open(path, None)?;
        if log.segments.is_empty() {
            return Err(Failure::new(format!(
                "{} is neither a data directory nor a log",
                path.display()
            )));
        }
        let mut log = log;
        log.replay(None);
        Ok(Self::Log(Box::new(log)))
    }
}

/// What a file is by its beginning; if that is damaged, by its name.
fn recognise(source: &Source) -> Result<Kind, Failure> {
    let head = source.read(0, 64)?;
    let begins = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
    if let Some((_, kind)) = begins {
        return Ok(*kind);
    }
    if !matches!(
        WalHeader::parse(&head),
        Err(WalError::NotAWal | WalError::Short { .. })
    ) {
        return Ok(Kind::Wal);
    }
    let name = source
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let by_name = match &*name {
        "checkpoint" => Some(Kind::Checkpoint),
        "identity" => Some(Kind::Identity),
        "pages.hash" => Some(Kind::PageHashes),
        "installing" | "incoming-pages" => Some(Kind::Spool),
        name if SegmentName::parse(name).is_some() => Some(Kind::Segment),
        name if name.ends_with("-wal") => Some(Kind::Wal),
        name if name.ends_with("-shm") => Some(Kind::WalIndex),
        name => ENDINGS
            .iter()
            .find(|ending| name.ends_with(*ending))
            .map(|_| Kind::Database),
    };
    // 3007000 in the byte order of the machine: a WAL-index under another name.
    let by_name = by_name.or_else(|| {
        head.starts_with(&WAL_INDEX_VERSION)
            .then_some(Kind::WalIndex)
    });
    by_name.ok_or_else(|| {
        Failure::new(format!(
            "{} is of no kind that is known; --as says what it is to be read as",
            source.path().display()
        ))
    })
}

const MAGICS: [(&[u8], Kind); 8] = [
    (wallaby::sqlite::MAGIC, Kind::Database),
    (b"\x89WALLOG\n", Kind::Segment),
    (b"\x89WALLD\n\x1a", Kind::Delta),
    (b"WBCK", Kind::Checkpoint),
    (b"WBPH", Kind::PageHashes),
    (b"\x8eWLBSP\n\x1a", Kind::Spool),
    (b"\x8eWLBSN\n\x1a", Kind::Manifest),
    (b"\x8eWLBID\n\x1a", Kind::Identity),
];
const WAL_INDEX_VERSION: [u8; 4] = 3_007_000_u32.to_le_bytes();
const ENDINGS: [&str; 4] = [".sqlite", ".sqlite3", ".db", ".db3"];
