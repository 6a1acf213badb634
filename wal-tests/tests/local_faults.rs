//! Disk faults of one node at every call after the cluster's commit: it aborts or refuses cleanly,
//! comes back, and nothing acknowledged is lost.

#![allow(clippy::unwrap_used)]

use wal_tests::faulty_cluster::{FaultyCluster, Struck};
use wal_tests::faulty_vfs::{Call, Failure, Fault};

const BINARY: &str = env!("CARGO_BIN_EXE_node_with_faults");

/// Never a checkpoint because of the WAL's size.
const LARGE: [&str; 2] = ["-raft-snap-wal-size", "1000000000"];
/// A checkpoint after each write of many rows, so that the next one begins the WAL afresh.
const SMALL: [&str; 2] = ["-raft-snap-wal-size", "65536"];

const FAILURES: [Failure; 3] = [Failure::Io, Failure::Full, Failure::Short];

fn fault(call: Call, number: u32, failure: Failure) -> Fault {
    Fault {
        call,
        number,
        failure,
        after_release: false,
    }
}

/// Lets every call of this kind that a write makes fail, one after the other, until none is left.
/// Returns how many aborted the node, and how many were refused.
fn strike_all(node: &mut FaultyCluster, call: Call, failure: Failure, rows: u64) -> (u32, u32) {
    let (mut aborted, mut refused) = (0, 0);
    for number in 1.. {
        match node.strike(fault(call, number, failure), rows, 3000) {
            Struck::Nowhere => break,
            Struck::Refused(why) => {
                println!("{call:?} {number} {failure:?}: {why}");
                refused += 1;
            }
            Struck::Aborted => {
                // The only node is the quorum: what it has committed it must redo.
                node.last_is_committed();
                aborted += 1;
            }
        }
    }
    (aborted, refused)
}

#[test]
fn a_wal_write_that_fails_after_the_commit_aborts_and_is_redone() {
    let mut node = FaultyCluster::start(BINARY, 1, &LARGE);
    for failure in FAILURES {
        // 240 KB in transfers of at most 64 KiB.
        let (aborted, refused) = strike_all(&mut node, Call::WalWrite, failure, 80);
        assert!(aborted >= 3, "{aborted} calls");
        assert_eq!(refused, 0);
    }
    node.check(0);
}

#[test]
fn a_wal_write_that_fails_where_the_wal_begins_afresh_aborts_and_is_redone() {
    let mut node = FaultyCluster::start(BINARY, 1, &SMALL);
    for failure in FAILURES {
        // The warm-up fills the WAL beyond the threshold, so the checkpoint is due.
        let _ = node.write(0, 40).expect_success();
        let struck = node.strike(fault(Call::WalWrite, 1, failure), 40, 3000);
        assert!(matches!(struck, Struck::Aborted), "{struck:?}");
        node.last_is_committed();
    }
    node.check(0);
}

/// Rows of 3000 bytes, one to a frame: few enough for SQLite's cache, so that no frame is written
/// before COMMIT. A region of the WAL-index has room for about ten times as many frames.
const CROSSING: u64 = 400;
/// So often they are written until the next region is needed. A checkpoint of the idle node may come
/// in between on a busy machine, and with it a WAL that begins afresh.
const CROSSINGS_MAX: usize = 100;

#[test]
fn shared_memory_that_cannot_be_had_is_found_out_before_the_commit_or_aborts() {
    let mut node = FaultyCluster::start(BINARY, 1, &LARGE);
    for (call, failure, after_release) in [
        (Call::ShmExtend, Failure::Full, false),
        (Call::ShmExtend, Failure::Io, false),
        (Call::ShmMap, Failure::Io, true),
    ] {
        let fault = Fault {
            call,
            number: 1,
            failure,
            after_release,
        };
        let struck = (0..CROSSINGS_MAX).find_map(|_| {
            let struck = node.strike(fault, CROSSING, 3000);
            (!matches!(struck, Struck::Nowhere)).then_some(struck)
        });
        match struck {
            None => panic!("{fault}: a region was expected to be mapped"),
            Some(Struck::Aborted) if after_release => node.last_is_committed(),
            Some(Struck::Refused(why)) if !after_release => {
                assert!(why.contains("no space for the WAL-index"), "{why}");
            }
            other => panic!("{fault}: {other:?}"),
        }
    }
    // Regions that SQLite wants for itself before COMMIT, because its cache is full.
    let struck = node.strike(fault(Call::ShmMap, 1, Failure::Io), 8, 3_600_000);
    assert!(
        matches!(struck, Struck::Refused(_) | Struck::Nowhere),
        "{struck:?}"
    );
    node.check(0);
}

#[test]
fn a_follower_that_cannot_write_what_is_committed_aborts_and_catches_up() {
    let mut nodes = FaultyCluster::start(BINARY, 3, &LARGE);
    for (call, number, failure) in [
        (Call::WalWrite, 1, Failure::Io),
        (Call::WalWrite, 2, Failure::Full),
        (Call::WalWrite, 2, Failure::Short),
        (Call::ShmExtend, 1, Failure::Full),
    ] {
        let leader = nodes.cluster.wait_leader();
        let follower = (leader + 1) % 3;
        nodes.write_well(leader);
        nodes.arm(follower, fault(call, number, failure));
        for _ in 0..CROSSINGS_MAX {
            // The two others are a quorum.
            let _ = nodes.write(leader, CROSSING).expect_success();
            if call == Call::WalWrite || nodes.has_struck(follower) != Some(false) {
                break;
            }
        }
        nodes.expect_abort(follower);
        nodes.cluster.start_node(follower);
        nodes.cluster.wait_ready(follower);
    }
    nodes.check(0);
}

#[test]
fn a_leader_that_cannot_publish_what_is_committed_aborts_and_another_one_has_it() {
    let mut nodes = FaultyCluster::start(BINARY, 3, &LARGE);
    for (number, failure) in [(1, Failure::Io), (3, Failure::Short), (4, Failure::Full)] {
        let leader = nodes.cluster.wait_leader();
        nodes.write_well(leader);
        nodes.arm(leader, fault(Call::WalWrite, number, failure));
        // Through another node: that one lives, and must not call it a success either.
        let outcome = nodes.write((leader + 1) % 3, 80);
        assert!(
            matches!(outcome, wal_tests::client::Outcome::Unknown(_)),
            "{outcome:?}"
        );
        nodes.last_is_committed();
        nodes.expect_abort(leader);
        nodes.cluster.wait_leader_other_than(leader);
        nodes.cluster.start_node(leader);
        nodes.cluster.wait_all_ready();
    }
    nodes.check(0);
}
