//! Writers at work while links are cut, held and lossy, and nodes are restarted, at random.
//!
//! `WAL_SEED` plays a run's decisions again (not its timing), `WAL_ROUNDS` makes it longer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wal_tests::checker;
use wal_tests::linked::{LinkedCluster, SharedNode, current};
use wal_tests::links::Rule;
use wal_tests::seed::{Random, seed};
use wal_tests::workload::{Attempt, Fate, History, TABLE};
use wallaby::node::{
    NodeOptions, Parameter, Refusal, Request, Served, Shape, Statement, Value, WriteRequest,
};

/// Whole databases travel too, not only entries, and transactions in parts.
fn tune(options: &mut NodeOptions) {
    options.log_tail_bytes = 64 << 10;
    options.checkpoint_wal_bytes = 256 << 10;
    options.log_segment_bytes = 1 << 20;
    options.entry_bytes_max = 128 << 10;
}

/// What all writers share.
#[derive(Default)]
struct Record {
    history: Mutex<History>,
    stop: AtomicBool,
}

impl Record {
    fn acknowledged(&self) -> usize {
        self.history.lock().unwrap().count(Fate::Acknowledged)
    }
}

/// Rows of one request: usually a few small ones, now and then more than fit into one log entry.
fn rows(writer: usize, request: usize, random: &mut Random) -> Vec<(String, String)> {
    let (count, bytes_max) = match random.below(20) {
        0 => (40, 8000),
        _ => (1 + random.below(4), 400),
    };
    (0..count)
        .map(|row| {
            let bytes = 1 + random.below(bytes_max);
            let payload = format!("{:0bytes$x}", random.bits());
            (format!("{writer}-{request}-{row}"), payload)
        })
        .collect()
}

fn insert(rows: &[(String, String)]) -> Request {
    let parameter = |text: &String| Parameter {
        name: None,
        value: Value::Text(text.clone().into_bytes()),
    };
    let statement = |(key, payload): &(String, String)| Statement {
        sql: "INSERT INTO item(key, payload) VALUES(?, ?)".to_owned(),
        parameters: vec![parameter(key), parameter(payload)],
    };
    Request {
        statements: rows.iter().map(statement).collect(),
        transaction: true,
        shape: Shape::Execute,
        statement_time_max: None,
        qualify_columns: false,
    }
}

fn fate(outcome: &Result<Served, Refusal>) -> Fate {
    match outcome {
        Ok(served) => {
            assert_eq!(served.reply.error, None);
            Fate::Acknowledged
        }
        Err(Refusal::Unknown(_)) => Fate::Unknown,
        Err(_) => Fate::Refused,
    }
}

async fn write(writer: usize, nodes: Vec<SharedNode>, record: Arc<Record>, mut random: Random) {
    let mut requests = 0;
    while !record.stop.load(Ordering::Relaxed) {
        let Some(node) = current(&nodes[random.below(nodes.len())]) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        requests += 1;
        let rows = rows(writer, requests, &mut random);
        let timeout = Duration::from_millis(500 + 500 * random.below(8) as u64);
        let request = insert(&rows);
        let outcome = node.execute(WriteRequest::new(request, timeout)).await;
        let fate = fate(&outcome);
        let request = format!("{writer}-{requests}");
        let attempts = rows.into_iter().map(|(key, payload)| Attempt {
            key,
            payload,
            request: request.clone(),
            fate,
        });
        record.history.lock().unwrap().attempts.extend(attempts);
        if fate != Fate::Acknowledged {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One disturbance, and most of its end: some links stay as they are until the next.
fn disturb(cluster: &mut LinkedCluster, random: &mut Random) {
    let nodes = cluster.size();
    let (one, other) = {
        let one = random.below(nodes);
        (one, (one + 1 + random.below(nodes - 1)) % nodes)
    };
    let victim = match random.below(2) {
        0 => cluster.leader().unwrap_or(one),
        _ => one,
    };
    let long = Duration::from_millis(300 + random.below(1200) as u64);
    let links = cluster.links();
    match random.below(9) {
        0 | 1 => links.set_around(victim, Rule::Cut),
        2 => links.set_pair(one, other, Rule::Cut),
        3 => links.set(one, other, Rule::Cut),
        4 => links.set_all(Rule::Lossy(10)),
        5 => links.set_all(Rule::Cut),
        6 => {
            for _ in 0..5 {
                links.set_around(victim, Rule::Hold);
                std::thread::sleep(Duration::from_millis(30 + random.below(200) as u64));
                links.set_around(victim, Rule::Open);
            }
        }
        7 => {
            // In the middle of whatever the cut brings about.
            links.set_around(one, Rule::Cut);
            std::thread::sleep(long);
            cluster.stop(victim);
            cluster.heal();
            std::thread::sleep(long);
            cluster.start_node(victim);
        }
        _ => {
            cluster.stop(victim);
            std::thread::sleep(long);
            cluster.start_node(victim);
        }
    }
    std::thread::sleep(long);
    if random.below(4) > 0 {
        cluster.heal();
        std::thread::sleep(Duration::from_millis(random.below(1500) as u64));
    }
}

fn storm(nodes: usize, rounds: usize, random: &mut Random) {
    let mut cluster = LinkedCluster::start(nodes, 0, tune);
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &[TABLE]);
    let record = Arc::new(Record::default());
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let nodes = (0..nodes).map(|node| cluster.shared(node)).collect();
            cluster.spawn(write(writer, nodes, Arc::clone(&record), random.fork()))
        })
        .collect();
    for _ in 0..rounds {
        disturb(&mut cluster, random);
    }
    cluster.heal();
    let goal = record.acknowledged() + 20;
    cluster.wait("writes to go on", |_| match record.acknowledged() {
        rows if rows >= goal => Ok(()),
        rows => Err(format!("{rows} of {goal}")),
    });
    record.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        cluster.join(writer);
    }
    let database = cluster.assert_identical();
    let found = checker::items(&database).unwrap();
    let history = record.history.lock().unwrap();
    let count = |fate| history.count(fate);
    println!(
        "{nodes} nodes: {} acknowledged, {} refused, {} unknown; {} rows; {} datagrams lost",
        count(Fate::Acknowledged),
        count(Fate::Refused),
        count(Fate::Unknown),
        found.len(),
        cluster.links().lost(),
    );
    assert_eq!(checker::check(&history, &found), []);
}

fn rounds() -> usize {
    std::env::var("WAL_ROUNDS").map_or(8, |rounds| rounds.parse().unwrap())
}

#[test]
fn three_nodes_lose_nothing_and_invent_nothing_in_a_storm() {
    storm(3, rounds(), &mut Random::new(seed("storm")));
}

#[test]
fn five_nodes_lose_nothing_and_invent_nothing_in_a_storm() {
    storm(5, rounds(), &mut Random::new(seed("storm")));
}
