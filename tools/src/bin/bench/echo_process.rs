//! The echo server, in a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tools::bench::connection::Endpoint;
use tools::bench::{Load, Measurement, Workload, run};

/// An echo server that ends with the value.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What an echo of single-row inserts can do here.
pub(crate) async fn measure(connections: usize, time: Duration) -> Result<Measurement, String> {
    let me = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(me);
    let command = command.arg("echo").stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).spawn();
    let mut server = Echo(child.map_err(|error| error.to_string())?);
    let output = server.0.stdout.take().ok_or("the echo server is mute")?;
    let mut address = String::new();
    let read = BufReader::new(output).read_line(&mut address);
    read.map_err(|error| error.to_string())?;
    let load = Load {
        endpoints: vec![Endpoint::parse(address.trim(), false, None, None)?],
        workload: Workload::Insert,
        connections,
        warm_up: time.min(Duration::from_secs(1)) / 2,
        time,
        rate: None,
        table_rows: 1,
        seed: 1,
        process_ids: vec![server.0.id()],
    };
    run(&load).await
}
