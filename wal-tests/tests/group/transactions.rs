//! Transactions that clients open themselves: in one text, over the texts of a request, and never
//! beyond it.

use wallaby::sqlite::{Answer, Reply, Request, Value};

use crate::fixture::{
    FOO, Fixture, answers, execute, failed, killable, only, transaction, written,
};

const SPANNING: &str = "explicit transactions cannot span requests: send BEGIN and COMMIT within \
     one request, or use the `transaction` parameter";

const LEFT_OPEN: &str = "rolled back, because the request left its transaction open: explicit \
     transactions cannot span requests; send BEGIN and COMMIT within one request, or use the \
     `transaction` parameter";

/// Runs each request in a group of its own, and all of them in one group: the same answers.
fn run(schema: &str, table: &[(&[&str], Vec<Answer>)]) -> Fixture {
    let requests: Vec<Request> = table.iter().map(|(texts, _)| execute(texts)).collect();
    let mut alone = Fixture::plain(schema);
    for (request, (texts, expected)) in requests.iter().zip(table) {
        let reply = alone.run(std::slice::from_ref(request)).remove(0);
        assert_eq!(answers(&reply), *expected, "{texts:?}");
    }
    let mut together = Fixture::plain(schema);
    let replies: Vec<Reply> = together.run(&requests);
    for (reply, (texts, expected)) in replies.iter().zip(table) {
        assert_eq!(answers(reply), *expected, "in one group: {texts:?}");
    }
    let ids = "SELECT id FROM foo ORDER BY id";
    assert_eq!(together.committed(ids), alone.committed(ids));
    alone
}

#[test]
fn begin_and_commit_in_one_text_are_a_transaction_of_that_text() {
    let spanning = || vec![failed(SPANNING)];
    let left_open = || vec![failed(LEFT_OPEN)];
    let mut fixture = run(
        FOO,
        &[
            (
                &["BEGIN; INSERT INTO foo VALUES (1, 'a'); COMMIT"],
                vec![written(1, 1)],
            ),
            (
                &["/* c */ begin immediate; INSERT INTO foo VALUES (2, 'b'); end transaction;"],
                vec![written(2, 1)],
            ),
            (
                &["BEGIN; INSERT INTO foo VALUES(3,'c'); INSERT INTO foo VALUES(1,'d'); COMMIT"],
                vec![failed("UNIQUE constraint failed: foo.id")],
            ),
            (&["BEGIN; INSERT INTO foo VALUES (4, 'e')"], left_open()),
            (&["BEGIN"], left_open()),
            (
                &["SAVEPOINT s; INSERT INTO foo VALUES (4, 'e')"],
                left_open(),
            ),
            (&["COMMIT"], spanning()),
            (&["ROLLBACK"], spanning()),
            (&["END"], spanning()),
            (&["EXPLAIN COMMIT"], spanning()),
            (&["INSERT INTO foo VALUES (5, 'f'); COMMIT"], spanning()),
            (
                &["BEGIN; INSERT INTO foo VALUES (6, 'g'); ROLLBACK"],
                vec![written(5, 1)],
            ),
            (
                &["BEGIN; BEGIN; COMMIT"],
                vec![failed("cannot start a transaction within a transaction")],
            ),
            (
                &["BEGIN nonsense; COMMIT"],
                vec![failed("near \"nonsense\": syntax error")],
            ),
            (
                &["ROLLBACK TO wallaby"],
                vec![failed("no such savepoint: wallaby")],
            ),
            (
                &["RELEASE wallaby"],
                vec![failed("no such savepoint: wallaby")],
            ),
        ],
    );
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 2, 5]);
    for (text, message) in [
        (
            "BEGIN; COMMIT",
            "cannot start a transaction within a transaction",
        ),
        (
            "COMMIT",
            "the `transaction` parameter ends the transaction by itself: \
             leave COMMIT and ROLLBACK out",
        ),
    ] {
        let insert = "INSERT INTO foo VALUES (7, 'h')";
        let reply = fixture
            .run(&[transaction(&[insert, text, insert])])
            .remove(0);
        assert_eq!(answers(&reply), [written(7, 1), failed(message)]);
    }
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 2, 5]);
}

#[test]
fn a_transaction_may_begin_in_one_text_of_a_request_and_end_in_another() {
    let fixture = run(
        FOO,
        &[
            (
                &["BEGIN", "INSERT INTO foo VALUES (1, 'a')", "COMMIT"],
                vec![written(0, 0), written(1, 1), written(1, 1)],
            ),
            (
                // As in SQLite, a failed statement is undone alone.
                &[
                    "BEGIN",
                    "INSERT INTO foo VALUES (2, 'b')",
                    "INSERT INTO foo VALUES (1, 'c')",
                    "INSERT INTO foo VALUES (3, 'c'); nonsense",
                    "COMMIT; INSERT INTO foo VALUES (4, 'd')",
                ],
                vec![
                    written(1, 1),
                    written(2, 1),
                    failed("UNIQUE constraint failed: foo.id"),
                    failed("near \"nonsense\": syntax error"),
                    written(4, 1),
                ],
            ),
            (
                &[
                    "BEGIN",
                    "INSERT INTO foo VALUES (5, 'e')",
                    "ROLLBACK",
                    "INSERT INTO foo VALUES (6, 'f')",
                ],
                vec![written(4, 1), written(5, 1), written(4, 1), written(6, 1)],
            ),
            (
                // What was there before the transaction stays; a failure keeps its own reason.
                &[
                    "INSERT INTO foo VALUES (7, 'g')",
                    "BEGIN",
                    "INSERT INTO foo VALUES (8, 'h')",
                    "INSERT INTO foo VALUES (1, 'i')",
                    "SELECT 1",
                ],
                vec![
                    written(7, 1),
                    failed(LEFT_OPEN),
                    failed(LEFT_OPEN),
                    failed("UNIQUE constraint failed: foo.id"),
                    failed(LEFT_OPEN),
                ],
            ),
            (&["SELECT 1"], vec![written(7, 1)]),
        ],
    );
    assert_eq!(
        fixture.committed("SELECT id FROM foo ORDER BY id"),
        [1, 2, 3, 4, 6, 7]
    );
}

#[test]
fn a_text_may_end_one_transaction_and_begin_the_next() {
    let fixture = run(
        FOO,
        &[
            (
                &[
                    "BEGIN",
                    "INSERT INTO foo VALUES (8, 'h'); COMMIT; BEGIN; INSERT INTO foo VALUES (9, 'j')",
                    "END",
                    "END",
                ],
                vec![
                    written(0, 0),
                    written(9, 1),
                    written(9, 1),
                    failed(SPANNING),
                ],
            ),
            (
                // A text that fails takes back the transaction that it began itself.
                &[
                    "BEGIN; INSERT INTO foo VALUES (10, 'k'); nonsense",
                    "COMMIT",
                ],
                vec![failed("near \"nonsense\": syntax error"), failed(SPANNING)],
            ),
        ],
    );
    assert_eq!(fixture.committed("SELECT id FROM foo"), [8, 9]);
}

#[test]
fn savepoints_nest_by_name_within_a_request() {
    let insert = |id: i64| format!("INSERT INTO foo VALUES ({id}, 'n{id}')");
    let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(insert);
    let fixture = run(
        FOO,
        &[
            (
                &[
                    "SAVEPOINT \"a b\"",
                    &one,
                    "SAVEPOINT inner",
                    &two,
                    "ROLLBACK TO INNER",
                    &three,
                    "RELEASE inner",
                    "RELEASE [a b]",
                ],
                vec![
                    written(0, 0),
                    written(1, 1),
                    written(1, 1),
                    written(2, 1),
                    written(1, 1),
                    written(3, 1),
                    written(3, 1),
                    written(3, 1),
                ],
            ),
            (
                // The innermost of two with the same name; and RELEASE ends those inside it.
                &[
                    "BEGIN; SAVEPOINT s; SAVEPOINT s;",
                    &two,
                    "ROLLBACK TO s; RELEASE s",
                    &four,
                    "SAVEPOINT t; SAVEPOINT u; RELEASE s; COMMIT",
                ],
                vec![
                    written(3, 1),
                    written(2, 1),
                    written(3, 1),
                    written(4, 1),
                    written(4, 1),
                ],
            ),
            (
                &[
                    "SAVEPOINT s",
                    &five,
                    "ROLLBACK TRANSACTION TO SAVEPOINT s",
                    "COMMIT",
                ],
                vec![written(4, 1), written(5, 1), written(4, 1), written(4, 1)],
            ),
            (
                &["BEGIN; RELEASE s", "SAVEPOINT x; RELEASE y"],
                vec![
                    failed("no such savepoint: s"),
                    failed("no such savepoint: y"),
                ],
            ),
        ],
    );
    assert_eq!(
        fixture.committed("SELECT id FROM foo ORDER BY id"),
        [1, 3, 4]
    );
}

#[test]
fn savepoints_nest_inside_a_request_that_is_a_transaction() {
    let insert = |id: i64| format!("INSERT INTO foo VALUES ({id}, 'n{id}')");
    let [one, two, three, four] = [1, 2, 3, 4].map(insert);
    let mut fixture = Fixture::plain(FOO);
    let texts = [
        "SAVEPOINT s",
        &one,
        "SAVEPOINT t",
        &two,
        "ROLLBACK TO t",
        &three,
    ];
    let reply = fixture.run(&[transaction(&texts)]).remove(0);
    assert_eq!(answers(&reply).len(), 6);
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 3]);
    let reply = fixture
        .run(&[transaction(&["SAVEPOINT s", &four, "nonsense"])])
        .remove(0);
    assert_eq!(
        answers(&reply)[2],
        failed("near \"nonsense\": syntax error")
    );
    assert_eq!(fixture.committed("SELECT id FROM foo"), [1, 3]);
}

#[test]
fn a_statement_that_kills_a_transaction_takes_only_that_transaction_with_it() {
    let mut fixture = killable();
    let insert = |name: &str| format!("INSERT INTO foo(name) VALUES ('{name}')");
    let culprit = "INSERT INTO trap VALUES (1)";
    let (b, c, d, e) = (insert("b"), insert("c"), insert("d"), insert("e"));
    let mixed = format!("{c}; BEGIN");
    let replies = fixture.run(&[
        execute(&[&insert("a")]),
        execute(&[&b, &mixed, &d, culprit, &e, "COMMIT"]),
        execute(&[&insert("f")]),
    ]);
    let before = written(3, 1);
    assert_eq!(
        answers(&replies[1]),
        [
            before,
            written(4, 1),
            written(5, 1),
            failed("sprung"),
            written(5, 1),
            failed(SPANNING),
        ]
    );
    assert_eq!(only(&replies[2]), written(6, 1));
    let names = "SELECT count(*) FROM foo WHERE name IN ('a', 'b', 'c', 'e', 'f')";
    assert_eq!(fixture.committed(names), [5]);
    assert_eq!(
        fixture.committed("SELECT count(*) FROM foo"),
        [6],
        "'d' is gone, 'taken' there"
    );
}

/// A dump as the SQLite shell writes it: children before their parents.
const DUMP: [&str; 8] = [
    "PRAGMA foreign_keys=OFF;",
    "BEGIN TRANSACTION;",
    "CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent(id));",
    "INSERT INTO child VALUES(1,7);",
    "INSERT INTO child VALUES(2,8);",
    "CREATE TABLE parent (id INTEGER PRIMARY KEY);",
    "INSERT INTO parent VALUES(7),(8);",
    "COMMIT;",
];

#[test]
fn a_dump_loads_where_foreign_keys_are_enforced_and_leaves_them_enforced() {
    let as_one = DUMP.concat();
    for request in [execute(&DUMP), execute(&[&as_one])] {
        for enforced in [true, false] {
            let mut fixture = if enforced {
                Fixture::with_foreign_keys("")
            } else {
                Fixture::plain("")
            };
            let orphan = || execute(&["INSERT INTO child VALUES (9, 99)"]);
            let replies = fixture.run(&[request.clone(), orphan()]);
            for answer in answers(&replies[0]) {
                assert!(!matches!(answer, Answer::Failed(_)), "{answer:?}");
            }
            let violated = failed("FOREIGN KEY constraint failed");
            let expected = if enforced { violated } else { written(9, 1) };
            assert_eq!(only(&replies[1]), expected);
            let dumped = "SELECT count(*) FROM child JOIN parent ON child.parent = parent.id";
            assert_eq!(fixture.committed(dumped), [2]);
            let pragma = fixture.rows("PRAGMA foreign_keys").values;
            assert_eq!(pragma, [[Value::Integer(enforced.into())]]);
        }
    }
}

#[test]
fn foreign_keys_are_off_from_the_pragma_to_the_end_of_its_request_whatever_happens_in_it() {
    let schema = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent(id));
        CREATE TABLE trap (x);
        CREATE TRIGGER spring BEFORE INSERT ON trap BEGIN SELECT RAISE(ROLLBACK, 'sprung'); END";
    let (off, on) = ("PRAGMA foreign_keys=OFF", "PRAGMA main.foreign_keys(yes)");
    let [one, two, three] = [1, 2, 3].map(|id| format!("INSERT INTO child VALUES ({id}, 99)"));
    let violated = || failed("FOREIGN KEY constraint failed");
    let table: [(Vec<&str>, Vec<Answer>); 6] = [
        (
            vec![&one, off, &one, on, &two],
            vec![
                violated(),
                written(0, 0),
                written(1, 1),
                written(1, 1),
                violated(),
            ],
        ),
        (
            vec!["PRAGMA foreign_keys=OFF; nonsense", &one],
            vec![failed("near \"nonsense\": syntax error"), written(1, 1)],
        ),
        // In a transaction it has no effect, as in SQLite.
        (
            vec!["BEGIN; PRAGMA foreign_keys=OFF", &one, "COMMIT"],
            vec![written(0, 0), violated(), written(0, 0)],
        ),
        (
            vec![off, "INSERT INTO trap VALUES (1)", &one],
            vec![written(0, 0), failed("sprung"), written(1, 1)],
        ),
        (
            vec![off, "BEGIN", &one, "INSERT INTO trap VALUES (1)", &two],
            vec![
                written(0, 0),
                written(0, 0),
                written(1, 1),
                failed("sprung"),
                written(2, 1),
            ],
        ),
        (vec![off, "VACUUM"], vec![written(0, 0), written(0, 0)]),
    ];
    for (texts, expected) in table {
        let mut fixture = Fixture::with_foreign_keys(schema);
        let replies = fixture.run(&[execute(&texts), execute(&[&three])]);
        assert_eq!(answers(&replies[0]), expected, "{texts:?}");
        assert_eq!(only(&replies[1]), violated(), "{texts:?}");
    }
    let mut fixture = Fixture::with_foreign_keys(schema);
    let reply = fixture.run(&[transaction(&[off, &one])]).remove(0);
    assert_eq!(answers(&reply), [written(0, 0), violated()]);
}

#[test]
fn a_statement_that_does_not_compile_any_more_leaves_the_counters_alone() {
    let into_more = "INSERT INTO more VALUES (1)";
    run(
        "CREATE TABLE foo(id INTEGER PRIMARY KEY); CREATE TABLE more(a)",
        &[
            (&[into_more], vec![written(1, 1)]),
            (&["DELETE FROM foo"], vec![written(1, 0)]),
            (&["DROP TABLE more"], vec![written(1, 0)]),
            // SQLite cannot take back what it says of the last change; a client does not see it.
            (
                &["BEGIN; INSERT INTO foo VALUES (5), (6); ROLLBACK"],
                vec![written(1, 0)],
            ),
            (&[into_more], vec![failed("no such table: more")]),
            (&["BEGIN; COMMIT"], vec![written(1, 0)]),
        ],
    );
}
