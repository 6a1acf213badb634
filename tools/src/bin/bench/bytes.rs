//! Three nodes on this machine, and the bytes that transactions cost in the log and on the network.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::runtime::Runtime;
use tools::bench::connection::Endpoint;
use tools::bench::{Load, Transaction, Workload, run};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::Random;

use super::{failures, seconds};

#[derive(Args)]
pub(crate) struct Bytes {
    /// How long each row is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rows of the table that is updated.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// With how many connections; the more there are, the larger are the groups.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    connections: Vec<usize>,
    /// Print JSON, an object per line.
    #[arg(long)]
    json: bool,
}

/// What a node has counted since it started.
struct Counted {
    groups: f64,
    pages: f64,
    stored: f64,
    entries: f64,
    log: f64,
    sent: f64,
}

impl Bytes {
    pub(crate) fn run(&self, runtime: &Runtime) -> Result<(), String> {
        let time = seconds(self.seconds)?;
        let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
        let leader = cluster.wait_leader();
        if !self.json {
            println!("bytes per transaction");
            println!(
                "| {:<24} | connections | group | SQL | pages | encoded | entry | log | sent to each |",
                ""
            );
            println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        }
        let mut seed = 0;
        for (transaction, _, name) in Transaction::ALL {
            for connections in &self.connections {
                // No UUID twice; each connection has a seed of its own.
                seed += 10_000;
                let load = Load {
                    seed,
                    ..self.load(&cluster, leader, transaction, *connections, time)?
                };
                // Tables are made and filled now, and the first pages are there.
                let begun = Load {
                    time: Duration::from_millis(300),
                    seed: seed + 5000,
                    ..load.clone()
                };
                failures(&runtime.block_on(run(&begun))?)?;
                let before = Counted::now(&cluster, leader)?;
                let measured = runtime.block_on(run(&load))?;
                failures(&measured)?;
                let after = Counted::now(&cluster, leader)?;
                let answered = measured.latencies.len() as f64;
                self.print(name, *connections, &after.since(&before), answered, {
                    sql_bytes(transaction, self.rows)
                });
            }
        }
        cluster.assert_healthy_logs();
        Ok(())
    }

    fn load(
        &self,
        cluster: &ProcessCluster,
        leader: usize,
        transaction: Transaction,
        connections: usize,
        time: Duration,
    ) -> Result<Load, String> {
        Ok(Load {
            endpoints: vec![Endpoint::parse(cluster.address(leader), false, None, None)?],
            workload: Workload::Sql(transaction),
            connections: connections.max(1),
            warm_up: Duration::ZERO,
            time,
            rate: None,
            table_rows: self.rows,
            seed: 1,
            process_ids: Vec::new(),
        })
    }

    fn print(&self, name: &str, connections: usize, counted: &Counted, answered: f64, sql: f64) {
        let each = |sum: f64| sum / answered;
        let group = answered / counted.groups;
        if self.json {
            let row = json!({
                "row": name,
                "connections": connections,
                "group": group,
                "sql": sql,
                "pages": each(counted.pages),
                "encoded": each(counted.stored),
                "entry": each(counted.entries),
                "log": each(counted.log),
                "sent": each(counted.sent) / 2.0,
            });
            println!("{row}");
            return;
        }
        println!(
            "| {name:<24} | {connections:>11} | {group:>5.1} | {sql:>3.0} | {:>5.0} | {:>7.0} | \
             {:>5.0} | {:>3.0} | {:>12.0} |",
            each(counted.pages),
            each(counted.stored),
            each(counted.entries),
            each(counted.log),
            each(counted.sent) / 2.0,
        );
    }
}

impl Counted {
    fn now(cluster: &ProcessCluster, node: usize) -> Result<Self, String> {
        let status = cluster.client().json(cluster.address(node), "/status")?;
        let replication = &status["wallaby"]["replication"];
        let of = |value: &serde_json::Value| value.as_f64().ok_or("the status lacks a counter");
        Ok(Self {
            groups: of(&replication["deltas"])?,
            pages: of(&replication["page_bytes"])?,
            stored: of(&replication["stored_bytes"])?,
            entries: of(&replication["delta_bytes"])?,
            log: of(&status["wallaby"]["log_written"])?,
            sent: of(&replication["bytes_sent"])?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            groups: self.groups - before.groups,
            pages: self.pages - before.pages,
            stored: self.stored - before.stored,
            entries: self.entries - before.entries,
            log: self.log - before.log,
            sent: self.sent - before.sent,
        }
    }
}

/// The bytes of the statements of a transaction, on average.
fn sql_bytes(transaction: Transaction, rows: u64) -> f64 {
    let mut random = Random::new(1);
    let each = |_| {
        let statements = transaction.statements(&mut random, rows);
        statements.iter().map(String::len).sum::<usize>()
    };
    let sum: usize = (0..SAMPLES).map(each).sum();
    sum as f64 / f64::from(SAMPLES)
}

const SAMPLES: u32 = 1000;
