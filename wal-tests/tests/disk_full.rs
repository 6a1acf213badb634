//! The disk of a node fills up while it works: the process ends and says why, the client is never
//! told that something is committed that is not, and with more space everything is there again.
//!
//! Small file systems are mounted over the directories of a node, which takes root; without it the
//! tests say so and prove nothing.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use std::time::Duration;

use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};

/// A file system of its own over a directory, gone with this value.
struct Disk(PathBuf);

impl Disk {
    /// `None` if this process may not mount.
    fn mount(dir: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let size = format!("size={bytes},mode=700");
        let mounted = run("mount", &["-t", "tmpfs", "-o", &size, "wallaby-test"], dir);
        if !mounted {
            println!("skipped: mounting a small file system takes root");
        }
        mounted.then(|| Self(dir.to_owned()))
    }

    fn resize(&self, bytes: u64) {
        let size = format!("remount,size={bytes}");
        assert!(run("mount", &["-o", &size], &self.0), "mount -o {size}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the process still has files open.
        run("umount", &["-l"], &self.0);
    }
}

/// Whether a command succeeded.
fn run(program: &str, arguments: &[&str], dir: &Path) -> bool {
    let output = Command::new(program).args(arguments).arg(dir).output();
    output.is_ok_and(|output| output.status.success())
}

/// Inserts rows through a node, one by one, until an insert is not acknowledged; returns how many
/// were and what the last one was answered.
fn fill(cluster: &ProcessCluster, node: usize) -> (u64, String) {
    let address = cluster.address(node);
    for rows in 0..ROWS_MAX {
        let insert = "INSERT INTO t(v) VALUES(randomblob(100000))";
        match cluster.client().execute_sql(address, insert) {
            Outcome::Answered(answer) if answer.error().is_none() => {}
            other => return (rows, format!("{other:?}")),
        }
    }
    panic!("the disk took {ROWS_MAX} rows and is not full");
}

/// The number of rows, as a strong read has it.
fn rows(cluster: &ProcessCluster, node: usize) -> u64 {
    let sql = "SELECT count(*) FROM t";
    let rows = cluster
        .client()
        .query(cluster.address(node), "strong", sql)
        .unwrap();
    rows[0][0].as_u64().unwrap()
}

const CREATE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
const ROWS_MAX: u64 = 2000;
const SMALL: u64 = 8 << 20;
const LARGE: u64 = 512 << 20;

/// One node, with a small disk for this directory of its (empty: all of it).
fn fill_and_enlarge(directory: &str) {
    let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &[]);
    let Some(disk) = Disk::mount(&cluster.data_dir(0).join(directory), SMALL) else {
        return;
    };
    cluster.start_node(0);
    cluster.wait_ready(0);
    let address = cluster.address(0).to_owned();
    let _ = cluster
        .client()
        .execute_sql(&address, CREATE)
        .expect_success();
    let (acknowledged, answer) = fill(&cluster, 0);
    assert!(acknowledged > 10, "{acknowledged} rows, then {answer}");
    assert_eq!(cluster.wait_end(0).code(), Some(1), "{answer}");
    let log = cluster.log_text(0);
    assert!(log.contains("No space left on device"), "{answer}\n{log}");

    disk.resize(LARGE);
    cluster.start_node(0);
    cluster.wait_ready(0);
    // The last one may have been decided although nobody could say so.
    let found = rows(&cluster, 0);
    assert!(
        (acknowledged..=acknowledged + 1).contains(&found),
        "{acknowledged} rows were acknowledged, {found} are there, the last answer was {answer}"
    );
    let _ = cluster
        .client()
        .execute_sql(&address, "INSERT INTO t(v) VALUES(1)")
        .expect_success();
    assert_eq!(rows(&cluster, 0), found + 1);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn a_node_whose_log_has_no_space_ends_and_comes_back_with_all_it_acknowledged() {
    fill_and_enlarge("log");
}

#[test]
fn a_node_without_any_space_ends_and_comes_back_with_all_it_acknowledged() {
    fill_and_enlarge("");
}

#[test]
fn a_follower_whose_log_has_no_space_ends_and_the_others_go_on() {
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &[]);
    let Some(disk) = Disk::mount(&cluster.data_dir(2).join("log"), SMALL) else {
        return;
    };
    for node in 0..3 {
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    let leader = cluster.wait_leader();
    assert_ne!(leader, 2, "a node that joined just now leads");
    let address = cluster.address(leader).to_owned();
    let _ = cluster
        .client()
        .execute_sql(&address, CREATE)
        .expect_success();
    for _ in 0..2 * SMALL / 100_000 {
        let insert = "INSERT INTO t(v) VALUES(randomblob(100000))";
        let _ = cluster
            .client()
            .execute_sql(&address, insert)
            .expect_success();
    }
    assert_eq!(cluster.wait_end(2).code(), Some(1));
    let log = cluster.log_text(2);
    assert!(log.contains("No space left on device"), "{log}");
    disk.resize(LARGE);
    cluster.start_node(2);
    cluster.wait_all_ready();
    assert_eq!(rows(&cluster, 2), 2 * SMALL / 100_000);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// Inserts rows through a node that still runs, until this condition holds. Each must be
/// acknowledged.
fn fill_until(
    cluster: &mut ProcessCluster,
    through: usize,
    mut is_enough: impl FnMut(&mut ProcessCluster) -> bool,
) -> u64 {
    let mut rows = 0;
    while !is_enough(cluster) {
        rows += 1;
        assert!(rows < ROWS_MAX, "the disk took {rows} rows");
        let insert = "INSERT INTO t(v) VALUES(randomblob(100000))";
        let address = cluster.address(through);
        let outcome = cluster.client().execute_sql(address, insert);
        let _ = outcome.expect_success();
        // The nodes tell each other of their room now and then: not faster than that.
        std::thread::sleep(Duration::from_millis(20));
    }
    rows
}

#[test]
fn a_leader_whose_disk_fills_up_hands_over_first_and_no_write_fails() {
    let mut cluster = ProcessCluster::prepare(3, &Formation::Join, &["-log-segment", "1048576"]);
    let Some(disk) = Disk::mount(&cluster.data_dir(0).join("log"), 4 * SMALL) else {
        return;
    };
    for node in 0..3 {
        cluster.start_node(node);
        cluster.wait_ready(node);
    }
    assert_eq!(cluster.wait_leader(), 0, "the first node leads");
    let address = cluster.address(1).to_owned();
    let _ = cluster
        .client()
        .execute_sql(&address, CREATE)
        .expect_success();
    // Through a follower, which knows where to send each write.
    let mut written = fill_until(&mut cluster, 1, |cluster| {
        cluster.leader().is_some_and(|leader| leader != 0)
    });
    assert!(written > 10, "{written} rows and the leader is gone");
    assert!(!cluster.has_ended(0), "it hands over before its log fails");
    let status = cluster.client().json(cluster.address(0), "/status");
    let shortage = status.unwrap()["wallaby"]["shortage"].clone();
    assert!(
        shortage.as_str().unwrap().contains("are left in"),
        "{shortage}"
    );
    let log = cluster.log_text(0);
    assert!(log.contains("the disk is almost full"), "{log}");
    assert!(log.contains("handing the leadership over"), "{log}");
    cluster.wait("the others to know of it", |cluster| {
        let nodes = cluster.client().json(cluster.address(1), "/nodes?ver=2")?;
        let first = &nodes["nodes"][0]["wallaby"]["lacks_room"];
        (first == true).then_some(()).ok_or(nodes.to_string())
    });
    // As a follower it goes on until there is nothing left, and then it alone ends.
    written += fill_until(&mut cluster, 1, |cluster| cluster.has_ended(0));
    assert_eq!(cluster.wait_end(0).code(), Some(1));
    let log = cluster.log_text(0);
    assert!(log.contains("No space left on device"), "{log}");
    written += fill_until(&mut cluster, 2, {
        let mut more = 5;
        move |_| {
            more -= 1;
            more == 0
        }
    });
    disk.resize(LARGE);
    cluster.start_node(0);
    cluster.wait_all_ready();
    assert_eq!(rows(&cluster, 0), written);
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}
