//! Loads into clusters: through a follower, under the eyes of readers, and while nodes die.
//!
//! `WAL_ATTEMPTS=30 cargo test -p wal-tests --test load_cluster` tries more moments than the few of
//! the default.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::marked;
use wal_tests::seed::{Random, seed};

/// Small parts, so that there are many moments between them.
const FLAGS: [&str; 8] = [
    "-entry-bytes",
    "131072",
    "-spool-bytes",
    "1048576",
    "-raft-snap-wal-size",
    "1048576",
    // A busy machine may not run a node for a while.
    "-raft-election-timeout",
    "1s",
];

/// What a reader sees: the marks and the numbers of rows of both tables.
const LOOK: &str = "SELECT count(*), min(mark), max(mark), (SELECT count(*) FROM b), \
     (SELECT min(mark) FROM b), (SELECT max(mark) FROM b) FROM a";

/// The mark that a node sees, which must be the same in all rows.
fn mark(client: &Client, address: &str, level: &str, rows: u64) -> Result<u64, String> {
    let seen = client.query(address, level, LOOK)?;
    let row: Vec<u64> = seen[0].iter().map(|cell| cell.as_u64().unwrap()).collect();
    let mark = row[1];
    assert_eq!(
        row,
        [rows, mark, mark, rows, mark, mark],
        "a mix of two databases"
    );
    Ok(mark)
}

#[test]
fn a_load_through_a_follower_is_seen_whole_or_not_at_all_on_every_node() {
    const ROWS: u64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &FLAGS);
    let leader = cluster.wait_leader();
    let client = Client::new(Duration::from_secs(60));
    let files = [1, 2, 3].map(|mark| marked::file(dir.path(), mark, ROWS));
    let load = |node: usize, body: &[u8]| {
        let address = cluster.address(node);
        let answer = client.post(address, "/db/load", "", body).unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "{\"results\":[]}")
        );
    };
    load(leader, &files[0]);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<JoinHandle<BTreeSet<u64>>> = (0..3)
        .map(|node| {
            let (stop, client) = (Arc::clone(&stop), client.clone());
            let address = cluster.address(node).to_owned();
            std::thread::spawn(move || {
                let (mut seen, mut last) = (BTreeSet::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    // A follower may still be waiting for its first database.
                    let Ok(mark) = mark(&client, &address, "none", ROWS) else {
                        continue;
                    };
                    assert!(mark >= last, "back from {last} to {mark}");
                    last = mark;
                    seen.insert(mark);
                }
                seen
            })
        })
        .collect();
    let followers: Vec<_> = (0..3).filter(|&node| node != leader).collect();
    for (round, body) in files.iter().enumerate().skip(1) {
        load(followers[round - 1], body);
        let expected = round as u64 + 1;
        for node in 0..3 {
            let found = mark(&client, cluster.address(node), "linearizable", ROWS);
            assert_eq!(found, Ok(expected), "acknowledged, asked on node {node}");
        }
    }
    cluster.wait_converged();
    std::thread::sleep(Duration::from_millis(100));
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap().contains(&3), "the last one was seen");
    }
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

fn last_index(cluster: &ProcessCluster, node: usize) -> u64 {
    let client = Client::new(Duration::from_secs(1));
    let status = client.json(cluster.address(node), "/status");
    let status = status.unwrap_or_default();
    let index = status["store"]["raft"]["last_log_index"].clone();
    let index = index.as_u64().or_else(|| index.as_str()?.parse().ok());
    index.unwrap_or(0)
}

#[test]
fn a_load_survives_the_death_of_the_leader_whole_or_not_at_all() {
    const ROWS: u64 = 600;
    let attempts = std::env::var("WAL_ATTEMPTS").map_or(4, |attempts| attempts.parse().unwrap());
    let mut random = Random::new(seed("load_cluster"));
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &FLAGS);
    let client = Client::new(Duration::from_secs(60));
    let first = marked::file(dir.path(), 0, ROWS);
    let leader = cluster.wait_leader();
    let answer = client
        .post(cluster.address(leader), "/db/load", "", &first)
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (mut now, mut replaced) = (0, 0);
    for attempt in 1..=attempts {
        let leader = cluster.wait_leader();
        let body = marked::file(dir.path(), attempt, ROWS);
        let parts = body.len() as u64 / (128 << 10);
        let begin = last_index(&cluster, leader);
        // Through a follower in one of two cases, which then has to say what it knows.
        let through = if random.chance(50) {
            leader
        } else {
            (leader + 1) % 3
        };
        let loading = {
            let (client, address) = (client.clone(), cluster.address(through).to_owned());
            std::thread::spawn(move || client.post(&address, "/db/load?timeout=20s", "", &body))
        };
        // From the time of the check to the time after the last part.
        let upto = begin + random.number_below(parts + parts / 2);
        let deadline = Instant::now() + Duration::from_secs(60);
        while last_index(&cluster, leader) < upto && !loading.is_finished() {
            assert!(Instant::now() < deadline, "entry {upto} does not appear");
            std::thread::sleep(Duration::from_millis(1));
        }
        cluster.kill(leader);
        let answer = loading.join().unwrap();
        cluster.start_node(leader);
        cluster.wait_all_ready();
        cluster.wait_leader();
        let level = "linearizable";
        let found = mark(&client, cluster.address(through), level, ROWS).unwrap();
        assert!(
            found == attempt || found == now,
            "{found} after {now} and {attempt}"
        );
        match answer {
            Ok(answer) if answer.status == 200 => {
                assert_eq!(found, attempt, "it was acknowledged: {}", answer.body);
            }
            Ok(answer) if answer.status == 503 => {
                assert_eq!(found, now, "it was refused: {}", answer.body);
            }
            // Unknown, or the connection broke: either will do.
            Ok(answer) => assert_eq!(answer.status, 409, "{}", answer.body),
            Err(_) => {}
        }
        replaced += u64::from(found == attempt);
        now = found;
        cluster.assert_identical();
    }
    println!("{replaced} of {attempts} loads took effect");
    for node in 0..3 {
        let scratch = std::fs::read_dir(cluster.data_dir(node)).unwrap();
        let scratch: Vec<_> = scratch
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("scratch-"))
            .collect();
        assert_eq!(scratch, Vec::<String>::new(), "node {node}");
    }
    cluster.assert_healthy_logs();
}
