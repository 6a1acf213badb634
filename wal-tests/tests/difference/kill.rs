//! Nodes that are killed at each step of a transfer: the receiver comes up again and ends with the
//! same bytes, and whoever opens its file in between finds a complete state of it or none.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use wal_tests::halt::{self, Halt};
use wal_tests::seed::{Random, seed};

use crate::stage::{Spooled, Stage, spooled};

const MEBIBYTES: u64 = 3;
/// A frame holds 512 KiB of pages.
const FRAMES: usize = 6;

/// What is in the data directory when a node halts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expected {
    Incoming,
    Installing,
    Nothing,
    /// Either nothing or the beginning.
    NotInstalling,
    /// The record is made durable by another thread, and the spool goes behind it.
    Anything,
}

/// Steps of a receiver that was killed before each of them: up to the start-up that finds a
/// complete database, and finishes what the process before it has begun.
fn steps_to_a_restart(random: &mut Random) -> Vec<(Halt, Expected)> {
    use Expected::{Incoming, Installing, NotInstalling, Nothing};
    let frame = 1 + random.below(FRAMES / 2);
    // All pages have to be written by the start-up.
    let pages = usize::try_from(MEBIBYTES << 20).unwrap() / 4096;
    let (page, other) = (1 + random.below(pages), 1 + random.below(pages));
    let at = Halt::at;
    vec![
        (at(1, "a peer is about to send its database"), Nothing),
        (
            at(1, "the sender knows which pages are here"),
            NotInstalling,
        ),
        (at(frame, "received pages are in the spool"), Incoming),
        (at(1, "all pages that differ have arrived"), Incoming),
        (at(1, "the received pages are durable"), Incoming),
        (at(1, "the received database is verified"), Incoming),
        (at(1, "the received database is adopted"), Installing),
        (at(1, "finishing the installation"), Installing),
        (at(page, GOES_IN), Installing),
        (at(other, GOES_IN), Installing),
        (at(1, "covers what was redone"), Installing),
    ]
}

/// Steps of an installation in a running node.
fn steps_of_an_installation(random: &mut Random) -> Vec<(Halt, Expected)> {
    let pages = usize::try_from(MEBIBYTES << 20).unwrap() / 4096;
    let at = Halt::at;
    vec![
        (at(1 + random.below(pages), GOES_IN), Expected::Installing),
        (at(1, "covers the received database"), Expected::Installing),
        (
            at(1, "the received database is installed"),
            Expected::Anything,
        ),
    ]
}

const GOES_IN: &str = "a received page goes into the database";

/// Opens the file of a node as any program may.
#[derive(Debug, Eq, PartialEq)]
enum Seen {
    /// Every row is as old as this.
    Age(u64),
    /// A start-up has locked it.
    Locked,
    /// A start-up was killed that had begun to change it.
    NoDatabase,
}

fn look(dir: &Path) -> Seen {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = Connection::open_with_flags(dir.join("db.sqlite"), flags).unwrap();
    let all = "SELECT count(*), min(age), max(age), sum(length(payload)) FROM filler";
    let row = database.query_row(all, [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    let (rows, youngest, oldest, bytes): (i64, i64, i64, i64) = match row {
        Ok(row) => row,
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => return Seen::Locked,
            Some(ErrorCode::NotADatabase) => return Seen::NoDatabase,
            _ => panic!("{error}"),
        },
    };
    let all = i64::try_from(MEBIBYTES * (1 << 20) / 4096).unwrap();
    assert_eq!((rows, bytes), (all, all * 3900));
    assert_eq!(youngest, oldest, "two states of the database at once");
    let sound = database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    assert_eq!(sound.unwrap(), "ok");
    Seen::Age(youngest.unsigned_abs())
}

/// Starts the node, kills it at the step, and looks at its file before and after.
fn kill_at(stage: &mut Stage, node: usize, halt: &Halt, expected: Expected, ages: [u64; 2]) {
    let dir = stage.cluster.data_dir(node).to_owned();
    halt::start(&mut stage.cluster, node, halt);
    let found = spooled(&dir);
    let halted = look(&dir);
    stage.cluster.kill(node);
    let killed = look(&dir);
    println!("killed at {halt}: {found:?}, {halted:?}, {killed:?}");
    let is_so = match expected {
        Expected::Incoming => matches!(found, Spooled::Incoming(_)),
        Expected::Installing => matches!(found, Spooled::Installing(_)),
        Expected::Nothing => found == Spooled::Nothing,
        Expected::Anything => true,
        Expected::NotInstalling => !matches!(found, Spooled::Installing(_)),
    };
    assert!(is_so, "{found:?} is not {expected:?}");
    for seen in [&halted, &killed] {
        assert!(!matches!(seen, Seen::Age(age) if !ages.contains(age)));
    }
    // While a node runs its readers are never turned away, and when it is gone nothing is locked.
    assert_ne!(halted, Seen::NoDatabase);
    assert_ne!(killed, Seen::Locked);
    let is_locked = halted == Seen::Locked;
    assert!(
        is_locked || killed == halted,
        "the kill has changed something"
    );
}

/// A node is away while every page changes and the log is purged; returns it, and the age of its
/// rows and of the others'.
fn fall_behind(stage: &mut Stage, age: &mut u64) -> (usize, [u64; 2]) {
    let (away, _) = stage.send_away();
    let before = *age;
    stage.change_all();
    *age += 1;
    stage.purge();
    (away, [before, *age])
}

#[test]
fn a_receiver_that_is_killed_at_any_step_ends_with_the_same_database() {
    let mut random = Random::new(seed("difference"));
    let attempts = std::env::var("WAL_ATTEMPTS").map_or(1, |text| text.parse().unwrap());
    let mut stage = Stage::build_halting(MEBIBYTES);
    let mut age = 0;
    for _ in 0..attempts {
        let (away, ages) = fall_behind(&mut stage, &mut age);
        for (halt, expected) in steps_to_a_restart(&mut random) {
            kill_at(&mut stage, away, &halt, expected, ages);
        }
        stage.cluster.start_node(away);
        stage.assert_caught_up();
        for (halt, expected) in steps_of_an_installation(&mut random) {
            let (away, ages) = fall_behind(&mut stage, &mut age);
            kill_at(&mut stage, away, &halt, expected, ages);
            stage.cluster.start_node(away);
            stage.assert_caught_up();
        }
    }
}

#[test]
fn a_sender_that_is_killed_in_the_middle_is_replaced_by_another() {
    let mut random = Random::new(seed("difference"));
    let mut stage = Stage::build_halting(MEBIBYTES);
    let (away, ages) = fall_behind(&mut stage, &mut 0);
    let sender = stage.cluster.wait_leader();
    let halt = Halt::at(
        1 + random.below(FRAMES / 2),
        "pages are on their way to a peer",
    );
    halt::arm_running(&stage.cluster, sender, &halt);
    stage.cluster.start_node(away);
    halt::wait(&mut stage.cluster, sender, &halt);
    stage.cluster.kill(sender);
    let dir = stage.cluster.data_dir(away).to_owned();
    assert!(!matches!(look(&dir), Seen::Age(age) if !ages.contains(&age)));
    let other = stage.cluster.wait_leader_other_than(sender);
    assert_ne!(other, away, "a node that lacks entries leads");
    stage.cluster.wait_all_ready();
    stage.cluster.wait_converged();
    assert_eq!(look(&dir), Seen::Age(ages[1]));
    stage.cluster.start_node(sender);
    stage.assert_caught_up();
}
