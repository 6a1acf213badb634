//! The command `simulate`: runs of many seeds, each in a process of its own.
//!
//! ```text
//! simulate --seeds 1..100 [--seconds 60] [--nodes 3] [--lying-disks] [--twice] [--jobs 2]
//! simulate --seed 7 [--seconds 60] [--nodes 3] [--lying-disks] [--quiet]
//! ```
//!
//! The first says how each seed ended, the sums of the figures, and for a failure the command that
//! plays it again. With `--twice` each seed runs twice, and the two must have the same events. The
//! second is one run, with its events.

use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::threads;
use super::trial::{self, Plan};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// First and last seed.
    pub seeds: (u64, u64),
    /// How long things go wrong.
    pub seconds: u64,
    /// `None`: drawn.
    pub nodes: Option<usize>,
    /// Whether each seed runs twice.
    pub twice: bool,
    /// Runs at a time.
    pub jobs: usize,
    /// One run, in this process.
    pub is_single: bool,
    /// Without its events.
    pub is_quiet: bool,
    /// On disks that sync later than they say, while the power fails again and again: such a run
    /// must end badly.
    pub disks_lie: bool,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            seeds: (1, 10),
            seconds: 60,
            nodes: None,
            twice: false,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            is_single: false,
            is_quiet: false,
            disks_lie: false,
        }
    }
}

impl Asked {
    /// Reads the arguments of the command.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{flag} needs a value"));
            match flag.as_str() {
                "--seeds" => asked.seeds = range(&value()?)?,
                "--seed" => {
                    let seed = number(&value()?)?;
                    (asked.seeds, asked.is_single) = ((seed, seed), true);
                }
                "--seconds" => asked.seconds = number(&value()?)?,
                "--nodes" => asked.nodes = Some(number(&value()?)?),
                "--jobs" => asked.jobs = number(&value()?)?,
                "--twice" => asked.twice = true,
                "--lying-disks" => asked.disks_lie = true,
                "--quiet" => asked.is_quiet = true,
                _ => return Err(format!("{flag} is not known; see the head of the source")),
            }
        }
        Ok(asked)
    }
}

impl Asked {
    /// The arguments for one run.
    fn words(&self, seed: u64) -> Vec<String> {
        let mut words = vec!["--seed".to_owned(), seed.to_string()];
        words.extend(["--seconds".to_owned(), self.seconds.to_string()]);
        if let Some(nodes) = self.nodes {
            words.extend(["--nodes".to_owned(), nodes.to_string()]);
        }
        if self.disks_lie {
            words.push("--lying-disks".to_owned());
        }
        words
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn range(text: &str) -> Result<(u64, u64), String> {
    match text.split_once("..") {
        Some((first, last)) => Ok((number(first)?, number(last.trim_start_matches('='))?)),
        None => number(text).map(|seed| (seed, seed)),
    }
}

/// Does what is asked.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    match Asked::parse(arguments) {
        Err(why) => {
            eprintln!("simulate: {why}");
            ExitCode::from(2)
        }
        Ok(asked) if asked.is_single => single(&asked),
        Ok(asked) => {
            if many(&asked) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn single(asked: &Asked) -> ExitCode {
    // Not simulated itself: ends a run that hangs outside of simulated time.
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        println!("VIOLATION: the run hangs");
        std::process::exit(4);
    });
    let plan = Plan {
        seed: asked.seeds.0,
        nodes: asked.nodes,
        length: Duration::from_secs(asked.seconds),
        prints: !asked.is_quiet,
        disks_lie: asked.disks_lie,
    };
    // Its name is drawn outside: inside, where a clock begins anew, several runs at a time would
    // draw the same one, and those that come later another, of their own randomness.
    let dir = tempfile::Builder::new().prefix("wallaby-sim-").tempdir();
    let dir = dir.expect("a temporary directory can be made");
    threads::run(plan.seed, move || {
        let verdict = trial::run(plan, dir.path());
        drop(dir);
        for violation in &verdict.violations {
            println!("VIOLATION: {violation}");
        }
        println!("{DIGEST}{:08x}", crc32fast::hash(verdict.events.as_bytes()));
        for (name, value) in verdict.figures.all() {
            println!("{FIGURE}{name}={value}");
        }
        println!("{}", verdict.figures);
        if verdict.violations.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    });
}

/// What one run said.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Said {
    is_good: bool,
    digest: String,
    figures: Vec<(String, u64)>,
    violations: Vec<String>,
}

/// Runs all seeds. Whether all are good.
fn many(asked: &Asked) -> bool {
    let begun = Instant::now();
    let (first, last) = asked.seeds;
    let next = Mutex::new(first);
    let sums: Mutex<Sums> = Mutex::default();
    std::thread::scope(|scope| {
        let (next, sums) = (&next, &sums);
        for job in 0..asked.jobs.max(1) {
            scope.spawn(move || {
                stay(job);
                loop {
                    let seed = {
                        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                        *next += 1;
                        *next - 1
                    };
                    if seed > last {
                        return;
                    }
                    let begun = Instant::now();
                    let said = both(asked, seed);
                    let took = begun.elapsed().as_secs_f64();
                    let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                    sums.add(asked, seed, &said, took);
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} seeds, {} bad, {:.0} s",
        sums.good + sums.bad,
        sums.bad,
        begun.elapsed().as_secs_f64()
    );
    for (name, sum, runs) in &sums.figures {
        println!("{name:>14} {sum:>12} in {runs} runs");
    }
    sums.bad == 0
}

/// Has what this thread starts run on one processor. Only one thread of a simulation runs at a time,
/// and to wake the next one on another processor takes longer than most of them run.
fn stay(job: usize) {
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let allowed = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let allowed: Vec<usize> = allowed.collect();
    let Some(cpu) = allowed.get(job % allowed.len().max(1)) else {
        return;
    };
    let mut only = CpuSet::new();
    only.set(*cpu);
    // Where that is refused, it is slower.
    let _ = sched_setaffinity(None, &only);
}

#[derive(Default)]
struct Sums {
    good: u64,
    bad: u64,
    /// Name, sum, and how many runs had any.
    figures: Vec<(String, u64, u64)>,
}

impl Sums {
    fn add(&mut self, asked: &Asked, seed: u64, said: &Said, took: f64) {
        for (name, value) in &said.figures {
            let found = self.figures.iter_mut().find(|(known, ..)| known == name);
            if let Some((_, sum, runs)) = found {
                *sum += value;
                *runs += u64::from(*value > 0);
            } else {
                let runs = u64::from(*value > 0);
                self.figures.push((name.clone(), *value, runs));
            }
        }
        if said.is_good {
            self.good += 1;
            println!("seed {seed}: good, {took:.1} s, events {}", said.digest);
            return;
        }
        self.bad += 1;
        println!("seed {seed}: BAD, {took:.1} s");
        for violation in &said.violations {
            println!("    {violation}");
        }
        println!(
            "    to replay: cargo run --release -p tools --bin simulate -- {}",
            asked.words(seed).join(" ")
        );
    }
}

fn both(asked: &Asked, seed: u64) -> Said {
    let mut said = one(asked, seed);
    if asked.twice {
        let again = one(asked, seed);
        if again != said {
            said.is_good = false;
            let what = format!("two runs differ: {} and {}", said.digest, again.digest);
            said.violations.push(what);
        }
    }
    said
}

fn one(asked: &Asked, seed: u64) -> Said {
    let this = std::env::current_exe().expect("this program has a file");
    let mut command = Command::new(this);
    command.arg("--quiet").args(asked.words(seed));
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    match command.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            read(&text, output.status.success(), &output.status.to_string())
        }
        Err(error) => Said {
            violations: vec![error.to_string()],
            ..Said::default()
        },
    }
}

fn read(text: &str, is_good: bool, status: &str) -> Said {
    let mut said = Said {
        is_good,
        ..Said::default()
    };
    for line in text.lines() {
        if let Some(digest) = line.strip_prefix(DIGEST) {
            digest.clone_into(&mut said.digest);
        } else if let Some(violation) = line.strip_prefix("VIOLATION: ") {
            said.violations.push(violation.to_owned());
        } else if let Some((name, value)) = line
            .strip_prefix(FIGURE)
            .and_then(|figure| figure.split_once('='))
        {
            said.figures
                .push((name.to_owned(), value.parse().unwrap_or(0)));
        }
    }
    if !is_good && said.violations.is_empty() {
        said.violations.push(format!("it ended with {status}"));
    }
    said
}

/// Real time for one run.
const PATIENCE: Duration = Duration::from_secs(900);
const DIGEST: &str = "events: ";
const FIGURE: &str = "figure: ";
