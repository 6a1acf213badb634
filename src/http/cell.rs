//! One value of a result row as JSON. What it becomes depends on its storage class and on the type
//! of its column, as in rqlite:
//!
//! | Column type | Stored | JSON |
//! |---|---|---|
//! | `boolean` | integer | `true` if above zero, else `false` |
//! | `date`, `datetime`, `timestamp` | text, integer | RFC 3339, see [`super::date`] |
//! | `text`, `json`, `clob`, `varchar`, `nchar`, `nvarchar` and the like | BLOB | string |
//! | any other | BLOB | base64, or an array of integers with `blob_array` |
//! | any | integer, real, text, NULL | number, number, string, `null` |
//! | any | infinity | `null` |
//!
//! JSON has no text for an infinity. A null loses less than an error would: the other values of the
//! answer arrive, and a write whose RETURNING yields one is not reported as failed.
//!
//! The third rule is for declared types only. An expression that yields a BLOB after a text keeps
//! all of its bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::node::{Rows, Value};

use super::{date, json};

/// What a column's type asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Boolean,
    Date,
    Plain,
    Textual,
}

/// The rules for the columns of one result.
pub(super) struct Cells {
    kinds: Vec<Kind>,
    blob_array: bool,
}

impl Cells {
    pub(super) fn new(rows: &Rows, blob_array: bool) -> Self {
        let declared = rows
            .declared
            .iter()
            .copied()
            .chain(std::iter::repeat(false));
        let kind = |(name, is_declared): (&String, bool)| {
            if is_declared { kind(name) } else { Kind::Plain }
        };
        Self {
            kinds: rows.types.iter().zip(declared).map(kind).collect(),
            blob_array,
        }
    }

    /// Appends the value of a column.
    pub(super) fn write(&self, out: &mut Vec<u8>, column: usize, value: &Value) {
        let kind = self.kinds.get(column).copied().unwrap_or(Kind::Plain);
        match (value, kind) {
            (Value::Null, _) => out.extend_from_slice(b"null"),
            (Value::Integer(value), Kind::Boolean) => json::boolean(out, *value > 0),
            (Value::Integer(value), Kind::Date) => {
                json::string(out, &date::from_integer(*value));
            }
            (Value::Integer(value), _) => json::integer(out, *value),
            (Value::Real(value), _) => json::number(out, *value),
            (Value::Text(text), Kind::Date) => json::string(out, &date::from_text(text)),
            (Value::Text(bytes), _) | (Value::Blob(bytes), Kind::Textual) => {
                json::text(out, bytes);
            }
            (Value::Blob(bytes), _) if self.blob_array => array(out, bytes),
            (Value::Blob(bytes), _) => base64(out, bytes),
        }
    }
}

fn kind(type_name: &str) -> Kind {
    const TEXTUAL: [&str; 6] = [
        "clob",
        "native character",
        "nchar",
        "nvarchar",
        "varchar",
        "varying character",
    ];
    match type_name {
        "boolean" => Kind::Boolean,
        "date" | "datetime" | "timestamp" => Kind::Date,
        "json" | "text" => Kind::Textual,
        _ if TEXTUAL.iter().any(|prefix| type_name.starts_with(prefix)) => Kind::Textual,
        _ => Kind::Plain,
    }
}

fn array(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'[');
    for (position, &byte) in bytes.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        json::integer(out, i64::from(byte));
    }
    out.push(b']');
}

fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    out.truncate(start + written.expect("four bytes were reserved for every three"));
    out.push(b'"');
}
