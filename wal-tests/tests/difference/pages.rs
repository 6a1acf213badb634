//! A node that was away receives only the pages that differ.
//!
//! `WAL_DATABASE_MIB=1024 cargo test --release -p wal-tests --test difference` does it with a large
//! database; the default is small.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};

/// No tail of the log: whoever is away for a few entries needs pages.
const FLAGS: [&str; 6] = [
    "-log-tail",
    "0",
    "-log-segment",
    "1048576",
    "-raft-snap-wal-size",
    "1048576",
];
const PATIENCE: Duration = Duration::from_secs(300);
const PAGE_BYTES: u64 = 4096;
/// One row fills a page, and noise does not shrink.
const ROW_BYTES: u64 = 3900;
const BATCH_ROWS: u64 = 2000;
/// A sender waits for a confirmation when so much is on its way, or an eighth of all if that is more.
const UNCONFIRMED_BYTES: u64 = 512 << 10;

struct Stage {
    cluster: ProcessCluster,
    client: Client,
    rows: u64,
}

/// Keeps writing and reading on the leader while something else happens.
struct Traffic {
    stop: Arc<AtomicBool>,
    slowest_ms: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<u64>,
}

impl Stage {
    /// A cluster with a database of this size, and a small table that others write to.
    fn build(mebibytes: u64, flags: &[&str]) -> Self {
        let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[&FLAGS, flags].concat());
        let leader = cluster.wait_leader();
        let client = Client::new(Duration::from_secs(120));
        let rows = mebibytes * (1 << 20) / PAGE_BYTES;
        let stage = |sql: &str| client.execute_sql(cluster.address(leader), sql);
        let table = "(id INTEGER PRIMARY KEY, payload BLOB)";
        let _ = stage(&format!("CREATE TABLE filler{table}")).expect_success();
        for other in ["traffic", "again"] {
            let _ = stage(&format!("CREATE TABLE {other}{table}")).expect_success();
        }
        for first in (1..=rows).step_by(usize::try_from(BATCH_ROWS).unwrap()) {
            let last = (first + BATCH_ROWS - 1).min(rows);
            let sql = format!(
                "INSERT INTO filler WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 \
                 FROM n WHERE i < {last}) SELECT i, randomblob({ROW_BYTES}) FROM n"
            );
            let _ = stage(&sql).expect_success();
        }
        Self {
            cluster,
            client,
            rows,
        }
    }

    fn execute(&mut self, sql: &str) {
        let leader = self.cluster.wait_leader();
        let _ = self
            .client
            .execute_sql(self.cluster.address(leader), sql)
            .expect_success();
    }

    fn status(&self, node: usize) -> Value {
        let address = self.cluster.address(node);
        self.client.json(address, "/status").unwrap()["wallaby"].clone()
    }

    fn snapshots(&self, node: usize, name: &str) -> u64 {
        self.status(node)["snapshots"][name].as_u64().unwrap()
    }

    /// Of all nodes that run: a leader may have changed meanwhile.
    fn sent(&self, name: &str) -> u64 {
        let nodes = (0..self.cluster.size()).filter(|&node| self.cluster.serving(node));
        nodes.map(|node| self.snapshots(node, name)).sum()
    }

    /// Kills a follower and returns it with the database as it has it.
    fn send_away(&mut self) -> (usize, Vec<u8>) {
        let before = self.cluster.wait_converged().swap_remove(0).bytes;
        let away = (self.cluster.wait_leader() + 1) % 3;
        self.cluster.kill(away);
        (away, before)
    }

    /// Changes the same page again and again until the log behind this index is purged.
    fn purge(&mut self, index: u64) {
        let deadline = Instant::now() + PATIENCE;
        let leader = self.cluster.wait_leader();
        while self.status(leader)["purged_index"].as_u64().unwrap() <= index {
            assert!(Instant::now() < deadline, "the log is not purged");
            for _ in 0..20 {
                self.execute("INSERT OR REPLACE INTO again VALUES(1, randomblob(3900))");
            }
        }
    }

    fn last_index(&mut self) -> u64 {
        let leader = self.cluster.wait_leader();
        let address = self.cluster.address(leader);
        let status = self.client.json(address, "/status").unwrap();
        let last = status["store"]["raft"]["last_log_index"].as_str().unwrap();
        last.parse().unwrap()
    }

    fn traffic(&mut self) -> Traffic {
        let leader = self.cluster.wait_leader();
        let address = self.cluster.address(leader).to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let slowest_ms = Arc::new(AtomicU64::new(0));
        let (stopped, slowest) = (Arc::clone(&stop), Arc::clone(&slowest_ms));
        let thread = std::thread::spawn(move || {
            let client = Client::new(Duration::from_secs(60));
            let mut written = 0;
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let sql = "INSERT INTO traffic(payload) VALUES(randomblob(50))";
                let _ = client.execute_sql(&address, sql).expect_success();
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
                slowest.fetch_max(took, Ordering::Relaxed);
                written += 1;
                let sql = "SELECT count(*) FROM traffic";
                let rows = client.query(&address, "linearizable", sql).unwrap();
                assert_eq!(rows[0][0].as_u64(), Some(written));
            }
            written
        });
        Traffic {
            stop,
            slowest_ms,
            thread,
        }
    }

    /// Waits for everybody to be equal, and returns how many pages differ from those before.
    fn changed_since(&mut self, before: &[u8]) -> u64 {
        self.cluster.wait_all_ready();
        let after = self.cluster.wait_converged();
        assert!(
            after.iter().all(|image| image.hash == after[0].hash),
            "nodes that differ"
        );
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let after = &after[0].bytes;
        let kept = before.chunks(page).zip(after.chunks(page));
        let kept = kept.filter(|(before, after)| before == after).count();
        (after.len() / page - kept) as u64
    }
}

fn mebibytes() -> u64 {
    std::env::var("WAL_DATABASE_MIB").map_or(16, |text| text.parse().unwrap())
}

/// Bytes that a transfer which was cut off has in its spool.
fn spooled(dir: &Path) -> u64 {
    let file = std::fs::metadata(dir.join("incoming-pages"));
    file.map_or(0, |file| file.len())
}

#[test]
fn a_node_behind_the_log_receives_the_pages_that_differ_while_writes_and_reads_go_on() {
    let mut stage = Stage::build(mebibytes(), &[]);
    let (away, before) = stage.send_away();
    stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 100 = 0");
    let last = stage.last_index();
    stage.purge(last);
    let sent_before = stage.sent("bytes_sent");
    let traffic = stage.traffic();
    let begun = Instant::now();
    stage.cluster.start_node(away);
    stage.cluster.wait("the pages to be installed", |cluster| {
        let client = Client::new(Duration::from_secs(2));
        let vars = client.json(cluster.address(away), "/debug/vars?key=store")?;
        let installed = vars["store"]["num_restores"].as_u64();
        (installed > Some(0))
            .then_some(())
            .ok_or_else(|| "not yet".to_owned())
    });
    let took = begun.elapsed();
    traffic.stop.store(true, Ordering::Relaxed);
    let written = traffic.thread.join().unwrap();
    assert!(written > 0);
    let changed = stage.changed_since(&before) * PAGE_BYTES;
    let sent = stage.sent("bytes_sent") - sent_before;
    let leader = stage.cluster.wait_leader();
    let status = stage.status(leader);
    println!(
        "{} MiB: {changed} bytes changed, {sent} sent, installed {took:?} after the start; {written} \
         writes meanwhile, the slowest {} ms; on the leader: {} and {}",
        mebibytes(),
        traffic.slowest_ms.load(Ordering::Relaxed),
        status["snapshots"],
        status["checkpoint"],
    );
    assert!(sent > 0 && sent * 10 <= changed * 12, "{sent} of {changed}");
    assert!(stage.snapshots(away, "bytes_received") * 10 <= changed * 12);
    assert!(stage.sent("pages_skipped") * 10 > stage.rows * 9);
    for text in [
        "pages of the database that it lacks",
        "has all pages and installs them",
    ] {
        stage.cluster.wait_log(leader, text);
    }
    stage
        .cluster
        .wait_log(away, "the received database is installed");
    stage.cluster.assert_healthy_logs();
}

#[test]
fn what_was_received_before_a_cut_is_not_sent_again() {
    let mut stage = Stage::build(mebibytes(), &[]);
    let (away, before) = stage.send_away();
    stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 3 = 0");
    let last = stage.last_index();
    stage.purge(last);
    let dir = stage.cluster.data_dir(away).to_owned();
    let changed = stage.rows / 3 * PAGE_BYTES;
    for part in 1..=2 {
        stage.cluster.start_node(away);
        let deadline = Instant::now() + PATIENCE;
        // The link is as fast as the memory of this machine, so look often.
        while spooled(&dir) < changed * part / 3 {
            assert!(Instant::now() < deadline, "nothing arrives");
            assert!(!dir.join("installing").exists(), "it was too fast");
            std::thread::sleep(Duration::from_micros(200));
        }
        stage.cluster.kill(away);
        println!("killed with {} of {changed} bytes", spooled(&dir));
        // The state to be reached moves on.
        stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 100 = 1");
    }
    stage.cluster.start_node(away);
    let changed = stage.changed_since(&before) * PAGE_BYTES;
    let sent = stage.sent("bytes_sent");
    println!("{changed} bytes changed, {sent} sent");
    // What was on its way at a cut is lost, and of a small database that is a large share.
    let allowed = changed * 12 / 10 + 2 * UNCONFIRMED_BYTES;
    assert!(sent <= allowed, "{sent} of {changed}");
    assert!(stage.sent("transfers_resumed") >= 2);
    assert!(!dir.join("incoming-pages").exists());
    stage.cluster.assert_healthy_logs();
}

#[test]
fn a_transfer_goes_on_at_a_newer_index_when_its_freeze_is_given_up() {
    // Any large transaction takes the freeze away.
    let mut stage = Stage::build(mebibytes(), &["-snapshot-wal-max", "2097152"]);
    let (away, before) = stage.send_away();
    stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 2 = 0");
    let last = stage.last_index();
    stage.purge(last);
    stage.cluster.start_node(away);
    let leader = stage.cluster.wait_leader();
    let begun = Instant::now();
    let mut is_given_up = false;
    while !is_given_up && begun.elapsed() < PATIENCE {
        stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id <= 1000");
        is_given_up = stage
            .cluster
            .log_text(leader)
            .contains("goes on at a newer index");
        if stage.cluster.log_text(away).contains("is installed") && !is_given_up {
            // It was faster than the transaction: once more.
            stage.cluster.wait_all_ready();
            stage.cluster.kill(away);
            stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 2 = 0");
            let last = stage.last_index();
            stage.purge(last);
            stage.cluster.start_node(away);
        }
    }
    assert!(is_given_up, "no freeze was given up");
    let _ = stage.changed_since(&before);
    stage.cluster.assert_healthy_logs();
}

#[test]
fn a_database_that_shrank_and_grew_again_is_the_same_afterwards() {
    let mut stage = Stage::build(8, &[]);
    for sql in [
        "DELETE FROM filler WHERE id > 700; VACUUM",
        "DELETE FROM filler; INSERT INTO filler SELECT id, payload FROM traffic; VACUUM",
        "INSERT INTO filler WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE \
         i < 3000) SELECT NULL, randomblob(3000) FROM n",
    ] {
        let (away, before) = stage.send_away();
        for sql in sql.split("; ") {
            stage.execute(sql);
        }
        let last = stage.last_index();
        stage.purge(last);
        stage.cluster.start_node(away);
        let _ = stage.changed_since(&before);
        let _ = stage.cluster.assert_identical();
    }
    stage.cluster.assert_healthy_logs();
}
