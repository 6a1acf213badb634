//! What HTTP clients send, without a node: request bodies, query parameters, durations. The
//! tables hold what rqlite does.

// Functions shared by tests are not seen as tests by the lint.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wallaby::http::duration;
use wallaby::http::parameters::{LevelAsked, ParameterError, Parameters};
use wallaby::http::request::{RequestError, is_plain_text, parse_statements, plain_statement};
use wallaby::node::{Level, Parameter, Statement, Value};

/// A generator of numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    /// A fresh seed, or the one in `WAL_SEED`; printed, so that a failure can be replayed.
    fn from_environment() -> Self {
        let seed = std::env::var("WAL_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap()).max(1);
        println!("WAL_SEED={seed} cargo test -p wal-tests --test http_requests");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.as_bytes().to_vec())
}

#[test]
fn a_body_that_is_not_a_list_of_statements_is_refused_with_rqlites_text() {
    let deep = format!("[[\"SQL\",{}", "[".repeat(100_000));
    let table: &[(&str, &str)] = &[
        ("[]", "no statements"),
        (" [ ] ", "no statements"),
        ("", "invalid JSON body"),
        ("garbage", "invalid JSON body"),
        ("[\"SQL\"", "invalid JSON body"),
        ("[\"SQL\",]", "invalid JSON body"),
        ("[[\"SQL\",01]]", "invalid JSON body"),
        ("[[\"SQL\",NaN]]", "invalid JSON body"),
        ("INSERT INTO foo VALUES(1)", "invalid JSON body"),
        (&deep, "invalid JSON body"),
        ("{}", "invalid request"),
        ("\"SQL\"", "invalid request"),
        ("5", "invalid request"),
        ("[1]", "invalid request"),
        ("[null]", "invalid request"),
        ("[{\"SQL\":1}]", "invalid request"),
        ("[[]]", "invalid request"),
        ("[[1,2]]", "invalid request"),
        ("[\"SQL\",[[\"SQL\"]]]", "invalid request"),
        (
            "[[\"SQL\",{\"a\":{\"b\":1}}]]",
            "unsupported type map[string]interface {}",
        ),
        ("[[\"SQL\",[300]]]", "unsupported type 300"),
        ("[[\"SQL\",[-1]]]", "unsupported type -1"),
        ("[[\"SQL\",[1.5]]]", "unsupported type 1.5"),
        ("[[\"SQL\",[\"a\"]]]", "unsupported type string"),
        ("[[\"SQL\",[true]]]", "unsupported type bool"),
        ("[[\"SQL\",[null]]]", "unsupported type <nil>"),
        ("[[\"SQL\",[[1]]]]", "unsupported type []interface {}"),
        ("[[\"SQL\",1e400]]", "invalid number 1e400"),
    ];
    for (body, expected) in table {
        let error = parse_statements(body.as_bytes()).unwrap_err();
        assert_eq!(&error.to_string(), expected, "body {body:.60}");
    }
    assert_eq!(parse_statements(b"[]"), Err(RequestError::NoStatements));
}

#[test]
fn all_forms_of_a_body_become_statements() {
    let statement = |sql: &str, parameters: Vec<(Option<&str>, Value)>| Statement {
        sql: sql.to_owned(),
        parameters: parameters
            .into_iter()
            .map(|(name, value)| Parameter {
                name: name.map(str::to_owned),
                value,
            })
            .collect(),
    };
    let body = r#" ["A",["B"],["C",1,"t"],["D",{"z":1,"a":null}],["E",{"n":2},3]] trailing"#;
    let expected = vec![
        statement("A", vec![]),
        statement("B", vec![]),
        statement("C", vec![(None, Value::Integer(1)), (None, text("t"))]),
        statement(
            "D",
            vec![(Some("z"), Value::Integer(1)), (Some("a"), Value::Null)],
        ),
        statement(
            "E",
            vec![(Some("n"), Value::Integer(2)), (None, Value::Integer(3))],
        ),
    ];
    assert_eq!(parse_statements(body.as_bytes()), Ok(expected));
    assert_eq!(parse_statements(b"[\"\"]"), Ok(vec![statement("", vec![])]));
    assert_eq!(
        plain_statement(b"SELECT 1"),
        vec![statement("SELECT 1", vec![])]
    );
    assert!(is_plain_text("text/plain") && is_plain_text("Text/Plain; charset=utf-8"));
    assert!(!is_plain_text("application/json") && !is_plain_text("") && !is_plain_text("text/x"));
}

#[test]
fn parameters_are_bound_with_the_storage_class_that_rqlite_gives_them() {
    let table: &[(&str, Value)] = &[
        ("1", Value::Integer(1)),
        ("-9223372036854775808", Value::Integer(i64::MIN)),
        ("9223372036854775807", Value::Integer(i64::MAX)),
        (
            "9223372036854775808",
            Value::Real(9_223_372_036_854_775_808.0),
        ),
        ("1.0", Value::Real(1.0)),
        ("1e2", Value::Real(100.0)),
        ("1e-400", Value::Real(0.0)),
        ("true", Value::Integer(1)),
        ("false", Value::Integer(0)),
        ("null", Value::Null),
        (r#""fiona""#, text("fiona")),
        (
            r#""x'deadBEEF'""#,
            Value::Blob(vec![0xde, 0xad, 0xbe, 0xef]),
        ),
        (r#"" X'ff' ""#, Value::Blob(vec![0xff])),
        (r#""x''""#, Value::Blob(vec![])),
        (r#""x'zz'""#, text("x'zz'")),
        (r#""x'abc'""#, text("x'abc'")),
        (r#""x'""#, text("x'")),
        (r#""x'+1'""#, text("x'+1'")),
        ("[]", Value::Blob(vec![])),
        ("[0,222,255]", Value::Blob(vec![0, 222, 255])),
        (r#""\u3053\n\"""#, text("\u{3053}\n\"")),
    ];
    for (sent, bound) in table {
        for body in [
            format!("[[\"SQL\",{sent}]]"),
            format!("[[\"SQL\",{{\"n\":{sent}}}]]"),
        ] {
            let statements = parse_statements(body.as_bytes()).unwrap();
            assert_eq!(&statements[0].parameters[0].value, bound, "{body}");
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_in_a_body_are_replaced_one_by_one() {
    let statements = parse_statements(b"[\"a\xff\xe2\x82b\"]").unwrap();
    assert_eq!(statements[0].sql, "a\u{fffd}\u{fffd}\u{fffd}b");
}

#[test]
fn escapes_for_half_of_a_surrogate_pair_are_replaced_one_by_one() {
    let table = [
        (r#"["a\ud800b"]"#, "a\u{fffd}b"),
        (
            r#"["\uDfff\ud83d\ude00\ud83d"]"#,
            "\u{fffd}\u{1f600}\u{fffd}",
        ),
        (r#"["\ud800\u00e9\ud800\n"]"#, "\u{fffd}\u{e9}\u{fffd}\n"),
        (r#"["\\ud800\udc00"]"#, "\\ud800\u{fffd}"),
        ("[\"\u{e9}\\ud800\u{e9}\"] garbage", "\u{e9}\u{fffd}\u{e9}"),
    ];
    for (body, sql) in table {
        let statements = parse_statements(body.as_bytes()).unwrap();
        assert_eq!(statements[0].sql, sql, "{body}");
    }
    for body in [
        r#"["\ud800"#,
        r#"["\ud800\x"]"#,
        r#"["\ud80"]"#,
        "[\"\\ud800\\\u{e9}\"]",
        "\\",
    ] {
        assert_eq!(
            parse_statements(body.as_bytes()),
            Err(RequestError::Json),
            "{body}"
        );
    }
}

#[test]
fn no_damaged_body_panics() {
    let mut random = Random::from_environment();
    let sound = br#"["A",["C",1,"t",[1,2],"x'ff'"],["D",{"z":1e5,"a":null,"b":[3]}],["\u00e9"]]"#;
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut body = sound.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(body.len());
            match random.below(3) {
                0 => body[at] = u8::try_from(random.below(256)).unwrap(),
                1 => drop(body.remove(at)),
                _ => body.insert(at, b"[]{}\",:0e\\x'"[random.below(12)]),
            }
        }
        match parse_statements(&body) {
            Ok(statements) => accepted += usize::from(!statements.is_empty()),
            Err(error) => refused += usize::from(!error.to_string().is_empty()),
        }
    }
    assert!(
        accepted > 100 && refused > 100,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn query_parameters_are_checked_with_rqlites_texts() {
    let table = [
        ("x=%ZZ", "invalid URL escape \"%ZZ\""),
        ("x=%4", "invalid URL escape \"%4\""),
        ("x%", "invalid URL escape \"%\""),
        ("a;b", "invalid semicolon separator in query"),
        ("timeout=5", "timeout is not a valid duration"),
        ("timeout=", "timeout is not a valid duration"),
        ("freshness=x", "freshness is not a valid duration"),
        ("db_timeout=1", "db_timeout is not a valid duration"),
        (
            "linearizable_timeout=z",
            "linearizable_timeout is not a valid duration",
        ),
        ("retries=a", "retries is not a valid integer"),
        ("trailing_logs=a", "trailing_logs is not a valid integer"),
        ("freshness_strict", "freshness_strict requires freshness"),
        ("q=", "query parameter not set"),
        ("q", "query parameter not set"),
    ];
    for (query, expected) in table {
        assert_eq!(
            Parameters::parse(query).unwrap_err().to_string(),
            expected,
            "{query}"
        );
    }
    assert_eq!(
        Parameters::parse("q").unwrap_err(),
        ParameterError::QueryEmpty
    );
}

#[test]
fn query_parameters_are_read() {
    let query = "pretty=false&&transaction&timeout=1.5s&timeout=x&unknown=%41&db_timeout=50ms\
                 &q=SELECT+%271%27%3B&freshness=1s&freshness_strict&Timings&retries=-3";
    let parameters = Parameters::parse(query).unwrap();
    assert!(parameters.flag("pretty") && parameters.flag("transaction"));
    assert!(!parameters.flag("timings") && !parameters.flag("associative"));
    assert_eq!(parameters.timeout, Duration::from_millis(1500));
    assert_eq!(
        parameters.statement_time_max,
        Some(Duration::from_millis(50))
    );
    assert_eq!(parameters.text("q"), Some("SELECT '1';"));
    assert_eq!(parameters.text("unknown"), Some("A"));

    for (query, index_min) in [
        ("raft_index", 0),
        ("raft_index=true", 0),
        ("raft_index=7", 7),
    ] {
        let parameters = Parameters::parse(query).unwrap();
        assert!(parameters.flag("raft_index"), "{query}");
        assert_eq!(parameters.index_min, index_min, "{query}");
    }

    let defaults = Parameters::parse("db_timeout=0").unwrap();
    assert_eq!(defaults.timeout, Duration::from_secs(30));
    assert_eq!(defaults.linearizable_timeout, Duration::from_secs(10));
    assert_eq!(defaults.statement_time_max, None);
    assert_eq!(
        Parameters::parse("timeout=-5s").unwrap().timeout,
        Duration::ZERO
    );

    for (query, level) in [
        ("", LevelAsked::Fixed(Level::Weak)),
        ("level=none", LevelAsked::Fixed(Level::None)),
        ("level=Strong", LevelAsked::Fixed(Level::Strong)),
        ("level=LINEARIZABLE", LevelAsked::Fixed(Level::Linearizable)),
        ("level=auto", LevelAsked::Auto),
        ("level=other", LevelAsked::Fixed(Level::Weak)),
    ] {
        assert_eq!(Parameters::parse(query).unwrap().level(), level, "{query}");
    }
}

#[test]
fn durations_are_read_and_written_as_go_does() {
    let nanoseconds = |text: &str| duration::parse(text).map(|value| value.as_nanos());
    let table = [
        ("0", 0),
        ("100ms", 100_000_000),
        ("1h2m3.5s", 3_723_500_000_000),
        ("1us", 1_000),
        ("1\u{b5}s", 1_000),
        ("1\u{3bc}s", 1_000),
        (".5s", 500_000_000),
        ("+1.s", 1_000_000_000),
        ("0.3333333333333333333h", 1_199_999_999_999),
        ("9223372036854775807ns", 9_223_372_036_854_775_807),
    ];
    for (text, expected) in table {
        assert_eq!(nanoseconds(text), Some(expected), "{text}");
    }
    let wrong = "|5|-|+|.s|s|1x|1 s|1s1|1e3s|1..5s|9223372036854775808ns|99999999999999999999s\
                 |3000000h|\u{b5}";
    for text in wrong.split('|') {
        assert_eq!(nanoseconds(text), None, "{text}");
    }
    for (nanoseconds, expected) in [
        (0, "0s"),
        (1, "1ns"),
        (33_149, "33.149\u{b5}s"),
        (1_000, "1\u{b5}s"),
        (1_500_000, "1.5ms"),
        (10_000_000_000, "10s"),
        (1_000_000_001, "1.000000001s"),
        (60_000_000_000, "1m0s"),
        (3_723_500_000_000, "1h2m3.5s"),
        (3_600_000_000_000, "1h0m0s"),
    ] {
        assert_eq!(
            duration::format(Duration::from_nanos(nanoseconds)),
            expected
        );
    }
}
