//! Start-up: from what is on disk to a database that holds exactly the committed prefix of the log.
//!
//! The checkpoint record names the state that the files have, exactly; everything later is redone
//! from the log, up to the durable `committed`, before any connection is open. The cost is the log
//! since the last checkpoint, never the size of the database.
//!
//! Unless somebody has opened the database while the node was down: SQLite moves the whole WAL into
//! the main file when its last connection closes. Then the file is the state of a later entry,
//! which its hash finds in the log.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::storage::RaftLogStorage as _;

use super::beginning::Beginning;
use super::error::{Error, REBUILD};
use super::fence::Fence;
use super::frontier::State;
use super::options::NodeOptions;
use super::replay::Replay;
use super::spool::Spool;
use crate::raft::codec::{decode_membership, encode_membership};
use crate::raft::log::{Files, Log, LogIdentity, LogOptions, RealFiles};
use crate::raft::{StoredMembership, log_id_of, position_of};
use crate::sqlite::{Change, Installation, PageHashes, Record, StartLock};
use crate::wal::{ClusterId, DatabaseHash, DeltaHeader, PageNumber, Position};

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
    /// Pages of the main file that are not as they were written.
    pub(crate) damaged: Vec<PageNumber>,
    /// Whether the database was closed in order the last time, or never existed.
    pub(crate) was_closed: bool,
}

fn open_log(options: &NodeOptions, identity: LogIdentity) -> Result<Log, Error> {
    let files = match &options.log_files {
        Some(files) => Arc::clone(files),
        None => real_files(&options.data_dir.join("log"))?,
    };
    let sizes = LogOptions {
        segment_bytes: options.log_segment_bytes,
        ..LogOptions::default()
    };
    Ok(Log::open(files, identity, sizes)?)
}

fn real_files(dir: &Path) -> Result<Arc<dyn Files>, Error> {
    fs::create_dir_all(dir).map_err(Error::io(format!("create {}", dir.display())))?;
    let files = RealFiles::open(dir).map_err(Error::io(format!("open {}", dir.display())))?;
    Ok(Arc::new(files))
}

/// Brings log and database together. Blocks.
pub(crate) fn recover(
    options: &NodeOptions,
    cluster: ClusterId,
    node: u64,
) -> Result<Recovered, Error> {
    let dir = &options.data_dir;
    let log = open_log(options, LogIdentity { cluster, node })?;
    let record = Record::load(dir)?;
    let pending = Spool::pending(dir)?;
    let pending = pending.filter(|spool| {
        record
            .as_ref()
            .is_none_or(|record| record.applied < spool.manifest().applied)
    });
    let mut lock = StartLock::acquire(dir, options.open_wait)?;
    let was_closed = record.as_ref().is_none_or(|record| record.is_closed);
    // What may be the last copy is looked at as a whole before anybody counts on it, and pages that
    // were not received count as good only if they are.
    let last_copy = options.recovery.is_some();
    let is_doubtful = last_copy || pending.is_some();
    let record = match (pending, record) {
        (Some(spool), record) => {
            lock = install(lock, &spool, record.as_ref())?;
            Record::load(dir)?.expect("the installation was recorded")
        }
        (None, Some(record)) => record,
        (None, None) => return unborn(lock, log),
    };
    let beginning = Beginning::find(lock, &record, &log, options, is_doubtful)?;
    let mut replay = Replay {
        state: state_of(&record, dir)?,
        parts: None,
        covered: beginning.covered,
    };
    let (mut redo, mut damaged) = (beginning.redo, beginning.damaged);
    replay.run(&log, &mut redo, options)?;
    damaged.retain(|page| !redo.has_changed(*page));
    if last_copy {
        refuse(&damaged, dir)?;
    }
    let Replay { state, .. } = replay;
    let membership = state.settled_membership().clone();
    // What a stage holds so far is delivered again by openraft, from its floor on.
    let fence = Fence::at(state.fence.settled(), state.fence.last_data);
    let applied = fence
        .last_applied
        .expect("a record has an applied position");
    if let Some(data) = fence.last_data {
        compare(&log, data, redo.hash(), &dir.join(StartLock::FILE_NAME))?;
    }
    let encoded = encode_membership(&membership);
    let (lock, hashes) = redo.finish(applied, fence.last_data, &encoded)?;
    remove_installed(dir)?;
    Ok(Recovered {
        log,
        lock,
        hashes: Some(hashes),
        fence,
        membership,
        recorded: Some(applied),
        damaged,
        was_closed,
    })
}

/// The state of the log that a record is of.
fn state_of(record: &Record, dir: &Path) -> Result<State, Error> {
    let membership = decode_membership(&record.membership).map_err(|error| Error::Corrupt {
        what: error.to_string(),
        file: dir.join(Record::FILE_NAME),
        advice: REBUILD,
    })?;
    let fence = Fence::at(Some(record.applied), record.data);
    Ok(State::new(fence, membership))
}

/// Compares the database with the last data entry, if the log still has it: files that agree among
/// themselves are no proof that they are what this node was given.
fn compare(log: &Log, data: Position, found: DatabaseHash, file: &Path) -> Result<(), Error> {
    if log
        .purged()
        .is_some_and(|purged| purged.index >= data.index)
    {
        return Ok(());
    }
    let entries = log.read_blocking(data.index, data.index, 1)?;
    let entry = entries.into_iter().next();
    let payload = match entry.filter(|entry| position_of(&entry.log_id) == data) {
        Some(entry) => entry.payload,
        // The log is behind the database, as after an installation.
        None => return Ok(()),
    };
    let EntryPayload::Normal(payload) = payload else {
        return Ok(());
    };
    match DeltaHeader::peek(&payload.0) {
        Some(header) if header.part.is_last() && header.hash_after != found => {
            let after = header.hash_after;
            Err(Error::Corrupt {
                what: format!(
                    "it is not the database that the log leads to: after entry {data} it has the \
                     hash {found}, and the log {after}"
                ),
                file: file.to_owned(),
                advice: REBUILD,
            })
        }
        _ => Ok(()),
    }
}

/// Drops what a crash in the middle of an installation may have left in the log: an entry at the
/// applied index that is another one, and everything that follows it. Such entries were never
/// committed, because the image was.
pub(crate) async fn reconcile(mut log: Log, applied: Option<Position>) -> Result<(), Error> {
    let Some(applied) = applied else {
        return Ok(());
    };
    let purged = log.purged();
    if purged.is_some_and(|purged| purged.index >= applied.index) {
        return Ok(());
    }
    let reader = log.clone();
    let found =
        tokio::task::spawn_blocking(move || reader.read_blocking(applied.index, applied.index, 1))
            .await
            .map_err(|error| Error::Raft(error.to_string()))??;
    let found = found.first().map(|entry| position_of(&entry.log_id));
    if found == Some(applied) {
        return Ok(());
    }
    tracing::info!(%applied, "the log is behind the database, as after an installation");
    let dropped = log.truncate_after(purged.map(log_id_of)).await;
    dropped.map_err(Error::io("cut the log"))?;
    let dropped = log.purge(log_id_of(applied)).await;
    dropped.map_err(Error::io("purge the log"))
}

/// There is nobody to mend damaged pages from if this may be the last copy.
fn refuse(damaged: &[PageNumber], dir: &Path) -> Result<(), Error> {
    let Some(first) = damaged.first() else {
        return Ok(());
    };
    Err(Error::Corrupt {
        what: format!(
            "{} of its pages are not what was written there, the first of them is page {first}",
            damaged.len()
        ),
        file: dir.join(StartLock::FILE_NAME),
        advice: REBUILD,
    })
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
        damaged: Vec::new(),
        was_closed: true,
    })
}

/// Finishes an installation that a crash interrupted: its pages go over the main file as it was at
/// the record, or are all there is.
fn install(lock: StartLock, spool: &Spool, record: Option<&Record>) -> Result<StartLock, Error> {
    let manifest = spool.manifest();
    tracing::info!(applied = %manifest.applied, "finishing the installation of a received image");
    let record = record.filter(|record| record.page_size == manifest.page_size);
    let mut installation = match record {
        Some(record) => Installation::begin(lock, record)?,
        None => Installation::replace(lock, manifest.page_size)?,
    };
    let mut pages = spool.pages();
    installation.apply(Change {
        page_count: manifest.page_count,
        hash_before: record.map_or(DatabaseHash::default(), |record| record.hash),
        hash_after: manifest.hash,
        pages: &mut pages,
    })?;
    let (lock, mut hashes) = installation.finish()?;
    let (applied, data) = (manifest.applied, manifest.data);
    let membership = encode_membership(&manifest.membership);
    Record::save(&lock, &mut hashes, applied, data, &membership)?;
    Ok(lock)
}

/// The received image is covered by a record now.
fn remove_installed(dir: &Path) -> Result<(), Error> {
    tracing::debug!("the checkpoint record covers what was redone");
    match fs::remove_file(dir.join(super::spool::INSTALLING)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove the installed image")(error)),
    }
}
