//! Life in a cluster as operators see it: joining, moving, leaving, being removed.

#![allow(clippy::unwrap_used)]

mod changes;
mod joining;
mod leaderless;
mod moving;
mod reaping;
mod removal;
mod replicas;

use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::client::Client;
use wal_tests::cluster::ProcessCluster;

/// Puts flags before those that a node has.
fn add(cluster: &mut ProcessCluster, node: usize, flags: &[&str]) {
    let flags = flags.iter().map(|&flag| flag.to_owned());
    cluster.arguments(node).splice(0..0, flags);
}

/// Takes a flag and its value from a node.
fn take(cluster: &mut ProcessCluster, node: usize, flag: &str) -> Option<String> {
    let arguments = cluster.arguments(node);
    let place = arguments.iter().position(|argument| argument == flag)?;
    arguments.drain(place..place + 2).next_back()
}

/// Gives a flag of a node another value.
fn set(cluster: &mut ProcessCluster, node: usize, flag: &str, value: &str) {
    take(cluster, node, flag);
    add(cluster, node, &[flag, value]);
}

fn raft_addr(cluster: &mut ProcessCluster, node: usize) -> String {
    let arguments = cluster.arguments(node);
    let place = arguments.iter().position(|flag| flag == "-raft-addr");
    arguments[place.unwrap() + 1].clone()
}

fn name(node: usize) -> String {
    format!("node{}", node + 1)
}

/// The members as the node at this address sees them, replicas included, and only if all answer.
fn members(address: &str) -> Result<Vec<Value>, String> {
    let client = Client::new(Duration::from_secs(5));
    let answer = client.json(address, "/nodes?ver=2&nonvoters&timeout=2s")?;
    let nodes = answer["nodes"].as_array().cloned();
    nodes.ok_or_else(|| format!("{address} answers {answer}"))
}

/// Waits until all of these nodes agree on names and roles; the leader counts as a voter.
#[track_caller]
fn wait_roles(cluster: &mut ProcessCluster, nodes: &[usize], expected: &[(&str, &str)]) {
    cluster.wait(&format!("the members {expected:?}"), |cluster| {
        for &node in nodes {
            let found = members(cluster.address(node))?;
            let found: Vec<(&str, &str)> = found.iter().map(name_and_role).collect();
            if found != expected {
                return Err(format!("{} sees {found:?}", name(node)));
            }
        }
        Ok(())
    });
}

fn name_and_role(member: &Value) -> (&str, &str) {
    let role = member["wallaby"]["role"].as_str().unwrap();
    let role = if role == "leader" { "voter" } else { role };
    assert_eq!(member["voter"], role == "voter", "{member}");
    (member["id"].as_str().unwrap(), role)
}

fn write(cluster: &ProcessCluster, address: &str, sql: &str) {
    let _ = cluster
        .client()
        .execute(address, &json!([sql]))
        .expect_success();
}

/// A part of what a node says about itself.
fn status(cluster: &ProcessCluster, node: usize, key: &str) -> Value {
    let client = cluster.client();
    let key = format!("/status?key={key}");
    client.json(cluster.address(node), &key).unwrap()
}

fn remove(cluster: &ProcessCluster, node: usize, body: &str) -> (u16, String) {
    let answer = wal_tests::raw::send(
        cluster.address(node),
        "DELETE /remove?timeout=3s",
        "application/json",
        body,
    );
    (answer.status, answer.body)
}
