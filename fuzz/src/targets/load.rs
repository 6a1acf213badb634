//! Database images as they come to `/db/load`: each is looked at in isolation, and what is found
//! fit replaces a database, which is sound afterwards. Nothing else in the directory is touched.
//!
//! An input is the image behind one byte that says which page size the database here has.

use std::fs;
use std::time::Duration;

use rusqlite::Connection;
use wallaby::sqlite::{Extensions, SqlCommit, Writer, WriterOptions, vet};

use crate::{Reached, Sample, place};

/// See the module.
///
/// # Panics
/// If what was found fit spoils the database that it replaces, or if files appear.
pub fn load(data: &[u8]) -> Reached {
    let (size, image) = data.split_first().unwrap_or((&0, &[]));
    let page_bytes = [512, 1024, 4096][usize::from(*size) % 3];
    let dir = place::empty_directory("load");
    let path = dir.join("received");
    fs::write(&path, image).expect("room for an image");
    let converted = dir.join("converted");
    let extensions = Extensions::default();
    let fit = vet(&path, &converted, page_bytes, &extensions, TIME_MAX);
    for name in place::names(&dir) {
        assert!(name == "received" || name == "converted", "{name} appeared");
    }
    let Ok(fit) = fit else {
        return Reached::Refused;
    };
    let bytes = fs::metadata(&fit.path).expect("it is there").len();
    assert!(fit.bytes <= bytes && fit.bytes % u64::from(page_bytes) == 0);
    let mut here = Connection::open(dir.join("db")).expect("a database");
    let set_up =
        format!("PRAGMA page_size = {page_bytes}; PRAGMA journal_mode = WAL; CREATE TABLE old(a);");
    here.execute_batch(&set_up).expect("a database");
    let mut writer = Writer::new(&here, &WriterOptions::default()).expect("a connection");
    let end = writer.replace(&mut here, &fit.path);
    assert_eq!(end.sql_commit, SqlCommit::Done);
    assert_eq!(end.replies[0].error, None, "it was found fit");
    drop(writer);
    let verdict: Result<String, _> =
        here.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0));
    assert_eq!(verdict.as_deref(), Ok("ok"), "it was found fit");
    let mode: String = here
        .query_row("PRAGMA journal_mode", (), |row| row.get(0))
        .expect("an open database");
    assert_eq!(mode, "wal");
    drop(here);
    for name in place::names(&dir) {
        let known = ["received", "converted", "db", "db-wal", "db-shm"];
        assert!(known.contains(&name.as_str()), "{name} appeared");
    }
    Reached::Accepted
}

/// Pieces of a schema.
pub(crate) const WORDS: [&str; 16] = [
    "CREATE TABLE ",
    "CREATE INDEX ",
    "CREATE VIEW ",
    "CREATE TRIGGER ",
    "CREATE VIRTUAL TABLE ",
    " USING fts5(",
    "WITHOUT ROWID",
    "CHECK(",
    "GENERATED ALWAYS AS (",
    "load_extension('x')",
    "writefile(",
    "readfile(",
    "sqlite_",
    "UNIQUE",
    "COLLATE nocase",
    "DEFAULT (random())",
];

pub(crate) fn samples() -> Vec<Sample> {
    let dir = place::empty_directory("load-sample");
    let database = |name: &str, sql: &str| {
        let path = dir.join(name);
        let connection = Connection::open(&path).expect("a database");
        connection.execute_batch(sql).expect("a schema");
        connection.close().expect("nothing is prepared");
        fs::read(path).expect("a database")
    };
    let plain = database(
        "plain",
        "PRAGMA page_size = 512;
         CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE, c DEFAULT (a + 1) CHECK (c > 0));
         CREATE INDEX i ON t(c) WHERE c > 5; CREATE VIEW v AS SELECT a, upper(b) FROM t;
         CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET c = 9 WHERE a = new.a; END;
         CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID;
         INSERT INTO t(b, c) VALUES ('one', 1), ('two', 7), (zeroblob(700), 8);
         INSERT INTO w VALUES ('x', 1.5), ('y', NULL);"
            .replace("DEFAULT (a + 1)", "DEFAULT 3")
            .as_str(),
    );
    let search = database(
        "search",
        "PRAGMA page_size = 512; CREATE VIRTUAL TABLE f USING fts5(x);
         INSERT INTO f VALUES ('some words'), ('more');",
    );
    let shapes = database(
        "shapes",
        "PRAGMA page_size = 512; CREATE VIRTUAL TABLE r USING rtree(id, x0, x1);
         INSERT INTO r VALUES (1, 2, 3);",
    );
    let vacuumed = database(
        "vacuumed",
        "PRAGMA page_size = 1024; PRAGMA auto_vacuum = FULL; CREATE TABLE t(a, b AS (a * 2));
         INSERT INTO t VALUES (1), (2); DELETE FROM t WHERE a = 1;",
    );
    let utf16 = database(
        "utf16",
        "PRAGMA encoding = 'UTF-16'; PRAGMA page_size = 512; CREATE TABLE t(a);",
    );
    let sized = |size: u8, image: &[u8]| [&[size], image].concat();
    vec![
        Sample::new("plain", sized(0, &plain)),
        Sample::new("plain-converted", sized(1, &plain)),
        Sample::new("plain-cut", sized(0, &plain[..plain.len() - 512])),
        Sample::new("search", sized(0, &search)),
        Sample::new("shapes", sized(0, &shapes)),
        Sample::new("vacuumed", sized(1, &vacuumed)),
        Sample::new("utf16", sized(0, &utf16)),
        Sample::new("script", sized(0, b"CREATE TABLE t(a);")),
        Sample::new("empty", sized(0, &[])),
    ]
}

/// Long for files of some pages, short for a loop in one.
const TIME_MAX: Duration = Duration::from_secs(2);
