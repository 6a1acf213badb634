//! Whole clusters on simulated time, threads, network and disks; see `wal_tests::simulation`.
//!
//! `WAL_SIMULATIONS=n` runs so many seeds; what plays a bad one again is printed with it. The same
//! in release and with more figures: `cargo run --release -p tools --bin simulate`.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Runs the program; whether it was satisfied, and what it printed.
fn simulate(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_simulated_cluster"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// The sum of a figure over all runs.
fn figure(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is printed"));
    let sum = line.trim_start().trim_start_matches(name);
    sum.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn clusters_keep_their_promises_whatever_goes_wrong() {
    let seeds = std::env::var("WAL_SIMULATIONS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let (is_good, text) = simulate(&["--seeds", &format!("1..{seeds}")]);
    assert!(is_good, "the bad seeds and how to replay them are above");
    assert!(
        figure(&text, "elections") > seeds,
        "only the first election"
    );
    assert!(figure(&text, "acknowledged") > 100 * seeds);
    if seeds >= SEEDS_THAT_SEE_ALL {
        for what in ["installs", "cut off", "discarded", "refused", "unknown"] {
            assert!(figure(&text, what) > 0, "nothing of {what} has happened");
        }
    }
}

#[test]
fn a_seed_that_was_bad_once_is_good() {
    for seed in SEEDS_THAT_FOUND {
        let (is_good, _) = simulate(&["--seeds", &format!("{seed}..{seed}")]);
        assert!(is_good);
    }
}

#[test]
fn a_seed_gives_the_same_events_again() {
    let (is_good, text) = simulate(&["--seeds", "101..102", "--seconds", "10", "--twice"]);
    assert!(is_good);
    let digests: Vec<&str> = text.lines().filter(|line| line.contains("good")).collect();
    assert_eq!(digests.len(), 2);
    let events = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
    assert_ne!(
        events(digests[0]),
        events(digests[1]),
        "another seed differs"
    );
}

/// A run that cannot end badly would prove nothing.
#[test]
fn disks_that_lie_about_syncs_are_found_out() {
    let arguments = ["--seeds", "201..201", "--seconds", "10", "--lying-disks"];
    let (is_good, text) = simulate(&arguments);
    assert!(
        !is_good,
        "acknowledged writes were lost and nobody has noticed"
    );
    assert!(text.contains("to replay: cargo run --release -p tools --bin simulate -- --seed"));
}

/// About two minutes on two processors.
const SEEDS: u64 = 60;
/// The database was closed under an entry that was being applied.
const SEEDS_THAT_FOUND: [u64; 1] = [846];
/// By then everything has happened somewhere.
const SEEDS_THAT_SEE_ALL: u64 = 20;
