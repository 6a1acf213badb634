//! The corpus, and some seconds of inputs made from it, for each target.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fuzz::campaign::run;
use fuzz::{Reached, TARGETS, corpus};

/// Two targets at a time, as CI has two cores.
const THREADS: usize = 2;

#[test]
fn every_target_survives_its_corpus_and_what_is_made_of_it() {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(1, |seconds| {
        seconds
            .parse()
            .expect("FUZZ_SECONDS is a number of seconds")
    });
    let seed = wal_tests::seed::seed("replay");
    let next = AtomicUsize::new(0);
    let lines = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(target) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(target, seed, Duration::from_secs(seconds));
                    let inputs = corpus::inputs(target).len();
                    assert!(outcome.executions >= inputs as u64, "{}", target.name);
                    let mut lines = lines.lock().expect("nothing panics while it is held");
                    lines.push(format!("{}: {outcome:?}", target.name));
                }
            });
        }
    });
    let lines = lines.into_inner().expect("nothing panicked");
    println!("{}", lines.join("\n"));
    assert_eq!(lines.len(), TARGETS.len());
}

#[test]
fn each_corpus_has_inputs_that_are_accepted_and_some_that_are_not() {
    let mut bytes = 0;
    for target in &TARGETS {
        let inputs = corpus::inputs(target);
        bytes += inputs.iter().map(|(_, input)| input.len()).sum::<usize>();
        let reached: Vec<Reached> = inputs
            .iter()
            .map(|(name, input)| {
                assert!(input.len() <= target.bytes_max + 1, "{name} is long");
                (target.body)(input)
            })
            .collect();
        for wanted in [Reached::Accepted, Reached::Refused] {
            assert!(
                reached.contains(&wanted),
                "{}: none {wanted:?}",
                target.name
            );
        }
    }
    assert!(bytes < 1 << 20, "the corpus has grown to {bytes} bytes");
}

#[test]
fn every_target_is_a_program_for_libfuzzer_and_has_a_corpus_of_its_samples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    let programs = fuzz::place::names(&root.join("fuzz_targets"));
    let folders = fuzz::place::names(&root.join("corpus"));
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(folders, names);
    assert_eq!(
        programs,
        names
            .iter()
            .map(|name| format!("{name}.rs"))
            .collect::<Vec<_>>()
    );
    for target in &TARGETS {
        let name = target.name;
        let program = std::fs::read_to_string(root.join(format!("fuzz_targets/{name}.rs")));
        let call = format!("fuzz::{name}(data)");
        assert!(program.is_ok_and(|text| text.contains(&call)), "{name}");
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        let inputs = corpus::inputs(target);
        for sample in (target.samples)() {
            let name = format!("sample-{}", sample.name);
            assert!(inputs.iter().any(|(input, _)| *input == name), "{name}");
        }
    }
}
