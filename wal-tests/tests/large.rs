//! Large transactions in whole clusters: nobody loses the leader, memory stays bounded, others read
//! on. And large databases: a restart costs what the log holds since the last checkpoint.
//!
//! `WAL_LARGE_MIB=300 cargo test -p wal-tests --test large` makes the transaction larger than the
//! default of 24 MiB; `WAL_RESTART_MIB=1024` the database that is restarted, 384 MiB by default.
//! `WAL_ELECTION=250ms` is the node's own default; the tests' is 2s, for machines that are busy.
//! Figures are printed with `-- --nocapture`; name a release build in `WAL_BINARY` for honest ones.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};

const MIB: u64 = 1 << 20;
/// A transaction may take so long on a busy machine.
const TRANSACTION_PATIENCE: Duration = Duration::from_secs(600);

fn mebibytes(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |mib| mib.parse().unwrap())
}

/// A number of a file in `/proc/PID`, such as `VmHWM` in `status`.
fn process_number(cluster: &ProcessCluster, node: usize, file: &str, name: &str) -> u64 {
    let path = format!("/proc/{}/{file}", cluster.process_id(node));
    let text = std::fs::read_to_string(path).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    let number = line.trim_start_matches(':').split_whitespace().next();
    number.unwrap().parse().unwrap()
}

/// The most memory that the node's process ever had.
fn peak_bytes(cluster: &ProcessCluster, node: usize) -> u64 {
    process_number(cluster, node, "status", "VmHWM") * 1024
}

fn term(cluster: &ProcessCluster, node: usize) -> String {
    let status = cluster.client().json(cluster.address(node), "/status");
    status.unwrap()["store"]["raft"]["term"]
        .to_string()
        .replace('"', "")
}

fn last_log_index(cluster: &ProcessCluster, node: usize) -> u64 {
    let status = cluster.client().json(cluster.address(node), "/status");
    let raft = &status.unwrap()["store"]["raft"];
    raft["last_log_index"]
        .to_string()
        .trim_matches('"')
        .parse()
        .unwrap()
}

/// Reads from every node, again and again, as other clients do meanwhile.
struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Reads>>,
}

#[derive(Default)]
struct Reads {
    served: usize,
    slowest: Duration,
    failures: Vec<String>,
}

impl Readers {
    fn start(addresses: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let reader = |address: &String| {
            let (stop, address) = (Arc::clone(&stop), address.clone());
            std::thread::spawn(move || {
                let client = Client::new(Duration::from_secs(60));
                let mut reads = Reads::default();
                while !stop.load(Ordering::Relaxed) {
                    for level in ["none", "weak", "linearizable"] {
                        let begun = Instant::now();
                        match client.query(&address, level, "SELECT count(*) FROM small") {
                            Ok(rows) if rows[0][0] == json!(1) => reads.served += 1,
                            other => reads.failures.push(format!("{address} {level}: {other:?}")),
                        }
                        reads.slowest = reads.slowest.max(begun.elapsed());
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                reads
            })
        };
        let threads = addresses.iter().map(reader).collect();
        Self { stop, threads }
    }

    fn stop(self) -> Vec<Reads> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Reads>| thread.join().unwrap();
        self.threads.into_iter().map(join).collect()
    }
}

/// Runs one statement while others read.
fn run(cluster: &ProcessCluster, node: usize, what: &str, sql: &str) {
    let readers = Readers::start(&cluster.addresses());
    let client = Client::new(TRANSACTION_PATIENCE);
    let begun = Instant::now();
    let endpoint = "/db/execute?raft_index";
    let answer = client.write(cluster.address(node), endpoint, &json!([sql]));
    let elapsed = begun.elapsed();
    let reads = readers.stop();
    let _ = answer.expect_success();
    let served: Vec<usize> = reads.iter().map(|reads| reads.served).collect();
    let slowest = reads.iter().map(|reads| reads.slowest).max().unwrap();
    println!("{what}: {elapsed:.1?}; reads served {served:?}, the slowest in {slowest:.0?}");
    let peaks: Vec<u64> = (0..cluster.size())
        .map(|node| peak_bytes(cluster, node) / MIB)
        .collect();
    println!(
        "VmHWM so far {peaks:?} MiB, the leader is node {}",
        node + 1
    );
    for reads in &reads {
        assert_eq!(reads.failures, [""; 0], "reads meanwhile");
        assert!(reads.served > 0, "no read was tried meanwhile");
    }
}

#[test]
fn a_large_transaction_costs_no_election_and_no_memory() {
    let mib = mebibytes("WAL_LARGE_MIB", 24);
    // A sixth of it in memory, so that most of it has to be spooled.
    let spool = (mib * MIB / 6).to_string();
    // Far shorter than the transaction takes, far longer than a busy machine forgets a thread.
    let election = std::env::var("WAL_ELECTION").unwrap_or_else(|_| "2s".to_owned());
    let flags = ["-spool-bytes", &spool, "-raft-election-timeout", &election];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    let leader = cluster.wait_leader();
    let setup = json!([
        "CREATE TABLE large(id INTEGER PRIMARY KEY, payload BLOB)",
        "CREATE TABLE small(v)",
        "INSERT INTO small VALUES(1)"
    ]);
    let _ = cluster
        .client()
        .execute(cluster.address(leader), &setup)
        .expect_success();
    cluster.wait_all_ready();
    let terms: Vec<String> = (0..3).map(|node| term(&cluster, node)).collect();
    let before: Vec<u64> = (0..3).map(|node| peak_bytes(&cluster, node)).collect();
    let first = last_log_index(&cluster, leader);

    let rows = mib * 10;
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO large SELECT i, randomblob(104857) FROM n"
    );
    run(&cluster, leader, &format!("INSERT of {mib} MiB"), &insert);
    let second = last_log_index(&cluster, leader);
    assert!(
        second - first >= mib / 2,
        "too few parts: {first} to {second}"
    );
    run(&cluster, leader, &format!("VACUUM of {mib} MiB"), "VACUUM");
    let third = last_log_index(&cluster, leader);
    assert!(
        third - second >= mib / 2,
        "too few parts: {second} to {third}"
    );

    cluster.wait_all_ready();
    let image = cluster.assert_identical();
    assert!(image.bytes.len() as u64 >= mib * MIB);
    for node in 0..3 {
        let peak = peak_bytes(&cluster, node);
        let role = if node == leader { "leader" } else { "follower" };
        println!(
            "{role}: term {}, VmHWM {} MiB, {} MiB before",
            term(&cluster, node),
            peak / MIB,
            before[node] / MIB
        );
        assert_eq!(term(&cluster, node), terms[node], "an election took place");
        assert!(peak < 448 * MIB, "node {} took {peak} bytes", node + 1);
    }
    assert_eq!(cluster.wait_leader(), leader);
    cluster.assert_healthy_logs();
}

/// Kills a node alone that has a database of this size, and starts it again: the time until it is
/// ready, and the bytes that it has read by then.
fn restart(mib: u64) -> (Duration, u64) {
    let flags = ["-log-tail", "8388608", "-log-segment", "8388608"];
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let table = "CREATE TABLE large(id INTEGER PRIMARY KEY, payload BLOB)";
    let client = Client::new(TRANSACTION_PATIENCE);
    let _ = client
        .execute_sql(cluster.address(0), table)
        .expect_success();
    for _ in 0..mib / 2 {
        let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) \
                      INSERT INTO large(payload) SELECT randomblob(104857) FROM n";
        let _ = client
            .execute_sql(cluster.address(0), insert)
            .expect_success();
    }
    cluster.kill(0);
    let begun = Instant::now();
    cluster.start_node(0);
    cluster.wait_ready(0);
    let elapsed = begun.elapsed();
    let read = process_number(&cluster, 0, "io", "rchar");
    let peak = peak_bytes(&cluster, 0) / MIB;
    let client = Client::new(TRANSACTION_PATIENCE);
    let rows = client.query(cluster.address(0), "strong", "SELECT count(*) FROM large");
    assert_eq!(rows.unwrap()[0][0], json!(mib / 2 * 20));
    println!(
        "{mib} MiB: ready after {elapsed:.2?}, {} KiB read, VmHWM {peak} MiB",
        read / 1024
    );
    (elapsed, read)
}

#[test]
fn a_restart_after_a_kill_does_not_read_the_database() {
    // What a restart reads is the tail of the log that is kept (8 MiB), the segments that wait to be
    // purged (3 of 8 MiB), the WAL on which the record counts (some 16 MiB under this load, twice:
    // it is checked before it is moved), and what was written since, which is redone: half of this.
    let log_bytes_max = 192 * MIB;
    let mib = mebibytes("WAL_RESTART_MIB", 384);
    assert!(
        mib * MIB >= 2 * log_bytes_max,
        "too small a database to tell it from the log"
    );
    let (_, small) = restart(4);
    let (_, large) = restart(mib);
    for read in [small, large] {
        assert!(read < log_bytes_max, "{read} bytes read");
    }
}
