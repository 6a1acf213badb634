//! Statements whose result depends on when and where they run. Where SQL is replicated and run by
//! every node, replicas drift apart on these; here they are run once, through a node drawn at
//! random, and every node must hold the same bytes and read the same rows.
//!
//! `WAL_SEED=n` replays the order and the nodes; what SQLite draws itself is different every time,
//! which is the point.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

const ROUNDS: usize = 3;

/// `stored` collects what the triggers and defaults draw.
const SCHEMA: [&str; 9] = [
    "CREATE TABLE stored (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, value)",
    "CREATE TABLE source (id INTEGER PRIMARY KEY, v)",
    "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 50)
        INSERT INTO source SELECT i, random() FROM n",
    "CREATE TABLE defaults (id INTEGER PRIMARY KEY, n, drawn DEFAULT (random()),
        at DEFAULT CURRENT_TIMESTAMP, day DEFAULT CURRENT_DATE, time DEFAULT CURRENT_TIME,
        instant DEFAULT (julianday('now')), bytes DEFAULT (randomblob(8)))",
    "CREATE TABLE triggered (n)",
    "CREATE TRIGGER draw AFTER INSERT ON triggered BEGIN
        INSERT INTO stored(kind, value) VALUES ('trigger', random());
        INSERT INTO stored(kind, value) SELECT 'trigger', hex(randomblob(4)) || strftime('%f')
            FROM source ORDER BY random() LIMIT 3; END",
    "CREATE TABLE shuffled (id INTEGER PRIMARY KEY, v)",
    "CREATE VIRTUAL TABLE words USING fts5(word)",
    "CREATE VIEW dice AS SELECT random() AS drawn, unixepoch('subsec') AS at",
];

/// Each with the number of rows that it adds to `stored`; `None`: to other tables.
fn statements(random: &mut Random) -> Vec<(Value, Option<usize>)> {
    let store = |kind: &str, expression: &str| {
        let sql = format!("INSERT INTO stored(kind, value) VALUES ('{kind}', {expression})");
        (json!(sql), Some(1))
    };
    let bytes = 1 + random.below(40);
    let mut all = vec![
        store("random", "random()"),
        store("random_upper", "RANDOM ( )"),
        store("fraction", "strftime('%f')"),
        store("subsecond", "unixepoch('subsec')"),
        store("time", "strftime('%Y-%m-%d %H:%M:%f', 'now', 'subsec')"),
        store("current", "CURRENT_TIMESTAMP || datetime('now', 'subsec')"),
        store("difference", "timediff('now', '2020-01-01')"),
        store("subquery", "(SELECT randomblob(4))"),
        store("sum", "randomblob(4+4)"),
        store("nested", "hex(randomblob(abs(random() % 8) + 1))"),
        store("counters", "last_insert_rowid() || '/' || total_changes()"),
        (
            json!([
                "INSERT INTO stored(kind, value) VALUES ('bound', randomblob(?))",
                bytes
            ]),
            Some(1),
        ),
        (
            json!(
                "WITH x AS (SELECT random() AS r) INSERT INTO stored(kind, value) \
                   SELECT 'with', r FROM x"
            ),
            Some(1),
        ),
        (
            json!(
                "INSERT INTO stored(kind, value) SELECT 'order', v FROM source \
                   ORDER BY random() LIMIT 5"
            ),
            Some(5),
        ),
        (
            json!(
                "INSERT INTO stored(kind, value) VALUES ('two', random()); \
                   INSERT INTO stored(kind, value) VALUES ('two', random())"
            ),
            Some(2),
        ),
        (
            json!("INSERT INTO stored(kind, value) SELECT 'view', drawn FROM dice"),
            Some(1),
        ),
        (json!("INSERT INTO triggered VALUES (random())"), Some(4)),
        (
            json!(["INSERT INTO defaults(n) VALUES (?), (?)", 1, 2]),
            None,
        ),
        (
            json!("INSERT INTO shuffled(v) SELECT v FROM source ORDER BY random()"),
            None,
        ),
        (
            json!("INSERT INTO words SELECT hex(randomblob(6)) FROM source"),
            None,
        ),
        (
            json!(
                "UPDATE source SET v = random() WHERE id IN \
                (SELECT id FROM source ORDER BY random() LIMIT 10)"
            ),
            None,
        ),
        (
            json!(
                "DELETE FROM shuffled WHERE id IN \
                (SELECT id FROM shuffled ORDER BY random() LIMIT 3)"
            ),
            None,
        ),
        (
            json!("CREATE TABLE IF NOT EXISTS made AS SELECT random() AS r, v FROM source"),
            None,
        ),
    ];
    for last in (1..all.len()).rev() {
        all.swap(last, random.below(last + 1));
    }
    all
}

/// The tables whose content is compared.
const TABLES: [&str; 6] = [
    "SELECT * FROM stored ORDER BY id",
    "SELECT * FROM source ORDER BY id",
    "SELECT * FROM defaults ORDER BY id",
    "SELECT * FROM shuffled ORDER BY id",
    "SELECT rowid, word FROM words ORDER BY rowid",
    "SELECT rowid, * FROM made ORDER BY rowid",
];

fn rows(cluster: &ProcessCluster, node: usize, sql: &str) -> Vec<Vec<Value>> {
    let rows = cluster.client().query(cluster.address(node), "none", sql);
    rows.unwrap_or_else(|error| panic!("{sql} on node {node}: {error}"))
}

fn count(cluster: &ProcessCluster, node: usize, sql: &str) -> usize {
    let count = rows(cluster, node, sql)[0][0].as_u64().unwrap();
    usize::try_from(count).unwrap()
}

#[test]
fn what_sqlite_draws_by_itself_is_the_same_on_every_node() {
    let mut random = Random::new(seed("divergence"));
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    for sql in SCHEMA {
        let node = random.below(3);
        let answer = cluster.client().execute_sql(cluster.address(node), sql);
        let _ = answer.expect_success();
    }
    let mut stored = 0;
    for _ in 0..ROUNDS {
        for (statement, adds) in statements(&mut random) {
            let endpoint = random.pick(&["/db/execute", "/db/request"]);
            let flags = random.pick(&["", "?noparse", "?norwrandom&norwtime", "?transaction"]);
            let node = cluster.address(random.below(3));
            let path = format!("{endpoint}{flags}");
            let answer = cluster.client().write(node, &path, &json!([statement]));
            let _ = answer.expect_success();
            stored += adds.unwrap_or(0);
        }
        let _ = cluster.assert_identical();
    }
    // Equal bytes could still be read differently, from a cache that missed a page.
    for sql in TABLES {
        let first = rows(&cluster, 0, sql);
        assert!(first.len() >= ROUNDS, "{sql}: {} rows", first.len());
        for node in 1..3 {
            assert_eq!(rows(&cluster, node, sql), first, "{sql} on node {node}");
        }
    }
    let all = "SELECT count(*) FROM stored";
    assert_eq!(
        count(&cluster, 0, all),
        stored,
        "no statement of a text is lost"
    );
    // Had anything been drawn once and kept as a constant, there would be fewer values than rows.
    for (what, sql) in [
        (
            "random()",
            "SELECT count(DISTINCT value) FROM stored WHERE kind = 'random'",
        ),
        (
            "a view",
            "SELECT count(DISTINCT value) FROM stored WHERE kind = 'view'",
        ),
        (
            "a CTE",
            "SELECT count(DISTINCT value) FROM stored WHERE kind = 'with'",
        ),
        (
            "a default",
            "SELECT count(DISTINCT drawn) / 2 FROM defaults",
        ),
        (
            "a default BLOB",
            "SELECT count(DISTINCT bytes) / 2 FROM defaults",
        ),
        (
            "a subquery",
            "SELECT count(DISTINCT value) FROM stored WHERE kind = 'subquery'",
        ),
    ] {
        assert_eq!(
            count(&cluster, 1, sql),
            ROUNDS,
            "{what} is drawn anew for every row"
        );
    }
    cluster.assert_healthy_logs();
}

#[test]
fn views_and_defaults_are_kept_as_they_were_written() {
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    for (node, sql) in [(2, SCHEMA[3]), (1, SCHEMA[8])] {
        let answer = cluster.client().execute_sql(cluster.address(node), sql);
        let _ = answer.expect_success();
    }
    let _ = cluster.assert_identical();
    let mut drawn = Vec::new();
    for node in 0..3 {
        let schema = rows(
            &cluster,
            node,
            "SELECT sql FROM sqlite_schema ORDER BY name DESC",
        );
        assert_eq!(schema, [[json!(SCHEMA[8])], [json!(SCHEMA[3])]]);
        for _ in 0..2 {
            drawn.push(rows(&cluster, node, "SELECT drawn FROM dice")[0][0].to_string());
        }
    }
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn.len(), 6, "each reading of the view draws anew");
    cluster.assert_healthy_logs();
}
