//! Start-up: from what is on disk to a database that holds exactly the committed prefix of the log.
//!
//! The checkpoint record says up to where the main file is complete; everything later is redone
//! from the log, up to the durable `committed`, as exact pages straight into the main file before
//! any connection is open. The cost is the log since the last checkpoint, never the size of the
//! database.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;

use super::error::{Error, REBUILD};
use super::fence::{Fence, Verdict};
use super::options::NodeOptions;
use super::parts::{StagedParts, all_pages, first_hash};
use super::spool::Spool;
use crate::raft::codec::{decode_membership, encode_membership};
use crate::raft::log::{Log, LogIdentity, LogOptions, RealFiles};
use crate::raft::{StoredMembership, position_of};
use crate::sqlite::{Change, PageHashes, Record, Redo, StartLock};
use crate::wal::{ClusterId, DatabaseHash, Delta, Position};

/// What a node starts from.
pub(crate) struct Recovered {
    pub(crate) log: Log,
    /// Held until the database is opened.
    pub(crate) lock: StartLock,
    /// `None` before the genesis.
    pub(crate) hashes: Option<PageHashes>,
    pub(crate) fence: Fence,
    pub(crate) membership: StoredMembership,
    /// Applied position of the durable checkpoint record.
    pub(crate) recorded: Option<Position>,
}

/// Brings log and database together. Blocks.
pub(crate) fn recover(
    options: &NodeOptions,
    cluster: ClusterId,
    node: u64,
) -> Result<Recovered, Error> {
    let dir = &options.data_dir;
    let log_dir = dir.join("log");
    fs::create_dir_all(&log_dir).map_err(Error::io(format!("create {}", log_dir.display())))?;
    let files =
        RealFiles::open(&log_dir).map_err(Error::io(format!("open {}", log_dir.display())))?;
    let identity = LogIdentity { cluster, node };
    let sizes = LogOptions {
        segment_bytes: options.log_segment_bytes,
        ..LogOptions::default()
    };
    let log = Log::open(Arc::new(files), identity, sizes)?;
    let record = Record::load(dir)?;
    let pending = Spool::pending(dir)?;
    let pending = pending.filter(|spool| {
        record
            .as_ref()
            .is_none_or(|record| record.applied < spool.manifest().applied)
    });
    let lock = StartLock::acquire(dir, options.open_wait)?;
    let (mut redo, start) = match (pending, record) {
        (Some(spool), _) => install(lock, &spool)?,
        (None, Some(record)) => {
            let membership =
                decode_membership(&record.membership).map_err(|error| Error::Corrupt {
                    what: error.to_string(),
                    file: dir.join(Record::FILE_NAME),
                    advice: REBUILD,
                })?;
            let start = Start {
                fence: Fence::at(Some(record.applied), record.data),
                membership,
            };
            (Redo::begin(lock, &record)?, start)
        }
        (None, None) => return unborn(lock, log),
    };
    let mut replay = Replay {
        fence: start.fence,
        membership: start.membership,
        parts: None,
    };
    replay.run(&log, &mut redo, options)?;
    let Replay {
        fence, membership, ..
    } = replay;
    // What a stage holds so far is delivered again by openraft, from its floor on.
    let fence = Fence::at(fence.settled(), fence.last_data);
    let applied = fence
        .last_applied
        .expect("a record has an applied position");
    let (lock, mut hashes) = redo.finish()?;
    let encoded = encode_membership(&membership);
    Record::save(&lock, &mut hashes, applied, fence.last_data, &encoded)?;
    remove_installed(dir)?;
    Ok(Recovered {
        log,
        lock,
        hashes: Some(hashes),
        fence,
        membership,
        recorded: Some(applied),
    })
}

struct Start {
    fence: Fence,
    membership: StoredMembership,
}

/// No record, no image: the node has never had a database.
fn unborn(lock: StartLock, log: Log) -> Result<Recovered, Error> {
    if log.purged().is_some() {
        return Err(Error::Corrupt {
            what: "the checkpoint record is missing, but the log was purged".to_owned(),
            file: lock.dir().join(Record::FILE_NAME),
            advice: REBUILD,
        });
    }
    let found = fs::metadata(lock.path()).map(|metadata| metadata.len());
    let found = found.map_err(Error::io(format!("look at {}", lock.path().display())))?;
    // An interrupted genesis leaves one page at most. Anything longer is somebody's database.
    if found > u64::from(u16::MAX) + 1 {
        return Err(Error::Configuration(format!(
            "{} has {found} bytes, but this directory has no checkpoint record; move that file \
             away, and load it through the HTTP interface when the node runs",
            lock.path().display()
        )));
    }
    Ok(Recovered {
        log,
        lock,
        hashes: None,
        fence: Fence::default(),
        membership: StoredMembership::default(),
        recorded: None,
    })
}

/// Finishes an installation that a crash interrupted: the image replaces the main file.
fn install(lock: StartLock, spool: &Spool) -> Result<(Redo, Start), Error> {
    let manifest = spool.manifest();
    tracing::info!(applied = %manifest.applied, "finishing the installation of a received image");
    let mut redo = Redo::replace(lock, manifest.page_size)?;
    let mut pages = spool.pages();
    redo.apply(Change {
        page_count: manifest.page_count,
        hash_before: DatabaseHash::default(),
        hash_after: manifest.hash,
        pages: &mut pages,
    })?;
    let start = Start {
        fence: Fence::at(Some(manifest.applied), manifest.data),
        membership: manifest.membership.clone(),
    };
    Ok((redo, start))
}

/// The redone image is covered by a record now.
fn remove_installed(dir: &Path) -> Result<(), Error> {
    match fs::remove_file(dir.join(super::spool::INSTALLING)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove the installed image")(error)),
    }
}

struct Replay {
    fence: Fence,
    membership: StoredMembership,
    parts: Option<StagedParts>,
}

impl Replay {
    /// Redoes every entry after the record, up to the durable `committed`.
    fn run(&mut self, log: &Log, redo: &mut Redo, options: &NodeOptions) -> Result<(), Error> {
        let Some(committed) = log.committed() else {
            return Ok(());
        };
        let mut next = self
            .fence
            .last_applied
            .map_or(0, |applied| applied.index + 1);
        let mut redone = 0_u64;
        while next <= committed.index {
            let entries = log.read_blocking(next, committed.index, READ_BYTES)?;
            if entries.is_empty() {
                return Err(Error::Corrupt {
                    what: format!("entry {next} is committed, but not in the log"),
                    file: options.data_dir.join("log"),
                    advice: REBUILD,
                });
            }
            for entry in entries {
                next = entry.log_id.index + 1;
                redone += 1;
                let position = position_of(&entry.log_id);
                match entry.payload {
                    EntryPayload::Membership(membership) => {
                        self.fence.pass(position);
                        let stored = StoredMembership::new(Some(entry.log_id), membership);
                        if self.fence.stage.is_none() {
                            self.membership = stored;
                        }
                    }
                    EntryPayload::Normal(payload) if !payload.0.is_empty() => {
                        let delta = Delta::decode(payload.0).map_err(|error| Error::Corrupt {
                            what: format!("entry {position}: {error}"),
                            file: options.data_dir.join("log"),
                            advice: REBUILD,
                        })?;
                        self.redo(delta, position, redo, options)?;
                    }
                    EntryPayload::Blank | EntryPayload::Normal(_) => self.fence.pass(position),
                }
            }
        }
        if redone > 0 {
            tracing::info!(entries = redone, upto = %committed, "redone from the log");
        }
        Ok(())
    }

    fn redo(
        &mut self,
        delta: Delta,
        position: Position,
        redo: &mut Redo,
        options: &NodeOptions,
    ) -> Result<(), Error> {
        let spooling = Error::io("spool the parts of a transaction");
        match self.fence.judge(delta.header(), position) {
            Verdict::Reject => self.parts = None,
            Verdict::Stage => {
                if delta.header().part.is_first() {
                    let dir = options.data_dir.clone();
                    self.parts = Some(StagedParts::new(dir, options.spool_bytes_max));
                }
                let parts = self.parts.as_mut().expect("the fence stages part 1 first");
                parts.push(delta).map_err(spooling)?;
            }
            Verdict::Accept => {
                let earlier = self
                    .parts
                    .take()
                    .filter(|_| !delta.header().part.is_first());
                let hash_before = first_hash(earlier.as_ref(), &delta)?;
                let mut pages = all_pages(earlier.as_ref(), &delta);
                redo.apply(Change {
                    page_count: delta.header().page_count,
                    hash_before,
                    hash_after: delta.header().hash_after,
                    pages: &mut pages,
                })?;
            }
        }
        Ok(())
    }
}

/// Entries are read in runs of this size.
const READ_BYTES: usize = 8 << 20;
