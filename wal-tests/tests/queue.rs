//! Queued writes, from outside: accepted, batched, sent, and what goes wrong on the way.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use wal_tests::client::{Client, Response};
use wal_tests::cluster::{Formation, ProcessCluster};

const JSON: &str = "application/json";

fn queue(address: &str, options: &str, body: &str) -> Response {
    let client = Client::new(Duration::from_secs(60));
    let path = format!("/db/execute?queue{options}");
    client.post(address, &path, JSON, body.as_bytes()).unwrap()
}

/// The number in the answer of an accepted request, whose body is checked byte by byte.
#[track_caller]
fn number(response: &Response) -> u64 {
    let digits = response
        .body
        .strip_prefix("{\"results\":[],\"sequence_number\":")
        .and_then(|rest| rest.strip_suffix('}'));
    let digits = digits.unwrap_or_else(|| panic!("{response:?}"));
    assert_eq!(response.status, 200);
    digits.parse().unwrap()
}

fn count(cluster: &ProcessCluster, node: usize) -> i64 {
    let rows = cluster
        .client()
        .query(cluster.address(node), "strong", "SELECT count(*) FROM t");
    rows.unwrap()[0][0].as_i64().unwrap()
}

fn create(cluster: &ProcessCluster) {
    let sql = "CREATE TABLE t(v INTEGER)";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), sql)
        .expect_success();
}

fn insert(value: usize) -> String {
    format!("[[\"INSERT INTO t VALUES(?)\",{value}]]")
}

#[test]
fn accepted_requests_are_numbered_and_what_is_no_request_is_refused_at_once() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let address = cluster.address(0);
    create(&cluster);
    let first = number(&queue(address, "", &insert(1)));
    assert_eq!(number(&queue(address, "", &insert(2))), first + 1);
    assert_eq!(number(&queue(address, "&wait", &insert(3))), first + 2);
    assert_eq!(count(&cluster, 0), 3, "all before the one waited for");
    assert_eq!(number(&queue(address, "", &insert(4))), first + 3);
    assert_eq!(number(&queue(address, "&wait", "[]")), first + 4);
    assert_eq!(count(&cluster, 0), 4, "nothing to write waits as well");
    for (options, body, refusal) in [
        ("", "[]", "no statements\n"),
        ("", "", "invalid JSON body\n"),
        ("&wait", "", "invalid JSON body\n"),
        ("", "garbage", "invalid JSON body\n"),
        ("&wait", "{}", "invalid request\n"),
        ("", "[1]", "invalid request\n"),
        ("", "[[\"SQL\",[300]]]", "unsupported type 300\n"),
        ("&timeout=5", "[]", "timeout is not a valid duration\n"),
    ] {
        let response = queue(address, options, body);
        let seen = (response.status, response.body.as_str());
        assert_eq!(seen, (400, refusal), "{options} {body:?}");
    }
    let plain = cluster.client().post(
        address,
        "/db/execute?queue",
        "text/plain",
        b"INSERT INTO t VALUES(5)",
    );
    assert_eq!(plain.unwrap().body, "invalid JSON body\n");
    let next = number(&queue(address, "&wait", &insert(5)));
    assert_eq!(next, first + 5, "what is refused has no number");
    let status = cluster
        .client()
        .json(address, "/status?key=http.queue._default");
    let status = status.unwrap();
    assert_eq!(status["sequence_number"].as_u64(), Some(next));
    let options = [
        &status["batch_size"],
        &status["max_size"],
        &status["timeout"],
    ];
    assert_eq!(options, [&Value::from(128), &1024.into(), &"50ms".into()]);
    let pretty = queue(address, "&wait&pretty", &insert(6)).body;
    let expected = format!(
        "{{\n    \"results\": [],\n    \"sequence_number\": {}\n}}",
        next + 1
    );
    assert_eq!(pretty, expected);
}

#[test]
fn a_request_that_fails_neither_blocks_nor_loses_others() {
    for flags in [&[][..], &["-write-queue-tx"]] {
        let cluster = ProcessCluster::start(1, &Formation::Join, flags);
        let address = cluster.address(0);
        create(&cluster);
        for value in 0..20 {
            let _ = number(&queue(address, "", &insert(value)));
            let bad = match value % 4 {
                0 => "[\"INSERT INTO missing VALUES(1)\"]",
                1 => "[\"PRAGMA journal_mode=DELETE\"]",
                2 => "[\"INSERT INTO t VALUES(\"]",
                _ => "[\"INSERT INTO t VALUES(1);ROLLBACK\"]",
            };
            let _ = number(&queue(address, "", bad));
        }
        let _ = number(&queue(address, "&wait", "[]"));
        let found =
            cluster
                .client()
                .query(address, "strong", "SELECT DISTINCT v FROM t ORDER BY rowid");
        let found: Vec<i64> = found
            .unwrap()
            .iter()
            .map(|row| row[0].as_i64().unwrap())
            .collect();
        assert_eq!(
            found,
            (0..20).collect::<Vec<_>>(),
            "{flags:?}: all, in order"
        );
        let status = cluster
            .client()
            .json(address, "/status?key=http.queue._default");
        let status = status.unwrap();
        assert!(
            status["statements_failed"].as_u64().unwrap() >= 15,
            "{status}"
        );
        assert_eq!(status["requests_lost"], 0);
        assert_eq!(status["waiting"], 0);
        let log = cluster.log_text(0);
        assert!(
            log.contains("queued statements failed"),
            "lost writes are told"
        );
        assert!(!log.contains("INSERT INTO"), "no SQL in the log");
        // One whose answer is waited for says no more than that it was sent, as in rqlite.
        let _ = number(&queue(
            address,
            "&wait",
            "[\"INSERT INTO missing VALUES(1)\"]",
        ));
    }
}

#[test]
fn two_thousand_queued_inserts_arrive_through_a_follower_and_in_order() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    create(&cluster);
    let follower = (cluster.wait_leader() + 1) % 3;
    let address = cluster.address(follower);
    let first = number(&queue(address, "", &insert(0)));
    for value in 1..2000 {
        let sequence = number(&queue(address, "", &insert(value)));
        assert_eq!(sequence, first + value as u64);
    }
    let _ = number(&queue(address, "&wait", "[]"));
    let disorder = "SELECT count(*), sum(v <> rowid - 1) FROM t";
    let rows = cluster.client().query(address, "strong", disorder).unwrap();
    assert_eq!(rows, [[Value::from(2000), Value::from(0)]]);
    let _ = cluster.assert_identical();
}

#[test]
fn without_a_leader_writes_are_refused_or_kept_until_there_is_one() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    create(&cluster);
    let leader = cluster.wait_leader();
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(leader);
    cluster.kill(other);
    cluster.wait("the leader to be missed", |cluster| {
        let response = queue(cluster.address(follower), "", &insert(1));
        match (response.status, response.body.as_str()) {
            (503, "leader not found\n") => Ok(()),
            _ => Err(format!("{response:?}")),
        }
    });
    let address = cluster.address(follower).to_owned();
    for value in 10..13 {
        let _ = number(&queue(&address, "&noleader", &insert(value)));
    }
    let late = queue(&address, "&noleader&wait&timeout=300ms", &insert(13));
    assert_eq!(late.status, 408);
    assert_eq!(late.body, "queue wait timeout\n");
    cluster.start_node(leader);
    cluster.start_node(other);
    cluster.wait_all_ready();
    let flushed = queue(&address, "&wait&noleader", "[]");
    assert_eq!(flushed.status, 200, "{flushed:?}");
    // What was accepted while the leader seemed to be there may have been on its way to it.
    let kept = "SELECT v, count(*) FROM t WHERE v > 1 GROUP BY v";
    let kept = cluster.client().query(&address, "strong", kept).unwrap();
    let expected: Vec<[Value; 2]> = (10..14).map(|v| [Value::from(v), 1.into()]).collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_full_queue_refuses_after_the_time_given() {
    let flags = ["-write-queue-capacity=2"];
    let mut cluster = ProcessCluster::prepare(3, &Formation::Expect, &flags);
    // Alone it never belongs to a cluster, so nothing leaves the queue.
    cluster.start_node(0);
    let address = cluster.address(0).to_owned();
    cluster.wait("the node to listen", |_| {
        let client = Client::new(Duration::from_secs(1));
        client
            .get(&address, "/status")
            .map(drop)
            .map_err(|error| error.to_string())
    });
    let refused = queue(&address, "", &insert(0));
    assert_eq!(refused.body, "leader not found\n");
    for value in 1..3 {
        let _ = number(&queue(&address, "&noleader", &insert(value)));
    }
    let full = queue(&address, "&noleader&timeout=300ms", &insert(3));
    assert_eq!(full.status, 503);
    assert_eq!(full.body, "queue is full; send the request again later\n");
}

#[test]
fn what_was_accepted_is_sent_before_the_node_stops() {
    let flags = ["-write-queue-timeout=5s"];
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    create(&cluster);
    for value in 0..10 {
        let _ = number(&queue(cluster.address(0), "", &insert(value)));
    }
    assert!(cluster.stop(0).success());
    cluster.start_node(0);
    cluster.wait_ready(0);
    assert_eq!(count(&cluster, 0), 10);
}

#[test]
fn queued_writes_travel_with_the_credentials_of_their_caller() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.json");
    // Formation asks as anybody; writing is for those who are known.
    let users = serde_json::json!([
        {"username": "*", "perms": ["join", "ready", "status", "query", "backup"]},
        {"username": "ann", "password": "a", "perms": ["execute"]},
        {"username": "bob", "password": "b", "perms": ["execute"]},
        {"username": "eve", "password": "e", "perms": ["query"]},
    ]);
    std::fs::write(&file, users.to_string()).unwrap();
    let flags = ["-auth", file.to_str().unwrap()];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    let leader = cluster.wait_leader();
    let follower = cluster.address((leader + 1) % 3).to_owned();
    let known = |user: &str| format!("{user}@{follower}");
    let create = "CREATE TABLE t(v INTEGER)";
    let client = cluster.client();
    let _ = client.execute_sql(&known("ann:a"), create).expect_success();
    for value in 0..40 {
        let user = ["ann:a", "bob:b"][value % 2];
        let _ = number(&queue(&known(user), "", &insert(value)));
    }
    for stranger in ["eve:e", "ann:wrong"] {
        let refused = queue(&known(stranger), "", &insert(99));
        assert_eq!((refused.status, refused.body.as_str()), (401, ""));
    }
    let _ = number(&queue(&known("bob:b"), "&wait", "[]"));
    let disorder = "SELECT count(*), sum(v <> rowid - 1) FROM t";
    let rows = client.query(&follower, "strong", disorder).unwrap();
    assert_eq!(rows, [[Value::from(40), Value::from(0)]]);
}

/// Queues values one after the other until told to stop; returns those that were waited for, and
/// all that were tried.
fn feed(address: &str, thread: usize, stop: &AtomicBool) -> (BTreeSet<i64>, usize) {
    let mut waited_for = BTreeSet::new();
    let mut tried = 0;
    while !stop.load(Ordering::Relaxed) {
        let value = thread * 1_000_000 + tried;
        tried += 1;
        let options = if tried % 5 == 0 { "&wait" } else { "" };
        let response = queue(address, options, &insert(value));
        if response.status == 200 && !options.is_empty() {
            waited_for.insert(i64::try_from(value).unwrap());
        }
    }
    (waited_for, tried)
}

#[test]
fn a_killed_leader_costs_no_write_that_was_waited_for_and_doubles_none() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    create(&cluster);
    let stop = AtomicBool::new(false);
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    let address = cluster.address(follower).to_owned();
    let (fed, survivors) = std::thread::scope(|scope| {
        let feeders: Vec<_> = (1..=3)
            .map(|thread| {
                let (address, stop) = (&address, &stop);
                scope.spawn(move || feed(address, thread, stop))
            })
            .collect();
        for _ in 0..2 {
            let before = cluster.log_text(follower).len();
            let enough = "SELECT count(*) FROM t";
            let count = |cluster: &ProcessCluster| {
                let rows = cluster.client().query(&address, "none", enough)?;
                Ok::<_, String>(rows[0][0].as_i64().unwrap_or(0))
            };
            let begun = cluster.wait("a first count", |cluster| count(cluster));
            cluster.wait("writes to arrive", |cluster| match count(cluster)? {
                now if now > begun + 50 => Ok(()),
                now => Err(format!("{now} after {begun}, log {before}")),
            });
            let leader = cluster.wait_leader();
            if leader == follower {
                // The queue goes on by itself; there is nobody else to kill for this test.
                break;
            }
            cluster.kill(leader);
            cluster.wait_leader_other_than(leader);
            cluster.start_node(leader);
            cluster.wait_ready(leader);
        }
        stop.store(true, Ordering::Relaxed);
        let fed: Vec<_> = feeders
            .into_iter()
            .map(|feeder| feeder.join().unwrap())
            .collect();
        (fed, cluster.wait_leader())
    });
    let _ = number(&queue(&address, "&wait", "[]"));
    let all = "SELECT v, count(*) FROM t GROUP BY v";
    let rows = cluster
        .client()
        .query(cluster.address(survivors), "strong", all)
        .unwrap();
    let doubled: Vec<_> = rows.iter().filter(|row| row[1] != 1).collect();
    assert!(doubled.is_empty(), "applied twice: {doubled:?}");
    let stored: BTreeSet<i64> = rows.iter().map(|row| row[0].as_i64().unwrap()).collect();
    for (waited_for, tried) in fed {
        assert!(tried > 0);
        let missing: Vec<_> = waited_for.difference(&stored).collect();
        assert!(missing.is_empty(), "waited for, and lost: {missing:?}");
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
