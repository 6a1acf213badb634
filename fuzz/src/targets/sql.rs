//! SQL of a grammar that knows all ways to files, given to a writer as clients do: no statement
//! makes, changes or reads a file outside of the data directory.
//!
//! An input chooses productions byte by byte. Beside the data directory lie a database and a text
//! that nobody may see; they hold a word that no answer may hold, and the directories around the
//! data directory are compared before and after.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use wallaby::sqlite::{
    Answer, Limits, Request, Shape, Statement, Value, Writer, WriterOptions,
    keep_temporary_files_in,
};

use super::sql_grammar::Grammar;
use crate::script::Script;
use crate::{Reached, Sample, place};

/// What no answer may hold.
const CANARY: &str = "canary-4f1d";

/// Where the process works, so that a relative name leads there.
struct Surroundings {
    work: TempDir,
}

impl Surroundings {
    fn enter() -> &'static Self {
        static ENTERED: OnceLock<Surroundings> = OnceLock::new();
        ENTERED.get_or_init(|| {
            let work = place::new_directory();
            std::env::set_current_dir(work.path()).expect("a directory of ours");
            Self { work }
        })
    }
}

/// See the module.
///
/// # Panics
/// If a file was touched that is none of the database's.
pub fn sql(data: &[u8]) -> Reached {
    let surroundings = Surroundings::enter();
    let root = place::directory("sql");
    let outside = Outside::prepare(&root);
    let inside = place::empty_directory("sql/data");
    static TEMPORARY: Once = Once::new();
    TEMPORARY.call_once(|| keep_temporary_files_in(&inside));
    let path = inside.join("db");
    fs::write(&path, template()).expect("room for a database");
    let mut script = Script::new(data);
    let mut grammar = Grammar::new(&outside.names);
    let connection = Connection::open(&path).expect("a database");
    let mut writer = Writer::new(&connection, &options()).expect("a connection");
    let (mut texts, mut worked) = (Vec::new(), 0);
    for _ in 0..REQUESTS_MAX {
        let request = request(&mut script, &mut grammar);
        texts.extend(
            request
                .statements
                .iter()
                .map(|statement| statement.sql.clone()),
        );
        let end = writer.run(&connection, &[request]);
        for reply in &end.replies {
            let shown = format!("{:?}", reply.error);
            assert!(!shown.contains(CANARY), "{texts:?} answered {shown}");
            for outcome in &reply.outcomes {
                assert!(!holds(&outcome.answer), "{texts:?} read a file");
                worked += u32::from(!matches!(outcome.answer, Answer::Failed(_)));
            }
        }
        if script.is_empty() {
            break;
        }
    }
    drop(writer);
    drop(connection);
    for name in place::names(&inside) {
        let known = ["db", "db-wal", "db-shm", "db-journal"].contains(&name.as_str());
        assert!(known, "{texts:?} made {name} in the data directory");
    }
    outside.check(&texts);
    let stray = place::names(surroundings.work.path());
    assert!(stray.is_empty(), "{texts:?} made {stray:?}");
    Reached::accepted(worked > 0)
}

fn options() -> WriterOptions {
    WriterOptions {
        limits: Limits {
            value_bytes_max: 1 << 20,
            result_bytes_max: 1 << 20,
            ..Limits::default()
        },
        ..WriterOptions::default()
    }
}

fn request(script: &mut Script<'_>, grammar: &mut Grammar<'_>) -> Request {
    let choice = script.byte();
    let statements = (0..=choice / 64)
        .map(|_| Statement {
            sql: grammar.text(script),
            parameters: Vec::new(),
        })
        .collect();
    Request {
        statements,
        transaction: choice % 2 == 1,
        shape: match choice % 7 {
            0 | 1 => Shape::Query,
            2 | 3 => Shape::Execute,
            _ => Shape::Unified,
        },
        statement_time_max: Some(TIME_MAX),
        qualify_columns: choice.is_multiple_of(5),
    }
}

/// Whether the canary stands in the answer: also in pieces of a page that was read as a BLOB.
fn holds(answer: &Answer) -> bool {
    let contains = |bytes: &[u8]| {
        let mut windows = bytes.windows(CANARY.len());
        windows.any(|window| window == CANARY.as_bytes())
    };
    match answer {
        Answer::Failed(text) => contains(text.as_bytes()),
        Answer::Written { .. } => false,
        Answer::Rows(rows) => {
            let names = rows.columns.iter().chain(&rows.types);
            let mut names = names.map(String::as_bytes);
            let mut values = rows.values.iter().flatten();
            names.any(contains)
                || values.any(|value| match value {
                    Value::Blob(bytes) | Value::Text(bytes) => contains(bytes),
                    _ => false,
                })
        }
    }
}

/// What lies beside the data directory.
struct Outside {
    dir: PathBuf,
    /// Names that a statement may use: absolute, relative, and as URIs.
    names: Vec<String>,
}

impl Outside {
    /// The same for each input of a thread; made by the first, and again after it was touched.
    fn prepare(root: &Path) -> Self {
        let dir = root.join("outside");
        if !dir.exists() {
            fs::create_dir_all(&dir).expect("a directory of ours");
            fs::write(dir.join("text"), format!("{CANARY}\n")).expect("room for a text");
            let database = Connection::open(dir.join("secret.db")).expect("a database");
            database
                .execute_batch(&format!(
                    "CREATE TABLE secret(word); INSERT INTO secret VALUES ('{CANARY}');"
                ))
                .expect("a table");
        }
        let shown = dir.display();
        let names = vec![
            format!("{shown}/secret.db"),
            format!("{shown}/text"),
            format!("{shown}/new"),
            format!("file:{shown}/secret.db?mode=ro"),
            format!("file:{shown}/new?mode=rwc"),
            "../outside/secret.db".to_owned(),
            "relative".to_owned(),
            "file:relative?mode=rwc&cache=shared".to_owned(),
            ":memory:".to_owned(),
            "file:x?mode=memory".to_owned(),
            String::new(),
            "/dev/stdout".to_owned(),
        ];
        Self { dir, names }
    }

    fn check(&self, texts: &[String]) {
        let names = place::names(&self.dir);
        assert_eq!(
            names,
            ["secret.db", "text"],
            "{texts:?} touched a directory"
        );
        let text = fs::read(self.dir.join("text")).expect("it is there");
        assert_eq!(text, format!("{CANARY}\n").as_bytes(), "{texts:?}");
        let secret = fs::read(self.dir.join("secret.db")).expect("it is there");
        static SECRET: OnceLock<usize> = OnceLock::new();
        let length = *SECRET.get_or_init(|| secret.len());
        let words = secret.windows(CANARY.len());
        let words = words.filter(|window| *window == CANARY.as_bytes());
        assert_eq!((secret.len(), words.count()), (length, 1), "{texts:?}");
        let beside = place::names(self.dir.parent().expect("made in a directory"));
        assert_eq!(beside, ["data", "outside"], "{texts:?}");
    }
}

/// A database with one of everything that the grammar names.
fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = place::new_directory();
        let path = dir.path().join("db");
        let connection = Connection::open(&path).expect("a database");
        connection
            .execute_batch(
                "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, x, y DEFAULT 'd');
                 CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID;
                 CREATE INDEX i ON t(x); CREATE VIEW v AS SELECT x FROM t;
                 CREATE VIRTUAL TABLE f USING fts5(a);
                 INSERT INTO t VALUES (1, 'one', 1.5), (2, NULL, x'00');
                 INSERT INTO w VALUES ('k', 1); INSERT INTO f VALUES ('some words');",
            )
            .expect("a schema");
        connection.close().expect("nothing is prepared");
        fs::read(&path).expect("a database")
    })
}

pub(crate) fn samples() -> Vec<Sample> {
    // Every production as the first choice, with some choices behind it.
    (0..super::sql_grammar::STATEMENTS)
        .map(|statement| {
            let mut bytes = vec![4, statement];
            bytes.extend((0..12).map(|at: u8| statement.wrapping_mul(31).wrapping_add(at * 7)));
            Sample::new(format!("statement-{statement:02}"), bytes)
        })
        .collect()
}

const REQUESTS_MAX: usize = 3;
const TIME_MAX: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_authorizer_refuses_would_be_noticed() {
        let root = place::empty_directory("sql-noticed");
        let outside = Outside::prepare(&root);
        fs::create_dir_all(root.join("data")).expect("a directory");
        outside.check(&[]);
        // A plain connection does what no client may.
        let plain = Connection::open_in_memory().expect("a database");
        let read = |path: &str| -> String {
            plain
                .execute("ATTACH ?1 AS other", [path])
                .expect("nobody forbids it");
            let word = plain.query_row("SELECT word FROM other.secret", (), |row| row.get(0));
            word.expect("a table")
        };
        assert!(holds(&Answer::Failed(read(&outside.names[0]))));
        plain
            .execute("VACUUM INTO ?1", [&outside.names[2]])
            .expect("nobody forbids it");
        let noticed = std::panic::catch_unwind(|| outside.check(&[]));
        assert!(noticed.is_err(), "a new file");
    }

    #[test]
    fn every_kind_of_statement_runs_and_some_are_allowed() {
        let reached: Vec<Reached> = samples().iter().map(|sample| sql(&sample.bytes)).collect();
        for wanted in [Reached::Accepted, Reached::Refused] {
            let count = reached.iter().filter(|reached| **reached == wanted).count();
            assert!(count > 5, "{count} {wanted:?}");
        }
    }
}
