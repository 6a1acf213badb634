//! Which test convicts which bug.
//!
//! ```text
//! cargo run -p tools --bin planted                 every bug, every test that should convict it
//! cargo run -p tools --bin planted -- --fast       only what fails within seconds, as CI does
//! cargo run -p tools --bin planted -- FenceIgnored VoteNotSynced
//! ```
//!
//! The tests are built once with the feature `planted-bugs`. First all the tests named here have to
//! pass without a bug; then each runs with its bug planted, and has to fail. A bug that no test
//! convicts makes the command fail.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use check::programs::{self, Program};
use wallaby::planted::Bug;

/// A test that convicts: its program, and the name of the test or a part of it.
struct Test {
    program: &'static str,
    name: &'static str,
    /// Whether it fails within seconds; others wait for a minute for what never comes.
    fast: bool,
}

const fn fast(program: &'static str, name: &'static str) -> Test {
    Test {
        program,
        name,
        fast: true,
    }
}

const fn slow(program: &'static str, name: &'static str) -> Test {
    Test {
        program,
        name,
        fast: false,
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (flags, names): (Vec<&str>, Vec<&str>) = arguments
        .iter()
        .map(String::as_str)
        .partition(|argument| argument.starts_with('-'));
    if let Some(unknown) = flags.iter().find(|flag| **flag != "--fast") {
        eprintln!("planted: there is no {unknown}; usage: planted [--fast] [BUG ...]");
        return ExitCode::from(2);
    }
    match try_all(!flags.is_empty(), &names) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("planted: {why}");
            ExitCode::from(2)
        }
    }
}

/// Whether every bug was convicted.
fn try_all(only_fast: bool, names: &[&str]) -> Result<bool, String> {
    let chosen = chosen(only_fast, names)?;
    let tests = chosen.iter().flat_map(|(_, tests)| tests);
    let mut tests: Vec<&Test> = tests.filter(|test| test.fast || !only_fast).collect();
    tests.sort_by_key(|test| (test.program, test.name));
    tests.dedup_by_key(|test| (test.program, test.name));
    let court = Court::build(&tests)?;
    for (test, trial) in tests
        .iter()
        .zip(both(&tests, |test| court.passes(test, None)))
    {
        if !trial?.passed {
            return Err(format!(
                "{} {:?} fails without any bug",
                test.program, test.name
            ));
        }
    }
    println!("{} tests pass without a bug", tests.len());
    println!("| bug | convicted by | seconds |\n|---|---|---|");
    let verdicts = both(&chosen, |(bug, tests)| {
        court.convicts(*bug, tests, only_fast)
    });
    let mut acquitted = Vec::new();
    for ((bug, _), verdict) in chosen.iter().zip(verdicts) {
        if !verdict? {
            acquitted.push(bug.name());
        }
    }
    println!(
        "{} of {} convicted",
        chosen.len() - acquitted.len(),
        chosen.len()
    );
    Ok(acquitted.is_empty())
}

/// The bugs to be tried, each with its tests.
fn chosen(only_fast: bool, names: &[&str]) -> Result<Vec<(Bug, Vec<Test>)>, String> {
    let known = |name: &&&str| Bug::ALL.iter().any(|bug| bug.name() == **name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        return Err(format!("there is no bug {unknown}"));
    }
    let wanted = |bug: &Bug| names.is_empty() || names.contains(&bug.name().as_str());
    let all = Bug::ALL.into_iter().filter(wanted);
    let all = all.map(|bug| (bug, convicting(bug)));
    Ok(all
        .filter(|(_, tests)| !only_fast || tests.iter().any(|test| test.fast))
        .collect())
}

/// The test programs and the server, built so that bugs can be planted.
struct Court {
    programs: Vec<Program>,
    /// A copy of the server: the tests would build the one in its place anew without bugs.
    server: PathBuf,
}

/// What became of a test.
struct Trial {
    passed: bool,
    seconds: f64,
}

impl Court {
    fn build(tests: &[&Test]) -> Result<Self, String> {
        // Of the whole workspace, so that the libraries are those that the tests were built with.
        let feature = ["--workspace", "--features", "wallaby/planted-bugs"];
        let mut arguments = feature.to_vec();
        arguments.extend(["--bin", "wallaby"]);
        for test in tests {
            arguments.extend(["--test", test.program]);
        }
        let programs = programs::build(&arguments)?;
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug");
        let server = target.join("wallaby-planted");
        std::fs::copy(target.join("wallaby"), &server)
            .map_err(|error| format!("the server cannot be copied: {error}"))?;
        Ok(Self { programs, server })
    }

    /// Whether one of these tests convicts this bug; says which.
    fn convicts(&self, bug: Bug, tests: &[Test], only_fast: bool) -> Result<bool, String> {
        let name = bug.name();
        for test in tests.iter().filter(|test| test.fast || !only_fast) {
            let trial = self.passes(test, Some(bug))?;
            if !trial.passed {
                let seconds = trial.seconds;
                println!("| {name} | {} {} | {seconds:.1} |", test.program, test.name);
                return Ok(true);
            }
        }
        println!("| {name} | nothing | |");
        Ok(false)
    }

    /// Runs the tests of this name, with a bug or without.
    fn passes(&self, test: &Test, bug: Option<Bug>) -> Result<Trial, String> {
        let begun = Instant::now();
        let mut programs = self
            .programs
            .iter()
            .filter(|program| program.name == test.program);
        let mut ran = 0;
        let passed = programs.try_fold(true, |passed, program| {
            let mut command = program.command();
            command.arg(test.name).env("WAL_BINARY", &self.server);
            command.env("WAL_PLANTED", bug.map(Bug::name).unwrap_or_default());
            command.env("WAL_CRASH_POINTS", "4000");
            let output = Command::new(&program.path)
                .args(["--list", test.name])
                .output();
            let listed = output.map_err(|error| error.to_string())?.stdout;
            ran += String::from_utf8_lossy(&listed).matches(": test").count();
            let patience = if test.fast { PATIENCE_FAST } else { PATIENCE };
            ends_well(command, patience).map(|well| passed && well)
        })?;
        if ran == 0 {
            return Err(format!(
                "there is no test {:?} in {}",
                test.name, test.program
            ));
        }
        Ok(Trial {
            passed,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

/// Does something with each, two at a time: most tests wait. The results are in the order of the items.
fn both<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(place) else { return };
                    let result = work(item);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push((place, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Whether a test program ends without a failure. One that hangs has failed as well.
fn ends_well(mut command: Command, patience: Duration) -> Result<bool, String> {
    let command = command.stdin(Stdio::null());
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status.success());
        }
        if begun.elapsed() > patience {
            end(&mut child);
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}

fn end(child: &mut Child) {
    // It may have ended in this moment.
    drop(child.kill());
    drop(child.wait());
}

/// The tests that should convict a bug, the fastest first.
fn convicting(bug: Bug) -> Vec<Test> {
    match bug {
        Bug::AckBeforeSync | Bug::AckBeforeWrite | Bug::VoteNotSynced | Bug::DirectoryNotSynced => {
            vec![fast("log_crash", "a_power_cut_at_any_call")]
        }
        Bug::CutAtFirstDamage => vec![fast("log", "a_damaged_interior_is_refused")],
        Bug::SegmentNameTrusted => vec![fast("log", "a_segment_under_a_wrong_name")],
        Bug::FailureForgotten => vec![fast("log_crash", "any_failing_call_latches")],
        Bug::RecordBeforePages | Bug::PagesBeforeRecord | Bug::RestartBeforeRecord => {
            vec![fast("crash_points", "a_crash_at_any_call")]
        }
        Bug::PurgedBeforeRecord => vec![fast("kill", "what_its_record_does_not_cover")],
        Bug::CheckpointerNotExcluded => vec![fast("inject", "neither_write_nor_checkpoint")],
        Bug::CaptureAtWrite => vec![fast("capture", "until_the_gate_has_released_it")],
        Bug::SaltIgnored => vec![fast("format", "frames_of_an_earlier_generation")],
        Bug::LockBytePageTaken => vec![fast("format", "one_of_the_lock_byte_page_are_refused")],
        Bug::NotShrunk => vec![fast("shrink", "shrinks_with_its_leader")],
        Bug::RolledBackCaptured => vec![fast("capture", ""), fast("differential", "")],
        Bug::RefusedPublished => vec![slow("flight", "discarded_by_another_leaders_data")],
        Bug::DiscardedHashesLeft => vec![fast("capture", "after_a_discard")],
        Bug::FenceIgnored => vec![slow("fence", "")],
        Bug::ReadIndexOfOneself | Bug::ReadIndexNotAwaited => {
            vec![fast("reads", "has_applied_what_takes_long")]
        }
        Bug::ReadIndexUnconfirmed => {
            vec![fast("flight", "a_leader_that_is_cut_off_confirms_no_read")]
        }
        Bug::LeaseForEver => {
            vec![slow("flight", "a_leader_that_is_cut_off_confirms_no_read")]
        }
        Bug::RaftIdReused => vec![slow("members", "a_raft_id_is_never_used_again")],
        Bug::HashOfChecksums => vec![fast("format", "the_database_hash_is_no_sum_of_checksums")],
        Bug::UnknownReportedAsRefused => vec![fast("flight", "discarded_by_a_higher_term_alone")],
        Bug::UnwrittenAnsweredAtOnce => {
            vec![fast("flight", "not_answered_by_a_leader_that_is_cut_off")]
        }
        Bug::FrameChecksumIgnored => {
            vec![fast("transport", "every_flipped_bit_and_every_truncation")]
        }
    }
}

/// A test that has not ended by then hangs.
/// Ten times what the slowest of the fast tests takes on a busy machine: some bugs show as a hang.
const PATIENCE_FAST: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
