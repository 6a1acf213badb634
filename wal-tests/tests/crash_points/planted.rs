//! Whether the tests would notice: the recording of a sound node, with some of its syncs left out,
//! is that of a node that forgets them, and must be convicted.

use std::collections::HashMap;

use wal_tests::seed::{Random, seed};
use wal_tests::torn_disk::{Tear, TornDisk};
use wal_tests::trace::Event;

use crate::Bench;
use crate::story::{self, Tale};

/// What the node forgets.
#[derive(Clone, Copy, Debug)]
enum Forgotten {
    /// To sync the log: everything is acknowledged too early.
    Log,
    /// To sync the main file before the record that says what it contains.
    MainFile,
    /// To sync the record before it takes the place of the old one.
    Record,
    /// To sync directories: files lose their names.
    Names,
}

/// Whether the node does not make this call. `paths`: under which name each file was opened.
fn is_left_out(forgotten: Forgotten, event: &Event, paths: &HashMap<u64, String>) -> bool {
    let of_file =
        |inode: &u64, found: fn(&str) -> bool| paths.get(inode).is_some_and(|it| found(it));
    match (forgotten, event) {
        (Forgotten::Log, Event::Sync { inode, .. }) => {
            of_file(inode, |path| path.starts_with("log/"))
        }
        (Forgotten::MainFile, Event::Sync { inode, .. }) => {
            of_file(inode, |path| path == "db.sqlite")
        }
        (Forgotten::Record, Event::Sync { inode, .. }) => {
            of_file(inode, |path| path == "checkpoint.tmp")
        }
        (Forgotten::Names, Event::SyncDir { .. }) => true,
        _ => false,
    }
}

/// The first conviction.
fn convict(bench: &mut Bench, tale: &Tale, forgotten: Forgotten, seed: u64) -> Option<String> {
    let mut disk = TornDisk::default();
    let mut paths = HashMap::new();
    let mut random = Random::new(seed);
    for (event, length) in &tale.events {
        if let Event::Known { path, inode } | Event::Create { path, inode } = event {
            paths.insert(*inode, path.clone());
        }
        if is_left_out(forgotten, event, &paths) {
            continue;
        }
        disk.apply(event);
        let is_step = matches!(event, Event::SyncDir { .. } | Event::Write { .. });
        let expected = tale.expected_at(*length);
        if !is_step || expected.floor == 0 {
            continue;
        }
        for tear in [Tear::Everything, Tear::Bytes, Tear::Sectors] {
            let dir = bench.write(&disk.crash(tear, &mut random));
            let found = bench.check(&dir, tale, &expected);
            std::fs::remove_dir_all(&dir).unwrap();
            if let Err(error) = found {
                return Some(format!("{tear:?} torn off: {error}"));
            }
        }
    }
    None
}

#[test]
fn a_node_that_forgets_a_sync_is_convicted() {
    let seed = seed("crash_points");
    let tale = story::faulted(None);
    let mut bench = Bench::new();
    for forgotten in [
        Forgotten::Log,
        Forgotten::MainFile,
        Forgotten::Record,
        Forgotten::Names,
    ] {
        let verdict = convict(&mut bench, &tale, forgotten, seed);
        let verdict = verdict.unwrap_or_else(|| panic!("{forgotten:?} goes unnoticed"));
        println!(
            "{forgotten:?}: {}",
            verdict.chars().take(150).collect::<String>()
        );
    }
}
