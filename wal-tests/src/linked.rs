//! Clusters of nodes inside the test's own process, joined by links that the test controls.
//!
//! Tests call the nodes directly, so they see every outcome exactly as the node gave it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wallaby::node::{
    Error, Level, Node, NodeOptions, NodeStatus, ReadRequest, Refusal, Request, Served, Shape,
    Statement, WriteRequest,
};

use crate::links::{Links, Rule};
use crate::ports;

/// Nodes and the links between them.
pub struct LinkedCluster {
    seats: Vec<Seat>,
    links: Links,
    runtime: tokio::runtime::Runtime,
    /// `None` once given away to be kept.
    dir: Option<tempfile::TempDir>,
}

/// The place of a node, running or not.
struct Seat {
    options: NodeOptions,
    node: SharedNode,
}

/// A node that may be replaced by its next life while others hold on to this.
pub type SharedNode = Arc<Mutex<Option<Node>>>;

/// A request under way.
pub type Pending = tokio::task::JoinHandle<Result<Served, Refusal>>;

/// The bytes of one node's database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FrozenImage {
    /// The last entry that changed a page.
    pub data_index: u64,
    /// The node's own hash of it.
    pub hash: String,
    /// All pages.
    pub bytes: Vec<u8>,
}

impl LinkedCluster {
    /// A cluster of `nodes` nodes that has a leader, and room for `spares` nodes that join it when
    /// they are started. `tune` sees the options of every node.
    ///
    /// # Panics
    ///
    /// When the cluster does not come up.
    #[must_use]
    pub fn start(nodes: usize, spares: usize, tune: impl Fn(&mut NodeOptions)) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
        let dir = tempfile::Builder::new().prefix("wallaby-test-").tempdir();
        let dir = dir.expect("a temporary directory can be made");
        let addrs: Vec<SocketAddr> = ports::reserve(nodes + spares)
            .into_iter()
            .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
            .collect();
        let links = Links::open(&addrs, 1);
        let gates: Vec<String> = (0..nodes)
            .map(|node| links.gate(node).to_string())
            .collect();
        let seat = |(index, addr): (usize, &SocketAddr)| {
            let name = format!("node{}", index + 1);
            let data_dir = dir.path().join(&name);
            let mut options = NodeOptions::new(data_dir, addr.to_string(), format!("{name}:4001"));
            options.name = Some(name);
            options.raft_adv_addr = Some(links.gate(index).to_string());
            options.join.clone_from(&gates);
            if index < nodes {
                options.bootstrap_expect = nodes as u64;
            }
            tune(&mut options);
            let node = SharedNode::default();
            Seat { options, node }
        };
        let seats = addrs.iter().enumerate().map(seat).collect();
        let mut cluster = Self {
            seats,
            links,
            runtime,
            dir: Some(dir),
        };
        for node in 0..nodes {
            cluster.start_node(node);
        }
        cluster.wait_leader();
        cluster.wait("the database to exist everywhere", |cluster| {
            let missing = (0..nodes).find(|&node| !cluster.status(node).ready);
            missing.map_or(Ok(()), |node| Err(format!("not on node {}", node + 1)))
        });
        cluster
    }

    /// The links.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// How many nodes there are, running or not.
    #[must_use]
    pub fn size(&self) -> usize {
        self.seats.len()
    }

    /// The options of a node, for its next start.
    pub fn options(&mut self, node: usize) -> &mut NodeOptions {
        &mut self.seats[node].options
    }

    /// The place of a node, for tasks that outlive its restarts.
    #[must_use]
    pub fn shared(&self, node: usize) -> SharedNode {
        Arc::clone(&self.seats[node].node)
    }

    /// A handle on a running node.
    ///
    /// # Panics
    ///
    /// When the node does not run.
    #[must_use]
    #[track_caller]
    pub fn node(&self, node: usize) -> Node {
        current(&self.seats[node].node).expect("the node runs")
    }

    /// Whether the node runs.
    #[must_use]
    pub fn runs(&self, node: usize) -> bool {
        current(&self.seats[node].node).is_some()
    }

    /// Starts a node, for the first time or again.
    ///
    /// # Panics
    ///
    /// When it cannot be opened.
    #[track_caller]
    pub fn start_node(&mut self, node: usize) {
        assert!(!self.runs(node), "node {} runs already", node + 1);
        // A request that still waits for an answer holds on to the node's life before, and with it
        // to the port and the log.
        let opened = self.wait("the node to open", |cluster| {
            let opened = Node::open(cluster.seats[node].options.clone());
            match cluster.runtime.block_on(opened) {
                Err(error) if is_held(&error) => Err(error.to_string()),
                opened => Ok(opened),
            }
        });
        let opened = opened.expect("the node opens");
        *self.seats[node]
            .node
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }

    /// Stops a node in order.
    ///
    /// # Panics
    ///
    /// When it does not end.
    #[track_caller]
    pub fn stop(&mut self, node: usize) {
        let stopped = take(&self.seats[node].node).expect("the node runs");
        let closed = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, stopped.close()).await });
        if closed.is_err() {
            // Dropping it would wait for the same thing again.
            std::mem::forget(stopped);
            panic!("node {} does not close", node + 1);
        }
    }

    /// What a node says about itself.
    #[must_use]
    #[track_caller]
    pub fn status(&self, node: usize) -> NodeStatus {
        self.node(node).status()
    }

    /// How often a stage was counted on a node.
    #[must_use]
    #[track_caller]
    pub fn stage(&self, node: usize, stage: &str) -> u64 {
        let stages = self.status(node).stages;
        let found = stages.iter().find(|(name, _)| *name == stage);
        found.map_or(0, |(_, count)| *count)
    }

    /// The running node that leads in the highest term.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let running = (0..self.size()).filter(|&node| self.runs(node));
        let leading = running.filter_map(|node| {
            let status = self.status(node);
            (status.state == "Leader").then_some((status.term, node))
        });
        leading.max().map(|(_, node)| node)
    }

    /// Waits for a leader that a linearizable read confirms, and returns it.
    #[track_caller]
    pub fn wait_leader(&self) -> usize {
        self.wait("a leader", |cluster| {
            let leader = cluster.leader().ok_or("none leads")?;
            cluster.confirmed(leader)
        })
    }

    /// Waits for a confirmed leader that is not this node.
    #[track_caller]
    pub fn wait_leader_other_than(&self, old: usize) -> usize {
        self.wait("another leader", |cluster| match cluster.leader() {
            Some(leader) if leader != old => cluster.confirmed(leader),
            other => Err(format!("{other:?}")),
        })
    }

    fn confirmed(&self, leader: usize) -> Result<usize, String> {
        let asked = self.query(
            leader,
            Level::Linearizable,
            "SELECT 1",
            Duration::from_secs(1),
        );
        asked.map(|_| leader).map_err(|refusal| refusal.to_string())
    }

    /// Cuts a node off from all others; the others keep their links.
    pub fn cut_off(&self, node: usize) {
        self.links.set_around(node, Rule::Cut);
    }

    /// Opens all links.
    pub fn heal(&self) {
        self.links.set_all(Rule::Open);
    }

    /// Runs statements on a node and waits for the outcome.
    ///
    /// # Errors
    ///
    /// What the node refused it with.
    #[track_caller]
    pub fn execute(&self, node: usize, sql: &[&str], timeout: Duration) -> Result<Served, Refusal> {
        let request = request(sql, Shape::Execute);
        let node = self.node(node);
        self.runtime
            .block_on(node.execute(WriteRequest::new(request, timeout)))
    }

    /// Runs statements that are certain to be committed, on a node.
    ///
    /// # Panics
    ///
    /// When they are not.
    #[track_caller]
    pub fn commit(&self, node: usize, sql: &[&str]) -> Served {
        let served = self.execute(node, sql, PATIENCE);
        let served = served.unwrap_or_else(|refusal| panic!("{sql:?} was refused: {refusal}"));
        assert_eq!(served.reply.error, None);
        for outcome in &served.reply.outcomes {
            if let wallaby::node::Answer::Failed(why) = &outcome.answer {
                panic!("{sql:?} failed: {why}");
            }
        }
        served
    }

    /// Runs statements on a node without waiting for the outcome.
    #[track_caller]
    pub fn begin(&self, node: usize, sql: &[&str], timeout: Duration) -> Pending {
        let request = request(sql, Shape::Execute);
        let node = self.node(node);
        self.runtime
            .spawn(async move { node.execute(WriteRequest::new(request, timeout)).await })
    }

    /// The same through the door for reads and writes alike.
    #[track_caller]
    pub fn begin_unified(
        &self,
        node: usize,
        level: Level,
        sql: &[&str],
        timeout: Duration,
    ) -> Pending {
        let request = request(sql, Shape::Unified);
        let node = self.node(node);
        self.runtime.spawn(async move {
            let read = ReadRequest::new(request, level, timeout);
            node.request(read).await
        })
    }

    /// Begins a read on a node.
    #[track_caller]
    pub fn begin_query(&self, node: usize, level: Level, sql: &str, timeout: Duration) -> Pending {
        let request = request(&[sql], Shape::Query);
        let node = self.node(node);
        self.runtime.spawn(async move {
            let read = ReadRequest::new(request, level, timeout);
            node.query(read).await
        })
    }

    /// Reads on a node.
    ///
    /// # Errors
    ///
    /// What the node refused it with.
    #[track_caller]
    pub fn query(
        &self,
        node: usize,
        level: Level,
        sql: &str,
        timeout: Duration,
    ) -> Result<Served, Refusal> {
        self.outcome(self.begin_query(node, level, sql, timeout))
    }

    /// Waits for the outcome of something begun.
    ///
    /// # Errors
    ///
    /// What it was refused with.
    ///
    /// # Panics
    ///
    /// When it neither succeeds nor is refused.
    #[track_caller]
    pub fn outcome(&self, pending: Pending) -> Result<Served, Refusal> {
        let patient = async { tokio::time::timeout(PATIENCE * 2, pending).await };
        self.runtime
            .block_on(patient)
            .expect("a request ends after its time-out")
            .expect("requests do not panic")
    }

    /// Runs something of the test's own among the requests.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(task)
    }

    /// Waits for it.
    ///
    /// # Panics
    ///
    /// When it has panicked.
    #[track_caller]
    pub fn join<T>(&self, task: tokio::task::JoinHandle<T>) -> T {
        self.runtime.block_on(task).expect("tasks do not panic")
    }

    /// Cuts the leader off and puts a group into the air on it: it is in the leader's log, and the
    /// quorum knows nothing of it. `cut` says which links are cut. The lease must not end before
    /// the group is executed, so it has to be long where these tests run.
    ///
    /// # Panics
    ///
    /// When the group was refused.
    #[track_caller]
    pub fn take_off(&self, leader: usize, sql: &[&str], cut: impl FnOnce(&Links)) -> Pending {
        let before = self.status(leader).last_log_index;
        cut(&self.links);
        let pending = self.begin(leader, sql, PATIENCE);
        self.wait("the group to be in the leader's log", |cluster| {
            assert!(!pending.is_finished(), "the group never got into the air");
            match cluster.status(leader).last_log_index {
                index if index > before => Ok(()),
                index => Err(format!("the log ends at {index}")),
            }
        });
        pending
    }

    /// Waits until all running nodes have applied all that the leader has in its log.
    #[track_caller]
    pub fn wait_converged(&self) {
        self.wait("the nodes to apply the same entries", |cluster| {
            let leader = cluster.leader().ok_or("none leads")?;
            let end = cluster.status(leader).last_log_index;
            let running = (0..cluster.size()).filter(|&node| cluster.runs(node));
            let applied: Vec<u64> = running
                .map(|node| cluster.status(node).applied_index)
                .collect();
            if applied.iter().all(|&index| index == end) {
                Ok(())
            } else {
                Err(format!("applied {applied:?} of {end}"))
            }
        });
    }

    /// Waits until the nodes contain the same entries and checks that their images are equal byte
    /// for byte, that the hashes the nodes keep agree, and that SQLite finds the database sound.
    /// Returns a connection to a copy.
    ///
    /// # Panics
    ///
    /// When that is not so.
    #[track_caller]
    pub fn assert_identical(&self) -> rusqlite::Connection {
        self.wait_converged();
        let running = (0..self.size()).filter(|&node| self.runs(node));
        let images: Vec<_> = running.map(|node| (node, self.image(node))).collect();
        let (_, first) = &images[0];
        assert!(!first.bytes.is_empty(), "an empty image proves nothing");
        for (node, other) in &images {
            assert_eq!(first.data_index, other.data_index, "of node {}", node + 1);
            assert_eq!(first.hash, other.hash, "hash of node {}", node + 1);
            assert!(first.bytes == other.bytes, "bytes of node {}", node + 1);
            let status = self.status(*node);
            assert_eq!(status.out_of_service, None, "node {}", node + 1);
            assert_eq!(status.data_index, first.data_index, "node {}", node + 1);
        }
        self.open(first)
    }

    /// The database of a node.
    #[must_use]
    #[track_caller]
    pub fn image(&self, node: usize) -> FrozenImage {
        let node = self.node(node);
        self.runtime.block_on(async {
            let mut reader = node.image().await.expect("the database exists");
            let mut bytes = Vec::new();
            while let Some(run) = reader.next().await {
                bytes.extend_from_slice(&run.expect("the image can be read"));
            }
            FrozenImage {
                data_index: reader.data_index(),
                hash: reader.database_hash(),
                bytes,
            }
        })
    }

    fn open(&self, image: &FrozenImage) -> rusqlite::Connection {
        let dir = self.dir.as_ref().expect("given away only at the end");
        let file = tempfile::Builder::new()
            .suffix(".db")
            .tempfile_in(dir.path());
        let (_, file) = file
            .expect("a file can be made")
            .keep()
            .expect("it can be kept");
        std::fs::write(&file, &image.bytes).expect("the image can be written");
        let database = rusqlite::Connection::open(file).expect("the image can be opened");
        let verdict = database
            .query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
            .expect("the image can be checked");
        assert_eq!(verdict, "ok", "integrity_check");
        database
    }

    /// Repeats `attempt` until it succeeds.
    ///
    /// # Panics
    ///
    /// After a long time, with the last error.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, mut attempt: impl FnMut(&Self) -> Result<T, String>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match attempt(self) {
                Ok(found) => return found,
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                for node in (0..self.size()).filter(|&node| self.runs(node)) {
                    println!("{:#?}", self.status(node));
                }
                panic!("gave up waiting for {what}: {error}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for LinkedCluster {
    fn drop(&mut self) {
        for seat in &self.seats {
            let Some(node) = take(&seat.node) else {
                continue;
            };
            let close = async { tokio::time::timeout(Duration::from_secs(20), node.close()).await };
            if self.runtime.block_on(close).is_err() {
                // Dropping it would wait for the same thing without end.
                std::mem::forget(node);
            }
        }
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            println!("the data is kept in {}", dir.keep().display());
        }
    }
}

/// Whether the files or the port of a node are somebody else's for now.
fn is_held(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::WouldBlock,
        Error::Transport(error) => error.to_string().contains("in use"),
        _ => false,
    }
}

/// The life of a node that goes on now.
#[must_use]
pub fn current(node: &SharedNode) -> Option<Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn take(node: &SharedNode) -> Option<Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A request of these statements, each by itself.
#[must_use]
pub fn request(sql: &[&str], shape: Shape) -> Request {
    let statement = |sql: &&str| Statement {
        sql: (*sql).to_owned(),
        parameters: Vec::new(),
    };
    Request {
        statements: sql.iter().map(statement).collect(),
        transaction: false,
        shape,
        statement_time_max: None,
        qualify_columns: false,
    }
}

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
