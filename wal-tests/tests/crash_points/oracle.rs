//! Whether a data directory after a crash holds what it must: everything acknowledged, nothing by
//! halves, and the same in main file, page hashes, checkpoint record and log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use openraft::EntryPayload;
use rusqlite::{Connection, OpenFlags};
use wallaby::node::{NodeOptions, Offline, recover_offline};
use wallaby::raft::codec::decode_membership;
use wallaby::raft::{Membership, position_of};
use wallaby::sqlite::Record;
use wallaby::wal::{DatabaseHash, Delta, DeltaError, PageHash, PageNumber, PageSize, Position};

/// What a node may and must have at some moment of a story.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expectation {
    /// The data entry of the last write that was acknowledged and that this node was needed for.
    pub(crate) floor: u64,
    /// That of the last write which had begun.
    pub(crate) ceiling: u64,
    /// Whether a node that is not this one is a voter; `None` while that changes.
    pub(crate) other_votes: Option<bool>,
}

/// The hash of the database after each data entry, as the running leader told it.
pub(crate) type Hashes = BTreeMap<u64, DatabaseHash>;

/// Pages and position of a database that is being followed through the log.
struct Database {
    page_size: PageSize,
    pages: Vec<Vec<u8>>,
    data: Option<Position>,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Found {
    /// The last data entry in the main file.
    pub(crate) recovered: u64,
    /// The last data entry in the log.
    pub(crate) last: u64,
}

/// Recovers the directory and checks everything.
pub(crate) fn check(
    runtime: &tokio::runtime::Runtime,
    options: &NodeOptions,
    hashes: &Hashes,
    expected: &Expectation,
) -> Result<Found, String> {
    let begin = Instant::now();
    let recovered = loop {
        let recovered = runtime.block_on(recover_offline(options));
        // A process that another thread is starting holds our locks until it runs its program.
        let is_locked = recovered.as_ref().is_err_and(is_locked);
        if !is_locked || begin.elapsed() > LOCK_PATIENCE {
            break recovered;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let Some(offline) = recovered.map_err(|error| format!("recovery fails: {error}"))? else {
        return match expected.floor {
            0 => Ok(Found::default()),
            floor => Err(format!(
                "no cluster is known, but entry {floor} is acknowledged"
            )),
        };
    };
    let result = look(&options.data_dir, &offline, hashes, expected);
    // It is locked until its writer has ended.
    offline.log.close();
    result
}

/// Whether the log is locked by a process.
fn is_locked(error: &(impl std::error::Error + 'static)) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let error_of_file = error.downcast_ref::<std::io::Error>();
        if error_of_file.is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            return true;
        }
        cause = error.source();
    }
    false
}

const LOCK_PATIENCE: Duration = Duration::from_secs(5);

fn look(
    dir: &Path,
    offline: &Offline,
    hashes: &Hashes,
    expected: &Expectation,
) -> Result<Found, String> {
    let (mut database, mut membership) = match Record::load(dir) {
        Ok(Some(record)) => {
            let membership = decode_membership(&record.membership);
            let membership = membership.map_err(|error| format!("the membership: {error}"))?;
            let database = main_file(dir, &record, offline)?;
            (Some(database), Some(membership.membership().clone()))
        }
        Ok(None) if offline.applied.is_none() => (None, None),
        Ok(None) => return Err("no record, but a position".to_owned()),
        Err(error) => return Err(format!("the record: {error}")),
    };
    if let Some(database) = &database {
        database.expect(hashes)?;
        integrity(dir)?;
    }
    let recovered = database.as_ref().and_then(|database| database.data);
    replay(offline, &mut database, &mut membership, hashes)?;
    let last = database.and_then(|database| database.data);
    let index = |position: Option<Position>| position.map_or(0, |position| position.index);
    let found = Found {
        recovered: index(recovered),
        last: index(last),
    };
    if found.last < expected.floor || found.last > expected.ceiling {
        return Err(format!("{found:?}, but {expected:?}"));
    }
    check_membership(membership.as_ref(), expected)?;
    Ok(found)
}

fn check_membership(found: Option<&Membership>, expected: &Expectation) -> Result<(), String> {
    let (Some(found), Some(votes)) = (found, expected.other_votes) else {
        return Ok(());
    };
    let sets: &Vec<BTreeSet<u64>> = found.get_joint_config();
    let voters: BTreeSet<u64> = sets.iter().flatten().copied().collect();
    let is_right = if votes {
        voters.len() == 2
    } else {
        voters.len() == 1
    };
    if is_right {
        return Ok(());
    }
    Err(format!("the voters are {sets:?}, but {expected:?}"))
}

/// Reads the main file, and compares it with the record and with the side file.
fn main_file(dir: &Path, record: &Record, offline: &Offline) -> Result<Database, String> {
    if offline.applied != Some(record.applied) || offline.data != record.data {
        return Err(format!("{record:?}, but it said {:?}", offline.applied));
    }
    if !offline.damaged.is_empty() {
        return Err(format!("damaged pages: {:?}", offline.damaged));
    }
    let read = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("{name}: {e}"));
    let bytes = read("db.sqlite")?;
    let page_bytes = record.page_size.len();
    if bytes.len() != page_bytes * record.page_count.0 as usize {
        return Err(format!("{} bytes, but {record:?}", bytes.len()));
    }
    let pages: Vec<Vec<u8>> = bytes.chunks(page_bytes).map(<[u8]>::to_vec).collect();
    let database = Database {
        page_size: record.page_size,
        pages,
        data: record.data,
    };
    if database.hash() != record.hash {
        return Err(format!(
            "the pages have {}, but {record:?}",
            database.hash()
        ));
    }
    let side = read("pages.hash")?;
    let entries = side.get(16..).unwrap_or_default().chunks_exact(16);
    let entries = entries.map(|entry| u128::from_le_bytes(entry.try_into().expect("16 bytes")));
    let table: Vec<u128> = entries.take(database.pages.len()).collect();
    let found = database.page_hashes().map(|hash| hash.0);
    if !found.eq(table) {
        return Err("the table of page hashes is not that of the pages".to_owned());
    }
    Ok(database)
}

impl Database {
    fn page_hashes(&self) -> impl Iterator<Item = PageHash> + '_ {
        (1..)
            .zip(&self.pages)
            .map(|(number, image)| PageHash::of(PageNumber::new(number).expect("from 1 on"), image))
    }

    fn hash(&self) -> DatabaseHash {
        self.page_hashes()
            .fold(DatabaseHash::default(), DatabaseHash::with)
    }

    /// It must be the database that the leader had at this entry. One that nobody was told of is
    /// later than all of them, which the ceiling forbids or allows.
    fn expect(&self, hashes: &Hashes) -> Result<(), String> {
        let at = self.data.map_or(0, |data| data.index);
        let is_told = hashes.range(at..).next().is_some();
        match hashes.get(&at) {
            Some(hash) if *hash == self.hash() => Ok(()),
            None if !is_told => Ok(()),
            other => Err(format!("{} at entry {at}, but {other:?}", self.hash())),
        }
    }

    fn apply(&mut self, parts: &[Delta], at: Position) -> Result<(), String> {
        let header = parts.last().expect("a transaction has parts").header();
        let is_whole = parts.iter().all(Delta::is_whole);
        let before = if is_whole {
            Vec::new()
        } else {
            self.pages.clone()
        };
        self.pages.resize(header.page_count.0 as usize, Vec::new());
        for part in parts {
            let old = |page: PageNumber, image: &mut [u8]| {
                if let Some(page) = before.get(page.number() as usize - 1)
                    && page.len() == image.len()
                {
                    image.copy_from_slice(page);
                }
                Ok::<_, DeltaError>(())
            };
            for page in part.pages(old) {
                let (number, image) = page.map_err(|error| format!("entry {at}: {error}"))?;
                let place = number.number() as usize - 1;
                if let Some(page) = self.pages.get_mut(place) {
                    *page = image.into_owned();
                }
            }
        }
        self.data = Some(at);
        Ok(())
    }
}

/// SQLite's own opinion of the main file.
fn integrity(dir: &Path) -> Result<(), String> {
    let uri = format!("file:{}?immutable=1", dir.join("db.sqlite").display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let opened = Connection::open_with_flags(uri, flags);
    let verdict = opened.and_then(|database| {
        database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
    });
    match verdict.as_deref() {
        Ok("ok") => Ok(()),
        other => Err(format!("integrity_check: {other:?}")),
    }
}

/// Follows the database through what the log has after the main file, with a fence of its own.
fn replay(
    offline: &Offline,
    database: &mut Option<Database>,
    membership: &mut Option<Membership>,
    hashes: &Hashes,
) -> Result<(), String> {
    let Some(last) = offline.log.last() else {
        return Ok(());
    };
    let mut next = offline.applied.map_or(0, |applied| applied.index + 1);
    let mut staged: Vec<Delta> = Vec::new();
    while next <= last.index {
        let entries = offline.log.read_blocking(next, last.index, usize::MAX);
        let entries = entries.map_err(|error| format!("reading entry {next}: {error}"))?;
        if entries.is_empty() {
            return Err(format!("entry {next} of {} is missing", last.index));
        }
        for entry in entries {
            let at = position_of(&entry.log_id);
            if at.index != next {
                return Err(format!("entry {at} in the place of {next}"));
            }
            next += 1;
            match entry.payload {
                EntryPayload::Membership(found) => *membership = Some(found),
                EntryPayload::Normal(payload) if !payload.is_mark() => {
                    let delta = Delta::decode(payload.0);
                    let delta = delta.map_err(|error| format!("entry {at}: {error}"))?;
                    take(delta, at, &mut staged, database, hashes)?;
                }
                EntryPayload::Normal(_) | EntryPayload::Blank => {}
            }
        }
    }
    Ok(())
}

fn take(
    delta: Delta,
    at: Position,
    staged: &mut Vec<Delta>,
    database: &mut Option<Database>,
    hashes: &Hashes,
) -> Result<(), String> {
    let header = delta.header();
    let data = database.as_ref().and_then(|database| database.data);
    let number = usize::try_from(header.part.number).unwrap_or(usize::MAX);
    if number == 1 {
        staged.clear();
    }
    if header.base != data || number != staged.len() + 1 {
        // Refused by every node.
        staged.clear();
        return Ok(());
    }
    let (is_last, hash_after) = (header.part.is_last(), header.hash_after);
    let database = database.get_or_insert_with(|| Database {
        page_size: header.page_size,
        pages: Vec::new(),
        data: None,
    });
    if header.page_size != database.page_size {
        database.page_size = header.page_size;
    }
    if number == 1 && header.hash_before != database.hash() {
        return Err(format!("entry {at} does not continue {}", database.hash()));
    }
    staged.push(delta);
    if is_last {
        database.apply(&std::mem::take(staged), at)?;
        if hash_after != database.hash() {
            return Err(format!("entry {at} gives {}", database.hash()));
        }
        database.expect(hashes)?;
    }
    Ok(())
}
