//! Clusters form although nodes die while they do, and take back a node that has lost its disk.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

/// Starts all nodes, kills one after the other at a random moment and starts it again.
fn kill_while_forming(cluster: &mut ProcessCluster, random: &mut Random) {
    for node in 0..cluster.size() {
        cluster.start_node(node);
    }
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(random.below(700) as u64));
        let victim = random.below(cluster.size());
        cluster.kill(victim);
        cluster.start_node(victim);
    }
    cluster.wait_all_ready();
}

/// Checks that all nodes are voters of one cluster, and that it works.
fn assert_one_cluster(cluster: &mut ProcessCluster) {
    // A node is ready a moment before it is a voter.
    cluster.wait("all nodes to be voters", |cluster| {
        for address in cluster.addresses() {
            let nodes = cluster.client().json(&address, "/nodes")?;
            let count = nodes.as_object().map_or(0, serde_json::Map::len);
            if count != cluster.size() {
                return Err(format!("{address} has {nodes}"));
            }
        }
        Ok(())
    });
    let client = cluster.client();
    let ids = cluster.addresses();
    let ids: Vec<Value> = ids
        .iter()
        .map(|address| client.json(address, "/status?key=wallaby.cluster_id"))
        .map(Result::unwrap)
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    for node in 0..cluster.size() {
        let write = json!(["CREATE TABLE IF NOT EXISTS t(v)", "INSERT INTO t VALUES(1)"]);
        let _ = client
            .execute(cluster.address(node), &write)
            .expect_success();
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_that_are_killed_while_they_start_a_cluster_start_exactly_one() {
    let mut random = Random::new(seed("formation"));
    for _ in 0..3 {
        let mut cluster = ProcessCluster::prepare(3, &Formation::Expect, &[]);
        kill_while_forming(&mut cluster, &mut random);
        assert_one_cluster(&mut cluster);
    }
}

#[test]
fn nodes_that_are_killed_while_they_join_are_taken_in() {
    let mut random = Random::new(seed("formation"));
    for _ in 0..3 {
        let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
        kill_while_forming(&mut cluster, &mut random);
        assert_one_cluster(&mut cluster);
    }
}

#[test]
fn a_node_that_lost_its_directory_takes_its_own_place_again() {
    for formation in [Formation::Expect, Formation::Join] {
        let mut cluster = ProcessCluster::start(3, &formation, &[]);
        assert_one_cluster(&mut cluster);
        let id = |cluster: &ProcessCluster, node: usize| {
            let address = cluster.address(node);
            let id = cluster.client().json(address, "/status?key=store.raft_id");
            id.unwrap()
        };
        let before = id(&cluster, 2);
        cluster.kill(2);
        std::fs::remove_dir_all(cluster.data_dir(2)).unwrap();
        cluster.start_node(2);
        cluster.wait_ready(2);
        assert_ne!(id(&cluster, 2), before, "a Raft id is never used again");
        assert_one_cluster(&mut cluster);
        // With the old id still a voter, these two would not be a majority of it and them.
        cluster.kill(2);
        cluster.wait_leader();
        let _ = cluster
            .client()
            .execute_sql(cluster.address(0), "INSERT INTO t VALUES(2)")
            .expect_success();
    }
}

#[test]
fn a_node_joins_by_the_http_address_of_another_even_if_it_is_stopped_at_first() {
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &[]);
    let target = format!("http://{}", cluster.address(0));
    // It looks for the other node in vain and is stopped. Its directory has an identity now, which
    // must not be taken for a cluster of its own.
    cluster.start_node(1);
    cluster.wait_log(1, "looking for a cluster");
    cluster.kill(1);
    let arguments = cluster.arguments(1);
    let place = arguments.iter().position(|flag| flag == "-join").unwrap();
    arguments[place + 1] = target;
    cluster.start_node(1);
    cluster.wait_log(1, "a node to join does not answer");
    cluster.start_node(0);
    cluster.wait_all_ready();
    assert_one_cluster(&mut cluster);
    // Now that it belongs to a cluster, nobody has to be there when it starts.
    cluster.kill(0);
    cluster.kill(1);
    cluster.start_node(1);
    cluster.wait("HTTP of the node", |cluster| {
        let answer = cluster.client().get(cluster.address(1), "/readyz?noleader");
        answer.map(drop).map_err(|error| error.to_string())
    });
    cluster.start_node(0);
    cluster.wait_all_ready();
    assert_one_cluster(&mut cluster);
}
