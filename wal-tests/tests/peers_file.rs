//! `raft/peers.json`: the nodes that are left, or that have all moved, go on as one cluster with
//! everything that was acknowledged; and whatever is wrong with the file changes nothing.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::damage::{flip, log_file};
use wal_tests::seed::{Random, seed};

/// Three nodes with a table.
fn cluster() -> ProcessCluster {
    let cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let write = json!(["CREATE TABLE t(v)"]);
    let _ = cluster
        .client()
        .execute(cluster.address(0), &write)
        .expect_success();
    cluster
}

/// Adds rows through a node.
fn write(cluster: &ProcessCluster, node: usize, rows: std::ops::Range<u32>) {
    for row in rows {
        let sql = format!("INSERT INTO t VALUES({row})");
        let written = cluster.client().execute_sql(cluster.address(node), &sql);
        let _ = written.expect_success();
    }
}

/// Checks that a node has the rows from 0 up to this one, and no other.
#[track_caller]
fn assert_rows(cluster: &ProcessCluster, node: usize, rows: u32) {
    let sql = "SELECT count(*), min(v), max(v), count(DISTINCT v) FROM t";
    let found = cluster.client().query(cluster.address(node), "weak", sql);
    let expected = json!([rows, 0, rows - 1, rows]);
    assert_eq!(Value::from(found.unwrap().swap_remove(0)), expected);
}

/// The file that names these nodes at the addresses they have now.
fn peers(cluster: &ProcessCluster, nodes: &[usize]) -> String {
    let peer = |node: &usize| {
        json!({
            "id": cluster.flag(*node, "-node-id"),
            "address": cluster.flag(*node, "-raft-addr"),
            "non_voter": false,
        })
    };
    Value::from(nodes.iter().map(peer).collect::<Vec<_>>()).to_string()
}

fn give(cluster: &ProcessCluster, node: usize, text: &str) {
    let dir = cluster.data_dir(node).join("raft");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("peers.json"), text).unwrap();
}

fn kill_all(cluster: &mut ProcessCluster) {
    for node in 0..cluster.size() {
        if cluster.serving(node) {
            cluster.kill(node);
        }
    }
}

/// Checks that the file was obeyed and put away.
#[track_caller]
fn assert_obeyed(cluster: &ProcessCluster, node: usize, text: &str) {
    let dir = cluster.data_dir(node).join("raft");
    assert!(!dir.join("peers.json").exists());
    assert_eq!(
        std::fs::read_to_string(dir.join("peers.info")).unwrap(),
        text
    );
}

fn cluster_id(cluster: &ProcessCluster, node: usize) -> Value {
    let address = cluster.address(node);
    let id = cluster
        .client()
        .json(address, "/status?key=wallaby.cluster_id");
    id.unwrap()
}

#[test]
fn the_only_node_that_is_left_goes_on_with_everything_and_grows_again() {
    let mut cluster = cluster();
    write(&cluster, 0, 0..20);
    let before = cluster_id(&cluster, 0);
    kill_all(&mut cluster);
    let text = peers(&cluster, &[0]);
    give(&cluster, 0, &text);
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert_rows(&cluster, 0, 20);
    write(&cluster, 0, 20..25);
    assert_obeyed(&cluster, 0, &text);
    assert_ne!(cluster_id(&cluster, 0), before);

    // A node that was given up and comes back belongs to another cluster now, and takes no part.
    cluster.start_node(1);
    let ended = cluster.wait_end(1);
    assert!(!ended.success());
    assert!(
        cluster
            .log_text(1)
            .contains("with an empty data directory to move it")
    );
    assert_rows(&cluster, 0, 25);

    // With an empty directory it may join, and so may another.
    for node in 1..3 {
        std::fs::remove_dir_all(cluster.data_dir(node)).unwrap();
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    write(&cluster, 2, 25..30);
    cluster.wait("three voters", |cluster| {
        let nodes = cluster.client().json(cluster.address(0), "/nodes")?;
        match nodes.as_object().map_or(0, serde_json::Map::len) {
            3 => Ok(()),
            _ => Err(nodes.to_string()),
        }
    });
    let _ = cluster.assert_identical();
    assert_rows(&cluster, 0, 30);
    // As often as anybody restarts: the file was for once.
    cluster.kill(0);
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert_rows(&cluster, 0, 30);
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_that_have_all_moved_agree_on_the_longest_log() {
    let mut cluster = cluster();
    write(&cluster, 0, 0..10);
    // One has less than what was acknowledged; it will be there first.
    let leader = cluster.wait_leader();
    let [shorter, other] = [1, 2].map(|next| (leader + next) % 3);
    cluster.kill(shorter);
    write(&cluster, leader, 10..30);
    kill_all(&mut cluster);
    for node in 0..3 {
        cluster.move_node(node);
    }
    let text = peers(&cluster, &[0, 1, 2]);
    for node in [shorter, leader, other] {
        give(&cluster, node, &text);
        cluster.start_node(node);
    }
    cluster.wait_all_ready();
    write(&cluster, 1, 30..35);
    let _ = cluster.assert_identical();
    for node in 0..3 {
        assert_rows(&cluster, node, 35);
        assert_obeyed(&cluster, node, &text);
    }
    // Everybody knows everybody's new addresses, those for clients too.
    cluster.wait("the new HTTP addresses", |cluster| {
        let nodes = cluster.client().json(cluster.address(0), "/nodes")?;
        let told = |node| nodes.to_string().contains(cluster.address(node));
        if (0..3).all(told) {
            Ok(())
        } else {
            Err(nodes.to_string())
        }
    });
    // A majority is enough from here on.
    let leader = cluster.wait_leader();
    cluster.kill(leader);
    let next = cluster.wait_leader_other_than(leader);
    write(&cluster, next, 35..36);
    assert_rows(&cluster, next, 36);
    // The same file once more, as by a tool that puts it there at every start.
    kill_all(&mut cluster);
    for node in 0..3 {
        give(&cluster, node, &text);
        cluster.start_node(node);
    }
    cluster.wait_all_ready();
    write(&cluster, 0, 36..37);
    assert_rows(&cluster, 2, 37);
    cluster.assert_healthy_logs();
}

#[test]
fn a_node_with_the_file_waits_for_the_other_that_is_named() {
    let mut cluster = cluster();
    // What the shorter one lacks was acknowledged by the longer one and one that is lost.
    write(&cluster, 0, 0..10);
    let _ = cluster.wait_converged();
    let leader = cluster.wait_leader();
    let [shorter, longer] = [1, 2].map(|next| (leader + next) % 3);
    cluster.kill(shorter);
    write(&cluster, leader, 10..20);
    let _ = cluster.wait_converged();
    kill_all(&mut cluster);
    let text = peers(&cluster, &[shorter, longer]);
    give(&cluster, shorter, &text);
    cluster.start_node(shorter);
    cluster.wait_log(
        shorter,
        "all its 2 voters must be started with the same file",
    );
    cluster.wait("HTTP of the node", |cluster| {
        let answer = cluster
            .client()
            .get(cluster.address(shorter), "/readyz?noleader");
        answer.map(drop).map_err(|error| error.to_string())
    });
    let refused = cluster
        .client()
        .get(cluster.address(shorter), "/readyz?timeout=1s");
    assert_eq!(refused.unwrap().status, 503);
    // Killed and started again, it waits on; and it may be told twice.
    cluster.kill(shorter);
    give(&cluster, shorter, &text);
    cluster.start_node(shorter);
    give(&cluster, longer, &text);
    cluster.start_node(longer);
    cluster.wait_all_ready();
    assert_rows(&cluster, shorter, 20);
    write(&cluster, longer, 20..25);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn other_nodes_may_be_named_as_long_as_those_named_first_were_not_complete() {
    let mut cluster = cluster();
    write(&cluster, 0, 0..10);
    let _ = cluster.wait_converged();
    kill_all(&mut cluster);
    for node in 0..3 {
        cluster.move_node(node);
    }
    let first = peers(&cluster, &[0, 1, 2]);
    for node in [0, 1] {
        give(&cluster, node, &first);
        cluster.start_node(node);
        cluster.wait_log(node, "all its 3 voters must be started");
    }
    cluster.wait("HTTP of the nodes", |cluster| {
        for node in [0, 1] {
            let answer = cluster
                .client()
                .get(cluster.address(node), "/readyz?noleader");
            let _ = answer.map_err(|error| error.to_string())?;
        }
        Ok(())
    });
    kill_all(&mut cluster);
    // The third cannot be started after all.
    let second = peers(&cluster, &[0, 1]);
    for node in [0, 1] {
        give(&cluster, node, &second);
        cluster.start_node(node);
    }
    cluster.wait_all_ready();
    write(&cluster, 0, 10..15);
    assert_rows(&cluster, 1, 15);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn a_node_that_is_killed_while_it_obeys_starts_in_the_old_or_the_new_cluster() {
    let mut random = Random::new(seed("peers_file"));
    let mut cluster = cluster();
    write(&cluster, 0, 0..50);
    let _ = cluster.wait_converged();
    kill_all(&mut cluster);
    for node in 0..3 {
        cluster.move_node(node);
    }
    let text = peers(&cluster, &[0, 1, 2]);
    for node in 0..3 {
        give(&cluster, node, &text);
    }
    for _ in 0..12 {
        for node in 0..3 {
            cluster.start_node(node);
        }
        std::thread::sleep(Duration::from_millis(random.below(150) as u64));
        kill_all(&mut cluster);
    }
    for node in 0..3 {
        cluster.start_node(node);
    }
    cluster.wait_all_ready();
    write(&cluster, 0, 50..55);
    let _ = cluster.assert_identical();
    for node in 0..3 {
        assert_rows(&cluster, node, 55);
        assert_obeyed(&cluster, node, &text);
    }
    cluster.assert_healthy_logs();
}

/// What is in a data directory, besides what each start makes anew.
fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.retain(|name| !name.starts_with("db.sqlite-"));
    names.sort();
    names
}

#[test]
fn a_wrong_file_changes_nothing_and_the_node_says_what_is_wrong() {
    let mut cluster = cluster();
    write(&cluster, 0, 0..10);
    for node in 0..3 {
        // In order, so that there is no WAL and nothing to be redone.
        assert!(cluster.stop(node).success());
    }
    let right = peers(&cluster, &[0, 1]);
    let own = cluster.flag(0, "-raft-addr").to_owned();
    let entry = |id: &str, address: &str| json!({"id": id, "address": address}).to_string();
    let mine = entry("node1", &own);
    let silent = json!([{"id": "node1", "address": own, "non_voter": true}]);
    let cases = [
        (right[1..].to_owned(), "is not a list like"),
        (
            format!("[{mine},{}]", entry("node1", "a:1")),
            "is in it twice",
        ),
        (
            format!("[{mine},{}]", entry("node2", &own)),
            "have the address",
        ),
        (
            format!("[{mine},{}]", entry("node2", "http://a:1")),
            "include a protocol",
        ),
        (silent.to_string(), "none of the nodes in it votes"),
        (
            format!("[{}]", entry("node2", "a:1")),
            "\"node1\", is not in it",
        ),
        (
            format!("[{}]", entry("node1", "a:1")),
            "but the node is started with",
        ),
        (
            format!("[{mine},{}]", entry("node9", "a:1")),
            "have it join with -join",
        ),
    ];
    let identity = std::fs::read(cluster.data_dir(0).join("identity")).unwrap();
    let names = files(cluster.data_dir(0));
    for (text, expected) in cases {
        give(&cluster, 0, &text);
        cluster.start_node(0);
        let ended = cluster.wait_end(0);
        let log = cluster.log_text(0);
        let last = log.lines().last().unwrap_or_default();
        assert!(
            !ended.success() && last.contains(expected),
            "{text}: {last}"
        );
        assert!(last.contains("Nothing was changed"), "{last}");
        let now = std::fs::read(cluster.data_dir(0).join("identity")).unwrap();
        assert_eq!(now, identity);
        std::fs::remove_dir_all(cluster.data_dir(0).join("raft")).unwrap();
        assert_eq!(files(cluster.data_dir(0)), names);
    }
    for node in 0..3 {
        cluster.start_node(node);
    }
    cluster.wait_all_ready();
    write(&cluster, 0, 10..12);
    let _ = cluster.assert_identical();
    assert_rows(&cluster, 0, 12);
}

#[test]
fn damage_that_is_found_while_the_file_is_obeyed_is_refused_and_nothing_is_lost() {
    let mut random = Random::new(seed("peers_file damage"));
    let mut cluster = cluster();
    write(&cluster, 0, 0..30);
    let _ = cluster.wait_converged();
    for node in 0..3 {
        assert!(cluster.stop(node).success());
    }
    let text = peers(&cluster, &[0]);
    let dir = cluster.data_dir(0).to_owned();
    let (log, used) = log_file(&cluster, 0);
    let bytes = |path: &Path| usize::try_from(path.metadata().unwrap().len()).unwrap();
    let [record, database] = ["checkpoint", "db.sqlite"].map(|name| dir.join(name));
    let cases = [
        (&log, 4096, used / 2),
        (&record, 12, bytes(&record)),
        (&database, 4096, bytes(&database)),
    ];
    give(&cluster, 0, &text);
    let names = files(&dir);
    for (file, from, to) in cases {
        let good = std::fs::read(file).unwrap();
        flip(&mut random, file, from, to);
        let damaged = std::fs::read(file).unwrap();
        // As often as it is tried.
        for _ in 0..2 {
            cluster.start_node(0);
            assert!(!cluster.wait_end(0).success());
            let said = cluster.log_text(0);
            let last = said.lines().last().unwrap_or_default();
            let name = file.file_name().unwrap().to_str().unwrap();
            for words in [
                name,
                "damaged",
                "peers.json: ",
                "join with -join and an empty data directory",
                "POST the backup to /db/load",
                "Nothing was changed",
            ] {
                assert!(last.contains(words), "{words:?} is not in {last}");
            }
            assert!(
                std::fs::read(file).unwrap() == damaged,
                "{name} was touched"
            );
            assert_eq!(files(&dir), names);
        }
        std::fs::write(file, good).unwrap();
    }
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert_rows(&cluster, 0, 30);
    assert_obeyed(&cluster, 0, &text);
    cluster.assert_healthy_logs();
}

#[test]
fn a_directory_without_data_has_nothing_to_go_on_with() {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &[]);
    let own = peers(&cluster, &[0]);
    give(&cluster, 0, &own);
    cluster.start_node(0);
    assert!(!cluster.wait_end(0).success());
    let log = cluster.log_text(0);
    assert!(log.contains("this node has no data to go on with"), "{log}");
}
