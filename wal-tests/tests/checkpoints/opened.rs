//! Somebody looks into the database with SQLite's own shell while its node is down, which moves all
//! of the WAL into the main file and deletes it: the state of the record is not there any more.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};

use super::writes::{ROWS, create, large_transaction, number, write};

/// What `sqlite3 db.sqlite "SELECT ..."` does to the files.
fn look_into(cluster: &ProcessCluster) {
    let dir = cluster.data_dir(0);
    let connection = Connection::open(dir.join("db.sqlite")).unwrap();
    let count = "SELECT count(*) FROM large";
    let _: i64 = connection.query_row(count, (), |row| row.get(0)).unwrap();
    connection.close().unwrap();
    assert!(!dir.join("db.sqlite-wal").exists(), "the WAL was moved");
}

fn check(cluster: &mut ProcessCluster, large: u64, small: u64) {
    cluster.start_node(0);
    cluster.wait_all_ready();
    cluster.wait_log(0, "to find its state in the log");
    let count = "SELECT (SELECT count(*) FROM large), (SELECT count(*) FROM small)";
    let rows = cluster.client().query(cluster.address(0), "strong", count);
    assert_eq!(rows.unwrap()[0], [json!(large), json!(small)]);
    let _ = cluster.assert_identical();
    write(cluster, "INSERT INTO small VALUES(NULL)");
}

#[test]
fn a_database_that_was_opened_while_its_node_was_down_goes_on_where_it_is() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    create(&cluster);
    for _ in 0..20 {
        write(&cluster, "INSERT INTO small VALUES(NULL)");
    }
    cluster.kill(0);
    look_into(&cluster);
    check(&mut cluster, 0, 20);
    cluster.assert_healthy_logs();
}

#[test]
fn the_same_in_the_middle_of_a_checkpoint() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    create(&cluster);
    let begun = number(&cluster, "checkpoint.pieces");
    let completed = number(&cluster, "checkpoint.completed");
    large_transaction(&cluster);
    let patience = Instant::now() + Duration::from_secs(60);
    while number(&cluster, "checkpoint.pieces") == begun {
        assert!(Instant::now() < patience, "no pieces");
    }
    let is_over = number(&cluster, "checkpoint.completed") > completed;
    cluster.kill(0);
    look_into(&cluster);
    assert!(!is_over, "the checkpoint was over before the kill");
    check(&mut cluster, ROWS, 0);
    cluster.assert_healthy_logs();
}
