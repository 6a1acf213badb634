//! The demo's nodes: child processes of this very program.

use std::fs::OpenOptions;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::DemoError;
use super::client::Client;

/// One node.
pub(super) struct Node {
    /// `-node-id`.
    pub(super) name: String,
    /// `-http-addr`.
    pub(super) http_addr: String,
    /// Where its stderr goes.
    pub(super) log_file: PathBuf,
    raft_addr: String,
    data_dir: PathBuf,
    join: Option<String>,
    child: Option<Child>,
}

/// Three nodes and a client.
pub(super) struct Cluster {
    nodes: Vec<Node>,
    client: Client,
    interrupted: Arc<AtomicBool>,
}

impl Node {
    /// Whether it was started and not killed.
    pub(super) fn running(&self) -> bool {
        self.child.is_some()
    }

    fn start(&mut self) -> Result<(), DemoError> {
        let failed = |source| DemoError::Io {
            what: format!("starting {}", self.name),
            source,
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log_file);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .arg("serve")
            .args(["-node-id", &self.name])
            .args(["-http-addr", &self.http_addr])
            .args(["-raft-addr", &self.raft_addr])
            .args(["-die-with-parent", &std::process::id().to_string()]);
        if let Some(join) = &self.join {
            command.args(["-join", join]);
        }
        command
            .arg(&self.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_err(failed)?)
            // Ctrl-C is for the demo, which then stops its nodes in order.
            .process_group(0);
        self.child = Some(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// How it ended, if it ended although nobody killed it.
    fn ended(&mut self) -> Option<DemoError> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(DemoError::NodeEnded {
            node: self.name.clone(),
            status: status.to_string(),
        })
    }

    /// SIGKILL, and the end of it.
    fn kill(&mut self) -> std::io::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        child.kill()?;
        child.wait().map(|_| ())
    }
}

impl Cluster {
    /// Chooses ports and directories; starts nothing yet.
    pub(super) fn prepare(dir: &Path, port_base: Option<u16>) -> Result<Self, DemoError> {
        let ports = match port_base {
            Some(base) => (base..)
                .step_by(2)
                .take(super::NODES)
                .map(|port| (port, port + 1))
                .collect(),
            None => free_ports(super::NODES).map_err(|source| DemoError::Io {
                what: "finding free ports".to_owned(),
                source,
            })?,
        };
        let mut nodes: Vec<Node> = Vec::new();
        for (number, (http, raft)) in (1..).zip(ports) {
            let name = format!("node{number}");
            nodes.push(Node {
                http_addr: format!("127.0.0.1:{http}"),
                raft_addr: format!("127.0.0.1:{raft}"),
                data_dir: dir.join(&name),
                log_file: dir.join(format!("{name}.log")),
                join: nodes.first().map(|first| first.raft_addr.clone()),
                child: None,
                name,
            });
        }
        Ok(Self {
            nodes,
            client: Client::new(),
            interrupted: watch_for_interrupts()?,
        })
    }

    /// Starts all nodes: the first one makes the cluster, the others join it.
    pub(super) fn start_all(&mut self) -> Result<(), DemoError> {
        for index in 0..self.nodes.len() {
            self.nodes[index].start()?;
            if index == 0 {
                // Its first election must be over before anyone can join.
                self.wait_for_leader(1)?;
            }
        }
        Ok(())
    }

    /// Starts one node again.
    pub(super) fn start(&mut self, name: &str) -> Result<(), DemoError> {
        let index = self.index_of(name);
        self.nodes[index].start()
    }

    /// Ends one node with SIGKILL.
    pub(super) fn kill(&mut self, name: &str) -> Result<(), DemoError> {
        let index = self.index_of(name);
        let what = format!("killing {name}");
        self.nodes[index]
            .kill()
            .map_err(|source| DemoError::Io { what, source })
    }

    /// Asks all nodes to end (SIGTERM), and kills those that have not after ten seconds.
    pub(super) fn stop(mut self) {
        for node in &self.nodes {
            if let Some(pid) = node.child.as_ref().map(rustix::process::Pid::from_child) {
                // It may have ended by itself: then there is nothing to ask.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        for node in &mut self.nodes {
            while let Some(child) = &mut node.child
                && matches!(child.try_wait(), Ok(None))
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = node.kill();
        }
    }

    /// All nodes, in order.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The client.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The HTTP address of a node.
    pub(super) fn address_of(&self, name: &str) -> String {
        self.nodes[self.index_of(name)].http_addr.clone()
    }

    /// The HTTP address of a node that is not the one named.
    pub(super) fn address_other_than(&self, name: &str) -> String {
        let other = self.nodes.iter().find(|node| node.name != name);
        other.expect("there are three nodes").http_addr.clone()
    }

    /// Waits until a leader reaches so many nodes, and returns its name.
    pub(super) fn wait_for_leader(&mut self, reachable: usize) -> Result<String, DemoError> {
        let running: Vec<String> = self
            .nodes
            .iter()
            .filter(|node| node.running())
            .map(|node| node.http_addr.clone())
            .collect();
        self.wait("a leader that reaches the nodes", |client| {
            let asked = running
                .iter()
                .map(|address| client.leader(address, reachable));
            asked
                .reduce(Result::or)
                .unwrap_or_else(|| Err("no node is running".to_owned()))
        })
    }

    /// Waits until a node has caught up with its leader.
    pub(super) fn wait_for_ready(&mut self, name: &str) -> Result<(), DemoError> {
        let address = self.address_of(name);
        self.wait("the node to catch up", |client| client.ready(&address))
    }

    /// Runs statements in one transaction, once.
    pub(super) fn execute(&self, address: &str, statements: &[String]) -> Result<(), DemoError> {
        self.client
            .execute(address, statements, Duration::from_secs(30))
            .map_err(|error| {
                DemoError::Refused(format!("a write through {address} failed: {error}"))
            })
    }

    /// Repeats `attempt` until it succeeds.
    ///
    /// # Errors
    ///
    /// After 30 seconds, at Ctrl-C, and as soon as a node ends by itself.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&Client) -> Result<T, String>,
    ) -> Result<T, DemoError> {
        let deadline = Instant::now() + WAIT;
        loop {
            let last = match attempt(&self.client) {
                Ok(found) => return Ok(found),
                Err(last) => last,
            };
            self.pause(Duration::from_millis(20))?;
            if Instant::now() >= deadline {
                let what = what.to_owned();
                return Err(DemoError::TimedOut {
                    what,
                    seconds: WAIT.as_secs(),
                    last,
                });
            }
        }
    }

    /// Does nothing for a moment, and notices when there is a reason to end.
    pub(super) fn pause(&mut self, length: Duration) -> Result<(), DemoError> {
        std::thread::sleep(length);
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        match self.nodes.iter_mut().find_map(Node::ended) {
            Some(ended) => Err(ended),
            None => Ok(()),
        }
    }

    /// The last lines of every node's log.
    pub(super) fn log_tails(&self) -> Vec<(String, String)> {
        let tail = |node: &Node| {
            let log = std::fs::read(&node.log_file).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            (
                node.name.clone(),
                lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"),
            )
        };
        self.nodes.iter().map(tail).collect()
    }

    fn index_of(&self, name: &str) -> usize {
        let index = self.nodes.iter().position(|node| node.name == name);
        index.expect("names come from the nodes themselves")
    }
}

/// Pairs of ports, TCP for HTTP and UDP for Raft, that were free a moment ago. They lie below
/// those that systems give to outgoing connections: one of these could take the port before the
/// node does. All are held until the last is found, so that none is found twice.
fn free_ports(pairs: usize) -> std::io::Result<Vec<(u16, u16)>> {
    let mut held = Vec::new();
    let mut attempts = 1000;
    while held.len() < pairs {
        let mut bytes = [0; 2];
        getrandom::fill(&mut bytes).map_err(|failed| std::io::Error::other(failed.to_string()))?;
        let port = 12_000 + u16::from_le_bytes(bytes) % 20_000;
        let sockets = TcpListener::bind(("127.0.0.1", port)).and_then(|http| {
            let raft = UdpSocket::bind(("127.0.0.1", port + 1))?;
            Ok((http, raft))
        });
        match sockets {
            Ok(sockets) => held.push((port, sockets)),
            Err(source) if attempts == 0 => return Err(source),
            Err(_) => attempts -= 1,
        }
    }
    Ok(held.iter().map(|(port, _)| (*port, port + 1)).collect())
}

/// A flag that is set by SIGINT and SIGTERM.
fn watch_for_interrupts() -> Result<Arc<AtomicBool>, DemoError> {
    let failed = |source| DemoError::Io {
        what: "watching for Ctrl-C".to_owned(),
        source,
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        (interrupt, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let watch = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        flag.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map_err(failed)?;
    Ok(interrupted)
}

/// How long anything may take before the demo gives up: far longer than it should.
const WAIT: Duration = Duration::from_secs(30);

/// Lines of each log that are shown after a failure.
const LOG_LINES: usize = 15;
