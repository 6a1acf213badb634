//! Statements that would run for ever, and clients that go away: what is left is a node that
//! serves, and answers that say what happened.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wal_tests::blunt;
use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};

/// Reads for ever.
const ENDLESS_READ: &str =
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";

/// Writes one row after having counted for ever: nothing piles up meanwhile.
const ENDLESS_WRITE: &str = "INSERT INTO t WITH RECURSIVE c(x) AS \
     (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";

fn node(nodes: usize, flags: &[&str]) -> ProcessCluster {
    let mut cluster = ProcessCluster::start(nodes, &Formation::Join, flags);
    let leader = cluster.wait_leader();
    let create = cluster
        .client()
        .execute_sql(cluster.address(leader), "CREATE TABLE t(v)");
    let _ = create.expect_success();
    cluster
}

/// Sends a request and leaves the connection open.
fn begin(address: &str, path: &str, sql: &str) -> TcpStream {
    let mut stream = blunt::connect(address, Duration::from_secs(60));
    let body = json!([sql]).to_string();
    stream
        .write_all(&blunt::post_bytes(address, path, &body))
        .unwrap();
    stream
}

/// Long enough for requests to be running.
fn let_them_run() {
    std::thread::sleep(Duration::from_millis(500));
}

/// Checks that a write and a read are served long before the endless requests would end by
/// themselves, which takes them half a minute.
#[track_caller]
fn assert_serves_at_once(cluster: &ProcessCluster, address: &str) {
    let start = Instant::now();
    let inserted = cluster
        .client()
        .execute(address, &json!(["INSERT INTO t VALUES('after')"]));
    let _ = inserted.expect_success();
    for level in ["none", "weak", "linearizable"] {
        let rows = cluster.client().query(address, level, "SELECT 1").unwrap();
        assert_eq!(rows, [[json!(1)]]);
    }
    println!("served after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[track_caller]
fn count(cluster: &ProcessCluster, address: &str, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM t WHERE {condition}");
    let rows = cluster.client().query(address, "linearizable", &sql);
    rows.unwrap()[0][0].as_i64().unwrap()
}

#[test]
fn endless_queries_of_clients_who_go_away_leave_the_readers_free() {
    // With these readers and no more, two endless queries would occupy all.
    let cluster = node(1, &["-db-max-ro-conns", "2"]);
    let address = cluster.address(0);
    let paths = [
        "/db/query?level=none",
        "/db/query?level=weak",
        "/db/query?level=linearizable",
        "/db/query?level=strong",
        "/db/request?level=none",
        "/db/request?level=weak",
        "/db/query?level=none&transaction",
        "/db/query?level=weak&associative",
    ];
    let clients = paths.map(|path| begin(address, path, ENDLESS_READ));
    let_them_run();
    drop(clients);
    assert_serves_at_once(&cluster, address);
    cluster.assert_healthy_logs();
}

#[test]
fn endless_queries_of_clients_who_stay_do_not_keep_others_out() {
    let cluster = node(1, &[]);
    let address = cluster.address(0);
    let clients: Vec<TcpStream> = (0..8)
        .map(|_| begin(address, "/db/query?level=none", ENDLESS_READ))
        .collect();
    let_them_run();
    assert_serves_at_once(&cluster, address);
    drop(clients);
}

#[test]
fn a_query_ends_with_its_time_and_says_so() {
    let cluster = node(1, &["-http-max-timeout", "700ms"]);
    let address = cluster.address(0);
    // Longer than the node grants, and not given at all, are both cut.
    for query in ["timeout=300ms", "timeout=100h", ""] {
        for level in ["none", "weak", "strong"] {
            let path = format!("/db/query?level={level}&{query}");
            let mut stream = begin(address, &path, ENDLESS_READ);
            let answer = blunt::read_answer(&mut stream);
            assert_eq!(answer.status, Some(504), "{path}: {}", answer.body);
            assert!(answer.body.contains("timed out"), "{}", answer.body);
            assert!(answer.body.contains("`timeout`"), "{}", answer.body);
        }
    }
    assert_serves_at_once(&cluster, address);
}

#[test]
fn the_time_for_finding_the_leader_is_not_the_time_of_the_query() {
    let cluster = node(1, &[]);
    let path = "/db/query?level=linearizable&linearizable_timeout=100ms&db_timeout=1s";
    let answer = blunt::read_answer(&mut begin(cluster.address(0), path, ENDLESS_READ));
    assert_eq!(answer.status, Some(200), "{}", answer.body);
    assert!(answer.body.contains("query timeout"), "{}", answer.body);
}

#[test]
fn an_endless_write_ends_with_its_client_and_leaves_nothing() {
    let cluster = node(1, &[]);
    let address = cluster.address(0);
    for path in [
        "/db/execute",
        "/db/execute?transaction",
        "/db/request",
        "/db/request?transaction",
    ] {
        drop(begin(address, path, ENDLESS_WRITE));
        let client = begin(address, path, ENDLESS_WRITE);
        let_them_run();
        drop(client);
        assert_serves_at_once(&cluster, address);
    }
    assert_eq!(count(&cluster, address, "v <> 'after'"), 0);
    cluster.assert_healthy_logs();
}

#[test]
fn an_endless_write_ends_with_its_time_and_is_certainly_not_committed() {
    let cluster = node(1, &[]);
    let address = cluster.address(0);
    let statements = json!(["INSERT INTO t VALUES('mine')", ENDLESS_WRITE]).to_string();
    for path in ["/db/execute", "/db/execute?transaction", "/db/request"] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}timeout=400ms");
        let bytes = blunt::post_bytes(address, &path, &statements);
        let answer = blunt::exchange(address, &bytes, Duration::from_secs(60));
        assert_eq!(answer.status, Some(503), "{}", answer.body);
        let safe = "safe to send the request again";
        assert!(answer.body.contains(safe), "{}", answer.body);
        assert_serves_at_once(&cluster, address);
    }
    assert_eq!(count(&cluster, address, "v = 'mine'"), 0);
}

#[test]
fn the_neighbours_of_an_interrupted_write_keep_their_answers() {
    let cluster = node(1, &[]);
    let address = cluster.address(0);
    let ended = AtomicBool::new(false);
    let acknowledged: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6)
            .map(|writer| {
                let (cluster, ended) = (&cluster, &ended);
                scope.spawn(move || {
                    let mut inserted = 0;
                    while !ended.load(Ordering::Relaxed) {
                        let text = format!("{writer}/{inserted}");
                        let sql = json!([["INSERT INTO t VALUES(?)", text]]);
                        let answer = cluster.client().execute(address, &sql);
                        let _ = answer.expect_success();
                        inserted += 1;
                    }
                    inserted
                })
            })
            .collect();
        for _ in 0..20 {
            let client = begin(address, "/db/execute", ENDLESS_WRITE);
            std::thread::sleep(Duration::from_millis(60));
            drop(client);
        }
        ended.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    println!("{acknowledged} inserts beside 20 endless ones");
    let found = count(&cluster, address, "v LIKE '%/%'");
    assert_eq!(usize::try_from(found).unwrap(), acknowledged);
    assert_eq!(count(&cluster, address, "v NOT LIKE '%/%'"), 0);
    cluster.assert_healthy_logs();
}

#[test]
fn what_a_follower_hands_on_ends_with_its_client_too() {
    let mut cluster = node(3, &["-db-max-ro-conns", "2"]);
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    let (address, through) = (cluster.address(leader), cluster.address(follower));
    let clients = [
        begin(through, "/db/query?level=weak", ENDLESS_READ),
        begin(through, "/db/query?level=strong", ENDLESS_READ),
        begin(through, "/db/request?level=weak", ENDLESS_READ),
        begin(through, "/db/execute", ENDLESS_WRITE),
        begin(through, "/db/request", ENDLESS_WRITE),
    ];
    let_them_run();
    drop(clients);
    assert_serves_at_once(&cluster, address);
    assert_serves_at_once(&cluster, through);
    // And with its time: the leader's own answer is handed back.
    for (path, sql, status) in [
        ("/db/query?timeout=400ms", ENDLESS_READ, 504),
        ("/db/execute?timeout=400ms", ENDLESS_WRITE, 503),
    ] {
        let answer = blunt::read_answer(&mut begin(through, path, sql));
        assert_eq!(answer.status, Some(status), "{path}: {}", answer.body);
    }
    assert_serves_at_once(&cluster, through);
    assert_eq!(count(&cluster, address, "v <> 'after'"), 0);
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn an_answer_that_is_too_large_names_the_flag() {
    let cluster = node(1, &["-http-max-response", "1000000"]);
    let address = cluster.address(0);
    let rows = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
    let ask = |path: &str, sql: &str| {
        let body = json!([sql]).to_string();
        let answer = cluster
            .client()
            .post(address, path, "application/json", body.as_bytes())
            .unwrap();
        let parsed: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let error = parsed["results"][0]["error"].as_str();
        (answer.status, error.unwrap_or(&answer.body).to_owned())
    };
    for path in ["/db/query", "/db/query?level=none", "/db/request"] {
        let (status, error) = ask(path, rows);
        assert_eq!(status, 200, "{error}");
        assert!(error.contains("-http-max-response"), "{error}");
    }
    // Few bytes in memory, many in JSON.
    let name = "n".repeat(1000);
    let wide = format!(
        "{} LIMIT 2000",
        rows.replace("x FROM c", &format!("x AS {name} FROM c"))
    );
    let (status, error) = ask("/db/query?associative", &wide);
    assert_eq!(status, 500);
    assert!(error.contains("-http-max-response"), "{error}");
    let Outcome::Answered(_) = cluster.client().execute_sql(address, "DELETE FROM t") else {
        panic!("the node serves");
    };
}
