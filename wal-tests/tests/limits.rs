//! What one statement or request may take, limit by limit. A process of its own, because SQLite
//! knows only one bound on its memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rusqlite::Connection;
use wallaby::http::request::{RequestError, parse_statements};
use wallaby::http::response::{Envelope, Form, TooLong, render, render_within};
use wallaby::sqlite::{
    Answer, Extensions, Interest, Limits, Outcome, Readers, ReadersOptions, Reply, Request, Rows,
    Shape, Statement, Value, Writer, WriterOptions, limit_heap,
};

/// SQLite's memory in this test.
const HEAP_BYTES: u64 = 96 << 20;

/// The tests share SQLite's memory, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The first answer to one text, from a writer (`Unified`) or from a reader (`Query`).
struct Bench {
    readers: Readers,
    writer: Writer,
    connection: Connection,
    _directory: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        limit_heap(HEAP_BYTES);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (x)")
            .unwrap();
        let options = WriterOptions {
            foreign_keys: false,
            limits,
            extensions: Extensions::default(),
        };
        let writer = Writer::new(&connection, &options).unwrap();
        let readers = Readers::open(ReadersOptions {
            path,
            threads: 2,
            queue_max: 10,
            foreign_keys: false,
            limits,
            extensions: Extensions::default(),
        });
        Self {
            readers: readers.unwrap(),
            writer,
            connection,
            _directory: directory,
            _turn: turn,
        }
    }

    fn ask(&mut self, shape: Shape, sql: &str) -> Answer {
        let request = Request {
            statements: vec![Statement {
                sql: sql.to_owned(),
                parameters: Vec::new(),
            }],
            transaction: false,
            shape,
            statement_time_max: Some(Duration::from_secs(60)),
            qualify_columns: false,
        };
        let reply = if shape == Shape::Query {
            let (send, receive) = mpsc::channel();
            let done = Box::new(move |reply| send.send(reply).unwrap());
            let interest = Interest::default();
            self.readers.submit(request, interest, done).unwrap();
            receive.recv().unwrap()
        } else {
            let end = self.writer.run(&self.connection, &[request]);
            end.replies.into_iter().next().unwrap()
        };
        match reply.error {
            Some(error) => Answer::Failed(error),
            None => reply.outcomes[0].answer.clone(),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.readers.close();
    }
}

#[track_caller]
fn assert_fails(bench: &mut Bench, sql: &str, expected: &[&str]) {
    for shape in [Shape::Unified, Shape::Query] {
        let shown: String = sql.chars().take(100).collect();
        match bench.ask(shape, sql) {
            Answer::Failed(error) => assert!(
                expected.iter().any(|expected| error.contains(expected)),
                "{shape:?} {shown}: {error}"
            ),
            other => panic!("{shape:?} {shown}: {other:?}"),
        }
        let after = bench.ask(shape, "SELECT 7");
        assert!(
            matches!(&after, Answer::Rows(rows) if rows.values == [[Value::Integer(7)]]),
            "after {shape:?} {shown}: {after:?}"
        );
    }
}

#[test]
fn values_patterns_depths_and_arguments_are_bounded() {
    let mut bench = Bench::new(Limits::default());
    let nested = |open: &str, close: &str, depth: usize| {
        format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth))
    };
    let too_deep = &["Expression tree is too large", "Recursion limit"];
    for (sql, expected) in [
        (
            "SELECT length(zeroblob(70000000))".to_owned(),
            &["too big"] as &[_],
        ),
        (
            "SELECT length(hex(randomblob(40000000)))".to_owned(),
            &["too big"],
        ),
        (
            "SELECT length(printf('%.*c', 1000000000, 'x'))".to_owned(),
            &["too big"],
        ),
        (
            "SELECT 'a' LIKE replace(hex(zeroblob(1001)), '0', '%')".to_owned(),
            &["too complex"],
        ),
        (
            "SELECT 'a' GLOB replace(hex(zeroblob(1001)), '0', '*')".to_owned(),
            &["too complex"],
        ),
        (nested("(", ")", 5000), too_deep),
        (nested("- ", "", 5000), too_deep),
        (nested("abs(", ")", 5000), too_deep),
        (nested("(SELECT ", ")", 5000), too_deep),
        (
            format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(5000)),
            &["too many terms"],
        ),
        (
            format!("SELECT max(1{})", ",1".repeat(200)),
            &["too many arguments"],
        ),
        (
            format!("SELECT 1{}", ",1".repeat(5000)),
            &["too many columns"],
        ),
        (
            format!("SELECT 1 FROM t{}", ",t".repeat(100)),
            &["at most 64 tables"],
        ),
        (
            format!(
                "SELECT json_extract('{}{}', '$')",
                "[".repeat(5000),
                "]".repeat(5000)
            ),
            &["malformed JSON"],
        ),
    ] {
        assert_fails(&mut bench, &sql, expected);
    }
}

#[test]
fn functions_that_nothing_could_interrupt_refuse_what_takes_too_long() {
    let mut bench = Bench::new(Limits::default());
    let text = |bytes: u32| format!("replace(hex(zeroblob({})), '0', 'a')", bytes / 2);
    let long = |name: &str| format!("{name}() of values as long as these would take too long");
    for (sql, name) in [
        (
            format!("SELECT instr({0}, {0} || 'b')", text(1_000_000)),
            "instr",
        ),
        (
            format!("SELECT replace({0}, {0} || 'b', '')", text(1_000_000)),
            "replace",
        ),
        (
            format!("SELECT trim({0}, 'b' || {0})", text(1_000_000)),
            "trim",
        ),
        (
            format!("SELECT ltrim({0}, 'b' || {0})", text(1_000_000)),
            "ltrim",
        ),
        (
            format!("SELECT rtrim({0}, 'b' || {0})", text(1_000_000)),
            "rtrim",
        ),
        (
            format!("SELECT unhex({0}, 'b' || {0})", text(1_000_000)),
            "unhex",
        ),
        (
            format!(
                "SELECT json_patch('\"' || {0} || '\"', {0})",
                text(1_000_000)
            ),
            "json_patch",
        ),
        (
            format!(
                "SELECT jsonb_patch('\"' || {0} || '\"', {0})",
                text(1_000_000)
            ),
            "jsonb_patch",
        ),
    ] {
        assert_fails(&mut bench, &sql, &[&long(name)]);
    }
}

/// Values of all kinds, among them texts that are not UTF-8.
const VALUES: [&str; 22] = [
    "NULL",
    "''",
    "x''",
    "0",
    "-12",
    "1.5",
    "1e300",
    "'a'",
    "'abcabc'",
    "'  abc  '",
    "x'616263'",
    "x'00ff61'",
    "'\u{e4}\u{f6}\u{20ac}\u{1f600}a'",
    "'\u{20ac}'",
    "CAST(x'80616280' AS TEXT)",
    "CAST(x'c3' AS TEXT)",
    "CAST(x'610062' AS TEXT)",
    "'4142 43'",
    "'{\"a\":1,\"b\":{\"c\":2}}'",
    "'{\"a\":null,\"b\":{\"d\":[]}}'",
    "'['",
    "'7'",
];

#[test]
fn replaced_functions_answer_as_those_of_sqlite() {
    let bench = Bench::new(Limits::default());
    let oracle = Connection::open_in_memory().unwrap();
    // The types, the bytes, and whether the result counts as JSON.
    let shown = |connection: &Connection, call: &str| {
        let sql = format!("SELECT typeof({call}), hex({call}), quote(json_array({call}))");
        let row = connection.query_row(&sql, [], |row| {
            Ok([row.get::<_, String>(0)?, row.get(1)?, row.get(2)?])
        });
        row.map_err(|error| error.to_string().replace(&sql, ""))
    };
    let mut count = 0;
    let two = [
        "instr",
        "trim",
        "ltrim",
        "rtrim",
        "unhex",
        "json_patch",
        "jsonb_patch",
    ];
    for first in VALUES {
        for second in VALUES {
            let mut calls: Vec<String> = two
                .iter()
                .map(|name| format!("{name}({first}, {second})"))
                .collect();
            calls.extend(VALUES.map(|third| format!("replace({first}, {second}, {third})")));
            for call in calls {
                let (ours, theirs) = (shown(&bench.connection, &call), shown(&oracle, &call));
                assert_eq!(ours, theirs, "{call}");
                count += 1;
            }
        }
    }
    println!("{count} calls compared");
}

#[test]
fn what_needs_too_much_memory_fails_and_gives_it_back() {
    let mut bench = Bench::new(Limits::default());
    // Aggregates report only at their end what they could not keep, so these end.
    let rows = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 120000)";
    for sql in [
        format!("{rows} SELECT group_concat(randomblob(1000)) FROM c"),
        format!("{rows} SELECT json_group_array(hex(randomblob(200))) FROM c"),
        format!("{rows} SELECT x, randomblob(1000) AS y FROM c ORDER BY y"),
        format!("{rows} SELECT DISTINCT randomblob(1000) FROM c"),
        format!(
            "SELECT {}",
            ["length(hex(randomblob(30000000)))"; 9].join("||")
        ) + " || length(hex(randomblob(40000000)))",
        format!(
            "WITH a(x) AS MATERIALIZED (SELECT hex(randomblob(30000000))) SELECT {}",
            ["(SELECT x || 'a' FROM a)"; 9].join(", ")
        ),
    ] {
        assert_fails(
            &mut bench,
            &sql,
            &["out of memory", "too big", "result too large"],
        );
    }
}

#[test]
fn rows_are_counted_while_they_are_collected() {
    let limits = Limits {
        result_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    let rows = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
    assert_fails(&mut bench, rows, &["-http-max-response"]);
    assert_fails(
        &mut bench,
        "SELECT zeroblob(2000000)",
        &["-http-max-response"],
    );
    let returning = format!("INSERT INTO t {rows} LIMIT 100000 RETURNING x");
    let Answer::Failed(error) = bench.ask(Shape::Execute, &returning) else {
        panic!("its rows were too many");
    };
    assert!(error.contains("-http-max-response"), "{error}");
    let Answer::Rows(rows) = bench.ask(Shape::Query, "SELECT count(*) FROM t") else {
        panic!("rows expected");
    };
    assert_eq!(rows.values, [[Value::Integer(0)]], "nothing was inserted");
}

#[test]
fn a_body_of_too_many_values_is_refused_before_they_are_kept() {
    let many = |value: &str, count: usize| format!("[{}]", vec![value; count].join(","));
    let too_many = Err(RequestError::TooMany(1_000_000));
    for body in [
        many("\"\"", 1_000_000),
        many("[]", 600_000),
        format!("[{}]", many("1", 1_000_000)),
        format!("[[\"SELECT ?\",{}]]", many("1", 1_000_000)),
    ] {
        assert_eq!(parse_statements(body.as_bytes()), too_many);
    }
    // Commas and brackets in strings do not count, nor does what follows the first value.
    let text = format!(
        "[\"SELECT '{}\\\"{}'\"]",
        "[,{".repeat(400_000),
        ",".repeat(9)
    );
    assert_eq!(parse_statements(text.as_bytes()).unwrap().len(), 1);
    let followed = format!("[\"SELECT 1\"]{}", ",".repeat(1_000_001));
    assert_eq!(parse_statements(followed.as_bytes()).unwrap().len(), 1);
    let most = many("\"SELECT 1\"", 900_000);
    assert_eq!(parse_statements(most.as_bytes()).unwrap().len(), 900_000);
}

#[test]
fn nested_bodies_are_refused_at_any_depth() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[\"SELECT ?\",", "]")] {
        for depth in [100, 1000, 100_000] {
            let body = format!("[{}1{}]", open.repeat(depth), close.repeat(depth));
            assert!(parse_statements(body.as_bytes()).is_err(), "{open} {depth}");
            let unclosed = open.repeat(depth);
            assert!(parse_statements(unclosed.as_bytes()).is_err());
        }
    }
}

#[test]
fn an_answer_that_grows_too_long_in_json_is_not_rendered() {
    let envelope = |associative| Envelope {
        shape: Shape::Query,
        elapsed: Duration::ZERO,
        raft_index: None,
        form: Form {
            associative,
            ..Form::default()
        },
    };
    let reply = Reply {
        outcomes: vec![Outcome {
            answer: Answer::Rows(Rows {
                columns: vec!["n".repeat(10_000)],
                types: vec!["text".to_owned()],
                declared: vec![true],
                values: vec![vec![Value::Text(b"\x01\x02".to_vec())]; 1000],
            }),
            elapsed: Duration::ZERO,
        }],
        error: None,
    };
    // Each row repeats the names.
    let whole = render(&reply, &envelope(true));
    assert!(whole.len() > 10_000_000);
    assert_eq!(
        render_within(&reply, &envelope(true), 1 << 20),
        Err(TooLong(1 << 20))
    );
    assert_eq!(
        render_within(&reply, &envelope(false), 5000),
        Err(TooLong(5000))
    );
    assert!(render_within(&reply, &envelope(false), 1 << 20).is_ok());
}
