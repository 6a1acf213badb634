//! Answers: whatever a client has stored, and in whatever form it asks for it, the answer is JSON
//! with as many rows as there are.

use std::time::Duration;

use serde_json::Value as Json;
use wallaby::http::response::{Envelope, Form, render, render_within};
use wallaby::node::{Answer, Outcome, Reply, Rows, Shape, Value};

use crate::script::Script;
use crate::{Reached, Sample};

/// Declared types that change the form of a value, and others.
const TYPES: [&str; 10] = [
    "",
    "integer",
    "text",
    "real",
    "blob",
    "boolean",
    "date",
    "datetime",
    "timestamp",
    "\u{e9}\"",
];

/// See the module.
///
/// # Panics
/// If the answer is no JSON, or lacks something.
pub fn answers(data: &[u8]) -> Reached {
    let mut script = Script::new(data);
    let envelope = envelope(&mut script);
    let mut reply = Reply::default();
    for _ in 0..=script.byte() % 4 {
        reply.outcomes.push(Outcome {
            answer: answer(&mut script),
            elapsed: Duration::from_nanos(script.word().into()),
        });
    }
    if script.byte().is_multiple_of(8) {
        reply.error = Some(text(&mut script));
    }
    let bytes = render(&reply, &envelope);
    let shown = String::from_utf8_lossy(&bytes);
    let parsed: Json = serde_json::from_slice(&bytes)
        .unwrap_or_else(|error| panic!("{error} in {shown} of {reply:?}"));
    let results = parsed["results"].as_array().expect("there are results");
    assert_eq!(results.len(), reply.outcomes.len(), "{shown}");
    let mut values = 0;
    for (result, outcome) in results.iter().zip(&reply.outcomes) {
        let Answer::Rows(rows) = &outcome.answer else {
            continue;
        };
        let field = if envelope.form.associative {
            "rows"
        } else {
            "values"
        };
        let found = result[field].as_array().map_or(0, Vec::len);
        assert_eq!(found, rows.values.len(), "{shown}");
        values += found;
    }
    // A limit refuses or changes nothing.
    let limit = usize::from(script.short());
    match render_within(&reply, &envelope, limit) {
        Ok(same) => assert_eq!(same, bytes),
        Err(_) => assert!(
            bytes.len() > limit,
            "{} bytes are not too long",
            bytes.len()
        ),
    }
    Reached::accepted(values > 0)
}

fn envelope(script: &mut Script<'_>) -> Envelope {
    let flags = script.byte();
    Envelope {
        shape: script.pick(&[Shape::Execute, Shape::Query, Shape::Unified]),
        elapsed: Duration::from_nanos(script.long()),
        raft_index: (flags & 16 != 0).then(|| script.long()),
        form: Form {
            associative: flags & 1 != 0,
            blob_array: flags & 2 != 0,
            pretty: flags & 4 != 0,
            timings: flags & 8 != 0,
        },
    }
}

fn answer(script: &mut Script<'_>) -> Answer {
    match script.byte() % 4 {
        0 => Answer::Failed(text(script)),
        1 => Answer::Written {
            last_insert_id: script.long().cast_signed(),
            rows_affected: script.word().into(),
        },
        _ => {
            let columns = script.below(4);
            let rows = script.below(5);
            Answer::Rows(Rows {
                columns: (0..columns).map(|_| text(script)).collect(),
                types: (0..columns)
                    .map(|_| script.pick(&TYPES).to_owned())
                    .collect(),
                declared: (0..columns)
                    .map(|_| script.byte().is_multiple_of(2))
                    .collect(),
                values: (0..rows)
                    .map(|_| (0..columns).map(|_| value(script)).collect())
                    .collect(),
            })
        }
    }
}

fn value(script: &mut Script<'_>) -> Value {
    let bytes = |script: &mut Script<'_>| {
        let length = script.below(24);
        script.bytes(length).to_vec()
    };
    match script.byte() % 6 {
        0 => Value::Null,
        1 => Value::Integer(script.long().cast_signed()),
        2 => Value::Integer(script.byte().into()),
        3 => Value::Real(f64::from_bits(script.long())),
        4 => Value::Blob(bytes(script)),
        _ => Value::Text(bytes(script)),
    }
}

fn text(script: &mut Script<'_>) -> String {
    let length = script.below(16);
    String::from_utf8_lossy(script.bytes(length)).into_owned()
}

pub(crate) fn samples() -> Vec<Sample> {
    // Two columns and two rows; what follows is values.
    let rows = |flags: u8, values: &[u8]| {
        let head = [flags, 1, 9, 0, 0, 0, 0, 0, 0, 0];
        let body = [0, 2, 2, 2, 1, b'a', 1, b'b', 7, 2, 0, 0];
        [&head[..], &body, values].concat()
    };
    let numbers = [
        2, 5, 3, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
    ];
    let dates =
        b"\x05\x0a2024-02-29\x05\x132024-02-29T10:11:12Z\x05\x02\xff\xfe\x04\x03\x00\x01\x02";
    vec![
        Sample::new("numbers", rows(0, &numbers)),
        Sample::new("numbers-pretty", rows(4 | 8, &numbers)),
        Sample::new("texts", rows(0, dates)),
        Sample::new("texts-associative", rows(1, dates)),
        Sample::new("blobs-as-arrays", rows(2, dates)),
        Sample::new(
            "failed",
            vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, b'n', b'o', b'"'],
        ),
        Sample::new("nothing", vec![]),
    ]
}
