//! A cluster with a database of some size, of which one node is away.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use wal_tests::client::Client;
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::tap::Tap;
use wallaby::wal::ClusterId;

pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
pub(crate) const PAGE_BYTES: u64 = 4096;
/// One row fills a page, and noise does not shrink.
const ROW_BYTES: u64 = 3900;
const BATCH_ROWS: u64 = 2000;

/// No tail of the log: whoever is away for a few entries needs pages. Elections are not what this is
/// about, so a busy machine gets time to avoid them.
const FLAGS: [&str; 10] = [
    "-raft-heartbeat-timeout",
    "200ms",
    "-raft-election-timeout",
    "1s",
    "-log-tail",
    "0",
    "-log-segment",
    "1048576",
    "-raft-snap-wal-size",
    "1048576",
];

pub(crate) struct Stage {
    pub(crate) cluster: ProcessCluster,
    pub(crate) client: Client,
    pub(crate) rows: u64,
    raft_ids: Vec<u64>,
}

impl Stage {
    /// A cluster with a database of this size, and small tables that others write to.
    pub(crate) fn build(mebibytes: u64, flags: &[&str]) -> Self {
        let formation = Formation::Expect;
        let cluster = ProcessCluster::prepare(3, &formation, &[&FLAGS, flags].concat());
        Self::fill(cluster, &formation, mebibytes)
    }

    /// The same, of nodes that halt where they are told to.
    pub(crate) fn build_halting(mebibytes: u64) -> Self {
        let formation = Formation::Expect;
        let mut cluster = ProcessCluster::prepare(3, &formation, &FLAGS);
        cluster.use_binary(Path::new(env!("CARGO_BIN_EXE_node_with_faults")));
        Self::fill(cluster, &formation, mebibytes)
    }

    fn fill(mut cluster: ProcessCluster, formation: &Formation, mebibytes: u64) -> Self {
        cluster.start_all(formation);
        let rows = mebibytes * (1 << 20) / PAGE_BYTES;
        let mut stage = Self {
            cluster,
            client: Client::new(Duration::from_secs(120)),
            rows,
            raft_ids: Vec::new(),
        };
        stage.raft_ids = (0..3).map(|node| stage.raft_id(node)).collect();
        stage.execute("CREATE TABLE filler(id INTEGER PRIMARY KEY, age INTEGER, payload BLOB)");
        for other in ["traffic", "again"] {
            let table = "(id INTEGER PRIMARY KEY, payload BLOB)";
            stage.execute(&format!("CREATE TABLE {other}{table}"));
        }
        for first in (1..=rows).step_by(usize::try_from(BATCH_ROWS).unwrap()) {
            let last = (first + BATCH_ROWS - 1).min(rows);
            stage.execute(&format!(
                "INSERT INTO filler WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 \
                 FROM n WHERE i < {last}) SELECT i, 0, randomblob({ROW_BYTES}) FROM n"
            ));
        }
        stage
    }

    pub(crate) fn execute(&mut self, sql: &str) {
        let leader = self.cluster.wait_leader();
        let _ = self
            .client
            .execute_sql(self.cluster.address(leader), sql)
            .expect_success();
    }

    /// Changes every page of the large table, in one transaction.
    pub(crate) fn change_all(&mut self) {
        self.execute("UPDATE filler SET age = age + 1, payload = randomblob(3900)");
    }

    pub(crate) fn status(&self, node: usize) -> Value {
        let address = self.cluster.address(node);
        self.client.json(address, "/status").unwrap()["wallaby"].clone()
    }

    pub(crate) fn snapshots(&self, node: usize, name: &str) -> u64 {
        self.status(node)["snapshots"][name].as_u64().unwrap()
    }

    /// Of all nodes that run: a leader may have changed meanwhile.
    pub(crate) fn sent(&self, name: &str) -> u64 {
        let nodes = (0..self.cluster.size()).filter(|&node| self.cluster.serving(node));
        nodes.map(|node| self.snapshots(node, name)).sum()
    }

    /// How many databases a node has installed since it was started.
    pub(crate) fn installed(&self, node: usize) -> u64 {
        let address = self.cluster.address(node);
        let vars = self.client.json(address, "/debug/vars?key=store").unwrap();
        vars["store"]["num_restores"].as_u64().unwrap()
    }

    /// Kills a follower and returns it with the database as it has it.
    pub(crate) fn send_away(&mut self) -> (usize, Vec<u8>) {
        let before = self.cluster.wait_converged().swap_remove(0).bytes;
        let away = (self.cluster.wait_leader() + 1) % 3;
        self.cluster.kill(away);
        (away, before)
    }

    /// Changes the same page again and again until what there is of the log by now is purged.
    pub(crate) fn purge(&mut self) {
        let last = self.last_index();
        let deadline = Instant::now() + PATIENCE;
        let leader = self.cluster.wait_leader();
        while self.purged(leader) <= last {
            assert!(Instant::now() < deadline, "the log is not purged");
            for _ in 0..20 {
                self.execute("INSERT OR REPLACE INTO again VALUES(1, randomblob(3900))");
            }
        }
    }

    pub(crate) fn purged(&self, node: usize) -> u64 {
        self.status(node)["purged_index"].as_u64().unwrap()
    }

    pub(crate) fn last_index(&mut self) -> u64 {
        let leader = self.cluster.wait_leader();
        let address = self.cluster.address(leader);
        let status = self.client.json(address, "/status").unwrap();
        let last = status["store"]["raft"]["last_log_index"].as_str().unwrap();
        last.parse().unwrap()
    }

    /// Gives a node that is away a new address, which is that of a tap. Its peers learn it when it
    /// comes back, and know no other way to it.
    pub(crate) fn tap(&mut self, node: usize) -> Tap {
        let leader = self.cluster.wait_leader();
        let cluster = self.status(leader)["cluster_id"]
            .as_str()
            .unwrap()
            .to_owned();
        let cluster = ClusterId(u128::from_str_radix(&cluster, 16).unwrap());
        self.cluster.move_node(node);
        let (raft_id, to) = (self.raft_ids[node], self.cluster.flag(node, "-raft-addr"));
        let tap = Tap::open(cluster, raft_id, to);
        let advertised = ["-raft-adv-addr".to_owned(), tap.addr().to_string()];
        // In front of the data directory.
        let arguments = self.cluster.arguments(node);
        let place = arguments.len() - 1;
        drop(arguments.splice(place..place, advertised));
        tap
    }

    pub(crate) fn raft_id(&self, node: usize) -> u64 {
        let address = self.cluster.address(node);
        let status = self.client.json(address, "/status").unwrap();
        status["store"]["raft_id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Waits for everybody to be equal, and returns how many pages differ from those before.
    pub(crate) fn changed_since(&mut self, before: &[u8]) -> u64 {
        self.cluster.wait_all_ready();
        let after = self.cluster.wait_converged();
        assert!(
            after.iter().all(|image| image.hash == after[0].hash),
            "nodes that differ"
        );
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let after = &after[0].bytes;
        let kept = before.chunks(page).zip(after.chunks(page));
        let kept = kept.filter(|(before, after)| before == after).count();
        (after.len() / page - kept) as u64
    }

    /// A damaged node has come back as another one, and caught up.
    #[track_caller]
    pub(crate) fn assert_rebuilt(&mut self, node: usize) {
        let rebuilt = "this node is rebuilt, and in its old place";
        self.cluster
            .wait_log(node, "comes back under a fresh Raft id");
        self.cluster.wait_log(node, rebuilt);
        self.assert_caught_up();
        let old = std::mem::replace(&mut self.raft_ids[node], 0);
        self.raft_ids[node] = self.raft_id(node);
        assert_ne!(self.raft_ids[node], old);
    }

    /// All nodes are ready and equal byte for byte, and nothing is left of a transfer.
    #[track_caller]
    pub(crate) fn assert_caught_up(&mut self) {
        self.cluster.wait_all_ready();
        let _ = self.cluster.assert_identical();
        for node in 0..self.cluster.size() {
            let dir = self.cluster.data_dir(node).to_owned();
            self.cluster.wait("the received pages to be removed", |_| {
                match spooled(&dir) {
                    Spooled::Nothing => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
        self.cluster.assert_healthy_logs();
    }
}

/// What of a received database a data directory holds, with its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Spooled {
    Nothing,
    Incoming(u64),
    Installing(u64),
}

pub(crate) fn spooled(dir: &Path) -> Spooled {
    let bytes = |path: PathBuf| path.metadata().map(|found| found.len());
    // It may be renamed in between.
    match (bytes(incoming(dir)), bytes(installing(dir))) {
        (_, Ok(bytes)) => Spooled::Installing(bytes),
        (Ok(bytes), _) => Spooled::Incoming(bytes),
        _ => Spooled::Nothing,
    }
}

pub(crate) fn incoming(dir: &Path) -> PathBuf {
    dir.join("incoming-pages")
}

pub(crate) fn installing(dir: &Path) -> PathBuf {
    dir.join("installing")
}

/// Flips one bit of a file, as a disk would: nobody is told.
pub(crate) fn flip(file: &Path, offset: u64, bit: usize) {
    let file = OpenOptions::new().read(true).write(true).open(file);
    let (file, mut byte) = (file.unwrap(), [0]);
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).unwrap();
    println!("flipped bit {bit} at {offset}");
}
