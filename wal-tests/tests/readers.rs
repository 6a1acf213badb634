//! The pool of readers: queries only, several at a time, on what the writer has committed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use wallaby::sqlite::{
    Answer, Extensions, Full, Interest, Limits, Parameter, Readers, ReadersOptions, Reply, Request,
    Shape, Statement, Value,
};

const WRITE_IN_QUERY: &str = "attempt to change database via query operation";

/// Counts without an end.
const ENDLESS: &str =
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";

struct Fixture {
    readers: Readers,
    connection: Connection,
    _directory: TempDir,
}

fn fixture(threads: usize, queue_max: usize) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let readers = Readers::open(ReadersOptions {
        path: path.clone(),
        threads,
        queue_max,
        foreign_keys: false,
        limits: Limits::default(),
        extensions: Extensions::default(),
    })
    .unwrap();
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT UNIQUE);
             INSERT INTO t VALUES (1, 'one')",
        )
        .unwrap();
    Fixture {
        readers,
        connection,
        _directory: directory,
    }
}

impl Fixture {
    fn run(&self, request: Request) -> Reply {
        let (send, receive) = mpsc::channel();
        self.readers
            .submit(
                request,
                Interest::default(),
                Box::new(move |reply| send.send(reply).unwrap()),
            )
            .unwrap();
        receive.recv().unwrap()
    }

    fn one(&self, sql: &str) -> Answer {
        let reply = self.run(query(&[sql]));
        assert_eq!(reply.error, None);
        assert_eq!(reply.outcomes.len(), 1);
        reply.outcomes[0].answer.clone()
    }

    fn classify(&self, request: &Request) -> bool {
        let (send, receive) = mpsc::channel();
        let done = Box::new(move |request: Request, is_read_only| {
            send.send((request, is_read_only)).unwrap();
        });
        let interest = Interest::default();
        self.readers
            .classify(request.clone(), interest, done)
            .unwrap();
        let (returned, is_read_only) = receive.recv().unwrap();
        assert_eq!(returned, *request);
        is_read_only
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.readers.close();
    }
}

fn query(texts: &[&str]) -> Request {
    Request {
        statements: texts
            .iter()
            .map(|sql| Statement {
                sql: (*sql).to_owned(),
                parameters: Vec::new(),
            })
            .collect(),
        transaction: false,
        shape: Shape::Query,
        statement_time_max: None,
        qualify_columns: false,
    }
}

fn single(answer: Answer) -> Value {
    match answer {
        Answer::Rows(rows) => rows.values[0][0].clone(),
        other => panic!("{other:?}"),
    }
}

fn failed(message: &str) -> Answer {
    Answer::Failed(message.to_owned())
}

#[test]
fn a_query_sees_what_is_committed_and_follows_the_schema() {
    let fixture = fixture(1, 10);
    assert_eq!(
        single(fixture.one("SELECT max(id) FROM t")),
        Value::Integer(1)
    );
    fixture
        .connection
        .execute_batch("INSERT INTO t VALUES (2, 'two')")
        .unwrap();
    assert_eq!(
        single(fixture.one("SELECT max(id) FROM t")),
        Value::Integer(2)
    );
    let columns = |answer| match answer {
        Answer::Rows(rows) => rows.columns,
        other => panic!("{other:?}"),
    };
    assert_eq!(columns(fixture.one("SELECT * FROM t")), ["id", "x"]);
    fixture
        .connection
        .execute_batch("ALTER TABLE t ADD COLUMN y")
        .unwrap();
    assert_eq!(columns(fixture.one("SELECT * FROM t")), ["id", "x", "y"]);
}

#[test]
fn every_kind_of_write_is_refused_as_one() {
    let fixture = fixture(1, 10);
    let writes = [
        "INSERT INTO t VALUES (5, 'x')",
        "INSERT INTO t VALUES (5, 'x') RETURNING id",
        "UPDATE t SET x = 'y' WHERE 0",
        "DELETE FROM t",
        "CREATE TABLE u (x)",
        "CREATE INDEX i ON t(x)",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "DROP TABLE t",
        "ALTER TABLE t ADD COLUMN y",
        "ANALYZE",
        "VACUUM",
        "REINDEX",
        "PRAGMA user_version=7",
        "PRAGMA application_id=7",
        "PRAGMA incremental_vacuum",
        "PRAGMA optimize",
        "SELECT 1; DELETE FROM t",
    ];
    for sql in writes {
        assert_eq!(fixture.one(sql), failed(WRITE_IN_QUERY), "{sql}");
    }
    let refused = [
        "ATTACH ':memory:' AS a",
        "VACUUM INTO '/nowhere/x'",
        "CREATE TEMP TABLE s (x)",
    ];
    for sql in refused {
        assert!(matches!(fixture.one(sql), Answer::Failed(_)), "{sql}");
    }
    assert_eq!(
        fixture.one("SELECT load_extension('x')"),
        failed("not authorized")
    );
    let reply = fixture.run(query(&["SELECT 1", "PRAGMA query_only=0"]));
    assert_eq!(reply.error.as_deref(), Some("disallowed pragma"));
    let count = fixture
        .connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0));
    assert_eq!(count, Ok(1));
}

#[test]
fn whatever_only_reads_is_answered() {
    let fixture = fixture(1, 10);
    let reads = [
        "SELECT 1, x FROM t",
        "EXPLAIN INSERT INTO t VALUES (1, 2)",
        "EXPLAIN QUERY PLAN DELETE FROM t",
        "PRAGMA journal_mode",
        "PRAGMA table_info(t)",
        "PRAGMA integrity_check",
        "SELECT * FROM pragma_table_info('t')",
        "VALUES (1), (2)",
        "WITH c AS (SELECT 1) SELECT * FROM c",
        "SELECT x FROM t ORDER BY x",
        "SELECT \"a string\"",
        "BEGIN; SELECT 1; COMMIT; SELECT 2",
    ];
    for sql in reads {
        assert!(
            matches!(fixture.one(sql), Answer::Rows(_)),
            "{sql}: {:?}",
            fixture.one(sql)
        );
    }
}

#[test]
fn without_a_transaction_queries_are_independent_and_with_one_they_stop() {
    let fixture = fixture(1, 10);
    let texts = ["SELECT 1", "SELECT * FROM nope", "SELECT 2"];
    let reply = fixture.run(query(&texts));
    assert_eq!(reply.outcomes.len(), 3);
    assert_eq!(reply.outcomes[1].answer, failed("no such table: nope"));
    assert_eq!(single(reply.outcomes[2].answer.clone()), Value::Integer(2));
    let reply = fixture.run(Request {
        transaction: true,
        ..query(&texts)
    });
    assert_eq!(reply.outcomes.len(), 2);
    // The transaction is over: the next query sees new rows.
    fixture
        .connection
        .execute_batch("INSERT INTO t VALUES (9, 'nine')")
        .unwrap();
    assert_eq!(
        single(fixture.one("SELECT max(id) FROM t")),
        Value::Integer(9)
    );
}

#[test]
fn a_query_that_runs_too_long_is_ended() {
    let fixture = fixture(1, 10);
    let time_max = Some(Duration::from_millis(20));
    let reply = fixture.run(Request {
        statement_time_max: time_max,
        ..query(&[ENDLESS, "SELECT 1"])
    });
    assert_eq!(reply.outcomes[0].answer, failed("query timeout"));
    assert_eq!(single(reply.outcomes[1].answer.clone()), Value::Integer(1));
}

#[test]
fn requests_are_told_apart_by_whether_they_only_read() {
    let fixture = fixture(1, 10);
    let reads: [&[&str]; 8] = [
        &["SELECT 1"],
        &["SELECT 1", "SELECT 2; SELECT 3"],
        &["EXPLAIN DELETE FROM t"],
        &["WITH c AS (SELECT 1) SELECT * FROM c"],
        &["PRAGMA table_info(t)"],
        &["SELECT * FROM nope"],
        &["-- nothing"],
        &[],
    ];
    for texts in reads {
        assert!(fixture.classify(&query(texts)), "{texts:?}");
    }
    let writes: [&[&str]; 7] = [
        &["INSERT INTO t VALUES (2, 'b')"],
        &["SELECT 1", "/* x */ delete from t"],
        &["SELECT 1; INSERT INTO t VALUES (2, 'b')"],
        &["WITH c AS (SELECT 7) INSERT INTO t SELECT 7, 'x' FROM c"],
        &["PRAGMA user_version=7"],
        &["BEGIN; DELETE FROM t; COMMIT"],
        &["VACUUM"],
    ];
    for texts in writes {
        assert!(!fixture.classify(&query(texts)), "{texts:?}");
    }
}

#[test]
fn a_full_queue_refuses_and_a_closing_pool_interrupts() {
    let fixture = fixture(1, 2);
    let (send, receive) = mpsc::channel();
    let submit = |sql: &str| {
        let send = send.clone();
        let done = Box::new(move |reply: Reply| send.send(reply).unwrap());
        let interest = Interest::default();
        fixture.readers.submit(query(&[sql]), interest, done)
    };
    submit("SELECT 1").unwrap();
    receive.recv().unwrap();
    let mut accepted = 0;
    while submit(ENDLESS).is_ok() {
        accepted += 1;
    }
    assert!(
        (2..=3).contains(&accepted),
        "two waiting, perhaps one running: {accepted}"
    );
    fixture.readers.close();
    drop(send);
    // Those that were running when the pool was closed were interrupted, the others dropped.
    for reply in receive {
        assert_eq!(reply.outcomes[0].answer, failed("interrupted"));
    }
    let done = Box::new(|_| panic!("a closed pool takes nothing"));
    assert_eq!(
        fixture
            .readers
            .submit(query(&["SELECT 1"]), Interest::default(), done),
        Err(Full)
    );
}

#[test]
fn a_missing_database_is_an_error_until_it_exists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let readers = Readers::open(ReadersOptions {
        path: path.clone(),
        threads: 2,
        queue_max: 10,
        foreign_keys: false,
        limits: Limits::default(),
        extensions: Extensions::default(),
    })
    .unwrap();
    let ask = || {
        let (send, receive) = mpsc::channel();
        let done = Box::new(move |reply| send.send(reply).unwrap());
        let interest = Interest::default();
        readers
            .submit(query(&["SELECT 1"]), interest, done)
            .unwrap();
        receive.recv().unwrap()
    };
    let reply: Reply = ask();
    assert!(
        reply
            .error
            .unwrap()
            .contains("unable to open database file")
    );
    assert!(!path.exists(), "a reader creates nothing");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (x)")
        .unwrap();
    assert_eq!(single(ask().outcomes[0].answer.clone()), Value::Integer(1));
    readers.close();
}

#[test]
fn many_threads_read_whole_transactions_while_one_writes() {
    let fixture = fixture(3, 1000);
    fixture
        .connection
        .execute_batch("CREATE TABLE a (n); CREATE TABLE b (n); INSERT INTO a VALUES (0); INSERT INTO b VALUES (0)")
        .unwrap();
    let (send, receive) = mpsc::channel();
    for number in 1..200 {
        fixture
            .connection
            .execute_batch(&format!(
                "BEGIN; UPDATE a SET n = {number}; UPDATE b SET n = {number}; COMMIT"
            ))
            .unwrap();
        let send = send.clone();
        let done = Box::new(move |reply: Reply| send.send(reply).unwrap());
        let request = Request {
            transaction: true,
            ..query(&["SELECT n FROM a", "SELECT n FROM b"])
        };
        let interest = Interest::default();
        fixture.readers.submit(request, interest, done).unwrap();
    }
    drop(send);
    let mut count = 0;
    for reply in receive {
        let [a, b] = [0, 1].map(|index| single(reply.outcomes[index].answer.clone()));
        assert_eq!(a, b, "both statements of a transaction see one state");
        count += 1;
    }
    assert_eq!(count, 199);
}

/// Submits endless queries, one for each interest, whose replies nobody looks at.
fn submit_endless(fixture: &Fixture, interests: &[Interest]) {
    for interest in interests {
        let done = Box::new(|_| ());
        fixture
            .readers
            .submit(query(&[ENDLESS, ENDLESS]), interest.clone(), done)
            .unwrap();
    }
}

#[test]
fn slow_queries_do_not_keep_others_out() {
    let fixture = fixture(12, 100);
    let interests: Vec<Interest> = (0..11).map(|_| Interest::default()).collect();
    submit_endless(&fixture, &interests);
    for number in 0..20 {
        assert_eq!(
            single(fixture.one(&format!("SELECT {number}"))),
            Value::Integer(number)
        );
        // Long enough for some of the slow ones to give way.
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_query_that_nobody_waits_for_is_ended_with_all_that_follows_it() {
    let fixture = fixture(1, 100);
    let (send, receive) = mpsc::channel();
    let interest = Interest::default();
    let done = Box::new(move |reply: Reply| send.send(reply).unwrap());
    fixture
        .readers
        .submit(query(&[ENDLESS, ENDLESS]), interest.clone(), done)
        .unwrap();
    assert!(
        receive.recv_timeout(Duration::from_millis(100)).is_err(),
        "it is endless"
    );
    assert!(interest.lose());
    let reply = receive.recv().unwrap();
    assert_eq!(reply.outcomes.len(), 1);
    assert_eq!(reply.outcomes[0].answer, failed("interrupted"));
    // The next one is not affected, also where the priority was lowered and the thread replaced.
    assert_eq!(single(fixture.one("SELECT 1")), Value::Integer(1));
    let interest = Interest::default();
    submit_endless(&fixture, std::slice::from_ref(&interest));
    std::thread::sleep(Duration::from_millis(1200));
    assert!(interest.lose());
    assert_eq!(single(fixture.one("SELECT 2")), Value::Integer(2));
}

#[test]
fn what_was_given_up_while_it_waited_never_runs_and_makes_room() {
    let fixture = fixture(1, 4);
    let running = Interest::default();
    submit_endless(&fixture, std::slice::from_ref(&running));
    std::thread::sleep(Duration::from_millis(50));
    let waiting: Vec<Interest> = (0..4).map(|_| Interest::default()).collect();
    submit_endless(&fixture, &waiting);
    let submit = || {
        let done = Box::new(|_| ());
        let interest = Interest::default();
        interest.lose();
        fixture.readers.submit(query(&["SELECT 1"]), interest, done)
    };
    assert_eq!(submit(), Err(Full), "four are waiting");
    waiting[2].lose();
    assert_eq!(submit(), Ok(()), "one has made room");
    for interest in waiting.iter().chain([&running]) {
        interest.lose();
    }
    assert_eq!(single(fixture.one("SELECT 1")), Value::Integer(1));
}

/// Counts as far as it is told.
fn counting(upto: i64) -> Request {
    let mut request = query(&[
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) \
         SELECT max(i) FROM n",
    ]);
    request.statements[0].parameters = vec![Parameter {
        name: None,
        value: Value::Integer(upto),
    }];
    request
}

#[test]
fn what_is_known_to_be_quick_needs_no_thread_until_it_is_slow() {
    let fixture = fixture(1, 10);
    let at_once = |upto| {
        let interest = Interest::default();
        let read = fixture.readers.try_at_once(counting(upto), &interest);
        read.map(|read| read.unwrap().outcomes[0].answer.clone())
    };
    assert_eq!(at_once(3), Err(counting(3)), "nothing is known of it");
    // On a busy machine nothing is quick.
    let known = (0..1000).find_map(|_| {
        assert_eq!(
            single(fixture.run(counting(3)).outcomes[0].answer.clone()),
            Value::Integer(3)
        );
        at_once(3).ok()
    });
    assert_eq!(known.map(single), Some(Value::Integer(3)));
    assert_eq!(at_once(1 << 40), Err(counting(1 << 40)), "it has no end");
    assert_eq!(
        at_once(3),
        Err(counting(3)),
        "and is no longer known to be quick"
    );
}

#[test]
fn nothing_is_run_at_once_after_the_end() {
    let fixture = fixture(1, 10);
    let is_at_once = || {
        let interest = Interest::default();
        fixture.readers.try_at_once(counting(1), &interest).is_ok()
    };
    assert!((0..1000).any(|_| {
        fixture.run(counting(1));
        is_at_once()
    }));
    fixture.readers.close();
    assert!(!is_at_once());
}
