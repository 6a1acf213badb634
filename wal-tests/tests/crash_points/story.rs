//! Stories: what real nodes do to their files while a client writes, with every step acknowledged,
//! and what each node must have at each moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use wal_tests::client::{Client, Outcome};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::raw;
use wal_tests::trace::{self, Event};
use wallaby::node::NodeOptions;
use wallaby::wal::DatabaseHash;

use crate::oracle::{Expectation, Hashes};

const BINARY: &str = env!("CARGO_BIN_EXE_node_with_faults");

/// Small enough that a few writes make a checkpoint, a new segment, a purge, or several parts.
pub(crate) const SEGMENT_BYTES: u64 = 262_144;
const FLAGS: [&str; 12] = [
    // A busy machine may not run a node for a while.
    "-raft-election-timeout",
    "1000ms",
    "-raft-snap-wal-size",
    "65536",
    "-log-segment",
    "262144",
    "-log-tail",
    "0",
    "-entry-bytes",
    "131072",
    "-spool-bytes",
    "65536",
];

/// What one node did, and what it must have.
#[derive(Clone)]
pub(crate) struct Tale {
    /// Which node of which story.
    pub(crate) name: String,
    /// The node's name.
    pub(crate) node: String,
    /// All that it did to its files, each event with the length of the trace after it.
    pub(crate) events: Vec<(Event, u64)>,
    /// From this length of the trace on this is expected.
    pub(crate) moments: Vec<(u64, Expectation)>,
    /// The database after each data entry.
    pub(crate) hashes: Hashes,
}

impl Tale {
    /// What the node must have when its trace is so long.
    pub(crate) fn expected_at(&self, length: u64) -> Expectation {
        let earlier = self.moments.partition_point(|(from, _)| *from <= length);
        let found = earlier.checked_sub(1).map(|last| &self.moments[last].1);
        found.cloned().unwrap_or_default()
    }

    /// The options of this node for a directory that is not where it was.
    pub(crate) fn options(&self, data_dir: PathBuf) -> NodeOptions {
        let nowhere = "127.0.0.1:1".to_owned();
        let mut options = NodeOptions::new(data_dir, nowhere.clone(), nowhere);
        options.name = Some(self.node.clone());
        options.log_segment_bytes = SEGMENT_BYTES;
        options.spool_bytes_max = 65_536;
        options.open_wait = Duration::ZERO;
        options
    }
}

/// A cluster whose nodes are recorded while a client writes, one request at a time.
pub(crate) struct Stage {
    pub(crate) cluster: ProcessCluster,
    story: &'static str,
    client: Client,
    /// The same statements, in plain SQLite.
    shadow: Connection,
    hashes: Hashes,
    last: u64,
    moments: BTreeMap<usize, Vec<(u64, Expectation)>>,
    /// Nodes without which nothing is acknowledged.
    pub(crate) needed: Vec<usize>,
    /// Whether there is a second voter, where that is certain.
    pub(crate) other_votes: Option<bool>,
    has_fault: bool,
    dir: tempfile::TempDir,
}

impl Stage {
    /// Starts the first node alone. `fault` is for `WAL_FAULT`.
    pub(crate) fn prepare(story: &'static str, nodes: usize, fault: Option<&str>) -> Self {
        let mut cluster = ProcessCluster::prepare(nodes, &Formation::Join, &FLAGS);
        cluster.use_binary(Path::new(BINARY));
        cluster.set_variable("WAL_TRACE", "1");
        if let Some(fault) = fault {
            cluster.set_variable("WAL_FAULT", fault);
        }
        Self {
            cluster,
            story,
            client: Client::new(Duration::from_secs(10)),
            shadow: Connection::open_in_memory().unwrap(),
            hashes: BTreeMap::from([(0, DatabaseHash::default())]),
            last: 0,
            moments: (0..nodes).map(|node| (node, Vec::new())).collect(),
            needed: vec![0],
            other_votes: Some(false),
            has_fault: fault.is_some(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn trace_file(&self, node: usize) -> PathBuf {
        self.cluster.data_dir(node).with_extension("trace")
    }

    fn trace_length(&self, node: usize) -> u64 {
        let found = std::fs::metadata(self.trace_file(node));
        found.map_or(0, |found| found.len())
    }

    /// From now on each node must have `floor` if it is needed, and may have `ceiling`.
    fn mark(&mut self, lengths: &[u64], floor: u64, ceiling: u64) {
        for (node, moments) in &mut self.moments {
            let before = moments.last().map_or(0, |(_, before)| before.floor);
            let is_needed = self.needed.contains(node);
            let expected = Expectation {
                floor: if is_needed { floor } else { before },
                ceiling,
                other_votes: if is_needed { self.other_votes } else { None },
            };
            moments.push((lengths[*node], expected));
        }
    }

    fn lengths(&self) -> Vec<u64> {
        (0..self.cluster.size())
            .map(|node| self.trace_length(node))
            .collect()
    }

    /// Something that is not a write happens: the expectation is the same before and after it, save
    /// for what `change` says afterwards.
    pub(crate) fn turn<T>(
        &mut self,
        work: impl FnOnce(&mut ProcessCluster) -> T,
        change: impl FnOnce(&mut Self),
    ) -> T {
        let settled = self.other_votes.take();
        let lengths = self.lengths();
        self.mark(&lengths, self.last, self.last);
        let result = work(&mut self.cluster);
        self.other_votes = settled;
        change(self);
        let lengths = self.lengths();
        self.mark(&lengths, self.last, self.last);
        result
    }

    /// Waits for the first node and takes the state that it begins with.
    pub(crate) fn begin(&mut self) {
        // The genesis is a write that nobody is told of.
        self.mark(&vec![0; self.cluster.size()], 0, 1_000);
        self.cluster.start_node(0);
        self.cluster.wait_ready(0);
        let _ = self.take_image();
        let lengths = self.lengths();
        self.mark(&lengths, self.last, self.last);
    }

    /// One write, told by `act`, which says whether and with which index it was acknowledged.
    fn write(&mut self, act: impl FnOnce(&Client, &str) -> Option<Option<u64>>) -> bool {
        let leader = self.leader();
        let before = self.lengths();
        let address = self.cluster.address(leader).to_owned();
        let acknowledged = act(&self.client, &address);
        let after = self.lengths();
        let floor = self.last;
        let Some(index) = acknowledged else {
            // Unless it is told, a write may be there or not.
            self.mark(&before, floor, u64::MAX);
            return false;
        };
        let is_told = self.take_image();
        match index {
            Some(index) if is_told => assert_eq!(index, self.last, "{}", self.story),
            Some(index) => self.last = index,
            None => assert!(is_told, "{}: who knows the entry?", self.story),
        }
        self.mark(&before, floor, self.last);
        self.mark(&after, self.last, self.last);
        true
    }

    fn leader(&mut self) -> usize {
        if self.needed.len() == 1 {
            return 0;
        }
        self.cluster.wait_leader()
    }

    /// The database as the leader has it is the one that plain SQLite has, and its hash is noted;
    /// `false` if the node does not give it, which only one with a fault may do.
    fn take_image(&mut self) -> bool {
        let leader = self.leader();
        let image = match self.client.image(self.cluster.address(leader)) {
            Ok(image) => image,
            Err(error) => {
                assert!(self.has_fault, "{}: {error}", self.story);
                return false;
            }
        };
        self.last = image.data_index;
        let hash = u128::from_str_radix(&image.hash, 16).unwrap();
        self.hashes.insert(image.data_index, DatabaseHash(hash));
        let database = self.cluster.open(&image);
        assert_eq!(content(&database), content(&self.shadow), "{}", self.story);
        true
    }

    /// Runs one statement, which must be acknowledged.
    pub(crate) fn sql(&mut self, sql: &str) {
        assert!(self.try_sql(sql), "{}: {sql}", self.story);
    }

    /// Runs one statement; `false` if it was not acknowledged.
    pub(crate) fn try_sql(&mut self, sql: &str) -> bool {
        // First, so that the image can be compared; after a refusal nothing is compared any more.
        self.shadow.execute_batch(sql).unwrap();
        self.write(|client, address| match client.execute_sql(address, sql) {
            Outcome::Answered(answer) if answer.error().is_none() => Some(answer.raft_index),
            _ => None,
        })
    }

    /// Puts a whole database in the place of the one there is.
    pub(crate) fn load(&mut self, sql: &str) {
        let file = self.dir.path().join(format!("load{}.db", self.last));
        let made = Connection::open(&file).unwrap();
        made.execute_batch(sql).unwrap();
        made.close().unwrap();
        let bytes = std::fs::read(&file).unwrap();
        self.shadow = Connection::open_in_memory().unwrap();
        self.shadow.execute_batch(sql).unwrap();
        let loaded = self.write(|client, address| {
            let kind = "application/octet-stream";
            let answer = client.post(address, "/db/load", kind, &bytes).unwrap();
            (answer.status == 200 && !answer.body.contains("error")).then_some(None)
        });
        assert!(loaded, "{}: load", self.story);
    }

    /// Ends a node in order and starts it again.
    pub(crate) fn restart(&mut self, node: usize) {
        self.turn(
            |cluster| {
                assert!(cluster.stop(node).success());
                cluster.start_node(node);
                cluster.wait_ready(node);
            },
            |_| (),
        );
    }

    /// Has a node removed through another one.
    pub(crate) fn remove(&mut self, node: usize, change: impl FnOnce(&mut Self)) {
        let body = format!("{{\"id\":\"node{}\"}}", node + 1);
        self.turn(
            |cluster| {
                let line = "DELETE /remove?timeout=10s";
                let answer = raw::send(cluster.address(0), line, "application/json", &body);
                assert_eq!(answer.status, 200, "{}", answer.body);
            },
            change,
        );
    }

    /// Ends all nodes and gives what each of them did.
    pub(crate) fn end(mut self) -> Vec<Tale> {
        for node in 0..self.cluster.size() {
            if !self.cluster.has_ended(node) {
                self.cluster.kill(node);
            }
        }
        self.cluster.assert_healthy_logs();
        self.tales()
    }

    /// What each node that was ever started did.
    pub(crate) fn tales(&self) -> Vec<Tale> {
        let nodes = (0..self.cluster.size()).filter(|node| self.trace_file(*node).exists());
        let tale = |node: usize| Tale {
            name: format!("{} node{}", self.story, node + 1),
            node: format!("node{}", node + 1),
            events: trace::decode(&std::fs::read(self.trace_file(node)).unwrap()).unwrap(),
            moments: self.moments[&node].clone(),
            hashes: self.hashes.clone(),
        };
        nodes.map(tale).collect()
    }
}

/// All tables with all rows, in an order that does not depend on how they are stored.
fn content(database: &Connection) -> Vec<String> {
    let list = |sql: &str| -> Vec<String> {
        let mut statement = database.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let mut all = list("SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY name");
    for table in list("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name") {
        let sql = format!("SELECT quote(id) || quote(body) FROM {table} ORDER BY id");
        all.extend(list(&sql));
    }
    all
}

/// Rows of about `bytes` bytes each, which do not shrink much when compressed, and are the same
/// whoever makes them.
pub(crate) fn rows(table: &str, first: u32, count: u32, bytes: u32) -> String {
    let (last, words) = (first + count - 1, bytes.div_ceil(8));
    format!(
        "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}), \
         m(j) AS (SELECT 1 UNION ALL SELECT j + 1 FROM m WHERE j < {words}) \
         INSERT INTO {table} SELECT i, (SELECT group_concat(printf('%08x', \
         ((i * 7919 + j) * 1103515245 + 12345) % 2147483648 * 1103515245 % 4294967296), '') \
         FROM m) FROM n"
    )
}

/// One node: every kind of write, checkpoints, new segments, purges, parts, a load, restarts.
pub(crate) fn alone() -> Vec<Tale> {
    let mut stage = Stage::prepare("alone", 1, None);
    stage.begin();
    stage.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT)");
    for id in 1..4 {
        stage.sql(&rows("t", id, 1, 200));
    }
    // Several parts, beyond what is staged in memory, and a checkpoint.
    stage.sql(&rows("t", 100, 130, 2000));
    stage.sql("CREATE INDEX by_body ON t(body)");
    stage.sql("UPDATE t SET body = 'short' WHERE id % 3 = 0");
    stage.restart(0);
    stage.sql(&rows("t", 300, 10, 3000));
    stage.sql("DELETE FROM t WHERE id >= 110");
    stage.sql("VACUUM");
    stage.sql(&rows("t", 400, 1, 100));
    let loaded = "CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT); \
         CREATE TABLE u(id INTEGER PRIMARY KEY, body TEXT);";
    stage.load(&format!(
        "{loaded} {}; {}",
        rows("t", 1, 20, 1500),
        rows("u", 5, 9, 100)
    ));
    for id in 400..404 {
        stage.sql(&rows("u", 10 * id, 2, 4000));
    }
    stage.sql("DROP TABLE t");
    stage.sql("VACUUM");
    stage.restart(0);
    stage.sql(&rows("u", 500, 5, 400));
    stage.end()
}

/// A second voter joins by a snapshot, votes, and is removed; a replica gets snapshots, one over
/// what it has.
pub(crate) fn together() -> Vec<Tale> {
    let mut stage = Stage::prepare("together", 3, None);
    stage
        .cluster
        .arguments(2)
        .splice(0..0, ["-raft-non-voter", "true"].map(str::to_owned));
    stage.begin();
    stage.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT)");
    for batch in 1..5 {
        stage.sql(&rows("t", batch * 100, 30, 1500));
    }
    stage.turn(
        |cluster| {
            cluster.start_node(2);
            cluster.wait_ready(2);
        },
        |_| (),
    );
    stage.sql(&rows("t", 1000, 2, 300));
    stage.turn(|cluster| assert!(cluster.stop(2).success()), |_| ());
    // It is behind the purged log when it comes back.
    for batch in 11..14 {
        stage.sql(&format!(
            "UPDATE t SET body = substr(body, 2) || '{batch}' WHERE id < 300"
        ));
    }
    stage.turn(
        |cluster| {
            cluster.start_node(2);
            cluster.wait_ready(2);
            cluster.start_node(1);
            cluster.wait_ready(1);
            wait_voter(cluster, "node2");
        },
        |stage| stage.other_votes = None,
    );
    // Committed by both, and with it the membership before it.
    stage.sql(&rows("t", 2000, 2, 300));
    stage.needed = vec![0, 1];
    stage.other_votes = Some(true);
    stage.sql(&rows("t", 2100, 150, 1500));
    stage.sql("DELETE FROM t WHERE id > 2110");
    stage.sql("VACUUM");
    stage.remove(1, |stage| {
        stage.needed = vec![0];
        stage.other_votes = Some(false);
    });
    stage.sql(&rows("t", 3000, 4, 300));
    stage.end()
}

fn wait_voter(cluster: &mut ProcessCluster, name: &str) {
    cluster.wait("the second voter", |cluster| {
        let client = Client::new(Duration::from_secs(2));
        let answer = client.json(cluster.address(0), "/nodes?ver=2&timeout=2s")?;
        let nodes = answer["nodes"].as_array().cloned().unwrap_or_default();
        let mut voters = nodes.iter().filter(|node| node["voter"] == true);
        let found = voters.any(|node| node["id"] == name);
        found.then_some(()).ok_or_else(|| answer.to_string())
    });
}

/// A short story of one node, with a call that fails. It ends where the node does not acknowledge.
pub(crate) fn faulted(fault: Option<&str>) -> Tale {
    let mut stage = Stage::prepare("faulted", 1, fault);
    stage.tell_faulted();
    if !stage.cluster.has_ended(0) {
        stage.cluster.kill(0);
    }
    stage.tales().remove(0)
}

impl Stage {
    fn tell_faulted(&mut self) {
        self.mark(&[0], 0, u64::MAX);
        self.cluster.start_node(0);
        if !self.comes_up() {
            return;
        }
        let _ = self.take_image();
        let lengths = self.lengths();
        self.mark(&lengths, self.last, self.last);
        let steps = [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, body TEXT)".to_owned(),
            rows("t", 1, 1, 200),
            rows("t", 100, 130, 2000),
            rows("t", 2, 1, 200),
            "DELETE FROM t WHERE id > 110".to_owned(),
            "VACUUM".to_owned(),
            rows("t", 300, 130, 2000),
            rows("t", 3, 1, 200),
        ];
        for step in steps {
            if !self.try_sql(&step) {
                return;
            }
        }
    }

    /// Whether the node starts; it may say instead why it does not, or that it has failed.
    fn comes_up(&mut self) -> bool {
        let client = Client::new(Duration::from_secs(1));
        for _ in 0..2000 {
            if self.cluster.has_ended(0) {
                return false;
            }
            let answer = client.get(self.cluster.address(0), "/readyz?sync&timeout=1s");
            match answer {
                Ok(answer) if answer.status == 200 => return true,
                Ok(answer) if answer.body.contains("db not ok") => return false,
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("the node neither starts nor fails");
    }
}
