//! Measures Wallaby, or anything else that speaks rqlite's HTTP API.
//!
//! ```text
//! cargo run --release --bin bench -- run --endpoints http://localhost:4001 --workload insert
//! cargo run --release --bin bench -- compare --a http://localhost:4001 --b http://localhost:5001
//! cargo run --release --bin bench -- floors
//! cargo run --release --bin bench -- cluster
//! cargo run --release --bin bench -- bytes
//! ```
//!
//! The figures are for a reader to judge by the machine and what else it does. The exit code tells of
//! errors only: it is not 0 when a request was not answered with a success.

mod bytes;
mod cluster;
mod echo_process;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tools::bench::connection::Endpoint;
use tools::bench::measurement::median;
use tools::bench::{Load, Measurement, Workload, echo, floors, plot, run};

/// Load for rqlite's HTTP API, and what the machine itself can do.
#[derive(Parser)]
#[command(name = "bench")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Send one workload to endpoints and print what came of it.
    Run(Run),
    /// Send one workload to two clusters in turns and print the ratios.
    Compare(Compare),
    /// Measure what the disk, plain SQLite and an HTTP echo can do here.
    Floors {
        /// Where the files are written.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// How long each is measured.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Start three nodes on this machine and measure all of it.
    Cluster(cluster::Cluster),
    /// Start three nodes on this machine and count the bytes that transactions cost.
    Bytes(bytes::Bytes),
    /// Answer HTTP requests with their bodies; prints the address.
    #[command(hide = true)]
    Echo,
}

#[derive(Args)]
struct Run {
    /// URLs, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:4001")]
    endpoints: Vec<String>,
    #[command(flatten)]
    shape: Shape,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Draw latencies and throughput into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

#[derive(Args)]
struct Compare {
    /// URLs of the first cluster, separated by commas.
    #[arg(long, value_delimiter = ',')]
    a: Vec<String>,
    /// URLs of the second.
    #[arg(long, value_delimiter = ',')]
    b: Vec<String>,
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Args)]
struct Shape {
    /// insert, batch, update, update-indexed, read-none, read-weak, read-linearizable, read-strong,
    /// mixed or large.
    #[arg(long, default_value = "insert", value_parser = Workload::named)]
    workload: Workload,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Sent before anything is measured.
    #[arg(long, default_value_t = 2.0)]
    warm_up: f64,
    /// Requests per second, due at fixed times (an open loop); default: each connection sends as
    /// soon as it has an answer.
    #[arg(long)]
    rate: Option<f64>,
    /// HTTP/2 instead of HTTP/1.1; over http:// with prior knowledge.
    #[arg(long)]
    h2: bool,
    /// File with the authorities of https:// endpoints.
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// Rows of the table that is read and updated.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Name and password, as name:password.
    #[arg(long)]
    user: Option<String>,
    /// Processes of this machine whose processor time is measured.
    #[arg(long, value_delimiter = ',')]
    processes: Vec<u32>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Shape {
    fn load(&self, urls: &[String]) -> Result<Load, String> {
        let user = self.user.as_deref();
        let authorities = self.ca_cert.as_deref();
        let endpoints = urls
            .iter()
            .map(|url| Endpoint::parse(url, self.h2, user, authorities));
        Ok(Load {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            workload: self.workload,
            connections: self.connections.max(1),
            warm_up: seconds(self.warm_up)?,
            time: seconds(self.seconds)?,
            rate: self.rate,
            table_rows: self.rows,
            seed: self.seed,
            process_ids: self.processes.clone(),
        })
    }
}

fn main() -> ExitCode {
    let command = Command::parse();
    let runtime = match &command.what {
        // As many threads as Wallaby has.
        What::Echo => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build(),
        // One: what the client takes, the nodes on the same machine do not have.
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
    };
    let result = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| match command.what {
            What::Run(run) => runtime.block_on(measure(&run)),
            What::Compare(compare) => runtime.block_on(both(&compare)),
            What::Floors { dir, seconds: time } => {
                seconds(time).and_then(|time| runtime.block_on(print_floors(&dir, time)))
            }
            What::Cluster(cluster) => cluster.run(&runtime),
            What::Bytes(bytes) => bytes.run(&runtime),
            What::Echo => runtime
                .block_on(echo::serve())
                .map_err(|error| error.to_string()),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn seconds(number: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number).map_err(|error| format!("{number} seconds: {error}"))
}

async fn measure(options: &Run) -> Result<(), String> {
    let measured = run(&options.shape.load(&options.endpoints)?).await?;
    if options.json {
        println!("{}", measured.json());
    } else {
        println!("{:<18} {}", options.shape.workload.name(), measured.line());
    }
    if let Some(path) = &options.svg {
        let name = options.shape.workload.name();
        let title = format!("{name}, {} connections", options.shape.connections);
        let svg = plot::svg(&title, &[(options.endpoints.join(","), &measured)]);
        std::fs::write(path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    failures(&measured)
}

/// An error if anything failed.
fn failures(measured: &Measurement) -> Result<(), String> {
    match &measured.first_failure {
        None if measured.latencies.is_empty() => Err("nothing was answered".to_owned()),
        None => Ok(()),
        Some(why) => Err(format!("{} requests failed: {why}", measured.failed)),
    }
}

/// A and B in turns, each first as often as the other.
async fn both(options: &Compare) -> Result<(), String> {
    let loads = [
        options.shape.load(&options.a)?,
        options.shape.load(&options.b)?,
    ];
    let (mut rates, mut medians) = (Vec::new(), Vec::new());
    for round in 0..options.rounds.max(1) {
        let mut rate = [0.0; 2];
        let mut latency = [0.0; 2];
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let measured = run(&loads[which]).await?;
            println!("{} {}", ["A", "B"][which], measured.line());
            failures(&measured)?;
            rate[which] = measured.rate();
            latency[which] = measured.latency(0.5) as f64;
        }
        rates.push(rate[0] / rate[1]);
        medians.push(latency[0] / latency[1]);
    }
    println!(
        "A / B: requests per second {:.2}, p50 {:.2} (medians of {} pairs)",
        median(&rates),
        median(&medians),
        rates.len()
    );
    Ok(())
}

async fn print_floors(dir: &std::path::Path, time: Duration) -> Result<(), String> {
    let floors = floors::measure(dir, time)?;
    let (p50, p99) = floors.sync_us;
    println!("fdatasync of 4 KiB: p50 {p50} us, p99 {p99} us");
    println!("SQLite FULL: {:.0} transactions/s", floors.sqlite_full);
    println!("SQLite OFF:  {:.0} transactions/s", floors.sqlite_off);
    for connections in [1, 64, 512] {
        let measured = echo_process::measure(connections, time).await?;
        println!("HTTP echo at {connections:>3}: {}", measured.line());
    }
    Ok(())
}
