//! The nodes and files that a behaviour is played with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use wal_tests::cluster::{Formation, ProcessCluster};

use crate::answer::Answer;
use crate::call::Call;
use crate::pattern::Names;
use crate::script::Behaviour;

/// Nodes, their roles, and what is known.
pub(crate) struct Stage {
    cluster: ProcessCluster,
    operator: Option<String>,
    /// Node by name: numbers from 1, and the roles.
    roles: BTreeMap<String, usize>,
    pub(crate) names: Names,
    /// Contents of files by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    dir: tempfile::TempDir,
}

/// What every test finds in its table `foo`.
const FIXTURE: [&str; 2] = [
    "[\"CREATE TABLE foo (id INTEGER NOT NULL PRIMARY KEY, name TEXT, age INTEGER)\"]",
    "[[\"INSERT INTO foo(name,age) VALUES(?,?)\",\"fiona\",20],\
      [\"INSERT INTO foo(name,age) VALUES(?,?)\",\"declan\",null]]",
];

impl Stage {
    /// Sets up what the behaviour asks for; `None` if that is nothing.
    pub(crate) fn set_up(behaviour: &Behaviour) -> Result<Option<Self>, String> {
        let wanted = behaviour.setup.as_deref().unwrap_or_default();
        let (nodes, fixture) = match wanted.strip_suffix(", fixture F") {
            Some(nodes) => (nodes, true),
            None if wanted == "fixture F" => ("fresh", true),
            None => (wanted, false),
        };
        let stopped = nodes.strip_prefix("stopped ").map(str::parse::<usize>);
        let (count, formation) = match (nodes, stopped) {
            ("none", _) => return Ok(None),
            ("fresh", _) => (1, Formation::Join),
            ("cluster", _) => (3, Formation::Expect),
            ("joined", _) => (3, Formation::Join),
            (_, Some(Ok(count))) => (count, Formation::Join),
            _ => return Err(format!("`{wanted}` is no set-up")),
        };
        let mut stage = Self {
            cluster: ProcessCluster::prepare(count, &formation, &[]),
            operator: behaviour.operator.clone(),
            roles: BTreeMap::new(),
            names: Names::new(),
            files: BTreeMap::new(),
            dir: tempfile::tempdir().map_err(|error| error.to_string())?,
        };
        if nodes.starts_with("stopped ") {
            for node in 1..count {
                stage.remove_flag(node, "-join");
            }
        }
        stage.learn();
        if matches!(nodes, "cluster" | "joined") {
            (0..count).for_each(|node| stage.add_flags(node, CALM));
        }
        for (name, content) in &behaviour.files {
            let content = content.text(&stage.names)?;
            stage.keep(name, content.into_bytes())?;
        }
        for (which, flags) in &behaviour.flags {
            let flags = flags.text(&stage.names)?;
            let nodes = which.map_or(0..count, |node| node - 1..node);
            nodes.for_each(|node| stage.add_flags(node, &flags));
        }
        if nodes.starts_with("stopped ") {
            stage.roles.insert("L".to_owned(), 0);
            return Ok(Some(stage));
        }
        for node in 0..count {
            stage.cluster.start_node(node);
            if matches!(formation, Formation::Join) {
                stage.wait_ready(node, PATIENCE)?;
            }
        }
        for node in 0..count {
            stage.wait_ready(node, PATIENCE)?;
        }
        stage.find_leader(PATIENCE)?;
        if fixture {
            stage.fill()?;
        }
        Ok(Some(stage))
    }

    fn fill(&self) -> Result<(), String> {
        let leader = self.node("L")?;
        for body in FIXTURE {
            let mut call = Call::get("/db/execute");
            "POST".clone_into(&mut call.method);
            call.body = Some(body.as_bytes().to_vec());
            let answer = self.as_operator(leader, call)?;
            if answer.status != 200 || answer.text().contains("error") {
                return Err(format!("fixture: {} {}", answer.status, answer.text()));
            }
        }
        Ok(())
    }

    /// The node of a name.
    pub(crate) fn node(&self, name: &str) -> Result<usize, String> {
        let by_number = name.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        let by_number = by_number.filter(|&node| node < self.cluster.size());
        let node = by_number.or_else(|| self.roles.get(name).copied());
        node.ok_or_else(|| format!("there is no node {name}"))
    }

    /// The HTTP address of a node, which may have moved.
    pub(crate) fn address(&self, node: usize) -> &str {
        let learned = self.names.get(&format!("{}.http", node + 1));
        learned.map_or(self.cluster.address(node), String::as_str)
    }

    pub(crate) fn has_users(&self) -> bool {
        self.operator.is_some()
    }

    /// Sends a call with the runner's own credentials.
    fn as_operator(&self, node: usize, call: Call) -> Result<Answer, String> {
        let call = call.with_credentials(self.operator.as_deref());
        call.send(self.address(node))
    }

    /// Keeps bytes as a file under a name.
    pub(crate) fn keep(&mut self, name: &str, content: Vec<u8>) -> Result<(), String> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, &content).map_err(|error| error.to_string())?;
        self.names
            .insert(name.to_owned(), path.display().to_string());
        self.files.insert(name.to_owned(), content);
        Ok(())
    }

    /// Has SQLite make a database.
    pub(crate) fn make_database(&mut self, name: &str, sql: &str) -> Result<(), String> {
        let path = self.dir.path().join(name);
        let database = rusqlite::Connection::open(&path).map_err(|error| error.to_string())?;
        database
            .execute_batch(sql)
            .map_err(|error| error.to_string())?;
        drop(database);
        let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
        self.keep(name, bytes)
    }

    pub(crate) fn in_data_dir(&self, node: usize, path: &str) -> PathBuf {
        self.cluster.data_dir(node).join(path)
    }

    pub(crate) fn start(&mut self, node: usize, flags: Option<&str>) {
        if let Some(flags) = flags {
            self.add_flags(node, flags);
        }
        self.cluster.start_node(node);
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.cluster.kill(node);
    }

    pub(crate) fn stop(&mut self, node: usize) -> Result<(), String> {
        let status = self.cluster.stop(node);
        if status.success() {
            return Ok(());
        }
        Err(format!("node {} ended with {status}", node + 1))
    }

    /// Stops all nodes that run, then starts all of them.
    pub(crate) fn restart_all(&mut self, patience: Duration) -> Result<(), String> {
        for node in 0..self.cluster.size() {
            if self.cluster.serving(node) {
                self.stop(node)?;
            }
        }
        for node in 0..self.cluster.size() {
            self.cluster.start_node(node);
        }
        for node in 0..self.cluster.size() {
            self.wait_ready(node, patience)?;
        }
        self.find_leader(patience)
    }

    pub(crate) fn identical(&mut self) {
        let _ = self.cluster.assert_identical();
    }

    /// Gives a node other ports.
    pub(crate) fn move_node(&mut self, node: usize) {
        let mut other = ProcessCluster::prepare(1, &Formation::Join, &[]);
        for flag in ["-http-addr", "-raft-addr"] {
            let address = value_of(other.arguments(0), flag);
            self.remove_flag(node, flag);
            self.add_flags(node, &format!("{flag} {address}"));
        }
        self.learn();
    }

    /// Waits until the node has ended with an error, having logged this.
    pub(crate) fn ends(
        &mut self,
        node: usize,
        saying: &str,
        patience: Duration,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while !self.cluster.has_ended(node) {
            if Instant::now() > deadline {
                return Err(format!("node {} goes on", node + 1));
            }
            std::thread::sleep(PAUSE);
        }
        let status = self.cluster.wait_end(node);
        let log = self.cluster.log_text(node);
        if status.success() || !log.contains(saying) {
            return Err(format!("it ended with {status}, having logged\n{log}"));
        }
        Ok(())
    }

    pub(crate) fn wait_ready(&mut self, node: usize, patience: Duration) -> Result<(), String> {
        let what = format!("node {} to be ready", node + 1);
        self.wait(&what, patience, |stage| {
            let answer = stage.as_operator(node, Call::get("/readyz?sync&timeout=2s"))?;
            if answer.status == 200 {
                return Ok(());
            }
            Err(format!("{} {}", answer.status, answer.text()))
        })
    }

    /// Waits for a leader and gives the roles.
    pub(crate) fn find_leader(&mut self, patience: Duration) -> Result<(), String> {
        let leader = self.wait("a leader", patience, |stage| {
            let mut found = None;
            for node in (0..stage.cluster.size()).filter(|&node| stage.cluster.serving(node)) {
                let call = Call::get("/status?key=store.raft");
                let status = stage.as_operator(node, call)?;
                let raft: Value = serde_json::from_slice(&status.body)
                    .map_err(|_| format!("/status: {}", status.text()))?;
                // rqlite gives the term as a text.
                let term = raft["term"].to_string();
                let term: u64 = term.trim_matches('"').parse().unwrap_or(0);
                if raft["state"] == "Leader" && found.is_none_or(|(highest, _)| term > highest) {
                    found = Some((term, node));
                }
            }
            found.map(|(_, node)| node).ok_or_else(|| "none".to_owned())
        })?;
        let others = (0..self.cluster.size()).filter(|&node| node != leader);
        let mut others: Vec<usize> = others.collect();
        others.sort_by_key(|&node| !self.cluster.serving(node));
        let nodes = std::iter::once(leader).chain(others);
        self.roles = ["L", "S", "T"]
            .map(str::to_owned)
            .into_iter()
            .zip(nodes)
            .collect();
        self.learn();
        Ok(())
    }

    fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut attempt: impl FnMut(&Self) -> Result<T, String>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + patience;
        loop {
            let error = match attempt(self) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            for node in 0..self.cluster.size() {
                if self.cluster.serving(node) && self.cluster.has_ended(node) {
                    let log = self.cluster.log_text(node);
                    let lines: Vec<&str> = log.lines().collect();
                    let end = lines[lines.len().saturating_sub(5)..].join("\n");
                    return Err(format!(
                        "node {} ended, waiting for {what}: {end}",
                        node + 1
                    ));
                }
            }
            if Instant::now() > deadline {
                return Err(format!("gave up waiting for {what}: {error}"));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Puts the addresses of the nodes under their names.
    fn learn(&mut self) {
        let numbers = (0..self.cluster.size()).map(|node| ((node + 1).to_string(), node));
        let roles = self.roles.clone();
        for (name, node) in numbers.chain(roles) {
            let arguments = self.cluster.arguments(node);
            for (what, flag) in [
                ("http", "-http-addr"),
                ("raft", "-raft-addr"),
                ("name", "-node-id"),
            ] {
                let value = value_of(arguments, flag);
                self.names.insert(format!("{name}.{what}"), value);
            }
        }
    }

    /// Adds flags before the data directory.
    fn add_flags(&mut self, node: usize, flags: &str) {
        let arguments = self.cluster.arguments(node);
        let place = arguments.len() - 1;
        let flags = flags.split(' ').map(str::to_owned);
        arguments.splice(place..place, flags);
    }

    fn remove_flag(&mut self, node: usize, flag: &str) {
        let arguments = self.cluster.arguments(node);
        if let Some(place) = arguments.iter().position(|argument| argument == flag) {
            arguments.drain(place..place + 2);
        }
    }
}

fn value_of(arguments: &[String], flag: &str) -> String {
    let place = arguments.iter().position(|argument| argument == flag);
    arguments[place.expect("every node has this flag") + 1].clone()
}

/// Elections that a busy machine does not cause: a leader that changes by itself would be taken for
/// a wrong answer.
const CALM: &str = "-raft-election-timeout 1500ms";

/// Far longer than anything should take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(25);
