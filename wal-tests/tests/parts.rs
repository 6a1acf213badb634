//! A large transaction travels in parts: whatever is missing of it, and whatever comes between, a
//! node that starts from its log has all of it or nothing.
//!
//! A real node writes one such transaction; its log is then taken apart, and data directories are
//! made of it in which the log ends, or is known to be committed, after each of the parts, or holds
//! something else between them. Killed nodes of whole clusters are in `parts_kill.rs`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wallaby::node::{
    Answer, Level, Node, NodeOptions, ReadRequest, Request, Shape, Statement, Value, WriteRequest,
};
use wallaby::raft::codec::decode_membership;
use wallaby::raft::log::{Log, LogIdentity, LogOptions, RealFiles};
use wallaby::raft::{
    Entry, LeaderId, LogId, Member, Membership, Payload, TypeConfig, Vote, position_of,
};
use wallaby::sqlite::Record;
use wallaby::wal::{
    ClusterId, DatabaseHash, Delta, DeltaError, DeltaHeader, DeltaWriter, Encoding, PageHash,
    PageNumber, Part,
};

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of the large transaction: about 5 parts of 128 KiB.
const ROWS: i64 = 600;

type Body = EntryPayload<Payload, u64, Member>;

/// What a database contains.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Content {
    hash: String,
    rows: i64,
}

/// A log with one large transaction at its end.
struct Source {
    /// The node's files before the transaction, but for the log: its checkpoint record is what
    /// redo begins at.
    files: TempDir,
    log: LogIdentity,
    /// The term of the transaction.
    term: u64,
    /// Everything before the first part.
    head: Vec<Entry>,
    parts: Vec<Delta>,
    before: Content,
    after: Content,
}

fn options(dir: &Path) -> NodeOptions {
    let mut options = NodeOptions::new(
        dir.to_owned(),
        "127.0.0.1:0".to_owned(),
        "127.0.0.1:1".to_owned(),
    );
    options.name = Some("n1".to_owned());
    options.entry_bytes_max = 128 << 10;
    // Some of the parts in memory, some in the spool file.
    options.spool_bytes_max = 300 << 10;
    options.log_segment_bytes = 1 << 20;
    options
}

fn request(sql: &str, shape: Shape) -> Request {
    let statement = Statement {
        sql: sql.to_owned(),
        parameters: Vec::new(),
    };
    Request {
        statements: vec![statement],
        transaction: true,
        shape,
        statement_time_max: None,
        qualify_columns: false,
    }
}

/// A node that serves.
async fn open(dir: &Path) -> Node {
    let node = Node::open(options(dir)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !is_ready(&node).await {
        assert_eq!(node.status().out_of_service, None);
        assert!(Instant::now() < deadline, "not ready: {:?}", node.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node
}

async fn is_ready(node: &Node) -> bool {
    let status = node.status();
    let known = status.ready && status.leader.is_some();
    known && node.catch_up(Duration::from_secs(1)).await.is_ok()
}

/// Closes the node and waits until its last task has let go of the files.
async fn close(node: Node, dir: &Path) {
    node.close().await;
    drop(node);
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = RealFiles::open(&dir.join("log")) {
        assert!(Instant::now() < deadline, "not closed: {why}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn execute(node: &Node, sql: &str) {
    let served = node.execute(WriteRequest::new(request(sql, Shape::Execute), PATIENCE));
    let reply = served.await.unwrap().reply;
    for outcome in reply.outcomes {
        assert!(!matches!(outcome.answer, Answer::Failed(_)), "{sql}");
    }
}

async fn rows(node: &Node, level: Level) -> i64 {
    let request = request("SELECT count(*) FROM big", Shape::Query);
    let served = node.query(ReadRequest::new(request, level, PATIENCE));
    match &served.await.unwrap().reply.outcomes[0].answer {
        Answer::Rows(rows) => match rows.values[0][0] {
            Value::Integer(count) => count,
            ref other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// What the node contains, by its own account and by its pages.
async fn content(node: &Node) -> Content {
    let rows = rows(node, Level::Strong).await;
    let mut image = node.image().await.unwrap();
    let (hash, page_bytes) = (image.database_hash(), image.page_size() as usize);
    let mut bytes = Vec::new();
    while let Some(run) = image.next().await {
        bytes.extend_from_slice(&run.unwrap());
    }
    drop(image);
    let mut sum = DatabaseHash::default();
    for (number, page) in (1..).zip(bytes.chunks_exact(page_bytes)) {
        sum = sum.with(PageHash::of(PageNumber::new(number).unwrap(), page));
    }
    assert_eq!(sum.to_string(), hash, "the hash is not that of the pages");
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("image.db");
    std::fs::write(&file, bytes).unwrap();
    let database = rusqlite::Connection::open(file).unwrap();
    let verdict: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
    Content { hash, rows }
}

impl Source {
    fn make(runtime: &Runtime) -> Self {
        let (dir, files) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (status, before, after) = runtime.block_on(async {
            let node = open(dir.path()).await;
            execute(
                &node,
                "CREATE TABLE big(id INTEGER PRIMARY KEY, payload BLOB)",
            )
            .await;
            execute(&node, "CREATE TABLE small(v)").await;
            execute(&node, "INSERT INTO small VALUES(1)").await;
            let before = content(&node).await;
            close(node, dir.path()).await;
            copy_files(dir.path(), files.path());
            let node = open(dir.path()).await;
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
                 INSERT INTO big SELECT i, randomblob(1000) FROM n"
            );
            execute(&node, &sql).await;
            let after = content(&node).await;
            let status = node.status();
            close(node, dir.path()).await;
            (status, before, after)
        });
        assert_eq!((before.rows, after.rows), (0, ROWS));
        let log = LogIdentity {
            cluster: ClusterId(u128::from_str_radix(&status.cluster_id, 16).unwrap()),
            node: status.raft_id,
        };
        let log_files = Arc::new(RealFiles::open(&dir.path().join("log")).unwrap());
        let opened = Log::open(log_files, log, LogOptions::default()).unwrap();
        let mut head = opened.read_blocking(0, u64::MAX, usize::MAX).unwrap();
        opened.close();
        assert_eq!(head[0].log_id.index, 0, "nothing is purged yet");
        let first = head
            .iter()
            .position(|entry| delta(entry).is_some_and(|delta| delta.header().part.of > 1));
        let tail = head.split_off(first.unwrap());
        let term = tail[0].log_id.leader_id.term;
        let parts: Vec<Delta> = tail.iter().filter_map(delta).collect();
        assert_eq!(parts.len(), parts[0].header().part.of as usize);
        assert!(parts.len() >= 4, "{} parts prove little", parts.len());
        Self {
            files,
            log,
            term,
            head,
            parts,
            before,
            after,
        }
    }

    /// The head and these payloads behind it, each under its term.
    fn history(&self, tail: impl IntoIterator<Item = (u64, Body)>) -> Vec<Entry> {
        let mut history = self.head.clone();
        for (term, payload) in tail {
            let leader_id = LeaderId {
                term,
                node_id: self.log.node,
            };
            let index = history.last().unwrap().log_id.index + 1;
            let log_id = LogId { leader_id, index };
            history.push(Entry { log_id, payload });
        }
        history
    }

    fn part(&self, index: usize) -> (u64, Body) {
        (self.term, data(self.parts[index].bytes().clone()))
    }

    /// A transaction of another node on the same base: page 1 once more, as it is.
    fn other(&self, part: Part) -> (u64, Body) {
        let mut images: BTreeMap<PageNumber, Vec<u8>> = BTreeMap::new();
        for delta in self.head.iter().filter_map(delta) {
            let old = |page, image: &mut [u8]| {
                if let Some(old) = images.get(&page) {
                    image.copy_from_slice(old);
                }
                Ok::<_, DeltaError>(())
            };
            let pages = delta.pages(old).map(|page| {
                let (page, image) = page.unwrap();
                (page, image.into_owned())
            });
            let pages: Vec<_> = pages.collect();
            images.extend(pages);
        }
        let image = &images[&PageNumber::FIRST];
        let last = self.head.iter().rev().find_map(delta).unwrap();
        let hash = self.parts[0].header().hash_before;
        let header = DeltaHeader {
            origin: 99,
            epoch: 1,
            sequence: 1,
            page_count: last.header().page_count,
            hash_before: if part.is_first() {
                hash
            } else {
                DatabaseHash::default()
            },
            hash_after: if part.is_last() {
                hash
            } else {
                DatabaseHash::default()
            },
            part,
            ..*self.parts[0].header()
        };
        let mut writer = DeltaWriter::new(header, Encoding::Raw);
        writer.push(PageNumber::FIRST, image);
        (self.term, data(writer.finish()))
    }

    /// A data directory with this log, of which so much is known to be committed.
    fn directory(&self, runtime: &Runtime, history: &[Entry], committed: usize) -> TempDir {
        let dir = TempDir::new().unwrap();
        copy_files(self.files.path(), dir.path());
        let log_dir = dir.path().join("log");
        std::fs::create_dir(&log_dir).unwrap();
        let files = Arc::new(RealFiles::open(&log_dir).unwrap());
        let sizes = LogOptions {
            segment_bytes: 1 << 20,
            ..LogOptions::default()
        };
        let mut log = Log::open(files, self.log, sizes).unwrap();
        let leader_id = history.last().unwrap().log_id.leader_id;
        let vote = Vote {
            leader_id,
            committed: true,
        };
        runtime.block_on(async {
            log.save_vote(&vote).await.unwrap();
            let (flushed, done) = TypeConfig::oneshot();
            log.append(history.to_vec(), IOFlushed::signal(flushed))
                .await
                .unwrap();
            done.await.unwrap().unwrap();
        });
        log.persist_committed_blocking(position_of(&history[committed - 1].log_id))
            .unwrap();
        log.close();
        dir
    }

    /// Opens a node on a directory with this log; it must contain `expected`, take writes, and
    /// contain the same after one more restart. Returns the members that are durable with it.
    fn check(
        &self,
        runtime: &Runtime,
        history: &[Entry],
        committed: usize,
        expected: &Content,
    ) -> Vec<String> {
        let dir = self.directory(runtime, history, committed);
        runtime.block_on(async {
            let node = Node::open(options(dir.path())).await.unwrap();
            // Between redo and the first election nobody sees a part of it either.
            if node.status().ready {
                let seen = rows(&node, Level::None).await;
                assert!(seen == 0 || seen == ROWS, "{seen} rows");
            }
            close(node, dir.path()).await;
            let node = open(dir.path()).await;
            assert_eq!(&content(&node).await, expected);
            execute(&node, "INSERT INTO small VALUES(2)").await;
            let written = content(&node).await;
            assert_ne!(written.hash, expected.hash);
            close(node, dir.path()).await;
            let node = open(dir.path()).await;
            assert_eq!(content(&node).await, written);
            close(node, dir.path()).await;
        });
        // From the record and not from the log: the log is purged up to it.
        let record = Record::load(dir.path()).unwrap().unwrap();
        let stored = decode_membership(&record.membership).unwrap();
        let nodes = stored.membership().nodes();
        nodes.map(|(_, member)| member.name.clone()).collect()
    }
}

fn copy_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

fn data(bytes: bytes::Bytes) -> Body {
    EntryPayload::Normal(Payload(bytes))
}

fn delta(entry: &Entry) -> Option<Delta> {
    match &entry.payload {
        EntryPayload::Normal(payload) if !payload.is_mark() => {
            Some(Delta::decode(payload.0.clone()).unwrap())
        }
        _ => None,
    }
}

#[test]
fn a_log_that_ends_between_two_parts_leaves_the_database_as_it_was() {
    let runtime = Runtime::new().unwrap();
    let source = Source::make(&runtime);
    let n = source.parts.len();
    for known in 0..=n {
        let history = source.history((0..known).map(|index| source.part(index)));
        let expected = if known == n {
            &source.after
        } else {
            &source.before
        };
        println!("{known} of {n} parts");
        source.check(&runtime, &history, history.len(), expected);
    }
}

#[test]
fn parts_that_are_committed_after_a_restart_complete_those_before_it() {
    let runtime = Runtime::new().unwrap();
    let source = Source::make(&runtime);
    let n = source.parts.len();
    let history = source.history((0..n).map(|index| source.part(index)));
    for known in 0..n {
        println!("{known} of {n} parts known to be committed");
        let committed = source.head.len() + known;
        source.check(&runtime, &history, committed, &source.after);
    }
}

/// What else the log can hold, both redone at the start and applied afterwards.
fn check_both(source: &Source, runtime: &Runtime, what: &str, history: &[Entry], after: &Content) {
    for committed in [history.len(), source.head.len(), source.head.len() + 2] {
        println!("{what}, {committed} of {} committed", history.len());
        source.check(runtime, history, committed, after);
    }
}

#[test]
fn parts_that_do_not_follow_one_another_change_nothing() {
    let runtime = Runtime::new().unwrap();
    let source = Source::make(&runtime);
    let n = source.parts.len();
    let all: Vec<_> = (0..n).map(|index| source.part(index)).collect();

    let mut missing = all.clone();
    missing.remove(1);
    let missing = source.history(missing);
    check_both(&source, &runtime, "missing", &missing, &source.before);

    let mut twice = all.clone();
    twice.insert(2, all[1].clone());
    let twice = source.history(twice);
    check_both(&source, &runtime, "twice", &twice, &source.before);

    let mut between = all.clone();
    between.insert(2, source.other(Part { number: 1, of: 3 }));
    let between = source.history(between);
    check_both(
        &source,
        &runtime,
        "another's part",
        &between,
        &source.before,
    );
}

#[test]
fn what_another_leader_wrote_between_the_parts_voids_them() {
    let runtime = Runtime::new().unwrap();
    let source = Source::make(&runtime);
    let n = source.parts.len();
    let all: Vec<_> = (0..n).map(|index| source.part(index)).collect();

    let mut accepted = all.clone();
    accepted.insert(2, source.other(Part::WHOLE));
    let accepted = source.history(accepted);
    check_both(&source, &runtime, "another's", &accepted, &source.before);

    let mut later: Vec<_> = all.clone();
    later.insert(2, (source.term + 1, EntryPayload::Blank));
    for (term, _) in &mut later[2..] {
        *term = source.term + 1;
    }
    let later = source.history(later);
    check_both(&source, &runtime, "a later term", &later, &source.before);

    // All of them once more under the later term: those count.
    let mut again: Vec<_> = all[..2].to_vec();
    again.push((source.term + 1, EntryPayload::Blank));
    again.extend(all.iter().map(|(_, part)| (source.term + 1, part.clone())));
    let again = source.history(again);
    check_both(&source, &runtime, "again", &again, &source.after);
}

#[test]
fn a_membership_between_the_parts_is_kept_and_so_are_they() {
    let runtime = Runtime::new().unwrap();
    let source = Source::make(&runtime);
    let n = source.parts.len();
    let mut tail: Vec<_> = (0..n).map(|index| source.part(index)).collect();
    let member = |name: &str| Member {
        name: name.to_owned(),
        // Those of the node itself: it would correct others with a membership of its own.
        raft_addr: "127.0.0.1:0".to_owned(),
        http_addr: "127.0.0.1:1".to_owned(),
        ..Member::default()
    };
    let nodes = BTreeMap::from([(source.log.node, member("n1")), (77, member("learner"))]);
    let membership = Membership::new(vec![[source.log.node].into()], nodes).unwrap();
    tail.insert(2, (source.term, EntryPayload::Membership(membership)));
    tail.insert(2, (source.term, EntryPayload::Blank));
    tail.insert(4, (source.term, EntryPayload::Normal(Payload::mark())));
    let history = source.history(tail);
    for committed in source.head.len()..=history.len() {
        println!("{committed} of {} committed", history.len());
        let members = source.check(&runtime, &history, committed, &source.after);
        assert!(members.iter().any(|name| name == "learner"), "{members:?}");
    }
}
