//! The log, with the power cut at every call it makes to the file system, and every call failing.
//!
//! Checked each time: everything acknowledged is there; what is there is what was submitted, in
//! order, up to some point; recovering twice is recovering once; what recovery has shown survives a
//! power cut; and the log can go on. Not checked here: damage to bytes that were synced
//! (`log.rs`), and openraft on top.

// A test that cannot unwrap, or count in bytes, says less.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod log_model;

use log_model::{Model, Op, SMALL, Session, entry, log_id, models, script};
use openraft::storage::RaftLogStorage;
use wal_tests::files::{Fault, FaultyFiles, Keep};
use wal_tests::seed::{Random, seed};
use wallaby::raft::log::LogOptions;

const TEST: &str = "log_crash";

/// Runs a script until its end or the first failing call. `pipelined` = acknowledgements are
/// waited for only now and then, so that batches hold many records.
fn run(files: &FaultyFiles, ops: &[Op], options: LogOptions, pipelined: bool) -> (usize, usize) {
    let Ok(mut session) = Session::open(files, options) else {
        return (0, 0);
    };
    for (place, op) in ops.iter().enumerate() {
        let wait = !pipelined || place % 7 == 6;
        if session.submit(op).is_err() || (wait && session.wait().is_err()) {
            break;
        }
    }
    // Refusals do not undo what was acknowledged before them.
    drop(session.wait());
    (session.acked, session.submitted)
}

/// How many calls the script makes when nothing goes wrong, opening and closing included.
fn calls(ops: &[Op], options: LogOptions, pipelined: bool) -> u64 {
    let files = FaultyFiles::new();
    let mut session = Session::open(&files, options).unwrap();
    for op in ops {
        session.submit(op).unwrap();
        if !pipelined {
            session.wait().unwrap();
        }
    }
    session.wait().unwrap();
    session.log.close();
    files.calls()
}

/// Opens what a crash left and checks it against the script.
fn check(files: &FaultyFiles, models: &[Model], acked: usize, submitted: usize, story: &str) {
    let session = match Session::open(files, SMALL) {
        Ok(session) => session,
        Err(error) => panic!("{story}: cannot open: {error}"),
    };
    let observed = session.observe();
    let explained = models[acked..=submitted].contains(&observed);
    assert!(
        explained,
        "{story}: {acked} acknowledged of {submitted}, and found {observed:#?}\nbut expected at \
         least {:#?}",
        models[acked]
    );

    // Recovered once more, by a process that found the first one dead: nothing is written anew.
    let image = files.image();
    let again = files.restart(Keep::Process, 0);
    let session = Session::open(&again, SMALL).unwrap();
    assert_eq!(
        session.observe(),
        observed,
        "{story}: the second recovery found another log"
    );
    assert!(
        again.image() == image,
        "{story}: the second recovery changed the files"
    );

    // What recovery has shown may have been acted upon: it must survive.
    let powerless = again.restart(Keep::Nothing, 0);
    let session = Session::open(&powerless, SMALL).unwrap();
    assert_eq!(
        session.observe(),
        observed,
        "{story}: what recovery showed was not durable"
    );

    // And the log goes on, whether or not the power was cut in between.
    for kept in [Keep::Process, Keep::Nothing] {
        let files = again.restart(kept, 0);
        let mut session = Session::open(&files, SMALL).unwrap();
        let mut expected = observed.clone();
        let op = Op::Append(entry(1000, expected.next_index(), 100));
        expected.apply(&op);
        session.perform(&op).unwrap();
        let session = Session::open(&files.restart(Keep::Nothing, 0), SMALL).unwrap();
        assert_eq!(
            session.observe(),
            expected,
            "{story}: an entry after recovery was lost"
        );
    }
}

fn crash_everywhere(ops: &[Op], pipelined: bool, seed: u64) {
    let models = models(ops);
    let calls = calls(ops, SMALL, pipelined);
    for call in 1..=calls {
        let files = FaultyFiles::new().with_fault(call, Fault::Crash);
        let (acked, submitted) = run(&files, ops, SMALL, pipelined);
        for keep in Keep::ALL {
            let story = format!(
                "crash at call {call} ({}), {keep:?} kept",
                files.last_call()
            );
            let found = files.restart(keep, seed ^ call);
            check(&found, &models, acked, submitted, &story);
        }
    }
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_acknowledged() {
    let seed = seed(TEST);
    let ops = script(&mut Random::new(seed), 32, 6000);
    crash_everywhere(&ops, false, seed);
}

#[test]
fn a_power_cut_within_large_batches_loses_nothing_acknowledged() {
    let seed = seed(TEST);
    let ops = script(&mut Random::new(seed), 60, 1500);
    crash_everywhere(&ops, true, seed);
}

#[test]
fn a_second_power_cut_during_recovery_loses_nothing_acknowledged() {
    let seed = seed(TEST);
    let mut random = Random::new(seed);
    let ops = script(&mut random, 60, 6000);
    let models = models(&ops);
    let calls = calls(&ops, SMALL, false);
    for _ in 0..12 {
        let call = 1 + random.bits() % calls;
        let files = FaultyFiles::new().with_fault(call, Fault::Crash);
        let (acked, submitted) = run(&files, &ops, SMALL, false);
        let first = Keep::ALL[random.below(5)];
        let noise = random.bits();
        for second_call in 1.. {
            let recovering = files
                .restart(first, noise)
                .with_fault(second_call, Fault::Crash);
            let opened = Session::open(&recovering, SMALL).is_ok();
            for second in Keep::ALL {
                let story =
                    format!("crash at {call}, {first:?}, then at {second_call}, {second:?}");
                let found = recovering.restart(second, noise ^ second_call);
                check(&found, &models, acked, submitted, &story);
            }
            if opened {
                break;
            }
        }
    }
}

#[test]
fn a_power_cut_while_a_segment_grows_loses_nothing_acknowledged() {
    let seed = seed(TEST);
    let options = LogOptions {
        segment_bytes: 3 << 20,
        ..LogOptions::default()
    };
    let ops: Vec<Op> = (0..9)
        .map(|index| Op::Append(entry(1, index, 600_000)))
        .collect();
    let models = models(&ops);
    for call in 1..=calls(&ops, options, false) {
        let files = FaultyFiles::new().with_fault(call, Fault::Crash);
        let (acked, submitted) = run(&files, &ops, options, false);
        let keep = Keep::ALL[(seed.wrapping_add(call) % 5) as usize];
        let story = format!(
            "crash at call {call} ({}), {keep:?} kept",
            files.last_call()
        );
        check(
            &files.restart(keep, seed ^ call),
            &models,
            acked,
            submitted,
            &story,
        );
    }
}

/// The committed position travels with whatever batch comes next. Were it written ahead of its
/// entry, the next start would find an entry committed that the log does not have.
#[test]
fn a_committed_position_is_never_durable_before_its_entry() {
    let last = 30;
    for call in 1.. {
        let files = FaultyFiles::new().with_fault(call, Fault::Crash);
        if let Ok(mut session) = Session::open(&files, SMALL) {
            let mut log = session.log.clone();
            // One submission that takes many batches; the position is noted while they queue.
            let queued = session.append((0..=last).map(|index| entry(1, index, 1500)).collect());
            drop(session.block_on(log.save_committed(Some(log_id(1, last)))));
            let waited = session.wait();
            if queued.is_ok() && waited.is_ok() {
                break;
            }
        }
        let found = Session::open(&files.restart(Keep::All, 0), SMALL)
            .unwrap()
            .observe();
        let ahead =
            found.committed.map(|committed| committed.index) > found.last().map(|l| l.index);
        assert!(
            !ahead,
            "crash at call {call}: committed {:?} of {:?}",
            found.committed,
            found.last()
        );
    }
}

/// A failed call latches the log: it says so, acknowledges nothing more and touches nothing more.
/// The next process finds everything acknowledged, and what it finds is durable.
#[test]
fn any_failing_call_latches_the_log_and_loses_nothing() {
    let seed = seed(TEST);
    let ops = script(&mut Random::new(seed), 24, 6000);
    let models = models(&ops);
    let calls = calls(&ops, SMALL, false);
    let mut latched = 0;
    for fault in [Fault::Io, Fault::Full, Fault::Short] {
        for call in 1..=calls {
            let story = format!("{fault:?} at call {call}");
            let files = FaultyFiles::new().with_fault(call, fault);
            let Ok(mut session) = Session::open(&files, SMALL) else {
                check(&files.restart(Keep::Process, 0), &models, 0, 0, &story);
                continue;
            };
            let refused = ops.iter().position(|op| session.perform(op).is_err());
            let (acked, submitted) = (session.acked, session.submitted);
            if refused.is_some() {
                latched += 1;
                let failure = session.log.failure();
                assert!(failure.is_some(), "{story}: a call failed, the log goes on");
                let before = files.calls();
                for op in &ops {
                    assert!(
                        session.perform(op).is_err(),
                        "{story}: a latched log took {op:?}"
                    );
                }
                session.log.close();
                assert_eq!(
                    files.calls(),
                    before,
                    "{story}: a latched log touched its files"
                );
            }
            for keep in Keep::ALL {
                let story = format!("{story}, then {keep:?} kept");
                check(
                    &files.restart(keep, seed ^ call),
                    &models,
                    acked,
                    submitted,
                    &story,
                );
            }
        }
    }
    assert!(
        latched > calls / 2,
        "only {latched} of the faults were noticed"
    );
}

#[test]
fn a_short_write_is_continued_and_nobody_notices() {
    let ops = script(&mut Random::new(seed(TEST)), 25, 6000);
    let models = models(&ops);
    for call in 1..=calls(&ops, SMALL, false) {
        let files = FaultyFiles::new().with_fault(call, Fault::Short);
        let (acked, submitted) = run(&files, &ops, SMALL, false);
        assert_eq!(
            (acked, submitted),
            (ops.len(), ops.len()),
            "short write at call {call}"
        );
        let found = files.restart(Keep::Nothing, 0);
        check(
            &found,
            &models,
            acked,
            submitted,
            &format!("short write at call {call}"),
        );
    }
}
