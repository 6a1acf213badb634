//! Clusters of real processes whose links a test can cut, hold and make lossy, each direction by
//! itself, while writers work. See [`crate::network`] for what is between them.

use std::net::SocketAddr;
use std::time::Duration;

use crate::checker;
use crate::client::Image;
use crate::cluster::{Formation, ProcessCluster};
use crate::links::{Links, Rule};
use crate::network::{Network, Switched, addresses_at};
use crate::seed::Random;
use crate::workload::{self, Fate, History, Workload};

/// Nodes, the network between them, and writers that talk to all of them.
pub struct Partitioned {
    /// The nodes.
    pub cluster: ProcessCluster,
    /// What is between them.
    pub network: Network,
    workload: Option<Workload>,
}

impl Partitioned {
    /// A running cluster whose nodes start together, with the table of the workload.
    #[must_use]
    pub fn start(nodes: usize, flags: &[&str], seed: u64) -> Self {
        let (cluster, network) = prepare(nodes, flags, seed);
        println!("{nodes} nodes, connected by {}", network.name());
        let mut started = Self {
            cluster,
            network,
            workload: None,
        };
        started.cluster.start_all(&Formation::Expect);
        let address = started.cluster.address(0).to_owned();
        let client = started.cluster.client();
        let _ = client
            .execute_sql(&address, workload::TABLE)
            .expect_success();
        started
    }

    /// Has writers work through all nodes until [`Self::finish`].
    pub fn write(&mut self, writers: usize, random: &mut Random) {
        let addresses = self.cluster.addresses();
        let workload = Workload::start("w", &addresses, writers, ANSWER_TIME_MAX, random);
        self.workload = Some(workload);
    }

    /// Waits until so many more rows are acknowledged.
    ///
    /// # Panics
    ///
    /// When nobody writes, or after a long time.
    #[track_caller]
    pub fn wait_acknowledged(&mut self, more: usize) {
        let workload = self.workload.as_ref().expect("somebody writes");
        let goal = workload.acknowledged() + more;
        self.cluster.wait("rows to be acknowledged", |_| {
            match workload.acknowledged() {
                found if found >= goal => Ok(()),
                found => Err(format!("{found} of {goal}")),
            }
        });
    }

    /// Opens all links, ends the writers, and checks that all nodes contain the same bytes and that
    /// these are what the writers were told.
    ///
    /// # Panics
    ///
    /// When anything is otherwise.
    #[track_caller]
    pub fn finish(mut self) -> (Image, History) {
        self.network.set_all(Rule::Open);
        let history = self.workload.take().expect("somebody writes").stop();
        self.cluster.wait_all_ready();
        let image = self.cluster.assert_identical();
        checker::assert_kept(&history, &self.cluster.open(&image));
        println!(
            "{} rows acknowledged, {} refused, {} unknown, {} packets lost",
            history.count(Fate::Acknowledged),
            history.count(Fate::Refused),
            history.count(Fate::Unknown),
            self.network.lost()
        );
        self.cluster.assert_healthy_logs();
        (image, history)
    }
}

/// Nodes with the network between them, none of them running: each in a namespace of its own where
/// that is possible, otherwise on loopback, behind gates.
#[must_use]
pub fn prepare(nodes: usize, flags: &[&str], seed: u64) -> (ProcessCluster, Network) {
    match Switched::open_if_possible(nodes, seed) {
        Some(switched) => {
            let cluster = prepare_apart(&switched, nodes, flags);
            (cluster, Network::Switched(switched))
        }
        None => {
            let (cluster, links) = prepare_behind_gates(nodes, flags, seed);
            (cluster, Network::Gates(links))
        }
    }
}

/// Nodes in namespaces, none of them running.
#[must_use]
pub fn prepare_apart(switched: &Switched, nodes: usize, flags: &[&str]) -> ProcessCluster {
    let mut cluster = ProcessCluster::prepare(nodes, &Formation::Expect, flags);
    let places: Vec<_> = (0..nodes)
        .map(|node| addresses_at(switched.address(node)))
        .map(|(http, raft)| (http.to_string(), raft.to_string()))
        .collect();
    let raft: Vec<&str> = places.iter().map(|(_, raft)| raft.as_str()).collect();
    for (node, (http, own)) in places.iter().enumerate() {
        cluster.settle_in(node, &switched.namespace(node), http, own);
        let arguments = cluster.arguments(node);
        *value_of(arguments, "-join") = raft.join(",");
        // Nobody but these nodes is on this network.
        arguments.insert(0, "-insecure-cluster".to_owned());
    }
    cluster
}

/// Nodes that advertise their gates and look for each other there, none of them running.
#[must_use]
pub fn prepare_behind_gates(nodes: usize, flags: &[&str], seed: u64) -> (ProcessCluster, Links) {
    let mut cluster = ProcessCluster::prepare(nodes, &Formation::Expect, flags);
    let own: Vec<SocketAddr> = (0..nodes)
        .map(|node| {
            let addr = value_of(cluster.arguments(node), "-raft-addr");
            addr.parse().expect("the cluster gives out addresses")
        })
        .collect();
    let links = Links::open(&own, seed);
    let gates: Vec<String> = (0..nodes)
        .map(|node| links.gate(node).to_string())
        .collect();
    for node in 0..nodes {
        let arguments = cluster.arguments(node);
        *value_of(arguments, "-join") = gates.join(",");
        arguments.splice(0..0, ["-raft-adv-addr".to_owned(), gates[node].clone()]);
    }
    (cluster, links)
}

fn value_of<'a>(arguments: &'a mut [String], flag: &str) -> &'a mut String {
    let at = arguments.iter().position(|word| word == flag);
    let at = at.unwrap_or_else(|| panic!("{flag} is given"));
    &mut arguments[at + 1]
}

/// How long a writer waits for its answer: through an election, and not much longer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
