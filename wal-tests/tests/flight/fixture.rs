//! What these tests share.

use std::time::Duration;

use wal_tests::linked::{LinkedCluster, PATIENCE};
use wallaby::node::{Answer, Level, NodeOptions, Refusal, Served, Value};

/// An election time-out, and with it a lease, that is long enough to execute a group after the
/// links were cut even if the machine is busy: without its lease a leader appends nothing.
pub(crate) fn unhurried(options: &mut NodeOptions) {
    options.election = Some(Duration::from_secs(1));
}

/// For tests in which nobody but the first leader ever leads.
pub(crate) fn stable(options: &mut NodeOptions) {
    options.election = Some(Duration::from_secs(6));
}

/// Three nodes, and a table with a row.
pub(crate) fn three(tune: impl Fn(&mut NodeOptions)) -> LinkedCluster {
    let cluster = LinkedCluster::start(3, 0, tune);
    let leader = cluster.wait_leader();
    let _ = cluster.commit(leader, &["CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)"]);
    let _ = cluster.commit(leader, &["INSERT INTO t VALUES(1, 'old')"]);
    cluster
}

/// The two nodes that are not this one.
pub(crate) fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

/// How many rows hold this text.
pub(crate) fn count(database: &rusqlite::Connection, v: &str) -> i64 {
    let sql = "SELECT count(*) FROM t WHERE v = ?";
    database.query_row(sql, [v], |row| row.get(0)).unwrap()
}

/// The outcome is a refusal that does not promise anything.
#[track_caller]
pub(crate) fn assert_unknown(outcome: Result<Served, Refusal>) {
    match outcome {
        Err(Refusal::Unknown(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// The first statement's rows, each column as text.
pub(crate) fn texts(served: &Served, statement: usize) -> Vec<String> {
    let Answer::Rows(rows) = &served.reply.outcomes[statement].answer else {
        panic!("no rows: {served:?}");
    };
    let text = |value: &Value| match value {
        Value::Text(text) => String::from_utf8(text.clone()).unwrap(),
        other => format!("{other:?}"),
    };
    rows.values.iter().flatten().map(text).collect()
}

/// A linearizable read of one column.
#[track_caller]
pub(crate) fn read(cluster: &LinkedCluster, node: usize, sql: &str) -> Vec<String> {
    let served = cluster.query(node, Level::Linearizable, sql, PATIENCE);
    texts(&served.unwrap(), 0)
}
