//! A bit that flips on the receiver's own disk: in the pages that it has received, and in what makes
//! it a node that has to be rebuilt.

use wal_tests::halt::{self, Halt};
use wal_tests::seed::{Random, seed};

use crate::stage::{PAGE_BYTES, Stage, flip, incoming, installing};

/// Where the records of pages begin; see `node/spool.rs`.
const HEAD_BYTES: u64 = 16;
const RECORD_BYTES: u64 = 8 + PAGE_BYTES;

#[test]
fn a_bit_that_flips_in_the_spool_is_found_before_it_is_installed() {
    let mut random = Random::new(seed("difference"));
    let mut stage = Stage::build_halting(3);
    for range in [0..HEAD_BYTES, HEAD_BYTES..100 * RECORD_BYTES] {
        let (away, _) = stage.send_away();
        stage.change_all();
        stage.purge();
        let halt = Halt::at(2, "received pages are in the spool");
        halt::start(&mut stage.cluster, away, &halt);
        let dir = stage.cluster.data_dir(away).to_owned();
        let offset = range.start + random.number_below(range.end - range.start);
        flip(&incoming(&dir), offset, random.below(8));
        stage.cluster.resume(away);
        stage.assert_caught_up();
        // Unless the connection was lost in between, and the spool was read anew.
        let is_noticed = stage
            .cluster
            .log_text(away)
            .contains("the spool is damaged");
        println!("noticed when all of it was there: {is_noticed}");
        assert_eq!(stage.installed(away), 1);
    }
}

#[test]
fn a_bit_that_flips_between_the_check_and_the_installation_is_found_as_well() {
    let mut random = Random::new(seed("difference"));
    let mut stage = Stage::build_halting(3);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    halt::start(
        &mut stage.cluster,
        away,
        &Halt::at(1, "the received database is adopted"),
    );
    let dir = stage.cluster.data_dir(away).to_owned();
    let offset = HEAD_BYTES + random.number_below(500 * RECORD_BYTES);
    flip(&installing(&dir), offset, random.below(8));
    stage.cluster.resume(away);
    // It is part of the durable state by then: the node ends, and comes back as one that has lost
    // some of it.
    assert!(!stage.cluster.wait_end(away).success());
    stage.cluster.start_node(away);
    stage.assert_rebuilt(away);
}

#[test]
fn a_node_that_is_rebuilt_fetches_only_what_its_old_database_lacks() {
    let mut random = Random::new(seed("difference"));
    let mut stage = Stage::build(4, &[]);
    for is_clean in [true, false] {
        stage.cluster.wait_converged();
        let away = (stage.cluster.wait_leader() + 1) % 3;
        if is_clean {
            let _ = stage.cluster.stop(away);
        } else {
            stage.cluster.kill(away);
        }
        let dir = stage.cluster.data_dir(away).to_owned();
        let record = dir.join("checkpoint");
        let bytes = record.metadata().unwrap().len();
        flip(
            &record,
            12 + random.number_below(bytes - 12),
            random.below(8),
        );
        // Its old pages are no better than others.
        let page = 10 + random.number_below(stage.rows - 10);
        flip(&dir.join("db.sqlite"), page * PAGE_BYTES, random.below(8));
        stage.execute("UPDATE filler SET payload = randomblob(3900) WHERE id % 50 = 0");
        stage.purge();
        stage.cluster.start_node(away);
        stage.assert_rebuilt(away);
        let (received, all) = (
            stage.snapshots(away, "bytes_received"),
            stage.rows * PAGE_BYTES,
        );
        println!("closed in order: {is_clean}; {received} bytes received, of {all}");
        assert!(received > 0 && received < all / 8, "{received} of {all}");
    }
}
