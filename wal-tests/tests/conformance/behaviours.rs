//! All behaviours: where they are, and playing a section of them to a verdict.

use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Condvar, Mutex};

use crate::player;
use crate::script::{self, Behaviour};

/// The sections and the numbers in each.
pub(crate) const SECTIONS: [(&str, RangeInclusive<u32>); 10] = [
    ("a", 1..=17),
    ("b", 18..=30),
    ("c", 31..=47),
    ("d", 48..=53),
    ("e", 54..=58),
    ("f", 59..=66),
    ("g", 67..=71),
    ("h", 72..=75),
    ("i", 76..=84),
    ("j", 85..=88),
];

/// The 25 that matter most.
pub(crate) const IMPORTANT: [u32; 25] = [
    1, 2, 6, 9, 10, 18, 23, 25, 33, 37, 40, 48, 50, 54, 59, 60, 61, 62, 64, 67, 72, 74, 76, 79, 85,
];

/// What came of one behaviour.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Failed(String),
    Passed,
    Pending(String),
}

/// The behaviours of a section, in the order of the file.
pub(crate) fn section(letter: &str) -> Vec<Behaviour> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let files = std::fs::read_dir(&folder).unwrap();
    let names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&format!("{letter}_")))
        .collect();
    assert_eq!(names.len(), 1, "files of section {letter}: {names:?}");
    let text = std::fs::read_to_string(folder.join(&names[0])).unwrap();
    script::parse(&names[0], &text).unwrap_or_else(|error| panic!("{error}"))
}

/// Plays a section and panics with all that is wrong.
pub(crate) fn play(letter: &str) {
    let only = std::env::var("WAL_BEHAVIOUR").ok();
    let only: Option<u32> = only.map(|number| number.parse().unwrap());
    let mut failures = Vec::new();
    for behaviour in section(letter) {
        if only.is_some_and(|only| only != behaviour.number) {
            continue;
        }
        let place = format!("{}:{}", behaviour.file, behaviour.line);
        let name = format!("behaviour {} ({})", behaviour.number, behaviour.title);
        match judged(&behaviour) {
            Verdict::Passed => {}
            Verdict::Pending(why) => {
                // Not through `println!`: it has to be seen although the test passes. All of it
                // where somebody looks at this one behaviour.
                let lines = if only.is_some() { usize::MAX } else { 1 };
                let why: Vec<&str> = why.lines().take(lines).collect();
                let line = format!("pending: {place}: {name}: {}\n", why.join("\n"));
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
            Verdict::Failed(why) => failures.push(format!("{place}: {name}\n{why}")),
        }
    }
    assert!(failures.is_empty(), "\n\n{}\n", failures.join("\n\n"));
}

fn judged(behaviour: &Behaviour) -> Verdict {
    let _turn = Turn::take();
    let outcome = player::play(behaviour);
    verdict(behaviour, outcome)
}

/// A pending mark excuses what fails after it, and nothing else.
pub(crate) fn verdict(behaviour: &Behaviour, outcome: Result<(), player::Failure>) -> Verdict {
    match (&behaviour.pending, outcome) {
        (None, Ok(())) => Verdict::Passed,
        (None, Err(failure)) => Verdict::Failed(failure.text),
        (Some(pending), Ok(())) => Verdict::Failed(format!(
            "{}:{}: marked as pending, and it holds: remove the mark\n  pending: {}",
            behaviour.file, pending.line, pending.reason
        )),
        // A failed set-up counts as the first step's.
        (Some(pending), Err(failure)) if failure.step.unwrap_or(0) >= pending.from_step => {
            Verdict::Pending(format!("{}\n{}", pending.reason, failure.text))
        }
        (Some(_), Err(failure)) => {
            Verdict::Failed(format!("before the pending mark: {}", failure.text))
        }
    }
}

/// The right to run nodes.
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(2), Condvar::new());

impl Turn {
    fn take() -> Self {
        let free = TURNS.0.lock().unwrap();
        let mut free = TURNS.1.wait_while(free, |free| *free == 0).unwrap();
        *free -= 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap() += 1;
        TURNS.1.notify_one();
    }
}
