//! What clients may not do, on the writer and on the readers, and what must not be forbidden.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rusqlite::Connection;
use wallaby::sqlite::{Answer, Reply, Request, Shape, Statement, Writer, WriterOptions};

fn request(shape: Shape, sql: &str) -> Request {
    Request {
        statements: vec![Statement {
            sql: sql.to_owned(),
            parameters: Vec::new(),
        }],
        transaction: false,
        shape,
        statement_time_max: None,
        qualify_columns: false,
    }
}

/// Runs texts one after the other, each in a group of its own.
fn run(options: &WriterOptions, shape: Shape, texts: &[&str]) -> Vec<Reply> {
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join("db")).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        .unwrap();
    let mut writer = Writer::new(&connection, options).unwrap();
    let mut replies = Vec::new();
    for sql in texts {
        let end = writer.run(&connection, &[request(shape, sql)]);
        replies.extend(end.replies);
    }
    let mode: String = connection
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal", "nothing has switched the journal mode");
    let synchronous: i64 = connection
        .query_row("PRAGMA synchronous", [], |row| row.get(0))
        .unwrap();
    assert_eq!(synchronous, 2, "nothing has switched synchronous");
    replies
}

fn only(reply: &Reply) -> Answer {
    assert_eq!(reply.error, None);
    assert_eq!(reply.outcomes.len(), 1);
    reply.outcomes[0].answer.clone()
}

#[test]
fn pragmas_that_would_take_the_database_away_are_refused_with_the_whole_request() {
    let texts = [
        "PRAGMA JOURNAL_MODE=DELETE",
        "  PRAGMA synchronous = NORMAL",
        "PRAGMA synchronous(1)",
        "PRAGMA wal_autocheckpoint = 1000",
        "PRAGMA wal_checkpoint",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA main.wal_checkpoint",
        "PRAGMA query_only=1",
        "/* x */ PRAGMA journal_mode=DELETE",
        "-- x\npragma main . journal_mode('off')",
        "PRAGMA \"journal_mode\" = memory",
        "PRAGMA [main].[synchronous] = off",
        "INSERT INTO t VALUES (1, 1); PRAGMA synchronous=OFF",
        ";;PRAGMA synchronous=OFF",
        "\u{feff}PRAGMA synchronous=OFF",
        "EXPLAIN PRAGMA synchronous=OFF",
        "EXPLAIN QUERY PLAN PRAGMA wal_checkpoint",
        "PRAGMA/**/journal_mode/**/=/**/off",
    ];
    let refused = Reply {
        outcomes: Vec::new(),
        error: Some("disallowed pragma".to_owned()),
    };
    for shape in [Shape::Execute, Shape::Query, Shape::Unified] {
        let replies = run(&WriterOptions::default(), shape, &texts);
        for (sql, reply) in texts.iter().zip(&replies) {
            assert_eq!(*reply, refused, "{shape:?} {sql}");
        }
    }
}

#[test]
fn nothing_of_a_request_with_a_disallowed_pragma_runs() {
    let texts = [
        "INSERT INTO t VALUES (1, 1); PRAGMA synchronous=OFF",
        "SELECT count(*) FROM t",
    ];
    let replies = run(&WriterOptions::default(), Shape::Unified, &texts);
    let Answer::Rows(rows) = only(&replies[1]) else {
        panic!("rows expected");
    };
    assert_eq!(rows.values, [[wallaby::sqlite::Value::Integer(0)]]);
}

#[test]
fn statements_that_reach_beyond_the_database_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside.db");
    let outside = outside.to_str().unwrap();
    let attach = format!("ATTACH '{outside}' AS other");
    let vacuum = format!("VACUUM INTO '{outside}'");
    let nested = format!("VACUUM main INTO (SELECT '{outside}')");
    let detail_attach = "a cluster keeps one database; ATTACH and DETACH are not served";
    let detail_vacuum = "VACUUM INTO would write a file on the server";
    let temporary = "temporary objects would be shared by all clients of this node, \
         and are not replicated";
    let table = [
        (attach.as_str(), detail_attach),
        ("ATTACH ':memory:' AS other", detail_attach),
        ("ATTACH '' AS other", detail_attach),
        ("ATTACH 'file:x?mode=memory' AS other", detail_attach),
        ("EXPLAIN ATTACH '' AS other", detail_attach),
        ("DETACH main", detail_attach),
        (vacuum.as_str(), detail_vacuum),
        (nested.as_str(), detail_vacuum),
        ("VACUUM INTO ':memory:'", detail_vacuum),
        ("CREATE TEMP TABLE s (x)", temporary),
        ("CREATE TEMPORARY TABLE s AS SELECT 1", temporary),
        ("CREATE TABLE temp.s (x)", temporary),
        ("CREATE TEMP VIEW s AS SELECT 1", temporary),
        ("CREATE VIEW temp.s AS SELECT 1", temporary),
        (
            "CREATE TEMP TRIGGER s AFTER INSERT ON t BEGIN DELETE FROM t; END",
            temporary,
        ),
        ("CREATE VIRTUAL TABLE temp.s USING fts5(x)", temporary),
        (
            "PRAGMA foreign_keys=ON",
            "foreign keys are enforced by all connections or by none: start the nodes with -fk",
        ),
    ];
    let texts: Vec<&str> = table.iter().map(|(sql, _)| *sql).collect();
    for shape in [Shape::Execute, Shape::Unified] {
        let replies = run(&WriterOptions::default(), shape, &texts);
        for ((sql, detail), reply) in table.iter().zip(&replies) {
            let expected = Answer::Failed(format!("not authorized: {detail}"));
            assert_eq!(only(reply), expected, "{sql}");
        }
    }
    let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(files.is_empty(), "nothing was written: {files:?}");
}

/// Pragmas that are connection state, or would damage the file. The refusal repeats them.
const REFUSED_PRAGMAS: [&str; 22] = [
    "PRAGMA writable_schema=ON",
    "PRAGMA writable_schema",
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA defer_foreign_keys=ON",
    "PRAGMA recursive_triggers=ON",
    "PRAGMA schema_version=5",
    "PRAGMA page_size=512",
    "PRAGMA auto_vacuum=1",
    "PRAGMA mmap_size=100000",
    "PRAGMA max_page_count=1",
    "PRAGMA hard_heap_limit=1",
    "PRAGMA soft_heap_limit",
    "PRAGMA case_sensitive_like=ON",
    "PRAGMA legacy_alter_table=ON",
    "PRAGMA ignore_check_constraints=1",
    "PRAGMA cell_size_check=1",
    "PRAGMA trusted_schema=0",
    "PRAGMA reverse_unordered_selects=1",
    "PRAGMA cache_spill=0",
    "PRAGMA secure_delete=0",
    "PRAGMA temp_store_directory=x",
    "PRAGMA encoding=UTF16",
];

#[test]
fn pragmas_are_refused_unless_they_are_known_to_be_harmless() {
    for shape in [Shape::Execute, Shape::Query, Shape::Unified] {
        let replies = run(&WriterOptions::default(), shape, &REFUSED_PRAGMAS);
        for (sql, reply) in REFUSED_PRAGMAS.iter().zip(&replies) {
            let expected = Answer::Failed(format!("not authorized: {sql}"));
            assert_eq!(only(reply), expected, "{shape:?}");
        }
    }
}

#[test]
fn extensions_cannot_be_loaded() {
    for shape in [Shape::Execute, Shape::Unified] {
        let direct = "SELECT load_extension('x')";
        let in_view = "CREATE VIEW v AS SELECT load_extension('x'); SELECT * FROM v";
        let replies = run(&WriterOptions::default(), shape, &[direct, in_view]);
        assert_eq!(
            only(&replies[0]),
            Answer::Failed("not authorized".to_owned())
        );
        assert!(matches!(only(&replies[1]), Answer::Failed(_)));
    }
}

/// Run one after the other.
const ALLOWED: [&str; 57] = [
    "PRAGMA journal_mode",
    "PRAGMA synchronous",
    "PRAGMA query_only",
    "PRAGMA foreign_keys",
    "PRAGMA foreign_keys=OFF",
    "PRAGMA user_version",
    "PRAGMA user_version=7",
    "PRAGMA application_id=8",
    "PRAGMA main.table_info(t)",
    "SELECT * FROM pragma_table_info('t')",
    "SELECT * FROM pragma_user_version",
    "SELECT * FROM pragma_journal_mode",
    "PRAGMA table_list",
    "PRAGMA integrity_check",
    "PRAGMA integrity_check(1)",
    "PRAGMA quick_check",
    "PRAGMA foreign_key_check",
    "PRAGMA foreign_key_list(t)",
    "PRAGMA compile_options",
    "PRAGMA database_list",
    "PRAGMA schema_version",
    "PRAGMA page_count",
    "PRAGMA incremental_vacuum(1)",
    "PRAGMA optimize",
    "EXPLAIN QUERY PLAN DELETE FROM t",
    "VACUUM",
    "VACUUM main",
    "ANALYZE",
    "REINDEX",
    "CREATE INDEX i ON t(x)",
    "ALTER TABLE t RENAME COLUMN x TO y",
    "ALTER TABLE t RENAME TO u",
    "ALTER TABLE u ADD COLUMN z",
    "ALTER TABLE u DROP COLUMN z",
    "CREATE VIEW v AS SELECT * FROM u",
    "CREATE TRIGGER g AFTER INSERT ON u BEGIN UPDATE u SET y = 1; END",
    "INSERT INTO u VALUES (1, 2)",
    "CREATE VIRTUAL TABLE f USING fts5(a)",
    "INSERT INTO f VALUES ('some words')",
    "SELECT * FROM f WHERE f MATCH 'words'",
    "INSERT INTO f(f) VALUES ('optimize')",
    "CREATE VIRTUAL TABLE g3 USING fts3(a)",
    "INSERT INTO g3 VALUES ('some words')",
    "SELECT * FROM g3 WHERE g3 MATCH 'words'",
    "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1)",
    "INSERT INTO r VALUES (1, 2, 3)",
    "SELECT * FROM r WHERE x0 > 1",
    "ALTER TABLE f RENAME TO f2",
    "SELECT * FROM dbstat",
    "SELECT * FROM sqlite_temp_schema",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 9) SELECT * FROM c",
    "DROP TABLE f2",
    "DROP TABLE g3",
    "DROP TABLE r",
    "DROP VIEW v",
    "DROP TRIGGER g",
    "DROP TABLE u",
];

#[test]
fn ordinary_statements_and_reading_pragmas_are_allowed() {
    for shape in [Shape::Execute, Shape::Unified] {
        let replies = run(&WriterOptions::default(), shape, &ALLOWED);
        for (sql, reply) in ALLOWED.iter().zip(&replies) {
            assert!(
                !matches!(only(reply), Answer::Failed(_)),
                "{sql}: {reply:?}"
            );
        }
    }
}

#[test]
fn a_statement_compiled_again_is_judged_for_the_client_that_runs_it() {
    // The pragma is allowed to a writer; the same text must not pass as a query afterwards.
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join("db")).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    let mut writer = Writer::new(&connection, &WriterOptions::default()).unwrap();
    let sql = "PRAGMA user_version=7";
    let mut one = |shape| {
        let end = writer.run(&connection, &[request(shape, sql)]);
        only(&end.replies[0])
    };
    let written = Answer::Written {
        last_insert_id: 0,
        rows_affected: 0,
    };
    assert_eq!(one(Shape::Execute), written);
    let refused = Answer::Failed("attempt to change database via query operation".to_owned());
    assert_eq!(one(Shape::Query), refused);
    assert_eq!(one(Shape::Execute), written);
}
