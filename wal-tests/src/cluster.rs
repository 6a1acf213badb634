//! Clusters of real `wallaby` processes on loopback: start, stop, kill, pause, and wait for.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::client::{Client, Image};
use crate::ports;
use crate::process::{self, Process, Setting, Signal};

/// How a cluster comes into being.
#[derive(Clone, Debug)]
pub enum Formation {
    /// All nodes start at once with `-bootstrap-expect`.
    Expect,
    /// The first node starts alone; the others `-join` it.
    Join,
    /// All nodes start at once, and find each other by what their flags say.
    Found,
}

/// Nodes, their directory and a client.
pub struct ProcessCluster {
    nodes: Vec<Node>,
    /// Something other than `wallaby` that takes the same arguments.
    binary: Option<PathBuf>,
    setting: Setting,
    client: Client,
    /// `None` once given away to be kept.
    dir: Option<tempfile::TempDir>,
}

struct Node {
    name: String,
    http_addr: String,
    data_dir: PathBuf,
    log_file: PathBuf,
    arguments: Vec<String>,
    /// Where it runs, unless it is where the test does.
    namespace: Option<String>,
    process: Option<Process>,
    paused: bool,
}

impl ProcessCluster {
    /// Ports, directories and command lines for `nodes` nodes, none of them running. `flags` go to
    /// every node.
    ///
    /// # Panics
    ///
    /// When there are no free ports or no temporary directory.
    #[must_use]
    pub fn prepare(nodes: usize, formation: &Formation, flags: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("wallaby-test-").tempdir();
        let dir = dir.expect("a temporary directory can be made");
        let ports = ports::reserve(2 * nodes);
        let ports: Vec<(u16, u16)> = ports.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let raft: Vec<String> = ports
            .iter()
            .map(|(_, raft)| format!("127.0.0.1:{raft}"))
            .collect();
        let node = |index: usize| {
            let name = format!("node{}", index + 1);
            let http_addr = format!("127.0.0.1:{}", ports[index].0);
            let data_dir = dir.path().join(&name);
            let mut arguments: Vec<String> = [
                "-node-id",
                &name,
                "-http-addr",
                &http_addr,
                "-raft-addr",
                &raft[index],
            ]
            .map(str::to_owned)
            .into();
            match formation {
                Formation::Expect => {
                    let expect = nodes.to_string();
                    let join = raft.join(",");
                    arguments
                        .extend(["-bootstrap-expect", &expect, "-join", &join].map(str::to_owned));
                }
                Formation::Join if index > 0 => {
                    arguments.extend(["-join", &raft[0]].map(str::to_owned));
                }
                Formation::Join | Formation::Found => {}
            }
            arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
            arguments.push(data_dir.display().to_string());
            let log_file = dir.path().join(format!("{name}.log"));
            Node {
                name,
                http_addr,
                data_dir,
                log_file,
                arguments,
                namespace: None,
                process: None,
                paused: false,
            }
        };
        let nodes = (0..nodes).map(node).collect();
        Self {
            nodes,
            binary: None,
            setting: Setting::default(),
            client: Client::new(Duration::from_secs(10)),
            dir: Some(dir),
        }
    }

    /// A running cluster of which every node is ready.
    #[must_use]
    pub fn start(nodes: usize, formation: &Formation, flags: &[&str]) -> Self {
        let mut cluster = Self::prepare(nodes, formation, flags);
        cluster.start_all(formation);
        cluster
    }

    /// Starts every node for the first time and waits until all are ready.
    pub fn start_all(&mut self, formation: &Formation) {
        for node in 0..self.size() {
            self.start_node(node);
            if matches!(formation, Formation::Join) {
                self.wait_ready(node);
            }
        }
        self.wait_all_ready();
        self.wait_leader();
    }

    /// Runs this binary in place of `wallaby`, from the next start of each node on.
    pub fn use_binary(&mut self, binary: &Path) {
        self.binary = Some(binary.to_owned());
    }

    /// Gives the nodes these surroundings from their next start on; see [`Setting::surroundings`].
    pub fn surround(&mut self, dir: &Path) {
        self.setting.surroundings = Some(dir.to_owned());
    }

    /// Sets a variable for the nodes from their next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        let variable = (name.to_owned(), value.to_owned());
        self.setting.environment.push(variable);
    }

    /// Starts a node, for the first time or again: same ports, same directory.
    pub fn start_node(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        assert!(node.process.is_none(), "{} is running already", node.name);
        let binary = self.binary.as_deref().unwrap_or_else(|| process::binary());
        node.process = Some(Process::start_in(
            binary,
            &node.arguments,
            &node.log_file,
            &Setting {
                namespace: node.namespace.clone(),
                ..self.setting.clone()
            },
        ));
        node.paused = false;
    }

    /// Asks a node to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self, node: usize) -> ExitStatus {
        let mut process = self.nodes[node]
            .process
            .take()
            .expect("the node is running");
        process.signal(Signal::TERM);
        process.wait(PATIENCE)
    }

    /// Asks a node to end (SIGTERM) and does not wait; see [`Self::wait_end`].
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn terminate(&mut self, node: usize) {
        let process = self.nodes[node].process.as_ref();
        process.expect("the node is running").signal(Signal::TERM);
    }

    /// Ends a node with SIGKILL.
    pub fn kill(&mut self, node: usize) {
        let mut process = self.nodes[node]
            .process
            .take()
            .expect("the node is running");
        process.signal(Signal::KILL);
        process.wait(PATIENCE);
    }

    /// Stops a node in its tracks (SIGSTOP): no thread runs, connections stay open.
    pub fn pause(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.process
            .as_ref()
            .expect("the node is running")
            .signal(Signal::STOP);
        node.paused = true;
    }

    /// Lets a paused node go on (SIGCONT).
    pub fn resume(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.process
            .as_ref()
            .expect("the node is running")
            .signal(Signal::CONT);
        node.paused = false;
    }

    /// Waits until a node that was started ends by itself.
    pub fn wait_end(&mut self, node: usize) -> ExitStatus {
        let mut process = self.nodes[node]
            .process
            .take()
            .expect("the node was started");
        process.wait(PATIENCE)
    }

    /// Whether a node that was started has ended by itself.
    pub fn has_ended(&mut self, node: usize) -> bool {
        let process = self.nodes[node].process.as_mut();
        process.is_none_or(|process| process.ended().is_some())
    }

    /// How many nodes there are, running or not.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the node is running and not paused.
    #[must_use]
    pub fn serving(&self, node: usize) -> bool {
        self.nodes[node].process.is_some() && !self.nodes[node].paused
    }

    /// The HTTP address of a node.
    #[must_use]
    pub fn address(&self, node: usize) -> &str {
        &self.nodes[node].http_addr
    }

    /// The HTTP addresses of all nodes.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| node.http_addr.clone())
            .collect()
    }

    /// The data directory of a node.
    #[must_use]
    pub fn data_dir(&self, node: usize) -> &Path {
        &self.nodes[node].data_dir
    }

    /// The command line of a node, for a test that wants to change it.
    pub fn arguments(&mut self, node: usize) -> &mut Vec<String> {
        &mut self.nodes[node].arguments
    }

    /// The value of a flag on the command line of a node.
    ///
    /// # Panics
    ///
    /// When it is not there.
    #[must_use]
    pub fn flag(&self, node: usize, flag: &str) -> &str {
        let arguments = &self.nodes[node].arguments;
        let place = arguments.iter().position(|argument| argument == flag);
        &arguments[place.expect("the flag was given") + 1]
    }

    /// Gives a node that is not running other addresses.
    pub fn move_node(&mut self, node: usize) {
        let ports = ports::reserve(2);
        let [http, raft] = [ports[0], ports[1]].map(|port| format!("127.0.0.1:{port}"));
        self.settle(node, &http, &raft);
    }

    /// Moves a node that is not running into a network namespace, to addresses that are there.
    pub fn settle_in(&mut self, node: usize, namespace: &str, http_addr: &str, raft_addr: &str) {
        self.settle(node, http_addr, raft_addr);
        self.nodes[node].namespace = Some(namespace.to_owned());
    }

    fn settle(&mut self, node: usize, http_addr: &str, raft_addr: &str) {
        let node = &mut self.nodes[node];
        assert!(node.process.is_none(), "{} is running", node.name);
        for (flag, value) in [("-http-addr", http_addr), ("-raft-addr", raft_addr)] {
            let place = node.arguments.iter().position(|argument| argument == flag);
            let place = place.expect("every node has this flag");
            value.clone_into(&mut node.arguments[place + 1]);
        }
        http_addr.clone_into(&mut node.http_addr);
    }

    /// The id of a running node's process.
    ///
    /// # Panics
    ///
    /// When it is not running.
    #[must_use]
    pub fn process_id(&self, node: usize) -> u32 {
        let process = self.nodes[node].process.as_ref();
        process.expect("the node is running").id()
    }

    /// All that a node has logged so far.
    #[must_use]
    pub fn log_text(&self, node: usize) -> String {
        let log = std::fs::read(&self.nodes[node].log_file).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The client that the cluster itself uses: patient.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The leader, as the nodes that serve see it; of several opinions, the highest term's.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let client = Client::new(Duration::from_secs(1));
        let mut found = None;
        for node in (0..self.size()).filter(|&node| self.serving(node)) {
            let Ok(status) = client.json(self.address(node), "/status") else {
                continue;
            };
            let raft = &status["store"]["raft"];
            let term = number(&raft["term"])
                .or_else(|| number(&raft["current_term"]))
                .unwrap_or(0);
            if raft["state"] == "Leader" && found.is_none_or(|(highest, _)| term > highest) {
                found = Some((term, node));
            }
        }
        found.map(|(_, node)| node)
    }

    /// Waits for a leader and returns it.
    #[track_caller]
    pub fn wait_leader(&mut self) -> usize {
        self.wait("a leader", |cluster| {
            cluster.leader().ok_or_else(|| "none".to_owned())
        })
    }

    /// Waits for a leader that is not this node.
    #[track_caller]
    pub fn wait_leader_other_than(&mut self, old: usize) -> usize {
        self.wait("another leader", |cluster| match cluster.leader() {
            Some(leader) if leader != old => Ok(leader),
            other => Err(format!("{other:?}")),
        })
    }

    /// Waits until a node has caught up with its leader.
    #[track_caller]
    pub fn wait_ready(&mut self, node: usize) {
        let client = Client::new(Duration::from_secs(2));
        self.wait(&format!("node {} to be ready", node + 1), |cluster| {
            let response = client.get(cluster.address(node), "/readyz?sync&timeout=2s");
            let response = response.map_err(|error| error.to_string())?;
            if response.status == 200 {
                Ok(())
            } else {
                Err(response.body)
            }
        });
    }

    /// Waits until all running nodes are ready.
    #[track_caller]
    pub fn wait_all_ready(&mut self) {
        for node in 0..self.size() {
            if self.serving(node) {
                self.wait_ready(node);
            }
        }
    }

    /// Waits until all running nodes contain the same last data entry, and returns their images.
    #[track_caller]
    pub fn wait_converged(&mut self) -> Vec<Image> {
        self.wait("the nodes to contain the same entries", |cluster| {
            let serving = (0..cluster.size()).filter(|&node| cluster.serving(node));
            let fetched = serving.map(|node| cluster.client.image(cluster.address(node)));
            let images = fetched.collect::<Result<Vec<_>, _>>()?;
            let indexes: Vec<u64> = images.iter().map(|image| image.data_index).collect();
            if indexes.iter().any(|&index| index != indexes[0]) {
                return Err(format!("data indexes {indexes:?}"));
            }
            Ok(images)
        })
    }

    /// Waits until the running nodes contain the same entries and checks that their images are
    /// equal byte for byte, and that SQLite finds the image sound. Returns it.
    #[track_caller]
    pub fn assert_identical(&mut self) -> Image {
        let mut images = self.wait_converged();
        let first = images.swap_remove(0);
        assert!(!first.bytes.is_empty(), "an empty image proves nothing");
        for other in &images {
            assert_eq!(first.bytes.len(), other.bytes.len(), "bytes of the images");
            let differs = first
                .bytes
                .iter()
                .zip(&other.bytes)
                .position(|(a, b)| a != b);
            if let Some(offset) = differs {
                panic!(
                    "the images differ in page {}",
                    offset / first.page_bytes + 1
                );
            }
            assert_eq!(first.hash, other.hash, "equal images with different hashes");
        }
        self.check_integrity(&first);
        first
    }

    /// Opens the image as a file and returns the connection.
    ///
    /// # Panics
    ///
    /// When SQLite cannot open it.
    #[must_use]
    pub fn open(&self, image: &Image) -> rusqlite::Connection {
        let dir = self
            .dir
            .as_ref()
            .expect("the directory is given away only at the end");
        let file = dir.path().join("image.db");
        for old in [
            file.clone(),
            dir.path().join("image.db-wal"),
            dir.path().join("image.db-shm"),
        ] {
            // Left over from the image before, or not there.
            let _ = std::fs::remove_file(old);
        }
        std::fs::write(&file, &image.bytes).expect("the image can be written");
        rusqlite::Connection::open(file).expect("the image can be opened")
    }

    #[track_caller]
    fn check_integrity(&self, image: &Image) {
        let database = self.open(image);
        let verdict = database
            .query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
            .expect("the image can be checked");
        assert_eq!(verdict, "ok", "integrity_check");
    }

    /// Waits until a node has logged this text; whether it then ends or goes on does not matter.
    #[track_caller]
    pub fn wait_log(&self, node: usize, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log_text(node).contains(text) {
            assert!(
                Instant::now() < deadline,
                "the log of node {} lacks {text:?}",
                node + 1
            );
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Checks that no node has panicked, and none lost its database under what it applied.
    #[track_caller]
    pub fn assert_healthy_logs(&self) {
        for node in 0..self.size() {
            let log = self.log_text(node);
            let bad = log
                .lines()
                .find(|line| BAD_SIGNS.iter().any(|sign| line.contains(sign)));
            assert_eq!(bad, None, "in the log of {}", self.nodes[node].name);
        }
    }

    /// Repeats `attempt` until it succeeds.
    ///
    /// # Panics
    ///
    /// After a long time, with the last error.
    #[track_caller]
    pub fn wait<T>(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&Self) -> Result<T, String>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match attempt(self) {
                Ok(found) => return found,
                Err(error) => error,
            };
            for node in &mut self.nodes {
                if let Some(status) = node.process.as_mut().and_then(Process::ended) {
                    panic!(
                        "{} ended by itself ({status}) while waiting for {what}",
                        node.name
                    );
                }
            }
            assert!(
                Instant::now() < deadline,
                "gave up waiting for {what}: {error}"
            );
            std::thread::sleep(Duration::from_millis(25));
        }
    }
}

impl Drop for ProcessCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.process = None;
        }
        let failed = std::thread::panicking();
        if failed {
            for node in 0..self.size() {
                let log = self.log_text(node);
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                println!(
                    "--- the end of the log of {} ---\n{tail}",
                    self.nodes[node].name
                );
            }
        }
        if (failed || std::env::var_os("WAL_KEEP").is_some())
            && let Some(dir) = self.dir.take()
        {
            println!("logs and data are kept in {}", dir.keep().display());
        }
    }
}

/// A number that rqlite's `/status` gives as a number or as a text.
fn number(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// How long anything may take before a test gives up: far longer than it should on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What no log of a node may say.
const BAD_SIGNS: [&str; 3] = [
    "panicked",
    "RUST_BACKTRACE",
    "applying the log failed: the owner thread has ended",
];

/// Lines of each log that are shown after a failure.
const LOG_LINES: usize = 40;
