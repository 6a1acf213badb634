//! Nodes are killed, stopped or brought in while a large transaction is on its way in parts.
//!
//! `WAL_ATTEMPTS=50 cargo test -p wal-tests --test parts_kill` tries more moments than the few of
//! the default.

#![allow(clippy::unwrap_used)]

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

/// Small parts, so that there are many moments between them, and small segments and no tail of the
/// log, so that whoever is away for a while needs the whole database.
const FLAGS: [&str; 10] = [
    "-entry-bytes",
    "131072",
    "-spool-bytes",
    "1048576",
    "-log-tail",
    "0",
    "-log-segment",
    "1048576",
    "-raft-snap-wal-size",
    "1048576",
];
/// Rows of a transaction, of 10 KiB each.
const ROWS: u64 = 600;
/// At least so many parts of 128 KiB does one have.
const PARTS: u64 = 45;

fn attempts(default: usize) -> usize {
    std::env::var("WAL_ATTEMPTS").map_or(default, |attempts| attempts.parse().unwrap())
}

fn start(nodes: usize, running: usize) -> ProcessCluster {
    let mut cluster = ProcessCluster::prepare(nodes, &Formation::Join, &FLAGS);
    for node in 0..running {
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    let leader = cluster.wait_leader();
    let table = "CREATE TABLE big(batch INTEGER, payload BLOB)";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(leader), table)
        .expect_success();
    cluster
}

/// One large transaction, from a thread of its own.
fn begin(cluster: &ProcessCluster, node: usize, batch: usize) -> JoinHandle<Outcome> {
    let address = cluster.address(node).to_owned();
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         INSERT INTO big SELECT {batch}, randomblob(10240) FROM n"
    );
    std::thread::spawn(move || Client::new(Duration::from_secs(30)).execute_sql(&address, &sql))
}

fn number(cluster: &ProcessCluster, node: usize, name: &str) -> Option<u64> {
    let client = Client::new(Duration::from_secs(1));
    let status = client.json(cluster.address(node), "/status").ok()?;
    let raft = status["store"]["raft"][name].as_str();
    raft.map_or_else(
        || status["wallaby"][name].as_u64(),
        |text| text.parse().ok(),
    )
}

/// Waits until the leader has appended so many more parts, or the transaction has ended.
fn wait_parts(cluster: &ProcessCluster, node: usize, upto: u64, running: &JoinHandle<Outcome>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while number(cluster, node, "last_log_index").is_none_or(|last| last < upto) {
        if running.is_finished() {
            return;
        }
        assert!(Instant::now() < deadline, "entry {upto} does not appear");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many rows each batch has on a node, none of them in part.
#[track_caller]
fn batches(cluster: &ProcessCluster, node: usize) -> Vec<u64> {
    let sql = "SELECT batch, count(*) FROM big GROUP BY batch ORDER BY batch";
    let rows = cluster.client().query(cluster.address(node), "strong", sql);
    let count = |row: &Vec<serde_json::Value>| {
        assert_eq!(row[1], json!(ROWS), "rows of batch {}", row[0]);
        row[0].as_u64().unwrap()
    };
    rows.unwrap().iter().map(count).collect()
}

/// What a client was told about a batch must be true.
fn check_outcome(batch: usize, outcome: &Outcome, found: &[u64]) {
    let there = found.contains(&(batch as u64));
    match outcome {
        Outcome::Answered(answer) => {
            assert_eq!(answer.error(), None);
            assert!(there, "batch {batch} was acknowledged");
        }
        Outcome::NotCommitted(why) => assert!(!there, "batch {batch} was refused: {why}"),
        Outcome::Unknown(_) => {}
    }
}

#[test]
fn a_large_transaction_survives_killed_and_stopped_nodes_whole_or_not_at_all() {
    let mut random = Random::new(seed("parts_kill"));
    let mut cluster = start(3, 3);
    for batch in 0..attempts(6) {
        let leader = cluster.wait_leader();
        let first = number(&cluster, leader, "last_log_index").unwrap();
        let running = begin(&cluster, leader, batch);
        let parts = 1 + random.bits() % PARTS;
        wait_parts(&cluster, leader, first + parts, &running);
        let late = running.is_finished();
        let victim = match random.below(4) {
            0 => (leader + 1 + random.below(2)) % 3,
            _ => leader,
        };
        let stop = random.below(2) == 0;
        if stop {
            cluster.pause(victim);
            // Long enough for the others to elect a leader, if it was that.
            std::thread::sleep(Duration::from_millis(1500));
            cluster.resume(victim);
        } else {
            cluster.kill(victim);
            if random.below(2) == 0 {
                cluster.wait_leader();
            }
            cluster.start_node(victim);
        }
        let outcome = running.join().unwrap();
        cluster.wait_all_ready();
        let role = if victim == leader {
            "leader"
        } else {
            "follower"
        };
        let how = if stop { "stopped" } else { "killed" };
        println!("batch {batch}: {role} {how} after {parts} parts (late: {late}): {outcome:?}");
        let found = batches(&cluster, random.below(3));
        check_outcome(batch, &outcome, &found);
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// Writes until the leader has purged its log behind this entry.
fn purge_behind(cluster: &mut ProcessCluster, index: u64) {
    let leader = cluster.wait_leader();
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150) \
               INSERT INTO filler SELECT randomblob(10240) FROM n";
    let table = "CREATE TABLE IF NOT EXISTS filler(payload BLOB)";
    let client = Client::new(Duration::from_secs(30));
    let _ = client
        .execute_sql(cluster.address(leader), table)
        .expect_success();
    let deadline = Instant::now() + Duration::from_secs(60);
    while number(cluster, leader, "purged_index").is_none_or(|purged| purged <= index) {
        assert!(Instant::now() < deadline, "the log is not purged");
        let _ = client
            .execute_sql(cluster.address(leader), sql)
            .expect_success();
    }
}

/// How often a node has begun to receive the whole database.
fn received(cluster: &ProcessCluster, node: usize) -> usize {
    let log = cluster.log_text(node);
    log.matches("receiving the database from the leader")
        .count()
}

#[test]
fn a_node_gets_the_whole_database_while_parts_are_in_flight() {
    let mut random = Random::new(seed("parts_kill"));
    let mut cluster = start(4, 3);
    for batch in 0..attempts(2) {
        let leader = cluster.wait_leader();
        // First a node that was never there, then one that was away for too long.
        let follower = if batch == 0 {
            3
        } else {
            let follower = (leader + 1 + random.below(2)) % 3;
            cluster.kill(follower);
            follower
        };
        let last = number(&cluster, leader, "last_log_index").unwrap();
        purge_behind(&mut cluster, last);
        let before = received(&cluster, follower);
        let leader = cluster.wait_leader();
        let first = number(&cluster, leader, "last_log_index").unwrap();
        let running = begin(&cluster, leader, batch);
        let parts = random.bits() % PARTS;
        wait_parts(&cluster, leader, first + parts, &running);
        let ended = running.is_finished();
        cluster.start_node(follower);
        let outcome = running.join().unwrap();
        cluster.wait_all_ready();
        println!("batch {batch}: node {follower} after {parts} parts (late: {ended}): {outcome:?}");
        assert!(
            received(&cluster, follower) > before,
            "it was not behind the log"
        );
        let found = batches(&cluster, follower);
        check_outcome(batch, &outcome, &found);
        let _ = cluster.assert_identical();
    }
    cluster.assert_healthy_logs();
}

/// The quorum that is to commit the transaction needs the node that needs the database first.
#[test]
fn a_large_transaction_waits_for_a_follower_that_needs_the_whole_database() {
    let mut cluster = start(3, 3);
    let leader = cluster.wait_leader();
    let (behind, lost) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(behind);
    let last = number(&cluster, leader, "last_log_index").unwrap();
    purge_behind(&mut cluster, last);
    let leader = cluster.wait_leader();
    let first = number(&cluster, leader, "last_log_index").unwrap();
    let running = begin(&cluster, leader, 0);
    wait_parts(&cluster, leader, first + 3, &running);
    cluster.kill(lost);
    cluster.start_node(behind);
    cluster.wait_ready(behind);
    let outcome = running.join().unwrap();
    println!("{outcome:?}");
    let found = batches(&cluster, behind);
    check_outcome(0, &outcome, &found);
    cluster.start_node(lost);
    cluster.wait_all_ready();
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
