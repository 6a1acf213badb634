//! What one request leaves to the next: its rows, and the counters of the node.

use wallaby::sqlite::{Reply, Request, Shape, Value, WriterOptions};

use crate::fixture::{
    FOO, Fixture, answers, execute, failed, killable, only, transaction, written,
};

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
    assert_eq!(answers(&replies[2]), [written(0, 0)], "no no echo");
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
            ..WriterOptions::default()
        };
        let mut fixture =
            Fixture::new(&options, &format!("{FOO}; INSERT INTO foo VALUES (3, 'c')"));
        let sql = "INSERT OR FAIL INTO foo VALUES (1, 'a'), (2, 'b'), (3, 'again'), (4, 'd')";
        let error = failed("UNIQUE constraint failed: foo.id");
        assert_eq!(only(&fixture.run(&[transaction(&[sql])]).remove(0)), error);
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
