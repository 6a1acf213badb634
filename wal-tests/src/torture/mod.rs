//! Clusters of real processes under seeded faults, with clients whose every answer is checked.
//!
//! [`run()`] starts the nodes, has clients work through the public API, lets the nemesis do what its
//! schedule says, ends all faults, waits until the nodes agree, compares their page images byte by
//! byte, and hands what the clients were told to all checkers.
//!
//! The seed decides what clients ask and which faults follow each other; how the threads and
//! processes of the machine interleave it does not.

mod clients;
mod damage;
mod fault;
mod mix;
mod nemesis;
mod report;
mod sampler;
mod schedule;

use std::time::{Duration, Instant};

use crate::checker;
use crate::client::Image;
use crate::cluster::{Formation, ProcessCluster};
use crate::history::SCHEMA;
use crate::network::Switched;
use crate::partition;
use crate::seed::Random;

use clients::Clients;
use damage::Disks;
use nemesis::Nemesis;
use sampler::Sampler;

pub use clients::Tally;
pub use fault::Fault;
pub use nemesis::Struck;
pub use report::{Report, Verdicts};
pub use sampler::Counted;
pub use schedule::Schedule;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides everything that is decided by chance.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// For how long faults are begun.
    pub time: Duration,
    /// Goes on beyond that until so many faults have begun.
    pub events_min: usize,
    /// Which faults, and how many.
    pub schedule: Schedule,
    /// How many clients, each of which asks one thing after the other.
    pub clients: usize,
}

/// Runs a plan.
///
/// # Panics
///
/// When the cluster does not become whole again, or its nodes differ: that is a bug. So the last
/// thing said tells more than a report could.
#[must_use]
pub fn run(plan: &Plan) -> Report {
    let begin = Instant::now();
    let mut random = Random::new(plan.seed);
    let (mut cluster, network) = partition::prepare(plan.nodes, &FLAGS, random.bits());
    println!(
        "{} nodes, connected by {}; {} clients; schedule {}; seed {}",
        plan.nodes,
        network.name(),
        plan.clients,
        plan.schedule.name(),
        plan.seed
    );
    let disks = Disks::mount(&cluster, plan.schedule.needs_disks());
    cluster.start_all(&Formation::Expect);
    create_tables(&cluster);
    let sampler = Sampler::start(cluster.addresses());
    let clients = Clients::start(plan.clients, cluster.addresses(), &mut random);
    let mut nemesis = Nemesis::new(plan, cluster, network, disks, &clients, random.fork());
    nemesis.run();
    let (disks, network, faults, mut cluster) = nemesis.finish();
    clients.wait_acknowledged(clients.acknowledged() + 50);
    let (operations, queued, tally) = clients.stop();
    let counted = sampler.stop();
    cluster.wait_all_ready();
    let image = cluster.assert_identical();
    cluster.assert_healthy_logs();
    let checking = Instant::now();
    let verdicts = judge(&cluster, &image, operations, &queued);
    for node in 0..cluster.size() {
        cluster.kill(node);
    }
    drop(disks);
    Report {
        plan: plan.clone(),
        network: network.name(),
        frames: network.switched().map(Switched::counts),
        faults,
        tally,
        counted,
        image_bytes: image.bytes.len(),
        time: begin.elapsed(),
        checking: checking.elapsed(),
        verdicts,
    }
}

fn create_tables(cluster: &ProcessCluster) {
    let statements = serde_json::json!(SCHEMA);
    let outcome = cluster.client().execute(cluster.address(0), &statements);
    let _ = outcome.expect_success();
}

/// Asks all checkers. The image tells which requests were done, and what the last state is: a last
/// read of everything, after all else.
fn judge(
    cluster: &ProcessCluster,
    image: &Image,
    mut operations: Vec<crate::history::Operation>,
    queued: &crate::workload::History,
) -> Verdicts {
    let database = cluster.open(image);
    let journal = clients::journal(&database).expect("the journal can be read");
    let (witness, checked) = checker::witness::check(&operations, &journal);
    clients::add_last_reads(&mut operations, &database).expect("the tables can be read");
    let registers = checker::register::check(&operations);
    let lists = checker::append::check(&operations);
    let (sets, set_reads) = checker::set::check(&operations);
    let rows = checker::items(&database).expect("the table of queued rows can be read");
    Verdicts {
        witness,
        checked,
        registers,
        lists,
        sets,
        set_reads,
        queue: checker::check(queued, &rows),
        queued: queued.attempts.len(),
    }
}

/// Checkpoints after little, a log that is soon cut behind them, so that who was away for a moment
/// receives pages and not entries; transactions that need parts.
const FLAGS: [&str; 14] = [
    "-raft-snap-wal-size",
    "262144",
    "-log-segment",
    "1048576",
    "-log-tail",
    "262144",
    "-log-catch-up",
    "4194304",
    "-entry-bytes",
    "131072",
    // Damage is to be found soon, and not by chance.
    "-scrub-rate",
    "67108864",
    "-scrub-interval",
    "3s",
];
