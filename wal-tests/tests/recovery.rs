//! Start-up: the empty database, the start lock, the checkpoint record, and redo.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use wal_tests::replica::{Replica, data_dir, position, redo, with_change};
use wal_tests::seed::Random;
use wal_tests::sql_workload::{Step, Workload};
use wallaby::sqlite::{
    AutoVacuum, Change, Checkpoint, DatabaseOptions, Error, Installation, Record, Redo, StartLock,
    genesis_page,
};
use wallaby::wal::{Delta, PageSize};

const PAGE_BYTES: usize = 1024;

fn create(dir: &Path) -> Replica {
    let size = PageSize::new(1024).unwrap();
    Replica::create(
        dir,
        size,
        AutoVacuum::Incremental,
        DatabaseOptions::default(),
    )
}

fn save(node: &mut Replica, index: u64) {
    let backfill = node.checkpoint(Checkpoint::Passive).unwrap();
    assert!(backfill.complete);
    node.database
        .save_record(position(index), Some(position(index)), b"members")
        .unwrap();
}

/// Runs steps of a workload and returns the deltas.
fn work(node: &Replica, workload: &mut Workload, steps: usize) -> Vec<Delta> {
    for _ in 0..steps {
        match workload.step() {
            Step::Alone(statement) => drop(node.sql().execute_batch(&statement)),
            Step::Group(statements, commit) => {
                node.sql().execute_batch("BEGIN").unwrap();
                for statement in statements {
                    drop(node.sql().execute_batch(&statement));
                }
                let end = if commit { "COMMIT" } else { "ROLLBACK" };
                node.sql().execute_batch(end).unwrap();
            }
        }
    }
    let released = node.decisions.take();
    released
        .into_iter()
        .map(|bytes| Delta::decode(bytes).unwrap())
        .collect()
}

fn first(node: &Replica, workload: &mut Workload) {
    let Step::Group(statements, _) = workload.first() else {
        panic!("a group");
    };
    node.sql().execute_batch(&statements.join(";")).unwrap();
    assert!(!node.decisions.take().is_empty());
}

#[test]
fn page_1_of_an_empty_database_is_what_sqlite_itself_writes() {
    let dir = data_dir();
    for size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        for (auto_vacuum, pragma) in [
            (AutoVacuum::None, 0),
            (AutoVacuum::Full, 1),
            (AutoVacuum::Incremental, 2),
        ] {
            let path = dir.path().join(format!("{size}-{pragma}"));
            let plain = Connection::open(&path).unwrap();
            plain
                .execute_batch(&format!(
                    "PRAGMA page_size = {size}; PRAGMA auto_vacuum = {pragma}; \
                     PRAGMA journal_mode = WAL;"
                ))
                .unwrap();
            plain.close().unwrap();
            let ours = genesis_page(PageSize::new(size).unwrap(), auto_vacuum);
            assert!(
                std::fs::read(&path).unwrap() == ours,
                "{size} {auto_vacuum:?}"
            );
        }
    }
}

#[test]
fn the_start_lock_waits_for_another_process_and_names_it() {
    let dir = data_dir();
    let mut node = create(dir.path());
    save(&mut node, 2);
    let path = node.path().to_owned();
    drop(node);
    let Ok(mut other) = Command::new("sqlite3")
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    else {
        return;
    };
    let input = other.stdin.as_mut().unwrap();
    input
        .write_all(b"SELECT count(*) FROM sqlite_schema;\n")
        .unwrap();
    // Its answer says that it has the database open.
    let mut answer = [0; 2];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut answer).unwrap();
    let Err(Error::InUse { pid, .. }) = StartLock::acquire(dir.path(), Duration::ZERO) else {
        panic!("not locked out");
    };
    assert_eq!(pid, Some(other.id()));
    drop(other.stdin.take());
    StartLock::acquire(dir.path(), Duration::from_secs(60)).unwrap();
    other.wait().unwrap();
}

#[test]
fn a_database_is_opened_once_in_a_process_and_again_when_nothing_is_left_of_it() {
    let dir = data_dir();
    let node = create(dir.path());
    let image = node.database.image().unwrap();
    let held = || StartLock::acquire(dir.path(), Duration::from_secs(60));
    assert!(matches!(held(), Err(Error::InUse { .. })));
    node.database.close().unwrap();
    assert!(matches!(held(), Err(Error::InUse { .. })));
    drop(image);
    held().unwrap();
}

#[test]
fn a_damaged_record_is_refused() {
    let dir = data_dir();
    assert_eq!(Record::load(dir.path()).unwrap(), None);
    let mut node = create(dir.path());
    save(&mut node, 7);
    let record = Record::load(dir.path()).unwrap().unwrap();
    assert_eq!(
        (record.applied, record.data),
        (position(7), Some(position(7)))
    );
    assert_eq!(
        (record.membership.as_slice(), record.hash),
        (&b"members"[..], node.database.hash())
    );
    let path = dir.path().join("checkpoint");
    let bytes = std::fs::read(&path).unwrap();
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Record::load(dir.path())
    };
    for length in 0..bytes.len() {
        assert!(
            matches!(load(&bytes[..length]), Err(Error::Corrupt { .. })),
            "{length}"
        );
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(load(&damaged).is_err(), "bit {bit}");
    }
    assert!(load(&[bytes.as_slice(), b"more"].concat()).is_err());
    let mut newer = bytes.clone();
    newer[4] += 1;
    assert!(matches!(
        load(&newer),
        Err(Error::Unsupported { version: 3, .. })
    ));
    assert_eq!(load(&bytes).unwrap(), Some(record));
    node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
    node.count_on_wal(8);
    let over = Record::load(dir.path()).unwrap().unwrap();
    let frames = node.database.backfilled().unwrap().wal_frames;
    assert_eq!(over.overlay.map(|overlay| overlay.frames), Some(frames));
    assert_eq!((over.applied, over.is_closed), (position(8), false));
}

#[test]
fn a_damaged_table_of_page_hashes_is_made_anew_from_the_pages() {
    let dir = data_dir();
    let mut node = create(dir.path());
    save(&mut node, 2);
    drop(node);
    let path = dir.path().join("pages.hash");
    let bytes = std::fs::read(&path).unwrap();
    let record = Record::load(dir.path()).unwrap().unwrap();
    let recovered = || redo(dir.path(), &[]).map(|(_lock, hashes)| hashes.sum());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(recovered().unwrap(), record.hash, "bit {bit}");
    }
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(recovered().unwrap(), record.hash, "{length} bytes");
    }
    // With a page damaged as well, nobody can say what is right.
    let mut damaged = bytes.clone();
    damaged[16] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("db.sqlite"))
        .unwrap();
    file.write_all_at(b"x", 200).unwrap();
    assert!(recovered().is_err());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(recovered().unwrap(), record.hash);
}

#[test]
fn the_record_says_whether_the_file_was_touched() {
    let dir = data_dir();
    let mut node = create(dir.path());
    node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
    save(&mut node, 2);
    node.database.close().unwrap();
    let record = Record::load(dir.path()).unwrap().unwrap();
    let (lock, _) = redo(dir.path(), &[]).unwrap();
    assert!(record.matches(&lock).unwrap());
    drop(lock);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("db.sqlite"))
        .unwrap();
    file.write_all_at(b"x", 2000).unwrap();
    drop(file);
    let lock = StartLock::acquire(dir.path(), Duration::ZERO).unwrap();
    assert!(!record.matches(&lock).unwrap());
}

#[test]
fn nothing_is_recorded_before_the_checkpoint_is_complete() {
    let dir = data_dir();
    let mut node = create(dir.path());
    node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
    let reader = node.reader();
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    node.sql()
        .execute_batch("INSERT INTO t VALUES (1)")
        .unwrap();
    let backfill = node
        .checkpoint(Checkpoint::Restart {
            wait: Duration::ZERO,
        })
        .unwrap();
    assert!(!backfill.complete && backfill.backfilled < backfill.wal_frames);
    let refused = node.database.save_record(position(2), None, b"");
    assert!(
        matches!(refused, Err(Error::NotCheckpointed)),
        "{refused:?}"
    );
    reader.execute_batch("COMMIT").unwrap();
    save(&mut node, 2);
}

/// Damages the main file as a crash in a checkpoint can: only in pages that these deltas name, or
/// in its length.
fn damage(path: &Path, random: &mut Random, deltas: &[Delta]) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let mut largest = 0;
    for delta in deltas {
        largest = largest.max(delta.header().page_count.0);
        for page in delta.whole_pages() {
            let (page, image) = page.unwrap();
            let offset = page.offset(delta.header().page_size);
            // Sectors of any version, written or not, and junk.
            for sector in 0..PAGE_BYTES / 512 {
                let at = sector * 512;
                let bytes = match random.number_below(4) {
                    0 => &image[at..at + 512],
                    1 => &[0xab; 512],
                    _ => continue,
                };
                file.write_all_at(bytes, offset + at as u64).unwrap();
            }
        }
    }
    if random.chance(50) && largest > 0 {
        // The length the file had at some entry: a shrink may have reached the disk first.
        let pages = random.pick(
            deltas
                .iter()
                .map(|d| d.header().page_count.0)
                .collect::<Vec<_>>()
                .as_slice(),
        );
        file.set_len(u64::from(pages) * PAGE_BYTES as u64).unwrap();
    }
}

#[test]
fn redo_makes_the_exact_file_out_of_whatever_a_checkpoint_leaves() {
    for seed in 0..60 {
        let dir = data_dir();
        let mut random = Random::new(seed);
        let mut workload = Workload::new(seed, true);
        let mut node = create(dir.path());
        first(&node, &mut workload);
        work(&node, &mut workload, 5);
        save(&mut node, 2);
        let record = std::fs::read(dir.path().join("checkpoint")).unwrap();
        let case = random.number_below(3);
        let patches = random.chance(60);
        // What was moved halfway is made up below, out of whole pages.
        node.decisions.patches(patches && case != 0);
        let mut deltas = work(&node, &mut workload, 10);
        node.decisions.patches(patches);
        let mut moved = Vec::new();
        match case {
            // The record counts on the WAL, and a crash came while it was moved.
            0 => {
                node.count_on_wal(3);
                moved.append(&mut deltas);
            }
            // A crash came between the page hashes and their record: the hashes are newer.
            1 => {
                node.count_on_wal(3);
                std::fs::write(dir.path().join("checkpoint"), &record).unwrap();
            }
            _ => {}
        }
        deltas.extend(work(&node, &mut workload, 3));
        let (expected, hash) = (node.pages(), node.database.hash());
        let path = node.path().to_owned();
        node.database.close().unwrap();
        damage(&path, &mut random, &moved);
        if deltas.len() > 1 {
            let one_less = redo(dir.path(), &deltas[1..]);
            assert!(
                matches!(one_less, Err(Error::HashMismatch { .. })),
                "seed {seed}"
            );
        }
        let (lock, hashes) = redo(dir.path(), &deltas).unwrap();
        assert_eq!(hashes.sum(), hash, "seed {seed}");
        let mut node = Replica::open(lock, hashes, DatabaseOptions::default());
        assert!(node.pages() == expected, "seed {seed}");
        node.sql()
            .execute_batch("CREATE TABLE after_redo(a)")
            .unwrap();
        let answer: String = node
            .reader()
            .query_row("PRAGMA integrity_check", (), |row| row.get(0))
            .unwrap();
        assert_eq!(answer, "ok");
        save(&mut node, 40);
        let pages = node.pages();
        node.database.close().unwrap();
        assert!(std::fs::read(&path).unwrap() == pages.concat());
    }
}

/// Whatever is missing of the WAL on which a record counts, no start goes on without it.
#[test]
fn a_record_that_counts_on_a_wal_that_is_gone_is_no_beginning() {
    let dir = data_dir();
    let mut node = create(dir.path());
    node.sql()
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    node.count_on_wal(2);
    let (expected, wal) = (node.pages(), dir.path().join("db.sqlite-wal"));
    let path = node.path().to_owned();
    node.database.close().unwrap();
    let bytes = std::fs::read(&wal).unwrap();
    let record = Record::load(dir.path()).unwrap().unwrap();
    let frames = record.overlay.unwrap().frames as usize;
    let end = 32 + frames * (24 + PAGE_BYTES);
    let begin = || {
        let lock = StartLock::acquire(dir.path(), Duration::ZERO).unwrap();
        Redo::begin(lock, &record).map(drop)
    };
    let refuse = |what: &str| {
        let begun = begin();
        assert!(
            matches!(begun, Err(Error::WalGone { .. })),
            "{what}: {begun:?}"
        );
    };
    std::fs::remove_file(&wal).unwrap();
    refuse("no file");
    for length in [0, 31, 32, end - 1] {
        std::fs::write(&wal, &bytes[..length]).unwrap();
        refuse(&format!("{length} bytes"));
    }
    for at in (0..end).step_by(97).chain([16, 20, 24, end - 1]) {
        let mut damaged = bytes[..end].to_vec();
        damaged[at] ^= 1;
        std::fs::write(&wal, damaged).unwrap();
        refuse(&format!("byte {at}"));
    }
    // What comes after it plays no part.
    std::fs::write(&wal, [&bytes[..end], b"junk"].concat()).unwrap();
    begin().unwrap();
    assert!(std::fs::read(&path).unwrap() == expected.concat());
    let plain = Record::load(dir.path()).unwrap().unwrap();
    assert_eq!((plain.overlay, plain.hash), (None, record.hash));
}

/// Whoever opens the file when a start-up has died in the middle of it.
#[test]
fn a_file_whose_redo_was_interrupted_is_the_database_of_before() {
    let (dir, deltas, expected) = two_tables();
    let record = Record::load(dir.path()).unwrap().unwrap();
    let path = dir.path().join("db.sqlite");
    let before = std::fs::read(&path).unwrap();
    let lock = StartLock::acquire(dir.path(), Duration::ZERO).unwrap();
    let mut interrupted = Redo::begin(lock, &record).unwrap();
    one_page(&deltas[0], |change| drop(interrupted.apply(change)));
    drop(interrupted);
    assert!(agree(&path).unwrap());
    assert!(std::fs::read(&path).unwrap() == before);
    drop(redo(dir.path(), &deltas).unwrap());
    assert!(std::fs::read(&path).unwrap() == expected.concat());
    assert!(agree(&path).unwrap());
}

#[test]
fn a_file_that_was_replaced_in_part_is_no_database() {
    let (dir, deltas, expected) = two_tables();
    let record = Record::load(dir.path()).unwrap().unwrap();
    let path = dir.path().join("db.sqlite");
    let begin = || {
        let lock = StartLock::acquire(dir.path(), Duration::ZERO).unwrap();
        Installation::begin(lock, &record).unwrap()
    };
    let mut interrupted = begin();
    one_page(&deltas[0], |change| drop(interrupted.apply(change)));
    drop(interrupted);
    let error = agree(&path).unwrap_err();
    let code = error.sqlite_error_code();
    assert_eq!(code, Some(ErrorCode::NotADatabase), "{error}");
    let mut again = begin();
    with_change(&deltas[0], |change| again.apply(change)).unwrap();
    drop(again.finish().unwrap());
    assert!(std::fs::read(&path).unwrap() == expected.concat());
    assert!(agree(&path).unwrap());
}

/// A database that was recorded, and the delta and the pages of a transaction after that.
fn two_tables() -> (tempfile::TempDir, Vec<Delta>, Vec<Vec<u8>>) {
    let dir = data_dir();
    let mut node = create(dir.path());
    node.sql()
        .execute_batch("CREATE TABLE t(a); CREATE TABLE u(a)")
        .unwrap();
    drop(node.decisions.take());
    save(&mut node, 2);
    let both = "BEGIN; INSERT INTO t VALUES(1); INSERT INTO u VALUES(1); COMMIT";
    node.sql().execute_batch(both).unwrap();
    let released = node.decisions.take();
    let expected = node.pages();
    node.database.close().unwrap();
    let deltas = released.into_iter();
    let deltas = deltas.map(|bytes| Delta::decode(bytes).unwrap()).collect();
    (dir, deltas, expected)
}

/// The first page of a change only.
fn one_page(delta: &Delta, f: impl FnOnce(Change<'_, '_>)) {
    with_change(delta, |change| {
        let Change {
            page_count,
            hash_before,
            hash_after,
            pages,
        } = change;
        f(Change {
            page_count,
            hash_before,
            hash_after,
            pages: &mut pages.take(1),
        });
    });
}

/// What SQLite alone says of the two tables: whether they have as many rows.
fn agree(path: &Path) -> rusqlite::Result<bool> {
    let plain = Connection::open(path).unwrap();
    let sql = "SELECT (SELECT count(*) FROM t) = (SELECT count(*) FROM u)";
    plain.query_row(sql, (), |row| row.get(0))
}
