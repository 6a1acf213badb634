//! What one SQL text may hold, and how it is answered.

use std::time::Duration;

use wallaby::sqlite::{Answer, Parameter, Reply, Request, Rows, Shape, Statement, Value};

use crate::fixture::{FOO, Fixture, answers, execute, failed, only, text, transaction, written};

#[test]
fn a_text_of_several_statements_reports_its_last_and_consumes_parameters_in_order() {
    let mut fixture = Fixture::plain("");
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
    let Answer::Rows(rows) = only(&fixture.run(std::slice::from_ref(&request)).remove(0)) else {
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
        declared: vec![true, true],
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
            declared: vec![true],
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
    let declared = [
        true, true, false, true, true, false, false, false, false, false,
    ];
    assert_eq!(rows.declared, declared);
    assert_eq!(rows.values.len(), 2);
    let rows = fixture.rows("SELECT i, i + 1 FROM ty WHERE 0");
    assert_eq!(rows.types, ["integer", ""]);
    let rows = fixture.rows("PRAGMA table_info(ty)");
    assert_eq!(
        rows.types,
        ["integer", "text", "text", "integer", "", "integer"]
    );
}

fn positional(value: Value) -> Parameter {
    Parameter { name: None, value }
}

fn named(name: &str, value: Value) -> Parameter {
    Parameter {
        name: Some(name.to_owned()),
        value,
    }
}

/// The first row of a query with parameters.
fn ask(fixture: &mut Fixture, sql: &str, parameters: &[Parameter]) -> Result<Vec<Value>, String> {
    let statements = vec![Statement {
        sql: sql.to_owned(),
        parameters: parameters.to_vec(),
    }];
    let request = Request {
        shape: Shape::Unified,
        statements,
        ..execute(&[])
    };
    match only(&fixture.run(&[request])[0]) {
        Answer::Rows(rows) => Ok(rows.values[0].clone()),
        Answer::Failed(message) => Err(message),
        other @ Answer::Written { .. } => panic!("{other:?}"),
    }
}

#[test]
fn parameters_bind_by_position_and_by_name() {
    let mut fixture = Fixture::plain("");
    let (one, two) = (Value::Integer(1), Value::Integer(2));
    let list = [positional(one.clone()), positional(two.clone())];
    let names = [
        named("a", one.clone()),
        named("b", Value::Real(1.5)),
        named("c", Value::Blob(Vec::new())),
        named("unused", Value::Null),
    ];
    let mixed = [positional(one.clone()), named("n", two.clone())];
    let table: [(&str, &[Parameter], Vec<Value>); 6] = [
        (
            "SELECT :a, $b, @c",
            &names,
            vec![one.clone(), Value::Real(1.5), Value::Blob(Vec::new())],
        ),
        (
            "SELECT :a, @a, $a",
            &names[..1],
            vec![one.clone(), one.clone(), one.clone()],
        ),
        ("SELECT ?, ?", &list, vec![one.clone(), two.clone()]),
        ("SELECT ?2, ?1", &list, vec![two.clone(), one.clone()]),
        ("SELECT ?, :n", &mixed, vec![one.clone(), two.clone()]),
        ("SELECT 1", &list, vec![one.clone()]),
    ];
    for (sql, parameters, expected) in table {
        assert_eq!(ask(&mut fixture, sql, parameters), Ok(expected), "{sql}");
    }
}

#[test]
fn missing_parameters_are_counted_and_none_is_left_over_from_the_last_time() {
    let mut fixture = Fixture::plain("");
    let (one, two) = (positional(Value::Integer(1)), positional(Value::Integer(2)));
    let mut missing = |sql: &str, parameters: &[Parameter], message: &str| {
        let expected = format!("not enough args to execute query: {message}");
        assert_eq!(ask(&mut fixture, sql, parameters), Err(expected), "{sql}");
    };
    missing("SELECT ?1, ?2", std::slice::from_ref(&one), "want 2 got 1");
    missing(
        "SELECT :missing",
        &[named("other", Value::Null)],
        "want 1 got 1",
    );
    assert!(ask(&mut fixture, "SELECT ?1, ?2", &[one, two]).is_ok());
    let left_over = ask(&mut fixture, "SELECT ?1, ?2", &[]);
    assert_eq!(
        left_over,
        Err("not enough args to execute query: want 2 got 0".to_owned())
    );
}

#[test]
fn texts_come_back_as_they_went_empty_ones_and_those_that_are_not_utf_8() {
    let mut fixture = Fixture::plain("");
    for bytes in [Vec::new(), vec![b'a', 0xff], vec![0, b'b']] {
        let value = Value::Text(bytes);
        assert_eq!(
            ask(
                &mut fixture,
                "SELECT ?1, typeof(?1)",
                &[positional(value.clone())]
            ),
            Ok(vec![value, text("text")])
        );
    }
}

#[test]
fn cached_statements_follow_changes_of_the_schema_inside_and_between_groups() {
    let mut fixture = Fixture::plain(&format!("{FOO}; INSERT INTO foo VALUES (1, 'a')"));
    let select = || Request {
        shape: Shape::Unified,
        ..execute(&["SELECT * FROM foo"])
    };
    let columns = |reply: Reply| match only(&reply) {
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
    assert_eq!(only(&next()), failed("no such table: foo"));
    let replies = fixture.run(&[execute(&["CREATE TABLE foo (z)"]), select()]);
    assert_eq!(columns(replies.into_iter().nth(1).unwrap()), ["z"]);
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

#[test]
fn columns_that_come_straight_from_a_table_can_be_qualified_by_it() {
    let mut fixture = Fixture::plain(
        "CREATE TABLE foo (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE \"b r\" (x);
         CREATE VIEW v AS SELECT name, id AS number FROM foo",
    );
    for (sql, columns) in [
        (
            "SELECT name, count(*) AS c, 1+1 FROM foo",
            vec!["foo.name", "c", "1+1"],
        ),
        (
            "SELECT a.name, b.NAME, x FROM foo a, foo b, \"b r\"",
            vec!["foo.name", "foo.name", "b r.x"],
        ),
        (
            "SELECT name AS n, rowid, * FROM foo",
            vec!["n", "foo.id", "foo.id", "foo.name"],
        ),
        ("SELECT * FROM v", vec!["foo.name", "number"]),
        ("SELECT name FROM (SELECT name FROM foo)", vec!["foo.name"]),
        ("PRAGMA user_version", vec!["user_version"]),
    ] {
        let mut names = |qualify_columns| {
            let request = Request {
                shape: Shape::Unified,
                qualify_columns,
                ..execute(&[sql])
            };
            match only(&fixture.run(&[request])[0]) {
                Answer::Rows(rows) => rows.columns,
                other => panic!("{sql}: {other:?}"),
            }
        };
        assert_eq!(names(true), columns, "{sql}");
        let plain = names(false);
        let unqualified = columns.iter().map(|name| name.rsplit('.').next().unwrap());
        assert_eq!(plain, unqualified.collect::<Vec<_>>(), "{sql}");
    }
}

#[test]
fn a_time_limit_that_is_over_at_once_refuses_the_whole_request() {
    let mut fixture = Fixture::plain(FOO);
    let refused = Reply {
        outcomes: Vec::new(),
        error: Some("context deadline exceeded".to_owned()),
    };
    for shape in [Shape::Execute, Shape::Query, Shape::Unified] {
        for transaction in [false, true] {
            let request = Request {
                shape,
                transaction,
                statement_time_max: Some(Duration::from_nanos(1)),
                ..execute(&["INSERT INTO foo VALUES (1, 'a')"])
            };
            assert_eq!(fixture.run(&[request])[0], refused, "{shape:?}");
        }
    }
    let vacuum = Request {
        statement_time_max: Some(Duration::from_nanos(1)),
        ..execute(&["VACUUM"])
    };
    assert_eq!(fixture.run(&[vacuum])[0], refused);
    assert!(fixture.committed("SELECT id FROM foo").is_empty());
}
