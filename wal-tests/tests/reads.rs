//! Reads on any node: linearizable ones are never stale, and a minimum index is waited for.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::counter::Counter;
use wal_tests::linked::{LinkedCluster, PATIENCE};
use wal_tests::links::Rule;
use wal_tests::seed::{Random, seed};
use wallaby::node::{Answer, Level, ReadRequest, Refusal, Served, Shape, Value as Cell};

const READ: &str = "SELECT n FROM counter";

fn counted_cluster(nodes: usize) -> ProcessCluster {
    counted(ProcessCluster::start(nodes, &Formation::Expect, &[]))
}

/// Three voters and a node without a vote, the last one.
fn counted_cluster_with_replica() -> ProcessCluster {
    let mut cluster = ProcessCluster::prepare(4, &Formation::Join, &[]);
    let flag = "-raft-non-voter".to_owned();
    cluster.arguments(3).insert(0, flag);
    cluster.start_all(&Formation::Join);
    counted(cluster)
}

fn counted(cluster: ProcessCluster) -> ProcessCluster {
    Counter::create(&cluster);
    cluster
}

/// Reads through one node until it is enough, and checks that each answer has everything that
/// was acknowledged before the question was asked.
fn watch(counter: &Arc<Counter>, address: &str, endpoint: &'static str) -> Reader {
    let (counter, address) = (Arc::clone(counter), address.to_owned());
    std::thread::spawn(move || {
        let client = Client::new(Duration::from_secs(2));
        while !counter.stop.load(Ordering::Relaxed) {
            let floor = counter.acknowledged.load(Ordering::SeqCst);
            let Outcome::Answered(answer) = client.write(&address, endpoint, &json!([READ])) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let found = answer.rows(0)[0][0].as_i64().unwrap();
            if found < floor {
                return Err(format!("{endpoint}: {found} after {floor}"));
            }
            counter.checked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

type Reader = JoinHandle<Result<(), String>>;

const QUERY: &str = "/db/query?level=linearizable";
const REQUEST: &str = "/db/request?level=linearizable";

#[test]
fn a_thousand_linearizable_reads_on_followers_see_every_write_made_elsewhere() {
    let mut random = Random::new(seed("reads"));
    let mut cluster = counted_cluster_with_replica();
    let leader = cluster.wait_leader();
    let counter = Arc::new(Counter::default());
    let followers = [(leader + 1) % 3, (leader + 2) % 3, 3];
    // Each follower is written to by nobody who reads from it.
    let writers = [leader, followers[0]].map(|node| cluster.address(node).to_owned());
    let writer = counter.raise(writers.to_vec(), random.fork());
    let readers: Vec<Reader> = followers
        .into_iter()
        .flat_map(|node| [(node, QUERY), (node, REQUEST)])
        .map(|(node, endpoint)| watch(&counter, cluster.address(node), endpoint))
        .collect();
    cluster.wait("a thousand reads among a hundred writes", |_| {
        let found = (
            counter.checked.load(Ordering::Relaxed),
            counter.acknowledged.load(Ordering::Relaxed),
        );
        let enough = found.0 >= 1000 && found.1 >= 100;
        enough.then_some(()).ok_or_else(|| format!("{found:?}"))
    });
    counter.stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Ok(()));
    }
    let asked = |node: usize, name: &str| {
        let vars = cluster.client().json(cluster.address(node), "/debug/vars");
        vars.unwrap()["store"][name].as_u64().unwrap()
    };
    for follower in followers {
        assert!(asked(follower, "read_index_questions") > 0, "it has asked");
        let statements = "/debug/vars?key=proxy";
        let vars = cluster.client().json(cluster.address(follower), statements);
        let handed = vars.unwrap()["proxy"]["remote_queries"].clone();
        assert_eq!(handed, 0, "and has handed on none of the reads");
    }
    assert!(asked(leader, "read_index_rounds") > 0);
    cluster.assert_healthy_logs();
}

#[test]
fn linearizable_reads_are_not_stale_when_nodes_pause_at_any_moment() {
    let mut random = Random::new(seed("reads"));
    let mut cluster = counted_cluster(3);
    let counter = Arc::new(Counter::default());
    let writer = counter.raise(cluster.addresses(), random.fork());
    let readers: Vec<Reader> = (0..3)
        .flat_map(|node| [(node, QUERY), (node, REQUEST), (node, QUERY)])
        .map(|(node, endpoint)| watch(&counter, cluster.address(node), endpoint))
        .collect();
    for _ in 0..pauses() {
        // Shorter than an answer takes, longer than a lease, and anything in between.
        let node = random.below(3);
        cluster.pause(node);
        std::thread::sleep(Duration::from_millis(1 << random.below(11)));
        cluster.resume(node);
        std::thread::sleep(Duration::from_millis(random.below(100) as u64));
    }
    let goal = counter.checked.load(Ordering::Relaxed) + 100;
    cluster.wait("the reads to go on", |_| {
        let found = counter.checked.load(Ordering::Relaxed);
        (found >= goal)
            .then_some(())
            .ok_or_else(|| format!("{found} of {goal}"))
    });
    counter.stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Ok(()));
    }
    cluster.wait_all_ready();
    let _ = cluster.assert_identical();
    cluster.assert_healthy_logs();
}

fn pauses() -> usize {
    std::env::var("WAL_ROUNDS").map_or(30, |rounds| rounds.parse().unwrap())
}

/// Reads for a while before it gives the counter, as it was when it began.
const SLOW_READ: &str = "WITH RECURSIVE c(i) AS \
    (VALUES((SELECT n FROM counter) * 0) UNION ALL SELECT i + 1 FROM c WHERE i < 300000) \
    SELECT n, (SELECT max(i) FROM c) FROM counter";

#[test]
fn a_leader_that_was_paused_in_the_middle_of_weak_reads_sends_at_most_one_from_before() {
    let mut cluster = counted_cluster(3);
    // What a thread was about to send when the process was stopped, after its last look at the
    // lease, goes out all the same: for that there are linearizable reads. Without that look
    // almost every reader gets an old answer, in each round.
    let sent_late = Arc::new(AtomicUsize::new(0));
    for round in 1..=3 {
        let old = cluster.wait_leader();
        // Raised by one with each leader that was lost; whatever a weak read that is answered later
        // shows must be at least that.
        let (floor, stop) = (
            Arc::new(AtomicI64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let answered = Arc::new(AtomicUsize::new(0));
        let readers: Vec<Reader> = (0..4)
            .map(|_| {
                let (floor, stop) = (Arc::clone(&floor), Arc::clone(&stop));
                let (answered, sent_late) = (Arc::clone(&answered), Arc::clone(&sent_late));
                let address = cluster.address(old).to_owned();
                std::thread::spawn(move || {
                    let client = Client::new(Duration::from_secs(30));
                    while !stop.load(Ordering::SeqCst) {
                        let Ok(rows) = client.query(&address, "weak", SLOW_READ) else {
                            continue;
                        };
                        let (found, floor) = (rows[0][0].as_i64(), floor.load(Ordering::SeqCst));
                        let is_old = found < Some(floor);
                        if is_old && sent_late.fetch_add(1, Ordering::SeqCst) > 0 {
                            return Err(format!("{found:?} when {floor} was acknowledged"));
                        }
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .collect();
        let more = |cluster: &mut ProcessCluster| {
            let goal = answered.load(Ordering::SeqCst) + 8;
            cluster.wait("weak reads", |_| {
                let found = answered.load(Ordering::SeqCst);
                (found >= goal)
                    .then_some(())
                    .ok_or_else(|| format!("{found}"))
            });
        };
        more(&mut cluster);
        cluster.pause(old);
        let new = cluster.wait_leader_other_than(old);
        // All answers that were sent before the pause have arrived long ago.
        let raise = json!([["UPDATE counter SET n = ?", round]]);
        let _ = cluster
            .client()
            .execute(cluster.address(new), &raise)
            .expect_success();
        floor.store(round, Ordering::SeqCst);
        cluster.resume(old);
        more(&mut cluster);
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Ok(()), "round {round}");
        }
        cluster.wait_ready(old);
    }
    cluster.assert_healthy_logs();
}

/// The only cell of an answer.
fn cell(served: &Served) -> Cell {
    let Answer::Rows(rows) = &served.reply.outcomes[0].answer else {
        panic!("no rows: {served:?}");
    };
    rows.values[0][0].clone()
}

/// A cluster with a table of one row, its leader, and a node that does not lead.
fn linked(nodes: usize) -> (LinkedCluster, usize, usize) {
    let cluster = LinkedCluster::start(nodes, 0, |_| {});
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &["CREATE TABLE counter(n INTEGER)"]);
    let _ = cluster.commit(leader, &["INSERT INTO counter VALUES(0)"]);
    cluster.wait_converged();
    (cluster, leader, (leader + 1) % nodes)
}

#[test]
fn a_follower_that_only_reaches_a_deposed_leader_serves_nothing_until_it_hears_of_the_new_one() {
    let (cluster, old, follower) = linked(5);
    let majority: Vec<usize> = (0..5)
        .filter(|&node| node != old && node != follower)
        .collect();
    for &node in &majority {
        for lost in [old, follower] {
            cluster.links().set_pair(node, lost, Rule::Cut);
        }
    }
    let read = |node| cluster.begin_query(node, Level::Linearizable, READ, PATIENCE);
    let pending = [read(old), read(follower)];
    // The old leader may be handed the first of them, before anybody misses it.
    let write = || cluster.execute(majority[0], &["UPDATE counter SET n = 1"], PATIENCE);
    assert!((0..10).any(|_| write().is_ok()), "the majority goes on");
    let later = [read(old), read(follower)];
    std::thread::sleep(Duration::from_millis(500));
    for pending in pending.iter().chain(&later) {
        assert!(!pending.is_finished(), "nobody can confirm it");
    }
    cluster.heal();
    for pending in later {
        let served = cluster.outcome(pending).unwrap();
        assert_eq!(cell(&served), Cell::Integer(1));
    }
    for pending in pending {
        // Asked before the write, so either is right; but it is answered.
        let _ = cluster.outcome(pending).unwrap();
    }
    let _ = cluster.assert_identical();
}

#[test]
fn a_linearizable_read_waits_until_a_follower_has_applied_what_takes_long() {
    let (cluster, leader, follower) = linked(3);
    let _ = cluster.commit(leader, &["CREATE TABLE large(v)"]);
    for round in 1..=10 {
        // Known to be committed long before it is in the follower's file.
        let large = "INSERT INTO large VALUES(randomblob(8388608))";
        let raise = format!("UPDATE counter SET n = {round}");
        let _ = cluster.commit(leader, &[large, &raise]);
        let read = cluster.begin_query(follower, Level::Linearizable, READ, PATIENCE);
        let served = cluster.outcome(read).unwrap();
        assert_eq!(cell(&served), Cell::Integer(round));
    }
}

#[test]
fn readers_that_wait_on_a_follower_share_questions_and_it_answers_itself() {
    let (cluster, leader, follower) = linked(3);
    let count = |name: &str| {
        let all = cluster.node(follower).counters().all();
        all.iter().find(|count| count.name == name).unwrap().value
    };
    let before = count("read_index_questions");
    cluster.links().set_pair(leader, follower, Rule::Hold);
    let reads: Vec<_> = (0..100)
        .map(|_| cluster.begin_query(follower, Level::Linearizable, READ, PATIENCE))
        .collect();
    // The answers wait in the links, and all reads for the first of them.
    std::thread::sleep(Duration::from_millis(60));
    assert!(reads.iter().all(|read| !read.is_finished()));
    cluster.heal();
    for read in reads {
        let served = cluster.outcome(read).unwrap();
        assert_eq!(served.served_by, format!("node{}:4001", follower + 1));
    }
    let questions = count("read_index_questions") - before;
    assert!((1..=20).contains(&questions), "{questions} for 100 reads");
}

#[test]
fn a_read_waits_for_the_index_that_it_brings_along_on_every_node_at_every_level() {
    let (cluster, leader, follower) = linked(3);
    let other = 3 - leader - follower;
    let read = |node: usize, level, index_min, timeout| {
        let request = wal_tests::linked::request(&[READ], Shape::Query);
        let read = ReadRequest {
            index_min,
            ..ReadRequest::new(request, level, timeout)
        };
        let node = cluster.node(node);
        cluster.spawn(async move { node.query(read).await })
    };
    for round in 1..=50 {
        let sql = format!("UPDATE counter SET n = {round}");
        let index = cluster.commit(leader, &[&sql]).raft_index.unwrap();
        for node in [follower, other, leader] {
            let served = cluster
                .outcome(read(node, Level::None, index, PATIENCE))
                .unwrap();
            assert_eq!(cell(&served), Cell::Integer(round));
        }
    }
    // A node that is cut off does not know better, and says so in time.
    cluster.links().set_around(follower, Rule::Cut);
    let index = cluster.commit(leader, &["UPDATE counter SET n = 51"]);
    let index = index.raft_index.unwrap();
    let soon = Duration::from_millis(300);
    match cluster.outcome(read(follower, Level::None, index, soon)) {
        Err(Refusal::TimedOut(why)) => assert!(why.contains(&format!("to {index} yet")), "{why}"),
        other => panic!("{other:?}"),
    }
    let old = cluster
        .outcome(read(follower, Level::None, 0, soon))
        .unwrap();
    assert_eq!(
        cell(&old),
        Cell::Integer(50),
        "without a minimum it serves what it has"
    );
    let patient = read(follower, Level::None, index, PATIENCE);
    cluster.heal();
    let served = cluster.outcome(patient).unwrap();
    assert_eq!(cell(&served), Cell::Integer(51));
    // What nobody has written yet is waited for wherever the read is served.
    for level in [Level::Weak, Level::Linearizable, Level::Strong] {
        let index = cluster.status(leader).last_log_index + 1000;
        let answer = cluster.outcome(read(follower, level, index, soon));
        assert!(
            matches!(answer, Err(Refusal::TimedOut(_))),
            "{level:?}: {answer:?}"
        );
    }
}

#[test]
fn a_node_that_was_away_is_ready_only_with_all_that_was_written_meanwhile() {
    let mut cluster = counted_cluster(3);
    let leader = cluster.wait_leader();
    let away = (leader + 1) % 3;
    for round in 1..=5 {
        cluster.pause(away);
        // Too much to arrive before the first question.
        for sql in [
            "CREATE TABLE IF NOT EXISTS large(v)",
            "INSERT INTO large VALUES(randomblob(4194304))",
            "UPDATE counter SET n = n + 1",
        ] {
            let answer = cluster.client().execute_sql(cluster.address(leader), sql);
            let _ = answer.expect_success();
        }
        cluster.resume(away);
        cluster.wait_ready(away);
        let address = cluster.address(away);
        let read = cluster
            .client()
            .write(address, "/db/query?level=none", &json!([READ]));
        assert_eq!(read.expect_success().rows(0)[0][0], json!(round));
    }
}

#[test]
fn the_minimum_index_comes_as_a_parameter_or_as_a_header_and_must_be_one() {
    let mut cluster = counted_cluster(2);
    let follower = 1 - cluster.wait_leader();
    let address = cluster.address(follower);
    let read = |query: &str, header: Option<&str>| {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut request = agent.get(format!("http://{address}/db/query?q=SELECT%201&{query}"));
        if let Some(index) = header {
            request = request.header("X-Wallaby-Raft-Index", index);
        }
        let mut response = request.call().unwrap();
        let body = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), body)
    };
    let write = cluster
        .client()
        .execute_sql(address, "INSERT INTO counter VALUES(1)");
    let index = write.expect_success().raft_index.unwrap();
    let (reached, beyond) = (index.to_string(), (index + 100_000).to_string());
    for flag in [
        "raft_index",
        "raft_index=",
        "raft_index=true",
        "raft_index=false",
    ] {
        assert_eq!(read(flag, None).0, 200, "{flag} is only a flag");
    }
    for level in ["none", "weak", "linearizable", "strong", "auto"] {
        let level = format!("level={level}&timeout=100ms");
        let by_parameter = |index: &str| read(&format!("{level}&raft_index={index}"), None);
        let by_header = |index: &str| read(&level, Some(index));
        assert_eq!(by_parameter(&reached).0, 200, "{level}");
        assert_eq!(by_header(&reached).0, 200, "{level}");
        for (status, body) in [by_parameter(&beyond), by_header(&beyond)] {
            assert_eq!(status, 504, "{level}: {body}");
            let body: Value = serde_json::from_str(&body).unwrap();
            let error = body["error"].as_str().unwrap();
            assert!(
                error.contains("this node has applied the log up to index"),
                "{error}"
            );
        }
    }
    let both = read(
        &format!("level=none&timeout=100ms&raft_index={reached}"),
        Some(&beyond),
    );
    assert_eq!(both.0, 504, "the later of the two counts");
    for (wrong, (status, body)) in [
        ("raft_index", read("raft_index=x", None)),
        ("raft_index", read("raft_index=-1", None)),
        ("X-Wallaby-Raft-Index", read("", Some("soon"))),
        ("X-Wallaby-Raft-Index", read("", Some(""))),
    ] {
        assert_eq!(status, 400, "{body}");
        assert!(
            body.starts_with(&format!("{wrong} is not a log index: ")),
            "{body}"
        );
    }
    cluster.assert_healthy_logs();
}
