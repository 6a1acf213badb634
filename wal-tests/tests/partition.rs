//! Real nodes that cannot all reach each other: the others go on, the one that is cut off refuses
//! what it cannot keep, no acknowledged row is lost, and in the end all have the same bytes.
//!
//! Each node is in a network namespace of its own where root allows that; see `wal_tests::network`.
//!
//! `WAL_STEPS=100 cargo test -p wal-tests --test partition -- --nocapture` has more misfortunes
//! follow each other than the default of 5.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wal_tests::client::{Client, Outcome};
use wal_tests::links::Rule;
use wal_tests::partition::Partitioned;
use wal_tests::seed::{Random, seed};
use wal_tests::workload::Fate;

/// Enough for every writer to have been through several groups.
const ROWS: usize = 40;
const WRITERS: usize = 4;

fn begin(name: &str, flags: &[&str]) -> (Partitioned, Random) {
    println!("{name}");
    let mut random = Random::new(seed("partition"));
    let mut nodes = Partitioned::start(3, flags, random.bits());
    nodes.write(WRITERS, &mut random);
    nodes.wait_acknowledged(ROWS);
    (nodes, random)
}

/// Ends a test; so many rows at least must have been acknowledged.
#[track_caller]
fn end(nodes: Partitioned, rows: usize) {
    let (_, history) = nodes.finish();
    assert!(history.count(Fate::Acknowledged) >= rows, "too few writes");
}

/// A node that leads nobody any more neither writes nor reads for clients who care.
#[track_caller]
fn assert_refuses(nodes: &mut Partitioned, node: usize) {
    let client = Client::new(Duration::from_secs(1));
    let address = nodes.cluster.address(node).to_owned();
    let insert = "INSERT INTO item(key, payload) VALUES('cut off', '')";
    let outcome = client.execute_sql(&address, insert);
    assert!(!matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    let count = "SELECT count(*) FROM item";
    for level in ["linearizable", "strong"] {
        let answer = client.query(&address, level, count);
        assert!(answer.is_err(), "{level}: {answer:?}");
    }
    // Raft's own time-out has to pass first.
    nodes.cluster.wait("weak reads to be refused", |_| {
        match client.query(&address, "weak", count) {
            Ok(rows) => Err(format!("{rows:?}")),
            Err(_) => Ok(()),
        }
    });
    // Its own data it still has.
    assert!(client.query(&address, "none", count).is_ok());
}

#[test]
fn the_others_go_on_without_a_leader_that_is_cut_off() {
    let (mut nodes, _) = begin("leader cut off", &[]);
    let old = nodes.cluster.wait_leader();
    nodes.network.set_around(old, Rule::Cut);
    nodes.cluster.wait_leader_other_than(old);
    nodes.wait_acknowledged(ROWS);
    assert_refuses(&mut nodes, old);
    nodes.wait_acknowledged(ROWS);
    end(nodes, 3 * ROWS);
}

/// What a client with little time is told: nothing but that there is no leader.
#[track_caller]
fn assert_leaderless(nodes: &Partitioned, node: usize) {
    let client = Client::new(Duration::from_millis(400));
    let address = nodes.cluster.address(node);
    let count = "SELECT count(*) FROM item";
    for level in ["weak", "linearizable"] {
        let error = client.query(address, level, count).unwrap_err();
        assert!(error.contains("leader not found"), "{level}: {error}");
    }
    let strong = client.query(address, "strong", count);
    assert!(strong.is_err(), "{strong:?}");
    let insert = "INSERT INTO item(key, payload) VALUES('cut off', '')";
    let outcome = client.execute_sql(address, insert);
    // Unknown, if the time was over in the moment in which it was tried once more.
    let is_refused = matches!(outcome, Outcome::NotCommitted(_) | Outcome::Unknown(_));
    assert!(is_refused, "{outcome:?}");
    // Its own data it still has.
    assert!(client.query(address, "none", count).is_ok());
}

/// Writes one row through one node.
fn write_one(nodes: &mut Partitioned, node: usize) {
    let insert = "INSERT INTO item(key, payload) VALUES('others', '')";
    nodes.cluster.wait("a write on the other side", |cluster| {
        match cluster.client().execute_sql(cluster.address(node), insert) {
            Outcome::Answered(answer) if answer.error().is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn a_leader_that_is_cut_off_has_stopped_serving_when_the_others_have_another() {
    println!("no leader on this side");
    let mut nodes = Partitioned::start(3, &[], seed("partition"));
    let old = nodes.cluster.wait_leader();
    nodes.network.set_around(old, Rule::Cut);
    let new = nodes.cluster.wait_leader_other_than(old);
    write_one(&mut nodes, new);
    // At once, without waiting for anything: nobody is elected before the old leader's time is up.
    assert_leaderless(&nodes, old);
    // An operator sees it too.
    nodes.cluster.wait("the node to say so", |cluster| {
        let ready = cluster
            .client()
            .get(cluster.address(old), "/readyz?timeout=500ms");
        let ready = ready.map_err(|error| error.to_string())?;
        let says = ready.status == 503 && ready.body.contains("leader does not exist");
        says.then_some(()).ok_or(ready.body)
    });
    nodes.cluster.wait_log(old, "a peer does not answer");
    nodes.network.set_all(Rule::Open);
    nodes.cluster.wait_all_ready();

    let leader = nodes.cluster.wait_leader();
    let follower = (leader + 1) % 3;
    nodes.network.set_around(follower, Rule::Cut);
    write_one(&mut nodes, leader);
    nodes
        .cluster
        .wait("the follower to miss its leader", |cluster| {
            let client = Client::new(Duration::from_millis(400));
            let insert = "INSERT INTO item(key, payload) VALUES('in doubt', '')";
            match client.execute_sql(cluster.address(follower), insert) {
                Outcome::NotCommitted(_) => Ok(()),
                // It was sent before the silence was noticed.
                Outcome::Unknown(why) => Err(why),
                Outcome::Answered(answer) => panic!("{answer:?}"),
            }
        });
    assert_leaderless(&nodes, follower);
    // It asks before it campaigns, so it does not depose anybody when it is back.
    let terms = [follower, leader].map(|node| {
        let address = nodes.cluster.address(node);
        let raft = nodes.cluster.client().json(address, "/status");
        let raft = raft.unwrap()["store"]["raft"].clone();
        raft["term"].as_str().unwrap().parse::<u64>().unwrap()
    });
    assert!(terms[0] <= terms[1], "{terms:?}");
    nodes.network.set_all(Rule::Open);
    nodes.cluster.wait_all_ready();
    let image = nodes.cluster.assert_identical();
    let database = nodes.cluster.open(&image);
    let count = "SELECT count(*) FROM item WHERE key = 'cut off'";
    let rows: i64 = database.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 0, "nothing that was refused is there");
    nodes.cluster.assert_healthy_logs();
}

#[test]
fn a_leader_whose_words_do_not_arrive_is_replaced_although_it_hears_the_others() {
    let (mut nodes, _) = begin("leader not heard", &[]);
    let old = nodes.cluster.wait_leader();
    for other in (0..3).filter(|&other| other != old) {
        nodes.network.set(old, other, Rule::Cut);
    }
    nodes.cluster.wait_leader_other_than(old);
    nodes.wait_acknowledged(ROWS);
    end(nodes, 2 * ROWS);
}

#[test]
fn a_leader_that_hears_nobody_is_replaced_although_the_others_hear_it() {
    let (mut nodes, _) = begin("leader deaf", &[]);
    let old = nodes.cluster.wait_leader();
    for other in (0..3).filter(|&other| other != old) {
        nodes.network.set(other, old, Rule::Cut);
    }
    nodes.cluster.wait_leader_other_than(old);
    nodes.wait_acknowledged(ROWS);
    end(nodes, 2 * ROWS);
}

#[test]
fn writes_go_on_when_two_nodes_reach_each_other_only_by_way_of_the_third() {
    let (mut nodes, _) = begin("bridge", &[]);
    let leader = nodes.cluster.wait_leader();
    let (cut, bridge) = ((leader + 1) % 3, (leader + 2) % 3);
    nodes.network.set_pair(leader, cut, Rule::Cut);
    nodes.wait_acknowledged(2 * ROWS);
    // The bridge reaches everybody, so whatever is written through it is served.
    let address = nodes.cluster.address(bridge).to_owned();
    for _ in 0..3 {
        let count = "SELECT count(*) FROM item";
        nodes.cluster.wait("a read through the bridge", |cluster| {
            cluster.client().query(&address, "linearizable", count)
        });
    }
    // And when the one that everybody reaches is asked to lead, all three work.
    nodes.cluster.wait("the bridge to lead", |cluster| {
        let name = format!("{{\"id\":\"node{}\"}}", bridge + 1);
        let _ = cluster.client().post(
            cluster.address(bridge),
            "/leader?wait",
            "application/json",
            name.as_bytes(),
        );
        match cluster.leader() {
            Some(leader) if leader == bridge => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    nodes.wait_acknowledged(ROWS);
    end(nodes, 4 * ROWS);
}

#[test]
fn a_leader_that_stood_still_finds_that_the_others_went_on() {
    let (mut nodes, _) = begin("leader paused", &[]);
    let old = nodes.cluster.wait_leader();
    nodes.cluster.pause(old);
    nodes.cluster.wait_leader_other_than(old);
    nodes.wait_acknowledged(ROWS);
    nodes.cluster.resume(old);
    nodes.cluster.wait_ready(old);
    nodes.wait_acknowledged(ROWS);
    end(nodes, 3 * ROWS);
}

#[test]
fn a_node_whose_disk_was_wiped_is_filled_again_while_another_one_is_cut_off_in_turn() {
    let (mut nodes, _) = begin("wiped", &["-log-segment", "1048576", "-log-tail", "0"]);
    let leader = nodes.cluster.wait_leader();
    let (wiped, other) = ((leader + 1) % 3, (leader + 2) % 3);
    nodes.cluster.kill(wiped);
    std::fs::remove_dir_all(nodes.cluster.data_dir(wiped)).unwrap();
    nodes.wait_acknowledged(ROWS);
    nodes.cluster.start_node(wiped);
    nodes.cluster.wait_ready(wiped);
    // It must be a full member again, for the cluster now depends on it.
    nodes.cluster.wait("the wiped node to vote", |cluster| {
        let status = cluster.client().json(cluster.address(wiped), "/status")?;
        let raft = &status["store"]["raft"];
        (raft["voter"] == true)
            .then_some(())
            .ok_or(raft.to_string())
    });
    nodes.network.set_around(other, Rule::Cut);
    nodes.wait_acknowledged(ROWS);
    end(nodes, 3 * ROWS);
}

/// One thing that goes wrong, for as long as it takes to write some rows where that is possible.
fn misfortune(nodes: &mut Partitioned, random: &mut Random) {
    let (one, other) = (random.below(3), 1 + random.below(2));
    let other = (one + other) % 3;
    let kind = random.below(7);
    println!("misfortune {kind} to node {one} and, if there are two, node {other}");
    match kind {
        0 => nodes.network.set_around(one, Rule::Cut),
        1 => nodes.network.set(one, other, Rule::Cut),
        2 => nodes.network.set_pair(one, other, Rule::Cut),
        3 => nodes.network.set_around(one, Rule::Hold),
        4 => nodes.network.set_around(one, Rule::Lossy(30)),
        5 => nodes.cluster.pause(one),
        _ => {
            nodes.cluster.kill(one);
            nodes.wait_acknowledged(ROWS);
            nodes.cluster.start_node(one);
            // Often the next misfortune meets a node that is still catching up.
        }
    }
    nodes.wait_acknowledged(ROWS);
    if kind == 5 {
        nodes.cluster.resume(one);
    }
    nodes.network.set_all(Rule::Open);
}

#[test]
fn nothing_acknowledged_is_lost_in_a_row_of_misfortunes() {
    let steps: usize = std::env::var("WAL_STEPS").map_or(5, |steps| steps.parse().unwrap());
    let flags = ["-raft-snap-wal-size", "131072", "-log-segment", "1048576"];
    let (mut nodes, mut random) = begin("misfortunes", &flags);
    for _ in 0..steps {
        misfortune(&mut nodes, &mut random);
    }
    nodes.wait_acknowledged(ROWS);
    end(nodes, steps * ROWS);
}
