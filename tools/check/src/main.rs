//! What CI runs, on a laptop: `cargo check-all`.
//!
//! Format, lints, documents, tests, fuzzing, planted mistakes; stops at the first step that fails, and
//! says how long each took.
//! `cargo check-all -- lint` runs one step.

use std::env;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use check::programs;

/// A cargo command and what it stands for.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Set for this step only.
    environment: &'static [(&'static str, &'static str)],
}

fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != **name))
    {
        let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        eprintln!(
            "check: no step {unknown:?}; there are: {}",
            known.join(", ")
        );
        return ExitCode::from(2);
    }
    let begin = Instant::now();
    for step in &STEPS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == step.name) {
            continue;
        }
        println!("== {}: cargo {}", step.name, step.arguments.join(" "));
        let step_begin = Instant::now();
        let result = run(step);
        let seconds = step_begin.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("== {}: ok after {seconds:.1} s", step.name),
            Err(reason) => {
                println!("== {}: FAILED after {seconds:.1} s: {reason}", step.name);
                return ExitCode::FAILURE;
            }
        }
    }
    println!("== all ok after {:.1} s", begin.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

fn run(step: &Step) -> Result<(), String> {
    let status = programs::cargo(step.arguments)
        .envs(step.environment.iter().copied())
        // A test that asks for input should fail here as it would in CI, and not wait.
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// Cheap steps first. The fuzz targets run without libFuzzer, which needs a C++ compiler: their corpus
/// and what is made of it at random.
const STEPS: [Step; 6] = [
    Step {
        name: "format",
        arguments: &["fmt", "--all", "--", "--check"],
        environment: &[],
    },
    Step {
        name: "lint",
        arguments: &[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--features",
            "fuzz/libfuzzer",
            "--",
            "-D",
            "warnings",
        ],
        // Nothing is linked here, so the programs for libFuzzer are checked without it.
        environment: &[("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a")],
    },
    Step {
        name: "documents",
        arguments: &[
            "doc",
            "--locked",
            "--workspace",
            "--exclude",
            "fuzz",
            "--no-deps",
        ],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Step {
        name: "test",
        arguments: &["test-all"],
        // The corpus alone; the next step does more.
        environment: &[("FUZZ_SECONDS", "0")],
    },
    Step {
        name: "fuzz",
        // Without --package: with the features that the tests were built with.
        arguments: &["test", "--locked", "--test", "replay"],
        environment: &[("FUZZ_SECONDS", "10")],
    },
    Step {
        name: "planted",
        arguments: &[
            "run", "--locked", "--quiet", "--bin", "planted", "--", "--fast",
        ],
        environment: &[],
    },
];
