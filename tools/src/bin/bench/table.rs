//! The table of a cluster's figures, a row as soon as it is there.

use serde_json::json;
use tools::bench::Measurement;
use tools::bench::floors::Floors;

use super::cluster::EchoRow;

pub(crate) struct Table {
    is_json: bool,
    floors: Floors,
    echoes: Vec<EchoRow>,
    rows: Vec<(&'static str, Measurement)>,
}

impl Table {
    pub(crate) fn new(is_json: bool, floors: Floors) -> Self {
        let (p50, p99) = floors.sync_us;
        if is_json {
            let floors = json!({
                "fdatasync_us": { "p50": p50, "p99": p99 },
                "sqlite_full_per_second": floors.sqlite_full,
                "sqlite_off_per_second": floors.sqlite_off,
            });
            println!("{floors}");
        } else {
            println!("fdatasync of 4 KiB: p50 {p50} us, p99 {p99} us");
            println!(
                "plain SQLite, one row a transaction: FULL {:.0}/s, OFF {:.0}/s",
                floors.sqlite_full, floors.sqlite_off
            );
        }
        Self {
            is_json,
            floors,
            echoes: Vec::new(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn echo(&mut self, connections: usize, measured: Measurement) {
        if self.is_json {
            let figures = measured.json();
            println!("{}", json!({ "echo": connections, "measured": figures }));
        } else {
            let line = measured.line();
            println!("HTTP echo, three idle nodes, {connections} connections: {line}");
        }
        self.echoes.push((connections, measured));
    }

    pub(crate) fn head(&self) {
        if !self.is_json {
            println!(
                "\n| {:<36} | {:>9} | {:>8} | {:>8} | {:>21} | {:<22} |",
                "", "per s", "p50 us", "p99 us", "cpu us: leader, others", "compared"
            );
            println!("|---|---:|---:|---:|---:|---|");
        }
    }

    pub(crate) fn add(&mut self, name: &'static str, measured: Measurement) {
        if self.is_json {
            let figures = measured.json();
            println!("{}", json!({ "row": name, "measured": figures }));
        } else {
            let each = measured.processor_per_request();
            let each: Vec<String> = each.iter().map(|us| format!("{us:.0}")).collect();
            let rate = measured.rate() * measured.rows as f64;
            println!(
                "| {name:<36} | {rate:>9.0} | {:>8} | {:>8} | {:>21} | {:<22} |",
                measured.latency(0.5),
                measured.latency(0.99),
                each.join(", "),
                self.compared(name, &measured)
            );
        }
        self.rows.push((name, measured));
    }

    /// With what bounds it.
    fn compared(&self, name: &str, measured: &Measurement) -> String {
        let of = |what: &str, whole: f64| format!("{:.2} x {what}", measured.rate() / whole);
        let echo = |connections: usize| {
            let found = self.echoes.iter().find(|(echo, _)| *echo == connections);
            found.map_or(f64::NAN, |(_, echo)| echo.rate())
        };
        match name {
            "insert, 1 connection" => {
                let sync = measured.latency(0.5) as f64 / self.floors.sync_us.0.max(1) as f64;
                format!("p50 {sync:.1} x fdatasync")
            }
            "insert, 64 connections" => format!(
                "{}, {:.2} echo",
                of("FULL", self.floors.sqlite_full),
                measured.rate() / echo(64)
            ),
            "insert, 512 connections" => of("echo", echo(512)),
            "insert, 64, at a follower" => of("leader's", self.rate("insert, 64 connections")),
            "read none, 64" | "read none, 64, at a follower" => of("echo", echo(64)),
            "read weak, 64" | "read linearizable, 64" | "read strong, 64" => {
                of("none", self.rate("read none, 64"))
            }
            _ => String::new(),
        }
    }

    /// Requests per second of an earlier row; 0 if it was left out.
    pub(crate) fn rate(&self, name: &str) -> f64 {
        let found = self.rows.iter().find(|(row, _)| *row == name);
        found.map_or(0.0, |(_, measured)| measured.rate())
    }

    pub(crate) fn memory(&self, what: &str, bytes: &[u64]) {
        if self.is_json {
            println!("{}", json!({ what: bytes }));
        } else {
            let each = bytes
                .iter()
                .map(|bytes| format!("{:.1}", *bytes as f64 / f64::from(1 << 20)));
            println!("{what}: {} MiB", each.collect::<Vec<_>>().join(", "));
        }
    }
}
