//! What nodes do by themselves: checkpoints by the number of log entries, VACUUM and PRAGMA
//! optimize at intervals, and the leadership handed over at the end.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};

fn number(cluster: &ProcessCluster, node: usize, path: &str) -> Result<u64, String> {
    let found = cluster.client().json(cluster.address(node), path)?;
    found.as_u64().ok_or_else(|| format!("{path} is {found}"))
}

fn counter(cluster: &ProcessCluster, node: usize, map: &str, name: &str) -> Result<u64, String> {
    let path = format!("/debug/vars?key={map}");
    let found: Value = cluster.client().json(cluster.address(node), &path)?;
    let found = &found[map][name];
    found.as_u64().ok_or_else(|| format!("{name} is {found}"))
}

fn execute(cluster: &ProcessCluster, statements: &Value) {
    let address = cluster.address(0);
    let _ = cluster
        .client()
        .execute(address, statements)
        .expect_success();
}

#[test]
fn entries_that_change_nothing_are_checkpointed_by_their_number() {
    let flags = ["-raft-snap=20", "-raft-snap-int=100ms"];
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    execute(&cluster, &json!(["CREATE TABLE t(v)"]));
    // A strong read writes an entry and no page, so nothing but the number of entries counts.
    let address = cluster.address(0).to_owned();
    for _ in 0..50 {
        let rows = cluster.client().query(&address, "strong", "SELECT 1");
        assert_eq!(rows.unwrap()[0][0], json!(1));
    }
    let last: u64 = cluster
        .client()
        .json(&address, "/status?key=store.raft.last_log_index")
        .map(|index| index.as_str().unwrap().parse().unwrap())
        .unwrap();
    cluster.wait("a checkpoint record near the end of the log", |cluster| {
        let recorded = number(cluster, 0, "/status?key=wallaby.checkpoint.index")?;
        let near = recorded + 20 > last;
        near.then_some(()).ok_or(format!("{recorded} of {last}"))
    });
    assert!(counter(&cluster, 0, "store", "num_snapshots").unwrap() > 0);
    cluster.assert_healthy_logs();
}

#[test]
fn the_leader_vacuums_and_optimizes_for_all() {
    let flags = ["-auto-vacuum-int=300ms", "-auto-optimize-int=300ms"];
    let mut cluster = ProcessCluster::start(2, &Formation::Join, &flags);
    execute(
        &cluster,
        &json!([
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
            "CREATE INDEX t_v ON t(v)",
            "INSERT INTO t(v) WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c \
             WHERE x < 3000) SELECT hex(randomblob(100)) FROM c"
        ]),
    );
    let full = number(&cluster, 0, "/status?key=wallaby.page_count").unwrap();
    execute(&cluster, &json!(["DELETE FROM t WHERE id > 100"]));
    for node in 0..2 {
        cluster.wait("the space to be given back", |cluster| {
            let pages = number(cluster, node, "/status?key=wallaby.page_count")?;
            let given_back = pages * 4 < full;
            given_back.then_some(()).ok_or(format!("{pages} of {full}"))
        });
        let address = cluster.address(node).to_owned();
        cluster.wait("statistics", |cluster| {
            let sql = "SELECT count(*) FROM sqlite_stat1 WHERE tbl = 't'";
            let rows = cluster.client().query(&address, "none", sql)?;
            let counted = rows[0][0].as_u64() > Some(0);
            counted.then_some(()).ok_or(format!("{rows:?}"))
        });
    }
    let leader = cluster.wait_leader();
    for name in ["num_auto_vacuums", "num_auto_optimizes"] {
        assert!(counter(&cluster, leader, "store", name).unwrap() > 0);
        let failed = format!("{name}_failed");
        assert_eq!(counter(&cluster, leader, "store", &failed), Ok(0));
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_leader_that_is_stopped_hands_the_leadership_over_unless_told_not_to() {
    const HANDED_OVER: &str = "the leadership is handed over";
    for (flags, expected) in [(&[][..], true), (&["-raft-shutdown-stepdown=false"], false)] {
        let mut cluster = ProcessCluster::start(3, &Formation::Join, flags);
        execute(
            &cluster,
            &json!(["CREATE TABLE t(v)", "INSERT INTO t VALUES(1)"]),
        );
        let old = cluster.wait_leader();
        assert!(cluster.stop(old).success());
        let log = cluster.log_text(old);
        assert_eq!(log.contains(HANDED_OVER), expected, "{log}");
        let new = cluster.wait_leader_other_than(old);
        let rows = cluster
            .client()
            .query(cluster.address(new), "strong", "SELECT v FROM t");
        assert_eq!(rows.unwrap(), [[json!(1)]]);
        cluster.start_node(old);
        cluster.wait_ready(old);
        let _ = cluster.assert_identical();
        cluster.assert_healthy_logs();
    }
}

#[test]
fn a_node_alone_stops_without_looking_for_an_heir() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    assert!(cluster.stop(0).success());
    let log = cluster.log_text(0);
    assert!(!log.contains("leadership over"), "{log}");
}
