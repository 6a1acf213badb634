//! The checkpoint record: from which state of the log the next start goes on.
//!
//! There are two kinds. A plain one says that the main file is exactly that state. One with an
//! overlay says so of the main file with the first frames of the WAL over it ([`Overlay`]): it is
//! made durable before the first of these frames is moved, and stays true while they are.
//!
//! A record is written in this order: the main file, or the WAL, is synced; the page hashes are
//! written and synced; then the record replaces the old one by a rename.
//!
//! The file `checkpoint` (little-endian):
//!
//! | Offset | Size | Field       | Meaning                                                  |
//! |-------:|-----:|-------------|----------------------------------------------------------|
//! |      0 |    4 | magic       | `WBCK`                                                   |
//! |      4 |    4 | version     | 2                                                        |
//! |      8 |    4 | flags       | bit 0: there is a data position; bit 1: the database was |
//! |        |      |             | closed in this state; bit 2: there is an overlay; the    |
//! |        |      |             | rest zero                                                |
//! |     12 |    4 | page size   | bytes                                                    |
//! |     16 |    4 | page count  |                                                          |
//! |     20 |    4 | membership  | its length in bytes, at most 1 MiB                       |
//! |     24 |   16 | hash        | of the database                                          |
//! |     40 |   24 | applied     | term, node, index of the last entry applied              |
//! |     64 |   24 | data        | the same of the last data entry not rejected; or zeros   |
//! |     88 |    8 | file size   | of the main file when it was synced, bytes               |
//! |     96 |    8 | modified    | its modification time, seconds since 1970, signed        |
//! |    104 |    8 | modified    | and nanoseconds                                          |
//! |    112 |    8 | inode       | its inode number                                         |
//! |    120 |    8 | salts       | of the WAL, as they stand there; zeros without overlay   |
//! |    128 |    4 | frames      | of the WAL that belong to the state; zero without        |
//! |    132 |    8 | checksum    | of the last of these frames, two words; zeros without    |
//! |    140 |    m | membership  | opaque                                                   |
//! |  140+m |    4 | checksum    | CRC-32 of everything before                              |

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::overlay::Overlay;
use super::page_hashes::PageHashes;
use super::start_lock::StartLock;
use crate::planted::{self, Bug};
use crate::wal::{Checksum, DatabaseHash, PageCount, PageSize, Position, Salts};

const FILE_NAME: &str = "checkpoint";
const TEMPORARY_NAME: &str = "checkpoint.tmp";
const MAGIC: [u8; 4] = *b"WBCK";
const VERSION: u32 = 2;
const FLAG_DATA: u32 = 1;
const FLAG_CLOSED: u32 = 2;
const FLAG_OVERLAY: u32 = 4;
const HEAD_BYTES: usize = 140;
const CHECKSUM_BYTES: usize = 4;
const MEMBERSHIP_BYTES_MAX: usize = 1024 * 1024;

/// The state from which a start goes on, and where it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// The last log entry that was applied.
    pub applied: Position,
    /// The last data entry that was not rejected; the base of the next one.
    pub data: Option<Position>,
    /// The membership at `applied`, in the form of the layer above.
    pub membership: Vec<u8>,
    /// The page size of the database.
    pub page_size: PageSize,
    /// How many pages it has.
    pub page_count: PageCount,
    /// Its hash.
    pub hash: DatabaseHash,
    /// What the main file looked like from outside.
    pub stamp: Stamp,
    /// Whether the database was closed since, and nothing of ours has written to the file.
    pub is_closed: bool,
    /// The part of the WAL that belongs to the state; `None`: the main file has all of it.
    pub overlay: Option<Overlay>,
}

/// What changes about a file when somebody writes to it or replaces it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last modified: seconds since 1970, and nanoseconds.
    pub modified: (i64, i64),
    /// Its inode number.
    pub inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
        }
    }
}

impl Record {
    /// The name of the record in the data directory.
    pub const FILE_NAME: &'static str = FILE_NAME;

    /// Reads the record in a data directory; `None` if there is no database yet.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Unsupported`, `Io`.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE_NAME);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| Error::io("open", &path, e))?,
        };
        let bytes_max = HEAD_BYTES + MEMBERSHIP_BYTES_MAX + CHECKSUM_BYTES;
        let mut bytes = Vec::new();
        file.take(bytes_max as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &path, e))?;
        Self::decode(&bytes, &path).map(Some)
    }

    /// Whether the main file still looks as it did. If not, somebody has written to it, or it
    /// belongs to another state: its pages must be verified.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn matches(&self, lock: &StartLock) -> Result<bool, Error> {
        Ok(self.stamp == stamp(lock)?)
    }

    /// Whether somebody else has changed or replaced the main file. While there is an overlay that
    /// cannot be told: a checkpoint may have been at work.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn is_suspect(&self, lock: &StartLock) -> Result<bool, Error> {
        Ok(self.overlay.is_none() && !self.matches(lock)?)
    }

    /// Notes in the record, if there is one and the main file still looks as it did, that the
    /// database was closed. The next [`save`](Self::save) takes the note away.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Unsupported`, `Io`.
    pub(super) fn close(lock: &StartLock) -> Result<(), Error> {
        match Self::load(lock.dir())? {
            Some(record) if record.overlay.is_none() && record.matches(lock)? => Self {
                is_closed: true,
                ..record
            }
            .write(lock.dir()),
            _ => Ok(()),
        }
    }

    /// Puts another membership into the record, if there is one. Nothing else changes.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Unsupported`, `Io`.
    pub fn change_membership(
        lock: &StartLock,
        change: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<(), Error> {
        let Some(mut record) = Self::load(lock.dir())? else {
            return Ok(());
        };
        record.membership = change(&record.membership);
        record.write(lock.dir())
    }

    /// Makes the main file, the page hashes and then the record durable. The main file has exactly
    /// the state of the record.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn save(
        lock: &StartLock,
        hashes: &mut PageHashes,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<(), Error> {
        lock.file()
            .sync_all()
            .map_err(|e| Error::io("sync", lock.path(), e))?;
        Self::describe(lock, hashes, applied, data, membership)?.write(lock.dir())
    }

    /// Makes the WAL, the page hashes and then a record durable that counts on the WAL's first
    /// frames. Nothing later than these is in the main file.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub(super) fn save_over(
        lock: &StartLock,
        (wal, overlay): (&File, Overlay),
        hashes: &mut PageHashes,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<Self, Error> {
        wal.sync_all()
            .map_err(|e| Error::io("sync", &lock.wal_path(), e))?;
        let record = Self {
            overlay: (!planted::is(Bug::RecordBeforePages)).then_some(overlay),
            ..Self::describe(lock, hashes, applied, data, membership)?
        };
        record.write(lock.dir())?;
        Ok(record)
    }

    /// The record of this state; the hashes are saved.
    fn describe(
        lock: &StartLock,
        hashes: &mut PageHashes,
        applied: Position,
        data: Option<Position>,
        membership: &[u8],
    ) -> Result<Self, Error> {
        hashes.save(lock.dir())?;
        Ok(Self {
            applied,
            data,
            membership: membership.to_vec(),
            page_size: hashes.page_size(),
            page_count: hashes.page_count(),
            hash: hashes.sum(),
            stamp: stamp(lock)?,
            is_closed: false,
            overlay: None,
        })
    }

    /// The same state, now that the main file has all of it, durably.
    pub(super) fn save_without_overlay(&self, lock: &StartLock) -> Result<(), Error> {
        let record = Self {
            overlay: None,
            stamp: stamp(lock)?,
            ..self.clone()
        };
        record.write(lock.dir())
    }

    fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE_NAME);
        let bytes = self.encode();
        if bytes.len() > HEAD_BYTES + MEMBERSHIP_BYTES_MAX + CHECKSUM_BYTES {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the membership is too large");
            return Err(Error::io("write", &path, error));
        }
        replace(dir, &path, &bytes).map_err(|e| Error::io("replace", &path, e))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.membership.len() + CHECKSUM_BYTES);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(self.data.is_some(), FLAG_DATA)
            | flag(self.is_closed, FLAG_CLOSED)
            | flag(self.overlay.is_some(), FLAG_OVERLAY);
        let membership_bytes = u32::try_from(self.membership.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&MAGIC);
        for word in [
            VERSION,
            flags,
            self.page_size.bytes(),
            self.page_count.0,
            membership_bytes,
        ] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.hash.0.to_le_bytes());
        let nowhere = Position {
            term: 0,
            node: 0,
            index: 0,
        };
        for position in [self.applied, self.data.unwrap_or(nowhere)] {
            for field in [position.term, position.node, position.index] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&self.stamp.bytes.to_le_bytes());
        bytes.extend_from_slice(&self.stamp.modified.0.to_le_bytes());
        bytes.extend_from_slice(&self.stamp.modified.1.to_le_bytes());
        bytes.extend_from_slice(&self.stamp.inode.to_le_bytes());
        let overlay = self.overlay.unwrap_or_default();
        bytes.extend_from_slice(&overlay.salts.0);
        for word in [overlay.frames, overlay.checksum.s0, overlay.checksum.s1] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.membership);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a record from memory; `path` is named in errors.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let corrupt = |what, offset| Error::corrupt(what, path, offset);
        let mut fields = Fields { bytes, at: 0 };
        let short = || corrupt("the record is cut short", bytes.len() as u64);
        if fields.take::<4>().ok_or_else(short)? != MAGIC {
            return Err(corrupt("not a checkpoint record", 0));
        }
        let version = fields.u32().ok_or_else(short)?;
        if version != VERSION {
            return Err(Error::Unsupported {
                file: PathBuf::from(path),
                version,
            });
        }
        let (summed, checksum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .filter(|(summed, _)| summed.len() >= HEAD_BYTES)
            .ok_or_else(short)?;
        if crc32fast::hash(summed) != u32::from_le_bytes(*checksum) {
            return Err(corrupt("the checksum is wrong", summed.len() as u64));
        }
        fields.bytes = summed;
        fields.record(corrupt)?.ok_or_else(short)
    }
}

/// Reads fields one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = *self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn position(&mut self) -> Option<Position> {
        Some(Position {
            term: self.u64()?,
            node: self.u64()?,
            index: self.u64()?,
        })
    }

    /// Everything after the version; `None` if the bytes end too early.
    fn record(
        &mut self,
        corrupt: impl Fn(&'static str, u64) -> Error,
    ) -> Result<Option<Record>, Error> {
        let Some(flags) = self.u32() else {
            return Ok(None);
        };
        let page_size = self.u32().and_then(PageSize::new);
        let page_size = page_size.ok_or_else(|| corrupt("an impossible page size", 12))?;
        if flags & !(FLAG_DATA | FLAG_CLOSED | FLAG_OVERLAY) != 0 {
            return Err(corrupt("an unknown flag", 8));
        }
        let record = self.after_page_size(flags, page_size);
        let extra = record.is_some() && self.at != self.bytes.len();
        if extra {
            return Err(corrupt("bytes after the membership", self.at as u64));
        }
        Ok(record)
    }

    fn after_page_size(&mut self, flags: u32, page_size: PageSize) -> Option<Record> {
        let page_count = PageCount(self.u32()?);
        let membership_bytes = self.u32()? as usize;
        let hash = DatabaseHash(self.take().map(u128::from_le_bytes)?);
        let applied = self.position()?;
        let data = self.position()?;
        let stamp = Stamp {
            bytes: self.u64()?,
            modified: (
                self.take().map(i64::from_le_bytes)?,
                self.take().map(i64::from_le_bytes)?,
            ),
            inode: self.u64()?,
        };
        let overlay = Overlay {
            salts: Salts(self.take()?),
            frames: self.u32()?,
            checksum: Checksum {
                s0: self.u32()?,
                s1: self.u32()?,
            },
        };
        let membership = self
            .bytes
            .get(self.at..self.at.checked_add(membership_bytes)?)?;
        self.at += membership_bytes;
        Some(Record {
            applied,
            data: (flags & FLAG_DATA != 0).then_some(data),
            membership: membership.to_vec(),
            page_size,
            page_count,
            hash,
            stamp,
            is_closed: flags & FLAG_CLOSED != 0,
            overlay: (flags & FLAG_OVERLAY != 0).then_some(overlay),
        })
    }
}

fn stamp(lock: &StartLock) -> Result<Stamp, Error> {
    let metadata = lock.file().metadata();
    let metadata = metadata.map_err(|e| Error::io("look at", lock.path(), e))?;
    Ok(Stamp::of(&metadata))
}

/// Replaces a file so that after a crash there is the old one or the new one.
fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(TEMPORARY_NAME);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}
