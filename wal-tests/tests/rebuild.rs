//! Bits that flip in the log or the checkpoint record of real nodes: the node never goes on as if
//! nothing had happened, and comes back from its peers without hand work. `WAL_SEED=n` replays
//! which bits.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use wal_tests::client::Outcome;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::damage::{flip, log_file};
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

/// A node that orders its own rebuilding ends soon after, and until then hears of its peers.
#[test]
fn an_order_to_be_rebuilt_stays_until_the_next_start() {
    let mut cluster = filled(3);
    let node = (cluster.wait_leader() + 1) % 3;
    let old = raft_id(&cluster, node);
    let lines = "wanted for a test\n";
    let order = format!("{lines}{:08x}\n", crc32fast::hash(lines.as_bytes()));
    let file = cluster.data_dir(node).join("rebuild");
    // In one step, as the node itself does.
    let new = cluster.data_dir(node).join("rebuild.new");
    std::fs::write(&new, &order).unwrap();
    std::fs::rename(&new, &file).unwrap();
    write(&cluster, node, 5);
    cluster.wait_converged();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), order);
    cluster.kill(node);
    cluster.start_node(node);
    assert_rebuilt(&mut cluster, node, &old);
    cluster.wait("the order to be removed", |_| {
        let is_there = file.exists();
        (!is_there)
            .then_some(())
            .ok_or_else(|| "it is there".to_owned())
    });
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
    let (applied, data) = (record.applied, record.data);
    let redo = Redo::begin(lock, &forged).unwrap();
    drop(redo.finish(applied, data, &record.membership).unwrap());
}

/// Has a node forget its log, so that only its own files say what its database is.
fn forget_log(cluster: &ProcessCluster, node: usize) {
    let line = "POST /snapshot?trailing_logs=0";
    let answer = wal_tests::raw::send(cluster.address(node), line, "", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let status = cluster
        .client()
        .json(cluster.address(node), "/status")
        .unwrap();
    let raft = &status["store"]["raft"];
    println!("the log of node {} after the purge: {raft}", node + 1);
}

/// Has a node lead.
fn have_lead(cluster: &mut ProcessCluster, node: usize) {
    cluster.wait("the node to lead", |cluster| {
        let body = format!("{{\"id\":\"node{}\"}}", node + 1);
        let asked = cluster.client().post(
            cluster.address(node),
            "/leader?wait",
            "application/json",
            body.as_bytes(),
        );
        match cluster.leader() {
            Some(leader) if leader == node => Ok(()),
            other => Err(format!("{other:?} leads: {asked:?}")),
        }
    });
}

#[test]
fn a_node_whose_database_is_not_the_one_of_its_log_notices_at_its_start_and_is_rebuilt() {
    let mut cluster = filled(3);
    let node = (cluster.wait_leader() + 1) % 3;
    let old = raft_id(&cluster, node);
    let _ = cluster.stop(node);
    forge(cluster.data_dir(node));
    cluster.start_node(node);
    cluster.wait_log(node, "it is not the database that the log leads to");
    assert_rebuilt(&mut cluster, node, &old);
}

#[test]
fn a_node_that_has_diverged_notices_at_the_next_write_and_is_rebuilt() {
    let mut cluster = filled(3);
    let leader = cluster.wait_leader();
    let node = (leader + 1) % 3;
    let old = raft_id(&cluster, node);
    forget_log(&cluster, node);
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
    cluster.assert_healthy_logs();
}

/// Changes a node's database behind its back, with its log purged so that it cannot notice, and has
/// it lead.
fn have_diverged_one_lead(cluster: &mut ProcessCluster, odd: usize) {
    forget_log(cluster, odd);
    let _ = cluster.stop(odd);
    forge(cluster.data_dir(odd));
    cluster.start_node(odd);
    cluster.wait_ready(odd);
    have_lead(cluster, odd);
}

#[test]
fn a_leader_that_has_diverged_is_found_out_before_it_commits_anything_and_the_others_go_on() {
    let mut cluster = filled(3);
    let odd = (cluster.wait_leader() + 1) % 3;
    let others = [(odd + 1) % 3, (odd + 2) % 3];
    let old = raft_id(&cluster, odd);
    have_diverged_one_lead(&mut cluster, odd);
    let processes = others.map(|node| cluster.process_id(node));
    // Nobody is told that this is done, and it is not.
    let lost = "INSERT INTO t(v) VALUES('on the wrong pages')";
    let outcome = cluster
        .client()
        .execute_sql(cluster.address(others[0]), lost);
    assert!(!matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    assert!(!cluster.wait_end(odd).success());
    cluster.wait_log(odd, "2 of 3 voters say so");
    write(&cluster, others[0], 3);
    for node in others {
        cluster.wait_log(
            node,
            "the leader's transaction was executed on another database",
        );
        assert!(!cluster.has_ended(node));
    }
    let count = "SELECT count(*) FROM t WHERE v = 'on the wrong pages'";
    let rows = cluster
        .client()
        .query(cluster.address(others[1]), "linearizable", count);
    assert_eq!(rows.unwrap()[0][0], 0);
    cluster.start_node(odd);
    assert_rebuilt(&mut cluster, odd, &old);
    assert_eq!(others.map(|node| cluster.process_id(node)), processes);
    cluster.assert_healthy_logs();
}

#[test]
fn of_two_nodes_that_disagree_neither_is_blamed_and_the_operator_chooses() {
    let mut cluster = filled(2);
    let odd = (cluster.wait_leader() + 1) % 2;
    let good = 1 - odd;
    let rows = |cluster: &ProcessCluster, node: usize| {
        let client = cluster.client();
        let rows = client.query(cluster.address(node), "none", "SELECT count(*) FROM t");
        rows.unwrap()[0][0].as_u64().unwrap()
    };
    let before = rows(&cluster, good);
    have_diverged_one_lead(&mut cluster, odd);
    let impatient = wal_tests::client::Client::new(Duration::from_secs(1));
    let lost = "INSERT INTO t(v) VALUES(1)";
    let outcome = impatient.execute_sql(cluster.address(odd), lost);
    assert!(!matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    cluster.wait_log(
        good,
        "the leader's transaction was executed on another database",
    );
    cluster.wait_log(odd, "a peer does not append what this node proposes");
    for node in 0..2 {
        assert!(cluster.log_text(node).contains("no majority for either"));
        assert!(!cluster.has_ended(node), "nobody knows who is right");
        assert_eq!(rows(&cluster, node), before);
    }
    // Who leads next is refused by the other one in turn, for the same reason.
    cluster.kill(odd);
    cluster.kill(good);
    // The operator keeps the good one, by the book.
    let own = cluster.flag(good, "-raft-addr").to_owned();
    let alone = format!("[{{\"id\":\"node{}\",\"address\":\"{own}\"}}]", good + 1);
    let dir = cluster.data_dir(good).join("raft");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("peers.json"), alone).unwrap();
    cluster.start_node(good);
    cluster.wait_ready(good);
    write(&cluster, good, 2);
    std::fs::remove_dir_all(cluster.data_dir(odd)).unwrap();
    cluster.start_node(odd);
    cluster.wait_ready(odd);
    write(&cluster, odd, 1);
    cluster.assert_identical();
    assert_eq!(rows(&cluster, odd), before + 3);
    cluster.assert_healthy_logs();
}
