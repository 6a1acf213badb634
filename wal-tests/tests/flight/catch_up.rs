//! Followers that are too far behind for the log, and receive the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wal_tests::linked::{LinkedCluster, PATIENCE, request};
use wal_tests::links::Rule;
use wallaby::node::{NodeOptions, Shape, WriteRequest};

use crate::fixture::{count, others, three, unhurried};

/// Checkpoints, and purges the log behind them, as early as it goes.
fn forgetful(options: &mut NodeOptions) {
    options.log_tail_bytes = 64 << 10;
    options.checkpoint_wal_bytes = 256 << 10;
    options.log_segment_bytes = 1 << 20;
}

/// Stops a follower and writes until the leader has purged what it needs next. A follower that is
/// only cut off would not do: what is on its way to it may arrive later.
fn outrun(cluster: &mut LinkedCluster, leader: usize, follower: usize) -> u64 {
    let end = cluster.status(follower).last_log_index;
    cluster.stop(follower);
    cluster.wait("the log to be purged", |cluster| {
        let _ = cluster.commit(leader, &["INSERT INTO t(v) VALUES(hex(randomblob(8000)))"]);
        match cluster.status(leader).purged_index {
            purged if purged > end + 10 => Ok(()),
            purged => Err(format!("purged up to {purged}, the follower is at {end}")),
        }
    });
    end
}

#[test]
fn a_follower_behind_the_log_receives_the_database_while_writes_go_on() {
    let mut cluster = three(|options| {
        unhurried(options);
        forgetful(options);
    });
    let leader = cluster.wait_leader();
    let [slow, _] = others(leader);
    let end = outrun(&mut cluster, leader, slow);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (node, stop) = (cluster.node(leader), Arc::clone(&stop));
            cluster.spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let sql = format!("INSERT INTO t(v) VALUES('writer {writer}')");
                    let request = request(&[&sql], Shape::Execute);
                    let timeout = PATIENCE;
                    let served = node.execute(WriteRequest::new(request, timeout)).await;
                    served.unwrap();
                    written += 1;
                }
                written
            })
        })
        .collect();
    cluster.start_node(slow);
    let goal = cluster.status(leader).last_log_index + 50;
    cluster.wait("the follower to be back", |cluster| {
        let status = cluster.status(slow);
        match status.applied_index {
            index if index > goal => Ok(()),
            index => Err(format!("at {index} of {goal}: {status:?}")),
        }
    });
    wait_fed(&cluster, slow, end);
    stop.store(true, Ordering::Relaxed);
    let written: Vec<i64> = writers
        .into_iter()
        .map(|writer| cluster.join(writer))
        .collect();
    let database = cluster.assert_identical();
    for (writer, written) in written.iter().enumerate() {
        assert_eq!(count(&database, &format!("writer {writer}")), *written);
    }
}

#[test]
fn a_group_in_flight_that_needs_the_follower_who_needs_the_database_is_committed() {
    let mut cluster = three(|options| {
        unhurried(options);
        forgetful(options);
    });
    let leader = cluster.wait_leader();
    let [slow, third] = others(leader);
    let end = outrun(&mut cluster, leader, slow);
    cluster.wait_converged();
    let sql = ["INSERT INTO t(v) VALUES('waits for the database')"];
    let flight = cluster.take_off(leader, &sql, |links| links.set_all(Rule::Cut));
    cluster.stop(third);
    // An attempt to send the database that began before the flight has failed by then.
    std::thread::sleep(Duration::from_secs(3));
    assert!(!flight.is_finished());
    // The only way to a quorum is the follower; it has to get the database as it is before the
    // flight, from the thread that waits for the flight.
    cluster.links().set_pair(leader, slow, Rule::Open);
    cluster.start_node(slow);
    let _ = cluster.outcome(flight).unwrap();
    wait_fed(&cluster, slow, end);
    let _ = cluster.commit(slow, &["INSERT INTO t(v) VALUES('after')"]);
    cluster.heal();
    cluster.start_node(third);
    let database = cluster.assert_identical();
    assert_eq!(count(&database, "waits for the database"), 1);
    assert_eq!(count(&database, "after"), 1);
}

/// Waits until the log of the follower begins behind a database that it received.
fn wait_fed(cluster: &LinkedCluster, follower: usize, end: u64) {
    cluster.wait("the end of the transfer", |cluster| {
        match cluster.status(follower).purged_index {
            purged if purged > end => Ok(()),
            purged => Err(format!("it was at {end}, its log begins at {purged}")),
        }
    });
}

#[test]
fn an_interrupted_transfer_of_the_database_goes_on() {
    let mut cluster = three(|options| {
        unhurried(options);
        forgetful(options);
    });
    let leader = cluster.wait_leader();
    let [slow, _] = others(leader);
    let end = outrun(&mut cluster, leader, slow);
    cluster.cut_off(slow);
    // About 20 MB: long enough to be interrupted somewhere.
    let sql = "INSERT INTO t(v) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) \
               SELECT hex(randomblob(5000)) FROM n";
    let _ = cluster.commit(leader, &[sql]);
    let leader = cluster.wait_leader();
    cluster.start_node(slow);
    for _ in 0..2 {
        cluster.links().set_around(slow, Rule::Open);
        cluster.wait("a transfer to begin", |cluster| {
            let arriving = cluster.status(slow).transfers;
            let begun = arriving.iter().any(|transfer| transfer.bytes > 0);
            begun.then_some(()).ok_or_else(|| format!("{arriving:?}"))
        });
        cluster.cut_off(slow);
        let _ = cluster.commit(leader, &["INSERT INTO t(v) VALUES('between')"]);
        cluster.wait("the transfer to be given up", |cluster| {
            let gone = cluster.status(slow).transfers.is_empty();
            gone.then_some(()).ok_or_else(|| "still there".to_owned())
        });
    }
    cluster.links().set_around(slow, Rule::Lossy(5));
    cluster.wait("the follower to have the database", |cluster| {
        let (have, want) = (cluster.status(slow), cluster.status(leader));
        if have.data_index == want.data_index {
            return Ok(());
        }
        Err(format!("{} of {}", have.data_index, want.data_index))
    });
    cluster.heal();
    wait_fed(&cluster, slow, end);
    assert_eq!(count(&cluster.assert_identical(), "between"), 2);
}
