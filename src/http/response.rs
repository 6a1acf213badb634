//! The body of an answer to statements, byte for byte as rqlite writes it.
//!
//! | Field | When | Meaning |
//! |---|---|---|
//! | `results` | always | one object per statement that was run |
//! | `error` | the request failed as a whole | why |
//! | `time` | `timings` | seconds for the whole call |
//! | `raft_index` | asked for, and written to the log | index of its log entry |
//!
//! | Result | Fields in order; absent when zero or empty unless noted |
//! |---|---|
//! | counters | `last_insert_id`, `rows_affected`, `time` |
//! | rows | `columns`, `types`, `values`, `time` |
//! | failed | `error` |
//! | counters, associative | as counters, then `rows`: always null |
//! | rows, associative | `types` (object), `rows` (objects, always there), `time` |
//! | failed, associative, `/db/query` | `rows`: always empty, `error` |
//!
use std::time::Duration;

use crate::node::{Answer, Outcome, Reply, Rows, Shape, Value};

use super::cell::Cells;
use super::json;

/// The form of an answer, as the query parameters ask for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form {
    /// Rows as objects.
    pub associative: bool,
    /// BLOBs as arrays of integers, not base64.
    pub blob_array: bool,
    /// Laid out with four spaces per level.
    pub pretty: bool,
    /// With the times that statements and call took.
    pub timings: bool,
}

/// What is rendered beside the results.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The endpoint: failed statements look different on `/db/query`.
    pub shape: Shape,
    /// How long the call took so far; shown with `timings`.
    pub elapsed: Duration,
    /// The index of the log entry, if it is to be shown.
    pub raft_index: Option<u64>,
    /// The form of the answer.
    pub form: Form,
}

/// An answer is longer than this many bytes. What it answers has been done nevertheless.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the answer is longer than {0} bytes, though the statements were run; select less, or raise \
     the node's limit with -http-max-response"
)]
pub struct TooLong(pub usize);

/// Renders an answer of any length.
#[must_use]
pub fn render(reply: &Reply, envelope: &Envelope) -> Vec<u8> {
    render_within(reply, envelope, usize::MAX).expect("no text is longer than the memory")
}

/// Renders an answer of about this many bytes at most: a row is never cut, so its last value may
/// exceed them.
///
/// # Errors
/// [`TooLong`].
pub fn render_within(
    reply: &Reply,
    envelope: &Envelope,
    bytes_max: usize,
) -> Result<Vec<u8>, TooLong> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"results\":[");
    for (position, outcome) in reply.outcomes.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        result(&mut out, outcome, envelope, bytes_max)?;
    }
    out.push(b']');
    if let Some(error) = reply.error.as_deref().filter(|error| !error.is_empty()) {
        out.extend_from_slice(b",\"error\":");
        json::string(&mut out, error);
    }
    if envelope.form.timings && !envelope.elapsed.is_zero() {
        out.extend_from_slice(b",\"time\":");
        json::number(&mut out, envelope.elapsed.as_secs_f64());
    }
    if let Some(index) = envelope.raft_index.filter(|&index| index > 0) {
        out.extend_from_slice(b",\"raft_index\":");
        json::unsigned(&mut out, index);
    }
    out.push(b'}');
    Ok(if envelope.form.pretty {
        json::indent(&out)
    } else {
        out
    })
}

fn result(
    out: &mut Vec<u8>,
    outcome: &Outcome,
    envelope: &Envelope,
    bytes_max: usize,
) -> Result<(), TooLong> {
    let form = &envelope.form;
    let mut fields = Fields::open(out);
    match &outcome.answer {
        Answer::Failed(error) => {
            if form.associative && envelope.shape == Shape::Query {
                fields.name("rows").extend_from_slice(b"[]");
            }
            json::string(fields.name("error"), error);
        }
        Answer::Written {
            last_insert_id,
            rows_affected,
        } => {
            if *last_insert_id != 0 {
                json::integer(fields.name("last_insert_id"), *last_insert_id);
            }
            if *rows_affected != 0 {
                json::integer(fields.name("rows_affected"), *rows_affected);
            }
            fields.time(outcome, form);
            if form.associative {
                fields.name("rows").extend_from_slice(b"null");
            }
        }
        Answer::Rows(rows) if form.associative => {
            associative(&mut fields, rows, form, bytes_max)?;
            fields.time(outcome, form);
        }
        Answer::Rows(rows) => {
            plain(&mut fields, rows, form, bytes_max)?;
            fields.time(outcome, form);
        }
    }
    fields.close();
    Ok(())
}

/// Columns, types and values as arrays.
fn plain(
    fields: &mut Fields<'_>,
    rows: &Rows,
    form: &Form,
    bytes_max: usize,
) -> Result<(), TooLong> {
    for (name, texts) in [("columns", &rows.columns), ("types", &rows.types)] {
        if !texts.is_empty() {
            sequence(fields.name(name), *b"[]", texts, |out, text| {
                json::string(out, text);
                Ok(())
            })?;
        }
    }
    if !rows.values.is_empty() {
        let cells = Cells::new(rows, form.blob_array);
        sequence(fields.name("values"), *b"[]", &rows.values, |out, row| {
            let row = row.iter().enumerate();
            sequence(out, *b"[]", row, |out, (column, value)| {
                within(out, bytes_max)?;
                cells.write(out, column, value);
                Ok(())
            })
        })?;
    }
    Ok(())
}

/// Types as an object, rows as objects. Names are in byte order, as Go writes a map; of columns
/// with the same name the last one wins.
fn associative(
    fields: &mut Fields<'_>,
    rows: &Rows,
    form: &Form,
    bytes_max: usize,
) -> Result<(), TooLong> {
    let mut order: Vec<usize> = (0..rows.columns.len()).collect();
    order.sort_by(|&a, &b| rows.columns[a].cmp(&rows.columns[b]).then(b.cmp(&a)));
    order.dedup_by(|later, kept| rows.columns[*later] == rows.columns[*kept]);
    // Each row repeats the names: they are escaped once.
    let names: Vec<(usize, Vec<u8>)> = order
        .into_iter()
        .map(|column| {
            let mut name = Vec::new();
            json::string(&mut name, &rows.columns[column]);
            name.push(b':');
            (column, name)
        })
        .collect();
    if !rows.types.is_empty() {
        sequence(
            fields.name("types"),
            *b"{}",
            &names,
            |out, (column, name)| {
                out.extend_from_slice(name);
                json::string(out, rows.types.get(*column).map_or("", String::as_str));
                Ok(())
            },
        )?;
    }
    let cells = Cells::new(rows, form.blob_array);
    sequence(fields.name("rows"), *b"[]", &rows.values, |out, row| {
        sequence(out, *b"{}", &names, |out, (column, name)| {
            within(out, bytes_max)?;
            out.extend_from_slice(name);
            cells.write(out, *column, row.get(*column).unwrap_or(&Value::Null));
            Ok(())
        })
    })
}

/// Fails once an answer is too long.
fn within(out: &[u8], bytes_max: usize) -> Result<(), TooLong> {
    if out.len() > bytes_max {
        return Err(TooLong(bytes_max));
    }
    Ok(())
}

/// Writes items with commas between them, enclosed in `brackets`.
fn sequence<T>(
    out: &mut Vec<u8>,
    brackets: [u8; 2],
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    out.push(brackets[0]);
    for (position, item) in items.into_iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write(out, item)?;
    }
    out.push(brackets[1]);
    Ok(())
}

/// An object under construction, whose fields appear in the order in which they are named.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Fields<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    /// Starts a field; its value is to be written next.
    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        json::string(self.out, name);
        self.out.push(b':');
        self.out
    }

    fn time(&mut self, outcome: &Outcome, form: &Form) {
        if form.timings && !outcome.elapsed.is_zero() {
            json::number(self.name("time"), outcome.elapsed.as_secs_f64());
        }
    }

    fn close(self) {
        self.out.push(b'}');
    }
}
