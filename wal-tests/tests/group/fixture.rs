//! A writer on a database of its own, and short ways to say what it runs and answers.

use rusqlite::Connection;
use tempfile::TempDir;
use wallaby::sqlite::{
    Answer, Reply, Request, Rows, Shape, SqlCommit, Statement, Value, Writer, WriterOptions,
};

/// A writer on a database of its own. The order matters: statements go before their connection.
pub(crate) struct Fixture {
    pub(crate) writer: Writer,
    pub(crate) connection: Connection,
    pub(crate) directory: TempDir,
    /// How many SQLite transactions the groups took.
    pub(crate) runs: usize,
}

impl Fixture {
    pub(crate) fn new(options: &WriterOptions, schema: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let connection = Connection::open(directory.path().join("db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL").unwrap();
        connection.execute_batch(schema).unwrap();
        let writer = Writer::new(&connection, options).unwrap();
        Self {
            writer,
            connection,
            directory,
            runs: 0,
        }
    }

    pub(crate) fn plain(schema: &str) -> Self {
        Self::new(&WriterOptions::default(), schema)
    }

    pub(crate) fn with_foreign_keys(schema: &str) -> Self {
        Self::new(
            &WriterOptions {
                foreign_keys: true,
                ..WriterOptions::default()
            },
            schema,
        )
    }

    /// Makes SQLite report a full disk beyond this many pages.
    pub(crate) fn limit_pages(&self, pages: u32) {
        self.connection
            .query_row(&format!("PRAGMA max_page_count={pages}"), [], |_| Ok(()))
            .unwrap();
    }

    pub(crate) fn run(&mut self, group: &[Request]) -> Vec<Reply> {
        let mut replies = Vec::new();
        while replies.len() < group.len() {
            let end = self.writer.run(&self.connection, &group[replies.len()..]);
            assert_eq!(end.sql_commit, SqlCommit::Done);
            assert!(
                !end.replies.is_empty(),
                "a run that answers nothing never ends"
            );
            assert!(
                self.connection.is_autocommit(),
                "a group leaves no transaction open"
            );
            replies.extend(end.replies);
            self.runs += 1;
        }
        assert_eq!(replies.len(), group.len());
        replies
    }

    /// Runs one text as a request of its own.
    pub(crate) fn one(&mut self, sql: &str) -> Answer {
        only(&self.run(&[execute(&[sql])])[0])
    }

    /// Runs one text whose rows are wanted.
    pub(crate) fn rows(&mut self, sql: &str) -> Rows {
        let request = Request {
            shape: Shape::Unified,
            ..execute(&[sql])
        };
        match only(&self.run(&[request])[0]) {
            Answer::Rows(rows) => rows,
            other => panic!("{sql}: {other:?}"),
        }
    }

    /// What another connection sees, a value per row.
    pub(crate) fn committed(&self, sql: &str) -> Vec<i64> {
        let other = Connection::open(self.directory.path().join("db")).unwrap();
        let mut statement = other.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

pub(crate) fn statement(sql: &str) -> Statement {
    Statement {
        sql: sql.to_owned(),
        parameters: Vec::new(),
    }
}

pub(crate) fn execute(texts: &[&str]) -> Request {
    Request {
        statements: texts.iter().map(|sql| statement(sql)).collect(),
        transaction: false,
        shape: Shape::Execute,
        statement_time_max: None,
        qualify_columns: false,
    }
}

pub(crate) fn transaction(texts: &[&str]) -> Request {
    Request {
        transaction: true,
        ..execute(texts)
    }
}

pub(crate) fn answers(reply: &Reply) -> Vec<Answer> {
    assert_eq!(reply.error, None);
    reply
        .outcomes
        .iter()
        .map(|outcome| outcome.answer.clone())
        .collect()
}

pub(crate) fn only(reply: &Reply) -> Answer {
    let mut answers = answers(reply);
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.remove(0)
}

pub(crate) fn written(last_insert_id: i64, rows_affected: i64) -> Answer {
    Answer::Written {
        last_insert_id,
        rows_affected,
    }
}

pub(crate) fn failed(message: &str) -> Answer {
    Answer::Failed(message.to_owned())
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.as_bytes().to_vec())
}

pub(crate) const FOO: &str = "CREATE TABLE foo (id INTEGER PRIMARY KEY, name TEXT UNIQUE)";

/// Table `foo` with a row that is taken, and a trigger that rolls back.
pub(crate) fn killable() -> Fixture {
    Fixture::plain(&format!(
        "{FOO}; INSERT INTO foo VALUES (1, 'taken');
         CREATE TABLE big (data BLOB);
         CREATE TABLE trap (x);
         CREATE TRIGGER spring BEFORE INSERT ON trap BEGIN SELECT RAISE(ROLLBACK, 'sprung'); END;"
    ))
}
