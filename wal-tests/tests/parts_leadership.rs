//! Leadership is lost while a transaction that travels in parts is under way.
//!
//! `WAL_ROUNDS=20 cargo test -p wal-tests --test parts_leadership` tries more often than the default
//! of 2.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

const TABLE: &str = "CREATE TABLE t(id INTEGER, part INTEGER, body BLOB)";
const PARTS: u64 = 60;

#[test]
fn a_leader_deposed_between_the_parts_of_a_transaction_lives_with_the_parts_that_stay_in_the_log() {
    let rounds: u64 = std::env::var("WAL_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let mut random = Random::new(seed("parts_leadership"));
    // Small parts, so that there are many moments between two of them.
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &["-entry-bytes", "262144"]);
    let client = cluster.client().clone();
    let _ = client
        .execute_sql(cluster.address(0), TABLE)
        .expect_success();
    let mut told = Vec::new();
    for id in 0..rounds {
        let leader = cluster.wait_leader();
        let address = cluster.address(leader).to_owned();
        let sql = format!(
            "WITH RECURSIVE part(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM part \
             WHERE x < {PARTS}) INSERT INTO t SELECT {id}, x, randomblob(300000) FROM part"
        );
        let writer = std::thread::spawn(move || {
            let client = Client::new(Duration::from_secs(20));
            client.execute_sql(&address, &sql)
        });
        // Somewhere between the first part and long after the last.
        let pause = 100 + u64::try_from(random.below(600)).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        for node in (0..3).filter(|&node| node != leader) {
            cluster.pause(node);
        }
        // Long enough for the leader to see that it has no quorum.
        std::thread::sleep(Duration::from_secs(2));
        for node in (0..3).filter(|&node| node != leader) {
            cluster.resume(node);
        }
        let outcome = writer.join().unwrap();
        println!("round {id}: after {pause} ms: {outcome:?}");
        told.push(outcome);
        cluster.wait_all_ready();
    }
    let leader = cluster.wait_leader();
    let sql = "SELECT id, count(*) FROM t GROUP BY id";
    let found = client
        .query(cluster.address(leader), "linearizable", sql)
        .unwrap();
    for (id, outcome) in (0..).zip(&told) {
        let row = found.iter().find(|row| row[0] == id);
        let rows = row.map_or(0, |row| row[1].as_u64().unwrap());
        let right = match outcome {
            Outcome::Answered(_) => rows == PARTS,
            Outcome::NotCommitted(_) => rows == 0,
            Outcome::Unknown(_) => rows == 0 || rows == PARTS,
        };
        assert!(right, "write {id}: {rows} rows, {outcome:?}");
    }
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}
