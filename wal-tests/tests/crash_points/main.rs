//! Crashes at every call that real nodes make to their files, with every way of losing what was not
//! synced, and calls that fail.
//!
//! Nodes in processes of their own play a few stories while a client writes, and record every call
//! that changes a file (`wal_tests::recorder`): whoever makes it, SQLite included. From the
//! recording follows what a disk may hold after a crash at each moment (`wal_tests::torn_disk`);
//! the start-up of a node is run on that, and `oracle` says whether the result is right. Start-up
//! is recorded too, for crashes during recovery.
//!
//! `WAL_CRASH_POINTS=200000` tries more of them than the 20,000 of the default,
//! `WAL_ERROR_POINTS=2000` more failing calls than 60. What fails is kept as a directory, and
//! `WAL_CRASH_IMAGE=DIRECTORY` tries it again.
//!
//! Not checked here: disks that lose what was synced, damage to it, and what only several nodes
//! together can lose (`power_cuts`).

#![allow(clippy::unwrap_used)]

#[path = "../../src/interposed.rs"]
mod interposed;
mod kept;
mod oracle;
mod story;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use oracle::Expectation;
use story::Tale;
use tokio::runtime::Runtime;
use wal_tests::recorder::{self, Fault, Mishap};
use wal_tests::replica::data_dir;
use wal_tests::seed::{Random, seed};
use wal_tests::torn_disk::{DiskImage, Tear, TornDisk};
use wal_tests::trace::{self, Event};

/// Of so many crashes one is followed by others during the recovery from it.
const DEPTH_TWO_EVERY: usize = 8;
/// So many are.
const DEPTH_TWO_POINTS: usize = 3;

/// The size of a test, from the environment.
fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |size| size.parse().unwrap())
}

/// A place where images are written and recovered.
struct Bench {
    runtime: Runtime,
    dir: tempfile::TempDir,
    tried: usize,
}

/// What was tried, and with which result.
#[derive(Debug, Default)]
struct Tally {
    points: usize,
    during_recovery: usize,
    failed_recoveries: usize,
    by_tear: BTreeMap<String, usize>,
    checks_of_acknowledged: usize,
    redone: usize,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Self {
            runtime: runtime.unwrap(),
            // In memory: what the disk makes of it was decided already.
            dir: data_dir(),
            tried: 0,
        }
    }

    fn write(&mut self, image: &DiskImage) -> PathBuf {
        self.tried += 1;
        let dir = self.dir.path().join(self.tried.to_string());
        image.write_to(&dir).unwrap();
        dir
    }

    /// Recovers and checks, and does both once more for some.
    fn check(
        &self,
        dir: &Path,
        tale: &Tale,
        expected: &Expectation,
    ) -> Result<oracle::Found, String> {
        let options = tale.options(dir.to_owned());
        let check = || oracle::check(&self.runtime, &options, &tale.hashes, expected);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let found = check()?;
            if self.tried.is_multiple_of(16) {
                let again = check().map_err(|error| format!("the second time: {error}"))?;
                if again.last != found.last {
                    return Err(format!("{found:?}, and the second time {again:?}"));
                }
            }
            Ok(found)
        }));
        caught.unwrap_or_else(|_| Err("it panics".to_owned()))
    }

    /// One crash point. Fails with what is to be said of it.
    fn point(
        &mut self,
        tale: &Tale,
        image: &DiskImage,
        expected: &Expectation,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let dir = self.write(image);
        let found = self.check(&dir, tale, expected);
        let result = found.map_err(|error| kept::keep(tale, image, expected, &error));
        std::fs::remove_dir_all(&dir).unwrap();
        let found = result?;
        tally.points += 1;
        tally.checks_of_acknowledged += usize::from(expected.floor > 0);
        tally.redone += usize::from(found.last > found.recovered);
        Ok(())
    }

    /// Records a recovery, with or without a call that fails, and crashes it.
    fn second_crash(
        &mut self,
        tale: &Tale,
        image: &DiskImage,
        expected: &Expectation,
        random: &mut Random,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let fault = random.chance(30).then(|| Fault {
            call: 1 + random.number_below(40),
            mishap: random.pick(&Mishap::ALL),
        });
        let dir = self.write(image);
        let recording = recorder::watch(&dir, fault);
        let options = tale.options(dir.clone());
        let recover = || {
            self.runtime
                .block_on(wallaby::node::recover_offline(&options))
        };
        let close = |offline: Option<wallaby::node::Offline>| {
            offline.iter().for_each(|offline| offline.log.close());
        };
        let recovered = catch_unwind(AssertUnwindSafe(|| recover().map(close)));
        let events = trace::decode(&recording.finish()).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let struck = events
            .iter()
            .any(|(event, _)| matches!(event, Event::Fault { .. }));
        match recovered {
            Ok(Ok(())) => {}
            Ok(Err(_)) if struck => tally.failed_recoveries += 1,
            Ok(Err(error)) => return Err(kept::keep(tale, image, expected, &error.to_string())),
            Err(_) => return Err(kept::keep(tale, image, expected, "it panics")),
        }
        for _ in 0..DEPTH_TWO_POINTS {
            let upto = random.below(events.len() + 1);
            let mut disk = TornDisk::new(image);
            events[..upto]
                .iter()
                .for_each(|(event, _)| disk.apply(event));
            let torn = disk.crash(random.pick(&Tear::ALL), random);
            self.point(tale, &torn, expected, tally)?;
            tally.during_recovery += 1;
        }
        Ok(())
    }

    /// Every so-manyth event of a tale, with `rounds` crashes after each.
    fn walk(
        &mut self,
        tale: &Tale,
        (worker, workers): (usize, usize),
        rounds: usize,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let mut disk = TornDisk::default();
        for (index, (event, length)) in tale.events.iter().enumerate() {
            disk.apply(event);
            if index % workers != worker || !event.changes_the_disk() {
                continue;
            }
            let mut random = Random::new(seed ^ (index as u64) << 20);
            let expected = tale.expected_at(*length);
            let tears = if disk.is_clean() { 1 } else { rounds };
            for round in 0..tears {
                let tear = Tear::ALL[(index + round) % Tear::ALL.len()];
                let image = disk.crash(tear, &mut random);
                let story = |error: String| {
                    let (name, event) = (&tale.name, event.brief());
                    format!("{name}, {tear:?} torn off after event {index}, {event}: {error}")
                };
                self.point(tale, &image, &expected, tally).map_err(story)?;
                *tally.by_tear.entry(format!("{tear:?}")).or_default() += 1;
                if random.below(DEPTH_TWO_EVERY) == 0 {
                    self.second_crash(tale, &image, &expected, &mut random, tally)
                        .map_err(story)?;
                }
            }
        }
        Ok(())
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.points += other.points;
        self.during_recovery += other.during_recovery;
        self.failed_recoveries += other.failed_recoveries;
        self.checks_of_acknowledged += other.checks_of_acknowledged;
        self.redone += other.redone;
        for (tear, count) in other.by_tear {
            *self.by_tear.entry(tear).or_default() += count;
        }
    }
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs the same on every processor, and adds up.
fn on_all(work: impl Fn(usize, usize, &mut Tally) -> Result<(), String> + Sync) -> Tally {
    let total = Mutex::new(Tally::default());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..workers() {
            let (total, failures, work) = (&total, &failures, &work);
            scope.spawn(move || {
                let mut tally = Tally::default();
                if let Err(failure) = work(worker, workers(), &mut tally) {
                    failures.lock().unwrap().push(failure);
                }
                total.lock().unwrap().add(tally);
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    total.into_inner().unwrap()
}

#[test]
fn a_crash_at_any_call_loses_nothing_acknowledged() {
    if let Some(dir) = std::env::var_os("WAL_CRASH_IMAGE") {
        let (tale, image, expected) = kept::load(Path::new(&dir));
        let mut bench = Bench::new();
        let result = bench.point(&tale, &image, &expected, &mut Tally::default());
        assert_eq!(result, Ok(()));
        return;
    }
    let seed = seed("crash_points");
    let begin = Instant::now();
    let tales = [story::alone(), story::together()].concat();
    let told = begin.elapsed();
    for tale in &tales {
        println!("{}: {} events", tale.name, tale.events.len());
    }
    let mut dirty = 0;
    for tale in &tales {
        let mut disk = TornDisk::default();
        for (event, _) in &tale.events {
            disk.apply(event);
            dirty += usize::from(event.changes_the_disk() && !disk.is_clean());
        }
    }
    let wanted = size("WAL_CRASH_POINTS", 20_000);
    let per_round = dirty + dirty * DEPTH_TWO_POINTS / DEPTH_TWO_EVERY;
    let rounds = wanted.div_ceil(per_round);
    let tally = on_all(|worker, workers, tally| {
        let mut bench = Bench::new();
        let mut tales = tales.iter();
        tales.try_for_each(|tale| bench.walk(tale, (worker, workers), rounds, seed, tally))
    });
    println!(
        "{} crash points, 0 with a loss; {told:.1?} of stories, {:.1?} in all: {tally:?}",
        tally.points,
        begin.elapsed()
    );
    assert!(tally.points >= wanted * 9 / 10, "too few");
    assert!(tally.during_recovery > 0 && tally.failed_recoveries > 0);
    assert!(tally.checks_of_acknowledged > tally.points / 2);
}

/// A failing call may be refused or survived; what was acknowledged by then is there, whatever of
/// the rest reached the disk, and no sync of a file is tried again after one has failed.
#[test]
fn a_call_that_fails_loses_nothing_acknowledged() {
    let seed = seed("crash_points");
    let whole = story::faulted(None);
    let calls = whole.events.iter();
    let calls = calls.filter(|(event, _)| event.changes_the_disk()).count();
    let wanted = size("WAL_ERROR_POINTS", 60);
    let struck = Mutex::new(BTreeMap::<String, usize>::new());
    let tally = on_all(|worker, workers, tally| {
        let mut bench = Bench::new();
        for point in (worker..wanted).step_by(workers) {
            let mut random = Random::new(seed ^ (point as u64) << 32);
            // Evenly over the whole story, from a random place on.
            let offset = random.below(calls.div_ceil(wanted));
            let call = 1 + (point * calls / wanted + offset) % calls;
            let mishap = random.pick(&Mishap::ALL);
            let tale = story::faulted(Some(&format!("{call} {mishap:?}")));
            let result = fail(&mut bench, &tale, &mut random, tally);
            let end = result.map_err(|error| format!("{mishap:?} at call {call}: {error}"))?;
            *struck.lock().unwrap().entry(end).or_default() += 1;
        }
        Ok(())
    });
    let struck = struck.into_inner().unwrap();
    println!("{wanted} failing calls of {calls}, 0 with a loss: {struck:?}, {tally:?}");
    assert!(tally.points > wanted, "too few of the calls were made");
}

/// Checks what a node with a failing call leaves; says how it ended.
fn fail(
    bench: &mut Bench,
    tale: &Tale,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<String, String> {
    let fault = tale.events.iter().find_map(|(event, _)| match event {
        Event::Fault { call } => Some(call.clone()),
        _ => None,
    });
    let Some(fault) = fault else {
        return Ok("not reached".to_owned());
    };
    let mut disk = TornDisk::default();
    let mut lost = Vec::new();
    for (event, _) in &tale.events {
        disk.apply(event);
        match event {
            Event::Sync { inode, failed } if lost.contains(inode) => {
                return Err(format!("{fault}: synced again, {failed}"));
            }
            Event::Sync {
                inode,
                failed: true,
            } => lost.push(*inode),
            _ => {}
        }
    }
    let expected = tale.expected_at(u64::MAX);
    for tear in Tear::ALL {
        let image = disk.crash(tear, random);
        bench
            .point(tale, &image, &expected, tally)
            .map_err(|error| format!("{fault}, {tear:?} torn off: {error}"))?;
    }
    let what = fault.split(',').next().unwrap_or_default();
    let end = if expected.ceiling == u64::MAX {
        "refused"
    } else {
        "survived"
    };
    Ok(format!("{what} {end}"))
}
