//! A follower is killed while it receives and installs the whole database.
//!
//! `WAL_ATTEMPTS=100 cargo test -p wal-tests --test install_kill` tries more moments than the few
//! of the default.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

/// No tail of the log: whoever is away for a few entries needs the whole database.
const FLAGS: [&str; 6] = [
    "-log-tail",
    "0",
    "-log-segment",
    "1048576",
    "-raft-snap-wal-size",
    "1048576",
];
const PATIENCE: Duration = Duration::from_secs(60);
/// The database is overwritten in place, so it does not grow with the attempts.
const ROWS: u64 = 1000;

/// What of a received database a data directory holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spooled {
    Nothing,
    Incoming(u64),
    Installing,
}

fn spooled(dir: &Path) -> Spooled {
    if dir.join("installing").exists() {
        return Spooled::Installing;
    }
    for file in std::fs::read_dir(dir).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("incoming-") {
            // It may be renamed just now.
            return file
                .metadata()
                .map_or(Spooled::Installing, |found| Spooled::Incoming(found.len()));
        }
    }
    Spooled::Nothing
}

fn number(cluster: &ProcessCluster, node: usize, name: &str) -> u64 {
    let status = cluster
        .client()
        .json(cluster.address(node), "/status")
        .unwrap();
    let raft = status["store"]["raft"][name].as_str();
    raft.map_or_else(
        || status["wallaby"][name].as_u64().unwrap(),
        |text| text.parse().unwrap(),
    )
}

/// Changes every page until the leader has purged its log behind the others' last entry.
fn purge(cluster: &mut ProcessCluster) {
    let leader = cluster.wait_leader();
    let last = number(cluster, leader, "last_log_index");
    let client = Client::new(Duration::from_secs(30));
    let deadline = Instant::now() + PATIENCE;
    while number(cluster, leader, "purged_index") <= last {
        assert!(Instant::now() < deadline, "the log is not purged");
        let sql = "UPDATE filler SET payload = randomblob(10240)";
        let _ = client
            .execute_sql(cluster.address(leader), sql)
            .expect_success();
    }
}

/// Where the follower is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Moment {
    /// So many bytes have arrived.
    Received(u64),
    /// So long after the database is complete under its final name.
    Renamed(Duration),
    /// So long after that file is gone again.
    Removed(Duration),
}

/// Waits for the moment; returns what the follower had then.
fn wait_moment(dir: &Path, moment: Moment) -> Spooled {
    let deadline = Instant::now() + PATIENCE;
    let mut begun = false;
    loop {
        let now = spooled(dir);
        begun |= now != Spooled::Nothing;
        let (reached, delay) = match (moment, now) {
            (Moment::Received(bytes), Spooled::Incoming(found)) => (found >= bytes, Duration::ZERO),
            (Moment::Received(_), Spooled::Installing) => (true, Duration::ZERO),
            (Moment::Renamed(delay), Spooled::Installing) => (true, delay),
            (Moment::Removed(delay), Spooled::Nothing) => (begun, delay),
            (_, Spooled::Nothing) => (begun, Duration::ZERO),
            _ => (false, Duration::ZERO),
        };
        if reached {
            std::thread::sleep(delay);
            return spooled(dir);
        }
        assert!(Instant::now() < deadline, "no database is received");
        std::thread::sleep(Duration::from_micros(500));
    }
}

#[test]
fn a_follower_killed_while_it_installs_a_database_ends_with_the_same_one() {
    let mut random = Random::new(seed("install_kill"));
    let attempts = std::env::var("WAL_ATTEMPTS").map_or(3, |text| text.parse().unwrap());
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &FLAGS);
    let leader = cluster.wait_leader();
    let table = format!(
        "CREATE TABLE filler(payload BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL \
         SELECT i + 1 FROM n WHERE i < {ROWS}) INSERT INTO filler SELECT zeroblob(10240) FROM n"
    );
    let (create, fill) = table.split_once(';').unwrap();
    for sql in [create, fill] {
        let _ = cluster
            .client()
            .execute_sql(cluster.address(leader), sql)
            .expect_success();
    }
    let (mut incoming, mut installing) = (0, 0);
    for attempt in 0..attempts {
        let leader = cluster.wait_leader();
        let follower = (leader + 1 + random.below(2)) % 3;
        cluster.kill(follower);
        purge(&mut cluster);
        let millis = |random: &mut Random, limit: usize| {
            Duration::from_millis(u64::try_from(random.below(limit)).unwrap())
        };
        let moment = match attempt % 3 {
            0 => Moment::Received(random.bits() % (ROWS * 10240)),
            1 => Moment::Renamed(millis(&mut random, 400)),
            _ => Moment::Removed(millis(&mut random, 20)),
        };
        let dir = cluster.data_dir(follower).to_owned();
        cluster.start_node(follower);
        let _ = wait_moment(&dir, moment);
        cluster.kill(follower);
        let found = spooled(&dir);
        println!("{attempt}: {moment:?}: {found:?}");
        match found {
            Spooled::Incoming(_) => incoming += 1,
            Spooled::Installing => installing += 1,
            Spooled::Nothing => {}
        }
        cluster.start_node(follower);
        cluster.wait_all_ready();
        let _ = cluster.assert_identical();
        cluster.wait("the received database to be removed", |_| {
            match spooled(&dir) {
                Spooled::Nothing => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    println!("killed {incoming} times before the rename, {installing} times after it");
    assert!(
        incoming + installing > 0,
        "it was never killed at the right moment"
    );
    cluster.assert_healthy_logs();
}
