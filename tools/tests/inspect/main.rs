//! `wal-inspect`, and the decoder of database pages under it.
//!
//! Random tests print their seed; `WAL_SEED=n cargo test -p tools --test inspect` replays one. The
//! samples and the expected outputs are described in `samples/README.md`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should end there"
)]

mod damage;
mod golden;
mod node;
mod pages;
mod samples;

use std::path::Path;
use std::process::{Command, Output};

/// Runs the tool in this process: exit code, output, errors.
fn inspect(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let all = std::iter::once("wal-inspect").chain(arguments.iter().copied());
    let code = tools::inspect::run(all, &mut out, &mut errors, false);
    let text = |bytes| String::from_utf8(bytes).expect("the output is text");
    (code, text(out), text(errors))
}

/// Runs the tool as users do.
fn process(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_wal-inspect"))
        .args(arguments)
        .output();
    output.expect("the binary was just built")
}

/// A path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// The objects of a JSON output that are of a kind.
fn objects(output: &str, kind: &str) -> Vec<serde_json::Value> {
    let parse = |line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON");
    let all = output.lines().map(parse);
    all.filter(|object| object["kind"] == kind).collect()
}
