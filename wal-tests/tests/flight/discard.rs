//! The events that end a flight without its entry, and what the client is told.

use std::time::Duration;

use wal_tests::linked::{LinkedCluster, PATIENCE};
use wal_tests::links::Rule;
use wallaby::node::{Refusal, Served};

use crate::fixture::{assert_unknown, count, others, three, unhurried};

/// Cuts the leader off with a group in the air and a second one behind it, has another leader
/// work meanwhile, and heals.
fn depose(cluster: &LinkedCluster, work: &[&str]) -> usize {
    let old = cluster.wait_leader();
    let sql = ["INSERT INTO t(v) VALUES('in flight')"];
    let flight = cluster.take_off(old, &sql, |links| links.set_around(old, Rule::Cut));
    let behind = cluster.begin(old, &["INSERT INTO t(v) VALUES('behind')"], PATIENCE);
    let new = cluster.wait_leader_other_than(old);
    for sql in work {
        let _ = cluster.commit(new, &[sql]);
    }
    assert!(!flight.is_finished(), "nobody can know its fate yet");
    assert!(!behind.is_finished());
    cluster.heal();
    assert_unknown(cluster.outcome(flight));
    let behind = cluster.outcome(behind).unwrap();
    assert_eq!(behind.reply.error, None);
    let database = cluster.assert_identical();
    assert_eq!(count(&database, "in flight"), 0, "it reached no other node");
    assert_eq!(
        count(&database, "behind"),
        1,
        "it was never proposed before"
    );
    old
}

#[test]
fn a_flight_is_discarded_by_another_leaders_data() {
    let cluster = three(unhurried);
    let old = depose(&cluster, &["INSERT INTO t(v) VALUES('new')"]);
    // The deposed node's SQLite is in order: it can lead, and read, again.
    let others = others(old);
    cluster.links().set_pair(others[0], others[1], Rule::Cut);
    cluster.wait("the deposed node to lead again", |cluster| {
        if cluster.leader() == Some(old) {
            return Ok(());
        }
        // Whoever leads loses one of its two links; only the deposed node has both.
        let leader = cluster.leader().ok_or("none")?;
        cluster.links().set_pair(leader, old, Rule::Cut);
        std::thread::sleep(Duration::from_secs(3));
        cluster.links().set_pair(leader, old, Rule::Open);
        Err(format!("node {} leads", leader + 1))
    });
    cluster.heal();
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &["INSERT INTO t(v) VALUES('last')"]);
    assert_eq!(count(&cluster.assert_identical(), "last"), 1);
}

#[test]
fn a_flight_is_discarded_by_a_higher_term_alone() {
    // No data follows, only the new leader's blank entry.
    let cluster = three(unhurried);
    let _ = depose(&cluster, &[]);
}

#[test]
fn a_large_transaction_in_the_air_is_discarded_with_all_its_parts() {
    let cluster = three(|options| {
        unhurried(options);
        options.entry_bytes_max = 128 << 10;
    });
    let old = cluster.wait_leader();
    let sql = "INSERT INTO t(v) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
               SELECT 'large ' || hex(randomblob(300)) FROM n";
    let flight = cluster.take_off(old, &[sql], |links| links.set_around(old, Rule::Cut));
    let new = cluster.wait_leader_other_than(old);
    // The parts of this one must not be taken for parts of the other.
    let _ = cluster.commit(new, &[&sql.replace("large", "LARGE")]);
    cluster.heal();
    assert_unknown(cluster.outcome(flight));
    let database = cluster.assert_identical();
    let rows = |like: &str| -> i64 {
        let sql = "SELECT count(*) FROM t WHERE v GLOB ?";
        database.query_row(sql, [like], |row| row.get(0)).unwrap()
    };
    assert_eq!((rows("large*"), rows("LARGE*")), (0, 3000));
}

#[test]
fn a_flight_is_discarded_by_the_database_of_a_leader_whose_log_is_purged() {
    let cluster = three(|options| {
        unhurried(options);
        options.log_tail_bytes = 64 << 10;
        options.checkpoint_wal_bytes = 256 << 10;
        options.log_segment_bytes = 1 << 20;
    });
    let old = cluster.wait_leader();
    let sql = ["INSERT INTO t(v) VALUES('in flight')"];
    let flight = cluster.take_off(old, &sql, |links| links.set_around(old, Rule::Cut));
    let end = cluster.status(old).last_log_index;
    let new = cluster.wait_leader_other_than(old);
    cluster.wait("the log to be purged past the flight", |cluster| {
        let sql = "INSERT INTO t(v) VALUES(hex(randomblob(8000)))";
        let _ = cluster.commit(new, &[sql]);
        match cluster.status(new).purged_index {
            purged if purged > end + 10 => Ok(()),
            purged => Err(format!("purged up to {purged}")),
        }
    });
    assert!(!flight.is_finished());
    cluster.heal();
    assert_unknown(cluster.outcome(flight));
    let database = cluster.assert_identical();
    assert_eq!(count(&database, "in flight"), 0);
    // It received a database, not entries: its log begins where that ends.
    cluster.wait("the end of the transfer", |cluster| {
        match cluster.status(old).purged_index {
            purged if purged > end => Ok(()),
            purged => Err(format!("its log begins at {purged}")),
        }
    });
    let _ = cluster.commit(old, &["INSERT INTO t(v) VALUES('after')"]);
    assert_eq!(count(&cluster.assert_identical(), "after"), 1);
}

/// Has a leader whose lease has ended try a write that it may not append, and heals.
fn refuse_and_route(cluster: &LinkedCluster, v: &str) -> Result<Served, Refusal> {
    let old = cluster.wait_leader();
    cluster.cut_off(old);
    let new = cluster.wait_leader_other_than(old);
    let end = cluster.status(old).last_log_index;
    let executed = cluster.stage(old, "Executed");
    let sql = format!("INSERT INTO t(v) VALUES('{v}')");
    let lost = cluster.begin(old, &[&sql], PATIENCE);
    cluster.wait("the old leader to have tried", |cluster| {
        match cluster.stage(old, "Executed") {
            now if now > executed => Ok(()),
            now => Err(format!("{executed}, {now}")),
        }
    });
    let appended = cluster.status(old).last_log_index;
    assert_eq!(appended, end, "nothing is appended");
    let _ = cluster.commit(new, &["INSERT INTO t(v) VALUES('new')"]);
    assert!(!lost.is_finished());
    cluster.heal();
    let outcome = cluster.outcome(lost);
    if let Ok(served) = &outcome {
        assert!(served.raft_index.is_some_and(|index| index > end));
    }
    outcome
}

#[test]
fn what_a_leader_without_a_lease_never_appends_is_committed_once_by_the_next() {
    let cluster = three(unhurried);
    // The next leader's entry may end a flight before Raft has refused to append it: then nobody
    // can tell any more that it was not appended. But it must not come to that every time.
    let routed = (0..10).any(|round| {
        let v = format!("routed {round}");
        let outcome = refuse_and_route(&cluster, &v);
        let is_committed = outcome.is_ok();
        let rows = count(&cluster.assert_identical(), &v);
        assert_eq!(rows, i64::from(is_committed));
        if !is_committed {
            assert_unknown(outcome);
        }
        is_committed
    });
    assert!(routed, "it was never sent to the next leader");
}

#[test]
fn a_group_that_is_still_executing_when_its_leader_is_deposed_is_committed_once_by_the_next() {
    let cluster = three(unhurried);
    // Counting has to take longer than an election, and less than a client's patience, on any machine.
    for round in 0..4 {
        if outlast_the_leader(&cluster, round) {
            return;
        }
    }
    panic!("no statement took longer than an election");
}

/// Deposes a leader while it runs a statement. `false`: it was too fast, and its group was in the air
/// by then.
fn outlast_the_leader(cluster: &LinkedCluster, round: u32) -> bool {
    let (slow, new_row) = (format!("slow {round}"), format!("new {round}"));
    let old = cluster.wait_leader();
    let rows = 12_000_000_u64 << round;
    let sql = format!(
        "INSERT INTO t(v) SELECT '{slow}' FROM (WITH n(i) AS (SELECT 1 UNION ALL \
         SELECT i + 1 FROM n WHERE i < {rows}) SELECT max(i) FROM n)"
    );
    let end = cluster.status(old).last_log_index;
    let pending = cluster.begin(old, &[&sql], PATIENCE);
    cluster.cut_off(old);
    let new = cluster.wait_leader_other_than(old);
    let _ = cluster.commit(new, &[&format!("INSERT INTO t(v) VALUES('{new_row}')")]);
    let executing = cluster.status(old).last_log_index == end;
    cluster.heal();
    let served = cluster.outcome(pending);
    if !executing {
        return false;
    }
    assert!(served.is_ok(), "{served:?}");
    let database = cluster.assert_identical();
    assert_eq!(
        (count(&database, &slow), count(&database, &new_row)),
        (1, 1)
    );
    assert_ne!(new, old);
    true
}

#[test]
fn a_flight_whose_entry_another_leader_commits_is_there_once_whatever_its_client_is_told() {
    let cluster = three(unhurried);
    let old = cluster.wait_leader();
    // The entry arrives, its acknowledgements do not: the next leader has it and commits it.
    let sql = ["INSERT INTO t(v) VALUES('adopted')"];
    let flight = cluster.take_off(old, &sql, |links| {
        for other in others(old) {
            links.set(other, old, Rule::Cut);
        }
    });
    let new = cluster.wait_leader_other_than(old);
    let _ = cluster.commit(new, &["INSERT INTO t(v) VALUES('new')"]);
    assert!(!flight.is_finished());
    cluster.heal();
    let outcome = cluster.outcome(flight);
    let database = cluster.assert_identical();
    assert_eq!(count(&database, "new"), 1);
    match outcome {
        Ok(_) => assert_eq!(count(&database, "adopted"), 1),
        Err(_) => assert!(count(&database, "adopted") <= 1),
    }
    // Nothing else came between, so it was released by its own entry.
    assert_eq!(count(&database, "adopted"), 1);
    println!("the client was told {outcome:?}");
}
