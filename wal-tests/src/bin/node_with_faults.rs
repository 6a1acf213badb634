//! `wallaby serve` over the VFS of `wal_tests::faulty_vfs`, with the few flags that tests give it.
//! A node that goes out of service is left running, so that it can be asked why.
//!
//! The Unix socket `DATA-DIRECTORY.control` takes one line per connection and answers with one: a
//! fault to arm ("ok"), `disarm` or `state` ("struck" or "waiting"), or `halt` with the line of its
//! log at which the process is to stop ("ok"; see `wal_tests::halt`). The variable `WAL_HALT_AT`
//! names such a line from the start.
//!
//! With the variable `WAL_TRACE` it appends all that it does to its files to the file
//! `DATA-DIRECTORY.trace`, and with `WAL_FAULT` one of these calls fails (`wal_tests::recorder`).

#[path = "../interposed.rs"]
mod interposed;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use wal_tests::{faulty_vfs, halt, recorder};
use wallaby::http::HttpOptions;
use wallaby::node::{Node, NodeOptions};

fn main() -> std::process::ExitCode {
    faulty_vfs::register();
    if let Some(halt) = std::env::var(halt::VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        halt::arm(halt);
    }
    tracing_subscriber::fmt()
        .with_env_filter(LOGGED)
        .with_writer(|| halt::Log)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(serve()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told if stderr is gone.
            let _ = writeln!(std::io::stderr(), "node_with_faults: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let (options, http_addr) = options(std::env::args().skip(1))?;
    record(&options.data_dir)?;
    let control = options.data_dir.with_extension("control");
    // Left over from the process before, or not there.
    let _ = std::fs::remove_file(&control);
    let control = UnixListener::bind(control)?;
    std::thread::spawn(move || {
        for stream in control.incoming().flatten() {
            // A test that does not wait for the answer has no use for it.
            let _ = obey(&stream);
        }
    });
    let listener = TcpListener::bind(&http_addr).await?;
    let node = Node::open(options).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        terminate.recv().await;
    };
    wallaby::http::serve(node.clone(), listener, HttpOptions::default(), stop).await?;
    node.close().await;
    Ok(())
}

fn record(data_dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    if std::env::var_os("WAL_TRACE").is_none() {
        return Ok(());
    }
    let trace = data_dir.with_extension("trace");
    let trace = std::fs::File::options()
        .create(true)
        .append(true)
        .open(trace)?;
    let fault = std::env::var("WAL_FAULT").ok();
    let fault = fault.map(|fault| fault.parse()).transpose()?;
    recorder::watch_into(data_dir, trace, fault);
    Ok(())
}

fn obey(mut stream: &UnixStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if let Some(halt) = line.strip_prefix("halt ") {
        let halt = halt.trim_end().parse().map(halt::arm);
        return stream.write_all(
            halt.map_or_else(|error| error, |()| "ok".to_owned())
                .as_bytes(),
        );
    }
    let answer = match (line.trim(), line.parse()) {
        ("disarm", _) if faulty_vfs::disarm() => "waiting".to_owned(),
        ("state", _) if faulty_vfs::is_armed() => "waiting".to_owned(),
        ("disarm" | "state", _) => "struck".to_owned(),
        (_, Ok(fault)) => {
            faulty_vfs::arm(fault);
            "ok".to_owned()
        }
        (_, Err(error)) => error,
    };
    stream.write_all(answer.as_bytes())
}

/// Reads `serve`, flags with their values, and the data directory.
fn options(
    mut arguments: impl Iterator<Item = String>,
) -> Result<(NodeOptions, String), Box<dyn std::error::Error>> {
    let mut flags = Vec::new();
    let mut data_dir = None;
    while let Some(argument) = arguments.next() {
        if argument.starts_with('-') {
            let value = arguments.next().ok_or("a flag without a value")?;
            flags.push((argument, value));
        } else if argument != "serve" {
            data_dir = Some(PathBuf::from(argument));
        }
    }
    let data_dir = data_dir.ok_or("no data directory")?;
    let mut options = NodeOptions::new(data_dir, String::new(), String::new());
    for (flag, value) in flags {
        match flag.as_str() {
            "-node-id" => options.name = Some(value),
            "-http-addr" => options.http_adv_addr = value,
            "-raft-addr" => options.raft_addr = value,
            "-join" => options.join = value.split(',').map(str::to_owned).collect(),
            "-bootstrap-expect" => options.bootstrap_expect = value.parse()?,
            "-raft-heartbeat-timeout" => options.heartbeat = Some(span(&value)?),
            "-raft-election-timeout" => options.election = Some(span(&value)?),
            "-log-tail" => options.log_tail_bytes = value.parse()?,
            "-log-segment" => options.log_segment_bytes = value.parse()?,
            "-raft-snap-wal-size" => options.checkpoint_wal_bytes = value.parse()?,
            "-max-transaction-bytes" => options.transaction_bytes_max = value.parse()?,
            "-raft-non-voter" => options.replica = value.parse()?,
            "-entry-bytes" => options.entry_bytes_max = value.parse()?,
            "-spool-bytes" => options.spool_bytes_max = value.parse()?,
            "-die-with-parent" => rustix::process::set_parent_process_death_signal(Some(
                rustix::process::Signal::KILL,
            ))?,
            _ => return Err(format!("the flag {flag} is not known here").into()),
        }
    }
    let http_addr = options.http_adv_addr.clone();
    Ok((options, http_addr))
}

/// Reads `250ms` or `1s`.
fn span(text: &str) -> Result<Duration, std::num::ParseIntError> {
    match text.strip_suffix("ms") {
        Some(millis) => Ok(Duration::from_millis(millis.parse()?)),
        None => Ok(Duration::from_secs(text.trim_end_matches('s').parse()?)),
    }
}

/// Every step of a transfer of the database is a line, so that tests can halt there.
const LOGGED: &str = "info,openraft=off,quinn=warn,quinn_proto=warn,rustls=warn,\
    wallaby::node::image_receiver=trace,wallaby::node::image_sender=trace,\
    wallaby::node::owner=debug,wallaby::node::recovery=debug,wallaby::node::spool=trace";
