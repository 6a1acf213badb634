//! Runs fuzz targets under libFuzzer, led by coverage:
//!
//! ```text
//! cargo run -p tools --bin fuzz -- walker --seconds 60
//! cargo run -p tools --bin fuzz -- all --seconds 600
//! ```
//!
//! Works with the stable compiler: the coverage instrumentation is LLVM's, asked for by name. Needs
//! a C++ compiler for libFuzzer. Builds in `target/fuzz`, grows the inputs it finds there in
//! `corpus/` and keeps inputs that crash in `crashes/`; what is committed, `fuzz/corpus/`, is only
//! read. `--merge` copies the smallest set of inputs with the same coverage into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use check::programs;

/// As `cargo fuzz` sets them, without the sanitizers, which only a nightly compiler has.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares \
     -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// What was asked for.
struct Task {
    targets: Vec<String>,
    seconds: u64,
    is_merge: bool,
}

/// What libFuzzer says of a run.
#[derive(Default)]
struct Report {
    executions: u64,
    peak_mib: u64,
    failed: bool,
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match task(&root, std::env::args().skip(1)).and_then(|task| carry_out(&root, &task)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::from(2)
        }
    }
}

fn task(root: &Path, mut arguments: impl Iterator<Item = String>) -> Result<Task, String> {
    let known = targets(root)?;
    let mut task = Task {
        targets: Vec::new(),
        seconds: 60,
        is_merge: false,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "all" => task.targets.clone_from(&known),
            "--merge" => task.is_merge = true,
            "--seconds" => {
                let value = arguments.next().unwrap_or_default();
                let number = value.parse();
                task.seconds = number.map_err(|_| format!("--seconds: {value:?} is no number"))?;
            }
            name if known.iter().any(|target| target == name) => task.targets.push(argument),
            name => {
                return Err(format!(
                    "no target {name:?}; there are {}",
                    known.join(", ")
                ));
            }
        }
    }
    if task.targets.is_empty() {
        return Err(format!("name targets, or all: {}", known.join(", ")));
    }
    Ok(task)
}

/// The programs that there are.
fn targets(root: &Path) -> Result<Vec<String>, String> {
    let folder = root.join("fuzz/fuzz_targets");
    let shown = folder.display().to_string();
    let entries = fs::read_dir(folder).map_err(|error| format!("{shown}: {error}"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn carry_out(root: &Path, task: &Task) -> Result<bool, String> {
    let programs = build(root, &task.targets)?;
    println!(
        "{:12} {:>14} {:>10} {:>9}  crashes",
        "target", "executions", "per s", "peak"
    );
    let (mut total, mut failures) = (0, 0);
    for (target, program) in &programs {
        if task.is_merge {
            merge(root, target, program)?;
            continue;
        }
        let report = run(root, target, program, task.seconds)?;
        let rate = report.executions / task.seconds.max(1);
        let (executions, peak) = (report.executions, report.peak_mib);
        let crashes = u8::from(report.failed);
        println!("{target:12} {executions:>14} {rate:>10} {peak:>5} MiB  {crashes}");
        total += report.executions;
        failures += usize::from(report.failed);
    }
    println!(
        "{:12} {total:>14}; {failures} of {} targets crashed",
        "all",
        programs.len()
    );
    Ok(failures == 0)
}

/// Builds the programs and says where they are.
fn build(root: &Path, targets: &[String]) -> Result<Vec<(String, PathBuf)>, String> {
    let triple = host()?;
    let directory = root.join("target/fuzz");
    let mut command = programs::cargo(&[
        "build",
        "--locked",
        "--profile",
        "fuzz",
        "--package",
        "fuzz",
    ]);
    // With a target named, the flags are not for build scripts and macros.
    command.args(["--features", "libfuzzer", "--target", &triple]);
    command.arg("--target-dir").arg(&directory);
    for target in targets {
        command.args(["--bin", target]);
    }
    let status = command
        .env("RUSTFLAGS", FLAGS)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err("the programs cannot be built".to_owned());
    }
    let folder = directory.join(triple).join("fuzz");
    let program = |target: &String| (target.clone(), folder.join(target));
    Ok(targets.iter().map(program).collect())
}

fn host() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or("rustc does not say for which machine it is".to_owned())
}

fn run(root: &Path, target: &str, program: &Path, seconds: u64) -> Result<Report, String> {
    let grown = folder(&root.join("target/fuzz/corpus").join(target))?;
    let crashes = folder(&root.join("target/fuzz/crashes").join(target))?;
    let mut command = Command::new(program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args(["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=512"])
        .args([&grown, &root.join("fuzz/corpus").join(target)])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = command
        .output()
        .map_err(|error| format!("{target}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0)
    };
    let report = Report {
        executions: number("stat::number_of_executed_units:"),
        peak_mib: number("stat::peak_rss_mb:"),
        failed: !output.status.success(),
    };
    if report.failed {
        let last: Vec<&str> = text.lines().rev().take(LINES_SHOWN).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        eprintln!("{}\nthe input is in {}", last.join("\n"), crashes.display());
    }
    Ok(report)
}

/// Takes what was found into the committed corpus, as far as it reaches anything new.
fn merge(root: &Path, target: &str, program: &Path) -> Result<(), String> {
    let committed = root.join("fuzz/corpus").join(target);
    let grown = folder(&root.join("target/fuzz/corpus").join(target))?;
    let status = Command::new(program)
        .args(["-merge=1", "-max_len=1024"])
        .args([&committed, &grown])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let status = status.map_err(|error| format!("{target}: {error}"))?;
    if !status.success() {
        return Err(format!("{target}: what was found cannot be merged"));
    }
    println!("{target}: merged");
    Ok(())
}

fn folder(path: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // The target may change the directory it works in.
    path.canonicalize()
        .map_err(|error| format!("{}: {error}", path.display()))
}

const LINES_SHOWN: usize = 40;
