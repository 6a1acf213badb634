//! The leader and the members of a cluster as clients and operators see and change them.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::checker;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::raw::{RawAnswer, send};
use wal_tests::seed::{Random, seed};
use wal_tests::workload::{self, Workload};

const JSON: &str = "application/json";

fn name(node: usize) -> String {
    format!("node{}", node + 1)
}

fn step_down(cluster: &ProcessCluster, node: usize, options: &str, body: &str) -> RawAnswer {
    let line = format!("POST /leader{options}");
    let content_type = if body.is_empty() { "" } else { JSON };
    send(cluster.address(node), &line, content_type, body)
}

fn remove(cluster: &ProcessCluster, node: usize, body: &str) -> RawAnswer {
    send(cluster.address(node), "DELETE /remove", JSON, body)
}

fn insert(cluster: &ProcessCluster, node: usize) {
    let sql = "INSERT INTO t VALUES(1)";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(node), sql)
        .expect_success();
}

fn started(nodes: usize) -> ProcessCluster {
    let formation = if nodes == 1 {
        Formation::Join
    } else {
        Formation::Expect
    };
    let cluster = ProcessCluster::start(nodes, &formation, &[]);
    let create = "CREATE TABLE t(v INTEGER)";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), create)
        .expect_success();
    cluster
}

#[test]
fn a_redirect_names_the_leader_and_repeats_path_and_query() {
    let mut cluster = started(3);
    let leader = cluster.wait_leader();
    let follower = cluster.address((leader + 1) % 3);
    let leader = cluster.address(leader);
    for (method, target, body) in [
        ("GET", "/db/query?redirect&q=SELECT%201", ""),
        ("POST", "/db/query?level=strong&redirect", "[\"SELECT 1\"]"),
        (
            "POST",
            "/db/execute?pretty&redirect&x=%20y",
            "[\"SELECT 1\"]",
        ),
        ("POST", "/db/request/x?redirect", "[\"SELECT 1\"]"),
        ("DELETE", "/remove?redirect", "{\"id\":\"nobody\"}"),
        ("GET", "/db/backup?fmt=sql&redirect", ""),
        ("POST", "/db/load?redirect", "CREATE TABLE elsewhere(a)"),
    ] {
        let line = format!("{method} {target}");
        let answer = send(follower, &line, JSON, body);
        assert_eq!(answer.status, 301, "{line}");
        assert_eq!(answer.body, "", "{line}");
        let location = format!("http://{leader}{target}");
        assert_eq!(answer.header("location"), Some(location.as_str()), "{line}");
        assert_eq!(answer.header("x-rqlite-served-by"), None, "{line}");
        assert_eq!(send(leader, &line, JSON, body).status, 200, "{line}");
    }
    let malformed = send(follower, "POST /db/execute?redirect", JSON, "{}");
    assert_eq!(
        (malformed.status, malformed.body.as_str()),
        (400, "invalid request\n")
    );
    let local = send(
        follower,
        "GET /db/query?redirect&level=none&q=SELECT%201",
        "",
        "",
    );
    assert_eq!(local.status, 200);
    assert_eq!(local.header("x-rqlite-served-by"), Some(follower));
}

#[test]
fn forwarded_answers_name_the_leader_by_its_raft_address() {
    let mut cluster = started(3);
    let leader = cluster.wait_leader();
    let follower = cluster.address((leader + 1) % 3);
    let status = cluster
        .client()
        .json(cluster.address(leader), "/leader")
        .unwrap();
    let raft_addr = status["addr"].as_str().unwrap();
    let served_by = |address: &str, line: &str, body: &str| {
        let answer = send(address, line, JSON, body);
        let served_by = answer.header("x-rqlite-served-by").map(str::to_owned);
        (answer.status, served_by)
    };
    let write = "[\"INSERT INTO t VALUES(1)\"]";
    let passed_on = (200, Some(raft_addr.to_owned()));
    assert_eq!(served_by(follower, "POST /db/execute", write), passed_on);
    assert_eq!(
        served_by(follower, "POST /db/execute?retries=3", write),
        passed_on
    );
    let read = "[\"SELECT 1\"]";
    assert_eq!(
        served_by(follower, "POST /db/query?level=AUTO", read),
        passed_on
    );
    assert_eq!(
        served_by(follower, "POST /db/request?level=auto", read),
        passed_on
    );
    let here = (200, Some(follower.to_owned()));
    assert_eq!(served_by(follower, "POST /db/query?level=None", read), here);
    let nobody = (200, None);
    let pragma = "[\"PRAGMA journal_mode=DELETE\"]";
    assert_eq!(served_by(follower, "POST /db/execute", pragma), nobody);
    assert_eq!(served_by(follower, "POST /db/execute?queue", write), nobody);
    assert_eq!(served_by(follower, "GET /leader", ""), nobody);
    // Limits of single statements travel to the leader.
    let endless = "[\"WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) \
                   SELECT count(*) FROM c\"]";
    let stopped = send(follower, "POST /db/query?db_timeout=100ms", JSON, endless);
    assert_eq!(
        stopped.body,
        "{\"results\":[{\"error\":\"query timeout\"}]}"
    );
}

#[test]
fn a_single_node_shows_itself_and_cannot_step_down() {
    let cluster = started(1);
    let address = cluster.address(0);
    let answer = send(address, "GET /leader", "", "");
    assert_eq!(
        answer.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    let leader: Value = serde_json::from_str(&answer.body).unwrap();
    let head = format!("{{\"id\":\"node1\",\"api_addr\":\"http://{address}\",\"addr\":\"");
    assert!(answer.body.starts_with(&head), "{}", answer.body);
    let flags = "\"voter\":true,\"reachable\":true,\"leader\":true,\"time\":";
    assert!(answer.body.contains(flags), "{}", answer.body);
    assert!(leader["time_s"].is_string());
    for (body, status, text) in [
        ("", 500, "stepdown: cannot find peer\n"),
        (
            "{\"id\":\"node9\"}",
            500,
            "stepdown: node not found in cluster\n",
        ),
        (
            "{\"id\":\"node1\"}",
            500,
            "stepdown: cannot step down to the current Leader\n",
        ),
        (
            "{bad",
            400,
            "invalid JSON: invalid character 'b' looking for beginning of object key string\n",
        ),
        (
            "x",
            400,
            "invalid JSON: invalid character 'x' looking for beginning of value\n",
        ),
        (
            "{\"id\":",
            400,
            "invalid JSON: unexpected end of JSON input\n",
        ),
        (
            "{\"id\":5}",
            400,
            "invalid JSON: json: cannot unmarshal number into Go struct field .id of type string\n",
        ),
    ] {
        for options in ["", "?wait"] {
            let answer = step_down(&cluster, 0, options, body);
            assert_eq!(
                (answer.status, answer.body.as_str()),
                (status, text),
                "{body}"
            );
        }
    }
}

#[test]
fn only_a_member_that_is_named_is_removed_and_never_the_last_voter() {
    let cluster = started(1);
    for body in [
        "",
        "{}",
        "[]",
        "x",
        "{\"id\":5}",
        "{\"id\":\"a\",\"b\":1}",
        "{\"name\":\"a\"}",
    ] {
        let answer = remove(&cluster, 0, body);
        assert_eq!((answer.status, answer.body.as_str()), (400, ""), "{body}");
    }
    let unknown = remove(&cluster, 0, "{\"id\":\"node9\"}");
    assert_eq!((unknown.status, unknown.body.as_str()), (200, ""));
    for body in ["{\"id\":\"node1\"}", "{\"id\":\"node1\",\"force\":true}"] {
        let last = remove(&cluster, 0, body);
        assert_eq!(last.status, 500, "{body}");
        assert_eq!(last.body, "the last voter cannot be removed\n");
    }
    insert(&cluster, 0);
}

#[test]
fn the_leadership_moves_to_the_node_named_under_load_and_nothing_is_lost() {
    let mut random = Random::new(seed("administration"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), workload::TABLE)
        .expect_success();
    let addresses = cluster.addresses();
    let patience = Duration::from_secs(30);
    let workload = Workload::start("moving", &addresses, 4, patience, &mut random);
    for round in 0..6 {
        let goal = workload.acknowledged() + 40;
        cluster.wait("acknowledged rows", |_| match workload.acknowledged() {
            enough if enough >= goal => Ok(()),
            few => Err(format!("{few} of {goal}")),
        });
        let old = cluster.wait_leader();
        let new = (old + 1 + random.below(2)) % 3;
        // Whichever node is asked, and whether or not it says when it is done.
        let asked = random.below(3);
        let options = if round % 3 == 2 { "" } else { "?wait" };
        let body = format!("{{\"id\":\"{}\"}}", name(new));
        let answer = step_down(&cluster, asked, options, &body);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, ""),
            "round {round}"
        );
        if !options.is_empty() {
            assert_eq!(
                cluster.leader(),
                Some(new),
                "round {round}: from {old} by {asked}"
            );
        }
        cluster.wait("the leader that was named", |cluster| {
            match cluster.leader() {
                Some(leader) if leader == new => Ok(()),
                other => Err(format!("{other:?}, not {new}")),
            }
        });
    }
    // Without a name it is any other.
    let old = cluster.wait_leader();
    let answer = step_down(&cluster, (old + 1) % 3, "?wait", "");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let _ = cluster.wait_leader_other_than(old);
    let history = workload.stop();
    let unclear: Vec<_> = history
        .attempts
        .iter()
        .filter(|attempt| attempt.fate != workload::Fate::Acknowledged)
        .collect();
    assert!(
        unclear.is_empty(),
        "a hand-over is no reason to fail: {unclear:?}"
    );
    let image = cluster.assert_identical();
    let database = cluster.open(&image);
    checker::assert_kept(&history, &database);
    cluster.assert_healthy_logs();
}

#[test]
fn members_are_removed_through_any_node_and_the_cluster_goes_on() {
    let mut cluster = started(3);
    let leader = cluster.wait_leader();
    let (stopped, last) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(stopped);
    // With the other one gone, the one that is down could not make a majority.
    let refused = remove(&cluster, leader, &format!("{{\"id\":\"{}\"}}", name(last)));
    let expected = "of the 2 voters that would remain only 1 can be reached";
    assert_eq!(refused.status, 500, "{refused:?}");
    assert!(refused.body.starts_with(expected), "{refused:?}");
    insert(&cluster, last);
    // The one that is down is removed through a follower.
    let removed = remove(&cluster, last, &format!("{{\"id\":\"{}\"}}", name(stopped)));
    assert_eq!((removed.status, removed.body.as_str()), (200, ""));
    let names = |cluster: &ProcessCluster, node: usize| {
        let nodes = cluster
            .client()
            .json(cluster.address(node), "/nodes?nonvoters");
        let nodes = nodes.unwrap();
        nodes
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let mut rest = vec![name(leader), name(last)];
    rest.sort();
    assert_eq!(names(&cluster, leader), rest);
    insert(&cluster, last);
    // It comes back without knowing: it leads nobody and moves no term.
    let term = |cluster: &ProcessCluster, node: usize| {
        let key = "/status?key=store.raft.term";
        cluster
            .client()
            .get(cluster.address(node), key)
            .unwrap()
            .body
    };
    let before = term(&cluster, leader);
    let arguments = cluster.arguments(stopped);
    let join = arguments
        .iter()
        .position(|argument| argument == "-join")
        .unwrap();
    arguments.drain(join..join + 2);
    let expect = arguments
        .iter()
        .position(|argument| argument == "-bootstrap-expect")
        .unwrap();
    arguments.drain(expect..expect + 2);
    cluster.start_node(stopped);
    std::thread::sleep(Duration::from_secs(3));
    insert(&cluster, leader);
    assert_eq!(term(&cluster, leader), before);
    assert_eq!(cluster.leader(), Some(leader));
    let outside = send(cluster.address(stopped), "GET /readyz", "", "");
    assert_eq!(outside.status, 503, "{outside:?}");
    cluster.kill(stopped);
    // The leader itself hands over first.
    let removed = remove(
        &cluster,
        leader,
        &format!("{{\"id\":\"{}\"}}", name(leader)),
    );
    assert_eq!((removed.status, removed.body.as_str()), (200, ""));
    assert_eq!(cluster.wait_leader_other_than(leader), last);
    assert_eq!(names(&cluster, last), [name(last)]);
    insert(&cluster, last);
    cluster.stop(leader);
    insert(&cluster, last);
    cluster.assert_healthy_logs();
}

/// Asks for the one row through an endpoint.
fn ask(cluster: &ProcessCluster, node: usize, endpoint: &str, options: &str) -> (u16, String) {
    let select = "[\"SELECT count(*) FROM t\"]";
    let line = format!("POST {endpoint}?{options}");
    let answer = send(cluster.address(node), &line, JSON, select);
    (answer.status, answer.body)
}

fn is_fresh((status, body): &(u16, String)) -> bool {
    *status == 200 && body.contains("[[1]]")
}

fn stale() -> (u16, String) {
    let body = "{\"results\":[],\"error\":\"stale read\"}";
    (200, body.to_owned())
}

#[test]
fn freshness_counts_on_followers_for_reads_without_guarantee_only() {
    let mut cluster = started(3);
    insert(&cluster, 0);
    cluster.wait_all_ready();
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    for endpoint in ["/db/query", "/db/request"] {
        for options in [
            "freshness=10s",
            "freshness=10s&freshness_strict",
            "freshness=0s",
        ] {
            let options = format!("level=none&{options}");
            let answer = ask(&cluster, follower, endpoint, &options);
            assert!(is_fresh(&answer), "{endpoint} {options}: {answer:?}");
        }
        for strict in ["", "&freshness_strict"] {
            let nanosecond = format!("level=none&freshness=1ns{strict}");
            assert_eq!(ask(&cluster, follower, endpoint, &nanosecond), stale());
            let answer = ask(&cluster, leader, endpoint, &nanosecond);
            assert!(is_fresh(&answer), "a leader is never stale: {answer:?}");
            let answer = ask(&cluster, follower, endpoint, "freshness=1ns");
            assert!(is_fresh(&answer), "only for level none: {answer:?}");
        }
    }
}

/// What needs a leader says that there is none, and the node itself is well.
fn assert_leaderless(cluster: &ProcessCluster, follower: usize) {
    let address = cluster.address(follower);
    for line in [
        "GET /leader",
        "POST /leader",
        "GET /db/query?redirect&q=SELECT%201",
        "POST /leader?wait",
    ] {
        let answer = send(address, line, "", "");
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (503, "leader not found\n"),
            "{line}"
        );
    }
    let answer = remove(cluster, follower, "{\"id\":\"node1\"}");
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "leader not found\n")
    );
    let ready = send(address, "GET /readyz", "", "");
    let expected = "[+]node ok\n[+]leader does not exist";
    assert_eq!((ready.status, ready.body.as_str()), (503, expected));
    let alone = send(address, "GET /readyz?noleader", "", "");
    assert_eq!((alone.status, alone.body.as_str()), (200, "[+]node ok"));
}

#[test]
fn a_follower_that_is_cut_off_says_that_there_is_no_leader() {
    let mut cluster = started(3);
    insert(&cluster, 0);
    cluster.wait_all_ready();
    let leader = cluster.wait_leader();
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.pause(leader);
    cluster.pause(other);
    std::thread::sleep(Duration::from_millis(2500));
    for endpoint in ["/db/query", "/db/request"] {
        assert!(is_fresh(&ask(&cluster, follower, endpoint, "level=none")));
        assert!(is_fresh(&ask(
            &cluster,
            follower,
            endpoint,
            "level=none&freshness=1h"
        )));
        for strict in ["", "&freshness_strict"] {
            let second = format!("level=none&freshness=1s{strict}");
            assert_eq!(ask(&cluster, follower, endpoint, &second), stale());
        }
        for level in ["weak", "linearizable", "strong", "auto"] {
            let options = format!("level={level}&timeout=300ms");
            let expected = (503, "leader not found\n".to_owned());
            assert_eq!(
                ask(&cluster, follower, endpoint, &options),
                expected,
                "{level}"
            );
        }
    }
    assert_leaderless(&cluster, follower);
    cluster.resume(leader);
    cluster.resume(other);
    cluster.wait_ready(follower);
    for (options, body) in [
        ("", "[+]node ok\n[+]leader ok\n[+]store ok\n[+]db ok"),
        (
            "?sync",
            "[+]node ok\n[+]leader ok\n[+]store ok\n[+]sync ok\n[+]db ok",
        ),
    ] {
        let ready = send(
            cluster.address(follower),
            &format!("GET /readyz{options}"),
            "",
            "",
        );
        assert_eq!((ready.status, ready.body.as_str()), (200, body));
    }
}

#[test]
fn nodes_are_listed_with_those_that_do_not_answer() {
    let mut cluster = started(3);
    let leader = cluster.wait_leader();
    let down = (leader + 1) % 3;
    cluster.kill(down);
    let address = cluster.address(leader).to_owned();
    let client = Client::new(Duration::from_secs(10));
    let map = client.json(&address, "/nodes?timeout=2s").unwrap();
    let list = client
        .json(&address, "/nodes?ver=2&nonvoters&timeout=2s")
        .unwrap();
    let list = list["nodes"].as_array().unwrap();
    let ids: Vec<&str> = list
        .iter()
        .map(|node| node["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["node1", "node2", "node3"]);
    for (index, listed) in list.iter().enumerate() {
        let node = &map[name(index)];
        let fixed = [
            "id",
            "api_addr",
            "addr",
            "version",
            "voter",
            "reachable",
            "leader",
        ];
        for field in fixed {
            assert_eq!(node[field], listed[field], "{field}");
        }
        let api_addr = format!("http://{}", cluster.address(index));
        assert_eq!(node["api_addr"], json!(api_addr));
        assert_eq!(node["voter"], json!(true));
        assert_eq!(node["leader"], json!(index == leader));
        assert_eq!(node["reachable"], json!(index != down));
        let answered = index != down;
        assert_eq!(node["version"] == json!(""), !answered);
        assert_eq!(
            node["time"].is_f64() && node["time_s"].is_string(),
            answered
        );
        assert_eq!(node["error"].is_string(), !answered);
    }
}
