//! How long checkpoints and transfers keep writes waiting.
//!
//! ```text
//! cargo run --release -p tools --bin holds -- --mib 512
//! ```
//!
//! A node alone, and the leader of three: a client that reads an image slowly keeps checkpoints
//! back until the WAL has so many MiB; then it goes away, and the WAL is moved while others write.
//! Then the same MiB in one transaction. Printed are the longest time that one step of a checkpoint,
//! or one freeze, has kept the thread that writes, and the latencies of small writes, before and
//! meanwhile.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mib = match words[..] {
        [] => Some(512),
        ["--mib", mib] => mib.parse().ok(),
        _ => None,
    };
    let Some(mib) = mib.filter(|mib| (8..=900).contains(mib)) else {
        eprintln!("usage: holds [--mib 8..900]");
        return ExitCode::FAILURE;
    };
    let mut is_well = true;
    for nodes in [1, 3] {
        for is_one in [false, true] {
            is_well &= run(nodes, mib, is_one).map_err(|why| eprintln!("holds: {why}")) == Ok(());
        }
    }
    ExitCode::from(u8::from(!is_well))
}

fn run(nodes: usize, mib: u64, is_one: bool) -> Result<(), String> {
    let mut cluster = ProcessCluster::start(nodes, &Formation::Join, &[]);
    let leader = cluster.wait_leader();
    let address = cluster.address(leader).to_owned();
    let client = Client::new(Duration::from_secs(300));
    write(
        &client,
        &address,
        "CREATE TABLE large(id INTEGER PRIMARY KEY, v)",
    )?;
    write(
        &client,
        &address,
        "CREATE TABLE small(id INTEGER PRIMARY KEY, v)",
    )?;
    // More than all buffers between the node and a client that does not read.
    grow(&client, &address, 64)?;
    let filled = status(&client, &address)?["data_index"].as_u64();
    wait_recorded(&client, &address, filled)?;
    let before = Writers::run(&address, || {
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    })?;
    let meanwhile = if is_one {
        let rows = mib * ROWS_PER_MIB;
        write(&client, &address, &insert(rows))?;
        Writers::run(&address, || wait_moved(&client, &address))?
    } else {
        let stalled = stall(&address)?;
        for _ in 0..mib / GROW_MIB {
            grow(&client, &address, GROW_MIB)?;
        }
        // Freezing a long WAL costs more than freezing a short one.
        drop(stall(&address)?);
        drop(stalled);
        Writers::run(&address, || wait_moved(&client, &address))?
    };
    let how = if is_one {
        "one transaction"
    } else {
        "a long freeze"
    };
    let after = status(&client, &address)?;
    println!("{nodes} nodes, {mib} MiB of WAL by {how}:");
    println!(
        "  longest hold {:.1} ms of {} pieces; longest freeze {:.1} ms",
        millis(&after["checkpoint"]["longest_us"]),
        after["checkpoint"]["pieces"],
        millis(&after["snapshots"]["longest_freeze_us"]),
    );
    println!("  writes before:    {before}");
    println!("  writes meanwhile: {meanwhile}");
    Ok(())
}

fn write(client: &Client, address: &str, sql: &str) -> Result<(), String> {
    match client.execute(address, &json!([sql])) {
        Outcome::Answered(answer) if answer.error().is_none() => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn insert(rows: u64) -> String {
    format!(
        "INSERT INTO large(v) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n \
         WHERE i < {rows}) SELECT randomblob(3900) FROM n"
    )
}

fn grow(client: &Client, address: &str, mib: u64) -> Result<(), String> {
    (0..mib).try_for_each(|_| write(client, address, &insert(ROWS_PER_MIB)))
}

/// Begins to read the image, and stops.
fn stall(address: &str) -> Result<TcpStream, String> {
    let begin = || {
        let mut stream = TcpStream::connect(address)?;
        let head = format!("GET /wallaby/image HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.read_exact(&mut [0; 64])?;
        Ok(stream)
    };
    begin().map_err(|error: std::io::Error| error.to_string())
}

fn status(client: &Client, address: &str) -> Result<Value, String> {
    client.json(address, "/status?key=wallaby")
}

fn wait_recorded(client: &Client, address: &str, index: Option<u64>) -> Result<(), String> {
    let begun = Instant::now();
    while status(client, address)?["checkpoint"]["index"].as_u64() < index {
        if begun.elapsed() > PATIENCE {
            return Err(format!("no checkpoint for {PATIENCE:?}"));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

/// Until what is in the WAL now is in the main file, and recorded.
fn wait_moved(client: &Client, address: &str) -> Result<(), String> {
    let now = status(client, address)?["data_index"].as_u64();
    wait_recorded(client, address, now)
}

/// Latencies of small writes.
struct Writers(Vec<Duration>);

impl Writers {
    /// Writes from several clients while `work` goes on.
    fn run(address: &str, work: impl FnOnce() -> Result<(), String>) -> Result<Self, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (stop, address) = (Arc::clone(&stop), address.to_owned());
                std::thread::spawn(move || small_writes(&address, &stop))
            })
            .collect();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in writers {
            all.extend(writer.join().map_err(|_| "a writer has panicked")??);
        }
        done?;
        all.sort_unstable();
        Ok(Self(all))
    }

    fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = self.0.get(last * percent / 100);
        at.map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

fn small_writes(address: &str, stop: &AtomicBool) -> Result<Vec<Duration>, String> {
    let client = Client::new(Duration::from_secs(60));
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        write(
            &client,
            address,
            "INSERT INTO small(v) VALUES(randomblob(100))",
        )?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

impl std::fmt::Display for Writers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{:6}, median {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            self.0.len(),
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
        )
    }
}

fn millis(micros: &Value) -> f64 {
    micros.as_f64().unwrap_or_default() / 1e3
}

const ROWS_PER_MIB: u64 = 256;
const GROW_MIB: u64 = 4;
const WRITERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
