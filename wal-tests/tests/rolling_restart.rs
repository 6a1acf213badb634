//! All nodes are restarted one after the other while clients write and read: no request fails for a
//! client that tries once more on another node.
//!
//! `WAL_ROUNDS=10 cargo test -p wal-tests --test rolling_restart -- --nocapture` restarts them more
//! often than the default of 1.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

/// What the clients share.
#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    served: AtomicUsize,
    retried: AtomicUsize,
}

/// A client in a thread of its own, with the number of its requests or the one that failed twice.
type Running = JoinHandle<Result<i64, String>>;

impl Clients {
    /// Sends requests, numbered from 1, to nodes at random until it is told to stop.
    fn start(
        self: &Arc<Self>,
        addresses: &[String],
        mut random: Random,
        request: impl Fn(&Client, &str, i64) -> Result<(), String> + Send + 'static,
    ) -> Running {
        let (clients, addresses) = (Arc::clone(self), addresses.to_vec());
        std::thread::spawn(move || {
            let client = Client::new(PATIENCE);
            let mut number = 0;
            while !clients.stop.load(Ordering::Relaxed) {
                number += 1;
                let first = random.below(addresses.len());
                if let Err(error) = request(&client, &addresses[first], number) {
                    clients.retried.fetch_add(1, Ordering::Relaxed);
                    let other = (first + 1 + random.below(addresses.len() - 1)) % addresses.len();
                    request(&client, &addresses[other], number).map_err(|again| {
                        let (first, other) = (first + 1, other + 1);
                        format!("{number}: node {first}: {error}; then node {other}: {again}")
                    })?;
                }
                clients.served.fetch_add(1, Ordering::Relaxed);
            }
            Ok(number)
        })
    }
}

/// Written again it changes nothing, so that a client may do so when it does not know the outcome.
fn write(writer: usize) -> impl Fn(&Client, &str, i64) -> Result<(), String> + Send {
    move |client, address, number| {
        let insert = json!([["INSERT OR REPLACE INTO t VALUES(?, ?)", writer, number]]);
        match client.execute(address, &insert) {
            Outcome::Answered(answer) if answer.error().is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }
}

fn read(level: &'static str) -> impl Fn(&Client, &str, i64) -> Result<(), String> + Send {
    move |client, address, _| {
        let rows = client.query(address, level, "SELECT count(*) FROM t")?;
        if rows.len() == 1 {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    }
}

#[test]
fn no_request_fails_when_all_nodes_are_restarted_one_after_the_other() {
    let mut random = Random::new(seed("rolling_restart"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let create = "CREATE TABLE t(writer, number, PRIMARY KEY(writer, number))";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), create)
        .expect_success();
    let clients = Arc::new(Clients::default());
    let addresses = cluster.addresses();
    let writers: Vec<Running> = (0..2)
        .map(|writer| clients.start(&addresses, random.fork(), write(writer)))
        .collect();
    let readers: Vec<Running> = ["none", "weak", "linearizable", "strong"]
        .into_iter()
        .map(|level| clients.start(&addresses, random.fork(), read(level)))
        .collect();
    let rounds = std::env::var("WAL_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    for node in (0..rounds).flat_map(|_| 0..3) {
        let goal = clients.served.load(Ordering::Relaxed) + 30;
        cluster.wait("requests to be served", |_| {
            let served = clients.served.load(Ordering::Relaxed);
            let failed = writers.iter().chain(&readers).any(JoinHandle::is_finished);
            (served >= goal || failed)
                .then_some(())
                .ok_or_else(|| format!("{served} of {goal}"))
        });
        assert!(cluster.stop(node).success());
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    clients.stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap().unwrap();
    }
    let numbers: Vec<i64> = writers
        .into_iter()
        .map(|writer| writer.join().unwrap().unwrap())
        .collect();
    let image = cluster.assert_identical();
    let database = cluster.open(&image);
    for (writer, last) in (0_i64..).zip(numbers) {
        let sql = "SELECT count(*) FROM t WHERE writer = ?";
        let found: i64 = database.query_row(sql, [writer], |row| row.get(0)).unwrap();
        assert_eq!(found, last, "rows of writer {writer}");
    }
    cluster.assert_healthy_logs();
    println!(
        "{} requests served, {} of them by the second node",
        clients.served.load(Ordering::Relaxed),
        clients.retried.load(Ordering::Relaxed)
    );
}

const PATIENCE: Duration = Duration::from_secs(20);
