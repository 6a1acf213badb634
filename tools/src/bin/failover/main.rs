//! How long a cluster of three real nodes does not write when it loses its leader, and whether it
//! keeps its leader under load.
//!
//! ```text
//! cargo run --release -p tools --bin failover -- --runs 50
//! cargo run --release -p tools --bin failover -- --runs 50 kill pause
//! cargo run --release -p tools --bin failover -- steady --minutes 10
//! ```
//!
//! The times are figures for a reader to judge by the load of the machine, which is printed with
//! them. The exit code tells of errors only: a write that was acknowledged and is not there, one
//! that was refused and is, nodes that differ, a cluster that does not recover.

mod losses;
mod steady;

use std::process::ExitCode;

use losses::Loss;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["steady"] => steady::run(10),
        ["steady", "--minutes", minutes] => number(minutes).and_then(steady::run),
        [] => losses::run(50, &Loss::ALL),
        ["--runs", runs, ref named @ ..] => {
            number(runs).and_then(|runs| losses::run(runs, &losses(named)?))
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("failover: {why}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is no number of runs or minutes\n{USAGE}")),
    }
}

fn losses(names: &[&str]) -> Result<Vec<Loss>, String> {
    if names.is_empty() {
        return Ok(Loss::ALL.to_vec());
    }
    let by_name = |name: &&str| {
        let found = Loss::ALL.into_iter().find(|loss| loss.name() == *name);
        found.ok_or_else(|| format!("there is no way {name:?} to lose a leader\n{USAGE}"))
    };
    names.iter().map(by_name).collect()
}

/// What else the machine does: the averages over 1, 5 and 15 minutes.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let averages: Vec<&str> = text.split_whitespace().take(3).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("load average {} on {cores} cores", averages.join(" "))
}

const USAGE: &str = "usage: failover [--runs N [kill] [stop] [pause]] | steady [--minutes N]";
