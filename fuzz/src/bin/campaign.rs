//! Runs targets in turn without libFuzzer and prints what they did:
//! `campaign all --seconds 10`, `campaign walker delta --seconds 60 --seed 7`, or
//! `campaign walker --input FILE` for one input.

use std::process::ExitCode;
use std::time::Duration;

use fuzz::campaign::{Outcome, run};
use fuzz::{TARGETS, Target};

/// What was asked for.
struct Task {
    targets: Vec<&'static Target>,
    seconds: u64,
    seed: u64,
    input: Option<String>,
}

fn main() -> ExitCode {
    match task(std::env::args().skip(1)).and_then(|task| carry_out(&task)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("campaign: {error}");
            ExitCode::from(2)
        }
    }
}

fn task(mut arguments: impl Iterator<Item = String>) -> Result<Task, String> {
    let mut task = Task {
        targets: Vec::new(),
        seconds: 10,
        seed: wal_tests::seed::Random::new(u64::from(std::process::id())).bits() >> 32,
        input: None,
    };
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, String> {
            let value = arguments.next().unwrap_or_default();
            value
                .parse()
                .map_err(|_| format!("{argument}: {value:?} is no number"))
        };
        match argument.as_str() {
            "--seconds" => task.seconds = number()?,
            "--seed" => task.seed = number()?,
            "--input" => task.input = arguments.next(),
            "all" => task.targets.extend(&TARGETS),
            name => {
                let found = TARGETS.iter().find(|target| target.name == name);
                let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                let unknown = || format!("no target {name:?}; there are {}", names.join(", "));
                task.targets.push(found.ok_or_else(unknown)?);
            }
        }
    }
    if task.targets.is_empty() {
        return Err("name targets, or all".to_owned());
    }
    Ok(task)
}

fn carry_out(task: &Task) -> Result<(), String> {
    if let Some(path) = &task.input {
        let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        for target in &task.targets {
            println!("{}: {:?}", target.name, (target.body)(&bytes));
        }
        return Ok(());
    }
    println!(
        "seed {}; panics stop the run and keep their input",
        task.seed
    );
    println!(
        "{:12} {:>12} {:>10} {:>9} {:>14}",
        "target", "executions", "per s", "accepted", "decoder peak"
    );
    let mut total = 0;
    for target in &task.targets {
        let outcome = run(target, task.seed, Duration::from_secs(task.seconds));
        println!("{}", line(target.name, &outcome));
        total += outcome.executions;
    }
    println!(
        "{:12} {total:>12}; 0 crashes; resident at most {}",
        "all",
        resident()
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn line(name: &str, outcome: &Outcome) -> String {
    let executions = outcome.executions;
    format!(
        "{name:12} {executions:>12} {:>10.0} {:>8.1}% {:>10} KiB",
        executions as f64 / outcome.elapsed.as_secs_f64(),
        outcome.accepted as f64 * 100.0 / executions as f64,
        outcome.highest.div_ceil(1024)
    )
}

/// The most memory that this process has had, as the kernel says it.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}
