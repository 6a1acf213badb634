//! What a real node answers to statements where rqlite's answer depends on more than one layer:
//! qualified columns, `/db/sql`, time limits, transactions and dumps, through every endpoint.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use wal_tests::client::Response;
use wal_tests::cluster::{Formation, ProcessCluster};

const JSON: &str = "application/json";

/// A cluster with table `foo` and two rows.
fn with_foo(nodes: usize, flags: &[&str]) -> ProcessCluster {
    let cluster = ProcessCluster::start(nodes, &Formation::Join, flags);
    let create = json!([
        "CREATE TABLE foo (id INTEGER NOT NULL PRIMARY KEY, name TEXT, age INTEGER)",
        "INSERT INTO foo(name, age) VALUES('fiona', 20), ('declan', NULL)",
    ]);
    let created = post(&cluster, 0, "/db/execute", &create.to_string());
    assert_eq!(
        created,
        r#"{"results":[{},{"last_insert_id":2,"rows_affected":2}]}"#
    );
    cluster
}

fn send(cluster: &ProcessCluster, node: usize, path: &str, kind: &str, body: &str) -> Response {
    let address = cluster.address(node);
    cluster
        .client()
        .post(address, path, kind, body.as_bytes())
        .unwrap()
}

/// The body of an answer with status 200.
#[track_caller]
fn post(cluster: &ProcessCluster, node: usize, path: &str, body: &str) -> String {
    let answer = send(cluster, node, path, JSON, body);
    assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
    answer.body
}

/// Checks that one statement is answered with these results, on each of the endpoints.
#[track_caller]
fn check(cluster: &ProcessCluster, path: &str, sql: &str, result: &str) {
    for node in 0..cluster.size() {
        let body = post(cluster, node, path, &json!([sql]).to_string());
        assert_eq!(
            body,
            format!("{{\"results\":[{result}]}}"),
            "{path} {sql} on node {node}"
        );
    }
}

#[test]
fn columns_are_qualified_on_every_node_by_the_table_they_come_from() {
    let cluster = with_foo(3, &[]);
    let (sql, join) = (
        "SELECT name, count(*) AS c, 1+1 FROM foo WHERE id=1",
        "SELECT a.name, b.name FROM foo a JOIN foo b WHERE a.id=1 AND b.id=2",
    );
    for path in [
        "/db/query?qualify_columns",
        "/db/query?qualify_columns&level=none",
        "/db/request?qualify_columns",
    ] {
        check(
            &cluster,
            path,
            sql,
            concat!(
                r#"{"columns":["foo.name","c","1+1"],"types":["text","integer","integer"],"#,
                r#""values":[["fiona",1,2]]}"#
            ),
        );
        check(
            &cluster,
            path,
            join,
            concat!(
                r#"{"columns":["foo.name","foo.name"],"types":["text","text"],"#,
                r#""values":[["fiona","declan"]]}"#
            ),
        );
        let associative = path.replace("qualify", "associative&qualify");
        check(
            &cluster,
            &associative,
            join,
            r#"{"types":{"foo.name":"text"},"rows":[{"foo.name":"declan"}]}"#,
        );
    }
    let with_write = json!([
        "INSERT INTO foo(id) VALUES(9)",
        "SELECT id FROM foo WHERE id=9"
    ]);
    assert_eq!(
        post(
            &cluster,
            1,
            "/db/request?qualify_columns",
            &with_write.to_string()
        ),
        concat!(
            r#"{"results":[{"last_insert_id":9,"rows_affected":1},"#,
            r#"{"columns":["foo.id"],"types":["integer"],"values":[[9]]}]}"#
        )
    );
    cluster.assert_healthy_logs();
}

#[test]
fn the_sql_endpoint_says_that_nothing_is_rewritten_and_what_is_not_sql() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let statements = json!([
        "INSERT INTO foo(age) VALUES(random())",
        ["SELECT datetime('now'), ?", 1],
        "bad sql",
        "SELECT (",
        "SELECT 'a<b",
        "PRAGMA temp_store_directory='/nowhere'",
        "",
    ]);
    let same = |sql: &str| format!(r#"{{"original":"{sql}","rewritten":"{sql}"}}"#);
    let expected = [
        same("INSERT INTO foo(age) VALUES(random())"),
        same("SELECT datetime('now'), ?"),
        r#"{"original":"bad sql","error":"near \"bad\": syntax error"}"#.to_owned(),
        r#"{"original":"SELECT (","error":"incomplete input"}"#.to_owned(),
        r#"{"original":"SELECT 'a\u003cb","error":"unrecognized token: \"'a\u003cb\""}"#.to_owned(),
        same("PRAGMA temp_store_directory='/nowhere'"),
        same(""),
    ];
    for path in ["/db/sql", "/db/sql?norwrandom&norwtime&noparse"] {
        let body = post(&cluster, 0, path, &statements.to_string());
        assert_eq!(
            body,
            format!("{{\"results\":[{}]}}", expected.join(",")),
            "{path}"
        );
    }
    let get = |path: &str| {
        let answer = cluster.client().get(cluster.address(0), path).unwrap();
        (answer.status, answer.body)
    };
    let one = "{\"results\":[{\"original\":\"SELECT 1\",\"rewritten\":\"SELECT 1\"}]}";
    assert_eq!(get("/db/sql?q=SELECT%201"), (200, one.to_owned()));
    assert_eq!(get("/db/sql"), (400, "query not specified\n".to_owned()));
    assert_eq!(
        get("/db/sql?q="),
        (400, "query parameter not set\n".to_owned())
    );
    let wrong = send(&cluster, 0, "/db/sql", JSON, "{}");
    assert_eq!(
        (wrong.status, wrong.body.as_str()),
        (400, "invalid request\n")
    );
    cluster.assert_healthy_logs();
}

#[test]
fn returning_and_explain_are_recognised_by_sqlite_whatever_the_text_and_the_endpoint() {
    let cluster = with_foo(1, &[]);
    let row = |id: u32| format!(r#"{{"columns":["id"],"types":["integer"],"values":[[{id}]]}}"#);
    let insert = "INSERT INTO foo(name) VALUES('x')";
    let mut id = 2;
    for path in [
        "/db/execute",
        "/db/execute?noparse",
        "/db/request",
        "/db/request?transaction",
    ] {
        for sql in [
            format!("{insert} RETURNING\nid"),
            format!("{insert} returning/**/id;"),
            format!("WITH a AS (SELECT 1) {insert} RETURNING id -- c"),
            format!("DELETE FROM foo WHERE id=-1; {insert} RETURNING id"),
        ] {
            id += 1;
            check(&cluster, path, &sql, &row(id));
        }
        id += 1;
        let associative = format!(
            "{path}{}associative",
            if path.contains('?') { "&" } else { "?" }
        );
        let rows = format!(r#"{{"types":{{"id":"integer"}},"rows":[{{"id":{id}}}]}}"#);
        check(
            &cluster,
            &associative,
            &format!("{insert} RETURNING id"),
            &rows,
        );
        id += 2;
        let counters = format!(r#"{{"last_insert_id":{id},"rows_affected":1}}"#);
        check(
            &cluster,
            path,
            &format!("{insert} RETURNING id; {insert}"),
            &counters,
        );
    }
    let refused = r#"{"error":"attempt to change database via query operation"}"#;
    check(
        &cluster,
        "/db/query",
        &format!("{insert} RETURNING id"),
        refused,
    );
    let columns = r#""columns":["id","parent","notused","detail"]"#;
    let plan = format!(r#"{{{columns},"types":["","","",""]}}"#);
    let counters = format!(r#"{{"last_insert_id":{id},"rows_affected":1}}"#);
    for (path, result) in [
        ("/db/query", &plan),
        ("/db/request", &plan),
        ("/db/execute", &counters),
    ] {
        check(
            &cluster,
            path,
            &format!("EXPLAIN QUERY PLAN {insert}"),
            result,
        );
    }
    let explained = post(
        &cluster,
        0,
        "/db/query",
        &json!([format!("EXPLAIN {insert}")]).to_string(),
    );
    assert!(
        explained.contains("\"opcode\"") && explained.contains("\"Insert\""),
        "{explained}"
    );
    check(
        &cluster,
        "/db/query",
        "SELECT max(id) AS id FROM foo",
        &format!(r#"{{"columns":["id"],"types":["integer"],"values":[[{id}]]}}"#),
    );
    cluster.assert_healthy_logs();
}

#[test]
fn a_time_limit_ends_one_statement_and_one_that_is_over_at_once_the_request() {
    let cluster = with_foo(1, &[]);
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c)";
    let (read, write) = (
        format!("{endless} SELECT count(*) FROM c"),
        format!("{endless} INSERT INTO foo(age) SELECT x FROM c"),
    );
    let one = r#"{"columns":["1"],"types":["integer"],"values":[[1]]}"#;
    for (path, texts, results) in [
        (
            "/db/query",
            json!([read, "SELECT 1"]),
            format!(r#"{{"error":"query timeout"}},{one}"#),
        ),
        (
            "/db/execute",
            json!([write]),
            r#"{"error":"execute timeout"}"#.to_owned(),
        ),
        (
            "/db/request",
            json!([write, read, "SELECT 1"]),
            format!(r#"{{"error":"execute timeout"}},{{"error":"query timeout"}},{one}"#),
        ),
    ] {
        let limited = post(
            &cluster,
            0,
            &format!("{path}?db_timeout=50ms"),
            &texts.to_string(),
        );
        assert_eq!(limited, format!("{{\"results\":[{results}]}}"), "{path}");
        let at_once = post(
            &cluster,
            0,
            &format!("{path}?db_timeout=1ns"),
            r#"["SELECT 1"]"#,
        );
        assert_eq!(
            at_once, r#"{"results":[],"error":"context deadline exceeded"}"#,
            "{path}"
        );
    }
    check(
        &cluster,
        "/db/query",
        "SELECT count(*) AS n FROM foo",
        r#"{"columns":["n"],"types":["integer"],"values":[[2]]}"#,
    );
    cluster.assert_healthy_logs();
}

#[test]
fn values_that_json_or_rqlite_cannot_express_do_not_spoil_the_answer() {
    let cluster = with_foo(1, &[]);
    for (path, sql, result) in [
        (
            "/db/query",
            "SELECT 9e999 AS a, -9e999 AS b, 1 AS c",
            r#"{"columns":["a","b","c"],"types":["real","real","integer"],"values":[[null,null,1]]}"#,
        ),
        (
            "/db/query?blob_array",
            "SELECT x'deadbeef' AS a, zeroblob(2) AS b",
            r#"{"columns":["a","b"],"types":["blob","blob"],"values":[[[222,173,190,239],[0,0]]]}"#,
        ),
        (
            "/db/query",
            "SELECT 'a' AS a UNION ALL SELECT x'ff'",
            r#"{"columns":["a"],"types":["text"],"values":[["a"],["/w=="]]}"#,
        ),
    ] {
        check(&cluster, path, sql, result);
    }
    // A committed write is never reported as failed because of what it returns.
    check(
        &cluster,
        "/db/execute",
        "INSERT INTO foo(id, age) VALUES(5, 9e999) RETURNING age",
        r#"{"columns":["age"],"types":["integer"],"values":[[null]]}"#,
    );
    check(
        &cluster,
        "/db/query",
        "SELECT id FROM foo WHERE age > 1e308",
        r#"{"columns":["id"],"types":["integer"],"values":[[5]]}"#,
    );
    cluster.assert_healthy_logs();
}

/// As the SQLite shell writes it: the referring table first.
const DUMP: &str = "PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent(id));
INSERT INTO child VALUES(1,7);
CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO parent VALUES(7,'a;b');
COMMIT;
";

#[test]
fn a_dump_loads_as_text_as_one_string_and_line_by_line_with_and_without_foreign_keys() {
    for flags in [&["-fk"][..], &[]] {
        let cluster = ProcessCluster::start(1, &Formation::Join, flags);
        for form in ["text", "string", "lines"] {
            let anew = r#"["DROP TABLE IF EXISTS child", "DROP TABLE IF EXISTS parent"]"#;
            let dropped = post(&cluster, 0, "/db/execute", anew);
            assert!(!dropped.contains("error"), "{dropped}");
            let lines: Vec<&str> = DUMP.lines().collect();
            let answer = match form {
                "text" => send(&cluster, 0, "/db/execute", "text/plain", DUMP),
                "string" => send(&cluster, 0, "/db/execute", JSON, &json!([DUMP]).to_string()),
                _ => send(&cluster, 0, "/db/execute", JSON, &json!(lines).to_string()),
            };
            assert_eq!(answer.status, 200);
            assert!(
                !answer.body.contains("error"),
                "{flags:?} {form}: {}",
                answer.body
            );
            check(
                &cluster,
                "/db/query",
                "SELECT name FROM child JOIN parent ON parent = parent.id",
                r#"{"columns":["name"],"types":["text"],"values":[["a;b"]]}"#,
            );
            let orphan = if flags.is_empty() {
                r#"{"last_insert_id":2,"rows_affected":1}"#
            } else {
                r#"{"error":"FOREIGN KEY constraint failed"}"#
            };
            check(
                &cluster,
                "/db/execute",
                "INSERT INTO child VALUES(2, 99)",
                orphan,
            );
            let on = if flags.is_empty() {
                "{\"error\":\"not authorized: foreign keys are enforced by all connections or by \
                 none: start the nodes with -fk\"}"
            } else {
                r#"{"last_insert_id":7}"#
            };
            check(&cluster, "/db/execute", "PRAGMA foreign_keys = 1", on);
        }
        cluster.assert_healthy_logs();
    }
}

#[test]
fn a_transaction_lives_within_one_request_and_not_beyond_it() {
    let mut cluster = with_foo(3, &[]);
    let follower = (cluster.wait_leader() + 1) % 3;
    let insert = |id: u32| format!("INSERT INTO foo(id) VALUES({id})");
    let run =
        |path: &str, texts: &[&str]| post(&cluster, follower, path, &json!(texts).to_string());
    let counters = |id: u32| format!(r#"{{"last_insert_id":{id},"rows_affected":1}}"#);
    let old = r#"{"last_insert_id":2,"rows_affected":2}"#;
    assert_eq!(
        run("/db/execute", &["BEGIN", &insert(3), "COMMIT"]),
        format!("{{\"results\":[{old},{},{}]}}", counters(3), counters(3))
    );
    let left = run("/db/request", &[&insert(4), "BEGIN", &insert(5)]);
    assert!(left.starts_with(&format!(
        "{{\"results\":[{},{{\"error\":\"rolled back, ",
        counters(4)
    )));
    // The next request is not part of it: its write stays, and there is nothing to commit.
    assert_eq!(
        run("/db/execute", &[&insert(6)]),
        format!("{{\"results\":[{}]}}", counters(6))
    );
    let commit = run("/db/execute", &["COMMIT"]);
    assert!(
        commit.contains("explicit transactions cannot span requests: "),
        "{commit}"
    );
    assert_eq!(
        run("/db/query", &["BEGIN", "SELECT 1", "COMMIT"]),
        r#"{"results":[{},{"columns":["1"],"types":["integer"],"values":[[1]]},{}]}"#
    );
    let ids = "SELECT group_concat(id) AS ids FROM foo";
    assert_eq!(
        run("/db/query", &[ids]),
        r#"{"results":[{"columns":["ids"],"types":["text"],"values":[["1,2,3,4,6"]]}]}"#
    );
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
