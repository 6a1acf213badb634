//! Bodies of requests, in every form that rqlite's API has for statements and parameters: what was
//! accepted can be said again in JSON, and is then understood the same.

use serde_json::{Value as Json, json};
use wallaby::http::request::{parse_statements, plain_statement};
use wallaby::node::{Parameter, Statement, Value};

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

/// Before a body is parsed its values are counted, and a million is the most. Two bytes make one
/// of a hundred bytes, in lists that have grown by doubling.
const BOUND: Bound = Bound {
    per_byte: 160,
    ..Bound::PLAIN
};

/// See the module.
///
/// # Panics
/// If a statement is understood differently when it is said again.
pub fn bodies(data: &[u8]) -> Reached {
    let plain = bounded(BOUND, data.len(), || plain_statement(data));
    assert!(plain.len() == 1 && plain[0].parameters.is_empty());
    let Ok(statements) = bounded(BOUND, data.len(), || parse_statements(data)) else {
        return Reached::Refused;
    };
    assert!(
        !statements.is_empty(),
        "a body without statements is refused"
    );
    let said: Vec<Json> = statements.iter().map(say).collect();
    let text = serde_json::to_vec(&said).expect("finite numbers and texts");
    let again = parse_statements(&text);
    assert_eq!(again, Ok(statements), "{}", String::from_utf8_lossy(&text));
    Reached::Accepted
}

fn say(statement: &Statement) -> Json {
    let mut items = vec![json!(statement.sql)];
    items.extend(statement.parameters.iter().map(parameter));
    Json::Array(items)
}

fn parameter(parameter: &Parameter) -> Json {
    let value = match &parameter.value {
        Value::Blob(bytes) => json!(bytes),
        Value::Integer(integer) => json!(integer),
        Value::Null => Json::Null,
        Value::Real(real) => json!(real),
        Value::Text(text) => json!(std::str::from_utf8(text).expect("it came as JSON")),
    };
    match &parameter.name {
        Some(name) => json!({ name: value }),
        None => value,
    }
}

/// Pieces that the parser knows.
pub(crate) const WORDS: [&str; 22] = [
    "[\"",
    "\",",
    "[[",
    "]]",
    "{\"",
    "\":",
    "}",
    "null",
    "true",
    "false",
    "x'",
    "'",
    "\\u",
    "\\ud800",
    "\\udc00",
    "-0",
    "1e",
    "9223372036854775807",
    "9223372036854775808",
    "0.1",
    "\u{fffd}",
    "\\\\",
];

pub(crate) fn samples() -> Vec<Sample> {
    let texts = [
        ("plain", r#"["SELECT 1"]"#),
        ("several", r#"["SELECT 1", ["SELECT 2"], "x"] ignored"#),
        (
            "by-position",
            r#"[["INSERT INTO t VALUES(?, ?, ?, ?, ?)", 1, 2.5, "three", null, true]]"#,
        ),
        (
            "by-name",
            r#"[["SELECT :a, @b, $c", {"a": 1, "b": "x", "c": [1, 2, 255]}]]"#,
        ),
        (
            "mixed",
            r#"[["SELECT ?, :a", -9, {"a": false}, "X'0aFf'"]]"#,
        ),
        ("blobs", r#"[["SELECT ?, ?, ?", " x'00' ", "x'0'", []]]"#),
        (
            "numbers",
            r#"[["?", 9223372036854775807, 9223372036854775808, -0, 1e5, 1e999]]"#,
        ),
        ("surrogates", r#"["\ud83d\ude00 \ud83d \\ud800"]"#),
        ("nothing", "[]"),
        ("object", r#"{"a": 1}"#),
        ("nested", "[[[[[[[[1]]]]]]]]"),
        ("array-of-objects", r#"[["?", {"a": {"b": 1}}]]"#),
    ];
    let mut samples: Vec<Sample> = texts
        .into_iter()
        .map(|(name, text)| Sample::new(name, text.as_bytes().to_vec()))
        .collect();
    samples.push(Sample::new(
        "not-utf-8",
        b"[\"\xff\xfe SELECT\", [\"?\", \"\xc3\"]]".to_vec(),
    ));
    samples
}
