//! Real nodes under seeded faults, with clients whose every answer is checked.
//!
//! ```text
//! cargo run --release -p tools --bin torture -- --seed 1 --minutes 10 --schedule all --nodes 5
//! ```
//!
//! Run as root on Linux, each node has a network namespace of its own, and links between them that
//! delay, lose, repeat, reorder and corrupt; otherwise nodes run on loopback and faults of links
//! are cuts. The first line says which it is. The exit code is 0 if nothing wrong was found and all
//! happened that must happen for the run to prove something: see `--lenient`.

use std::process::ExitCode;
use std::time::Duration;

use wal_tests::torture::{self, Plan, Report, Schedule};
use wal_tests::workload::Fate;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (plan, lenient) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("torture: {why}\n{}", usage());
            return ExitCode::from(2);
        }
    };
    let report = torture::run(&plan);
    println!("{report}");
    let missing = if lenient {
        Vec::new()
    } else {
        missing(&report)
    };
    for what in &missing {
        println!("PROVES NOTHING: {what}");
    }
    if report.wrong().is_empty() && missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(arguments: &[String]) -> Result<(Plan, bool), String> {
    let mut plan = Plan {
        seed: std::process::id().into(),
        nodes: 3,
        time: Duration::from_secs(60),
        events_min: 0,
        schedule: Schedule::named("all").ok_or("no schedule")?,
        clients: 12,
    };
    let mut lenient = false;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--lenient" {
            lenient = true;
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{word}: {value:?} is no number"))
        };
        let small = || Ok::<_, String>(usize::try_from(number()?).unwrap_or(usize::MAX));
        match word.as_str() {
            "--clients" => plan.clients = small()?.clamp(1, 200),
            "--events" => plan.events_min = small()?,
            "--minutes" => plan.time = Duration::from_secs(60 * number()?),
            "--nodes" => plan.nodes = small()?,
            "--schedule" => {
                let found = Schedule::named(value);
                plan.schedule = found.ok_or_else(|| format!("there is no schedule {value:?}"))?;
            }
            "--seconds" => plan.time = Duration::from_secs(number()?),
            "--seed" => plan.seed = number()?,
            _ => return Err(format!("there is no {word}")),
        }
    }
    match plan.nodes {
        2..=7 => Ok((plan, lenient)),
        nodes => Err(format!("{nodes} nodes are too few or too many")),
    }
}

/// What did not happen although it must, by the length of the run.
fn missing(report: &Report) -> Vec<String> {
    let minutes = report.plan.time.as_secs() / 60;
    if minutes == 0 || report.plan.schedule.name() != "all" {
        return Vec::new();
    }
    let counted = &report.counted;
    let found = [
        ("elections", counted.elections as u64, 2 * minutes),
        ("databases installed", counted.installs, minutes),
        (
            "entries cut off the end of logs",
            counted.truncations,
            minutes / 4,
        ),
        ("transactions discarded", counted.discarded, minutes / 4),
        (
            "outcomes unknown",
            report.requests(Fate::Unknown) as u64,
            minutes,
        ),
        (
            "requests",
            report.requests(Fate::Acknowledged) as u64,
            500 * minutes,
        ),
        ("faults", report.faults.total() as u64, 15 * minutes),
    ];
    let too_few = found.into_iter().filter(|(_, count, least)| count < least);
    too_few
        .map(|(name, count, least)| format!("{name}: {count}, fewer than {least}"))
        .collect()
}

fn usage() -> String {
    format!(
        "usage: torture [--seed N] [--minutes N | --seconds N] [--events N] [--schedule NAME] \
         [--nodes N] [--clients N] [--lenient]\nschedules: {}",
        Schedule::names().join(", ")
    )
}
