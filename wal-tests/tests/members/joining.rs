//! Ways into a cluster, and how long a node tries.

use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::{add, members, raft_addr, remove, set, status, take, wait_roles, write};

const IMPATIENT: [&str; 4] = ["-join-attempts", "9", "-join-interval", "200ms"];

#[test]
fn a_node_with_the_name_of_one_that_is_alive_gives_up_after_its_attempts() {
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
    cluster.start_node(0);
    cluster.wait_ready(0);
    cluster.start_node(1);
    cluster.wait_ready(1);
    wait_roles(
        &mut cluster,
        &[0],
        &[("node1", "voter"), ("node2", "voter")],
    );
    let before = status(&cluster, 1, "store.raft_id");
    set(&mut cluster, 2, "-node-id", "node2");
    // A follower is asked, which knows where the leader is.
    let follower = raft_addr(&mut cluster, 1);
    set(&mut cluster, 2, "-join", &follower);
    add(&mut cluster, 2, &IMPATIENT);
    cluster.start_node(2);
    assert_eq!(cluster.wait_end(2).code(), Some(1));
    let log = cluster.log_text(2);
    for expected in [
        "it could not join the cluster in 9 attempts",
        "\"node2\" is alive at",
    ] {
        let found = log.contains(expected) || log.contains(&expected.replace('"', "\\\""));
        assert!(found, "{expected}: {log}");
    }
    // Nobody took its place, nor its id.
    wait_roles(
        &mut cluster,
        &[0, 1],
        &[("node1", "voter"), ("node2", "voter")],
    );
    assert_eq!(status(&cluster, 1, "store.raft_id"), before);
}

#[test]
fn a_member_waits_for_its_cluster_however_long() {
    let mut cluster = ProcessCluster::start(2, &Formation::Join, &[]);
    wait_roles(
        &mut cluster,
        &[0, 1],
        &[("node1", "voter"), ("node2", "voter")],
    );
    add(&mut cluster, 1, &IMPATIENT);
    cluster.stop(1);
    cluster.kill(0);
    cluster.start_node(1);
    // Much longer than its attempts would take.
    std::thread::sleep(Duration::from_secs(3));
    assert!(!cluster.has_ended(1), "{}", cluster.log_text(1));
    cluster.start_node(0);
    cluster.wait_all_ready();
}

#[test]
fn a_raft_id_is_never_used_again() {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    let all = [("node1", "voter"), ("node2", "voter"), ("node3", "voter")];
    let mut ids = vec![status(&cluster, 2, "store.raft_id")];
    for round in 0..3 {
        if round == 1 {
            assert_eq!(remove(&cluster, 0, "{\"id\":\"node3\"}").0, 200);
        }
        cluster.kill(2);
        std::fs::remove_dir_all(cluster.data_dir(2)).unwrap();
        cluster.start_node(2);
        cluster.wait_ready(2);
        wait_roles(&mut cluster, &[0, 1, 2], &all);
        let id = status(&cluster, 2, "store.raft_id");
        assert!(!ids.contains(&id), "{id} in {ids:?}");
        ids.push(id);
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_node_that_expects_only_itself_starts_at_once() {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &[]);
    let own = raft_addr(&mut cluster, 0);
    add(&mut cluster, 0, &["-bootstrap-expect", "1", "-join", &own]);
    for _ in 0..2 {
        cluster.start_node(0);
        cluster.wait_ready(0);
        write(
            &cluster,
            cluster.address(0),
            "CREATE TABLE IF NOT EXISTS t(v)",
        );
        cluster.stop(0);
    }
    assert!(!cluster.log_text(0).contains("looking for a cluster"));
}

#[test]
fn nodes_beyond_those_expected_join_with_the_same_flags() {
    let mut cluster = ProcessCluster::prepare(4, &Formation::Join, &[]);
    let addrs: Vec<String> = (0..3).map(|node| raft_addr(&mut cluster, node)).collect();
    for node in 0..4 {
        take(&mut cluster, node, "-join");
        add(
            &mut cluster,
            node,
            &["-bootstrap-expect", "3", "-join", &addrs.join(",")],
        );
    }
    (0..3).for_each(|node| cluster.start_node(node));
    cluster.wait_all_ready();
    cluster.start_node(3);
    cluster.wait_ready(3);
    let all = [1, 2, 3, 4].map(|node| format!("node{node}"));
    let all: Vec<(&str, &str)> = all.iter().map(|name| (name.as_str(), "voter")).collect();
    wait_roles(&mut cluster, &[0, 1, 2, 3], &all);
    // And once more, all at once.
    let cluster_id = status(&cluster, 0, "wallaby.cluster_id");
    for node in 0..4 {
        cluster.stop(node);
    }
    (0..4).for_each(|node| cluster.start_node(node));
    cluster.wait_all_ready();
    wait_roles(&mut cluster, &[0, 1, 2, 3], &all);
    assert_eq!(status(&cluster, 3, "wallaby.cluster_id"), cluster_id);
    cluster.assert_healthy_logs();
}

/// What a member is called in `/nodes`, and what it may do by `/status`, as this node sees it.
fn seen(cluster: &ProcessCluster, at: usize, name: &str) -> Option<(Value, Value, Value)> {
    let found = members(cluster.address(at)).ok()?;
    let found = found.into_iter().find(|member| member["id"] == name)?;
    let nodes = status(cluster, at, "store.nodes");
    let node = nodes.as_array()?.iter().find(|node| node["id"] == name)?;
    Some((
        found["wallaby"]["role"].clone(),
        found["voter"].clone(),
        node["suffrage"].clone(),
    ))
}

#[test]
fn a_node_that_has_not_caught_up_is_shown_as_joining_and_has_no_vote() {
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
    (0..2).for_each(|node| {
        cluster.start_node(node);
        cluster.wait_ready(node);
    });
    // Far more than a node receives between two looks, and all of it, because there is no log.
    write(&cluster, cluster.address(0), "CREATE TABLE t(v)");
    for _ in 0..8 {
        let rows = "INSERT INTO t VALUES(randomblob(4000000))";
        write(&cluster, cluster.address(0), rows);
    }
    for node in 0..2 {
        let path = "/snapshot?trailing_logs=0";
        let taken = wal_tests::raw::send(cluster.address(node), &format!("POST {path}"), "", "");
        assert_eq!(taken.status, 200, "{}", taken.body);
    }
    cluster.start_node(2);
    let joining = Some((json!("joining"), json!(false), json!("Nonvoter")));
    let transfer = cluster.wait("the third node to be sent the database", |cluster| {
        let client = Client::new(Duration::from_secs(1));
        let shown = client.json(
            cluster.address(0),
            "/status?key=wallaby.snapshots.transfers",
        )?;
        let first = shown.as_array().and_then(|shown| shown.first().cloned());
        first.ok_or_else(|| shown.to_string())
    });
    // From here on it does not get any further.
    cluster.pause(2);
    assert_eq!(transfer["direction"], "send", "{transfer}");
    assert_eq!(transfer["peer"], "node3", "{transfer}");
    assert!(transfer["percent"].as_u64() <= Some(100), "{transfer}");
    assert!(transfer["bytes_per_second"].is_u64(), "{transfer}");
    for at in 0..2 {
        cluster.wait("everybody to see it", |cluster| {
            let found = seen(cluster, at, "node3");
            (found == joining).then_some(()).ok_or(format!("{found:?}"))
        });
    }
    // It counts for no majority: of the two voters that are left, both are needed, and enough.
    write(&cluster, cluster.address(1), "INSERT INTO t VALUES(1)");
    assert_eq!(seen(&cluster, 0, "node3"), joining);
    cluster.resume(2);
    cluster.wait_ready(2);
    let all = [("node1", "voter"), ("node2", "voter"), ("node3", "voter")];
    wait_roles(&mut cluster, &[0, 1, 2], &all);
    cluster.assert_healthy_logs();
}
