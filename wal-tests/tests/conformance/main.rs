//! The 88 behaviours of rqlite that its clients and scripts rely on, each played against real
//! `wallaby` processes. They are data: `wal-tests/conformance/*.txt`, one file per section.
//!
//! `cargo test -p wal-tests --test conformance e_refusals` plays one section;
//! `WAL_BEHAVIOUR=47` in the environment only that behaviour, and shows in full why it is pending.
//! At most two are played at a time.
//!
//! # The files
//!
//! Lines, each with a meaning that its beginning tells. Empty lines and lines that begin with `#`
//! mean nothing. A behaviour is its heading, its set-up, and steps that are played in order:
//!
//! ```text
//! == 9* A failed statement leaves the others in force
//! set-up: fixture F
//!
//! > POST /db/execute
//! | ["INSERT INTO foo(id) VALUES(1)"]
//! < 200 answer
//! = {"results":[{"error":"UNIQUE constraint failed: foo.id"}]}
//! ```
//!
//! | Line | Meaning |
//! |---|---|
//! | `== N title` | a behaviour and its number; `N*`: one of the 25 most important |
//! | `set-up: WHAT` | see below |
//! | `flags: ...`, `flags 2: ...` | further flags of all nodes, of the second node |
//! | `file NAME`, then <code>\| ...</code> | a file; its path is `<<NAME>>` |
//! | `operator: user:password` | there is a users file; how the runner itself gets in |
//! | `pending: WHY` | what follows does not hold yet; it is a failure if all of it does |
//! | `differs: WHAT`, `because: WHY` | what rqlite answers, and why the answer here is another |
//! | `tested by: FILE::TEST` | a step: that test exists in `wal-tests/tests/FILE.rs` |
//! | `! ...` | a step: an action, see below |
//! | `> METHOD /path?query [at NODE] [as USER:PASSWORD]` | a step: a request |
//! | `> Name: value` | a header of it |
//! | <code>\| text</code> | a line of its body; without `Content-Type` it is sent as JSON |
//! | <code>\|file NAME</code> | the body is that file |
//! | `< STATUS KIND` | the status expected, and the kind of answer, see below |
//! | `< Name: value`, `<? Name: value` | a header expected; one that may be missing |
//! | `= text` | a line of the body expected; lines are joined by a newline |
//! | `@ OFFSET hex` | the body has these bytes there |
//! | `? SQL => JSON` | the body is a sound SQLite file in which SQL gives these rows |
//! | `. a.b.c = JSON` | the body is JSON and has this value at this path |
//!
//! All headers of an answer are compared, except `Date` and what only frames the body. Those that
//! every answer carries need no line; the kind adds those that go with it:
//!
//! | Kind | Headers | Body |
//! |---|---|---|
//! | `answer` | JSON; `X-Rqlite-Served-By`: HTTP address of the node asked | as it is written |
//! | `json` | JSON | as it is written |
//! | `error` | plain text, `nosniff` | a newline follows what is written |
//! | `text` | plain text | as it is written |
//! | `octets`, `sql` | `application/octet-stream`, `application/sql` | as it is written |
//! | `empty` | none | none |
//!
//! | Set-up | Meaning |
//! |---|---|
//! | `fresh`, `fixture F` | one node, fresh or with the table `foo` and its two rows |
//! | `cluster`, `cluster, fixture F` | three nodes that formed a cluster together |
//! | `joined`, `joined, fixture F` | the same, but nodes 2 and 3 joined node 1, which leads |
//! | `stopped N` | N nodes that are not running and are not told to join |
//! | `none` | nothing: all that is to be said is `tested by` |
//!
//! Nodes are named `1`, `2`, ... and by role: `L` leads, `S` and `T` follow. Requests without `at`
//! go to `L`.
//!
//! | Action | Meaning |
//! |---|---|
//! | `! start N [with FLAGS]` | starts a node, with further flags from now on |
//! | `! kill N`, `! stop N` | SIGKILL, SIGTERM; waits for the end |
//! | `! restart all` | stops all nodes, then starts them; roles are given anew |
//! | `! leader` | waits for a leader; roles are given anew, to running nodes first |
//! | `! ready N` | waits until the node is ready and has caught up |
//! | `! ends N saying TEXT` | waits until the node ends by itself with an error and this log |
//! | `! move N` | gives a node that is not running new addresses |
//! | `! identical` | the page images of all running nodes are equal, and sound |
//! | `! until` | the next request is sent again until it is answered as expected |
//! | `! times N at once M` | the next request is sent N times by M clients |
//! | `! keep NAME` | the body of the last answer is now the file NAME |
//! | `! database NAME: SQL` | SQLite itself makes a database with this SQL: the file NAME |
//! | `! exists N PATH`, `! absent N PATH` | a path in the data directory of a node |
//! | <code>! write N PATH \| text</code> | writes such a file, of one line |
//!
//! # What varies
//!
//! In expected bodies and headers, `<<class>>` stands for text that varies, `<<class:name>>` keeps
//! it under a name, `<<class>name>>` wants a number greater than the one kept. Everything else is
//! compared byte for byte. Classes: `number` (positive), `integer`, `seconds`, `span` (`33.1ms`),
//! `version`, `text` (up to 200 characters, no quotes, braces or line breaks).
//!
//! In requests and expectations alike `<<name>>` is what was kept, `<<name+1>>` a number more by
//! one, `<<L.http>>`, `<<L.raft>>`, `<<L.name>>` what is known of a node, `<<NAME>>` the path of a
//! file. What varies needs at least as many plain characters around it as [`pattern`] says, so that
//! no expectation fits everything.

#![allow(
    clippy::unwrap_used,
    reason = "the functions of a test are not seen as tests by the lint"
)]

mod answer;
mod behaviours;
mod call;
mod expectation;
mod pattern;
mod planted;
mod player;
mod script;
mod stage;

use behaviours::{play, section};

#[test]
fn every_behaviour_is_there_exactly_once() {
    let mut numbers = Vec::new();
    let mut important = Vec::new();
    for (letter, range) in behaviours::SECTIONS {
        for behaviour in section(letter) {
            assert!(
                range.contains(&behaviour.number),
                "behaviour {} is in section {letter}",
                behaviour.number
            );
            assert!(
                !behaviour.steps.is_empty(),
                "behaviour {} has no steps",
                behaviour.number
            );
            numbers.push(behaviour.number);
            important.extend(behaviour.important.then_some(behaviour.number));
        }
    }
    assert_eq!(numbers, (1..=88).collect::<Vec<_>>());
    assert_eq!(important, behaviours::IMPORTANT);
}

#[test]
fn a_writing() {
    play("a");
}

#[test]
fn b_parameters_and_bodies() {
    play("b");
}

#[test]
fn c_reading_and_rendering() {
    play("c");
}

#[test]
fn d_unified_endpoint_and_returning() {
    play("d");
}

#[test]
fn e_refusals() {
    play("e");
}

#[test]
fn f_consistency_and_forwarding() {
    play("f");
}

#[test]
fn g_queue() {
    play("g");
}

#[test]
fn h_backup_load_boot() {
    play("h");
}

#[test]
fn i_administration_and_cluster() {
    play("i");
}

#[test]
fn j_security() {
    play("j");
}
