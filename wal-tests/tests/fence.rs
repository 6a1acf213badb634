//! Every node decides alike which deltas take effect, whether it ran on, was restarted, or was fed
//! the whole database in between.
//!
//! Nodes do not propose what the fence rejects if they can help it, so the test puts such entries
//! into the logs of stopped nodes: the same into each, as if a leader had replicated them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};
use wal_tests::linked::{LinkedCluster, PATIENCE};
use wal_tests::links::Rule;
use wal_tests::seed::{Random, seed};
use wallaby::node::{Level, NodeOptions};
use wallaby::raft::log::{Log, LogIdentity, LogOptions, RealFiles};
use wallaby::raft::{Entry, Member, Payload, log_id_of, position_of};
use wallaby::wal::{
    ClusterId, DatabaseHash, Delta, DeltaHeader, DeltaWriter, Encoding, PageCount, PageNumber,
    PageSize, Part, Position,
};

/// What an entry carries.
type Content = EntryPayload<Payload, u64, Member>;

const SEGMENT_BYTES: u64 = 1 << 20;

fn tune(options: &mut NodeOptions) {
    options.log_segment_bytes = SEGMENT_BYTES;
    options.log_tail_bytes = 64 << 10;
    options.checkpoint_wal_bytes = 256 << 10;
}

/// Makes entries that look like a leader's and must not have an effect.
struct Forger {
    cluster: ClusterId,
    sequence: u64,
    /// The hash after the last data entries of the log: a delta on one of them that names another
    /// is refused before any fence.
    hashes: BTreeMap<Position, DatabaseHash>,
    random: Random,
}

impl Forger {
    /// The payloads of some entries, given the base of a delta that would be accepted now.
    fn payloads(&mut self, base: Position) -> Vec<Content> {
        let whole = Part::WHOLE;
        let mut payloads = Vec::new();
        for _ in 0..=self.random.below(4) {
            self.sequence += 1;
            let stale = Position {
                index: base.index - 1,
                ..base
            };
            let future = Position {
                index: base.index + 1000,
                ..base
            };
            match self.random.below(8) {
                0 => payloads.push(self.delta(None, whole)),
                1 => payloads.push(self.delta(Some(stale), whole)),
                2 => payloads.push(self.delta(Some(future), whole)),
                // Parts without the ones before them, and stages that nobody completes.
                3 => payloads.push(self.delta(Some(base), Part { number: 2, of: 2 })),
                4 => payloads.push(self.delta(Some(base), Part { number: 1, of: 2 })),
                5 => {
                    payloads.push(self.delta(Some(base), Part { number: 1, of: 3 }));
                    payloads.push(EntryPayload::Normal(Payload::mark()));
                    payloads.push(self.delta(Some(base), Part { number: 3, of: 3 }));
                }
                6 => payloads.push(EntryPayload::Blank),
                _ => payloads.push(EntryPayload::Normal(Payload::mark())),
            }
        }
        payloads
    }

    fn delta(&mut self, base: Option<Position>, part: Part) -> Content {
        let size = PageSize::DEFAULT;
        let header = DeltaHeader {
            cluster: self.cluster,
            origin: 1,
            epoch: 1,
            sequence: self.sequence,
            base,
            page_size: size,
            page_count: PageCount(1),
            hash_before: match base.filter(|_| part.is_first()) {
                Some(base) => self.hashes.get(&base).copied().unwrap_or_default(),
                None => DatabaseHash(0),
            },
            hash_after: DatabaseHash(0),
            part,
        };
        let mut delta = DeltaWriter::new(header, Encoding::Raw);
        // Whoever writes this page has lost its database.
        delta.push(PageNumber::FIRST, &vec![0xee; size.len()]);
        EntryPayload::Normal(Payload(delta.finish()))
    }
}

/// Appends entries to the log of a stopped node; with `committed` the node is told that they are.
fn append(
    cluster: &LinkedCluster,
    dir: &Path,
    identity: LogIdentity,
    entries: Vec<Entry>,
    committed: bool,
) {
    let mut log = open(dir, identity);
    let last = entries.last().unwrap().log_id;
    let task = cluster.spawn(async move {
        let count = entries.len();
        log.append(entries, IOFlushed::noop()).await.unwrap();
        if committed {
            log.save_committed(Some(last)).await.unwrap();
        }
        tokio::task::spawn_blocking(move || log.close())
            .await
            .unwrap();
        count
    });
    assert!(cluster.join(task) > 0);
}

fn open(dir: &Path, identity: LogIdentity) -> Log {
    let files = RealFiles::open(&dir.join("log")).unwrap();
    let sizes = LogOptions {
        segment_bytes: SEGMENT_BYTES,
        ..LogOptions::default()
    };
    Log::open(Arc::new(files), identity, sizes).unwrap()
}

/// The last entry of the log, and the last data entry, of a stopped node.
fn ends(dir: &Path, identity: LogIdentity, data_index: u64) -> (Position, Position) {
    let log = open(dir, identity);
    let data = log.read_blocking(data_index, data_index, 1).unwrap();
    let ends = (log.last().unwrap(), position_of(&data[0].log_id));
    log.close();
    ends
}

/// The hashes after the last data entry of a stopped node, and after the entry before it if that is
/// one as well.
fn hashes(dir: &Path, identity: LogIdentity, data_index: u64) -> BTreeMap<Position, DatabaseHash> {
    let log = open(dir, identity);
    let entries = [data_index - 1, data_index]
        .into_iter()
        .filter_map(|index| log.read_blocking(index, index, 1).ok())
        .flatten();
    let after = |entry: &Entry| match &entry.payload {
        EntryPayload::Normal(payload) if !payload.0.is_empty() => {
            let delta = Delta::decode(payload.0.clone()).unwrap();
            Some((position_of(&entry.log_id), delta.header().hash_after))
        }
        _ => None,
    };
    let hashes = entries.filter_map(|entry| after(&entry)).collect();
    log.close();
    hashes
}

/// Stops all nodes at the same place, puts the same entries into their logs, and starts them.
fn forge(cluster: &mut LinkedCluster, forger: &mut Forger) {
    cluster.wait_converged();
    // Nobody can be elected while they stop one after the other.
    cluster.links().set_all(Rule::Cut);
    let data_index = cluster.status(0).data_index;
    let identities: Vec<LogIdentity> = (0..3)
        .map(|node| LogIdentity {
            cluster: forger.cluster,
            node: cluster.status(node).raft_id,
        })
        .collect();
    for node in 0..3 {
        cluster.stop(node);
    }
    let dirs: Vec<_> = (0..3)
        .map(|node| cluster.options(node).data_dir.clone())
        .collect();
    let (last, base) = ends(&dirs[0], identities[0], data_index);
    forger.hashes = hashes(&dirs[0], identities[0], data_index);
    let entry = |(index, payload)| {
        let position = Position {
            index: last.index + 1 + index,
            ..last
        };
        Entry {
            log_id: log_id_of(position),
            payload,
        }
    };
    let entries: Vec<Entry> = (0..).zip(forger.payloads(base)).map(entry).collect();
    for node in 0..3 {
        let found = ends(&dirs[node], identities[node], data_index);
        assert_eq!(found, (last, base), "node {}", node + 1);
        // One that knows they are committed passes them when it starts, the others when Raft says.
        let committed = forger.random.below(2) == 0;
        append(
            cluster,
            &dirs[node],
            identities[node],
            entries.clone(),
            committed,
        );
    }
    cluster.heal();
    for node in 0..3 {
        cluster.start_node(node);
    }
    let _ = cluster.wait_leader();
    cluster.wait_converged();
    for node in 0..3 {
        let status = cluster.status(node);
        assert_eq!(status.out_of_service, None);
        assert_eq!(status.data_index, data_index, "nothing of it had an effect");
        assert!(status.applied_index > last.index);
    }
}

/// Keeps a follower away until it needs the whole database. It is stopped, for what is on its way
/// to a follower that is only cut off may arrive later.
fn feed_database(cluster: &mut LinkedCluster) {
    let leader = cluster.wait_leader();
    let slow = (leader + 1) % 3;
    let end = cluster.status(slow).last_log_index;
    cluster.stop(slow);
    cluster.wait("the log to be purged", |cluster| {
        let leader = cluster.wait_leader();
        let _ = cluster.commit(leader, &["INSERT INTO t(v) VALUES(hex(randomblob(8000)))"]);
        // Whoever leads when the follower is back.
        let others = (0..3).filter(|&node| node != slow);
        let purged = others.map(|node| cluster.status(node).purged_index);
        match purged.min() {
            Some(purged) if purged > end + 10 => Ok(()),
            purged => Err(format!("purged up to {purged:?}")),
        }
    });
    cluster.start_node(slow);
    cluster.wait_converged();
    cluster.wait("the end of the transfer", |cluster| {
        match cluster.status(slow).purged_index {
            purged if purged > end => Ok(()),
            purged => Err(format!("it was at {end}, its log begins at {purged}")),
        }
    });
}

#[test]
fn nodes_that_were_restarted_or_fed_the_database_reject_and_accept_like_the_others() {
    let mut random = Random::new(seed("fence"));
    let rounds = std::env::var("WAL_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    let mut cluster = LinkedCluster::start(3, 1, tune);
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &["CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)"]);
    let id = u128::from_str_radix(&cluster.status(leader).cluster_id, 16).unwrap();
    let mut forger = Forger {
        cluster: ClusterId(id),
        sequence: 1000,
        hashes: BTreeMap::new(),
        random: random.fork(),
    };
    for round in 0..rounds {
        let leader = cluster.wait_leader();
        let sql = format!("INSERT INTO t(v) VALUES('round {round}')");
        let _ = cluster.commit(leader, &[&sql]);
        forge(&mut cluster, &mut forger);
        for _ in 0..random.below(3) {
            let leader = cluster.wait_leader();
            let read = cluster.query(leader, Level::Strong, "SELECT count(*) FROM t", PATIENCE);
            assert!(read.is_ok(), "{read:?}");
        }
        match random.below(3) {
            0 => feed_database(&mut cluster),
            1 => {
                let node = random.below(3);
                cluster.stop(node);
                cluster.start_node(node);
            }
            _ => {
                let old = cluster.wait_leader();
                cluster.cut_off(old);
                let _ = cluster.wait_leader_other_than(old);
                cluster.heal();
            }
        }
        // The next delta's base is from before all this.
        let leader = cluster.wait_leader();
        let _ = cluster.commit(leader, &["INSERT INTO t(v) VALUES('after')"]);
        let _ = cluster.assert_identical();
    }
    // A membership change, and a node that never saw the entries that were rejected.
    cluster.start_node(3);
    let leader = cluster.wait_leader();
    cluster.wait("the fourth node to vote", |cluster| {
        let members = cluster.status(leader).members;
        let voters = members.iter().filter(|member| member.voter).count();
        (voters == 4)
            .then_some(())
            .ok_or_else(|| format!("{voters}"))
    });
    let _ = cluster.execute(
        leader,
        &["DELETE FROM t WHERE v = 'round 0'"],
        Duration::from_secs(30),
    );
    let database = cluster.assert_identical();
    let count = |sql: &str| -> i64 { database.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT count(*) FROM t WHERE v = 'after'"), rounds);
    assert_eq!(
        count("SELECT count(*) FROM t WHERE v GLOB 'round *'"),
        rounds - 1
    );
}
