//! Backups from real processes: every form, from every node, while writes go on, with a client that
//! does not read, and without the memory for the database.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flate2::read::GzDecoder;
use rusqlite::Connection;
use serde_json::json;
use wal_tests::client::{Client, Download};
use wal_tests::cluster::{Formation, ProcessCluster};

fn client() -> Client {
    Client::new(Duration::from_secs(60))
}

fn download(cluster: &ProcessCluster, node: usize, query: &str) -> Download {
    let path = format!("/db/backup{query}");
    let answer = client().download(cluster.address(node), &path).unwrap();
    assert_eq!(answer.status, 200, "{path}");
    answer
}

/// Opens a copy as a file of its own, after SQLite has found it sound.
fn open(bytes: &[u8], dir: &Path) -> Connection {
    let path = dir.join(format!("{:08x}.db", crc32fast::hash(bytes)));
    std::fs::write(&path, bytes).unwrap();
    let database = Connection::open(path).unwrap();
    let verdict: String = database
        .query_row("PRAGMA integrity_check", (), |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
    database
}

fn count(database: &Connection, table: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM {table}");
    let count: i64 = database.query_row(&sql, (), |row| row.get(0)).unwrap();
    count.unsigned_abs()
}

fn scratch_files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("scratch-")).collect()
}

#[test]
fn every_form_of_a_backup_opens_and_says_what_it_is() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let dir = tempfile::tempdir().unwrap();
    let (address, client) = (cluster.address(0), client());
    let statements = json!(["CREATE TABLE foo (name text)", "CREATE TABLE big(x)",]);
    let _ = client.execute(address, &statements).expect_success();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300) \
         INSERT INTO big SELECT randomblob(2000) FROM n";
    let _ = client.execute_sql(address, rows).expect_success();
    let delete = "DELETE FROM big WHERE rowid % 3 > 0";
    let _ = client.execute_sql(address, delete).expect_success();

    let plain = download(&cluster, 0, "");
    assert_eq!(plain.content_type, "application/octet-stream");
    assert!(plain.bytes.starts_with(b"SQLite format 3\0"));
    assert_eq!(plain.bytes[18..20], [2, 2]);
    assert_eq!(count(&open(&plain.bytes, dir.path()), "big"), 100);
    let unknown = download(&cluster, 0, "?fmt=nonsense");
    assert_eq!(
        unknown.bytes, plain.bytes,
        "unknown forms are the binary one"
    );

    let rollback = download(&cluster, 0, "?fmt=delete");
    assert_eq!(rollback.bytes[18..20], [1, 1]);
    assert_eq!(rollback.bytes.len(), plain.bytes.len());
    assert_eq!(count(&open(&rollback.bytes, dir.path()), "big"), 100);

    let vacuumed = download(&cluster, 0, "?vacuum");
    assert_eq!(vacuumed.bytes[18..20], [1, 1]);
    assert!(vacuumed.bytes.len() < plain.bytes.len() / 2, "compacted");
    assert_eq!(count(&open(&vacuumed.bytes, dir.path()), "big"), 100);

    let compressed = download(&cluster, 0, "?compress");
    assert_eq!(compressed.content_type, "application/octet-stream");
    assert_eq!(compressed.bytes[..2], [0x1f, 0x8b]);
    let mut uncompressed = Vec::new();
    let mut gzip = GzDecoder::new(&compressed.bytes[..]);
    gzip.read_to_end(&mut uncompressed).unwrap();
    assert_eq!(uncompressed, plain.bytes);

    let sql = download(&cluster, 0, "?fmt=sql&tables=foo");
    assert_eq!(sql.content_type, "application/sql");
    let expected = "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nCREATE TABLE foo (name text);\n\
         COMMIT;\n";
    assert_eq!(String::from_utf8(sql.bytes).unwrap(), expected);
    let all = download(&cluster, 0, "?fmt=sql");
    let loaded = Connection::open_in_memory().unwrap();
    let sql = String::from_utf8(all.bytes).unwrap();
    loaded.execute_batch(&sql).unwrap();
    assert_eq!(count(&loaded, "big"), 100);

    let refused = client.get(address, "/db/backup?fmt=sql&vacuum").unwrap();
    let refused = (refused.status, refused.body.as_str());
    assert_eq!(refused, (500, "invalid backup format\n"));
    let posted = client.post(address, "/db/backup", "", b"").unwrap();
    assert_eq!(posted.status, 405);
    assert_eq!(scratch_files(cluster.data_dir(0)), Vec::<String>::new());
}

#[test]
fn a_follower_sends_what_was_just_acknowledged() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let leader = cluster.wait_leader();
    let followers: Vec<_> = (0..3).filter(|&node| node != leader).collect();
    let dir = tempfile::tempdir().unwrap();
    let client = client();
    let table = "CREATE TABLE t(id INTEGER PRIMARY KEY)";
    let address = cluster.address(leader).to_owned();
    let _ = client.execute_sql(&address, table).expect_success();
    for round in 1..=20 {
        let insert = "INSERT INTO t DEFAULT VALUES";
        let _ = client.execute_sql(&address, insert).expect_success();
        let node = followers[usize::try_from(round).unwrap() % 2];
        let backup = download(&cluster, node, "");
        assert_eq!(count(&open(&backup.bytes, dir.path()), "t"), round);
    }
    // Without a leader only the local copy is to be had.
    cluster.kill(leader);
    cluster.kill(followers[0]);
    let alone = cluster.address(followers[1]);
    let refused = client.get(alone, "/db/backup?timeout=2s").unwrap();
    let refused = (refused.status, refused.body.as_str());
    assert_eq!(refused, (503, "leader not found\n"));
    let local = download(&cluster, followers[1], "?noleader");
    assert_eq!(count(&open(&local.bytes, dir.path()), "t"), 20);
    cluster.assert_healthy_logs();
}

#[test]
fn a_backup_while_writes_go_on_is_one_moment_of_the_database() {
    let flags = ["-raft-snap-wal-size", "262144"];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    let leader = cluster.wait_leader();
    let address = cluster.address(leader).to_owned();
    let client = client();
    let tables = json!([
        "CREATE TABLE a(n INTEGER, pad)",
        "CREATE TABLE b(n INTEGER, pad)"
    ]);
    let _ = client.execute(&address, &tables).expect_success();
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let writer = {
        let (stop, done, client) = (Arc::clone(&stop), Arc::clone(&done), client.clone());
        std::thread::spawn(move || {
            let pair = json!([
                "INSERT INTO a SELECT coalesce(max(n), 0) + 1, randomblob(3000) FROM a",
                "INSERT INTO b SELECT coalesce(max(n), 0) + 1, randomblob(3000) FROM b"
            ]);
            while !stop.load(Ordering::Relaxed) {
                let _ = client.execute(&address, &pair).expect_success();
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let dir = tempfile::tempdir().unwrap();
    for (round, form) in ["", "?vacuum", "?fmt=delete", "", "?fmt=delete", ""]
        .iter()
        .enumerate()
    {
        let least = done.load(Ordering::Relaxed);
        let copy = open(&download(&cluster, round % 3, form).bytes, dir.path());
        let found = count(&copy, "a");
        assert_eq!(found, count(&copy, "b"), "both tables or neither");
        assert!(
            found >= least,
            "{found} rows, and {least} were acknowledged"
        );
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// The most memory that the process has held since the last reset, and what it holds now, in KiB.
fn memory(process: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmHWM:"), field("VmRSS:"))
}

#[test]
fn a_backup_needs_no_memory_for_the_database_and_a_slow_client_no_checkpoint() {
    const MIB: u64 = 64;
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let (address, client) = (cluster.address(0), client());
    let table = "CREATE TABLE t(pad)";
    let _ = client.execute_sql(address, table).expect_success();
    for _ in 0..MIB / 4 {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1024) \
             INSERT INTO t SELECT randomblob(4000) FROM n";
        let _ = client.execute_sql(address, sql).expect_success();
    }
    let process = cluster.process_id(0);
    // Not compressed: a debug build takes a minute for that.
    for form in ["", "?vacuum", "?fmt=sql", "?fmt=delete"] {
        std::fs::write(format!("/proc/{process}/clear_refs"), "5").unwrap();
        let (_, before) = memory(process);
        let bytes = download(&cluster, 0, form).bytes.len() as u64;
        assert!(bytes > MIB << 20, "{form}: {bytes} bytes");
        let grown = memory(process).0.saturating_sub(before);
        assert!(grown < 24 << 10, "{form}: {grown} KiB for {MIB} MiB");
    }

    let mut slow = TcpStream::connect(address).unwrap();
    let request = format!("GET /db/backup HTTP/1.1\r\nHost: {address}\r\n\r\n");
    slow.write_all(request.as_bytes()).unwrap();
    let mut first = [0; 1];
    slow.read_exact(&mut first).unwrap();
    assert_eq!(scratch_files(cluster.data_dir(0)).len(), 1);
    let insert = "INSERT INTO t VALUES('while it is sent')";
    let _ = client.execute_sql(address, insert).expect_success();
    let reaped = client.post(address, "/reap", "", b"").unwrap();
    let expected = "{\"snapshots_reaped\":0,\"wals_checkpointed\":1}\n";
    assert_eq!((reaped.status, reaped.body.as_str()), (200, expected));
    drop(slow);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !scratch_files(cluster.data_dir(0)).is_empty() {
        assert!(std::time::Instant::now() < deadline, "the copy stays");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_a_crash_leaves_of_a_copy_is_removed_by_the_next_start() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    cluster.kill(0);
    let litter = cluster.data_dir(0).join("scratch-0123456789abcdef");
    std::fs::write(&litter, "half a backup").unwrap();
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert!(!litter.exists());
}
