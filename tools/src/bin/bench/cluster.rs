//! Three nodes on this machine, and everything that is promised of them.

use std::time::Duration;

use clap::Args;
use tokio::runtime::Runtime;
use tools::bench::connection::Endpoint;
use tools::bench::workload::Level;
use tools::bench::{Load, Measurement, Workload, floors, processes, run};
use wal_tests::cluster::{Formation, ProcessCluster};

use super::table::Table;
use super::{echo_process, failures, seconds};

#[derive(Args)]
pub(crate) struct Cluster {
    /// How long each row is measured.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rows of the table that is read and updated.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// How many nodes there are.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Print JSON, an object per line.
    #[arg(long)]
    json: bool,
    /// Only rows whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
}

impl Cluster {
    pub(crate) fn run(&self, runtime: &Runtime) -> Result<(), String> {
        let time = seconds(self.seconds)?;
        let mut cluster = ProcessCluster::start(self.nodes.max(1), &Formation::Expect, &[]);
        let leader = cluster.wait_leader();
        let idle = self.resident(&cluster);
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut table = Table::new(self.json, floors::measure(dir.path(), time)?);
        for connections in ECHO_CONNECTIONS {
            let measured = runtime.block_on(echo_process::measure(connections, time))?;
            table.echo(connections, measured);
        }
        table.head();
        let mut sum = Ok(());
        for row in rows().iter().filter(|row| row.name.contains(&self.only)) {
            let rate = row.half_of.map(|name| table.rate(name) / 2.0);
            if rate.is_some_and(|rate| rate < 1.0) {
                continue;
            }
            let load = self.load(&cluster, leader, row, time, rate)?;
            let measured = runtime.block_on(run(&load))?;
            // The rest is worth seeing all the same.
            sum = sum.and(failures(&measured).map_err(|why| format!("{}: {why}", row.name)));
            table.add(row.name, measured);
        }
        table.memory("resident memory, idle", &idle);
        table.memory("resident memory after all that", &self.resident(&cluster));
        cluster.assert_healthy_logs();
        sum
    }

    fn load(
        &self,
        cluster: &ProcessCluster,
        leader: usize,
        row: &Row,
        time: Duration,
        rate: Option<f64>,
    ) -> Result<Load, String> {
        let follower = (leader + 1) % cluster.size();
        let node = if row.at_follower { follower } else { leader };
        let others = (0..cluster.size()).filter(|node| *node != leader);
        Ok(Load {
            endpoints: vec![Endpoint::parse(cluster.address(node), false, None, None)?],
            workload: row.workload,
            connections: row.connections,
            warm_up: time.min(Duration::from_secs(2)) / 2,
            time,
            rate,
            table_rows: self.rows,
            seed: 1,
            process_ids: std::iter::once(leader)
                .chain(others)
                .map(|node| cluster.process_id(node))
                .collect(),
        })
    }

    fn resident(&self, cluster: &ProcessCluster) -> Vec<u64> {
        let nodes = 0..cluster.size();
        nodes
            .map(|node| processes::resident_bytes(cluster.process_id(node)))
            .collect()
    }
}

/// What is measured.
struct Row {
    name: &'static str,
    workload: Workload,
    connections: usize,
    at_follower: bool,
    /// An open loop at half the rate of this row.
    half_of: Option<&'static str>,
}

fn rows() -> Vec<Row> {
    let row = |name, workload, connections| Row {
        name,
        workload,
        connections,
        at_follower: false,
        half_of: None,
    };
    let at_follower = |row: Row| Row {
        at_follower: true,
        ..row
    };
    let read = Workload::Read;
    vec![
        row("insert, 1 connection", Workload::Insert, 1),
        row(INSERT, Workload::Insert, 64),
        row("insert, 512 connections", Workload::Insert, 512),
        at_follower(row("insert, 64, at a follower", Workload::Insert, 64)),
        Row {
            half_of: Some(INSERT),
            ..row("insert, open loop at half of that", Workload::Insert, 64)
        },
        row("transactions of 100 rows, 8", Workload::Batch, 8),
        row("rows of 64 KiB, 8", Workload::Large, 8),
        row("update, 64", Workload::Update, 64),
        row("indexed update, 64", Workload::UpdateIndexed, 64),
        row("read none, 64", read(Level::None), 64),
        row("read weak, 64", read(Level::Weak), 64),
        row("read linearizable, 64", read(Level::Linearizable), 64),
        row("read strong, 64", read(Level::Strong), 64),
        at_follower(row("read none, 64, at a follower", read(Level::None), 64)),
        at_follower(row(
            "read linearizable, 64, at a follower",
            read(Level::Linearizable),
            64,
        )),
        row("90 % reads, 10 % updates, 64", Workload::Mixed, 64),
    ]
}

/// The measurement of an echo with these connections.
pub(crate) type EchoRow = (usize, Measurement);

const INSERT: &str = "insert, 64 connections";
const ECHO_CONNECTIONS: [usize; 3] = [1, 64, 512];
