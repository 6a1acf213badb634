//! Bits that flip in the database files of real nodes: found, never served, and mended from the
//! other nodes. `WAL_SEED=n` replays which bits.

#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

const PAGE_BYTES: usize = 4096;
const ROWS: u64 = 1500;
/// Every page of the table: more than a reader's cache holds, so that the file is read each time.
const ALL: &str = "SELECT count(*), sum(length(v)), sum(id) FROM t";
const FLIPS: usize = 5;

/// A table of some 1,500 pages, all of it in the main files, and nothing left in the logs.
fn filled(cluster: &mut ProcessCluster) {
    let leader = cluster.wait_leader();
    let fill = format!(
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         INSERT INTO t SELECT i, hex(randomblob(1500)) FROM n"
    );
    let create = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)";
    for sql in [
        create,
        &fill,
        "CREATE TABLE other(a)",
        "INSERT INTO other VALUES(7)",
    ] {
        let answer = cluster.client().execute_sql(cluster.address(leader), sql);
        let _ = answer.expect_success();
    }
    // A WAL that was moved still has its pages, until the next change begins it afresh.
    snapshot_all(cluster);
    let update = "UPDATE other SET a = 7";
    let answer = cluster
        .client()
        .execute_sql(cluster.address(leader), update);
    let _ = answer.expect_success();
    snapshot_all(cluster);
}

fn snapshot_all(cluster: &mut ProcessCluster) {
    cluster.wait_converged();
    for node in 0..cluster.size() {
        snapshot(cluster, node);
    }
}

fn snapshot(cluster: &ProcessCluster, node: usize) {
    let answer = cluster
        .client()
        .post(cluster.address(node), "/snapshot", "", b"");
    assert!(answer.unwrap().status < 300, "node {node}");
}

fn main_file(cluster: &ProcessCluster, node: usize) -> PathBuf {
    cluster.data_dir(node).join("db.sqlite")
}

fn pages(file: &Path) -> usize {
    usize::try_from(file.metadata().unwrap().len()).unwrap() / PAGE_BYTES
}

/// Flips one bit of a file, as a disk would: nobody is told.
fn flip(file: &Path, offset: u64, bit: usize) {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).unwrap();
    println!("flipped bit {bit} at {offset}");
}

/// Flips a bit in each of some pages of the table, which are all pages but the first few.
fn flip_pages(random: &mut Random, file: &Path, count: usize) {
    let pages = pages(file);
    let mut chosen = std::collections::BTreeSet::new();
    while chosen.len() < count {
        chosen.insert(4 + random.below(pages - 4));
    }
    for page in chosen {
        let offset = page * PAGE_BYTES + random.below(PAGE_BYTES);
        flip(file, offset as u64, random.below(8));
    }
}

fn repair(cluster: &ProcessCluster, node: usize) -> Value {
    let status = cluster.client().json(cluster.address(node), "/status");
    status.unwrap()["wallaby"]["repair"].clone()
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_page_that_a_statement_needs_is_mended_before_it_is_answered() {
    let mut random = Random::new(seed("repair"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &["-scrub-rate", "0"]);
    filled(&mut cluster);
    let client = cluster.client().clone();
    let leader = cluster.wait_leader();
    for node in [leader, (leader + 1) % 3] {
        let address = cluster.address(node);
        let expected = client.query(address, "none", ALL).unwrap();
        let file = main_file(&cluster, node);
        let good = std::fs::read(&file).unwrap();
        flip_pages(&mut random, &file, FLIPS);
        assert_ne!(std::fs::read(&file).unwrap(), good);
        assert_eq!(client.query(address, "none", ALL).unwrap(), expected);
        let state = repair(&cluster, node);
        assert_eq!(state["found"], FLIPS, "{state}");
        assert_eq!(state["repaired"], FLIPS, "{state}");
        assert_eq!(state["damaged"], json!([]));
        assert!(
            std::fs::read(&file).unwrap() == good,
            "the file is as before"
        );
        cluster.wait_log(node, "is not what was written there");
    }
    // A write reads pages too, on the connection that writes; again if another node leads by then.
    loop {
        let leader = cluster.wait_leader();
        let before = repair(&cluster, leader)["repaired"].as_u64().unwrap();
        flip_pages(&mut random, &main_file(&cluster, leader), FLIPS);
        let sql = "UPDATE t SET v = v || 'x'";
        let written = client.execute_sql(cluster.address(leader), sql);
        let is_answered = matches!(written, Outcome::Answered(_));
        if cluster.wait_leader() == leader && is_answered {
            let _ = written.expect_success();
            let after = repair(&cluster, leader)["repaired"].as_u64().unwrap();
            assert_eq!(after, before + FLIPS as u64);
            break;
        }
    }
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// The log says what changed in a page, not what the page is.
#[test]
fn a_page_that_a_change_of_the_leader_needs_is_mended_before_that_is_applied() {
    let mut random = Random::new(seed("repair-change"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &["-scrub-rate", "0"]);
    filled(&mut cluster);
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    let file = main_file(&cluster, follower);
    let all = pages(&file);
    flip_pages(&mut random, &file, all - 10);
    let sql = "UPDATE t SET v = 'z' || substr(v, 2) WHERE id % 97 = 0";
    let written = cluster.client().execute_sql(cluster.address(leader), sql);
    let _ = written.expect_success();
    cluster.wait_converged();
    let state = repair(&cluster, follower);
    assert!(state["repaired"].as_u64() > Some(5), "{state}");
    assert!(cluster.serving(follower), "{}", cluster.log_text(follower));
    cluster.wait_log(follower, "is not what was written there");
}

#[test]
fn a_frame_of_the_wal_is_mended_too() {
    let mut random = Random::new(seed("repair-wal"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &["-scrub-rate", "0"]);
    filled(&mut cluster);
    let client = cluster.client().clone();
    let leader = cluster.wait_leader();
    let follower = (leader + 1) % 3;
    let address = cluster.address(follower).to_owned();
    let update = "UPDATE t SET v = 'new' || substr(v, 4) WHERE id % 4 = 0";
    for _ in 0..10 {
        // It may be done twice, should an election come in between.
        let outcome = client.execute_sql(cluster.address(leader), update);
        if !matches!(outcome, Outcome::Answered(_)) {
            continue;
        }
        let before = cluster.wait_converged()[0].hash.clone();
        let wal = cluster.data_dir(follower).join("db.sqlite-wal");
        let frames = 375 / 2;
        for _ in 0..FLIPS {
            let frame = random.below(frames);
            let within = 24 + random.below(PAGE_BYTES);
            let offset = 32 + frame * (24 + PAGE_BYTES) + within;
            flip(&wal, offset as u64, random.below(8));
        }
        let sum = "SELECT count(*) FROM t WHERE substr(v, 1, 3) = 'new' AND length(v) = 3000";
        let count = client.query(&address, "none", sum).unwrap();
        assert_eq!(count, [[json!(ROWS / 4)]]);
        snapshot(&cluster, follower);
        assert_eq!(cluster.wait_converged()[0].hash, before);
        if repair(&cluster, follower)["repaired"].as_u64() > Some(0) {
            // Otherwise an idle node has moved the WAL before it was damaged.
            cluster.assert_identical();
            cluster.assert_healthy_logs();
            return;
        }
    }
    panic!("no flip met a frame that was in use");
}

#[test]
fn the_scrub_finds_and_mends_what_nobody_reads() {
    let mut random = Random::new(seed("repair-scrub"));
    let flags = ["-scrub-rate", "1000000000", "-scrub-interval", "100ms"];
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &flags);
    filled(&mut cluster);
    for node in 0..3 {
        let file = main_file(&cluster, node);
        let good = std::fs::read(&file).unwrap();
        flip_pages(&mut random, &file, FLIPS);
        wait("the scrub", || repair(&cluster, node)["repaired"] == FLIPS);
        assert!(
            std::fs::read(&file).unwrap() == good,
            "the file is as before"
        );
    }
    let state = repair(&cluster, 0);
    assert!(state["scrub"]["last_complete"].is_string(), "{state}");
    // Under writes and checkpoints it cries no wolf.
    let client = cluster.client().clone();
    for turn in 0..20 {
        let sql = format!("UPDATE t SET v = v || 'y' WHERE id % 20 = {turn}");
        let _ = client
            .execute_sql(cluster.address(0), &sql)
            .expect_success();
    }
    cluster.assert_identical();
    for node in 0..3 {
        assert_eq!(repair(&cluster, node)["found"], FLIPS, "node {node}");
    }
    cluster.assert_healthy_logs();
}

#[test]
fn what_flips_while_a_node_is_down_is_mended_when_it_is_back() {
    let mut random = Random::new(seed("repair-down"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    filled(&mut cluster);
    let node = (cluster.wait_leader() + 1) % 3;
    for is_clean in [true, false] {
        let file = main_file(&cluster, node);
        if is_clean {
            let _ = cluster.stop(node);
        } else {
            cluster.kill(node);
        }
        let good = std::fs::read(&file).unwrap();
        // Page 1 too: without it SQLite does not open the database at all.
        flip(&file, 100 + random.below(3900) as u64, random.below(8));
        flip_pages(&mut random, &file, FLIPS);
        cluster.start_node(node);
        cluster.wait_ready(node);
        wait("the pages", || std::fs::read(&file).unwrap() == good);
        wait("the list of damaged pages to be empty", || {
            repair(&cluster, node)["damaged"] == json!([])
        });
    }
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn the_table_of_page_hashes_is_made_anew_when_it_is_damaged() {
    let mut random = Random::new(seed("repair-table"));
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    filled(&mut cluster);
    for is_clean in [true, false] {
        let before = cluster.wait_converged()[0].hash.clone();
        let table = cluster.data_dir(0).join("pages.hash");
        if is_clean {
            let _ = cluster.stop(0);
        } else {
            cluster.kill(0);
        }
        let bytes = usize::try_from(table.metadata().unwrap().len()).unwrap();
        flip(&table, random.below(bytes) as u64, random.below(8));
        cluster.start_node(0);
        cluster.wait_ready(0);
        assert_eq!(cluster.wait_converged()[0].hash, before);
        assert_eq!(repair(&cluster, 0)["found"], 0);
    }
    cluster.wait_log(0, "page hashes");
    cluster.assert_identical();
}

#[test]
fn a_lone_node_refuses_what_needs_the_page_until_a_backup_is_loaded() {
    let mut random = Random::new(seed("repair-alone"));
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    filled(&mut cluster);
    let client = Client::new(Duration::from_secs(5));
    let address = cluster.address(0).to_owned();
    let backup = client.download(&address, "/db/backup").unwrap();
    assert_eq!(backup.status, 200);
    // Emptied of all copies: what is in the log has been purged by the snapshot, and a start begins
    // the WAL afresh.
    let _ = cluster.stop(0);
    cluster.start_node(0);
    cluster.wait_ready(0);
    flip_pages(&mut random, &main_file(&cluster, 0), 1);
    let expect_refusal = |path: &str, sql: &str| {
        let body = json!([sql]).to_string();
        let answer = client.post(&address, path, "application/json", body.as_bytes());
        let answer = answer.unwrap();
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(answer.body.contains("is damaged"), "{}", answer.body);
        assert!(answer.body.contains("/db/load"), "{}", answer.body);
    };
    expect_refusal("/db/query", ALL);
    expect_refusal("/db/execute", "UPDATE t SET v = v || 'x'");
    assert_eq!(repair(&cluster, 0)["damaged"].as_array().unwrap().len(), 1);
    // Everything else goes on.
    let other = client
        .query(&address, "weak", "SELECT a FROM other")
        .unwrap();
    assert_eq!(other, [[json!(7)]]);
    let insert = client.execute_sql(&address, "INSERT INTO other VALUES(8)");
    let _ = insert.expect_success();
    let load = client.post(
        &address,
        "/db/load",
        "application/octet-stream",
        &backup.bytes,
    );
    let load = load.unwrap();
    assert_eq!(load.status, 200, "{}", load.body);
    assert_eq!(client.query(&address, "weak", ALL).unwrap()[0][0], ROWS);
    snapshot(&cluster, 0);
    wait("the list of damage to be empty", || {
        repair(&cluster, 0)["damaged"] == json!([])
    });
    cluster.assert_identical();
}
