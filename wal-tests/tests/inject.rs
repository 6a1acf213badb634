//! Changes injected into a database that others are reading.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use wal_tests::replica::{Replica, both, data_dir, reader, run, with_change};
use wal_tests::seed::Random;
use wallaby::sqlite::{AutoVacuum, Change, Checkpoint, DatabaseOptions, Error};
use wallaby::wal::{DatabaseHash, Delta, PageCount, PageSize, WalHeader, index};

const WAIT: Duration = Duration::from_millis(2);

fn create(dir: &Path, page_size: u32) -> Replica {
    std::fs::create_dir_all(dir).unwrap();
    let page_size = PageSize::new(page_size).unwrap();
    Replica::create(dir, page_size, AutoVacuum::None, DatabaseOptions::default())
}

/// Runs the `sqlite3` command line program; `None` if it is not installed.
fn sqlite3(database: &Path, sql: &str) -> Option<Output> {
    Command::new("sqlite3").arg(database).arg(sql).output().ok()
}

/// Copies database and WAL, not the WAL-index, as a crash would leave them. In another process:
/// opening and closing the main file in this one would drop SQLite's locks on it.
fn crash_copy(replica: &Replica, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    let copy = to.join("copy");
    for suffix in ["", "-wal"] {
        let from = format!("{}{suffix}", replica.path().display());
        let to = format!("{}{suffix}", copy.display());
        assert!(
            Command::new("cp")
                .args([from, to])
                .status()
                .unwrap()
                .success()
        );
    }
    copy
}

/// Lets plain SQLite recover a copy, and returns the pages.
fn recovered_pages(copy: &Path, page_size: usize) -> Vec<Vec<u8>> {
    let plain = Connection::open(copy).unwrap();
    integrity_check(&plain);
    plain
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
        .unwrap();
    drop(plain);
    let bytes = std::fs::read(copy).unwrap();
    bytes.chunks(page_size).map(<[u8]>::to_vec).collect()
}

fn integrity_check(connection: &Connection) {
    let answer: String = connection
        .query_row("PRAGMA integrity_check", (), |row| row.get(0))
        .unwrap();
    assert_eq!(answer, "ok");
}

const ACCOUNTS: u32 = 400;
const MONEY: i64 = 400_000;

/// Accounts far apart, whose balances always sum up to the same.
fn bank(leader: &Replica, follower: &mut Replica) {
    both(
        leader,
        follower,
        &format!(
            "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT, filler);
             CREATE TABLE log(id INTEGER PRIMARY KEY, filler);
             WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {ACCOUNTS})
             INSERT INTO account SELECT i, {MONEY} / {ACCOUNTS}, zeroblob(700) FROM c"
        ),
    );
}

/// A transfer, or something larger that touches other pages and the schema.
fn transfer(random: &mut Random) -> String {
    let (from, to) = (1 + random.number_below(400), 1 + random.number_below(400));
    let amount = random.number_below(50);
    let more = match random.number_below(12) {
        0 => "DELETE FROM log;".to_owned(),
        1 => format!(
            "CREATE INDEX IF NOT EXISTS i ON account(balance, {});",
            random.number_below(9)
        ),
        2 => "DROP INDEX IF EXISTS i;".to_owned(),
        3 => "UPDATE account SET filler = zeroblob(600 + id % 200);".to_owned(),
        _ => format!(
            "INSERT INTO log(filler) VALUES (zeroblob({}));",
            random.number_below(9000)
        ),
    };
    format!(
        "BEGIN IMMEDIATE; UPDATE account SET balance = balance - {amount} WHERE id = {from}; \
         {more} UPDATE account SET balance = balance + {amount} WHERE id = {to}; COMMIT;"
    )
}

/// Reads in transactions, short and long, until told to stop. Returns how often.
fn read_until(path: &Path, stop: &AtomicBool) -> usize {
    let connection = reader(path);
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    let sum = || -> i64 {
        let mut statement = connection
            .prepare_cached("SELECT sum(balance) FROM account")
            .unwrap();
        statement.query_row((), |row| row.get(0)).unwrap()
    };
    let mut reads = 0;
    loop {
        let last = stop.load(Ordering::Acquire);
        connection.execute_batch("BEGIN").unwrap();
        assert_eq!(sum(), MONEY);
        let state = || {
            let mut log = connection
                .prepare_cached("SELECT count(*), max(id) FROM log")
                .unwrap();
            log.query_row((), |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))
            })
            .unwrap()
        };
        let before = state();
        if reads % 16 == 0 {
            thread::sleep(Duration::from_millis(3));
        }
        assert_eq!(sum(), MONEY);
        assert_eq!(state(), before, "a read transaction saw two states");
        connection.execute_batch("COMMIT").unwrap();
        reads += 1;
        if last {
            return reads;
        }
    }
}

#[test]
fn readers_of_all_kinds_see_each_injected_change_whole_or_not_at_all() {
    let dir = data_dir();
    let leader = create(&dir.path().join("leader"), 1024);
    let mut follower = create(&dir.path().join("follower"), 1024);
    bank(&leader, &mut follower);
    let path = follower.path().to_owned();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read_until(&path, &stop)));
        let outside = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let sql = ".timeout 10000\nSELECT sum(balance) FROM account;";
                let mut arguments = sql.lines();
                let Ok(output) = Command::new("sqlite3")
                    .arg(&path)
                    .args(arguments.by_ref())
                    .output()
                else {
                    return;
                };
                let answer = String::from_utf8_lossy(&output.stdout);
                assert_eq!(answer.trim(), MONEY.to_string(), "{output:?}");
            }
        });
        let mut random = Random::new(1);
        for _ in 0..1500 {
            both(&leader, &mut follower, &transfer(&mut random));
            if random.chance(2) {
                follower
                    .checkpoint(Checkpoint::Restart { wait: WAIT })
                    .unwrap();
            }
            if random.chance(2) {
                follower.checkpoint(Checkpoint::Passive).unwrap();
            }
        }
        stop.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
        outside.join().unwrap();
    });
    integrity_check(&follower.reader());
    assert_eq!(leader.database.hash(), follower.database.hash());
}

fn wal_header(replica: &Replica) -> WalHeader {
    let wal = std::fs::read(replica.path().with_file_name("db.sqlite-wal")).unwrap();
    WalHeader::parse(&wal).unwrap()
}

#[test]
fn the_wal_starts_afresh_only_when_no_reader_needs_it_and_then_with_new_salts() {
    let dir = data_dir();
    let leader = create(&dir.path().join("leader"), 1024);
    let mut follower = create(&dir.path().join("follower"), 1024);
    bank(&leader, &mut follower);
    let reader = follower.reader();
    let sum = || -> i64 {
        let sql = "SELECT sum(balance + length(filler)) FROM account";
        reader.query_row(sql, (), |row| row.get(0)).unwrap()
    };
    reader
        .execute_batch("PRAGMA cache_size = 1; BEGIN")
        .unwrap();
    let (before, header) = (sum(), wal_header(&follower));
    // The reader's state is the newest, so it does not keep the checkpoint from being complete.
    let backfill = follower.checkpoint(Checkpoint::Passive).unwrap();
    assert!(backfill.complete);
    let change = "UPDATE account SET balance = 0, filler = zeroblob(650)";
    both(&leader, &mut follower, change);
    assert_eq!(sum(), before);
    assert_eq!(wal_header(&follower), header);
    reader.execute_batch("COMMIT").unwrap();
    assert_ne!(sum(), before);
    assert!(follower.checkpoint(Checkpoint::Passive).unwrap().complete);
    both(&leader, &mut follower, "DELETE FROM account WHERE id = 1");
    let fresh = wal_header(&follower);
    let salts = |header: WalHeader| header.salts.0.split_at(4).0.to_vec();
    assert_ne!(salts(fresh), salts(header));
    assert_ne!(fresh.salts.0[4..], header.salts.0[4..]);
    assert!(follower.database.wal_bytes().unwrap() < 20_000);
    integrity_check(&follower.reader());
}

#[test]
fn either_node_may_write_the_next_transaction() {
    let dir = data_dir();
    let mut nodes = [
        create(&dir.path().join("a"), 512),
        create(&dir.path().join("b"), 512),
    ];
    let [a, b] = &mut nodes;
    bank(a, b);
    let mut random = Random::new(2);
    for _ in 0..400 {
        let [a, b] = &mut nodes;
        let (writer, other) = if random.chance(50) { (a, b) } else { (b, a) };
        let sql = transfer(&mut random);
        if random.chance(20) {
            // Executed here, committed by somebody else: rolled back, then injected.
            writer.decisions.discard(true);
            assert!(writer.sql().execute_batch(&sql).is_err());
            assert!(writer.sql().is_autocommit());
            writer.decisions.discard(false);
            both(other, writer, &sql);
        } else {
            both(writer, other, &sql);
        }
        for node in &mut nodes {
            if random.chance(5) {
                node.checkpoint(Checkpoint::Restart { wait: WAIT }).unwrap();
            }
        }
        assert_eq!(nodes[0].database.hash(), nodes[1].database.hash());
    }
    assert_eq!(nodes[0].pages(), nodes[1].pages());
    for node in &nodes {
        integrity_check(&node.reader());
    }
}

#[test]
fn sqlite_recovers_an_injected_wal_by_itself() {
    let dir = data_dir();
    for page_size in [512, 4096, 65536] {
        let base = dir.path().join(page_size.to_string());
        let leader = create(&base.join("leader"), page_size);
        let mut follower = create(&base.join("follower"), page_size);
        bank(&leader, &mut follower);
        let mut random = Random::new(3);
        for round in 0..3 {
            for _ in 0..20 {
                both(&leader, &mut follower, &transfer(&mut random));
            }
            let copy = crash_copy(&follower, &base.join(format!("copy{round}")));
            let pages = recovered_pages(&copy, page_size as usize);
            assert!(pages == follower.pages());
            follower
                .checkpoint(Checkpoint::Restart { wait: WAIT })
                .unwrap();
        }
    }
}

#[test]
fn many_regions_of_the_wal_index_are_filled_and_used() {
    let dir = data_dir();
    let leader = create(&dir.path().join("leader"), 512);
    let mut follower = create(&dir.path().join("follower"), 512);
    both(
        &leader,
        &mut follower,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, body)",
    );
    for rows in [4000, 1, 9000, 30, 12_000] {
        let sql = format!(
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})
             INSERT INTO t(body) SELECT zeroblob(400) FROM c; UPDATE t SET body = id WHERE id < 50"
        );
        both(&leader, &mut follower, &sql);
    }
    assert!(follower.database.wal_bytes().unwrap() > 3 * 4096 * 536);
    assert!(leader.database.page_hashes().sum() == follower.database.hash());
    let fresh = follower.reader();
    integrity_check(&fresh);
    let rows: i64 = fresh
        .query_row("SELECT count(body) FROM t", (), |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 25_031);
}

/// Makes the WAL-index look as if a writer had died after it entered `frames` frames.
fn leave_half_written_tail(replica: &Replica, frames: u32) {
    let shm = format!("{}-shm", replica.path().display());
    // Again in other processes: closing the file in this one would drop SQLite's locks.
    let bytes = Command::new("cat").arg(&shm).output().unwrap().stdout;
    let header = wallaby::wal::IndexHeader::parse_copies(&bytes).unwrap();
    let mut region: Box<index::Region> = Box::new(bytes[..index::REGION_BYTES].try_into().unwrap());
    for frame in header.frame_max + 1..=header.frame_max + frames {
        let page = wallaby::wal::PageNumber::new(frame % 7 + 1).unwrap();
        index::append(&mut region, index::region_of_frame(frame), page).unwrap();
    }
    let of = format!("of={shm}");
    let mut dd = Command::new("dd")
        .args([
            &of,
            "conv=notrunc",
            "bs=32768",
            "iflag=fullblock",
            "status=none",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    dd.stdin.take().unwrap().write_all(&*region).unwrap();
    assert!(dd.wait().unwrap().success());
}

#[test]
fn what_a_dead_writer_left_in_the_wal_index_is_cleaned_up() {
    let dir = data_dir();
    let mut leader = create(&dir.path().join("leader"), 512);
    let mut follower = create(&dir.path().join("follower"), 512);
    bank(&leader, &mut follower);
    let mut random = Random::new(4);
    for round in 0..20 {
        leave_half_written_tail(
            &follower,
            1 + u32::try_from(random.number_below(300)).unwrap(),
        );
        if round % 2 == 0 {
            both(&leader, &mut follower, &transfer(&mut random));
        } else {
            // SQLite's own writer comes across it.
            both(&follower, &mut leader, &transfer(&mut random));
        }
        integrity_check(&follower.reader());
        assert!(leader.database.hash() == follower.database.hash());
        follower
            .checkpoint(Checkpoint::Restart { wait: WAIT })
            .unwrap();
        both(&leader, &mut follower, &transfer(&mut random));
    }
}

#[test]
fn another_process_can_read_but_neither_write_nor_checkpoint() {
    let dir = data_dir();
    let leader = create(&dir.path().join("leader"), 4096);
    let mut follower = create(&dir.path().join("follower"), 4096);
    bank(&leader, &mut follower);
    let here = Connection::open(follower.path()).unwrap();
    here.busy_timeout(Duration::ZERO).unwrap();
    assert!(here.execute_batch("INSERT INTO log VALUES (1, 2)").is_err());
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    let busy: i32 = here.query_row(checkpoint, (), |row| row.get(0)).unwrap();
    assert_eq!(busy, 1);
    drop(here);
    let Some(output) = sqlite3(follower.path(), "INSERT INTO log VALUES (1, 2)") else {
        return;
    };
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("locked"),
        "{output:?}"
    );
    let output = sqlite3(follower.path(), checkpoint).unwrap();
    assert_eq!(output.stdout, b"1|-1|-1\n");
    let output = sqlite3(follower.path(), "PRAGMA journal_mode=DELETE").unwrap();
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("delete"),
        "{output:?}"
    );
    let output = sqlite3(follower.path(), "SELECT sum(balance) FROM account").unwrap();
    assert_eq!(output.stdout, format!("{MONEY}\n").as_bytes());
    assert!(
        follower
            .path()
            .with_file_name("db.sqlite-wal")
            .metadata()
            .unwrap()
            .len()
            > 0
    );
    both(&leader, &mut follower, "INSERT INTO log VALUES (1, 2)");
    let output = sqlite3(follower.path(), "SELECT count(*) FROM log").unwrap();
    assert_eq!(output.stdout, b"1\n");
}

#[test]
fn an_image_stays_as_it_was_and_keeps_checkpoints_away() {
    let dir = data_dir();
    let mut node = create(&dir.path().join("node"), 1024);
    let mut other = create(&dir.path().join("other"), 1024);
    bank(&node, &mut other);
    let mut random = Random::new(5);
    for complete in [false, true] {
        if complete {
            let backfill = node.checkpoint(Checkpoint::Passive).unwrap();
            assert!(backfill.complete);
        }
        let (before, hash) = (node.pages(), node.database.hash());
        let image = node.database.image().unwrap();
        for _ in 0..50 {
            both(&node, &mut other, &transfer(&mut random));
            for kind in [Checkpoint::Passive, Checkpoint::Truncate { wait: WAIT }] {
                assert!(!node.checkpoint(kind).unwrap().complete);
            }
        }
        assert_ne!(node.database.hash(), hash);
        assert_eq!(image.hash(), hash);
        let frozen = thread::scope(|scope| {
            let read = scope.spawn(|| {
                let mut page = vec![0; 1024];
                (1..=image.page_count().0)
                    .map(|number| {
                        let number = wallaby::wal::PageNumber::new(number).unwrap();
                        image.read(number, &mut page).unwrap();
                        page.clone()
                    })
                    .collect::<Vec<_>>()
            });
            read.join().unwrap()
        });
        assert!(frozen == before);
        let beyond = wallaby::wal::PageNumber::new(image.page_count().0 + 1).unwrap();
        assert!(image.read(beyond, &mut [0; 1024]).is_err());
        drop(image);
        assert!(node.checkpoint(Checkpoint::Passive).unwrap().complete);
    }
}

/// Changes one thing about a delta and injects it.
fn inject_wrong(
    follower: &mut Replica,
    delta: &Delta,
    wrong: impl FnOnce(&mut Change<'_, '_>),
) -> Result<(), Error> {
    with_change(delta, |mut change| {
        wrong(&mut change);
        follower.database.inject(change)
    })
}

/// Injects only the first pages of a delta.
fn inject_first(follower: &mut Replica, delta: &Delta, pages: usize) -> Result<(), Error> {
    let mut pages = delta
        .whole_pages()
        .map(|page| page.map_err(Error::from))
        .take(pages);
    follower.database.inject(Change {
        page_count: delta.header().page_count,
        hash_before: delta.header().hash_before,
        hash_after: delta.header().hash_after,
        pages: &mut pages,
    })
}

#[test]
fn a_wrong_change_is_refused_and_leaves_no_trace() {
    let dir = data_dir();
    let leader = create(&dir.path().join("leader"), 1024);
    let mut follower = create(&dir.path().join("follower"), 1024);
    bank(&leader, &mut follower);
    let mut last = Vec::new();
    for (round, restart) in [false, true].into_iter().enumerate() {
        if restart {
            follower
                .checkpoint(Checkpoint::Restart { wait: WAIT })
                .unwrap();
        }
        let before = follower.pages();
        let sql = "INSERT INTO log(filler) VALUES (zeroblob(9000)); UPDATE account SET balance = 1";
        let deltas = run(&leader, &format!("BEGIN; {sql}; COMMIT"));
        let [delta] = deltas.as_slice() else {
            panic!("one transaction");
        };
        let mismatch = inject_wrong(&mut follower, delta, |c| c.hash_before = DatabaseHash(1));
        assert!(
            matches!(mismatch, Err(Error::HashMismatch { .. })),
            "{mismatch:?}"
        );
        let mismatch = inject_wrong(&mut follower, delta, |c| c.hash_after = DatabaseHash(1));
        assert!(
            matches!(mismatch, Err(Error::HashMismatch { .. })),
            "{mismatch:?}"
        );
        let count = delta.header().page_count.0;
        for count in [0, 1, count - 1, count + 1] {
            let wrong = inject_wrong(&mut follower, delta, |c| c.page_count = PageCount(count));
            assert!(matches!(wrong, Err(Error::Change { .. })), "{wrong:?}");
        }
        for pages in [0, delta.len() - 1] {
            let wrong = inject_first(&mut follower, delta, pages);
            assert!(matches!(wrong, Err(Error::Change { .. })), "{wrong:?}");
        }
        // What was written of it must not come back after a crash either.
        let copy = crash_copy(&follower, &dir.path().join(format!("copy{round}")));
        assert!(recovered_pages(&copy, 1024) == before);
        assert!(follower.pages() == before);
        follower.inject(delta).unwrap();
        assert!(follower.database.hash() == leader.database.hash());
        integrity_check(&follower.reader());
        last = follower.pages();
    }
    let copy = crash_copy(&follower, &dir.path().join("end"));
    assert!(recovered_pages(&copy, 1024) == last);
}

#[test]
fn nothing_is_injected_into_an_open_transaction() {
    let dir = data_dir();
    let leader = create(&dir.path().join("leader"), 1024);
    let mut follower = create(&dir.path().join("follower"), 1024);
    let deltas = run(&leader, "CREATE TABLE t(a)");
    follower
        .sql()
        .execute_batch("BEGIN; SELECT * FROM sqlite_schema")
        .unwrap();
    assert!(matches!(
        follower.inject(&deltas[0]),
        Err(Error::InTransaction)
    ));
    follower.sql().execute_batch("COMMIT").unwrap();
    follower.inject(&deltas[0]).unwrap();
}
