//! Request bodies: what a client sends becomes statements with parameters.
//!
//! A body is one JSON array; what follows it is ignored. Each element is one statement:
//!
//! | Element | Meaning |
//! |---|---|
//! | `"SQL"` | a statement without parameters |
//! | `["SQL", value, ...]` | parameters by position |
//! | `["SQL", {"name": value, ...}]` | parameters by name; objects and values may be mixed |
//!
//! | JSON value | Bound as |
//! |---|---|
//! | integer that fits 64 bits, signed | INTEGER |
//! | any other number | REAL |
//! | `true`, `false` | INTEGER 1, 0 |
//! | `null` | NULL |
//! | string `x'..'` or `X'..'` of whole hexadecimal bytes, spaces around it ignored | BLOB |
//! | any other string | TEXT |
//! | array of integers 0 to 255 | BLOB |
//!
//! With `Content-Type: text/plain` the body is the SQL text of one statement.

use serde::Deserialize;
use serde_json::{Number, Value as Json};

use crate::node::{Parameter, Statement, Value};

/// Why a body was refused; the text is rqlite's, the status 400.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// Not JSON, or nested too deeply.
    #[error("invalid JSON body")]
    Json,
    /// An empty array.
    #[error("no statements")]
    NoStatements,
    /// A number beyond the range of a double.
    #[error("invalid number {0}")]
    Number(String),
    /// JSON, but not the array described above.
    #[error("invalid request")]
    Shape,
    /// A value that cannot be bound; Go's name for its type, or the number.
    #[error("unsupported type {0}")]
    Type(String),
}

/// Whether a `Content-Type` says that the body is plain SQL.
#[must_use]
pub fn is_plain_text(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("text/plain")
}

/// The one statement of a plain text body.
#[must_use]
pub fn plain_statement(body: &[u8]) -> Vec<Statement> {
    vec![Statement {
        sql: String::from_utf8_lossy(body).into_owned(),
        parameters: Vec::new(),
    }]
}

/// The statements of a JSON body.
///
/// # Errors
/// See [`RequestError`]. Nesting beyond 128 levels counts as invalid JSON.
pub fn parse_statements(body: &[u8]) -> Result<Vec<Statement>, RequestError> {
    let elements = match first_value(body)? {
        Json::Array(elements) if elements.is_empty() => return Err(RequestError::NoStatements),
        Json::Array(elements) => elements,
        _ => return Err(RequestError::Shape),
    };
    elements.into_iter().map(statement).collect()
}

/// The first JSON value of a body. As in Go, a byte that is not valid UTF-8, and an escape for half
/// of a surrogate pair, count as U+FFFD rather than making the body invalid.
fn first_value(body: &[u8]) -> Result<Json, RequestError> {
    let parse = |text: &str| {
        let mut source = serde_json::Deserializer::from_str(text);
        Json::deserialize(&mut source).map_err(|_| RequestError::Json)
    };
    let read = |text: &str| {
        parse(text).or_else(|error| parse(&without_lone_surrogates(text).ok_or(error)?))
    };
    if let Ok(text) = std::str::from_utf8(body) {
        return read(text);
    }
    let mut text = String::with_capacity(body.len());
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    read(&text)
}

/// The text with `\ufffd` in place of escapes for halves of surrogate pairs; `None` if it has none.
fn without_lone_surrogates(text: &str) -> Option<String> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        let length = match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out.push_str(&text[copied..at]);
                out.push_str("\\ufffd");
                copied = at + 6;
                6
            }
            // The character after the backslash may have more than one byte.
            _ => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
        at += length;
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

fn statement(element: Json) -> Result<Statement, RequestError> {
    let items = match element {
        Json::String(sql) => {
            return Ok(Statement {
                sql,
                parameters: Vec::new(),
            });
        }
        Json::Array(items) => items,
        _ => return Err(RequestError::Shape),
    };
    let mut items = items.into_iter();
    let Some(Json::String(sql)) = items.next() else {
        return Err(RequestError::Shape);
    };
    let mut parameters = Vec::with_capacity(items.len());
    for item in items {
        if let Json::Object(fields) = item {
            for (name, field) in fields {
                parameters.push(Parameter {
                    name: Some(name),
                    value: value(field)?,
                });
            }
        } else {
            parameters.push(Parameter {
                name: None,
                value: value(item)?,
            });
        }
    }
    Ok(Statement { sql, parameters })
}

fn value(json: Json) -> Result<Value, RequestError> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Integer(i64::from(truth)),
        Json::Number(number) => numeric(&number)?,
        Json::String(text) => match hexadecimal(&text) {
            Some(bytes) => Value::Blob(bytes),
            None => Value::Text(text.into_bytes()),
        },
        Json::Array(items) => Value::Blob(items.iter().map(byte).collect::<Result<Vec<_>, _>>()?),
        Json::Object(_) => return Err(RequestError::Type(type_name(&json))),
    })
}

fn numeric(number: &Number) -> Result<Value, RequestError> {
    let text = number.as_str();
    if let Ok(integer) = text.parse::<i64>() {
        return Ok(Value::Integer(integer));
    }
    match text.parse::<f64>() {
        Ok(real) if real.is_finite() => Ok(Value::Real(real)),
        _ => Err(RequestError::Number(as_sent(text))),
    }
}

/// The JSON reader puts a `+` into exponents that have no sign, which is how nearly all are sent.
fn as_sent(number: &str) -> String {
    number.replacen("e+", "e", 1)
}

fn byte(item: &Json) -> Result<u8, RequestError> {
    match item {
        Json::Number(number) => {
            let text = number.as_str();
            text.parse().map_err(|_| RequestError::Type(as_sent(text)))
        }
        _ => Err(RequestError::Type(type_name(item))),
    }
}

/// Go's name for the type of a decoded JSON value.
fn type_name(json: &Json) -> String {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(_) => "json.Number",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
    .to_owned()
}

/// The bytes of a BLOB literal; `None` if the text is anything else.
fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text
        .trim()
        .strip_prefix(['x', 'X'])?
        .strip_prefix('\'')?
        .strip_suffix('\'')?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            u8::try_from(high * 16 + low).ok()
        })
        .collect()
}
