//! A WAL of any content, read by our walker and recovered by SQLite: both must find the same
//! committed transactions.
//!
//! An input is a WAL as it is, or a script that builds one with right checksums and then spoils it;
//! the first byte says which.

use std::fs;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use wallaby::sqlite::{AutoVacuum, genesis_page};
use wallaby::wal::index::INDEX_HEADER_BYTES;
use wallaby::wal::{
    ByteOrder, Checksum, End, FrameHeader, IndexHeader, PageCount, PageNumber, PageSize, Salts,
    Transactions, WalError, WalHeader,
};

use crate::memory::{Bound, bounded};
use crate::script::Script;
use crate::{Reached, Sample, place};

/// What both sides have to agree about.
#[derive(Debug, PartialEq)]
struct Prefix {
    frames: u32,
    /// Only if there are frames.
    rest: Option<(PageCount, Checksum, PageSize, Salts, ByteOrder)>,
}

const NOTHING: Prefix = Prefix {
    frames: 0,
    rest: None,
};

/// See the module.
///
/// # Panics
/// If SQLite finds something else.
pub fn walker(data: &[u8]) -> Reached {
    let mut script = Script::new(data);
    let is_script = script.byte() % 2 == 1;
    let built;
    let wal = if is_script {
        built = build(&mut script);
        built.as_slice()
    } else {
        script.rest()
    };
    let ours = bounded(Bound::PLAIN, wal.len(), || walk(wal));
    let page_size = Transactions::of(wal).map_or(512, |walk| walk.header().page_size.bytes());
    let theirs = recover(wal, PageSize::new(page_size).expect("one of a header"));
    match ours {
        Ok((header, end)) => {
            let expected = prefix(&header, &end);
            assert_eq!(theirs, Ok(expected), "the walk ended with {end:?}");
            Reached::accepted(end.frame_committed > 0)
        }
        Err(WalError::Unsupported { .. }) => {
            // SQLite looks at the page size before the version.
            let is_odd = theirs == Ok(NOTHING) && !has_page_size(wal);
            let is_refused = theirs == Err(ErrorCode::CannotOpen);
            assert!(is_odd || is_refused, "{theirs:?} of an unknown version");
            Reached::Refused
        }
        Err(error) => {
            assert_eq!(theirs, Ok(NOTHING), "{error}");
            Reached::Refused
        }
    }
}

fn walk(wal: &[u8]) -> Result<(WalHeader, End), WalError> {
    let mut transactions = Transactions::of(wal)?;
    let (mut frames, mut first) = (0, 1);
    for transaction in transactions.by_ref() {
        assert_eq!(transaction.frame_first, first, "no frame is left out");
        frames += transaction.frames.len();
        first = u32::try_from(frames).expect("a short WAL") + 1;
    }
    let end = transactions.end().expect("it has ended");
    assert_eq!(end.frame_committed + 1, first);
    Ok((*transactions.header(), end))
}

fn prefix(header: &WalHeader, end: &End) -> Prefix {
    Prefix {
        frames: end.frame_committed,
        rest: end.page_count.map(|count| {
            (
                count,
                end.checksum,
                header.page_size,
                header.salts,
                header.order,
            )
        }),
    }
}

fn has_page_size(wal: &[u8]) -> bool {
    let size = wal[8..12].try_into().map(u32::from_be_bytes);
    size.is_ok_and(|size| PageSize::new(size).is_some())
}

/// What SQLite makes of the bytes as the WAL of a small database: the header of its WAL-index.
fn recover(wal: &[u8], page_size: PageSize) -> Result<Prefix, ErrorCode> {
    let dir = place::directory("walker");
    let path = dir.join("db");
    fs::write(&path, genesis_page(page_size, AutoVacuum::None)).expect("room for a database");
    fs::write(dir.join("db-wal"), wal).expect("room for a WAL");
    let connection = Connection::open(&path).expect("opening reads nothing");
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .expect("a setting of every connection");
    // What is in the pages does not matter: recovery comes before the first of them is read.
    let read: Result<i64, _> =
        connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0));
    if let Err(error) = &read
        && error.sqlite_error_code() == Some(ErrorCode::CannotOpen)
    {
        return Err(ErrorCode::CannotOpen);
    }
    let index = fs::read(dir.join("db-shm")).expect("SQLite has made the WAL-index");
    let header = IndexHeader::parse_copies(&index[..2 * INDEX_HEADER_BYTES])
        .unwrap_or_else(|error| panic!("SQLite's WAL-index: {error}, after {read:?}"));
    Ok(Prefix {
        frames: header.frame_max,
        rest: (header.frame_max > 0).then(|| {
            (
                header.page_count,
                header.frame_checksum,
                header.page_size.expect("of a WAL with frames"),
                header.salts,
                header.order,
            )
        }),
    })
}

/// A WAL as a writer leaves it, and then perhaps damaged.
fn build(script: &mut Script<'_>) -> Vec<u8> {
    let size = script.pick(&[512, 512, 512, 1024, 4096, 65536]);
    let size = PageSize::new(size).expect("a power of two");
    let salts = Salts(script.long().to_le_bytes());
    let mut header = WalHeader::new(size, script.byte().into(), salts);
    if script.byte().is_multiple_of(4) {
        header.order = ByteOrder::Big;
    }
    let mut wal = header.encode().to_vec();
    let mut checksum = header.checksum();
    for _ in 0..FRAMES_MAX {
        if script.is_empty() {
            break;
        }
        let kind = script.byte();
        if kind % 8 == 7 {
            spoil(script, &mut wal);
            continue;
        }
        let page = match script.byte() {
            255 => script.word(),
            page => page.into(),
        };
        let page = PageNumber::new(page.max(1)).expect("not zero");
        let commit = kind
            .is_multiple_of(3)
            .then(|| PageCount(u32::from(script.byte()) + 1));
        let mut image = vec![script.byte(); size.len()];
        let patch = script.bytes(usize::from(kind / 32));
        image[..patch.len()].copy_from_slice(patch);
        // A frame of an earlier generation, now and then.
        let salts = if kind % 8 == 6 {
            salts.next([kind; 4])
        } else {
            salts
        };
        let frame = FrameHeader::seal(page, commit, &image, header.order, salts, checksum);
        checksum = frame.checksum;
        wal.extend_from_slice(&frame.encode());
        wal.extend_from_slice(&image);
    }
    wal
}

fn spoil(script: &mut Script<'_>, wal: &mut Vec<u8>) {
    let at = script.word() as usize % wal.len().max(1);
    match script.byte() % 4 {
        0 => wal.truncate(at),
        1 => wal.extend_from_slice(script.bytes(40)),
        _ => {
            if let Some(byte) = wal.get_mut(at) {
                *byte ^= script.byte();
            }
        }
    }
}

/// The WAL of a real database, whole and cut, and scripts.
pub(crate) fn samples() -> Vec<Sample> {
    let dir = place::empty_directory("walker-sample");
    let connection = Connection::open(dir.join("db")).expect("a database");
    connection
        .execute_batch(
            "PRAGMA page_size = 512; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE t(a, b);
             INSERT INTO t VALUES (1, 'one'), (2, zeroblob(900));
             UPDATE t SET b = 'two' WHERE a = 2;",
        )
        .expect("a few transactions");
    let wal = fs::read(dir.join("db-wal")).expect("the WAL of an open database");
    let raw = |wal: &[u8]| [&[0], wal].concat();
    let script = |size: u8, body: &[u8]| {
        let head = [1, size, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1];
        [&head, body].concat()
    };
    // Frames of kind 1 are open, of kind 3 they commit; kind 7 spoils.
    let frames = [1, 1, 9, 3, 2, 2, 9, 1, 1, 8, 3, 3, 3, 9, 1, 4, 7];
    vec![
        Sample::new("real", raw(&wal)),
        Sample::new("real-cut", raw(&wal[..wal.len() - 100])),
        Sample::new("real-header", raw(&wal[..32])),
        Sample::new("empty", raw(&[])),
        Sample::new("frames", script(0, &frames)),
        Sample::new("frames-of-64k", script(5, &frames[..7])),
        Sample::new(
            "frames-flipped",
            script(0, &[&frames[..], &[7, 70, 2, 0, 0, 2, 1]].concat()),
        ),
        Sample::new(
            "frames-of-two-generations",
            script(0, &[&frames[..], &[6, 1, 3, 5]].concat()),
        ),
    ]
}

const FRAMES_MAX: usize = 40;
