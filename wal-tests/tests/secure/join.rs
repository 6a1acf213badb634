//! Joining, and starting, a cluster that has users.

use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;

use crate::users::{UsersFile, user, watchable};

fn members() -> UsersFile {
    UsersFile::new(&json!([
        watchable(),
        user("member", &["join"]),
        user("guest", &["query"]),
        user("reader", &["join-read-only"]),
    ]))
}

/// Puts flags before those that a node has.
fn add(cluster: &mut ProcessCluster, node: usize, flags: &[&str]) {
    let flags = flags.iter().map(|&flag| flag.to_owned());
    cluster.arguments(node).splice(0..0, flags);
}

#[test]
fn only_a_user_with_the_permission_brings_in_a_node() {
    let file = members();
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &["-auth", file.text()]);
    cluster.start_node(0);
    cluster.wait_ready(0);
    cluster.start_node(1);
    let (asked, refused) = (
        "a node that asked to join was refused",
        "this node was refused",
    );
    cluster.wait_log(0, asked);
    cluster.wait_log(1, refused);
    for log in [cluster.log_text(0), cluster.log_text(1)] {
        let advice = "not authorized: this cluster has users, and only one with the permission \
                      join may bring in a node; start the node with -join-as USER";
        assert!(log.contains(advice), "{log}");
    }
    cluster.stop(1);
    add(&mut cluster, 1, &["-join-as", "guest"]);
    cluster.start_node(1);
    for node in [0, 1] {
        cluster.wait_log(node, "not authorized: user \\\"guest\\\" is unknown here");
    }
    cluster.stop(1);
    cluster.arguments(1)[1] = "member".to_owned();
    cluster.start_node(1);
    cluster.wait_ready(1);
    let nodes = cluster.client().json(cluster.address(0), "/nodes").unwrap();
    assert_eq!(nodes.as_object().unwrap().len(), 2, "{nodes}");
    for node in [0, 1] {
        assert!(!cluster.log_text(node).contains("-secret"));
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_user_with_join_read_only_brings_in_a_replica_and_no_voter() {
    let file = members();
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &["-auth", file.text()]);
    cluster.start_node(0);
    cluster.wait_ready(0);
    add(&mut cluster, 1, &["-join-as", "reader"]);
    cluster.start_node(1);
    for node in [0, 1] {
        cluster.wait_log(
            node,
            "user \\\"reader\\\" has the permission join-read-only, and may bring in only a node \
             that does not vote; start the node with -raft-non-voter, or as a user with the \
             permission join",
        );
    }
    let members = |cluster: &ProcessCluster| {
        let nodes = cluster
            .client()
            .json(cluster.address(0), "/nodes?ver=2&nonvoters");
        let nodes = nodes.unwrap()["nodes"].as_array().unwrap().clone();
        let role = |node: &serde_json::Value| node["wallaby"]["role"].clone();
        nodes.iter().map(role).collect::<Vec<_>>()
    };
    assert_eq!(members(&cluster), ["leader"]);
    cluster.stop(1);
    add(&mut cluster, 1, &["-raft-non-voter"]);
    cluster.start_node(1);
    cluster.wait_ready(1);
    assert_eq!(members(&cluster), ["leader", "replica"]);
    // Once it is in, it cannot make itself a voter.
    cluster.stop(1);
    cluster.arguments(1).remove(0);
    cluster.start_node(1);
    cluster.wait_ready(1);
    assert_eq!(members(&cluster), ["leader", "replica"]);
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_with_users_start_a_cluster_only_with_the_permission() {
    let file = members();
    let mut cluster = ProcessCluster::prepare(3, &Formation::Expect, &["-auth", file.text()]);
    for node in 0..3 {
        cluster.start_node(node);
    }
    for node in 0..3 {
        cluster.wait_log(node, "this node was refused");
    }
    for node in 0..3 {
        cluster.stop(node);
        add(&mut cluster, node, &["-join-as", "member"]);
    }
    cluster.start_all(&Formation::Expect);
    let nodes = cluster.client().json(cluster.address(0), "/nodes").unwrap();
    assert_eq!(nodes.as_object().unwrap().len(), 3, "{nodes}");
    cluster.assert_healthy_logs();
}

#[test]
fn the_password_to_join_with_may_come_from_a_file_of_its_own() {
    let file = members();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "member-secret\n").unwrap();
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &[]);
    add(&mut cluster, 0, &["-auth", file.text()]);
    let joins = ["-join-as", "member", "-join-as-password-file"];
    add(
        &mut cluster,
        1,
        &[&joins[..], &[password.to_str().unwrap()]].concat(),
    );
    // An HTTP address is asked on behalf of the same user; here everybody may ask for the status.
    let target = format!("http://{}", cluster.address(0));
    let join = cluster
        .arguments(1)
        .iter()
        .position(|flag| flag == "-join")
        .unwrap();
    cluster.arguments(1)[join + 1] = target;
    cluster.start_all(&Formation::Join);
    let nodes = cluster.client().json(cluster.address(1), "/nodes").unwrap();
    assert_eq!(nodes.as_object().unwrap().len(), 2, "{nodes}");
    cluster.assert_healthy_logs();
}

#[test]
fn a_user_to_join_as_must_have_a_password_that_can_be_sent() {
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$x7cO0xR8XH0l3pZ9mMzq4Q";
    let file = UsersFile::new(&json!([
        {"username": "hashed", "password": hash, "perms": ["join"]},
    ]));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (who, expected) in [
        ("nobody", "-join-as: no user \"nobody\" in"),
        (
            "hashed",
            "joining needs the password itself, and this is its hash",
        ),
    ] {
        let flags = [
            "serve",
            "-auth",
            file.text(),
            "-join-as",
            who,
            data.to_str().unwrap(),
        ];
        let output = process::run(&flags);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}
