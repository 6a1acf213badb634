//! Writes go on while a long WAL is moved.

use std::time::Duration;

use serde_json::json;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};

/// About 32 MiB.
pub(crate) const ROWS: u64 = 8_000;

pub(crate) fn number(cluster: &ProcessCluster, path: &str) -> u64 {
    let path = format!("/status?key=wallaby.{path}");
    let found = cluster.client().json(cluster.address(0), &path).unwrap();
    found.as_u64().unwrap()
}

pub(crate) fn write(cluster: &ProcessCluster, sql: &str) {
    let client = Client::new(Duration::from_secs(60));
    let _ = client.execute_sql(cluster.address(0), sql).expect_success();
}

pub(crate) fn create(cluster: &ProcessCluster) {
    write(cluster, "CREATE TABLE large(id INTEGER PRIMARY KEY, v)");
    write(cluster, "CREATE TABLE small(id INTEGER PRIMARY KEY)");
}

/// Makes the WAL long at once.
pub(crate) fn large_transaction(cluster: &ProcessCluster) {
    let sql = format!(
        "INSERT INTO large(v) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n \
         WHERE i < {ROWS}) SELECT randomblob(3900) FROM n"
    );
    write(cluster, &sql);
}

#[test]
fn writes_are_acknowledged_between_the_pieces_of_a_long_wal() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    create(&cluster);
    let completed = number(&cluster, "checkpoint.completed");
    large_transaction(&cluster);
    let (mut writes, mut between, mut last) = (0, 0, 0);
    while number(&cluster, "checkpoint.completed") == completed {
        let pieces = number(&cluster, "checkpoint.pieces");
        write(&cluster, "INSERT INTO small VALUES(NULL)");
        writes += 1;
        // Acknowledged after some pieces and before others.
        between += usize::from(pieces > last);
        last = pieces;
        assert!(writes < 100_000, "the checkpoint does not end");
    }
    let pieces = number(&cluster, "checkpoint.pieces");
    println!("{pieces} pieces; {writes} writes meanwhile, {between} after a new piece each");
    assert!(pieces >= 30, "{pieces} pieces of 1 MiB");
    assert!(between >= 1, "{between} writes between pieces");
    let count = "SELECT (SELECT count(*) FROM large), (SELECT count(*) FROM small)";
    let rows = cluster
        .client()
        .query(cluster.address(0), "none", count)
        .unwrap();
    assert_eq!(rows[0], [json!(ROWS), json!(writes)]);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
