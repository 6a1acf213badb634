//! kill -9 between two pieces.

use std::time::{Duration, Instant};

use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

use super::writes::{ROWS, create, large_transaction, number, write};

#[test]
fn a_node_killed_between_pieces_has_everything_when_it_starts_again() {
    let mut random = Random::new(seed("checkpoints"));
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    create(&cluster);
    let mut between = 0;
    for round in 1..=3 {
        let begun = number(&cluster, "checkpoint.pieces");
        let completed = number(&cluster, "checkpoint.completed");
        large_transaction(&cluster);
        let some = begun + 1 + random.number_below(20);
        let patience = Instant::now() + Duration::from_secs(60);
        while number(&cluster, "checkpoint.pieces") < some {
            write(&cluster, "INSERT OR REPLACE INTO small VALUES(1)");
            assert!(Instant::now() < patience, "no more pieces");
        }
        between += u32::from(number(&cluster, "checkpoint.completed") == completed);
        cluster.kill(0);
        cluster.start_node(0);
        cluster.wait_all_ready();
        let count = "SELECT (SELECT count(*) FROM large), (SELECT count(*) FROM small)";
        let rows = cluster.client().query(cluster.address(0), "strong", count);
        assert_eq!(rows.unwrap()[0], [json!(ROWS * round), json!(1)]);
        // Its hash is that of the log's entries.
        let image = cluster.assert_identical();
        let sound: String = cluster
            .open(&image)
            .query_row("PRAGMA integrity_check", (), |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
    }
    println!("{between} of 3 kills came before the end of the checkpoint");
    assert!(between > 0, "all checkpoints were over before the kill");
    cluster.assert_healthy_logs();
}
