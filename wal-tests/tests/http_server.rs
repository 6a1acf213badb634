//! The HTTP interface of real processes, byte for byte where rqlite's clients depend on it: paths,
//! methods, headers, limits, and the forms of errors that SQLite itself reports.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};

const JSON: &str = "application/json; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer as it came over the connection.
struct Raw {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Sends one request with these header lines and this body, and reads the answer to its end.
fn send(address: &str, line: &str, headers: &[&str], body: &[u8]) -> Raw {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut head = format!("{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has refused the head may close before it has read the body.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    Raw {
        status: status.parse().unwrap(),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    }
}

fn call(address: &str, line: &str) -> Raw {
    send(address, line, &[], b"")
}

fn post(address: &str, path: &str, body: &str) -> Raw {
    let length = format!("Content-Length: {}", body.len());
    let headers = ["Content-Type: application/json", &length];
    send(address, &format!("POST {path}"), &headers, body.as_bytes())
}

#[test]
fn paths_and_methods_are_answered_as_rqlite_does() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let address = cluster.address(0);
    for (line, status, content_type) in [
        ("GET /nowhere", 404, None),
        ("POST /nowhere", 404, None),
        ("GET /db", 404, None),
        ("GET /wallaby/images", 404, None),
        ("GET /db/execute", 405, Some(JSON)),
        ("DELETE /db/query", 405, Some(JSON)),
        ("GET /db/request", 405, Some(JSON)),
        ("POST /status", 405, Some(JSON)),
        ("PUT /nodes", 405, Some(JSON)),
        ("POST /readyz", 405, None),
        ("OPTIONS /db/execute", 200, None),
        ("OPTIONS /nowhere", 200, None),
    ] {
        let answer = call(address, line);
        assert_eq!(answer.status, status, "{line}");
        assert_eq!(answer.body, "", "{line}");
        assert_eq!(answer.header("content-type"), content_type, "{line}");
        let version = answer.header("x-rqlite-version");
        assert!(version.is_some_and(|version| !version.is_empty()), "{line}");
        assert_eq!(
            answer.header("access-control-allow-methods"),
            Some("OPTIONS, GET, POST"),
            "{line}"
        );
        assert_eq!(
            answer.header("access-control-allow-headers"),
            Some("Content-Type"),
            "{line}"
        );
        assert_eq!(answer.header("access-control-allow-origin"), None, "{line}");
        assert_eq!(answer.header("x-rqlite-served-by"), None, "{line}");
    }
    // Prefixes are enough, and parameters are judged before the path.
    assert_eq!(
        call(address, "GET /db/queryandmore?q=SELECT%201").status,
        200
    );
    let wrong = call(address, "GET /nowhere?timeout=soon");
    assert_eq!(wrong.status, 400, "{}", wrong.body);
    assert_eq!(wrong.header("content-type"), Some(PLAIN));
    assert_eq!(wrong.header("x-content-type-options"), Some("nosniff"));
    assert!(wrong.body.ends_with('\n'), "{:?}", wrong.body);
    cluster.assert_healthy_logs();
}

#[test]
fn the_node_that_ran_the_statements_is_named() {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    let address = cluster.address(leader).to_owned();
    let raft = cluster.client().json(&address, "/status?key=cluster.addr");
    let raft = raft.unwrap().as_str().unwrap().to_owned();
    let create = post(&address, "/db/execute", r#"["CREATE TABLE t(v)"]"#);
    assert_eq!(
        (create.status, create.body.as_str()),
        (200, r#"{"results":[{}]}"#)
    );
    for node in 0..3 {
        let asked = cluster.address(node);
        let (insert, select) = (r#"["INSERT INTO t VALUES(1)"]"#, r#"["SELECT 1"]"#);
        // The leader names itself by its HTTP address, a follower names the leader by its Raft one.
        let through = if node == leader { &address } else { &raft };
        for (path, body, served_by) in [
            ("/db/execute", insert, through.as_str()),
            ("/db/request", insert, through),
            ("/db/query", select, through),
            ("/db/query?level=strong", select, through),
            ("/db/query?level=none", select, asked),
        ] {
            let answer = post(asked, path, body);
            assert_eq!(answer.status, 200, "{path} {}", answer.body);
            assert_eq!(answer.header("content-type"), Some(JSON));
            assert_eq!(
                answer.header("x-rqlite-served-by"),
                Some(served_by),
                "{path} on node {node}, leader {leader}"
            );
        }
    }
    cluster.assert_healthy_logs();
}

/// What one failed statement is answered.
fn failed(error: &str) -> String {
    format!(r#"{{"results":[{{"error":"{error}"}}]}}"#)
}

/// One node with two tables and one row.
fn node_with_tables() -> ProcessCluster {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let statements = r#"["CREATE TABLE foo (id INTEGER NOT NULL PRIMARY KEY, name TEXT)",
        "CREATE TABLE nn (a INTEGER NOT NULL CHECK (a>0))",
        "INSERT INTO foo VALUES(1, \"fiona\")"]"#;
    let created = post(cluster.address(0), "/db/execute", statements);
    let expected = r#"{"results":[{},{},{"last_insert_id":1,"rows_affected":1}]}"#;
    assert_eq!(created.body, expected);
    cluster
}

#[test]
fn errors_of_sqlite_have_the_form_that_rqlite_gives_them() {
    let cluster = node_with_tables();
    let (execute, query) = ("/db/execute", "/db/query");
    for (path, sql, error) in [
        (execute, "blah", r#"near \"blah\": syntax error"#),
        (execute, "SELECT (", "incomplete input"),
        (execute, "INSERT INTO bar VALUES(1)", "no such table: bar"),
        (
            execute,
            "INSERT INTO nn VALUES(NULL)",
            "NOT NULL constraint failed: nn.a",
        ),
        (
            execute,
            "INSERT INTO nn VALUES(-1)",
            r"CHECK constraint failed: a\u003e0",
        ),
        (execute, "CREATE TABLE foo (x)", "table foo already exists"),
        (
            "/db/execute?transaction",
            "VACUUM",
            "cannot VACUUM from within a transaction",
        ),
        (query, "SELECT * FROM nope", "no such table: nope"),
        (
            "/db/request?associative",
            "SELECT * FROM nope",
            "no such table: nope",
        ),
        (
            query,
            "DELETE FROM foo",
            "attempt to change database via query operation",
        ),
    ] {
        let answer = post(cluster.address(0), path, &json!([sql]).to_string());
        let expected = (200, failed(error));
        assert_eq!((answer.status, answer.body), expected, "{path} {sql}");
    }
    cluster.assert_healthy_logs();
}

#[test]
fn what_follows_a_failed_statement_depends_on_the_transaction() {
    let cluster = node_with_tables();
    let violated = r#"{"error":"UNIQUE constraint failed: foo.id"}"#;
    let written = |id: u32| format!(r#"{{"last_insert_id":{id},"rows_affected":1}}"#);
    for (path, body, expected) in [
        (
            "/db/execute",
            r#"["INSERT INTO foo VALUES(1, 'again')", "INSERT INTO foo VALUES(2, 'after')"]"#,
            format!(r#"{{"results":[{violated},{}]}}"#, written(2)),
        ),
        (
            "/db/execute?transaction",
            r#"["INSERT INTO foo VALUES(7, 'x')", "INSERT INTO foo VALUES(1, 'again')", "blah"]"#,
            format!(r#"{{"results":[{},{violated}]}}"#, written(7)),
        ),
        (
            "/db/query",
            r#"["SELECT max(id) AS id FROM foo"]"#,
            r#"{"results":[{"columns":["id"],"types":["integer"],"values":[[2]]}]}"#.to_owned(),
        ),
        (
            "/db/query?associative",
            r#"["SELECT * FROM nope"]"#,
            r#"{"results":[{"rows":[],"error":"no such table: nope"}]}"#.to_owned(),
        ),
        (
            "/db/execute",
            r#"["PRAGMA journal_mode=DELETE"]"#,
            r#"{"results":[],"error":"disallowed pragma"}"#.to_owned(),
        ),
    ] {
        let answer = post(cluster.address(0), path, body);
        assert_eq!(
            (answer.status, answer.body),
            (200, expected),
            "{path} {body}"
        );
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_body_over_the_limit_is_refused_however_its_length_is_told() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &["-http-max-body", "4096"]);
    let address = cluster.address(0);
    let fits = format!("[\"SELECT '{}'\"]", "x".repeat(4000));
    assert_eq!(post(address, "/db/query", &fits).status, 200);
    let large = format!("[\"SELECT '{}'\"]", "x".repeat(5000));
    assert_eq!(post(address, "/db/query", &large).status, 413);
    // Announced only, and never sent: the announcement is enough to refuse it.
    let announced = ["Content-Length: 1000000000000"];
    assert_eq!(
        send(address, "POST /db/execute", &announced, b"").status,
        413
    );
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let chunked = ["Transfer-Encoding: chunked"];
    let answer = send(address, "POST /db/execute", &chunked, chunk.as_bytes());
    assert_eq!(answer.status, 413);
    assert_eq!(post(address, "/db/query", &fits).status, 200);
    cluster.assert_healthy_logs();
}

#[test]
fn every_node_describes_itself_and_the_others() {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    for node in 0..3 {
        let address = cluster.address(node).to_owned();
        for (path, body) in [
            ("/readyz", "[+]node ok\n[+]leader ok\n[+]store ok\n[+]db ok"),
            (
                "/readyz?sync",
                "[+]node ok\n[+]leader ok\n[+]store ok\n[+]sync ok\n[+]db ok",
            ),
            ("/readyz?noleader", "[+]node ok"),
        ] {
            let answer = call(&address, &format!("GET {path}"));
            assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
            assert_eq!(answer.header("content-type"), Some(PLAIN));
        }
        let status = |key: &str| {
            let path = format!("/status?key={key}");
            cluster.client().json(&address, &path).unwrap()
        };
        let state = if node == leader { "Leader" } else { "Follower" };
        assert_eq!(status("store.raft.state"), state);
        assert_eq!(status("store.raft.voter"), true);
        assert_eq!(status("store.raft.num_peers"), "2");
        assert_eq!(status("store.node_id"), format!("node{}", node + 1));
        assert_eq!(
            status("store.leader.node_id"),
            format!("node{}", leader + 1)
        );
        assert_eq!(status("store.ready"), true);
        assert_eq!(status("store.nodes").as_array().unwrap().len(), 3);
        assert_eq!(status("http.bind_addr"), address.as_str());
        assert_eq!(status("no.such.key"), json!({}));
        let nodes = call(&address, "GET /nodes?nonvoters&ver=2");
        assert_eq!(
            (nodes.status, nodes.header("content-type")),
            (200, Some(JSON))
        );
        let nodes: Value = serde_json::from_str(&nodes.body).unwrap();
        for (position, entry) in nodes["nodes"].as_array().unwrap().iter().enumerate() {
            assert_eq!(entry["id"], format!("node{}", position + 1));
            assert_eq!(entry["leader"], position == leader);
            assert_eq!(
                (&entry["voter"], &entry["reachable"]),
                (&json!(true), &json!(true))
            );
            let api = format!("http://{}", cluster.address(position));
            assert_eq!(entry["api_addr"], api);
            assert!(
                entry["time"].is_f64() && entry["time_s"].is_string(),
                "{entry}"
            );
        }
    }
    cluster.assert_healthy_logs();
}

#[test]
fn nodes_without_a_quorum_say_so() {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    let (other, left) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(other);
    let address = cluster.address(left).to_owned();
    let nodes = cluster
        .client()
        .json(&address, "/nodes?timeout=2s")
        .unwrap();
    let gone = &nodes[format!("node{}", other + 1)];
    assert_eq!(
        (&gone["reachable"], &gone["version"], &gone["leader"]),
        (&json!(false), &json!(""), &json!(false)),
        "{nodes}"
    );
    assert!(
        gone["error"].is_string() && gone["time"].is_null(),
        "{gone}"
    );
    cluster.pause(leader);
    // At first the node still takes the silent one for the leader, then it knows of none.
    cluster.wait("the node to be not ready", |_| {
        let answer = call(&address, "GET /readyz?timeout=500ms");
        let known = [
            "[+]node ok\n[+]leader not contactable: ",
            "[+]node ok\n[+]leader does not exist",
        ];
        match (
            answer.status,
            known.iter().any(|text| answer.body.starts_with(text)),
        ) {
            (503, true) => Ok(()),
            _ => Err(format!("{} {}", answer.status, answer.body)),
        }
    });
    assert_eq!(call(&address, "GET /readyz?noleader").status, 200);
    let local = post(&address, "/db/query?level=none", r#"["SELECT 1"]"#);
    assert_eq!(local.status, 200, "{}", local.body);
    cluster.wait("writes to be refused", |_| {
        let insert = r#"["CREATE TABLE t(v)"]"#;
        let answer = post(&address, "/db/execute?timeout=500ms", insert);
        match (answer.status, answer.body.as_str()) {
            (503, "leader not found\n") => Ok(()),
            _ => Err(format!("{} {}", answer.status, answer.body)),
        }
    });
    cluster.resume(leader);
    cluster.wait_ready(left);
    cluster.assert_healthy_logs();
}
