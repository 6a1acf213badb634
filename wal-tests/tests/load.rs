//! Loads into real processes: files of every kind, damaged ones, SQL, gzip, and what is refused.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rusqlite::Connection;
use serde_json::json;
use wal_tests::client::{Client, Response};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::seed::{Random, seed};

const EMPTY: &str = "{\"results\":[]}";

fn client() -> Client {
    Client::new(Duration::from_secs(120))
}

fn load(cluster: &ProcessCluster, node: usize, body: &[u8]) -> Response {
    let address = cluster.address(node);
    let kind = "application/octet-stream";
    client().post(address, "/db/load", kind, body).unwrap()
}

#[track_caller]
fn assert_loaded(cluster: &ProcessCluster, body: &[u8]) {
    let answer = load(cluster, 0, body);
    assert_eq!((answer.status, answer.body.as_str()), (200, EMPTY));
}

/// A file made by plain SQLite with these statements.
fn file(dir: &Path, statements: &str) -> Vec<u8> {
    let path = dir.join("made.db");
    for suffix in ["", "-wal", "-shm", "-journal"] {
        // Left from the file before, or not there.
        let _ = std::fs::remove_file(dir.join(format!("made.db{suffix}")));
    }
    let database = Connection::open(&path).unwrap();
    database.execute_batch(statements).unwrap();
    database.close().unwrap();
    std::fs::read(path).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

const ROWS: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v); \
     WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 500) \
     INSERT INTO t SELECT i, 'row ' || i || hex(zeroblob(i % 50)) FROM n; \
     DELETE FROM t WHERE id % 5 = 0;";

#[test]
fn every_page_size_journal_mode_and_auto_vacuum_is_taken() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    for page_bytes in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        for (journal, vacuum) in [("DELETE", 0), ("WAL", 1), ("WAL", 2), ("DELETE", 1)] {
            number += 1;
            let made = format!(
                "PRAGMA page_size = {page_bytes}; PRAGMA auto_vacuum = {vacuum}; \
                 PRAGMA journal_mode = {journal}; {ROWS} PRAGMA user_version = {number};"
            );
            assert_loaded(&cluster, &file(dir.path(), &made));
            // And the writer goes on with it, whatever it had in its cache.
            let sql = "INSERT INTO t(v) VALUES('written after')";
            let _ = cluster
                .client()
                .execute_sql(cluster.address(0), sql)
                .expect_success();
            let image = cluster.assert_identical();
            assert_eq!(image.page_bytes, 4096);
            assert_eq!(image.bytes[18..20], [2, 2]);
            let database = cluster.open(&image);
            let found: (i64, i64, i64) = database
                .query_row(
                    "SELECT count(*), (SELECT user_version FROM pragma_user_version), \
                     (SELECT auto_vacuum FROM pragma_auto_vacuum) FROM t",
                    (),
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                )
                .unwrap();
            assert_eq!(found, (401, number, vacuum), "{page_bytes} {journal}");
        }
    }
    let delete = "DELETE FROM t";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), delete)
        .expect_success();
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

/// Names, values and objects that a dump can trip over.
const NASTY: &str = r#"
    CREATE TABLE "a ""b"" 'c', d;" ("x ""y""" TEXT, 'z' BLOB, "select" REAL);
    INSERT INTO "a ""b"" 'c', d;" VALUES
        ('it''s', x'00ff10', 9e999), (char(0) || 'nul' || char(0), x'', -9e999),
        ('line' || char(10) || 'break' || char(13), NULL, 0.1),
        ('', zeroblob(3), 1e300), (CAST(x'ff80' AS TEXT), NULL, 5e-324),
        (char(0x1F600), x'61', 123456789.12345679);
    CREATE TABLE "1"(i INTEGER PRIMARY KEY AUTOINCREMENT, v, g AS (v || '!') STORED);
    INSERT INTO "1"(i, v) VALUES(5, 1.0), (9223372036854775806, -9223372036854775807 - 1);
    CREATE TABLE zoo(id INTEGER PRIMARY KEY AUTOINCREMENT, name);
    INSERT INTO zoo(name) VALUES('ape'), ('bee'), ('cat');
    DELETE FROM zoo WHERE id = 3;
    CREATE TABLE w(k TEXT PRIMARY KEY, n INT) WITHOUT ROWID;
    INSERT INTO w VALUES('b', 2), ('a', 1);
    CREATE TABLE parent(id INTEGER PRIMARY KEY);
    CREATE TABLE child(p REFERENCES parent(id) NOT NULL);
    INSERT INTO parent VALUES(7);
    INSERT INTO child VALUES(7);
    CREATE VIEW v AS SELECT name FROM zoo;
    CREATE TRIGGER seen INSTEAD OF INSERT ON v BEGIN INSERT INTO w VALUES(new.name, 0); END;
    CREATE TRIGGER counted AFTER INSERT ON zoo BEGIN UPDATE w SET n = n + 1; END;
    CREATE UNIQUE INDEX "i ""x""" ON zoo(name COLLATE NOCASE) WHERE id > 0;
    CREATE VIRTUAL TABLE docs USING fts5(title, body UNINDEXED, tokenize = 'porter');
    INSERT INTO docs(rowid, title, body) VALUES(3, 'running dogs', 'x'), (8, 'a cat''s nap', 'y');
    CREATE VIRTUAL TABLE names USING fts5(name, content='zoo', content_rowid='id');
    INSERT INTO names(names) VALUES('rebuild');
    CREATE VIRTUAL TABLE old USING fts4(a, b);
    INSERT INTO old(docid, a, b) VALUES(4, 'first', 'second');
    CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);
    INSERT INTO boxes VALUES(1, 0.5, 2.25);
    ANALYZE;
"#;

/// Everything that can be asked of a database with the nasty content.
fn content(database: &Connection) -> Vec<String> {
    let queries = [
        "SELECT type || name || tbl_name || coalesce(sql, '') FROM sqlite_schema \
         WHERE name NOT LIKE 'sqlite_stat4' ORDER BY type, name",
        r#"SELECT hex("x ""y""") || typeof("x ""y""") || quote(z) || quote("select")
           FROM "a ""b"" 'c', d;" ORDER BY rowid"#,
        r#"SELECT i || typeof(v) || quote(v) || quote(g) FROM "1" ORDER BY i"#,
        "SELECT id || name FROM zoo ORDER BY id",
        "SELECT name || seq FROM sqlite_sequence ORDER BY name",
        "SELECT k || n FROM w ORDER BY k",
        "SELECT p FROM child",
        "SELECT rowid || title || body FROM docs('run OR nap') ORDER BY rowid",
        "SELECT rowid || name FROM names('bee')",
        "SELECT docid || a || b FROM old WHERE old MATCH 'second'",
        "SELECT id || '/' || x0 || '/' || x1 FROM boxes WHERE x0 < 1",
        "SELECT tbl || coalesce(idx, '') || stat FROM sqlite_stat1 ORDER BY tbl, idx",
    ];
    let mut all = Vec::new();
    for query in queries {
        let mut statement = database.prepare(query).unwrap();
        let rows = statement.query_map((), |row| row.get_ref(0).map(|value| format!("{value:?}")));
        let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
        assert!(!rows.is_empty(), "{query}");
        all.extend(rows);
    }
    all
}

#[test]
fn a_dump_of_nasty_content_loads_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let made = file(dir.path(), NASTY);
    let original = Connection::open(dir.path().join("made.db")).unwrap();
    let first = ProcessCluster::start(1, &Formation::Join, &[]);
    assert_loaded(&first, &made);
    let download = client().download(first.address(0), "/db/backup?fmt=sql");
    let dump = download.unwrap().bytes;
    assert!(!dump.windows(2).any(|two| two == b";;"));
    for flags in [&[][..], &["-fk"]] {
        let mut second = ProcessCluster::start(1, &Formation::Join, flags);
        let answer = load(&second, 0, &dump);
        assert_eq!(answer.status, 200);
        assert!(
            answer.body.starts_with("{\"results\":[{"),
            "{}",
            answer.body
        );
        assert!(!answer.body.contains("error"), "{}", answer.body);
        let image = second.assert_identical();
        assert_eq!(content(&second.open(&image)), content(&original));
        // Foreign keys are as they were before.
        let orphan = "INSERT INTO child VALUES(99)";
        let outcome = second.client().execute_sql(second.address(0), orphan);
        let refused = format!("{outcome:?}").contains("FOREIGN KEY constraint failed");
        assert_eq!(refused, !flags.is_empty(), "{outcome:?}");
    }
}

#[test]
fn sql_is_answered_as_one_statement_and_rolled_back_where_it_fails() {
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let body = |body: &str| {
        let answer = load(&cluster, 0, body.as_bytes());
        assert_eq!(answer.status, 200);
        answer.body
    };
    assert_eq!(body(""), EMPTY);
    let sql = "CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);";
    let one = "{\"results\":[{\"last_insert_id\":2,\"rows_affected\":1}]}";
    assert_eq!(body(sql), one);
    let failing = "INSERT INTO t VALUES(3); INSERT INTO nope2 VALUES(1);";
    let missing = "{\"results\":[{\"error\":\"no such table: nope2\"}]}";
    assert_eq!(body(failing), missing);
    let failing = "BEGIN; INSERT INTO t VALUES(4); INSERT INTO nope2 VALUES(1); COMMIT;";
    assert_eq!(body(failing), missing);
    let image = cluster.assert_identical();
    let kept: String = cluster
        .open(&image)
        .query_row("SELECT group_concat(a) FROM t", (), |row| row.get(0))
        .unwrap();
    assert_eq!(
        kept, "1,2,3",
        "what came before a failure outside of a transaction stays"
    );
    let compressed = load(&cluster, 0, &gzip(b"DELETE FROM t WHERE a > 1"));
    let two = "{\"results\":[{\"last_insert_id\":3,\"rows_affected\":2}]}";
    assert_eq!(compressed.body, two);
}

#[test]
fn a_loaded_file_begins_new_counters_and_a_compressed_one_is_the_same() {
    let cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let dir = tempfile::tempdir().unwrap();
    let (address, client) = (cluster.address(0), client());
    let statements = json!(["CREATE TABLE t(a)", "INSERT INTO t VALUES(1), (2)"]);
    let _ = client.execute(address, &statements).expect_success();
    let made = file(dir.path(), "CREATE TABLE u(a); INSERT INTO u VALUES(1);");
    assert_loaded(&cluster, &gzip(&made));
    let nothing = client.execute(address, &json!(["DELETE FROM u WHERE a = 9"]));
    // Counters of zero are left out.
    assert_eq!(nothing.expect_success().results, [json!({})]);
    let rows = client.query(address, "strong", "SELECT a FROM u").unwrap();
    assert_eq!(rows, [[json!(1)]]);
}

/// What must not have changed.
fn state(cluster: &mut ProcessCluster) -> (String, u64) {
    let image = cluster.assert_identical();
    (image.hash.clone(), image.data_index)
}

#[test]
fn what_is_no_sound_database_changes_nothing_anywhere() {
    let mut random = Random::new(seed("load"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let dir = tempfile::tempdir().unwrap();
    assert_loaded(
        &cluster,
        &file(
            dir.path(),
            "CREATE TABLE mine(a); INSERT INTO mine VALUES(1)",
        ),
    );
    let before = state(&mut cluster);
    let sound = file(dir.path(), &format!("{ROWS} PRAGMA user_version = 77;"));
    let mut refused: Vec<(String, Vec<u8>)> = Vec::new();
    for length in [
        16,
        99,
        100,
        512,
        4095,
        4096,
        8192,
        sound.len() - 4096,
        sound.len() - 1,
    ] {
        refused.push((format!("cut to {length}"), sound[..length].to_vec()));
    }
    let mut longer = sound.clone();
    longer.extend_from_slice(b"rest");
    refused.push(("too long".to_owned(), longer));
    for encoding in ["UTF-16le", "UTF-16be"] {
        let made = format!("PRAGMA encoding = '{encoding}'; CREATE TABLE x(a);");
        refused.push((encoding.to_owned(), file(dir.path(), &made)));
    }
    refused.push(("zeros".to_owned(), vec![0; 4096]));
    refused.push(("not UTF-8".to_owned(), b"SELECT '\xff\xfe'".to_vec()));
    let mut broken = gzip(&sound);
    let length = broken.len();
    broken.truncate(length - 20);
    refused.push(("cut gzip".to_owned(), broken));
    for (what, body) in &refused {
        let node = random.below(3);
        let answer = load(&cluster, node, body);
        assert_eq!(answer.status, 400, "{what}: {}", answer.body);
        assert!(answer.body.len() > 20, "{what}: {}", answer.body);
    }
    assert_eq!(state(&mut cluster), before);
    cluster.assert_healthy_logs();
}

#[test]
fn a_flipped_bit_is_found_or_does_no_harm() {
    let mut random = Random::new(seed("load"));
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let dir = tempfile::tempdir().unwrap();
    let sound = file(dir.path(), ROWS);
    assert_loaded(&cluster, &sound);
    let mut before = state(&mut cluster);
    let (mut taken, mut damaged) = (0, 0);
    for _ in 0..40 {
        let mut body = sound.clone();
        // Half of them in the headers of pages, where damage shows.
        let at = if random.chance(50) {
            random.below(body.len() / 4096) * 4096 + random.below(100)
        } else {
            random.below(body.len())
        };
        body[at] ^= 1 << random.below(8);
        let answer = load(&cluster, random.below(3), &body);
        if answer.status == 200 && answer.body == EMPTY {
            // A bit of a value, of free space: a sound database all the same.
            taken += 1;
            cluster.assert_identical();
            assert_loaded(&cluster, &sound);
            before = state(&mut cluster);
        } else {
            damaged += 1;
            assert_eq!(state(&mut cluster), before, "offset {at}");
            let what = format!("offset {at}: {} {}", answer.status, answer.body);
            assert!(
                answer.status == 400 || answer.body.contains("error"),
                "{what}"
            );
        }
    }
    assert!(damaged > 0, "{taken} files were taken");
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}

#[test]
fn a_bomb_and_a_large_file_stop_at_the_limit() {
    let flags = ["-max-transaction-bytes", "4194304"];
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &flags);
    let dir = tempfile::tempdir().unwrap();
    assert_loaded(&cluster, &file(dir.path(), "CREATE TABLE mine(a)"));
    let before = state(&mut cluster);
    let bomb = gzip(&vec![b' '; 256 << 20]);
    assert!(bomb.len() < 4 << 20);
    for body in [bomb, vec![b' '; 5 << 20]] {
        let answer = load(&cluster, 0, &body);
        assert_eq!(answer.status, 413, "{}", answer.body);
        assert!(
            answer.body.contains("-max-transaction-bytes"),
            "{}",
            answer.body
        );
    }
    // Below the limit as a file, and above it as a transaction, whose frames have headers.
    let made = file(
        dir.path(),
        "CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(4176000));",
    );
    assert!(made.len() <= 4 << 20, "{}", made.len());
    let answer = load(&cluster, 0, &made);
    assert_eq!(answer.status, 500, "{}", answer.body);
    assert!(
        answer.body.contains("-max-transaction-bytes"),
        "{}",
        answer.body
    );
    assert_eq!(state(&mut cluster), before);
    let sql = "INSERT INTO mine VALUES(1)";
    let _ = cluster
        .client()
        .execute_sql(cluster.address(0), sql)
        .expect_success();
    cluster.assert_identical();
}

#[test]
fn boot_fills_a_node_that_is_alone_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let made = file(dir.path(), ROWS);
    let boot = |cluster: &ProcessCluster, node: usize, body: &[u8]| {
        let answer = client()
            .post(cluster.address(node), "/boot", "", body)
            .unwrap();
        (answer.status, answer.body)
    };
    let mut cluster = ProcessCluster::start(1, &Formation::Join, &[]);
    let invalid = (400, "invalid SQLite data\n".to_owned());
    assert_eq!(boot(&cluster, 0, &[b'x'; 100]), invalid);
    assert_eq!(
        boot(&cluster, 0, b"SQLite format 3"),
        (503, "EOF\n".to_owned())
    );
    assert_eq!(boot(&cluster, 0, b""), (503, "EOF\n".to_owned()));
    assert_eq!(boot(&cluster, 0, &made[..5000]).0, 400);
    assert_eq!(boot(&cluster, 0, &made), (200, String::new()));
    let image = cluster.assert_identical();
    let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let rows = cluster
        .open(&image)
        .query_row("SELECT count(*) FROM t", (), count);
    assert_eq!(rows, Ok(400));

    let mut three = ProcessCluster::start(3, &Formation::Expect, &[]);
    let leader = three.wait_leader();
    let several = (503, "not single-node\n".to_owned());
    assert_eq!(boot(&three, leader, &made), several);
    let follower = (503, "not leader\n".to_owned());
    assert_eq!(boot(&three, (leader + 1) % 3, &made), follower);
}

#[test]
fn a_snapshot_is_taken_once_and_a_reap_counts_the_wal() {
    let mut cluster = ProcessCluster::start(3, &Formation::Expect, &[]);
    let client = client();
    let statements = json!(["CREATE TABLE t(a)", "INSERT INTO t VALUES(1)"]);
    let _ = client
        .execute(cluster.address(0), &statements)
        .expect_success();
    cluster.wait_converged();
    let post = |cluster: &ProcessCluster, node: usize, path: &str| {
        let answer = client.post(cluster.address(node), path, "", b"").unwrap();
        (answer.status, answer.body)
    };
    for node in 0..3 {
        assert_eq!(post(&cluster, node, "/snapshot").0, 200, "node {node}");
        assert_eq!(
            post(&cluster, node, "/snapshot"),
            (204, String::new()),
            "node {node}"
        );
        let status = client.json(cluster.address(node), "/status").unwrap();
        let (purged, data) = (
            &status["wallaby"]["purged_index"],
            &status["wallaby"]["data_index"],
        );
        assert_eq!(purged, data, "nothing of the log is kept");
    }
    let nothing = "{\"snapshots_reaped\":0,\"wals_checkpointed\":0}\n";
    assert_eq!(post(&cluster, 0, "/reap"), (200, nothing.to_owned()));
    // A node that was away gets the whole database, for the log of the others is gone.
    let leader = cluster.wait_leader();
    let away = (leader + 1) % 3;
    cluster.kill(away);
    let sql = "INSERT INTO t VALUES(2)";
    let _ = client
        .execute_sql(cluster.address(leader), sql)
        .expect_success();
    assert_eq!(post(&cluster, leader, "/snapshot?trailing_logs=0").0, 200);
    cluster.start_node(away);
    cluster.wait_ready(away);
    cluster.assert_identical();
    cluster.assert_healthy_logs();
}
