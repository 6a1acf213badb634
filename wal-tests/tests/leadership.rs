//! A leader that is paused while it works, and comes back when another one leads.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::checker;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::counter::Counter;
use wal_tests::seed::{Random, seed};
use wal_tests::workload::{self, Fate, Workload};

#[test]
fn what_a_deposed_leader_had_in_flight_is_never_acknowledged_and_nowhere() {
    let mut random = Random::new(seed("leadership"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), workload::TABLE)
        .expect_success();
    let mut history = workload::History::default();
    for round in 0..3 {
        let old = cluster.wait_leader();
        // All writers write to the leader, so that groups are in flight at any moment. They are
        // patient: whatever they are told, they are told by the node after it came back.
        let only = [cluster.address(old).to_owned()];
        let workload = Workload::start(
            &format!("{round}"),
            &only,
            4,
            Duration::from_secs(30),
            &mut random,
        );
        cluster.wait("a few acknowledged rows", |_| {
            match workload.acknowledged() {
                0..50 => Err("too few".to_owned()),
                _ => Ok(()),
            }
        });
        cluster.pause(old);
        let new = cluster.wait_leader_other_than(old);
        let insert = format!("INSERT INTO item(key, payload) VALUES('round {round}', 'by {new}')");
        let _ = cluster
            .client()
            .execute_sql(cluster.address(new), &insert)
            .expect_success();
        cluster.resume(old);
        cluster.wait_ready(old);
        history.attempts.extend(workload.stop().attempts);
        history.attempts.push(workload::Attempt {
            key: format!("round {round}"),
            payload: format!("by {new}"),
            request: format!("round {round}"),
            fate: Fate::Acknowledged,
        });
    }
    let image = cluster.assert_identical();
    let database = cluster.open(&image);
    checker::assert_kept(&history, &database);
    cluster.assert_healthy_logs();
}

/// A request to a node, in a thread of its own, and a verdict on its answer.
fn ask(
    address: &str,
    endpoint: &'static str,
    statements: Value,
    stale: fn(&[Value]) -> bool,
) -> JoinHandle<Result<(), String>> {
    let address = address.to_owned();
    std::thread::spawn(move || {
        let client = Client::new(Duration::from_secs(30));
        match client.write(&address, endpoint, &statements) {
            Outcome::Answered(answer) if stale(&answer.results) => Err(format!(
                "{endpoint} {statements} was answered {:?}",
                answer.results
            )),
            _ => Ok(()),
        }
    })
}

/// Requests that change nothing in the state before, each with the answer that only the state
/// before can give.
fn probes(address: &str) -> Vec<JoinHandle<Result<(), String>>> {
    let zero_rows = |results: &[Value]| {
        results[0]["error"].is_null() && results[0]["rows_affected"].as_u64().unwrap_or(0) == 0
    };
    let unique = |results: &[Value]| {
        results[0]["error"]
            .as_str()
            .is_some_and(|error| error.contains("UNIQUE"))
    };
    let shows_old = |results: &[Value]| {
        results
            .iter()
            .any(|result| result["values"].to_string().contains("old"))
    };
    let update = json!(["UPDATE t SET v = v WHERE id = 3"]);
    let insert = json!(["INSERT INTO t VALUES(2, 'again')"]);
    let select = json!(["SELECT v FROM t WHERE id = 1"]);
    let mixed = json!([
        "UPDATE t SET v = v WHERE id = 99",
        "SELECT v FROM t WHERE id = 5"
    ]);
    vec![
        ask(address, "/db/execute", update, zero_rows),
        ask(address, "/db/execute", insert, unique),
        ask(address, "/db/request", mixed, shows_old),
        ask(
            address,
            "/db/request?level=linearizable",
            select.clone(),
            shows_old,
        ),
        ask(
            address,
            "/db/query?level=linearizable",
            select.clone(),
            shows_old,
        ),
        ask(address, "/db/query?level=strong", select.clone(), shows_old),
        // Only because the pause was longer than the lease that a weak read relies on.
        ask(address, "/db/query?level=weak", select, shows_old),
    ]
}

#[test]
fn groups_without_a_delta_are_never_answered_from_the_state_of_a_deposed_leader() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let create = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), create)
        .expect_success();
    for round in 0..3 {
        let old = cluster.wait_leader();
        let before = json!([
            "DELETE FROM t",
            "INSERT INTO t VALUES(1, 'old'), (2, 'taken'), (5, 'old')"
        ]);
        let _ = cluster
            .client()
            .execute(cluster.address(old), &before)
            .expect_success();
        cluster.pause(old);
        let new = cluster.wait_leader_other_than(old);
        let after = json!([
            "UPDATE t SET v = 'new'",
            "DELETE FROM t WHERE id = 2",
            "INSERT INTO t VALUES(3, 'new')"
        ]);
        let _ = cluster
            .client()
            .execute(cluster.address(new), &after)
            .expect_success();
        // From here on, every answer that shows the state before is stale. The requests wait in the
        // sockets of the paused node and are the first thing it sees when it goes on, still
        // believing that it leads.
        let asked = probes(cluster.address(old));
        // Time for the requests to arrive; if they come later, they only find a follower.
        std::thread::sleep(Duration::from_millis(200));
        cluster.resume(old);
        for answer in asked {
            assert_eq!(answer.join().unwrap(), Ok(()), "round {round}");
        }
        cluster.wait_ready(old);
    }
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// Reads the counter through any node, and checks that each answer has everything that was
/// acknowledged before the question was asked.
fn watch(
    counter: &Counter,
    level: &'static str,
    addresses: &[String],
    mut random: Random,
) -> Result<(), String> {
    let client = Client::new(Duration::from_secs(2));
    while !counter.stop.load(Ordering::Relaxed) {
        let floor = counter.acknowledged.load(Ordering::SeqCst);
        let address = &addresses[random.below(addresses.len())];
        let Ok(rows) = client.query(address, level, "SELECT n FROM counter") else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let found = rows[0][0].as_i64().unwrap();
        if found < floor {
            return Err(format!("{level}: {found} after {floor} was acknowledged"));
        }
        counter.checked.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn reads_contain_every_write_acknowledged_before_them_while_leaders_come_and_go() {
    let mut random = Random::new(seed("leadership"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    Counter::create(&cluster);
    let counter = Arc::new(Counter::default());
    let addresses = cluster.addresses();
    let writer = counter.raise(addresses.clone(), random.fork());
    let reader = |level: &'static str| {
        let (counter, addresses, random) = (counter.clone(), addresses.clone(), random.fork());
        std::thread::spawn(move || watch(&counter, level, &addresses, random))
    };
    let readers: Vec<_> = ["linearizable", "linearizable", "strong"]
        .into_iter()
        .map(reader)
        .collect();
    for _ in 0..LEADERS {
        let (acknowledged, checked) = (&counter.acknowledged, &counter.checked);
        let goals = (
            acknowledged.load(Ordering::SeqCst) + 20,
            checked.load(Ordering::Relaxed) + 20,
        );
        cluster.wait("writes and reads", |_| {
            let found = (
                acknowledged.load(Ordering::SeqCst),
                checked.load(Ordering::Relaxed),
            );
            let enough = found.0 >= goals.0 && found.1 >= goals.1;
            enough
                .then_some(())
                .ok_or_else(|| format!("{found:?} of {goals:?}"))
        });
        let old = cluster.wait_leader();
        cluster.pause(old);
        cluster.wait_leader_other_than(old);
        cluster.resume(old);
    }
    counter.stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Ok(()));
    }
    cluster.wait_all_ready();
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

const LEADERS: usize = 4;
