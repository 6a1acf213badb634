//! Nodes are killed with SIGKILL under a write load, the leader included.
//!
//! `WAL_KILLS=30 cargo test -p wal-tests --test kill -- --nocapture` kills more often than the
//! default of 6, and shows the summary at the end.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wal_tests::checker::{self, Violation};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};
use wal_tests::workload::{self, Fate, Workload};

/// Waits until so many more rows are acknowledged.
fn wait_acknowledged(cluster: &mut ProcessCluster, workload: &Workload, more: usize) {
    let goal = workload.acknowledged() + more;
    cluster.wait("rows to be acknowledged", |_| {
        match workload.acknowledged() {
            found if found >= goal => Ok(()),
            found => Err(format!("{found} of {goal}")),
        }
    });
}

/// Key and payload of every row, as a linearizable read through this node returns them.
fn rows(cluster: &ProcessCluster, node: usize) -> Vec<(String, String)> {
    let sql = "SELECT key, payload FROM item";
    let rows = cluster
        .client()
        .query(cluster.address(node), "linearizable", sql)
        .unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.iter()
        .map(|row| (text(&row[0]), text(&row[1])))
        .collect()
}

/// Kills one node or all of them, perhaps while another one stands still, and starts them again;
/// returns how many processes it killed.
fn kill_some(cluster: &mut ProcessCluster, workload: &Workload, random: &mut Random) -> usize {
    wait_acknowledged(cluster, workload, ROWS_BETWEEN_KILLS);
    // Sometimes a node stands still meanwhile, a leader perhaps, and finds a changed world.
    let paused = (random.below(3) == 0).then(|| random.below(3));
    if let Some(node) = paused {
        cluster.pause(node);
    }
    let victims = match random.below(6) {
        // The whole cluster at once: only what is on the disks survives.
        0 => vec![0, 1, 2],
        1 | 2 => vec![random.below(3)],
        _ => vec![cluster.wait_leader()],
    };
    println!("kill: nodes {victims:?}, paused {paused:?}");
    for &victim in &victims {
        cluster.kill(victim);
    }
    let paused = paused.filter(|node| !victims.contains(node));
    if victims.len() == 1 && paused.is_none() {
        let rows = [0, ROWS_BETWEEN_KILLS, 6 * ROWS_BETWEEN_KILLS][random.below(3)];
        wait_acknowledged(cluster, workload, rows);
    }
    for &victim in &victims {
        cluster.start_node(victim);
    }
    if let Some(node) = paused {
        cluster.resume(node);
    }
    // Sometimes the next kill meets a node that is still catching up.
    if random.below(3) > 0 {
        cluster.wait_all_ready();
    }
    victims.len()
}

#[test]
fn nothing_acknowledged_is_lost_when_nodes_are_killed() {
    let kills: usize = std::env::var("WAL_KILLS").map_or(6, |kills| kills.parse().unwrap());
    let mut random = Random::new(seed("kill"));
    // Small checkpoints: a restart then begins at a checkpoint record, not at the genesis.
    // And a short log: a node that was away for long receives the whole database.
    let flags = [
        "-raft-snap-wal-size",
        "131072",
        "-log-segment",
        "1048576",
        "-log-tail",
        "0",
    ];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), workload::TABLE)
        .expect_success();
    let addresses = cluster.addresses();
    let workload = Workload::start("w", &addresses, 4, Duration::from_secs(3), &mut random);

    let mut processes = 0;
    for _ in 0..kills {
        processes += kill_some(&mut cluster, &workload, &mut random);
    }

    wait_acknowledged(&mut cluster, &workload, ROWS_BETWEEN_KILLS);
    let history = workload.stop();
    cluster.wait_all_ready();
    let image = cluster.assert_identical();
    let acknowledged = history.count(Fate::Acknowledged);
    let found = rows(&cluster, random.below(3));
    let violations = checker::check(&history, &found);
    let broken = |kind: fn(&Violation) -> bool| violations.iter().filter(|it| kind(it)).count();
    let logs: String = (0..3).map(|node| cluster.log_text(node)).collect();
    let images = logs.matches("receiving the database").count();
    println!(
        "{kills} kills of {processes} processes, {images} whole databases sent: {acknowledged} rows \
         acknowledged, {} refused, {} unknown; {} found, {} lost, {} invented, {} violations in \
         all; images identical, {} bytes",
        history.count(Fate::Refused),
        history.count(Fate::Unknown),
        found.len(),
        broken(|it| matches!(it, Violation::Lost(_))),
        broken(|it| matches!(it, Violation::Invented(_))),
        violations.len(),
        image.bytes.len()
    );
    assert_eq!(violations, []);
    let on_disk = cluster
        .open(&image)
        .query_row("SELECT count(*) FROM item", [], |row| row.get(0));
    assert_eq!(
        on_disk,
        Ok(i64::try_from(found.len()).unwrap()),
        "rows in the image"
    );
    assert!(
        acknowledged >= kills * ROWS_BETWEEN_KILLS,
        "too few writes to prove anything"
    );
    cluster.assert_healthy_logs();
}

/// Enough for every writer to have been through several groups.
const ROWS_BETWEEN_KILLS: usize = 40;

/// However short the log is to be kept: it is all that a start has of what came after the record.
#[test]
fn a_log_keeps_what_its_record_does_not_cover() {
    const ROUNDS: i64 = 3;
    const ROWS: i64 = 6;
    let flags = [
        "-raft-snap-wal-size=1073741824",
        "-raft-snap=1000000",
        "-log-segment=1048576",
        "-log-tail=0",
    ];
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let address = cluster.address(0).to_owned();
    let execute = |cluster: &ProcessCluster, sql: &str| {
        let answer = cluster.client().execute_sql(&address, sql);
        let _ = answer.expect_success();
    };
    execute(&cluster, "CREATE TABLE t(v)");
    for round in 1..=ROUNDS {
        let snapshot = cluster.client().post(&address, "/snapshot", "", b"");
        assert_eq!(snapshot.unwrap().status, 200, "round {round}");
        for _ in 0..ROWS {
            // A segment of the log and more.
            execute(&cluster, "INSERT INTO t VALUES(randomblob(1500000))");
        }
        // Whoever wants to purge the log has purged it.
        std::thread::sleep(Duration::from_millis(500));
        cluster.kill(0);
        cluster.start_node(0);
        cluster.wait_ready(0);
        let rows = cluster
            .client()
            .query(&address, "strong", "SELECT count(*) FROM t");
        assert_eq!(rows.unwrap()[0][0], serde_json::json!(round * ROWS));
    }
    cluster.assert_healthy_logs();
}
