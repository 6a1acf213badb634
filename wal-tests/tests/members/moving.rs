//! Nodes that come back at other addresses.

use serde_json::json;
use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::ports;

use crate::{members, name, set, take};

/// Gives a node that does not run other ports; its HTTP address and its Raft address.
fn move_node(cluster: &mut ProcessCluster, node: usize) -> (String, String) {
    let ports = ports::reserve(2);
    let [http, raft] = [ports[0], ports[1]].map(|port| format!("127.0.0.1:{port}"));
    set(cluster, node, "-http-addr", &http);
    set(cluster, node, "-raft-addr", &raft);
    (http, raft)
}

/// Waits until the node at this address knows the others by these addresses, and all answer.
#[track_caller]
fn wait_places(cluster: &mut ProcessCluster, at: &str, expected: &[(String, String)]) {
    cluster.wait("the new addresses to be known", |_| {
        let found = members(at)?;
        for (node, (http, raft)) in expected.iter().enumerate() {
            let member = found.iter().find(|member| member["id"] == name(node));
            let member = member.ok_or_else(|| format!("{} is missing", name(node)))?;
            let is_there = member["addr"] == *raft
                && member["api_addr"] == format!("http://{http}")
                && member["reachable"] == true
                && member["voter"] == true;
            if !is_there {
                return Err(format!("{at} sees {member}"));
            }
        }
        Ok(())
    });
}

fn places(cluster: &mut ProcessCluster) -> Vec<(String, String)> {
    (0..cluster.size())
        .map(|node| {
            (
                cluster.address(node).to_owned(),
                crate::raft_addr(cluster, node),
            )
        })
        .collect()
}

fn write(cluster: &mut ProcessCluster, at: &str) {
    cluster.wait("a write to be served", |cluster| {
        let statements = json!(["CREATE TABLE IF NOT EXISTS t(v)", "INSERT INTO t VALUES(1)"]);
        let answer = cluster.client().execute(at, &statements);
        match answer {
            Outcome::Answered(answer) if answer.error().is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn nodes_tell_their_cluster_where_they_are_now() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    for node in 0..3 {
        take(&mut cluster, node, "-join");
        take(&mut cluster, node, "-bootstrap-expect");
    }
    let mut places = places(&mut cluster);
    let leader = cluster.wait_leader();
    // A follower, then the leader: both tell those that they know from their own directory.
    for moved in [(leader + 1) % 3, leader] {
        cluster.stop(moved);
        places[moved] = move_node(&mut cluster, moved);
        cluster.start_node(moved);
        for at in 0..3 {
            let at = places[at].0.clone();
            wait_places(&mut cluster, &at, &places);
            write(&mut cluster, &at);
        }
    }
    // Only where clients reach it.
    let other = (leader + 2) % 3;
    cluster.stop(other);
    let http = format!("127.0.0.1:{}", ports::reserve(1)[0]);
    set(&mut cluster, other, "-http-addr", &http);
    places[other].0 = http;
    cluster.start_node(other);
    for at in 0..3 {
        let at = places[at].0.clone();
        wait_places(&mut cluster, &at, &places);
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_cluster_whose_nodes_have_all_moved_finds_itself_by_join() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let at = cluster.address(0).to_owned();
    write(&mut cluster, &at);
    (0..3).for_each(|node| cluster.kill(node));
    let places: Vec<_> = (0..3).map(|node| move_node(&mut cluster, node)).collect();
    let addrs: Vec<&str> = places.iter().map(|(_, raft)| raft.as_str()).collect();
    for node in 0..3 {
        take(&mut cluster, node, "-bootstrap-expect");
        let others: Vec<&str> = addrs
            .iter()
            .copied()
            .filter(|addr| *addr != addrs[node])
            .collect();
        set(&mut cluster, node, "-join", &others.join(","));
        cluster.start_node(node);
    }
    for at in 0..3 {
        let at = &places[at].0;
        wait_places(&mut cluster, at, &places);
        write(&mut cluster, at);
    }
    cluster.assert_healthy_logs();
}
