//! What HTTP clients see, byte for byte, without a node: the JSON of answers. The tables hold what
//! rqlite does.

// Functions shared by tests are not seen as tests by the lint.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use wallaby::http::nodes;
use wallaby::http::response::{Envelope, Form, render};
use wallaby::node::{Answer, MemberRole, MemberStatus, Outcome, Reply, Rows, Shape, Value};

fn text(text: &str) -> Value {
    Value::Text(text.as_bytes().to_vec())
}

fn rows(columns: &[&str], types: &[&str], values: Vec<Vec<Value>>) -> Answer {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    Answer::Rows(Rows {
        columns: owned(columns),
        types: owned(types),
        declared: vec![true; types.len()],
        values,
    })
}

fn written(last_insert_id: i64, rows_affected: i64) -> Answer {
    Answer::Written {
        last_insert_id,
        rows_affected,
    }
}

fn failed(error: &str) -> Answer {
    Answer::Failed(error.to_owned())
}

/// Renders answers that took no time.
fn rendered(shape: Shape, form: Form, answers: Vec<Answer>) -> String {
    let elapsed = Duration::ZERO;
    let outcomes = answers
        .into_iter()
        .map(|answer| Outcome { answer, elapsed })
        .collect();
    let envelope = Envelope {
        shape,
        elapsed,
        raft_index: None,
        form,
    };
    let bytes = render(
        &Reply {
            outcomes,
            error: None,
        },
        &envelope,
    );
    String::from_utf8(bytes).unwrap()
}

fn plain(answers: Vec<Answer>) -> String {
    rendered(Shape::Query, Form::default(), answers)
}

const ASSOCIATIVE: Form = Form {
    associative: true,
    blob_array: false,
    pretty: false,
    timings: false,
};

/// One value in a column of the given type, as it appears in `values`.
fn cell(type_name: &str, value: Value) -> String {
    let all = plain(vec![rows(&["c"], &[type_name], vec![vec![value]])]);
    let (_, cell) = all.split_once("\"values\":[[").unwrap();
    cell.strip_suffix("]]}]}").unwrap().to_owned()
}

#[test]
fn values_are_rendered_by_storage_class_and_column_type() {
    let blob = || Value::Blob(vec![0xde, 0xad, 0xbe, 0xef]);
    let v = || Value::Blob(b"v".to_vec());
    let table = [
        (
            "integer",
            Value::Integer(9_007_199_254_740_993),
            "9007199254740993",
        ),
        ("integer", Value::Integer(i64::MIN), "-9223372036854775808"),
        ("real", Value::Real(2.0), "2"),
        ("", Value::Null, "null"),
        ("real", Value::Real(f64::NAN), "null"),
        ("boolean", Value::Integer(2), "true"),
        ("boolean", Value::Integer(0), "false"),
        ("boolean", Value::Integer(-1), "false"),
        ("boolean", Value::Real(1.0), "1"),
        ("boolean", text("yes"), "\"yes\""),
        (
            "timestamp",
            text("2024-01-02 03:04:05"),
            "\"2024-01-02T03:04:05Z\"",
        ),
        (
            "datetime",
            Value::Integer(1_704_164_645_678),
            "\"2024-01-02T03:04:05.678Z\"",
        ),
        ("date", text("junk"), "\"0001-01-01T00:00:00Z\""),
        ("date", Value::Real(1.5), "1.5"),
        ("date", blob(), "\"3q2+7w==\""),
        ("time", text("03:04"), "\"03:04\""),
        ("datetime2", text("junk"), "\"junk\""),
        ("blob", blob(), "\"3q2+7w==\""),
        ("char(4)", blob(), "\"3q2+7w==\""),
        ("", blob(), "\"3q2+7w==\""),
        ("blob", Value::Blob(vec![]), "\"\""),
        ("blob", text("fiona"), "\"fiona\""),
        ("text", blob(), "\"\u{7ad}\\ufffd\\ufffd\""),
        ("varchar(20)", v(), "\"v\""),
        ("nvarchar", v(), "\"v\""),
        ("clob", v(), "\"v\""),
        ("json", v(), "\"v\""),
    ];
    for (type_name, value, expected) in table {
        assert_eq!(
            cell(type_name, value.clone()),
            expected,
            "{type_name} {value:?}"
        );
    }
    let form = Form {
        blob_array: true,
        ..Form::default()
    };
    let answer = rows(
        &["data"],
        &["blob"],
        vec![vec![text("fiona")], vec![blob()]],
    );
    assert_eq!(
        rendered(Shape::Query, form, vec![answer]),
        concat!(
            r#"{"results":[{"columns":["data"],"types":["blob"],"#,
            r#""values":[["fiona"],[[222,173,190,239]]]}]}"#
        )
    );
}

#[test]
fn an_infinity_is_null_and_the_other_values_arrive() {
    let values = vec![vec![Value::Real(f64::NEG_INFINITY), Value::Integer(1)]];
    let answer = || rows(&["c", "d"], &["real", "integer"], values.clone());
    assert_eq!(
        plain(vec![answer(), written(1, 1)]),
        concat!(
            r#"{"results":[{"columns":["c","d"],"types":["real","integer"],"#,
            r#""values":[[null,1]]},{"last_insert_id":1,"rows_affected":1}]}"#
        )
    );
    assert_eq!(
        rendered(Shape::Query, ASSOCIATIVE, vec![answer()]),
        r#"{"results":[{"types":{"c":"real","d":"integer"},"rows":[{"c":null,"d":1}]}]}"#
    );
}

#[test]
fn a_blob_from_an_expression_keeps_its_bytes_whatever_the_first_row_held() {
    let answer = Answer::Rows(Rows {
        columns: vec!["declared".to_owned(), "expression".to_owned()],
        types: vec!["text".to_owned(), "text".to_owned()],
        declared: vec![true, false],
        values: vec![
            vec![text("a"), text("a")],
            vec![Value::Blob(vec![b'b', 0xff]), Value::Blob(vec![b'b', 0xff])],
        ],
    });
    let all = plain(vec![answer]);
    assert!(
        all.ends_with(r#""values":[["a","a"],["b\ufffd","Yv8="]]}]}"#),
        "{all}"
    );
}

#[test]
fn results_are_rendered_as_rqlite_renders_them() {
    let foo = |values| rows(&["id", "name"], &["integer", "text"], values);
    let r = || rows(&["name"], &["text"], vec![vec![text("r")]]);
    let angle = rows(&["<c>"], &["text"], vec![vec![text("<a>&b")]]);
    let table: Vec<(Vec<Answer>, &str)> = vec![
        (vec![], ""),
        (vec![written(0, 0)], "{}"),
        (
            vec![written(3, 1)],
            r#"{"last_insert_id":3,"rows_affected":1}"#,
        ),
        (
            vec![written(4, 0), written(-4, 0)],
            r#"{"last_insert_id":4},{"last_insert_id":-4}"#,
        ),
        (
            vec![foo(vec![vec![Value::Integer(1), text("fiona")]])],
            r#"{"columns":["id","name"],"types":["integer","text"],"values":[[1,"fiona"]]}"#,
        ),
        (
            vec![foo(vec![])],
            r#"{"columns":["id","name"],"types":["integer","text"]}"#,
        ),
        (vec![rows(&[], &[], vec![])], "{}"),
        (
            vec![failed("no such table: nope")],
            r#"{"error":"no such table: nope"}"#,
        ),
        (vec![failed("a>0")], r#"{"error":"a\u003e0"}"#),
        (
            vec![angle],
            concat!(
                r#"{"columns":["\u003cc\u003e"],"types":["text"],"#,
                r#""values":[["\u003ca\u003e\u0026b"]]}"#
            ),
        ),
        (
            vec![written(70, 1), r()],
            concat!(
                r#"{"last_insert_id":70,"rows_affected":1},"#,
                r#"{"columns":["name"],"types":["text"],"values":[["r"]]}"#
            ),
        ),
    ];
    for (answers, expected) in table {
        assert_eq!(plain(answers), format!("{{\"results\":[{expected}]}}"));
    }
}

#[test]
fn associative_results_are_rendered_as_rqlite_renders_them() {
    let twice = rows(
        &["z", "<b>", "z", "a"],
        &["integer", "real", "text", "boolean"],
        vec![vec![
            Value::Integer(1),
            Value::Null,
            text("last"),
            Value::Integer(1),
        ]],
    );
    let two = rows(
        &["name"],
        &["text"],
        vec![vec![text("fiona")], vec![text("declan")]],
    );
    let table: Vec<(Shape, Answer, &str)> = vec![
        (
            Shape::Query,
            two,
            r#"{"types":{"name":"text"},"rows":[{"name":"fiona"},{"name":"declan"}]}"#,
        ),
        (
            Shape::Query,
            rows(&["name"], &["text"], vec![]),
            r#"{"types":{"name":"text"},"rows":[]}"#,
        ),
        (
            Shape::Query,
            twice,
            concat!(
                r#"{"types":{"\u003cb\u003e":"real","a":"boolean","z":"text"},"#,
                r#""rows":[{"\u003cb\u003e":null,"a":true,"z":"last"}]}"#
            ),
        ),
        (Shape::Query, rows(&[], &[], vec![]), r#"{"rows":[]}"#),
        (Shape::Query, failed("no"), r#"{"rows":[],"error":"no"}"#),
        (Shape::Unified, failed("no"), r#"{"error":"no"}"#),
        (
            Shape::Unified,
            written(71, 1),
            r#"{"last_insert_id":71,"rows_affected":1,"rows":null}"#,
        ),
        (Shape::Execute, written(0, 0), r#"{"rows":null}"#),
    ];
    for (shape, answer, expected) in table {
        let expected = format!("{{\"results\":[{expected}]}}");
        assert_eq!(rendered(shape, ASSOCIATIVE, vec![answer]), expected);
    }
}

#[test]
fn the_envelope_carries_error_time_and_raft_index_in_this_order() {
    let (shape, elapsed) = (Shape::Execute, Duration::from_millis(50));
    let render = |reply: &Reply, form: Form, raft_index| {
        let bytes = render(
            reply,
            &Envelope {
                shape,
                elapsed,
                raft_index,
                form,
            },
        );
        String::from_utf8(bytes).unwrap()
    };
    let timed = Form {
        timings: true,
        ..Form::default()
    };
    let error = Some("disallowed pragma".to_owned());
    assert_eq!(
        render(
            &Reply {
                outcomes: vec![],
                error
            },
            timed,
            Some(5)
        ),
        r#"{"results":[],"error":"disallowed pragma","time":0.05,"raft_index":5}"#
    );
    assert_eq!(
        render(&Reply::default(), Form::default(), Some(0)),
        r#"{"results":[]}"#
    );
    let outcome = |answer| Outcome {
        answer,
        elapsed: Duration::from_nanos(56_684),
    };
    let one = rows(&["a"], &["integer"], vec![vec![Value::Integer(1)]]);
    let outcomes = vec![outcome(written(1, 1)), outcome(one), outcome(failed("no"))];
    let reply = Reply {
        outcomes,
        error: None,
    };
    let expected = concat!(
        r#"{"results":[{"last_insert_id":1,"rows_affected":1,"time":0.000056684},"#,
        r#"{"columns":["a"],"types":["integer"],"values":[[1]],"time":0.000056684},"#,
        r#"{"error":"no"}],"time":0.05}"#
    );
    assert_eq!(render(&reply, timed, None), expected);
    let expected = concat!(
        r#"{"results":[{"last_insert_id":1,"rows_affected":1,"time":0.000056684,"rows":null},"#,
        r#"{"types":{"a":"integer"},"rows":[{"a":1}],"time":0.000056684},"#,
        r#"{"error":"no"}],"time":0.05}"#
    );
    assert_eq!(
        render(
            &reply,
            Form {
                timings: true,
                ..ASSOCIATIVE
            },
            None
        ),
        expected
    );
}

#[test]
fn pretty_answers_are_laid_out_with_four_spaces() {
    let form = Form {
        pretty: true,
        ..Form::default()
    };
    let tricky = rows(
        &["a:{"],
        &[],
        vec![vec![text("x\\\",[")], vec![Value::Null]],
    );
    let expected = r#"{
    "results": [
        {},
        {
            "columns": [
                "a:{"
            ],
            "values": [
                [
                    "x\\\",["
                ],
                [
                    null
                ]
            ]
        }
    ]
}"#;
    assert_eq!(
        rendered(Shape::Query, form, vec![written(0, 0), tricky]),
        expected
    );
    assert_eq!(
        rendered(Shape::Query, form, vec![]),
        "{\n    \"results\": []\n}"
    );
}

#[test]
fn members_are_rendered_by_id_and_as_a_list() {
    let member = MemberStatus {
        name: "1".to_owned(),
        raft_addr: "127.0.0.1:24002".to_owned(),
        http_addr: "127.0.0.1:24001".to_owned(),
        role: MemberRole::Leader,
        voter: true,
        leader: true,
        reachable: true,
        elapsed: Duration::from_nanos(33_149),
        version: "10.3.0".to_owned(),
        ..MemberStatus::default()
    };
    let lost = MemberStatus {
        name: "0".to_owned(),
        http_addr: String::new(),
        reachable: false,
        error: Some("timed out".to_owned()),
        ..member.clone()
    };
    let first = concat!(
        r#"{"id":"1","api_addr":"http://127.0.0.1:24001","addr":"127.0.0.1:24002","#,
        r#""version":"10.3.0","voter":true,"reachable":true,"leader":true,"#,
        "\"time\":0.000033149,\"time_s\":\"33.149\u{b5}s\",\"wallaby\":{\"role\":\"leader\"}}"
    );
    let second = concat!(
        r#"{"id":"0","addr":"127.0.0.1:24002","version":"","voter":true,"#,
        r#""reachable":false,"leader":false,"error":"timed out","wallaby":{"role":"leader"}}"#
    );
    let mut members = [member, lost];
    let map = String::from_utf8(nodes::render(&mut members, false, "http")).unwrap();
    assert_eq!(map, format!("{{\"0\":{second},\"1\":{first}}}"));
    let list = String::from_utf8(nodes::render(&mut members, true, "http")).unwrap();
    assert_eq!(list, format!("{{\"nodes\":[{second},{first}]}}"));
    assert_eq!(nodes::render(&mut [], false, "http"), b"{}");
}
