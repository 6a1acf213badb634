//! Requests that nobody waits for any more, alone and among others.

use std::time::Duration;

use rusqlite::Connection;
use wallaby::sqlite::{Interest, Request, Shape};

use crate::fixture::{FOO, Fixture, answers, execute, statement, transaction, written};

/// Writes until it is interrupted.
const ENDLESS_WRITE: &str = "INSERT INTO foo(name) WITH RECURSIVE c(x) AS \
     (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT 'endless ' || x FROM c";

/// Reads until it is interrupted, which does not roll anything back.
const ENDLESS_READ: &str = "SELECT count(*) FROM (WITH RECURSIVE c(x) AS \
     (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c)";

/// Loses an interest after a while, so that a statement is running by then.
fn lose_soon(interest: &Interest) -> std::thread::JoinHandle<bool> {
    let interest = interest.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        interest.lose()
    })
}

fn names(fixture: &Fixture) -> Vec<String> {
    let other = Connection::open(fixture.directory.path().join("db")).unwrap();
    let mut statement = other.prepare("SELECT name FROM foo ORDER BY id").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn an_endless_request_that_is_given_up_leaves_nothing_and_its_neighbours_everything() {
    for culprit in [
        execute(&["INSERT INTO foo(name) VALUES ('mine')", ENDLESS_WRITE]),
        transaction(&["INSERT INTO foo(name) VALUES ('mine')", ENDLESS_WRITE]),
        execute(&["INSERT INTO foo(name) VALUES ('mine')", ENDLESS_READ]),
        transaction(&["INSERT INTO foo(name) VALUES ('mine')", ENDLESS_READ]),
        Request {
            shape: Shape::Unified,
            statements: vec![
                statement("INSERT INTO foo(name) VALUES ('mine')"),
                statement(&format!("{ENDLESS_READ}; SELECT 1")),
                statement("INSERT INTO foo(name) VALUES ('mine too')"),
            ],
            ..execute(&[])
        },
    ] {
        let mut fixture = Fixture::plain(FOO);
        let group = [
            execute(&["INSERT INTO foo(name) VALUES ('before')"]),
            culprit,
            execute(&["INSERT INTO foo(name) VALUES ('after')"]),
        ];
        let interests = [(); 3].map(|()| Interest::default());
        let losing = lose_soon(&interests[1]);
        let end = fixture
            .writer
            .run_while(&fixture.connection, &group, &interests);
        assert!(losing.join().unwrap(), "it was not sealed");
        assert_eq!(end.replies.len(), 3);
        assert_eq!(answers(&end.replies[0]), [written(1, 1)]);
        assert!(end.replies[1].error.is_some());
        assert_eq!(answers(&end.replies[2]), [written(2, 1)]);
        assert_eq!(names(&fixture), ["before", "after"]);
        assert!(!interests[0].lose(), "the others were sealed");
        // The next group is not affected.
        let next = fixture.run(&[execute(&["INSERT INTO foo(name) VALUES ('next')"])]);
        assert_eq!(answers(&next[0]), [written(3, 1)]);
    }
}

#[test]
fn many_that_are_given_up_cost_a_bounded_number_of_runs() {
    let mut fixture = Fixture::plain(FOO);
    let mut group = Vec::new();
    for number in 0..10 {
        group.push(execute(&[&format!(
            "INSERT INTO foo(name) VALUES ('good {number}')"
        )]));
        group.push(execute(&[ENDLESS_WRITE]));
    }
    let interests: Vec<Interest> = group.iter().map(|_| Interest::default()).collect();
    // All but one are given up before they begin; that one while it runs.
    for interest in interests.iter().skip(3).step_by(2) {
        assert!(interest.lose());
    }
    let losing = lose_soon(&interests[1]);
    let end = fixture
        .writer
        .run_while(&fixture.connection, &group, &interests);
    assert!(losing.join().unwrap());
    assert_eq!(end.replies.len(), 20, "in one run and its repetition");
    let expected: Vec<String> = (0..10).map(|number| format!("good {number}")).collect();
    assert_eq!(names(&fixture), expected);
}

#[test]
fn a_request_given_up_before_it_begins_does_not_run() {
    let mut fixture = Fixture::plain(FOO);
    let interest = Interest::default();
    assert!(interest.lose());
    for group in [
        [execute(&["INSERT INTO foo(name) VALUES ('mine')"])],
        [execute(&[
            "INSERT INTO foo(name) VALUES ('mine')",
            "VACUUM",
        ])],
    ] {
        let interests = [interest.clone()];
        let end = fixture
            .writer
            .run_while(&fixture.connection, &group, &interests);
        assert_eq!(end.replies.len(), 1);
        assert!(end.replies[0].error.is_some());
        assert!(names(&fixture).is_empty());
    }
}

#[test]
fn a_request_that_commits_as_it_goes_is_never_certain_to_be_undone() {
    let mut fixture = Fixture::plain(FOO);
    let interest = Interest::default();
    let group = [execute(&[
        "INSERT INTO foo(name) VALUES ('mine')",
        "VACUUM",
        ENDLESS_WRITE,
        "INSERT INTO foo(name) VALUES ('mine too')",
    ])];
    let losing = lose_soon(&interest);
    let interests = [interest];
    let end = fixture
        .writer
        .run_while(&fixture.connection, &group, &interests);
    assert!(!losing.join().unwrap(), "a part of it is committed");
    assert_eq!(end.replies.len(), 1);
    assert_eq!(names(&fixture), ["mine"]);
}
