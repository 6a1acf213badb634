//! All tests, several programs at once: `cargo test-all`.
//!
//! `cargo test` runs one test program after another. Most of ours wait for elections, time-outs and
//! killed processes and leave the processor idle, so side by side they take half the time. Each
//! program is what cargo built and prints what it prints under cargo; it is shown when the program
//! has ended, so that lines of two programs never mix.
//!
//! `cargo test-all -- reads members` runs the programs of these names. There are half as many
//! programs at once as the machine has processors, but two at least, for each runs several tests at
//! once and starts whole clusters; or `WAL_TEST_PROGRAMS`. Beside them run, one at a time and only
//! as far as those leave the processor idle, the programs for which no clock matters: they are all
//! computation.

use std::collections::VecDeque;
use std::env;
use std::io::Write as _;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use check::programs::{self, Program};

/// What became of one.
struct Ended {
    name: String,
    seconds: f64,
    passed: bool,
}

fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).collect();
    // Together with the server, which the first tests would otherwise wait for.
    let programs = match programs::build(&["--tests", "--bin", "wallaby"]) {
        Ok(programs) => programs,
        Err(reason) => {
            eprintln!("tests: {reason}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(unknown) = wanted
        .iter()
        .find(|name| programs.iter().all(|program| program.name != **name))
    {
        eprintln!("tests: there is no test program {unknown:?}");
        return ExitCode::from(2);
    }
    let chosen = programs
        .into_iter()
        .filter(|program| wanted.is_empty() || wanted.contains(&program.name))
        .collect();
    let begun = Instant::now();
    let ended = run_all(chosen, wanted.is_empty());
    report(&ended, begun.elapsed().as_secs_f64())
}

/// Runs these programs, and the examples in the documentation if they are wanted.
fn run_all(programs: Vec<Program>, with_documentation: bool) -> Vec<Ended> {
    let place = |program: &Program| TIMELESS.iter().position(|name| *name == program.name);
    let (mut timeless, others): (Vec<Program>, Vec<Program>) = programs
        .into_iter()
        .partition(|program| place(program).is_some());
    timeless.sort_by_key(place);
    let (others, ended) = (Mutex::new(VecDeque::from(others)), Mutex::new(Vec::new()));
    let note = |end: Ended| locked(&ended).push(end);
    thread::scope(|scope| {
        for _ in 0..programs_at_once() {
            scope.spawn(|| {
                loop {
                    // A statement of its own: the lock is not held while the program runs.
                    let next = locked(&others).pop_front();
                    let Some(program) = next else { return };
                    note(finish(&program.name, &mut program.command()));
                }
            });
        }
        scope.spawn(|| {
            for program in timeless {
                let mut command = programs::behind(&program.command());
                note(finish(&program.name, &mut command));
            }
            if with_documentation {
                let command = programs::cargo(&["test", "--locked", "--doc"]);
                note(finish("documentation", &mut programs::behind(&command)));
            }
        });
    });
    ended.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn programs_at_once() -> usize {
    let asked = env::var("WAL_TEST_PROGRAMS").ok();
    let asked = asked.and_then(|number| number.parse().ok());
    let processors = thread::available_parallelism().map_or(1, usize::from);
    asked.unwrap_or((processors / 2).max(2)).max(1)
}

fn finish(name: &str, command: &mut Command) -> Ended {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let seconds = begun.elapsed().as_secs_f64();
    let passed = output.as_ref().is_ok_and(|output| output.status.success());
    show(name, seconds, &output);
    Ended {
        name: name.to_owned(),
        seconds,
        passed,
    }
}

/// Prints what a program printed, in one piece.
fn show(name: &str, seconds: f64, output: &std::io::Result<Output>) {
    let mut out = std::io::stdout().lock();
    let mut text = format!("== {name}: {seconds:.1} s\n").into_bytes();
    match output {
        Ok(output) => {
            text.extend_from_slice(&output.stdout);
            // What threads of passing tests wrote past the capture is of no interest.
            if !output.status.success() {
                text.extend_from_slice(&output.stderr);
                text.extend_from_slice(format!("== {name}: {}\n", output.status).as_bytes());
            }
        }
        Err(error) => text.extend_from_slice(format!("it does not start: {error}\n").as_bytes()),
    }
    // Nobody reads any more: the exit code still tells.
    drop(out.write_all(&text));
}

fn report(ended: &[Ended], seconds: f64) -> ExitCode {
    let mut slowest: Vec<&Ended> = ended.iter().collect();
    slowest.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    let slowest: Vec<String> = slowest
        .iter()
        .take(10)
        .map(|end| format!("{} {:.0} s", end.name, end.seconds))
        .collect();
    println!("== slowest: {}", slowest.join(", "));
    let failed: Vec<&str> = ended
        .iter()
        .filter(|end| !end.passed)
        .map(|end| end.name.as_str())
        .collect();
    if failed.is_empty() {
        println!("== {} programs passed in {seconds:.0} s", ended.len());
        return ExitCode::SUCCESS;
    }
    println!(
        "== {} of {} programs FAILED in {seconds:.0} s: {}",
        failed.len(),
        ended.len(),
        failed.join(", ")
    );
    ExitCode::FAILURE
}

/// Programs that pass or fail however slowly they run, the longest first: clusters on simulated time,
/// recovery of disk images, and what starts no node at all.
const TIMELESS: [&str; 7] = [
    "simulation",
    "inspect",
    "crash_points",
    "differential",
    "log_crash",
    "log_suite",
    "log_model",
];

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
