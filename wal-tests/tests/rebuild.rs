//! Bits that flip in the log or the checkpoint record of real nodes: the node never goes on as if
//! nothing had happened, and comes back from its peers without hand work. `WAL_SEED=n` replays
//! which bits.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};
use wallaby::sqlite::{Record, Redo, StartLock};
use wallaby::wal::{PageHash, PageNumber};

const SAYS_SO: &str = "comes back under a fresh Raft id";

/// Writes, again where an election on a busy machine comes in between: nobody counts the rows.
fn write(cluster: &ProcessCluster, node: usize, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for _ in 0..count {
        let sql = "INSERT INTO t(v) VALUES(randomblob(600))";
        while !matches!(
            cluster.client().execute_sql(cluster.address(node), sql),
            Outcome::Answered(answer) if answer.error().is_none()
        ) {
            assert!(Instant::now() < deadline, "nothing can be written");
        }
    }
}

fn filled(nodes: usize) -> ProcessCluster {
    let formation = if nodes == 1 {
        Formation::Join
    } else {
        Formation::Expect
    };
    let mut cluster = ProcessCluster::start(nodes, &formation, &["-log-segment", "1048576"]);
    let leader = cluster.wait_leader();
    let create = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let answer = cluster
        .client()
        .execute_sql(cluster.address(leader), create);
    let _ = answer.expect_success();
    write(&cluster, leader, 30);
    cluster.wait_converged();
    cluster
}

fn flip(random: &mut Random, file: &Path, from: usize, to: usize) {
    let offset = (from + random.below(to - from)) as u64;
    let handle = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    handle.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << random.below(8);
    handle.write_all_at(&byte, offset).unwrap();
    println!("flipped a bit of {} at {offset}", file.display());
}

/// The first segment of a node's log, and how many bytes of it are in use.
fn log_file(cluster: &ProcessCluster, node: usize) -> (PathBuf, usize) {
    let dir = cluster.data_dir(node).join("log");
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> = names
        .filter(|path| path.metadata().unwrap().len() > 0)
        .collect();
    names.sort();
    let bytes = std::fs::read(&names[0]).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (names[0].clone(), used)
}

fn voters(cluster: &ProcessCluster, node: usize) -> Vec<Value> {
    let status = cluster
        .client()
        .json(cluster.address(node), "/status")
        .unwrap();
    let nodes = status["store"]["nodes"].as_array().unwrap().clone();
    nodes
        .into_iter()
        .filter(|node| node["suffrage"] == "Voter")
        .collect()
}

fn raft_id(cluster: &ProcessCluster, node: usize) -> Value {
    let status = cluster
        .client()
        .json(cluster.address(node), "/status")
        .unwrap();
    status["store"]["raft_id"].clone()
}

fn is_ready(cluster: &ProcessCluster, node: usize) -> bool {
    let ready = cluster
        .client()
        .get(cluster.address(node), "/readyz?sync&timeout=1s");
    ready.is_ok_and(|ready| ready.status == 200)
}

/// The node is up again, a voter among three, with everything, and its files of before are kept.
fn assert_rebuilt(cluster: &mut ProcessCluster, node: usize, old: &Value) {
    cluster.wait_log(node, SAYS_SO);
    cluster.wait_log(node, "this node is rebuilt, and in its old place");
    cluster.wait_ready(node);
    assert_ne!(&raft_id(cluster, node), old);
    let other = (node + 1) % 3;
    assert_eq!(voters(cluster, other).len(), 3);
    let names = std::fs::read_dir(cluster.data_dir(node)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.filter(|name| name.starts_with("damaged-")).count() > 0);
    write(cluster, other, 3);
    cluster.assert_identical();
}

#[test]
fn a_damaged_interior_of_the_log_is_rebuilt_from_the_leader() {
    let mut random = Random::new(seed("rebuild-log"));
    let mut cluster = filled(3);
    let leader = cluster.wait_leader();
    // A follower first, then whoever leads.
    for is_leader in [false, true] {
        let node = if is_leader {
            cluster.wait_leader()
        } else {
            (leader + 1) % 3
        };
        let old = raft_id(&cluster, node);
        cluster.kill(node);
        let (file, used) = log_file(&cluster, node);
        flip(&mut random, &file, 4096, used / 2);
        cluster.start_node(node);
        assert_rebuilt(&mut cluster, node, &old);
    }
    // And it goes on like any other, also through a restart and when it is needed for a quorum.
    let _ = cluster.stop(leader);
    let left = (leader + 1) % 3;
    cluster.wait_leader_other_than(leader);
    write(&cluster, left, 3);
    let _ = cluster.stop(left);
    cluster.start_node(leader);
    cluster.start_node(left);
    cluster.wait_all_ready();
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn a_damaged_end_of_the_log_loses_nothing() {
    let mut random = Random::new(seed("rebuild-tail"));
    let mut cluster = filled(3);
    let node = (cluster.wait_leader() + 1) % 3;
    for is_clean in [true, false] {
        if is_clean {
            // The log says itself that all of it is durable.
            let _ = cluster.stop(node);
        } else {
            cluster.kill(node);
        }
        let (file, used) = log_file(&cluster, node);
        flip(&mut random, &file, used - 600, used - 8);
        cluster.start_node(node);
        // What was cut off as torn and had been acknowledged is found out by asking the leader.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_ready(&cluster, node) {
            assert!(Instant::now() < deadline, "not ready");
            if cluster.has_ended(node) {
                assert!(!cluster.wait_end(node).success());
                cluster.wait_log(node, "but this node has acknowledged index");
                cluster.start_node(node);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        write(&cluster, node, 3);
        cluster.assert_identical();
        // One that is rebuilt becomes a voter after it has caught up.
        let deadline = Instant::now() + Duration::from_secs(30);
        while voters(&cluster, node).len() != 3 {
            assert!(Instant::now() < deadline, "not three voters");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    cluster.assert_healthy_logs();
}

#[test]
fn a_damaged_checkpoint_record_is_rebuilt_from_the_leader() {
    let mut random = Random::new(seed("rebuild-record"));
    let mut cluster = filled(3);
    let node = (cluster.wait_leader() + 1) % 3;
    let old = raft_id(&cluster, node);
    let _ = cluster.stop(node);
    let record = cluster.data_dir(node).join("checkpoint");
    let bytes = usize::try_from(record.metadata().unwrap().len()).unwrap();
    flip(&mut random, &record, 12, bytes);
    cluster.start_node(node);
    assert_rebuilt(&mut cluster, node, &old);
    cluster.assert_healthy_logs();
}

#[test]
fn a_lone_node_with_a_damaged_log_refuses_to_start_and_says_what_to_do() {
    let mut random = Random::new(seed("rebuild-alone"));
    let mut cluster = filled(1);
    cluster.kill(0);
    let (file, used) = log_file(&cluster, 0);
    let good = std::fs::read(&file).unwrap();
    flip(&mut random, &file, 4096, used / 2);
    let damaged = std::fs::read(&file).unwrap();
    cluster.start_node(0);
    assert!(!cluster.wait_end(0).success());
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    for text in ["no other member", &name, "at offset", "/db/load"] {
        cluster.wait_log(0, text);
    }
    assert!(
        std::fs::read(&file).unwrap() == damaged,
        "nothing was touched"
    );
    std::fs::write(&file, good).unwrap();
    cluster.start_node(0);
    cluster.wait_ready(0);
    let rows = cluster
        .client()
        .query(cluster.address(0), "weak", "SELECT count(*) FROM t");
    assert!(rows.unwrap()[0][0].as_u64() >= Some(30));
}

#[test]
fn a_majority_with_damaged_logs_elects_nobody() {
    let mut random = Random::new(seed("rebuild-majority"));
    let mut cluster = filled(3);
    for node in 0..3 {
        cluster.kill(node);
    }
    for node in 0..2 {
        let (file, used) = log_file(&cluster, node);
        flip(&mut random, &file, 4096, used / 2);
    }
    for node in 0..3 {
        cluster.start_node(node);
    }
    for node in 0..2 {
        cluster.wait_log(node, SAYS_SO);
        cluster.wait_log(node, "no leader has taken this node in yet");
    }
    assert_eq!(cluster.leader(), None);
    // Nothing is lost: with the files as they were the cluster is what it was. (Only a test knows
    // which bits to turn back.)
    cluster.assert_healthy_logs();
}

/// Changes a byte of a page of the table, and everything that would tell: as if this node had
/// computed something else than the others.
fn forge(dir: &Path) {
    let record = Record::load(dir).unwrap().unwrap();
    let page = PageNumber::new(record.page_count.0 - 2).unwrap();
    let size = record.page_size;
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(dir.join(name)).unwrap()
    };
    let file = open("db.sqlite");
    let mut image = vec![0; size.len()];
    file.read_exact_at(&mut image, page.offset(size)).unwrap();
    let old = PageHash::of(page, &image);
    let last = image.len() - 1;
    image[last] ^= 1;
    file.write_all_at(&image, page.offset(size)).unwrap();
    drop(file);
    let new = PageHash::of(page, &image);
    let table = open("pages.hash");
    let entry = u64::from(page.number()) * 16;
    table.write_all_at(&new.0.to_le_bytes(), entry).unwrap();
    let forged = Record {
        hash: record.hash.without(old).with(new),
        ..record.clone()
    };
    let lock = StartLock::acquire(dir, Duration::ZERO).unwrap();
    let (lock, mut hashes) = Redo::begin(lock, &forged).unwrap().finish().unwrap();
    let (applied, data) = (record.applied, record.data);
    Record::save(&lock, &mut hashes, applied, data, &record.membership).unwrap();
}

#[test]
fn a_node_that_has_diverged_notices_at_the_next_write_and_is_rebuilt() {
    let mut cluster = filled(3);
    let leader = cluster.wait_leader();
    let node = (leader + 1) % 3;
    let old = raft_id(&cluster, node);
    let _ = cluster.stop(node);
    forge(cluster.data_dir(node));
    cluster.start_node(node);
    cluster.wait_ready(node);
    let leader = cluster.wait_leader();
    write(&cluster, leader, 1);
    assert!(!cluster.wait_end(node).success());
    cluster.wait_log(node, "is not the one that the others have");
    cluster.wait_log(node, "pages that are not as on another node");
    cluster.start_node(node);
    assert_rebuilt(&mut cluster, node, &old);
}
