//! Requests that take the transaction of their group with them, and those that cannot be in one.

use std::time::Duration;

use wallaby::sqlite::{Answer, Limits, Request, Shape, Writer, WriterOptions};

use crate::fixture::{
    FOO, Fixture, answers, execute, failed, killable, only, statement, transaction, written,
};

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
            ..WriterOptions::default()
        },
        FOO,
    );
    let error = failed(
        "result too large: the rows of one request exceed the limit of this node, \
         -http-max-response; select less",
    );
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
    assert_eq!(only(&replies[1]), error);
    assert_eq!(answers(&replies[2])[1], error);
    assert_eq!(answers(&replies[3])[0], error);
    assert!(matches!(answers(&replies[3])[1], Answer::Rows(_)));
    assert_eq!(answers(&replies[4]), [written(7000, 1)]);
    assert_eq!(fixture.committed("SELECT id FROM foo"), [5000, 7000]);
}
