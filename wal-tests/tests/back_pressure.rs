//! A follower that stands still costs the leader no memory beyond a bound in bytes, however much is
//! written, and catches up when it goes on: by the log, or by an image where the log is gone.
//!
//! `WAL_MIB=2000 cargo test --release -p wal-tests --test back_pressure -- --nocapture` writes more
//! than the default of 160 MiB and prints what the leader took.

#![allow(clippy::unwrap_used)]

use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};

const CREATE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
/// 4 MiB in a transaction, in parts of at most 2 MiB.
const INSERT: &str = "INSERT INTO t(v) VALUES(randomblob(4194304))";
const INSERT_MIB: u64 = 4;
/// The cache of the log (64 MiB), the window of the stream (16 MiB) with what QUIC holds of it
/// twice, one transaction on its way, and what an allocator keeps: far less than what is written.
const GROWTH_MIB_MAX: u64 = 112;

/// What the nodes keep of the log: the tail, and two segments that are not full or not empty yet.
const LOG_MIB_KEPT: u64 = 64;

/// MiB of memory of a process that are not pages of a file.
fn anonymous_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() >> 10
}

/// MiB of the log of a node on its disk.
fn log_mib(cluster: &ProcessCluster, node: usize) -> u64 {
    let segments = std::fs::read_dir(cluster.data_dir(node).join("log")).unwrap();
    // One may be deleted meanwhile.
    let sizes = segments.filter_map(|segment| segment.ok()?.metadata().ok());
    sizes.map(|segment| segment.len()).sum::<u64>() >> 20
}

/// Writes through a node. On a busy machine there may be an election in between, of which one more
/// row comes at most.
fn write(cluster: &mut ProcessCluster, through: usize, sql: &str) {
    cluster.wait("a write", |cluster| {
        let address = cluster.address(through);
        match cluster.client().execute_sql(address, sql) {
            Outcome::Answered(answer) if answer.error().is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn a_follower_that_stands_still_costs_the_leader_a_bounded_amount_of_memory() {
    let mib: u64 = std::env::var("WAL_MIB").map_or(160, |mib| mib.parse().unwrap());
    assert!(mib > GROWTH_MIB_MAX, "too little to prove anything");
    // A short log: what is written is soon not in it any more.
    let flags = ["-log-segment", "8388608", "-log-tail", "33554432"];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    let leader = cluster.wait_leader();
    let (paused, other) = ((leader + 1) % 3, (leader + 2) % 3);
    write(&mut cluster, leader, CREATE);
    for _ in 0..4 {
        write(&mut cluster, leader, INSERT);
    }
    let process = cluster.process_id(leader);
    let before = anonymous_mib(process);
    cluster.pause(paused);
    let mut most = before;
    for _ in 0..mib / INSERT_MIB {
        write(&mut cluster, leader, INSERT);
        most = most.max(anonymous_mib(process));
    }
    println!("{mib} MiB written: the leader had {before} MiB, and {most} MiB at most");
    let growth = most - before;
    assert!(
        growth < GROWTH_MIB_MAX,
        "{growth} MiB for {mib} MiB written"
    );
    // A fast machine has written all that before the first checkpoint lets go of the log. Any node
    // may lead when the other goes on.
    for node in [leader, other] {
        cluster.wait("a log without what the paused node lacks", |cluster| {
            let left = log_mib(cluster, node);
            let is_gone = left < mib - LOG_MIB_KEPT;
            is_gone.then_some(()).ok_or(format!("{left} MiB"))
        });
    }
    cluster.resume(paused);
    cluster.wait_ready(paused);
    let log = cluster.log_text(paused);
    assert!(log.contains("receiving the database"), "{log}");
    // A short absence, which the log bridges.
    let images = log.matches("receiving the database").count();
    cluster.pause(other);
    for _ in 0..3 {
        write(&mut cluster, paused, INSERT);
    }
    cluster.resume(other);
    cluster.wait_ready(other);
    assert!(!cluster.log_text(other).contains("receiving the database"));
    let log = cluster.log_text(paused);
    assert_eq!(log.matches("receiving the database").count(), images);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
