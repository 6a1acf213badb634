//! A load that is larger than anything a node keeps in memory.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::marked;

/// The machine may be busy with other tests, and an election is not what this is about.
const FLAGS: [&str; 8] = [
    "-entry-bytes",
    "131072",
    "-spool-bytes",
    "1048576",
    "-raft-heartbeat-timeout",
    "500ms",
    "-raft-election-timeout",
    "5s",
];

#[test]
fn a_load_needs_no_memory_for_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &FLAGS);
    let leader = cluster.wait_leader();
    let client = Client::new(Duration::from_secs(120));
    let warm = marked::file(dir.path(), 1, 250);
    let large = marked::file(dir.path(), 2, 20_000);
    assert!(large.len() > 150 << 20);
    let through = cluster.address((leader + 1) % 3).to_owned();
    let answer = client.post(&through, "/db/load", "", &warm).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let memory = |node: usize| {
        let path = format!("/proc/{}/status", cluster.process_id(node));
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = [0, 1, 2].map(memory);
    let answer = client
        .post(&through, "/db/load?timeout=60s", "", &large)
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let rows = json!(20_000);
    for (node, before) in before.into_iter().enumerate() {
        let count = "SELECT count(*) FROM a";
        let found = client.query(cluster.address(node), "linearizable", count);
        assert_eq!(found.unwrap(), [[rows.clone()]]);
        let grown = memory(node).saturating_sub(before);
        // 64 MiB of it is the cache of the log, which is as large for any load.
        assert!(grown < (64 + 48) << 10, "{grown} KiB on node {node}");
    }
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}
