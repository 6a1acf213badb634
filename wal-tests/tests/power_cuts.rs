//! The power fails, for real: each node has an ext4 file system of its own, which is shut down in
//! the middle of writes so that only what was synced is found again (`wal_tests::power_disk`). One
//! node alone, and all nodes of a cluster at once.
//!
//! After each cut the nodes are killed, the file systems mounted again and the nodes started: all
//! that was acknowledged is there, nothing by halves, and all nodes have the same bytes. Some cuts
//! come while the nodes are starting.
//!
//! `WAL_POWER_CUTS=2000 WAL_POWER_CUTS_OF_ALL=200` cuts more often than the 100 and 10 of the
//! default. Who may not mount file systems skips this with a message, unless one of these variables
//! is set.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::power_disk::{Cut, PowerDisk};
use wal_tests::seed::{Random, seed};

/// Small, so that segments begin and end, checkpoints run and the log is purged between two cuts;
/// and an election needs no long patience where all nodes start at once.
const FLAGS: [&str; 8] = [
    "-log-segment",
    "1048576",
    "-log-tail",
    "1048576",
    "-raft-snap-wal-size",
    "262144",
    "-entry-bytes",
    "131072",
];
const DISK_MIB: u64 = 256;
const CLIENTS: u64 = 4;
/// A cluster that acknowledges nothing for so long is cut all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often, and whether somebody insists.
fn cuts(variable: &str, default: usize) -> (usize, bool) {
    let wanted = std::env::var(variable);
    let cuts = wanted
        .as_ref()
        .map_or(default, |cuts| cuts.parse().unwrap());
    (cuts, wanted.is_ok())
}

/// A cluster whose nodes each have a disk.
struct Powered {
    // Unmounted before the directories on which they are mounted go.
    disks: Vec<PowerDisk>,
    cluster: ProcessCluster,
    client: Client,
    random: Random,
    /// Of each client the highest number that was acknowledged.
    acknowledged: BTreeMap<u64, u64>,
    /// Of each client the highest number that may be there.
    attempted: BTreeMap<u64, u64>,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Figures {
    cuts: usize,
    while_starting: usize,
    writes_acknowledged: u64,
    writes_checked: u64,
    unknown_and_there: u64,
    unknown_and_gone: u64,
    bytes_compared: usize,
}

impl Powered {
    /// `None` where it cannot be done; it has said why.
    fn start(nodes: usize, insisted: bool, seed: u64) -> Option<Self> {
        let formation = if nodes == 1 {
            Formation::Join
        } else {
            Formation::Expect
        };
        let mut cluster = ProcessCluster::prepare(nodes, &formation, &FLAGS);
        let mut disks = Vec::new();
        for node in 0..nodes {
            match PowerDisk::new(cluster.data_dir(node), DISK_MIB) {
                Ok(disk) => disks.push(disk),
                Err(why) => {
                    println!("SKIPPED: no power can be cut on this machine: {why}");
                    assert!(!insisted, "{why}");
                    return None;
                }
            }
        }
        cluster.start_all(&formation);
        let mut powered = Self {
            disks,
            cluster,
            client: Client::new(Duration::from_secs(10)),
            random: Random::new(seed),
            acknowledged: (0..CLIENTS).map(|client| (client, 0)).collect(),
            attempted: (0..CLIENTS).map(|client| (client, 0)).collect(),
            figures: Figures::default(),
        };
        let leader = powered.cluster.wait_leader();
        for sql in [
            "CREATE TABLE t(client INTEGER, number INTEGER, body BLOB, \
             PRIMARY KEY(client, number)) WITHOUT ROWID",
            "CREATE TABLE total(client INTEGER PRIMARY KEY, numbers INTEGER)",
            "INSERT INTO total VALUES (0, 0), (1, 0), (2, 0), (3, 0)",
        ] {
            let address = powered.cluster.address(leader);
            let _ = powered.client.execute_sql(address, sql).expect_success();
        }
        Some(powered)
    }

    fn nodes(&self) -> std::ops::Range<usize> {
        0..self.disks.len()
    }

    /// Clients write until the power goes; all of their numbers from their last one on.
    fn write_until_cut(&mut self) {
        let leader = self.cluster.wait_leader();
        let (is_over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        // However busy the machine is, there are some writes between two cuts.
        let writes = self.random.number_below(60);
        let delay = Duration::from_micros(self.random.number_below(20_000));
        let cut = match self.random.below(6) {
            0 => Cut::AllWritten,
            1 => Cut::JournalWritten,
            _ => Cut::JournalLost,
        };
        let mut results = Vec::new();
        std::thread::scope(|scope| {
            let mut writers = Vec::new();
            for client in 0..CLIENTS {
                let random = self.random.fork();
                let first = self.attempted[&client] + 1;
                let address = self.cluster.address(leader).to_owned();
                let (is_over, answered) = (&is_over, &answered);
                writers.push(
                    scope.spawn(move || write(&address, client, first, random, is_over, answered)),
                );
            }
            let begin = Instant::now();
            while answered.load(Ordering::Relaxed) < writes && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(delay);
            let (disks, cluster) = (&self.disks, &mut self.cluster);
            // All of them at one moment, as near as threads come to it.
            std::thread::scope(|scope| {
                for disk in disks {
                    scope.spawn(move || disk.cut(cut));
                }
            });
            // What is answered from here on is a lie if it is an acknowledgement: it counts.
            std::thread::sleep(Duration::from_millis(5));
            for node in 0..disks.len() {
                cluster.kill(node);
            }
            is_over.store(true, Ordering::Relaxed);
            results.extend(writers.into_iter().map(|writer| writer.join().unwrap()));
        });
        self.figures.cuts += 1;
        for (client, (acknowledged, attempted)) in (0..CLIENTS).zip(results) {
            let before = self.acknowledged[&client];
            self.figures.writes_acknowledged += acknowledged.saturating_sub(before);
            self.acknowledged.insert(client, acknowledged.max(before));
            self.attempted.insert(client, attempted);
        }
    }

    /// Starts all nodes on what is on their disks now, some of them only to be cut again.
    fn power_up(&mut self) {
        loop {
            for disk in &self.disks {
                disk.power_up();
            }
            for node in self.nodes() {
                self.cluster.start_node(node);
            }
            if !self.random.chance(15) {
                return;
            }
            let delay = self.random.number_below(150_000);
            std::thread::sleep(Duration::from_micros(delay));
            for disk in &self.disks {
                disk.cut(Cut::JournalLost);
            }
            for node in self.nodes() {
                self.cluster.kill(node);
            }
            self.figures.while_starting += 1;
            self.figures.cuts += 1;
        }
    }

    /// Everything acknowledged is there, without a gap, and the totals are those of the rows.
    fn check(&mut self) {
        self.cluster.wait_all_ready();
        let sql = "SELECT t.client, count(*), min(number), max(number), numbers \
             FROM t JOIN total USING (client) GROUP BY t.client";
        let leader = self.cluster.wait_leader();
        let client = self.client.clone();
        let rows = self.cluster.wait("the rows", |cluster| {
            client.query(cluster.address(leader), "linearizable", sql)
        });
        let mut found = BTreeMap::new();
        for row in rows {
            let numbers: Vec<u64> = row.iter().map(|cell| cell.as_u64().unwrap()).collect();
            let [client, count, min, max, total] = numbers[..] else {
                panic!("{row:?}");
            };
            assert_eq!(count, max - min + 1, "client {client} has a gap: {row:?}");
            assert_eq!(total, max, "client {client}: half a write: {row:?}");
            found.insert(client, max);
        }
        for client in 0..CLIENTS {
            let max = found.get(&client).copied().unwrap_or(0);
            let acknowledged = self.acknowledged[&client];
            let attempted = self.attempted[&client];
            assert!(
                (acknowledged..=attempted).contains(&max),
                "client {client}: {acknowledged} acknowledged of {attempted}, and {max} found \
                 after cut {}",
                self.figures.cuts
            );
            self.figures.unknown_and_there += max - acknowledged;
            self.figures.unknown_and_gone += attempted - max;
            self.figures.writes_checked += acknowledged;
            self.acknowledged.insert(client, max);
            self.attempted.insert(client, max);
        }
    }

    /// The pages of all nodes are equal, and SQLite finds them sound.
    fn compare(&mut self) {
        let image = self.cluster.assert_identical();
        self.figures.bytes_compared += image.bytes.len() * self.disks.len();
    }

    /// Rows that were checked often enough go, so that the disk stays large enough.
    fn tidy_up(&mut self) {
        let leader = self.cluster.wait_leader();
        let sql = "DELETE FROM t WHERE number < (SELECT numbers FROM total \
             WHERE total.client = t.client) - 50";
        let address = self.cluster.address(leader);
        let _ = self.client.execute_sql(address, sql).expect_success();
    }
}

/// Writes one number after the other until the power goes: the last acknowledged and the last that
/// was tried. One in sixteen is a large transaction, in parts.
fn write(
    address: &str,
    client: u64,
    first: u64,
    mut random: Random,
    is_over: &AtomicBool,
    answered: &AtomicU64,
) -> (u64, u64) {
    let mut acknowledged = 0;
    let http = Client::new(Duration::from_secs(10));
    for number in first.. {
        if is_over.load(Ordering::Relaxed) {
            return (acknowledged, number - 1);
        }
        let bytes = if random.below(16) == 0 { 200_000 } else { 200 };
        let statements: Value = serde_json::json!([
            format!("INSERT INTO t VALUES ({client}, {number}, randomblob({bytes}))"),
            format!("UPDATE total SET numbers = {number} WHERE client = {client}"),
        ]);
        match http.execute(address, &statements) {
            Outcome::Answered(answer) if answer.error().is_none() => {
                acknowledged = number;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::NotCommitted(_) => return (acknowledged, number - 1),
            Outcome::Answered(_) | Outcome::Unknown(_) => return (acknowledged, number),
        }
    }
    unreachable!("there are more numbers than that")
}

fn run(nodes: usize, (wanted, insisted): (usize, bool), compared_every: usize) {
    let seed = seed("power_cuts");
    let Some(mut powered) = Powered::start(nodes, insisted, seed) else {
        return;
    };
    let begin = Instant::now();
    let mut round = 0;
    while powered.figures.cuts < wanted {
        powered.write_until_cut();
        powered.power_up();
        powered.check();
        round += 1;
        if round % compared_every == 0 || powered.figures.cuts >= wanted {
            powered.compare();
            powered.tidy_up();
        }
    }
    powered.cluster.assert_healthy_logs();
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{nodes} nodes: {} power cuts, 0 acknowledged writes lost, in {seconds:.1} s: {:?}",
        powered.figures.cuts, powered.figures
    );
    // A power cut that meets no writes proves nothing.
    assert!(powered.figures.writes_acknowledged >= wanted as u64);
}

#[test]
fn a_power_cut_of_one_node_loses_nothing_acknowledged() {
    run(1, cuts("WAL_POWER_CUTS", 100), 10);
}

#[test]
fn a_power_cut_of_a_whole_cluster_loses_nothing_acknowledged() {
    run(3, cuts("WAL_POWER_CUTS_OF_ALL", 10), 1);
}

#[test]
fn a_disk_gets_no_power_while_another_namespace_has_it_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let mounted_on = dir.path().join("disk");
    let disk = match PowerDisk::new(&mounted_on, 16) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no power can be cut on this machine: {why}"),
    };
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-c", "echo held; sleep 1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(holder.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    disk.cut(Cut::JournalLost);
    disk.power_up();
    std::fs::write(mounted_on.join("file"), b"written").unwrap();
    holder.wait().unwrap();
}
