//! Whether the leader stays in office under full write load, large transactions among it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use wal_tests::checker;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};
use wal_tests::workload::{self, Fate, Workload};

/// Writes for so many minutes and reports every change of the term.
pub(crate) fn run(minutes: usize) -> Result<(), String> {
    println!("before: {}", super::load());
    let mut random = Random::new(seed("failover"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    for sql in [
        workload::TABLE,
        "CREATE TABLE large(id INTEGER PRIMARY KEY, v)",
    ] {
        let created = cluster.client().execute_sql(cluster.address(0), sql);
        let _ = created.expect_success();
    }
    let addresses = cluster.addresses();
    let small = Workload::start("small", &addresses, SMALL_WRITERS, PATIENCE, &mut random);
    let large = Arc::new(Large::default());
    let writer = {
        let (large, random) = (Arc::clone(&large), random.fork());
        std::thread::spawn(move || large.write(&addresses, random))
    };
    let begun = Instant::now();
    let time = Duration::from_secs(60) * u32::try_from(minutes).unwrap_or(u32::MAX);
    let mut known = term(&cluster);
    let mut elections = 0;
    while begun.elapsed() < time {
        std::thread::sleep(LOOK_INTERVAL);
        let now = term(&cluster);
        if now > known {
            elections += now - known;
            println!(
                "after {:.0} s: term {now} follows {known}; {}",
                begun.elapsed().as_secs_f64(),
                super::load()
            );
            known = now;
        }
    }
    large.stop.store(true, Ordering::Relaxed);
    let history = small.stop();
    writer.join().map_err(|_| "a writer has panicked")?;
    let image = cluster.assert_identical();
    checker::assert_kept(&history, &cluster.open(&image));
    cluster.assert_healthy_logs();
    let seconds = begun.elapsed().as_secs_f64();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{minutes} minutes: {elections} elections; {:.0} small rows/s, {} large transactions of \
         64 KiB to 8 MiB ({:.1} MiB/s); {} small rows and {} large transactions not acknowledged",
        history.count(Fate::Acknowledged) as f64 / seconds,
        count(&large.written),
        count(&large.bytes) as f64 / seconds / f64::from(1 << 20),
        history.count(Fate::Refused) + history.count(Fate::Unknown),
        count(&large.failed),
    );
    println!("after: {}", super::load());
    Ok(())
}

/// The highest term that any node knows of.
fn term(cluster: &ProcessCluster) -> u64 {
    let client = Client::new(Duration::from_secs(5));
    let known = (0..cluster.size()).filter_map(|node| {
        let status = client.json(cluster.address(node), "/status?key=store.raft.term");
        let term = status.ok()?;
        term.as_u64().or_else(|| term.as_str()?.parse().ok())
    });
    known.max().unwrap_or(0)
}

#[derive(Default)]
struct Large {
    written: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

impl Large {
    /// Replaces a part of a table of bounded size, with sizes spread evenly over the octaves.
    fn write(&self, addresses: &[String], mut random: Random) {
        let client = Client::new(PATIENCE);
        while !self.stop.load(Ordering::Relaxed) {
            let bytes = (64 << 10 << random.below(7)) + random.number_below(64 << 10);
            let bytes = bytes.min(8 << 20);
            let rows = bytes / ROW_BYTES;
            let insert = format!(
                "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
                 INSERT OR REPLACE INTO large SELECT (i * 7919 + {}) % {ROWS}, \
                 randomblob({ROW_BYTES}) FROM n",
                random.below(ROWS)
            );
            let address = &addresses[random.below(addresses.len())];
            match client.execute(address, &json!([insert])) {
                Outcome::Answered(answer) if answer.error().is_none() => {
                    self.written.fetch_add(1, Ordering::Relaxed);
                    self.bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                _ => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(LOOK_INTERVAL);
                }
            }
        }
    }
}

const SMALL_WRITERS: usize = 8;
const ROW_BYTES: u64 = 3900;
/// 32 MiB.
const ROWS: usize = 8192;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);
