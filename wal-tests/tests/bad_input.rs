//! What is wrong is said clearly, changes nothing, and brings nobody down.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::json;
use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::process;
use wal_tests::seed::{Random, seed};

/// One node with a table of three rows.
fn node(flags: &[&str]) -> ProcessCluster {
    let cluster = ProcessCluster::start(1, &Formation::Join, flags);
    let statements = json!([
        "CREATE TABLE t(a, b)",
        "INSERT INTO t VALUES(1, 1), (2, 2), (3, 3)"
    ]);
    let _ = cluster
        .client()
        .execute(cluster.address(0), &statements)
        .expect_success();
    cluster
}

/// Checks that the table is as `node` made it and can be written.
#[track_caller]
fn assert_unharmed(cluster: &ProcessCluster) {
    let address = cluster.address(0);
    let rows = cluster
        .client()
        .query(address, "strong", "SELECT count(*) FROM t")
        .unwrap();
    assert_eq!(rows[0][0], json!(3));
    let _ = cluster
        .client()
        .execute_sql(address, "UPDATE t SET b = b + 1")
        .expect_success();
    cluster.assert_healthy_logs();
}

#[test]
fn bodies_that_are_no_requests_are_answered_400() {
    let cluster = node(&[]);
    for endpoint in ["/db/execute", "/db/query", "/db/request"] {
        for (body, expected) in [
            ("garbage", "invalid JSON body"),
            ("", "invalid JSON body"),
            ("[\"INSERT INTO t VALUES(9, 9)\"", "invalid JSON body"),
            ("{}", "invalid request"),
            ("[1]", "invalid request"),
            ("[[]]", "invalid request"),
            ("[]", "no statements"),
        ] {
            let answer = cluster.client().post(
                cluster.address(0),
                endpoint,
                "application/json",
                body.as_bytes(),
            );
            let answer = answer.unwrap();
            assert_eq!(
                (answer.status, answer.body.trim_end()),
                (400, expected),
                "{endpoint} {body}"
            );
        }
    }
    let bytes = b"[\"INSERT INTO t VALUES('\xff\xfe', 9)\", \"x\"";
    let answer =
        cluster
            .client()
            .post(cluster.address(0), "/db/execute", "application/json", bytes);
    assert_eq!(answer.unwrap().status, 400);
    assert_unharmed(&cluster);
}

#[test]
fn statements_that_fail_say_why_in_their_result() {
    let cluster = node(&[]);
    for (statement, expected) in [
        (json!(["INSERT INTO nope VALUES(1)"]), "no such table: nope"),
        (
            json!(["INSERT INTO t VALUES(?, ?)", 1]),
            "not enough args to execute query: want 2 got 1",
        ),
        (
            json!(["INSERT INTO t VALUES(1)"]),
            "table t has 2 columns but 1 values were supplied",
        ),
        (json!(["blah"]), "near \"blah\": syntax error"),
    ] {
        let answer = cluster
            .client()
            .execute(cluster.address(0), &json!([statement]));
        let Outcome::Answered(answer) = answer else {
            panic!("{statement}: {answer:?}")
        };
        assert_eq!(answer.error(), Some(expected), "{statement}");
    }
    assert_unharmed(&cluster);
}

#[test]
fn a_query_cannot_write() {
    let cluster = node(&[]);
    for level in ["none", "weak", "linearizable", "strong"] {
        for sql in [
            "DELETE FROM t",
            "CREATE TABLE u(x)",
            "INSERT INTO t VALUES(9, 9) RETURNING a",
        ] {
            let answer = cluster
                .client()
                .query(cluster.address(0), level, sql)
                .unwrap_err();
            let expected = "attempt to change database via query operation";
            assert!(answer.contains(expected), "{level} {sql}: {answer}");
        }
    }
    assert_unharmed(&cluster);
}

#[test]
fn a_body_over_the_limit_is_answered_413() {
    let cluster = node(&["-http-max-body", "4096"]);
    let large = format!("[\"INSERT INTO t VALUES(9, '{}')\"]", "x".repeat(10_000));
    let answer = cluster.client().post(
        cluster.address(0),
        "/db/execute",
        "application/json",
        large.as_bytes(),
    );
    assert_eq!(answer.unwrap().status, 413);
    assert_unharmed(&cluster);
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    for (arguments, expected) in [
        (
            vec!["serve", "-raft-adr", "localhost:1", data],
            "unknown flag -raft-adr",
        ),
        (
            vec!["serve", "-raft-adr", "localhost:1", data],
            "did you mean -raft-addr?",
        ),
        (vec!["-nodeid", "1", data], "did you mean -node-id?"),
        (
            vec![data, "-fk"],
            "arguments after data directory (-fk) are not accepted",
        ),
        (vec!["serve", "-fk"], "data directory path is required"),
        (
            vec!["-http-addr", "localhost:4002", data],
            "HTTP and Raft addresses must differ",
        ),
        (
            vec!["-raft-addr", "0.0.0.0:4002", data],
            "advertised Raft address is not routable",
        ),
        (vec!["-raft-addr", "192.0.2.1:4002", data], "-cluster-key"),
        (vec!["-join", "nowhere", data], "invalid join address"),
    ] {
        let output = process::run(&arguments);
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
        assert!(shown.contains(expected), "{arguments:?}: {shown}");
    }
    assert!(
        !dir.path().join("data").exists(),
        "the data directory was made"
    );
}

#[test]
fn a_data_directory_that_is_a_file_is_named() {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &[]);
    std::fs::write(cluster.data_dir(0), b"in the way").unwrap();
    cluster.start_node(0);
    assert_eq!(cluster.wait_end(0).code(), Some(1));
    assert!(
        cluster.log_text(0).contains("node1"),
        "{}",
        cluster.log_text(0)
    );
    assert_eq!(std::fs::read(cluster.data_dir(0)).unwrap(), b"in the way");
}

#[test]
fn a_node_that_fails_after_it_has_found_its_cluster_ends() {
    let mut cluster = ProcessCluster::prepare(2, &Formation::Join, &[]);
    std::fs::create_dir(cluster.data_dir(1)).unwrap();
    std::fs::write(cluster.data_dir(1).join("log"), b"in the way").unwrap();
    // Alone it cannot know; it serves HTTP and looks for the other.
    cluster.start_node(1);
    cluster.wait_log(1, "looking for a cluster");
    cluster.start_node(0);
    assert_eq!(cluster.wait_end(1).code(), Some(1));
    let log = cluster.log_text(1);
    assert!(
        log.contains("out of service") && log.contains("log"),
        "{log}"
    );
    cluster.wait_ready(0);
    cluster.assert_healthy_logs();
}

#[test]
fn a_cluster_key_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let key = key.to_str().unwrap();
    assert!(process::run(&["keygen", key]).status.success());
    let first = std::fs::read(key).unwrap();
    assert_eq!(
        process::run(&["keygen", key]).status.code(),
        Some(1),
        "a key was overwritten"
    );
    assert_eq!(std::fs::read(key).unwrap(), first);

    std::fs::write(key, "not a key").unwrap();
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &["-cluster-key", key]);
    cluster.start_node(0);
    assert_eq!(cluster.wait_end(0).code(), Some(1));
    assert!(cluster.log_text(0).contains(key), "{}", cluster.log_text(0));
}

/// The segments of a node's log, in order.
fn segments(cluster: &ProcessCluster) -> Vec<PathBuf> {
    let files = std::fs::read_dir(cluster.data_dir(0).join("log")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// The segment written last, and how many of its bytes are used.
fn newest_segment(cluster: &ProcessCluster) -> (PathBuf, usize) {
    let used = |file: PathBuf| {
        let bytes = std::fs::read(&file).unwrap();
        let used = bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        (file, used)
    };
    let found = segments(cluster)
        .into_iter()
        .map(used)
        .rfind(|(_, used)| *used > 0);
    found.expect("a node that has written has a segment")
}

#[test]
fn damage_inside_the_log_keeps_the_node_from_starting_until_it_is_repaired() {
    let mut random = Random::new(seed("bad_input"));
    let mut cluster = node(&[]);
    for row in 0..50 {
        let insert = format!("INSERT INTO t VALUES({row}, randomblob(1000))");
        let _ = cluster
            .client()
            .execute_sql(cluster.address(0), &insert)
            .expect_success();
    }
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), "DELETE FROM t WHERE b > 9")
        .expect_success();
    cluster.kill(0);
    let (segment, used) = newest_segment(&cluster);
    for _ in 0..3 {
        // In the middle: many synced records follow, so this cannot be a torn write.
        let offset = (used / 4 + random.below(used / 2)) as u64;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&segment)
            .unwrap();
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, offset).unwrap();
        file.write_all_at(&bytes.map(|byte| !byte), offset).unwrap();
        cluster.start_node(0);
        let status = cluster.wait_end(0);
        let log = cluster.log_text(0);
        let name = segment.file_name().unwrap().to_str().unwrap();
        assert_eq!(
            status.code(),
            Some(1),
            "damage at {offset} of {used}: {log}"
        );
        assert!(
            log.contains(name) && log.contains("restore a backup"),
            "damage at {offset}: {log}"
        );
        file.write_all_at(&bytes, offset).unwrap();
    }
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert_unharmed(&cluster);
}

#[test]
fn garbage_behind_the_last_synced_record_is_dropped() {
    let mut random = Random::new(seed("bad_input"));
    let mut cluster = node(&[]);
    for bytes in [1, 100, 5000] {
        cluster.kill(0);
        let (segment, used) = newest_segment(&cluster);
        let garbage: Vec<u8> = (0..bytes)
            .map(|_| random.bits().to_le_bytes()[0] | 1)
            .collect();
        let file = OpenOptions::new().write(true).open(&segment).unwrap();
        // Where the next record would have been written, had it not been torn.
        file.write_all_at(&garbage, used.next_multiple_of(8) as u64)
            .unwrap();
        cluster.start_node(0);
        cluster.wait_ready(0);
        assert_unharmed(&cluster);
    }
}

#[test]
fn a_node_of_another_cluster_is_not_taken_in() {
    let one = node(&[]);
    let mut other = node(&[]);
    assert!(other.stop(0).success());
    let raft = one
        .client()
        .json(one.address(0), "/status?key=cluster.addr")
        .unwrap();
    let arguments = other.arguments(0);
    let last = arguments.len() - 1;
    arguments.splice(
        last..last,
        ["-join".to_owned(), raft.as_str().unwrap().to_owned()],
    );
    other.start_node(0);
    assert_eq!(other.wait_end(0).code(), Some(1), "{}", other.log_text(0));
    let log = other.log_text(0);
    assert!(log.contains("this node belongs to cluster"), "{log}");
    assert_unharmed(&one);
    let nodes = one
        .client()
        .json(one.address(0), "/nodes?nonvoters")
        .unwrap();
    assert_eq!(nodes.as_object().unwrap().len(), 1, "{nodes}");
    other.assert_healthy_logs();
}
