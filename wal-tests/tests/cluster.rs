//! Clusters come into being, are written to from everywhere, and survive a restart.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};

/// The one value that a query through this node returns.
#[track_caller]
fn value(cluster: &ProcessCluster, node: usize, level: &str, sql: &str) -> Value {
    let rows = cluster.client().query(cluster.address(node), level, sql);
    rows.unwrap_or_else(|error| panic!("{sql} on node {}: {error}", node + 1))[0][0].clone()
}

#[track_caller]
fn execute(cluster: &ProcessCluster, node: usize, sql: &str) {
    let _ = cluster
        .client()
        .execute_sql(cluster.address(node), sql)
        .expect_success();
}

#[test]
fn a_node_alone_starts_a_cluster_and_keeps_its_rows_over_restarts() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    execute(&cluster, 0, "CREATE TABLE t(v)");
    execute(&cluster, 0, "INSERT INTO t VALUES(1)");
    assert!(
        cluster.stop(0).success(),
        "SIGTERM ends a node with exit code 0"
    );
    cluster.start_node(0);
    cluster.wait_ready(0);
    execute(&cluster, 0, "INSERT INTO t VALUES(2)");
    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert_eq!(
        value(&cluster, 0, "strong", "SELECT group_concat(v) FROM t"),
        "1,2"
    );
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_that_join_take_writes_and_reads_at_every_level() {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    execute(
        &cluster,
        0,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, node, dice DEFAULT (random()))",
    );
    execute(&cluster, 1, "CREATE VIRTUAL TABLE words USING fts5(word)");
    let trigger = "CREATE TRIGGER copy AFTER INSERT ON t BEGIN \
                   INSERT INTO words VALUES('word' || NEW.id || ' ' || CURRENT_TIMESTAMP); END";
    execute(&cluster, 2, trigger);
    for node in 0..3 {
        execute(
            &cluster,
            node,
            &format!("INSERT INTO t(node) VALUES({node})"),
        );
        // Acknowledged by one node, it is there on every node, wherever one asks.
        for reader in 0..3 {
            for level in ["weak", "linearizable", "strong"] {
                let sql = "SELECT max(node) FROM t";
                assert_eq!(value(&cluster, reader, level, sql), json!(node), "{level}");
            }
        }
    }
    let _ = cluster.assert_identical();
    for reader in 0..3 {
        // All images are equal, so a local read must see everything too.
        let sql = "SELECT count(*) FROM t JOIN words ON words MATCH 'word' || id";
        assert_eq!(value(&cluster, reader, "none", sql), json!(3));
    }
    let nodes = cluster.client().json(cluster.address(2), "/nodes").unwrap();
    assert_eq!(nodes.as_object().unwrap().len(), 3, "{nodes}");
    cluster.assert_healthy_logs();
}

#[test]
fn three_nodes_that_expect_each_other_form_one_cluster_and_come_back_after_a_restart() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    execute(&cluster, 0, "CREATE TABLE t(v)");
    execute(&cluster, 1, "INSERT INTO t VALUES('before')");
    for node in 0..3 {
        assert!(cluster.stop(node).success());
    }
    for node in 0..3 {
        // With the flags of the first start: a cluster that exists is not started again.
        cluster.start_node(node);
    }
    cluster.wait_all_ready();
    execute(&cluster, 2, "INSERT INTO t VALUES('after')");
    let sql = "SELECT group_concat(v) FROM t";
    assert_eq!(value(&cluster, 1, "linearizable", sql), "before,after");
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn large_transactions_and_vacuum_travel_in_parts_and_too_large_ones_are_refused() {
    let flags = [
        "-entry-bytes",
        "131072",
        "-max-transaction-bytes",
        "8388608",
    ];
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &flags);
    let follower = (cluster.wait_leader() + 1) % 3;
    execute(
        &cluster,
        follower,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
    );
    let rows = |count: usize| {
        format!(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
             INSERT INTO t(v) SELECT randomblob(4000) FROM n"
        )
    };
    execute(&cluster, follower, &rows(1000));
    let image = cluster.assert_identical();
    assert!(image.bytes.len() > 4_000_000, "about 30 parts of 128 KiB");

    let answer = cluster
        .client()
        .execute_sql(cluster.address(follower), &rows(5000));
    let refused = match &answer {
        Outcome::Answered(answer) => answer.error().is_some(),
        Outcome::NotCommitted(_) => true,
        Outcome::Unknown(_) => false,
    };
    assert!(
        refused,
        "20 MB in one transaction of at most 8 MiB: {answer:?}"
    );
    assert_eq!(
        value(&cluster, follower, "linearizable", "SELECT count(*) FROM t"),
        json!(1000)
    );

    execute(&cluster, follower, "DELETE FROM t WHERE id > 500");
    execute(&cluster, follower, "VACUUM");
    let smaller = cluster.assert_identical();
    assert!(
        smaller.bytes.len() * 3 < image.bytes.len() * 2,
        "VACUUM gives pages back"
    );
    assert_eq!(
        value(&cluster, follower, "linearizable", "SELECT count(*) FROM t"),
        json!(500)
    );
    cluster.assert_healthy_logs();
}
