//! What a node needs next is not purged while it catches up, within a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wal_tests::tap::{Fate, SNAPSHOT, Tap, Way};

use crate::stage::Stage;
use crate::transit::VERDICT;

/// Lets the database arrive, and then nothing more pass: for its peers the node is silent, and still
/// busy with it. Says when the verdict is held back.
fn silence_after_the_transfer(tap: &Tap) -> Arc<AtomicBool> {
    let is_silent = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&is_silent);
    tap.set(move |frame| {
        let is_verdict = frame.kind == SNAPSHOT
            && frame.way == Way::Out
            && frame.bytes.first() == Some(&VERDICT);
        if is_verdict {
            says.store(true, Ordering::Release);
        }
        if says.load(Ordering::Acquire) {
            Fate::Hold
        } else {
            Fate::Pass
        }
    });
    is_silent
}

/// A node has installed a database, and its leader does not know yet; returns the node, the leader,
/// the tap, and the index of that database.
fn hang(flags: &[&str]) -> (Stage, Tap, usize, usize, u64) {
    let mut stage = Stage::build(1, flags);
    let (away, _) = stage.send_away();
    stage.change_all();
    stage.purge();
    let tap = stage.tap(away);
    let is_silent = silence_after_the_transfer(&tap);
    stage.cluster.start_node(away);
    stage.cluster.wait("the database to be installed", |_| {
        let is_silent = is_silent.load(Ordering::Acquire);
        is_silent.then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    let leader = stage.cluster.wait_leader();
    let transfers = stage.status(leader)["snapshots"]["transfers"].clone();
    let index = transfers[0]["index"].as_u64().unwrap();
    // Long enough for the leader not to count it among those that are there.
    std::thread::sleep(Duration::from_secs(2));
    (stage, tap, leader, away, index)
}

/// Writes far more than what is kept without need, with a checkpoint after each.
fn write_much(stage: &mut Stage, leader: usize) {
    let address = stage.cluster.address(leader).to_owned();
    for _ in 0..6 {
        stage.change_all();
        let answer = stage.client.post(&address, "/snapshot", "", b"").unwrap();
        assert!(answer.status < 300, "{}", answer.body);
    }
    // A purge follows its checkpoint within a moment; what is not purged by then is kept.
    std::thread::sleep(Duration::from_millis(500));
}

#[test]
fn the_log_that_a_receiver_needs_next_is_kept_until_it_has_it() {
    let (mut stage, tap, leader, away, index) = hang(&[]);
    write_much(&mut stage, leader);
    let purged = stage.purged(leader);
    assert!(
        purged <= index,
        "purged up to {purged}, needed behind {index}"
    );
    tap.set(|_| Fate::Pass);
    stage.assert_caught_up();
    assert_eq!(stage.installed(away), 1, "the log was there");
    // And then it goes.
    stage.purge();
}

#[test]
fn a_log_that_grows_beyond_the_limit_is_purged_all_the_same() {
    let (mut stage, tap, leader, away, index) = hang(&["-log-catch-up", "1048576"]);
    write_much(&mut stage, leader);
    let purged = stage.purged(leader);
    assert!(
        purged > index,
        "purged up to {purged}, of the log behind {index}"
    );
    tap.set(|_| Fate::Pass);
    stage.assert_caught_up();
    assert_eq!(stage.installed(away), 2, "the database was sent again");
}
