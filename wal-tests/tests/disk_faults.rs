//! Checkpoints that fail, disks that fill up, transactions that are too large, and files that were
//! changed while the node was down.
//!
//! `WAL_CHECKPOINT_KILLS=100 cargo test -p wal-tests --test disk_faults` kills more often than the
//! default of 8. The tests on full disks mount small tmpfs file systems, for which they must be
//! root; otherwise they say so and do nothing.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use wal_tests::client::{Client, Outcome};
use wal_tests::faulty_cluster::FaultyCluster;
use wal_tests::faulty_vfs::{Call, Failure, Fault};
use wal_tests::seed::{Random, seed};

const BINARY: &str = env!("CARGO_BIN_EXE_node_with_faults");

/// A checkpoint after each write of many rows.
const SMALL: [&str; 2] = ["-raft-snap-wal-size", "65536"];
/// Writes of 40 rows of 3000 bytes are beyond that.
const ROWS: u64 = 40;
/// These are moved in several pieces.
const MANY_ROWS: u64 = 1000;

fn main_write(number: u32, failure: Failure) -> Fault {
    Fault {
        call: Call::MainWrite,
        number,
        failure,
        after_release: false,
    }
}

/// Waits until a node says that it is out of service for this reason.
#[track_caller]
fn wait_out_of_service(nodes: &mut FaultyCluster, node: usize, reason: &str) {
    let client = Client::new(Duration::from_secs(2));
    nodes.cluster.wait("the node to stop serving", |cluster| {
        let response = client.get(cluster.address(node), "/readyz");
        let response = response.map_err(|error| error.to_string())?;
        if response.status == 503 && response.body.contains(reason) {
            Ok(())
        } else {
            Err(response.body)
        }
    });
}

/// The positions in a node's checkpoint record.
fn recorded(nodes: &FaultyCluster, node: usize) -> Vec<u8> {
    let record = fs::read(nodes.cluster.data_dir(node).join("checkpoint")).unwrap();
    record[40..88].to_vec()
}

#[test]
fn a_node_whose_checkpoint_fails_stops_serving_and_loses_nothing() {
    let mut node = FaultyCluster::start(BINARY, 1, &SMALL);
    for (number, failure, rows) in [
        (1, Failure::Io, ROWS),
        (3, Failure::Full, ROWS),
        (10, Failure::Short, ROWS),
        (20, Failure::Io, ROWS),
        // In a piece of a long WAL.
        (5, Failure::Io, MANY_ROWS),
    ] {
        node.write_well(0);
        node.arm(0, main_write(number, failure));
        // Acknowledged: the checkpoint comes after the answer.
        let _ = node.write(0, rows).expect_success();
        wait_out_of_service(&mut node, 0, "the checkpoint failed");
        let refused = node.write(0, 1);
        assert!(matches!(refused, Outcome::NotCommitted(_)), "{refused:?}");
        // What a second attempt would find written may never have reached the disk.
        let before = recorded(&node, 0);
        assert!(node.cluster.stop(0).success());
        assert!(
            before == recorded(&node, 0),
            "no checkpoint after a failed one"
        );
        node.cluster.start_node(0);
        node.cluster.wait_ready(0);
        node.check(0);
    }
}

#[test]
fn a_main_file_that_cannot_be_cut_off_stops_the_node_and_loses_nothing() {
    let mut node = FaultyCluster::start(BINARY, 1, &SMALL);
    let _ = node.write(0, ROWS).expect_success();
    let address = node.cluster.address(0).to_owned();
    let client = node.cluster.client().clone();
    let fill = "CREATE TABLE junk AS SELECT randomblob(1000000) AS body";
    let _ = client.execute_sql(&address, fill).expect_success();
    let drop = "DROP TABLE junk";
    let _ = client.execute_sql(&address, drop).expect_success();
    let mut fault = main_write(1, Failure::Io);
    fault.call = Call::MainTruncate;
    node.arm(0, fault);
    let vacuum = serde_json::json!(["VACUUM"]);
    // The node may fail between the commit and the answer, which waits for one more round of
    // the quorum; then it has to be unknown.
    let outcome = client.write(&address, "/db/execute", &vacuum);
    let is_committed = matches!(outcome, Outcome::Answered(_) | Outcome::Unknown(_));
    assert!(is_committed, "{outcome:?}");
    wait_out_of_service(&mut node, 0, "the checkpoint failed");
    assert!(node.cluster.stop(0).success());
    node.cluster.start_node(0);
    node.cluster.wait_ready(0);
    node.check(0);
}

#[test]
fn a_leader_whose_checkpoint_fails_makes_way_for_another_one() {
    let mut nodes = FaultyCluster::start(BINARY, 3, &SMALL);
    let leader = nodes.cluster.wait_leader();
    nodes.arm(leader, main_write(2, Failure::Io));
    let _ = nodes.write(leader, ROWS).expect_success();
    wait_out_of_service(&mut nodes, leader, "the checkpoint failed");
    let next = nodes.cluster.wait_leader_other_than(leader);
    nodes.write_well(next);
    assert!(nodes.cluster.stop(leader).success());
    nodes.cluster.start_node(leader);
    nodes.cluster.wait_all_ready();
    nodes.check(leader);
}

#[test]
fn a_record_that_cannot_be_written_stops_the_node_and_its_next_start_says_why() {
    let mut node = FaultyCluster::start(BINARY, 1, &SMALL);
    let in_the_way = node.cluster.data_dir(0).join("checkpoint.tmp");
    fs::create_dir(&in_the_way).unwrap();
    let _ = node.write(0, ROWS).expect_success();
    wait_out_of_service(&mut node, 0, "the checkpoint failed");
    assert!(node.cluster.stop(0).success());
    node.cluster.start_node(0);
    assert_eq!(node.cluster.wait_end(0).code(), Some(1));
    node.cluster.wait_log(0, "checkpoint: Is a directory");
    fs::remove_dir(in_the_way).unwrap();
    node.cluster.start_node(0);
    node.cluster.wait_ready(0);
    node.check(0);
}

#[test]
fn a_node_killed_in_the_middle_of_checkpoints_has_everything_after_its_restart() {
    let kills = std::env::var("WAL_CHECKPOINT_KILLS").map_or(8, |kills| kills.parse().unwrap());
    let mut random = Random::new(seed("disk_faults"));
    let mut node = FaultyCluster::start(BINARY, 1, &SMALL);
    for _ in 0..kills {
        let number = u32::try_from(1 + random.below(150)).unwrap();
        let mut fault = main_write(number, Failure::Kill);
        if random.below(4) == 0 {
            fault.call = Call::WalWrite;
            fault.number = 1 + number % 6;
        }
        node.arm(0, fault);
        while node.has_struck(0) == Some(false) {
            // The last of them meets the kill: acknowledged before it, or unknown.
            let rows = if random.below(4) == 0 {
                MANY_ROWS
            } else {
                ROWS
            };
            let outcome = node.write(0, rows);
            assert!(
                !matches!(&outcome, Outcome::Answered(answer) if answer.error().is_some()),
                "{outcome:?}"
            );
        }
        let _ = node.cluster.wait_end(0);
        node.cluster.start_node(0);
        node.cluster.wait_ready(0);
        node.check(0);
    }
}

#[test]
fn a_transaction_that_is_too_large_is_refused_with_what_to_do_and_the_node_goes_on() {
    let flags = ["-max-transaction-bytes", "4000000"];
    let mut node = FaultyCluster::start(BINARY, 1, &flags);
    node.write_well(0);
    // At COMMIT, because it fits into SQLite's cache, and in the middle of a statement.
    for flags in [None, Some("1000000")] {
        if let Some(limit) = flags {
            assert!(node.cluster.stop(0).success());
            let arguments = node.cluster.arguments(0);
            *arguments.iter_mut().find(|it| *it == "4000000").unwrap() = limit.to_owned();
            node.cluster.start_node(0);
            node.cluster.wait_ready(0);
        }
        let rows = if flags.is_some() { 400 } else { 3000 };
        let refused = node.write(0, rows);
        let text = format!("{refused:?}");
        assert!(text.contains("transaction too large"), "{text}");
        assert!(text.contains("-max-transaction-bytes"), "{text}");
        node.write_well(0);
    }
    node.check(0);
}

#[test]
fn a_main_file_that_was_changed_while_the_node_was_down_is_read_and_mended() {
    let mut node = FaultyCluster::start(BINARY, 1, &SMALL);
    for _ in 0..2 {
        let _ = node.write(0, ROWS).expect_success();
        assert!(node.cluster.stop(0).success());
        node.cluster.start_node(0);
        node.cluster.wait_ready(0);
        let read_all = node.cluster.log_text(0).contains(READ_ALL);
        assert!(!read_all, "a start costs the size of the database");
    }
    assert!(node.cluster.stop(0).success());
    let file = node.cluster.data_dir(0).join("db.sqlite");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    let mut byte = [0];
    let offset = 4096 * 7 + 2000;
    opened.read_exact_at(&mut byte, offset).unwrap();
    opened.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    node.cluster.start_node(0);
    node.cluster.wait_ready(0);
    // The log still has the change that made the page what it was.
    node.cluster.wait_log(0, "is as it should be again");
    let mut mended = [0];
    opened.read_exact_at(&mut mended, offset).unwrap();
    assert_eq!(mended, byte);
    let log = node.cluster.log_text(0);
    let finding = log
        .lines()
        .find(|line| line.contains("is not what was written there"))
        .unwrap();
    for part in ["db.sqlite", "page 8 ", "offset 28672"] {
        assert!(finding.contains(part), "{finding:?} lacks {part:?}");
    }
    assert!(node.cluster.stop(0).success());
    // A copy of the file is as good as the file.
    drop(opened);
    let copy = file.with_extension("copy");
    fs::copy(&file, &copy).unwrap();
    fs::rename(&copy, &file).unwrap();
    node.cluster.start_node(0);
    node.cluster.wait_ready(0);
    node.write_well(0);
    assert!(node.cluster.stop(0).success());
    let touched = File::options().write(true).open(&file).unwrap();
    touched.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    drop(touched);
    node.cluster.start_node(0);
    node.cluster.wait_ready(0);
    assert_eq!(node.cluster.log_text(0).matches(READ_ALL).count(), 3);
    node.check(0);
}

/// What the log says when the whole main file is verified.
const READ_ALL: &str = "the database file was changed while the node was down";

/// A small file system on a directory, unmounted when the test ends, however it ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` if this user may not mount.
    fn mount(dir: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(dir).unwrap();
        let size = format!("size={mib}m");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "wallaby-test"])
            .arg(dir)
            .output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir.to_owned()));
        }
        println!("skipped: this user cannot mount a tmpfs");
        None
    }

    fn grow(&self, mib: u32) {
        let options = format!("remount,size={mib}m");
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", &options]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }

    /// Fills all but this many bytes.
    fn fill(&self, bytes_left: u64) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        let zeros = vec![0; 64 << 10];
        // Until there is no more space.
        while file.write_all(&zeros).is_ok() {}
        let size = file.metadata().unwrap().len();
        file.set_len(size.saturating_sub(bytes_left)).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may still have files open in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_node_on_a_full_disk_says_so_and_has_everything_when_there_is_space_again() {
    let flags = ["-raft-snap-wal-size", "1000000000"];
    let mut disk = None;
    let node = FaultyCluster::start_with(BINARY, 1, &flags, |cluster| {
        disk = SmallDisk::mount(cluster.data_dir(0), 160);
    });
    let (Some(disk), mut node) = (disk, node) else {
        return;
    };
    node.write_well(0);
    let filler = disk.fill(0);
    // What the log and the WAL have reserved takes some more.
    let refused = (0..100).find_map(|_| match node.write(0, 100) {
        Outcome::Answered(answer) if answer.error().is_none() => None,
        other => Some(other),
    });
    let refused = format!("{:?}", refused.expect("the disk is full"));
    println!("{refused}");
    if refused.contains("no space for the WAL") {
        fs::remove_file(filler).unwrap();
    } else {
        wait_out_of_service(&mut node, 0, "No space left on device");
        assert!(node.cluster.stop(0).success());
        fs::remove_file(filler).unwrap();
        node.cluster.start_node(0);
        node.cluster.wait_ready(0);
    }
    node.write_well(0);
    node.check(0);
}

#[test]
fn a_node_whose_log_has_no_space_left_loses_nothing_acknowledged() {
    // One segment of the log has 64 MiB.
    let mut disk = None;
    let node = FaultyCluster::start_with(BINARY, 1, &SMALL, |cluster| {
        disk = SmallDisk::mount(cluster.data_dir(0), 200);
    });
    let (Some(disk), mut node) = (disk, node) else {
        return;
    };
    let failed = (0..400).find_map(|_| match node.write_sized(0, 8, 500_000) {
        Outcome::Answered(answer) if answer.error().is_none() => None,
        other => Some(other),
    });
    println!("{:?}", failed.expect("the disk is full"));
    if !node.cluster.has_ended(0) {
        node.cluster.kill(0);
    } else {
        let _ = node.cluster.wait_end(0);
    }
    // Still full: it says so and ends, or it comes up and says so.
    node.cluster.start_node(0);
    std::thread::sleep(Duration::from_secs(1));
    if !node.cluster.has_ended(0) {
        node.cluster.kill(0);
    } else {
        assert_eq!(node.cluster.wait_end(0).code(), Some(1));
    }
    disk.grow(800);
    node.cluster.start_node(0);
    node.cluster.wait_ready(0);
    node.write_well(0);
    node.check(0);
}

#[test]
fn a_follower_on_a_full_disk_goes_and_comes_back_with_space() {
    let mut disk = None;
    let nodes = FaultyCluster::start_with(BINARY, 3, &SMALL, |cluster| {
        disk = SmallDisk::mount(cluster.data_dir(2), 160);
    });
    let (Some(disk), mut nodes) = (disk, nodes) else {
        return;
    };
    while nodes.cluster.wait_leader() == 2 {
        nodes.cluster.kill(2);
        nodes.cluster.wait_leader_other_than(2);
        nodes.cluster.start_node(2);
        nodes.cluster.wait_all_ready();
    }
    let client = Client::new(Duration::from_secs(2));
    let mut out = false;
    for _ in 0..200 {
        let _ = nodes.write_sized(0, 8, 250_000).expect_success();
        let ready = client.get(nodes.cluster.address(2), "/readyz");
        out = nodes.cluster.has_ended(2)
            || ready.is_ok_and(|response| response.body.contains("db not ok"));
        if out {
            break;
        }
    }
    assert!(out, "the disk of the follower is full");
    if !nodes.cluster.has_ended(2) {
        nodes.cluster.kill(2);
    } else {
        let _ = nodes.cluster.wait_end(2);
    }
    nodes.write_well(0);
    disk.grow(800);
    nodes.cluster.start_node(2);
    nodes.cluster.wait_all_ready();
    nodes.check(2);
}
