//! A cluster of `node_with_faults` processes, and what its rows must be after faults.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use crate::client::Outcome;
use crate::cluster::{Formation, ProcessCluster};
use crate::faulty_vfs::Fault;

/// What a write must have left behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expected {
    /// It was acknowledged, with this many rows.
    All(u64),
    /// It was refused.
    Nothing,
    /// Nobody knows: all of its rows or none.
    AllOrNothing(u64),
}

/// What became of a write while a fault was armed on a node.
#[derive(Debug)]
pub enum Struck {
    /// The fault did not strike; the write was acknowledged.
    Nowhere,
    /// It was refused, and the node goes on.
    Refused(String),
    /// The node aborted, and the client does not know.
    Aborted,
}

/// The cluster, and the model of its rows.
pub struct FaultyCluster {
    /// The nodes.
    pub cluster: ProcessCluster,
    expected: BTreeMap<u64, Expected>,
    raft_index: Option<u64>,
}

impl FaultyCluster {
    /// Starts nodes with the faulty VFS, and creates the table.
    ///
    /// # Panics
    ///
    /// When they do not start.
    #[must_use]
    pub fn start(binary: &str, nodes: usize, flags: &[&str]) -> Self {
        Self::start_with(binary, nodes, flags, |_| ())
    }

    /// The same, with something to do between the choice of the directories and the start.
    ///
    /// # Panics
    ///
    /// When they do not start.
    #[must_use]
    pub fn start_with(
        binary: &str,
        nodes: usize,
        flags: &[&str],
        prepare: impl FnOnce(&ProcessCluster),
    ) -> Self {
        let formation = if nodes == 1 {
            Formation::Join
        } else {
            Formation::Expect
        };
        let mut cluster = ProcessCluster::prepare(nodes, &formation, flags);
        prepare(&cluster);
        cluster.use_binary(Path::new(binary));
        cluster.start_all(&formation);
        let table = "CREATE TABLE t(id INTEGER, part INTEGER, body BLOB)";
        let _ = cluster
            .client()
            .execute_sql(cluster.address(0), table)
            .expect_success();
        Self {
            cluster,
            expected: BTreeMap::new(),
            raft_index: None,
        }
    }

    /// Arms a fault on a node.
    ///
    /// # Panics
    ///
    /// When the node does not take it.
    pub fn arm(&self, node: usize, fault: Fault) {
        assert_eq!(
            self.control(node, &fault.to_string()).as_deref(),
            Some("ok")
        );
    }

    /// Whether the fault of a node that still runs has struck; `None` if the node has ended.
    #[must_use]
    pub fn has_struck(&self, node: usize) -> Option<bool> {
        self.control(node, "state").map(|state| state == "struck")
    }

    fn control(&self, node: usize, line: &str) -> Option<String> {
        control(&self.cluster, node, line)
    }

    /// Writes rows of about 3000 bytes through a node.
    pub fn write(&mut self, node: usize, rows: u64) -> Outcome {
        self.write_sized(node, rows, 3000)
    }

    /// Writes rows through a node, and notes what it was told.
    pub fn write_sized(&mut self, node: usize, rows: u64, row_bytes: u64) -> Outcome {
        let id = self.expected.len() as u64;
        let sql = format!(
            "WITH RECURSIVE part(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM part WHERE x < {rows}) \
             INSERT INTO t SELECT {id}, x, randomblob({row_bytes}) FROM part"
        );
        let address = self.cluster.address(node);
        let outcome = self.cluster.client().execute_sql(address, &sql);
        let expected = match &outcome {
            Outcome::Answered(answer) if answer.error().is_none() => {
                self.raft_index = answer.raft_index;
                Expected::All(rows)
            }
            Outcome::Answered(_) | Outcome::NotCommitted(_) => Expected::Nothing,
            Outcome::Unknown(_) => Expected::AllOrNothing(rows),
        };
        self.expected.insert(id, expected);
        outcome
    }

    /// Writes rows that must be acknowledged.
    ///
    /// # Panics
    ///
    /// When they are not.
    #[track_caller]
    pub fn write_well(&mut self, node: usize) {
        let _ = self.write(node, 3).expect_success();
    }

    /// Arms a fault on the only node and writes.
    ///
    /// # Panics
    ///
    /// When it ends in any other way than the three allowed.
    #[track_caller]
    pub fn strike(&mut self, fault: Fault, rows: u64, row_bytes: u64) -> Struck {
        self.write_well(0);
        let index = self.raft_index;
        self.arm(0, fault);
        let outcome = self.write_sized(0, rows, row_bytes);
        match (self.control(0, "disarm").as_deref(), outcome) {
            (Some("waiting"), outcome) => {
                let _ = outcome.expect_success();
                Struck::Nowhere
            }
            (Some(_), Outcome::Answered(answer)) => {
                let error = answer.error().map(str::to_owned);
                let error = error.unwrap_or_else(|| panic!("{fault}: acknowledged"));
                self.expect_unproposed(index);
                Struck::Refused(error)
            }
            (Some(_), Outcome::NotCommitted(error)) => {
                self.expect_unproposed(index);
                Struck::Refused(error)
            }
            (None, Outcome::Unknown(_)) => {
                self.expect_abort(0);
                self.cluster.start_node(0);
                self.cluster.wait_ready(0);
                Struck::Aborted
            }
            other => panic!("{fault}: {other:?}"),
        }
    }

    /// A refused write has taken no place in the log, and the next one takes the next.
    #[track_caller]
    fn expect_unproposed(&mut self, before: Option<u64>) {
        self.write_well(0);
        assert_eq!(self.raft_index, before.map(|index| index + 1));
    }

    /// Waits until a node has aborted.
    ///
    /// # Panics
    ///
    /// When it ends in another way, or not.
    #[track_caller]
    pub fn expect_abort(&mut self, node: usize) {
        let status = self.cluster.wait_end(node);
        assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    }

    /// Everything that was written last is committed, whatever its client was told.
    pub fn last_is_committed(&mut self) {
        if let Some(mut last) = self.expected.last_entry()
            && let Expected::AllOrNothing(rows) = *last.get()
        {
            last.insert(Expected::All(rows));
        }
    }

    /// Checks all rows through a node, and that all nodes are equal and sound.
    ///
    /// # Panics
    ///
    /// When a row is wrong.
    #[track_caller]
    pub fn check(&mut self, node: usize) {
        let sql = "SELECT id, count(*) FROM t GROUP BY id";
        let address = self.cluster.address(node);
        let rows = self.cluster.client().query(address, "linearizable", sql);
        let number = |value: &serde_json::Value| value.as_u64().expect("a count");
        let found: BTreeMap<u64, u64> = rows
            .expect("the rows")
            .iter()
            .map(|row| (number(&row[0]), number(&row[1])))
            .collect();
        for (id, expected) in &self.expected {
            let rows = found.get(id).copied().unwrap_or(0);
            let right = match *expected {
                Expected::All(all) => rows == all,
                Expected::Nothing => rows == 0,
                Expected::AllOrNothing(all) => rows == all || rows == 0,
            };
            assert!(right, "write {id}: {rows} rows, expected {expected:?}");
        }
        self.cluster.assert_identical();
        self.cluster.assert_healthy_logs();
    }
}

/// One line to a `node_with_faults`, and its answer; `None` if the node has ended or is about to.
#[must_use]
pub fn control(cluster: &ProcessCluster, node: usize, line: &str) -> Option<String> {
    let path = cluster.data_dir(node).with_extension("control");
    let mut stream = UnixStream::connect(path).ok()?;
    writeln!(stream, "{line}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

const SIGABRT: i32 = 6;
