//! Planted mistakes: each has to be noticed, or the files prove nothing.

use crate::answer::Answer;
use crate::behaviours::{Verdict, verdict};
use crate::expectation::Circumstances;
use crate::pattern::Names;
use crate::player::{Failure, is_test_in};
use crate::script::{Behaviour, What, parse};

/// A file with one behaviour that begins with these lines.
fn one(lines: &str) -> Result<Behaviour, String> {
    let mut all = parse("x.txt", &format!("== 1 title\nset-up: fresh\n{lines}"))?;
    Ok(all.remove(0))
}

fn compare(lines: &str, answer: &Answer) -> Result<Names, String> {
    let behaviour = one(&format!("> GET /x\n{lines}")).unwrap();
    let What::Request(request) = &behaviour.steps[0].what else {
        panic!("a request")
    };
    let circumstances = Circumstances {
        names: &Names::new(),
        address: "127.0.0.1:4001",
        has_users: false,
    };
    request.expected.compare(answer, &circumstances)
}

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
    let common = [
        ("x-rqlite-version", "0.1.0"),
        ("access-control-allow-methods", "OPTIONS, GET, POST"),
        ("access-control-allow-headers", "Content-Type"),
        ("date", "today"),
    ];
    let headers = common.iter().chain(headers);
    Answer {
        status,
        headers: headers
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: body.as_bytes().to_vec(),
    }
}

#[test]
fn files_that_say_nothing_or_two_things_are_refused() {
    for wrong in [
        "nonsense",
        "nonsense: x",
        "> GET /x",
        "> GET /x\n= body",
        "> GET /x\n< 200 answer",
        "> GET /x\n< 200 nothing\n= x",
        "> GET /x\n< 200 empty\n= x",
        "> GET /x\n< twice json\n= x",
        "> GET /x\n< 200 json\n= <<text>>",
        "> GET /x\n< 200 json\n| x",
        "> GET /x in S\n< 200 empty",
        "> POST /x\n| a\n|file b\n< 200 empty",
        "< 200 empty",
        "| x",
        "> GET /x\n< 200 octets\n? SELECT 1",
        "> GET /x\n< 200 octets\n@ 5",
        "differs: this\n> GET /x\n< 200 empty",
        "because: that\n> GET /x\n< 200 empty",
        "> GET /x\n< 200 empty\npending: later",
        "pending: a\npending: b\n> GET /x\n< 200 empty",
        "tested by: nothing",
    ] {
        assert!(one(wrong).is_err(), "{wrong}");
    }
    assert!(parse("x.txt", "== 1 no set-up\n> GET /x\n< 200 empty").is_err());
    assert!(parse("x.txt", "> GET /x\n< 200 empty").is_err());
    one("differs: this\nbecause: that\n> GET /x\n< 200 empty").unwrap();
}

#[test]
fn every_difference_of_an_answer_is_seen() {
    let json = ("content-type", "application/json; charset=utf-8");
    let served = ("x-rqlite-served-by", "127.0.0.1:4001");
    let expected = "< 200 answer\n= {\"results\":[]}";
    let body = "{\"results\":[]}";
    compare(expected, &answer(200, &[json, served], body)).unwrap();
    for (what, wrong) in [
        ("status", answer(201, &[json, served], body)),
        ("no header", answer(200, &[json], body)),
        ("no type", answer(200, &[served], body)),
        ("header twice", answer(200, &[json, served, served], body)),
        (
            "further header",
            answer(200, &[json, served, ("x-new", "1")], body),
        ),
        (
            "other node",
            answer(200, &[json, ("x-rqlite-served-by", "127.0.0.1:4002")], body),
        ),
        ("body", answer(200, &[json, served], "{\"results\":[{}]}")),
        (
            "newline",
            answer(200, &[json, served], "{\"results\":[]}\n"),
        ),
        ("nothing", answer(200, &[json, served], "")),
    ] {
        assert!(compare(expected, &wrong).is_err(), "{what}");
    }
    let plain = ("content-type", "text/plain; charset=utf-8");
    let sniff = ("x-content-type-options", "nosniff");
    let refused = "< 400 error\n= no statements";
    compare(refused, &answer(400, &[plain, sniff], "no statements\n")).unwrap();
    assert!(compare(refused, &answer(400, &[plain, sniff], "no statements")).is_err());
    assert!(compare(refused, &answer(400, &[plain], "no statements\n")).is_err());
    assert!(compare("< 200 empty", &answer(200, &[], "x")).is_err());
    let optional = "< 200 empty\n<? X-Rqlite-Served-By: 127.0.0.1:4001";
    compare(optional, &answer(200, &[], "")).unwrap();
    compare(optional, &answer(200, &[served], "")).unwrap();
    let other = ("x-rqlite-served-by", "127.0.0.1:4002");
    assert!(compare(optional, &answer(200, &[other], "")).is_err());
}

#[test]
fn bodies_that_are_not_text_are_looked_into() {
    let octets = ("content-type", "application/octet-stream");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.db");
    let database = rusqlite::Connection::open(&file).unwrap();
    database
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1),('x')")
        .unwrap();
    drop(database);
    let mut body = answer(200, &[octets], "");
    body.body = std::fs::read(file).unwrap();
    compare("< 200 octets\n? SELECT a FROM t => [[1],[\"x\"]]", &body).unwrap();
    compare("< 200 octets\n@ 18 01 01", &body).unwrap();
    assert!(compare("< 200 octets\n? SELECT a FROM t => [[1]]", &body).is_err());
    assert!(compare("< 200 octets\n? SELECT b FROM t => [[1]]", &body).is_err());
    assert!(compare("< 200 octets\n@ 18 02 02", &body).is_err());
    assert!(compare("< 200 octets\n@ 999999 02", &body).is_err());
    body.body.truncate(5000);
    assert!(compare("< 200 octets\n? SELECT 1 => [[1]]", &body).is_err());
    let json = ("content-type", "application/json; charset=utf-8");
    let status = answer(200, &[json], "{\"a\":{\"b\":[5]}}");
    compare("< 200 json\n. a.b = [<<number>>]", &status).unwrap();
    assert!(compare("< 200 json\n. a.b = [6]", &status).is_err());
    assert!(compare("< 200 json\n. a.c = 5", &status).is_err());
}

#[test]
fn a_pending_mark_excuses_only_what_follows_it() {
    let lines = "> GET /a\n< 200 empty\npending: later\n> GET /b\n< 200 empty";
    let marked = one(lines).unwrap();
    let failed = |step| {
        Err(Failure {
            step,
            text: "x".to_owned(),
        })
    };
    assert!(matches!(
        verdict(&marked, failed(Some(1))),
        Verdict::Pending(_)
    ));
    assert!(matches!(
        verdict(&marked, failed(Some(0))),
        Verdict::Failed(_)
    ));
    assert!(matches!(verdict(&marked, failed(None)), Verdict::Failed(_)));
    assert!(matches!(verdict(&marked, Ok(())), Verdict::Failed(_)));
    let plain = one("> GET /a\n< 200 empty").unwrap();
    assert!(matches!(
        verdict(&plain, failed(Some(0))),
        Verdict::Failed(_)
    ));
    assert_eq!(verdict(&plain, Ok(())), Verdict::Passed);
}

#[test]
fn only_a_test_that_is_run_counts_as_one() {
    let text =
        "#[test]\nfn good() {\n}\n\nfn helper() {\n}\n\n#[test]\n#[ignore]\nfn never() {\n}\n";
    is_test_in(text, "good").unwrap();
    for wrong in ["goo", "helper", "never", "nothing"] {
        assert!(is_test_in(text, wrong).is_err(), "{wrong}");
    }
}
