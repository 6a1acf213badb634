//! What a node tells about itself: `/status`, `/debug/vars`, `/licenses`, the console.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use wal_tests::client::Response;
use wal_tests::cluster::{Formation, ProcessCluster};

fn one_node(flags: &[&str]) -> ProcessCluster {
    let cluster = ProcessCluster::start(1, &Formation::Join, flags);
    let statements = json!(["CREATE TABLE t(v)", "INSERT INTO t VALUES(1), (2)"]);
    let client = cluster.client();
    let _ = client
        .execute(cluster.address(0), &statements)
        .expect_success();
    cluster
}

fn get(cluster: &ProcessCluster, path: &str) -> Response {
    cluster.client().get(cluster.address(0), path).unwrap()
}

fn status(cluster: &ProcessCluster, key: &str) -> Value {
    let path = format!("/status?key={key}");
    cluster.client().json(cluster.address(0), &path).unwrap()
}

#[test]
fn status_has_what_clients_read() {
    let cluster = one_node(&["-fk", "-raft-snap=77"]);
    let whole = cluster
        .client()
        .json(cluster.address(0), "/status")
        .unwrap();
    let text = |path: &str| {
        let found = whole.pointer(path).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("{path} is no text in {whole}"))
    };
    for path in TEXTS {
        let _ = text(path);
    }
    for path in NUMBERS {
        let found = whole.pointer(path).and_then(Value::as_u64);
        assert!(found.is_some(), "{path} is no number in {whole}");
    }
    assert_eq!(text("/store/raft/state"), "Leader");
    assert_eq!(whole["store"]["raft"]["voter"], json!(true));
    assert_eq!(whole["store"]["db_conf"]["fk_constraints"], json!(true));
    assert_eq!(whole["store"]["snapshot_threshold"], json!(77));
    assert_eq!(whole["extensions"]["names"], json!([]));
    assert_eq!(
        whole["os"]["pid"],
        json!(cluster.process_id(0)),
        "the process itself answers"
    );
    let in_log: u64 = std::fs::read_dir(cluster.data_dir(0).join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(in_log > 0 && whole["store"]["dir_size"].as_u64().unwrap() >= in_log);
}

#[test]
fn status_says_how_sqlite_is_built_and_set() {
    let cluster = one_node(&["-fk"]);
    let sqlite = status(&cluster, "store.sqlite3");
    assert_eq!(sqlite["version"], json!(rusqlite::version()));
    let file = cluster.data_dir(0).join("db.sqlite");
    assert_eq!(sqlite["path"], json!(file.to_str().unwrap()));
    let options = sqlite["compile_options"].as_array();
    assert!(options.unwrap().contains(&json!("ENABLE_FTS5")));
    // Not opened a second time for this: the file still belongs to the node.
    let pragmas = |busy_timeout: &str| {
        json!({
            "busy_timeout": busy_timeout, "foreign_keys": "1", "journal_mode": "wal",
            "synchronous": "2", "wal_autocheckpoint": "0",
        })
    };
    assert_eq!(sqlite["pragmas"]["ro"], pragmas("5000"));
    assert_eq!(sqlite["pragmas"]["rw"], pragmas("0"));
}

#[test]
fn a_part_of_the_status_is_selected_exactly() {
    let cluster = one_node(&[]);
    assert_eq!(
        get(&cluster, "/status?key=store.raft.state").body,
        "\"Leader\""
    );
    for unknown in ["nope", "store.nope", "store.raft.state.nope", "", "store."] {
        let path = format!("/status?key={unknown}");
        assert_eq!(get(&cluster, &path).body, "{}", "{path}");
    }
    let pretty = get(&cluster, "/status?key=http.tls&pretty").body;
    assert_eq!(pretty, "{\n    \"enabled\": \"false\"\n}");
    let raft_id = status(&cluster, "store.raft_id");
    let whole = cluster
        .client()
        .json(cluster.address(0), "/status")
        .unwrap();
    assert_eq!(raft_id, whole["store"]["raft_id"]);
}

#[test]
fn variables_are_laid_out_as_go_does_and_count_what_happens() {
    let cluster = one_node(&[]);
    let address = cluster.address(0);
    let vars = || cluster.client().json(address, "/debug/vars").unwrap();
    let before = vars();
    for _ in 0..3 {
        cluster.client().query(address, "none", "SELECT 1").unwrap();
    }
    let _ = cluster
        .client()
        .execute_sql(address, "INSERT INTO t VALUES(3)")
        .expect_success();
    let _ = get(&cluster, "/readyz");
    let _ = get(&cluster, "/status");
    let after = vars();
    let grown = |map: &str, name: &str| {
        let count = |vars: &Value| {
            let found = vars[map][name].as_u64();
            found.unwrap_or_else(|| panic!("{map}.{name} is no counter in {vars}"))
        };
        count(&after) - count(&before)
    };
    for (map, name, expected) in [
        ("http", "executions", 1),
        ("http", "execute_stmts_rx", 1),
        ("http", "queries", 3),
        ("http", "query_stmts_rx", 3),
        ("http", "requests", 0),
        ("http", "num_readyz", 1),
        ("http", "num_status", 1),
        ("proxy", "remote_executions", 0),
        ("store", "num_joins", 0),
        ("wallaby", "grouped", 1),
        ("wallaby", "applied", 1),
    ] {
        assert_eq!(grown(map, name), expected, "{map}.{name}");
    }
    let words = after["cmdline"].as_array().unwrap();
    assert!(words.contains(&json!("-http-addr")), "{words:?}");
    let answer = get(&cluster, "/debug/vars?key=http");
    assert_eq!(answer.status, 200);
    assert!(
        answer.body.starts_with("{\n\"http\": {\"backups\": "),
        "{}",
        answer.body
    );
    assert!(answer.body.ends_with("}\n}\n"), "{}", answer.body);
    assert_eq!(answer.body.matches('\n').count(), 3);
    assert_eq!(get(&cluster, "/debug/vars?key=nope").body, "{\n\n}\n");
}

#[test]
fn what_is_handed_to_the_leader_is_counted_on_both_sides() {
    let mut cluster = ProcessCluster::start(2, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    let follower = 1 - leader;
    let vars = |node: usize| {
        let address = cluster.address(node);
        cluster.client().json(address, "/debug/vars").unwrap()
    };
    let before = (vars(leader), vars(follower));
    let address = cluster.address(follower);
    let _ = cluster
        .client()
        .execute_sql(address, "CREATE TABLE t(v)")
        .expect_success();
    cluster.client().query(address, "weak", "SELECT 1").unwrap();
    let after = (vars(leader), vars(follower));
    for (before, after, map, name) in [
        (&before.0, &after.0, "cluster", "num_execute_req"),
        (&before.0, &after.0, "cluster", "num_query_req"),
        (&before.1, &after.1, "proxy", "remote_executions"),
        (&before.1, &after.1, "proxy", "remote_queries"),
    ] {
        let count = |vars: &Value| vars[map][name].as_u64().unwrap();
        assert_eq!(count(after) - count(before), 1, "{map}.{name}");
    }
    let joins: u64 = [&after.0, &after.1]
        .iter()
        .map(|vars| vars["store"]["num_joins"].as_u64().unwrap())
        .sum();
    assert_eq!(joins, 1, "the second node has joined the first");
}

#[test]
fn licences_of_everything_that_is_linked_are_shown() {
    let cluster = one_node(&[]);
    let answer = get(&cluster, "/licenses");
    assert_eq!(answer.status, 200);
    for part in [
        "MIT or the Apache-2.0",
        "openraft 0.10",
        "SQLite is in the public domain",
    ] {
        assert!(answer.body.contains(part), "{part:?} is missing");
    }
}

#[test]
fn there_are_no_profiles() {
    let cluster = one_node(&[]);
    for path in [
        "/debug/pprof",
        "/debug/pprof/heap",
        "/debug/pprof/profile?seconds=1",
    ] {
        let answer = get(&cluster, path);
        assert_eq!(answer.status, 501, "{path}");
        assert_eq!(answer.body.lines().count(), 1, "{}", answer.body);
    }
}

const TEXTS: [&str; 38] = [
    "/build/version",
    "/cluster/addr",
    "/cluster/api_addr",
    "/cluster/https",
    "/http/auth",
    "/http/bind_addr",
    "/http/allow_origin",
    "/http/tls/enabled",
    "/node/current_time",
    "/node/start_time",
    "/node/uptime",
    "/os/executable",
    "/os/hostname",
    "/runtime/GOARCH",
    "/runtime/GOOS",
    "/store/addr",
    "/store/dir",
    "/store/election_timeout",
    "/store/fsm_update_time",
    "/store/heartbeat_timeout",
    "/store/leader/addr",
    "/store/leader/node_id",
    "/store/node_id",
    "/store/nodes/0/addr",
    "/store/nodes/0/id",
    "/store/nodes/0/suffrage",
    "/store/raft/applied_index",
    "/store/raft/commit_index",
    "/store/raft/last_log_index",
    "/store/raft/last_snapshot_index",
    "/store/raft/last_snapshot_term",
    "/store/raft/latest_configuration_index",
    "/store/raft/num_peers",
    "/store/raft/term",
    "/store/snapshot_interval",
    "/store/sqlite3/last_modified",
    "/store/sqlite3/path",
    "/store/sqlite3/version",
];

const NUMBERS: [&str; 12] = [
    "/os/page_size",
    "/os/pid",
    "/os/ppid",
    "/runtime/num_cpu",
    "/store/db_applied_index",
    "/store/dir_size",
    "/store/fsm_index",
    "/store/fsm_term",
    "/store/raft/log_size",
    "/store/sqlite3/db_size",
    "/store/sqlite3/size",
    "/store/sqlite3/wal_size",
];
