//! Transactions on the writing connection: captured at COMMIT, released or discarded by the gate.

#![allow(clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use wal_tests::replica::{Replica, data_dir, reader, redo};
use wallaby::sqlite::{
    AutoVacuum, Captured, Checkpoint, Database, DatabaseOptions, Gate, StartLock, Verdict,
};
use wallaby::wal::{Delta, PageSize};

fn create(dir: &Path, options: DatabaseOptions) -> Replica {
    Replica::create(dir, PageSize::DEFAULT, AutoVacuum::None, options)
}

fn count(connection: &Connection) -> i64 {
    connection
        .query_row("SELECT count(*) FROM t", (), |row| row.get(0))
        .unwrap()
}

/// What plain SQLite makes of the files if the process died now.
fn count_after_crash(path: &Path) -> i64 {
    let copies = data_dir();
    let copy = copies.path().join("copy");
    for suffix in ["", "-wal"] {
        // In another process: closing the main file in this one would drop SQLite's locks on it.
        let from = format!("{}{suffix}", path.display());
        let to = format!("{}{suffix}", copy.display());
        assert!(
            Command::new("cp")
                .args([from, to])
                .status()
                .unwrap()
                .success()
        );
    }
    count(&Connection::open(copy).unwrap())
}

/// Looks at the database while it is asked.
struct Watcher {
    path: PathBuf,
    seen: Arc<Mutex<Vec<(i64, i64)>>>,
    verdict: Verdict,
}

impl Gate for Watcher {
    fn commit(&mut self, _: &Captured<'_>) -> Verdict {
        // The first transaction creates the table.
        if self.path.with_extension("watch").exists() {
            let seen = (count(&reader(&self.path)), count_after_crash(&self.path));
            self.seen.lock().unwrap().push(seen);
            return self.verdict;
        }
        Verdict::Release
    }
}

#[test]
fn until_the_gate_has_released_it_a_transaction_is_nowhere() {
    for verdict in [Verdict::Release, Verdict::Discard] {
        // With a spool file and a tiny cache too.
        for spool_bytes_max in [64 << 20, 0] {
            let dir = data_dir();
            let mut node = create(dir.path(), DatabaseOptions::default());
            let at = wal_tests::replica::position(2);
            node.checkpoint(Checkpoint::Passive).unwrap();
            node.database.save_record(at, Some(at), b"").unwrap();
            let path = node.path().to_owned();
            drop(node);
            let (lock, hashes) = redo(dir.path(), &[]).unwrap();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let gate = Box::new(Watcher {
                path: path.clone(),
                seen: Arc::clone(&seen),
                verdict,
            });
            let options = DatabaseOptions {
                spool_bytes_max,
                ..DatabaseOptions::default()
            };
            let database = Database::open(options, lock, hashes, gate).unwrap();
            let sql = database.connection();
            sql.execute_batch("PRAGMA cache_size = 5; CREATE TABLE t(body);")
                .unwrap();
            std::fs::write(path.with_extension("watch"), "").unwrap();
            let insert = "INSERT INTO t WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 \
                          FROM c WHERE i < 100) SELECT zeroblob(1000) FROM c";
            let outcome = sql.execute_batch(insert);
            assert_eq!(*seen.lock().unwrap(), [(0, 0)]);
            let expected = match verdict {
                Verdict::Release => 100,
                Verdict::Discard => 0,
            };
            assert_eq!(outcome.is_ok(), expected == 100);
            assert!(sql.is_autocommit());
            assert_eq!(count(sql), expected);
            assert_eq!(count(&reader(&path)), expected);
            assert_eq!(count_after_crash(&path), expected);
        }
    }
}

#[test]
fn after_a_discard_the_connection_goes_on_as_if_nothing_had_been() {
    let dir = data_dir();
    let node = create(dir.path(), DatabaseOptions::default());
    node.sql()
        .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, body)")
        .unwrap();
    let before = node.database.hash();
    node.decisions.discard(true);
    node.sql()
        .execute_batch("BEGIN; INSERT INTO t(body) VALUES (1)")
        .unwrap();
    let error = node.sql().execute_batch("COMMIT").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
    assert!(node.sql().is_autocommit());
    assert_eq!(node.database.hash(), before);
    node.decisions.discard(false);
    node.sql()
        .execute_batch("INSERT INTO t(body) VALUES (1)")
        .unwrap();
    assert_eq!(count(&node.reader()), 1);
}

#[test]
fn a_transaction_without_changes_asks_nobody() {
    let dir = data_dir();
    let node = create(dir.path(), DatabaseOptions::default());
    node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
    let asked = node.decisions.asked();
    node.sql()
        .execute_batch("BEGIN IMMEDIATE; COMMIT; UPDATE t SET a = 1; BEGIN; SELECT 1; COMMIT;")
        .unwrap();
    assert_eq!(node.decisions.asked(), asked);
}

#[test]
fn a_transaction_above_the_limit_is_full_and_leaves_the_connection_usable() {
    for cache_spill in ["ON", "OFF"] {
        let dir = data_dir();
        let options = DatabaseOptions {
            transaction_bytes_max: 1_000_000,
            ..DatabaseOptions::default()
        };
        let node = create(dir.path(), options);
        let sql = node.sql();
        sql.execute_batch(&format!(
            "PRAGMA cache_spill = {cache_spill}; PRAGMA cache_size = 10; CREATE TABLE t(body)"
        ))
        .unwrap();
        let asked = node.decisions.asked();
        let error = sql
            .execute_batch("INSERT INTO t VALUES (zeroblob(2000000))")
            .unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DiskFull));
        assert_eq!(node.decisions.asked(), asked);
        sql.execute_batch("INSERT INTO t VALUES (zeroblob(500000))")
            .unwrap();
        assert_eq!(count(&node.reader()), 1);
    }
}

#[test]
fn the_writing_connection_stays_in_wal_mode() {
    let dir = data_dir();
    let node = create(dir.path(), DatabaseOptions::default());
    node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
    let left = node
        .sql()
        .query_row("PRAGMA journal_mode = DELETE", (), |row| {
            row.get::<_, String>(0)
        });
    assert!(left.is_err() || left.unwrap() == "wal");
    node.sql()
        .execute_batch("INSERT INTO t VALUES (1)")
        .unwrap();
    assert_eq!(node.decisions.take().len(), 2);
}

#[test]
fn a_database_in_use_here_is_refused_to_a_second_connection_on_the_same_vfs() {
    let dir = data_dir();
    let node = create(dir.path(), DatabaseOptions::default());
    node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let second = Connection::open_with_flags_and_vfs(node.path(), flags, "wallaby").unwrap();
    second.busy_timeout(Duration::ZERO).unwrap();
    assert_eq!(count(&second), 0);
    assert!(second.execute_batch("INSERT INTO t VALUES (1)").is_err());
}

#[test]
fn a_database_may_move_to_its_thread_and_an_image_to_many() {
    const fn sent<T: Send>() {}
    const fn shared<T: Sync>() {}
    sent::<Database>();
    sent::<wallaby::sqlite::Image>();
    shared::<wallaby::sqlite::Image>();
    let dir = data_dir();
    let mut node = create(dir.path(), DatabaseOptions::default());
    std::thread::spawn(move || {
        node.sql().execute_batch("CREATE TABLE t(a)").unwrap();
        assert!(node.checkpoint(Checkpoint::Passive).unwrap().complete);
    })
    .join()
    .unwrap();
}

/// Runs one of the ignored tests of this file in a process of its own.
fn in_child(test: &str) -> std::process::ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .output()
        .unwrap()
        .status
}

const SIGABRT: i32 = 6;

#[test]
#[ignore = "aborts; run by the test that expects it"]
fn publishing_without_asking() {
    let dir = data_dir();
    let node = create(dir.path(), DatabaseOptions::default());
    // Without its syncs SQLite would publish what the gate has never seen.
    node.sql()
        .execute_batch("PRAGMA synchronous = OFF; CREATE TABLE t(a)")
        .unwrap();
}

#[test]
fn a_commit_that_would_bypass_the_gate_aborts_the_process() {
    assert_eq!(
        in_child("publishing_without_asking").signal(),
        Some(SIGABRT)
    );
}

#[test]
#[ignore = "writes 4 GiB; cargo test -p wal-tests --test capture lock_byte -- --ignored"]
fn the_lock_byte_page_is_neither_captured_nor_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let size = PageSize::new(65536).unwrap();
    let [leader, follower] = ["leader", "follower"].map(|name| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Replica::create(&dir, size, AutoVacuum::None, DatabaseOptions::default())
    });
    let (mut leader, mut follower) = (leader, follower);
    leader.sql().execute_batch("CREATE TABLE t(body)").unwrap();
    for _ in 0..2 {
        leader
            .sql()
            .execute_batch("INSERT INTO t VALUES (zeroblob(600000000))")
            .unwrap();
    }
    assert!(leader.database.page_count().0 > size.lock_byte_page().number());
    for bytes in leader.decisions.take() {
        let delta = Delta::decode(bytes).unwrap();
        assert!(
            delta
                .page_numbers()
                .all(|page| page != size.lock_byte_page())
        );
        follower.inject(&delta).unwrap();
    }
    for node in [&mut leader, &mut follower] {
        assert!(node.checkpoint(Checkpoint::Passive).unwrap().complete);
        assert_eq!(count(&node.reader()), 2);
        let image = node.database.image().unwrap();
        let mut page = vec![1; size.len()];
        image.read(size.lock_byte_page(), &mut page).unwrap();
        assert!(page.iter().all(|byte| *byte == 0));
    }
    assert_eq!(leader.database.hash(), follower.database.hash());
    drop(follower);
    StartLock::acquire(&dir.path().join("follower"), Duration::ZERO).unwrap();
}
