//! Runs targets without libFuzzer: the corpus, and then inputs that are changed at random.
//!
//! The input that is being tried is kept; if it makes the target panic, it is written to a file
//! under `target/fuzz/crashes`, whether panics unwind or end the process.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use wal_tests::seed::Random;

use crate::mutation::mutated;
use crate::{Reached, Target, corpus, memory};

/// What came of running a target.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Inputs that were tried.
    pub executions: u64,
    /// Those that meant something.
    pub accepted: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// The most that a decoder took from the allocator, in bytes.
    pub highest: usize,
}

thread_local! {
    /// The target that runs on this thread, and its input.
    static CURRENT: RefCell<(&'static str, Vec<u8>)> = const { RefCell::new(("", Vec::new())) };
}

/// Tries the corpus of a target and then inputs made from it until the time is up.
///
/// # Panics
/// If the target does.
pub fn run(target: &Target, seed: u64, time: Duration) -> Outcome {
    keep_what_panics();
    memory::take_highest();
    let begin = Instant::now();
    let mut outcome = Outcome::default();
    let mut inputs: Vec<Vec<u8>> = Vec::new();
    for (_, bytes) in corpus::inputs(target) {
        try_one(target, &bytes, &mut outcome);
        inputs.push(bytes);
    }
    let mut random = Random::new(seed);
    while begin.elapsed() < time {
        // Looking at the clock is not free, and some targets take a microsecond.
        for _ in 0..ROUNDS {
            let input = mutated(&mut random, &inputs, target.words, target.bytes_max);
            try_one(target, &input, &mut outcome);
            if outcome.executions.is_multiple_of(ROUNDS) && begin.elapsed() >= time {
                break;
            }
        }
    }
    outcome.elapsed = begin.elapsed();
    outcome.highest = memory::take_highest();
    outcome
}

fn try_one(target: &Target, input: &[u8], outcome: &mut Outcome) {
    CURRENT.with_borrow_mut(|(name, bytes)| {
        *name = target.name;
        bytes.clear();
        bytes.extend_from_slice(input);
    });
    outcome.executions += 1;
    outcome.accepted += u64::from((target.body)(input) == Reached::Accepted);
}

/// Has a panic write the input of its thread to a file.
fn keep_what_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            default(info);
            let kept = CURRENT.try_with(|current| {
                let (name, bytes) = &*current.try_borrow().ok()?;
                (!name.is_empty()).then(|| keep(name, bytes))
            });
            if let Ok(Some(Some(path))) = kept {
                eprintln!("the input is in {}", path.display());
            }
        }));
    });
}

fn keep(name: &str, bytes: &[u8]) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/crashes");
    let directory = root.join(name);
    fs::create_dir_all(&directory).ok()?;
    let path = directory.join(format!("found-{:08x}", crc32fast::hash(bytes)));
    fs::write(&path, bytes).ok()?;
    Some(path)
}

const ROUNDS: u64 = 16;
