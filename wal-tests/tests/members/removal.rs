//! Removed nodes know it, say it, and stay away until they are told otherwise.

use std::time::Duration;

use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::raw::send;

use crate::{add, members, name, raft_addr, remove, set, status, take, wait_roles, write};

const SENTENCE: &str = "it was removed from the cluster; start it again with -join";

fn three() -> ProcessCluster {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let all = [("node1", "voter"), ("node2", "voter"), ("node3", "voter")];
    wait_roles(&mut cluster, &[0, 1, 2], &all);
    cluster
}

/// Waits until a node says that it was removed, wherever it is asked.
#[track_caller]
fn wait_removed(cluster: &mut ProcessCluster, node: usize) {
    let client = Client::new(Duration::from_secs(5));
    cluster.wait("the node to know that it was removed", |cluster| {
        let answer = client.get(cluster.address(node), "/readyz");
        let answer = answer.map_err(|error| error.to_string())?;
        let says = answer.status == 503 && answer.body.contains(SENTENCE);
        says.then_some(()).ok_or(answer.body)
    });
    let address = cluster.address(node);
    for (line, body) in [
        ("POST /db/query?level=none", "[\"SELECT 1\"]"),
        ("POST /db/query", "[\"SELECT 1\"]"),
        ("POST /db/execute", "[\"CREATE TABLE no(v)\"]"),
        ("POST /db/request", "[\"SELECT 1\"]"),
    ] {
        let answer = send(address, line, "application/json", body);
        let says = answer.status == 503 && answer.body.contains(SENTENCE);
        assert!(says, "{line}: {} {}", answer.status, answer.body);
    }
    assert_eq!(status(cluster, node, "wallaby.role"), "removed");
    let shown = members(address).unwrap();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["wallaby"]["role"], "removed");
    assert_eq!(shown[0]["voter"], false);
}

#[test]
fn a_removed_node_says_so_and_comes_back_only_with_join_at_its_start() {
    let mut cluster = three();
    write(&cluster, cluster.address(0), "CREATE TABLE t(v)");
    let join = raft_addr(&mut cluster, 0);
    // Through the node itself, which has -join among its flags and must not act on them.
    assert_eq!(remove(&cluster, 2, "{\"id\":\"node3\"}").0, 200);
    wait_removed(&mut cluster, 2);
    let rest = [("node1", "voter"), ("node2", "voter")];
    wait_roles(&mut cluster, &[0, 1], &rest);
    cluster.kill(2);
    take(&mut cluster, 2, "-join");
    take(&mut cluster, 2, "-bootstrap-expect");
    cluster.start_node(2);
    wait_removed(&mut cluster, 2);
    wait_roles(&mut cluster, &[0, 1], &rest);
    write(&cluster, cluster.address(1), "INSERT INTO t VALUES(1)");
    cluster.kill(2);
    add(&mut cluster, 2, &["-join", &join]);
    cluster.start_node(2);
    cluster.wait_ready(2);
    cluster.wait_log(
        2,
        "the cluster has removed this node, which asks to be taken in again",
    );
    let all = [rest[0], rest[1], ("node3", "voter")];
    wait_roles(&mut cluster, &[0, 1, 2], &all);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn a_node_learns_when_it_returns_that_it_was_removed_while_it_was_away() {
    let mut cluster = three();
    let leader = cluster.wait_leader();
    let (away, paused) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.pause(paused);
    let body = format!("{{\"id\":\"{}\"}}", name(paused));
    // One of the two that are left is the leader, and the other answers.
    assert_eq!(remove(&cluster, away, &body).0, 200);
    cluster.resume(paused);
    wait_removed(&mut cluster, paused);
    add(&mut cluster, away, &["-raft-remove-shutdown"]);
    for flag in ["-join", "-bootstrap-expect"] {
        take(&mut cluster, away, flag);
    }
    cluster.kill(away);
    // A majority of two is both, so it must come back before it can be removed.
    cluster.start_node(away);
    cluster.wait_ready(away);
    let body = format!("{{\"id\":\"{}\"}}", name(away));
    assert_eq!(remove(&cluster, leader, &body).0, 200);
    wait_removed(&mut cluster, away);
    cluster.wait("Raft to be stopped", |cluster| {
        let state = status(cluster, away, "store.raft.state");
        if state == "Shutdown" {
            Ok(())
        } else {
            Err(state.to_string())
        }
    });
    write(&cluster, cluster.address(leader), "CREATE TABLE t(v)");
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_leave_as_they_shut_down_if_they_are_told_to() {
    let flags = ["-raft-cluster-remove-shutdown"];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    write(&cluster, cluster.address(0), "CREATE TABLE t(v)");
    let all = [("node1", "voter"), ("node2", "voter"), ("node3", "voter")];
    wait_roles(&mut cluster, &[0, 1, 2], &all);
    let first = cluster.wait_leader();
    assert!(cluster.stop(first).success());
    let rest: Vec<usize> = (0..3).filter(|&node| node != first).collect();
    let names: Vec<String> = rest.iter().map(|&node| name(node)).collect();
    wait_roles(
        &mut cluster,
        &rest,
        &[(&names[0], "voter"), (&names[1], "voter")],
    );
    write(
        &cluster,
        cluster.address(rest[0]),
        "INSERT INTO t VALUES(1)",
    );
    assert!(cluster.stop(rest[0]).success());
    wait_roles(&mut cluster, &rest[1..], &[(&names[1], "voter")]);
    write(
        &cluster,
        cluster.address(rest[1]),
        "INSERT INTO t VALUES(2)",
    );
    // Somebody has to keep the data.
    assert!(cluster.stop(rest[1]).success());
    assert!(
        cluster
            .log_text(rest[1])
            .contains("the last voter cannot be removed")
    );
    // Started as before, they come back.
    let last = raft_addr(&mut cluster, rest[1]);
    cluster.start_node(rest[1]);
    cluster.wait_ready(rest[1]);
    for node in [first, rest[0]] {
        set(&mut cluster, node, "-join", &last);
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    wait_roles(&mut cluster, &[0, 1, 2], &all);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn a_majority_is_removed_with_force_only() {
    let mut cluster = three();
    write(&cluster, cluster.address(0), "CREATE TABLE t(v)");
    let leader = cluster.wait_leader();
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(dead);
    let (code, text) = remove(&cluster, leader, &format!("{{\"id\":\"{}\"}}", name(alive)));
    assert_eq!(code, 500, "{text}");
    assert!(
        text.contains("only 1 can be reached, which is no majority"),
        "{text}"
    );
    write(&cluster, cluster.address(alive), "INSERT INTO t VALUES(1)");
    // What remains is one of two: it takes effect when the other one is back.
    let forced = format!("{{\"id\":\"{}\",\"force\":true}}", name(alive));
    let (code, text) = remove(&cluster, leader, &forced);
    assert_ne!(code, 200, "{text}");
    cluster.start_node(dead);
    wait_removed(&mut cluster, alive);
    let mut rest = [name(leader), name(dead)];
    rest.sort();
    let expected = [(rest[0].as_str(), "voter"), (rest[1].as_str(), "voter")];
    wait_roles(&mut cluster, &[leader, dead], &expected);
    write(&cluster, cluster.address(dead), "INSERT INTO t VALUES(2)");
    cluster.assert_healthy_logs();
}
