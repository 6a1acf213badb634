//! Groups: many clients' requests in one SQLite transaction, as if each were alone.

use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use wallaby::sqlite::{
    Answer, Limits, Parameter, Reply, Request, Rows, Shape, SqlCommit, Statement, Value, Writer,
    WriterOptions,
};

/// A writer on a database of its own. The order matters: statements go before their connection.
struct Fixture {
    writer: Writer,
    connection: Connection,
    directory: TempDir,
    /// How many SQLite transactions the groups took.
    runs: usize,
}

impl Fixture {
    fn new(options: &WriterOptions, schema: &str) -> Self {
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

    fn plain(schema: &str) -> Self {
        Self::new(&WriterOptions::default(), schema)
    }

    fn with_foreign_keys(schema: &str) -> Self {
        Self::new(
            &WriterOptions {
                foreign_keys: true,
                limits: Limits::default(),
            },
            schema,
        )
    }

    /// Makes SQLite report a full disk beyond this many pages.
    fn limit_pages(&self, pages: u32) {
        self.connection
            .query_row(&format!("PRAGMA max_page_count={pages}"), [], |_| Ok(()))
            .unwrap();
    }

    fn run(&mut self, group: &[Request]) -> Vec<Reply> {
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
    fn one(&mut self, sql: &str) -> Answer {
        only(self.run(&[execute(&[sql])]).pop().unwrap())
    }

    /// Runs one text whose rows are wanted.
    fn rows(&mut self, sql: &str) -> Rows {
        let request = Request {
            shape: Shape::Unified,
            ..execute(&[sql])
        };
        match only(self.run(&[request]).pop().unwrap()) {
            Answer::Rows(rows) => rows,
            other => panic!("{sql}: {other:?}"),
        }
    }

    /// What another connection sees, a value per row.
    fn committed(&self, sql: &str) -> Vec<i64> {
        let other = Connection::open(self.directory.path().join("db")).unwrap();
        let mut statement = other.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

fn statement(sql: &str) -> Statement {
    Statement {
        sql: sql.to_owned(),
        parameters: Vec::new(),
    }
}

fn execute(texts: &[&str]) -> Request {
    Request {
        statements: texts.iter().map(|sql| statement(sql)).collect(),
        transaction: false,
        shape: Shape::Execute,
        statement_time_max: None,
    }
}

fn transaction(texts: &[&str]) -> Request {
    Request {
        transaction: true,
        ..execute(texts)
    }
}

fn answers(reply: &Reply) -> Vec<Answer> {
    assert_eq!(reply.error, None);
    reply
        .outcomes
        .iter()
        .map(|outcome| outcome.answer.clone())
        .collect()
}

fn only(reply: Reply) -> Answer {
    let mut answers = answers(&reply);
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.remove(0)
}

fn written(last_insert_id: i64, rows_affected: i64) -> Answer {
    Answer::Written {
        last_insert_id,
        rows_affected,
    }
}

fn failed(message: &str) -> Answer {
    Answer::Failed(message.to_owned())
}

fn text(text: &str) -> Value {
    Value::Text(text.as_bytes().to_vec())
}

const FOO: &str = "CREATE TABLE foo (id INTEGER PRIMARY KEY, name TEXT UNIQUE)";

/// A statement that writes until it is interrupted.
const ENDLESS: &str = "INSERT INTO foo(name) WITH RECURSIVE c(x) AS \
     (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT 'endless ' || x FROM c";

/// The ways in which a statement can take the transaction with it, with what it is answered.
fn killers() -> Vec<(Request, &'static str)> {
    let timed = |sql: &str| Request {
        statement_time_max: Some(Duration::from_millis(20)),
        ..execute(&[sql])
    };
    vec![
        (
            execute(&["INSERT OR ROLLBACK INTO foo(name) VALUES ('taken')"]),
            "UNIQUE constraint failed: foo.name",
        ),
        (execute(&["INSERT INTO trap VALUES (1)"]), "sprung"),
        (
            execute(&["INSERT INTO big VALUES (zeroblob(400000))"]),
            "database or disk is full",
        ),
        (timed(ENDLESS), "execute timeout"),
    ]
}

fn killable() -> Fixture {
    Fixture::plain(&format!(
        "{FOO}; INSERT INTO foo VALUES (1, 'taken');
         CREATE TABLE big (data BLOB);
         CREATE TABLE trap (x);
         CREATE TRIGGER spring BEFORE INSERT ON trap BEGIN SELECT RAISE(ROLLBACK, 'sprung'); END;"
    ))
}

#[test]
fn a_statement_that_kills_the_transaction_is_skipped_and_all_others_stand() {
    for (killer, message) in killers() {
        let mut fixture = killable();
        let sql = killer.statements[0].sql.clone();
        if sql.contains("INTO big") {
            fixture.limit_pages(100);
        }
        let group = [
            execute(&["INSERT INTO foo(name) VALUES ('before')"]),
            Request {
                statements: vec![
                    statement("INSERT INTO foo(name) VALUES ('with, before')"),
                    killer.statements[0].clone(),
                    statement("INSERT INTO foo(name) VALUES ('with, after')"),
                ],
                ..killer
            },
            execute(&["INSERT INTO foo(name) VALUES ('after')"]),
        ];
        let replies = fixture.run(&group);
        assert_eq!(fixture.runs, 1, "{sql}: one transaction in the end");
        assert_eq!(answers(&replies[0]), [written(2, 1)], "{sql}");
        assert_eq!(
            answers(&replies[1]),
            [written(3, 1), failed(message), written(4, 1)],
            "{sql}"
        );
        assert_eq!(answers(&replies[2]), [written(5, 1)], "{sql}");
        assert_eq!(
            fixture.committed("SELECT id FROM foo"),
            [1, 2, 3, 4, 5],
            "{sql}"
        );
    }
}

#[test]
fn a_transaction_that_kills_the_group_is_skipped_as_a_whole() {
    for (killer, message) in killers() {
        let mut fixture = killable();
        let sql = killer.statements[0].sql.clone();
        if sql.contains("INTO big") {
            fixture.limit_pages(100);
        }
        let group = [
            execute(&["INSERT INTO foo(name) VALUES ('before')"]),
            Request {
                transaction: true,
                statements: vec![
                    statement("INSERT INTO foo(name) VALUES ('with, before')"),
                    killer.statements[0].clone(),
                    statement("INSERT INTO foo(name) VALUES ('with, after')"),
                ],
                ..killer
            },
            execute(&["INSERT INTO foo(name) VALUES ('after')"]),
        ];
        let replies = fixture.run(&group);
        assert_eq!(fixture.runs, 1, "{sql}: one transaction in the end");
        assert_eq!(answers(&replies[0]), [written(2, 1)], "{sql}");
        assert_eq!(
            answers(&replies[1]),
            [written(3, 1), failed(message)],
            "{sql}"
        );
        assert_eq!(answers(&replies[2]), [written(3, 1)], "{sql}");
        assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 2, 3], "{sql}");
    }
}

#[test]
fn after_a_second_kill_the_requests_before_it_are_committed_and_the_rest_runs_next() {
    let mut fixture = killable();
    let kill = "INSERT OR ROLLBACK INTO foo(name) VALUES ('taken')";
    let mut group = Vec::new();
    for number in 0..10 {
        group.push(execute(&[&format!(
            "INSERT INTO foo(name) VALUES ('good {number}')"
        )]));
        group.push(execute(&[kill]));
    }
    let end = fixture.writer.run(&fixture.connection, &group);
    assert_eq!(
        end.replies.len(),
        3,
        "good, kill, good; the next group begins with the culprit"
    );
    let replies = fixture.run(&group[3..]);
    assert!(
        fixture.runs <= 10,
        "two kills are dealt with in each run: {}",
        fixture.runs
    );
    let mut id = 3;
    for (request, reply) in group[3..].iter().zip(&replies) {
        if request.statements[0].sql == kill {
            assert_eq!(
                answers(reply),
                [failed("UNIQUE constraint failed: foo.name")]
            );
        } else {
            id += 1;
            assert_eq!(answers(reply), [written(id, 1)]);
        }
    }
    assert_eq!(fixture.committed("SELECT count(*) FROM foo"), [11]);
}

#[test]
fn what_a_text_did_before_its_killing_statement_stands_as_if_it_ran_alone() {
    let mut fixture = killable();
    let kill = "INSERT OR ROLLBACK INTO foo(name) VALUES ('taken')";
    let replies = fixture.run(&[
        execute(&["INSERT INTO foo VALUES (2, 'b')"]),
        execute(&[
            &format!("INSERT INTO foo VALUES (3, 'c'); {kill}; INSERT INTO foo VALUES (4, 'd')"),
            "INSERT INTO foo VALUES (5, 'e')",
        ]),
        execute(&[&format!(
            "INSERT INTO foo VALUES (6, 'f'); BEGIN; INSERT INTO foo VALUES (7, 'g'); {kill}; COMMIT"
        )]),
    ]);
    let error = failed("UNIQUE constraint failed: foo.name");
    assert_eq!(answers(&replies[1]), [error.clone(), written(5, 1)]);
    assert_eq!(answers(&replies[2]), [error]);
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 2, 3, 5, 6]);
}

#[test]
fn a_request_full_of_killers_is_answered_statement_by_statement() {
    let mut fixture = killable();
    let kill = "INSERT OR ROLLBACK INTO foo(name) VALUES ('taken')";
    let good = "INSERT INTO foo(name) VALUES (NULL)";
    let replies = fixture.run(&[execute(&[kill, good, kill, good, kill, kill, good])]);
    let error = failed("UNIQUE constraint failed: foo.name");
    assert_eq!(
        answers(&replies[0]),
        [
            error.clone(),
            written(2, 1),
            error.clone(),
            written(3, 1),
            error.clone(),
            error,
            written(4, 1)
        ]
    );
}

#[test]
fn failures_that_do_not_kill_leave_the_group_alone() {
    let mut fixture = Fixture::plain(
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER NOT NULL CHECK (b > 0)) STRICT;
         INSERT INTO t VALUES (1, 1);
         CREATE TABLE raising (x);
         CREATE TRIGGER r1 BEFORE INSERT ON raising WHEN new.x = 1
             BEGIN SELECT RAISE(FAIL, 'fail'); END;
         CREATE TRIGGER r2 BEFORE INSERT ON raising WHEN new.x = 2
             BEGIN SELECT RAISE(ABORT, 'abort'); END;",
    );
    let table = [
        (
            "INSERT INTO t VALUES (1, 2)",
            "UNIQUE constraint failed: t.a",
        ),
        (
            "INSERT INTO t VALUES (2, NULL)",
            "NOT NULL constraint failed: t.b",
        ),
        (
            "INSERT INTO t VALUES (2, 0)",
            "CHECK constraint failed: b > 0",
        ),
        (
            "INSERT INTO t VALUES (2, 'x')",
            "cannot store TEXT value in INTEGER column t.b",
        ),
        ("INSERT INTO raising VALUES (1)", "fail"),
        ("INSERT INTO raising VALUES (2)", "abort"),
        ("INSERT INTO nowhere VALUES (1)", "no such table: nowhere"),
        ("blah", "near \"blah\": syntax error"),
        ("INSERT INTO t", "incomplete input"),
        ("SELECT zeroblob(2000000000)", "string or blob too big"),
        ("CREATE TABLE t (x)", "table t already exists"),
        ("SELECT json('{')", "malformed JSON"),
        ("SELECT 'a\0b'", "unrecognized token: \"\\0\""),
    ];
    let group: Vec<Request> = table.iter().map(|(sql, _)| execute(&[sql])).collect();
    let replies = fixture.run(&group);
    assert_eq!(fixture.runs, 1);
    for ((sql, message), reply) in table.iter().zip(&replies) {
        assert_eq!(answers(reply), [failed(message)], "{sql}");
    }
}

#[test]
fn the_counters_are_sticky_zero_at_first_and_restored_after_a_rollback() {
    let mut fixture = Fixture::plain("");
    assert_eq!(
        fixture.one(FOO),
        written(0, 0),
        "zero on a fresh connection"
    );
    assert_eq!(
        fixture.one("INSERT INTO foo VALUES (7, 'a'), (8, 'b')"),
        written(8, 2)
    );
    assert_eq!(
        fixture.one("CREATE TABLE bar (x)"),
        written(8, 2),
        "DDL echoes"
    );
    assert_eq!(
        fixture.one("SELECT * FROM foo"),
        written(8, 2),
        "so does a query"
    );
    assert_eq!(
        fixture.one("PRAGMA user_version=3"),
        written(8, 2),
        "and a pragma"
    );
    assert_eq!(
        fixture.one("UPDATE foo SET name = 'c' WHERE id = 99"),
        written(8, 0)
    );
    assert_eq!(fixture.one("DELETE FROM foo"), written(8, 2));
    // Rolled back: neither the rowid nor the count may shine through.
    let replies = fixture.run(&[
        transaction(&[
            "INSERT INTO foo VALUES (50, 'x')",
            "INSERT INTO foo VALUES (50, 'y')",
        ]),
        execute(&["CREATE TABLE baz (x)"]),
        execute(&["-- nothing"]),
    ]);
    assert_eq!(
        answers(&replies[0]),
        [written(50, 1), failed("UNIQUE constraint failed: foo.id")]
    );
    assert_eq!(answers(&replies[1]), [written(8, 2)]);
    assert_eq!(
        answers(&replies[2]),
        [written(0, 0)],
        "no statement, no echo"
    );
    assert_eq!(
        fixture.one("BEGIN; INSERT INTO foo VALUES (60, 'x'); ROLLBACK"),
        written(8, 2)
    );
    assert_eq!(
        fixture.rows("SELECT last_insert_rowid()").values,
        [[Value::Integer(8)]]
    );
    assert_eq!(
        fixture.one("INSERT INTO foo VALUES (9, 'd')"),
        written(9, 1)
    );
    assert_eq!(fixture.one("DROP TABLE foo"), written(9, 1));
}

#[test]
fn the_counters_seen_by_a_replay_are_those_before_the_group() {
    let mut fixture = killable();
    assert_eq!(
        fixture.one("INSERT INTO foo VALUES (10, 'ten')"),
        written(10, 1)
    );
    let replies = fixture.run(&[
        execute(&["CREATE TABLE first (x)"]),
        execute(&["INSERT INTO foo VALUES (20, 'a'), (21, 'b')"]),
        transaction(&["INSERT OR ROLLBACK INTO foo VALUES (30, 'c'), (31, 'taken')"]),
        execute(&["CREATE TABLE last (x)"]),
    ]);
    assert_eq!(answers(&replies[0]), [written(10, 1)]);
    assert_eq!(answers(&replies[1]), [written(21, 2)]);
    assert_eq!(answers(&replies[3]), [written(21, 2)]);
}

#[test]
fn a_deferred_foreign_key_is_the_matter_of_the_request_that_violates_it() {
    let mut fixture = Fixture::with_foreign_keys(
        "CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE child (id INTEGER PRIMARY KEY,
             parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);",
    );
    let error = "FOREIGN KEY constraint failed";
    let replies = fixture.run(&[
        execute(&[
            "INSERT INTO child VALUES (1, 1)",
            "INSERT INTO parent VALUES (9)",
        ]),
        // The next client's parent must not heal it.
        execute(&["INSERT INTO parent VALUES (1)"]),
        transaction(&[
            "INSERT INTO child VALUES (2, 2)",
            "INSERT INTO parent VALUES (2)",
        ]),
        transaction(&[
            "INSERT INTO child VALUES (3, 3)",
            "INSERT INTO child VALUES (4, 3)",
        ]),
        execute(&["BEGIN; INSERT INTO child VALUES (5, 5); INSERT INTO parent VALUES (5); COMMIT"]),
        execute(&["BEGIN; INSERT INTO child VALUES (6, 6); COMMIT"]),
        execute(&["INSERT INTO child VALUES (7, 7) RETURNING id"]),
        execute(&["INSERT INTO child VALUES (8, 1); INSERT INTO child VALUES (10, 77)"]),
    ]);
    assert_eq!(fixture.runs, 1);
    assert_eq!(answers(&replies[0]), [failed(error), written(9, 1)]);
    assert_eq!(answers(&replies[1]), [written(1, 1)]);
    assert_eq!(answers(&replies[2]), [written(2, 1), written(2, 1)]);
    assert_eq!(
        replies[3],
        Reply {
            outcomes: Vec::new(),
            error: Some(error.to_owned())
        }
    );
    assert_eq!(answers(&replies[4]), [written(5, 1)]);
    assert_eq!(answers(&replies[5]), [failed(error)]);
    assert_eq!(answers(&replies[6]), [failed(error)]);
    assert_eq!(answers(&replies[7]), [failed(error)]);
    assert_eq!(fixture.committed("SELECT id FROM child"), [2, 5, 8]);
    assert_eq!(fixture.committed("SELECT id FROM parent"), [1, 2, 5, 9]);
}

#[test]
fn foreign_keys_are_off_unless_asked_for() {
    let schema = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE child (parent INTEGER REFERENCES parent);";
    let insert = "INSERT INTO child VALUES (1)";
    assert_eq!(Fixture::plain(schema).one(insert), written(1, 1));
    let error = failed("FOREIGN KEY constraint failed");
    assert_eq!(Fixture::with_foreign_keys(schema).one(insert), error);
}

#[test]
fn the_rows_before_an_or_fail_stay_unless_there_is_a_transaction() {
    for foreign_keys in [false, true] {
        let options = WriterOptions {
            foreign_keys,
            limits: Limits::default(),
        };
        let mut fixture =
            Fixture::new(&options, &format!("{FOO}; INSERT INTO foo VALUES (3, 'c')"));
        let sql = "INSERT OR FAIL INTO foo VALUES (1, 'a'), (2, 'b'), (3, 'again'), (4, 'd')";
        let error = failed("UNIQUE constraint failed: foo.id");
        assert_eq!(only(fixture.run(&[transaction(&[sql])]).remove(0)), error);
        assert_eq!(fixture.committed("SELECT id FROM foo"), [3]);
        assert_eq!(fixture.one(sql), error);
        assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 2, 3]);
    }
}

#[test]
fn without_a_transaction_every_statement_stands_for_itself() {
    let mut fixture = Fixture::plain(&format!("{FOO}; INSERT INTO foo VALUES (1, 'a')"));
    let replies = fixture.run(&[execute(&[
        "INSERT INTO foo VALUES (1, 'x')",
        "INSERT INTO foo VALUES (50, 'y')",
    ])]);
    assert_eq!(
        answers(&replies[0]),
        [failed("UNIQUE constraint failed: foo.id"), written(50, 1)]
    );
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 50]);
}

#[test]
fn a_transaction_stops_at_its_first_failure_even_if_that_does_not_compile() {
    let mut fixture = Fixture::plain(&format!("{FOO}; INSERT INTO foo VALUES (1, 'a')"));
    let bad = [
        (
            "INSERT INTO foo VALUES (1, 'x')",
            "UNIQUE constraint failed: foo.id",
        ),
        ("SELECT * FROM nope", "no such table: nope"),
        (
            "INSERT INTO foo VALUES (?, 'x')",
            "not enough args to execute query: want 1 got 0",
        ),
    ];
    for (bad, message) in bad {
        let good = "INSERT INTO foo VALUES (60, 'b')";
        let unified = Request {
            shape: Shape::Unified,
            ..transaction(&[good, bad, good])
        };
        for request in [transaction(&[good, bad, good]), unified] {
            let replies = fixture.run(&[request]);
            assert_eq!(answers(&replies[0]), [written(60, 1), failed(message)]);
            assert_eq!(fixture.committed("SELECT id FROM foo"), [1]);
        }
    }
}

#[test]
fn begin_and_commit_in_one_text_are_a_transaction_of_that_text() {
    let mut fixture = Fixture::plain(FOO);
    let spanning = failed(
        "explicit transactions cannot span requests: use the `transaction` parameter, \
         or send BEGIN; ...; COMMIT as one string",
    );
    let texts = [
        (
            "BEGIN; INSERT INTO foo VALUES (1, 'a'); COMMIT",
            written(1, 1),
        ),
        (
            "/* c */ begin immediate; INSERT INTO foo VALUES (2, 'b'); end transaction;",
            written(2, 1),
        ),
        (
            "BEGIN; INSERT INTO foo VALUES (3, 'c'); INSERT INTO foo VALUES (1, 'd'); COMMIT",
            failed("UNIQUE constraint failed: foo.id"),
        ),
        ("BEGIN; INSERT INTO foo VALUES (4, 'e')", spanning.clone()),
        ("BEGIN", spanning.clone()),
        ("COMMIT", spanning.clone()),
        ("ROLLBACK", spanning.clone()),
        ("END", spanning.clone()),
        ("EXPLAIN COMMIT", spanning.clone()),
        ("INSERT INTO foo VALUES (5, 'f'); COMMIT", spanning),
        (
            "BEGIN; INSERT INTO foo VALUES (6, 'g'); ROLLBACK",
            written(5, 1),
        ),
        (
            "BEGIN; BEGIN; COMMIT",
            failed("cannot start a transaction within a transaction"),
        ),
        (
            "BEGIN; SAVEPOINT s; RELEASE s; COMMIT",
            failed("SAVEPOINT, RELEASE and ROLLBACK TO are not available to clients"),
        ),
        (
            "ROLLBACK TO wallaby",
            failed("SAVEPOINT, RELEASE and ROLLBACK TO are not available to clients"),
        ),
        (
            "BEGIN nonsense; COMMIT",
            failed("near \"nonsense\": syntax error"),
        ),
    ];
    let group: Vec<Request> = texts.iter().map(|(sql, _)| execute(&[sql])).collect();
    let replies = fixture.run(&group);
    for ((sql, expected), reply) in texts.iter().zip(replies) {
        assert_eq!(only(reply), *expected, "{sql}");
    }
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 2, 5]);
    let inside = fixture.run(&[transaction(&["BEGIN; COMMIT"])]).remove(0);
    assert_eq!(
        only(inside),
        failed("cannot start a transaction within a transaction")
    );
}

#[test]
fn a_text_of_several_statements_reports_its_last_and_consumes_parameters_in_order() {
    let mut fixture = Fixture::plain("");
    let positional = |value| Parameter { name: None, value };
    let sql = "CREATE TABLE t (a, b);; INSERT INTO t VALUES (?, ?); /* ; */
         INSERT INTO t VALUES (?, 'x;y'); SELECT a, b FROM t ORDER BY a; -- end";
    let values = [Value::Integer(1), text("one"), Value::Integer(2)];
    let request = Request {
        shape: Shape::Unified,
        statements: vec![Statement {
            sql: sql.to_owned(),
            parameters: values.into_iter().map(positional).collect(),
        }],
        ..execute(&[])
    };
    let Answer::Rows(rows) = only(fixture.run(std::slice::from_ref(&request)).remove(0)) else {
        panic!("rows expected");
    };
    assert_eq!(rows.columns, ["a", "b"]);
    assert_eq!(
        rows.values,
        [
            [Value::Integer(1), text("one")],
            [Value::Integer(2), text("x;y")]
        ]
    );
    // It stops at the first failure; what ran before stays, as in rqlite.
    let sql = "INSERT INTO t VALUES (3, 3); INSERT INTO nope VALUES (1); DELETE FROM t";
    assert_eq!(fixture.one(sql), failed("no such table: nope"));
    assert_eq!(fixture.committed("SELECT a FROM t"), [1, 2, 3]);
    let trigger = "CREATE TRIGGER g AFTER INSERT ON t BEGIN
         INSERT INTO t VALUES (new.a + 100, 0); DELETE FROM t WHERE a = 1; END;
         INSERT INTO t VALUES (4, 4)";
    assert_eq!(fixture.one(trigger), written(4, 1));
    assert_eq!(fixture.committed("SELECT a FROM t"), [2, 3, 4, 104]);
}

#[test]
fn a_script_of_thousands_of_statements_takes_time_in_proportion() {
    let mut fixture = Fixture::plain("CREATE TABLE t (a)");
    let mut script = String::from("PRAGMA foreign_keys=OFF; BEGIN TRANSACTION;");
    for number in 0..20_000 {
        script.push_str(&format!("INSERT INTO t VALUES ({number});\n"));
    }
    script.push_str("COMMIT;");
    assert_eq!(fixture.one(&script), written(20_000, 1));
    assert_eq!(fixture.committed("SELECT count(*) FROM t"), [20_000]);
}

#[test]
fn empty_statements_have_no_outcome_and_comments_an_empty_one() {
    let mut fixture = Fixture::plain(FOO);
    let reply = fixture
        .run(&[execute(&["", "INSERT INTO foo VALUES (1, 'a')", ""])])
        .remove(0);
    assert_eq!(answers(&reply), [written(1, 1)]);
    let reply = fixture.run(&[execute(&["   ", "-- c", ";;"])]).remove(0);
    assert_eq!(
        answers(&reply),
        [written(0, 0), written(0, 0), written(0, 0)]
    );
    assert_eq!(
        fixture.run(&[transaction(&[""])]).remove(0),
        Reply::default()
    );
    assert!(
        fixture
            .writer
            .run(&fixture.connection, &[])
            .replies
            .is_empty()
    );
}

#[test]
fn returning_gives_rows_whatever_the_text_looks_like() {
    let mut fixture = Fixture::plain("CREATE TABLE foo (id INTEGER PRIMARY KEY, \"desc\" TEXT)");
    let expected = Answer::Rows(Rows {
        columns: vec!["id".to_owned(), "desc".to_owned()],
        types: vec!["integer".to_owned(), "text".to_owned()],
        values: vec![vec![Value::Integer(1), text("a")]],
    });
    assert_eq!(
        fixture.one("INSERT INTO foo(\"desc\") VALUES ('a') RETURNING\nid, \"desc\""),
        expected
    );
    let none = fixture.one("DELETE FROM foo WHERE id = 9 RETURNING \"desc\"");
    assert_eq!(
        none,
        Answer::Rows(Rows {
            columns: vec!["desc".to_owned()],
            types: vec!["text".to_owned()],
            values: Vec::new(),
        })
    );
    assert_eq!(
        fixture.one("SELECT 'x returning y'"),
        written(1, 0),
        "the counters have moved on"
    );
    assert_eq!(
        fixture.one("EXPLAIN INSERT INTO foo VALUES (5, 'b') RETURNING id"),
        written(1, 0)
    );
}

#[test]
fn types_are_declared_ones_in_lower_case_else_those_of_the_first_row() {
    let mut fixture = Fixture::plain(
        "CREATE TABLE ty (i INTEGER, v VARCHAR(20), n, d DECIMAL(10,2), t TIMESTAMP);
         INSERT INTO ty VALUES (1, 'a', NULL, 1.5, 'x'), (2, 'b', 7, 2.5, 'y')",
    );
    let rows = fixture.rows("SELECT *, i + 1, x'00', 'e', 1.0, NULL FROM ty");
    assert_eq!(
        rows.types,
        [
            "integer",
            "varchar(20)",
            "",
            "decimal(10,2)",
            "timestamp",
            "integer",
            "blob",
            "text",
            "real",
            ""
        ]
    );
    assert_eq!(rows.values.len(), 2);
    let rows = fixture.rows("SELECT i, i + 1 FROM ty WHERE 0");
    assert_eq!(rows.types, ["integer", ""]);
    let rows = fixture.rows("PRAGMA table_info(ty)");
    assert_eq!(
        rows.types,
        ["integer", "text", "text", "integer", "", "integer"]
    );
}

#[test]
fn parameters_bind_by_position_and_by_name_and_missing_ones_are_reported() {
    let mut fixture = Fixture::plain("");
    let positional = |value| Parameter { name: None, value };
    let named = |name: &str, value| Parameter {
        name: Some(name.to_owned()),
        value,
    };
    let mut ask = |sql: &str, parameters: Vec<Parameter>| {
        let statements = vec![Statement {
            sql: sql.to_owned(),
            parameters,
        }];
        let request = Request {
            shape: Shape::Unified,
            statements,
            ..execute(&[])
        };
        match only(fixture.run(&[request]).remove(0)) {
            Answer::Rows(rows) => Ok(rows.values[0].clone()),
            Answer::Failed(message) => Err(message),
            other @ Answer::Written { .. } => panic!("{other:?}"),
        }
    };
    let (one, two) = (Value::Integer(1), Value::Integer(2));
    let three = vec![
        named("a", one.clone()),
        named("b", Value::Real(1.5)),
        named("c", Value::Blob(Vec::new())),
        named("unused", Value::Null),
    ];
    assert_eq!(
        ask("SELECT :a, $b, @c", three),
        Ok(vec![one.clone(), Value::Real(1.5), Value::Blob(Vec::new())])
    );
    assert_eq!(
        ask("SELECT :a, @a, $a", vec![named("a", one.clone())]),
        Ok(vec![one.clone(), one.clone(), one.clone()])
    );
    assert_eq!(
        ask(
            "SELECT ?2, ?1",
            vec![positional(one.clone()), positional(two.clone())]
        ),
        Ok(vec![two.clone(), one.clone()])
    );
    assert_eq!(
        ask(
            "SELECT ?, :n",
            vec![positional(one.clone()), named("n", two.clone())]
        ),
        Ok(vec![one.clone(), two.clone()])
    );
    assert_eq!(
        ask(
            "SELECT 1",
            vec![positional(two.clone()), positional(Value::Null)]
        ),
        Ok(vec![one.clone()])
    );
    assert_eq!(
        ask("SELECT ?1, ?2", vec![positional(one.clone())]),
        Err("not enough args to execute query: want 2 got 1".to_owned())
    );
    assert_eq!(
        ask("SELECT :missing", vec![named("other", one.clone())]),
        Err("not enough args to execute query: want 1 got 1".to_owned())
    );
    assert_eq!(
        ask(
            "SELECT typeof(?)",
            vec![positional(Value::Text(Vec::new()))]
        ),
        Ok(vec![text("text")]),
        "an empty text is not NULL"
    );
    assert_eq!(
        ask("SELECT ?", vec![positional(Value::Text(vec![b'a', 0xff]))]),
        Ok(vec![Value::Text(vec![b'a', 0xff])]),
        "text that is not UTF-8 comes back as it went"
    );
    // The values of the last time must not be left in a cached statement.
    assert_eq!(
        ask("SELECT ?1, ?2", Vec::new()),
        Err("not enough args to execute query: want 2 got 0".to_owned())
    );
}

#[test]
fn cached_statements_follow_changes_of_the_schema_inside_and_between_groups() {
    let mut fixture = Fixture::plain(&format!("{FOO}; INSERT INTO foo VALUES (1, 'a')"));
    let select = || Request {
        shape: Shape::Unified,
        ..execute(&["SELECT * FROM foo"])
    };
    let columns = |reply: Reply| match only(reply) {
        Answer::Rows(rows) => rows.columns,
        other => panic!("{other:?}"),
    };
    let replies = fixture.run(&[
        select(),
        execute(&["ALTER TABLE foo ADD COLUMN age INTEGER"]),
        select(),
        // Rolled-back DDL expires every statement, our savepoints' among them.
        transaction(&[
            "CREATE INDEX i ON foo(age)",
            "ALTER TABLE foo RENAME COLUMN name TO title",
            "nonsense",
        ]),
        select(),
        transaction(&[
            "CREATE INDEX j ON foo(age)",
            "INSERT INTO foo(name) VALUES ('b')",
        ]),
        select(),
        execute(&["DROP TABLE foo"]),
        select(),
    ]);
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap();
    assert_eq!(columns(next()), ["id", "name"]);
    next();
    assert_eq!(columns(next()), ["id", "name", "age"]);
    assert_eq!(
        answers(&next())[2],
        failed("near \"nonsense\": syntax error")
    );
    assert_eq!(columns(next()), ["id", "name", "age"]);
    next();
    assert_eq!(columns(next()), ["id", "name", "age"]);
    next();
    assert_eq!(only(next()), failed("no such table: foo"));
    let replies = fixture.run(&[execute(&["CREATE TABLE foo (z)"]), select()]);
    assert_eq!(columns(replies.into_iter().nth(1).unwrap()), ["z"]);
}

#[test]
fn vacuum_runs_alone_and_is_recognised_by_its_token() {
    let alone = [
        "VACUUM",
        "-- c\n /* d */ vacuum main;",
        "SELECT 1; VACUUM",
        ";VACUUM",
    ];
    for sql in alone {
        assert!(Writer::runs_alone(&execute(&[sql])), "{sql}");
    }
    let grouped = [
        "SELECT 'VACUUM'",
        "SELECT ';VACUUM'",
        "-- VACUUM",
        "/* ; VACUUM */ SELECT 1",
        "SELECT \"VACUUM\"",
        "EXPLAIN VACUUM",
        "PRAGMA incremental_vacuum",
        "SELECT [;VACUUM]",
    ];
    for sql in grouped {
        assert!(!Writer::runs_alone(&execute(&[sql])), "{sql}");
    }
    let mut fixture = Fixture::plain(FOO);
    let insert = |name: &str| format!("INSERT INTO foo(name) VALUES ('{name}')");
    let replies = fixture.run(&[
        execute(&[&insert("a")]),
        execute(&[&insert("b"), "VACUUM", &insert("c"), &insert("c")]),
        execute(&[&insert("d")]),
        transaction(&["VACUUM"]),
        execute(&["DELETE FROM foo WHERE id = 1; VACUUM; DELETE FROM foo WHERE id = 2"]),
        execute(&["BEGIN; VACUUM; COMMIT"]),
    ]);
    assert_eq!(
        fixture.runs, 5,
        "the group is cut around each request that runs alone"
    );
    assert_eq!(
        answers(&replies[1]),
        [
            written(2, 1),
            written(2, 1),
            written(3, 1),
            failed("UNIQUE constraint failed: foo.name")
        ]
    );
    assert_eq!(answers(&replies[2]), [written(4, 1)]);
    assert_eq!(
        answers(&replies[3]),
        [failed("cannot VACUUM from within a transaction")]
    );
    assert_eq!(answers(&replies[4]), [written(4, 1)]);
    assert_eq!(
        answers(&replies[5]),
        [failed("cannot VACUUM from within a transaction")]
    );
    assert_eq!(fixture.committed("SELECT id FROM foo"), [3, 4]);
}

#[test]
fn a_statement_that_runs_too_long_is_ended_and_named_by_its_endpoint() {
    let mut fixture = Fixture::plain(FOO);
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) \
         SELECT count(*) FROM c";
    let time_max = Some(Duration::from_millis(20));
    for (shape, message) in [
        (Shape::Execute, "execute timeout"),
        (Shape::Query, "query timeout"),
        (Shape::Unified, "query timeout"),
    ] {
        let request = Request {
            shape,
            statement_time_max: time_max,
            ..execute(&[endless])
        };
        let replies = fixture.run(&[execute(&["INSERT INTO foo VALUES (NULL, NULL)"]), request]);
        assert_eq!(answers(&replies[1]), [failed(message)]);
    }
    assert_eq!(fixture.committed("SELECT count(*) FROM foo"), [3]);
}

#[test]
fn a_result_beyond_the_limit_is_an_error_and_takes_its_changes_back() {
    let limits = Limits {
        result_bytes_max: 10_000,
        ..Limits::default()
    };
    let mut fixture = Fixture::new(
        &WriterOptions {
            foreign_keys: false,
            limits,
        },
        FOO,
    );
    let error = failed("result too large: the rows of one request exceed the limit of this node");
    let many = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 1000)";
    let insert = format!("INSERT INTO foo {many} SELECT x, 'row ' || x FROM c RETURNING *");
    let replies = fixture.run(&[
        execute(&["INSERT INTO foo VALUES (5000, 'kept')"]),
        execute(&[&insert]),
        transaction(&["INSERT INTO foo VALUES (6000, 'lost')", &insert]),
        Request {
            shape: Shape::Unified,
            ..execute(&["SELECT zeroblob(20000)", "SELECT 1"])
        },
        execute(&["INSERT INTO foo VALUES (7000, 'kept too')"]),
    ]);
    assert_eq!(answers(&replies[1]), [error.clone()]);
    assert_eq!(answers(&replies[2])[1], error);
    assert_eq!(answers(&replies[3])[0], error);
    assert!(matches!(answers(&replies[3])[1], Answer::Rows(_)));
    assert_eq!(answers(&replies[4]), [written(7000, 1)]);
    assert_eq!(fixture.committed("SELECT id FROM foo"), [5000, 7000]);
}

#[test]
fn double_quoted_strings_are_accepted() {
    let mut fixture = Fixture::plain("");
    assert_eq!(
        fixture.one("CREATE TABLE foo (id INTEGER PRIMARY KEY, n TEXT DEFAULT \"d\")"),
        written(0, 0)
    );
    assert_eq!(
        fixture.one("INSERT INTO foo(n) VALUES (\"fiona\")"),
        written(1, 1)
    );
    assert_eq!(
        fixture.rows("SELECT n FROM foo WHERE n = \"fiona\"").values,
        [[text("fiona")]]
    );
}
