//! Damaged files: whatever is in them, the tool ends, with one of its three exit codes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use wal_tests::seed::{Random, seed};

use crate::samples::{SEGMENT, workbench};
use crate::{inspect, text};

/// Runs the tool so that one which hangs or panics fails the test, naming the file.
fn survives(what: &str, arguments: &[String]) {
    let (tell, told) = mpsc::channel();
    let owned = arguments.to_vec();
    let runner = std::thread::spawn(move || {
        let words: Vec<&str> = owned.iter().map(String::as_str).collect();
        let (code, out, _) = inspect(&words);
        // Nobody waits any more if it took too long.
        let _ = tell.send((code, out.len()));
    });
    match told.recv_timeout(PATIENCE) {
        Ok((code, bytes)) => {
            assert!(code <= 2, "{what}: {arguments:?} ends with {code}");
            assert!(
                bytes < OUTPUT_BYTES_MAX,
                "{what}: {arguments:?} says {bytes} bytes"
            );
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: {arguments:?} does not end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{what}: {arguments:?} panics"),
    }
    runner.join().expect("it has told its result");
}

/// The samples that are single files, with the kind that the tool takes each for.
fn files(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let all = [
        ("plain.db", "database"),
        ("plain.db-wal", "wal"),
        ("plain.db-shm", "wal-index"),
        ("installing", "spool"),
        ("node/identity", "identity"),
        ("node/checkpoint", "checkpoint"),
        ("node/pages.hash", "page-hashes"),
    ];
    let mut files: Vec<_> = all
        .iter()
        .map(|(name, kind)| (dir.join(name), *kind))
        .collect();
    files.push((dir.join("node/log").join(SEGMENT), "segment"));
    files
}

#[test]
fn no_truncation_makes_it_panic_or_go_on_for_ever() {
    let dir = workbench();
    let mut cuts = 0;
    for (path, kind) in files(dir.path()) {
        let bytes = fs::read(&path).unwrap();
        // Small files and all headers at every length; what only repeats, at a stride that meets
        // every place of a page sooner or later.
        let dense = bytes.len().min(600);
        let lengths = (0..dense).chain((dense..bytes.len()).step_by(61));
        for length in lengths.rev() {
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length as u64)
                .unwrap();
            cuts += 1;
            for command in ["list", "verify"] {
                let arguments = [command, text(&path), "--as", kind].map(str::to_owned);
                survives(&format!("cut to {length}"), &arguments);
            }
        }
        fs::write(&path, bytes).unwrap();
    }
    println!("{cuts} truncations");
    assert!(cuts > 3000);
}

#[test]
fn no_flipped_bits_make_it_panic_or_go_on_for_ever() {
    let seed = seed("inspect damage");
    let mut random = Random::new(seed);
    let dir = workbench();
    for (path, kind) in files(dir.path()) {
        let bytes = fs::read(&path).unwrap();
        for round in 0..rounds() {
            let mut damaged = bytes.clone();
            // The beginnings, where lengths and types are, more often than their share.
            for _ in 0..1 + random.below(4) {
                let reach = if random.chance(50) { 256 } else { bytes.len() };
                let bit = random.below(8 * reach.min(bytes.len()));
                damaged[bit / 8] ^= 1 << (bit % 8);
            }
            fs::write(&path, &damaged).unwrap();
            let command = ["list", "verify", "summary"][round % 3];
            let arguments = [command, text(&path), "--as", kind].map(str::to_owned);
            survives(&format!("round {round}"), &arguments);
        }
        fs::write(&path, bytes).unwrap();
    }
}

/// Every file of a data directory in turn, and the commands that bring them together.
#[test]
fn a_data_directory_with_flipped_bits_is_still_shown() {
    let seed = seed("inspect damage");
    let mut random = Random::new(seed);
    let dir = workbench();
    let (sound, node) = (dir.path().join("node"), dir.path().join("flipped"));
    let log = format!("log/{SEGMENT}");
    let names = [
        "identity",
        "checkpoint",
        "pages.hash",
        "db.sqlite",
        "db.sqlite-wal",
        &log,
    ];
    for name in names {
        let path = node.join(name);
        let bytes = fs::read(&path).unwrap();
        for round in 0..rounds() / 2 {
            let mut damaged = bytes.clone();
            let reach = if random.chance(50) { 1000 } else { bytes.len() };
            let bit = random.below(8 * reach.min(bytes.len()));
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            let out = dir.path().join("extracted.db");
            let (node, sound, index) = (text(&node), text(&sound), (round % 8).to_string());
            let arguments: Vec<&str> = match round % 6 {
                0 => vec!["summary", node],
                1 => vec!["list", node],
                2 => vec!["verify", node],
                3 => vec!["diff", sound, node],
                4 => vec!["extract", node, "--index", &index, "-o", text(&out)],
                _ => vec!["diff", node, "--from", "2", "--to", &index],
            };
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            survives(&format!("{name}, round {round}"), &arguments);
            drop(fs::remove_file(out));
        }
        fs::write(&path, bytes).unwrap();
    }
}

/// Rounds for each file; `WAL_ROUNDS` for a longer run.
fn rounds() -> usize {
    let rounds = std::env::var("WAL_ROUNDS").ok();
    rounds.map_or(120, |rounds| {
        rounds.parse().expect("WAL_ROUNDS is a number")
    })
}

const PATIENCE: Duration = Duration::from_secs(60);
/// Far more than any of the samples has to say.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
