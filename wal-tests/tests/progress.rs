//! What `/nodes` and `/status` say of how far each node is: applied index, lag in entries and bytes,
//! database hash, last contact; also of a node that does not answer any more.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};

const CREATE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
const INSERT: &str = "INSERT INTO t(v) VALUES(randomblob(50000))";
const BYTES: u64 = 50_000;

/// What one node says of all of them, in order.
fn seen_by(client: &Client, address: &str) -> Result<Vec<Value>, String> {
    let nodes = client.json(address, "/nodes?ver=2&nonvoters&timeout=1s")?;
    let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
    Ok(nodes)
}

fn number(node: &Value, key: &str) -> u64 {
    let value = &node["wallaby"][key];
    value.as_u64().unwrap_or_else(|| panic!("{key} of {node}"))
}

fn write(cluster: &ProcessCluster, node: usize, sql: &str) {
    let client = cluster.client();
    let _ = client
        .execute_sql(cluster.address(node), sql)
        .expect_success();
}

/// Waits until a node sees all three without lag, with equal hashes at an equal index.
fn wait_equal(cluster: &mut ProcessCluster, at: usize) -> Vec<Value> {
    cluster.wait("three nodes without lag", |cluster| {
        let nodes = seen_by(cluster.client(), cluster.address(at))?;
        let parts = ["lag_entries", "lag_bytes", "data_index", "database_hash"];
        let of = |node: &Value| parts.map(|part| node["wallaby"][part].to_string());
        let equal = nodes.len() == 3 && nodes.iter().all(|node| of(node) == of(&nodes[0]));
        let lag = nodes
            .first()
            .map(|node| node["wallaby"]["lag_bytes"].clone());
        if equal && lag == Some(Value::from(0)) {
            return Ok(nodes);
        }
        Err(format!("{nodes:?}"))
    })
}

#[test]
fn every_node_knows_how_far_the_others_are_and_were() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let leader = cluster.wait_leader();
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    write(&cluster, leader, CREATE);
    write(&cluster, leader, INSERT);
    for at in 0..3 {
        let nodes = wait_equal(&mut cluster, at);
        for (node, seen) in nodes.iter().enumerate() {
            assert!(number(seen, "applied_index") >= number(seen, "data_index"));
            assert_eq!(seen["wallaby"]["database_hash"].as_str().unwrap().len(), 32);
            let contact = &seen["wallaby"]["last_contact"];
            assert_eq!(contact.is_string(), node != at, "{seen}");
            assert!(seen["wallaby"].get("silent_since").is_none(), "{seen}");
        }
    }
    let image = cluster.client().image(cluster.address(lost)).unwrap();
    let before = wait_equal(&mut cluster, other).swap_remove(lost);
    assert_eq!(before["wallaby"]["database_hash"], image.hash);

    cluster.pause(lost);
    for _ in 0..4 {
        write(&cluster, leader, INSERT);
    }
    // Asked at the leader and at a follower.
    for at in [leader, other] {
        let seen = cluster.wait("the lag to be seen", |cluster| {
            let node = seen_by(cluster.client(), cluster.address(at))?.swap_remove(lost);
            let known = &node["wallaby"];
            let lags = known["lag_entries"].as_u64() >= Some(4);
            let said = known["silent_since"].is_string() && node["reachable"] == false;
            (lags && said)
                .then_some(node.clone())
                .ok_or(node.to_string())
        });
        let same = ["applied_index", "data_index", "database_hash"];
        for key in same {
            assert_eq!(seen["wallaby"][key], before["wallaby"][key], "{key}");
        }
        let bytes = number(&seen, "lag_bytes");
        assert!((4 * BYTES..8 * BYTES).contains(&bytes), "{seen}");
        // The same without asking anybody.
        let status = cluster.client().json(cluster.address(at), "/status");
        let known = &status.unwrap()["wallaby"]["nodes"][lost];
        assert_eq!(known["id"], format!("node{}", lost + 1));
        assert_eq!(known["lag_bytes"], seen["wallaby"]["lag_bytes"]);
        assert_eq!(known["silent_since"], seen["wallaby"]["silent_since"]);
    }

    cluster.resume(lost);
    cluster.wait_all_ready();
    for at in 0..3 {
        let nodes = wait_equal(&mut cluster, at);
        assert!(nodes.iter().all(|node| node["reachable"] == true));
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
