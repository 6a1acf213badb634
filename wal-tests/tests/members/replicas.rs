//! Read replicas: members that never vote.

use std::time::Duration;

use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::raw::{RawAnswer, send};

use crate::{add, remove, status, wait_roles, write};

const ALL: [(&str, &str); 3] = [("node1", "voter"), ("node2", "voter"), ("node3", "replica")];

fn query(cluster: &ProcessCluster, node: usize, level: &str) -> RawAnswer {
    let line = format!("GET /db/query?level={level}&q=SELECT%20count(*)%20FROM%20t");
    send(cluster.address(node), &line, "", "")
}

#[test]
fn a_replica_holds_a_copy_and_never_votes() {
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
    add(&mut cluster, 2, &["-raft-non-voter"]);
    cluster.start_all(&Formation::Join);
    wait_roles(&mut cluster, &[0, 1, 2], &ALL);
    let voters = cluster.client().json(cluster.address(2), "/nodes").unwrap();
    assert_eq!(voters.as_object().unwrap().len(), 2, "{voters}");
    assert_eq!(status(&cluster, 2, "wallaby.role"), "replica");
    assert_eq!(status(&cluster, 2, "store.raft.voter"), false);
    let nodes = status(&cluster, 0, "store.nodes");
    let of_replica = |node: &&serde_json::Value| node["id"] == "node3";
    let of_replica = nodes.as_array().unwrap().iter().find(of_replica).unwrap();
    assert_eq!(of_replica["suffrage"], "Nonvoter");

    answers_what_it_may(&mut cluster);
    stands_aside(&mut cluster);
}

/// Whatever a replica is asked, and who answers it.
fn answers_what_it_may(cluster: &mut ProcessCluster) {
    // It passes on what it may not do itself, and answers the rest from its own copy.
    write(cluster, cluster.address(2), "CREATE TABLE t(v)");
    write(
        cluster,
        cluster.address(2),
        "INSERT INTO t VALUES(random())",
    );
    let _ = cluster.assert_identical();
    let follower = (cluster.wait_leader() + 1) % 2;
    for (node, level, is_local) in [
        (2, "none", true),
        (2, "auto", true),
        (2, "linearizable", true),
        (follower, "linearizable", true),
        (2, "weak", false),
        (2, "strong", false),
        (follower, "auto", false),
    ] {
        let answer = query(cluster, node, level);
        assert_eq!(answer.status, 200, "{level}: {}", answer.body);
        let served_by = answer.header("x-rqlite-served-by");
        assert_eq!(
            served_by == Some(cluster.address(node)),
            is_local,
            "{level}"
        );
    }
}

/// A replica in the elections of others.
fn stands_aside(cluster: &mut ProcessCluster) {
    // It cannot lead, and is not taken for a voter by whoever leads next.
    let leader = cluster.wait_leader();
    let hand_over = |to: &str| {
        let body = format!("{{\"id\":\"{to}\"}}");
        send(
            cluster.address(0),
            "POST /leader?wait",
            "application/json",
            &body,
        )
    };
    let refused = hand_over("node3");
    assert_eq!(refused.status, 500, "{}", refused.body);
    assert_eq!(hand_over(&crate::name(1 - leader)).status, 200);
    cluster.wait_leader_other_than(leader);
    wait_roles(cluster, &[0, 1, 2], &ALL);

    // It makes no majority.
    cluster.kill(1 - leader);
    cluster.wait("nobody to lead", |cluster| {
        let client = Client::new(Duration::from_secs(5));
        let ready = client
            .get(cluster.address(2), "/readyz")
            .map_err(|error| error.to_string())?;
        if ready.status == 503 {
            Ok(())
        } else {
            Err(ready.body)
        }
    });
    let refused = send(
        cluster.address(2),
        "POST /db/execute?timeout=500ms",
        "application/json",
        "[\"INSERT INTO t VALUES(2)\"]",
    );
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(query(cluster, 2, "auto").status, 200);
    cluster.start_node(1 - leader);
    cluster.wait_all_ready();
    cluster.assert_healthy_logs();
}

#[test]
fn a_replica_stays_one_until_it_is_removed() {
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &[]);
    add(&mut cluster, 1, &["-raft-non-voter"]);
    cluster.start_all(&Formation::Join);
    let expected = |role| [("node1", "voter"), ("node2", role)];
    wait_roles(&mut cluster, &[0, 1], &expected("replica"));
    cluster.stop(1);
    cluster.arguments(1).remove(0);
    cluster.start_node(1);
    cluster.wait_ready(1);
    wait_roles(&mut cluster, &[0, 1], &expected("replica"));
    assert_eq!(remove(&cluster, 0, "{\"id\":\"node2\"}").0, 200);
    cluster.wait_log(1, "no member of its cluster any more");
    cluster.stop(1);
    cluster.start_node(1);
    cluster.wait_ready(1);
    wait_roles(&mut cluster, &[0, 1], &expected("voter"));
    cluster.assert_healthy_logs();
}

#[test]
fn a_replica_that_lost_its_directory_takes_its_own_place_again() {
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &[]);
    add(&mut cluster, 1, &["-raft-non-voter"]);
    cluster.start_all(&Formation::Join);
    let expected = [("node1", "voter"), ("node2", "replica")];
    wait_roles(&mut cluster, &[0], &expected);
    let before = status(&cluster, 1, "store.raft_id");
    cluster.kill(1);
    std::fs::remove_dir_all(cluster.data_dir(1)).unwrap();
    cluster.start_node(1);
    cluster.wait_ready(1);
    wait_roles(&mut cluster, &[0, 1], &expected);
    assert_ne!(status(&cluster, 1, "store.raft_id"), before);
}

#[test]
fn a_replica_cannot_start_a_cluster() {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &["-raft-non-voter"]);
    cluster.start_node(0);
    assert_eq!(cluster.wait_end(0).code(), Some(1));
    let text = "cannot create a new non-voting node without joining it to an existing cluster";
    assert!(
        cluster.log_text(0).contains(text),
        "{}",
        cluster.log_text(0)
    );
}
