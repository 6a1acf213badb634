//! Collecting the rows of a statement, within a bound.

use super::raw::{Failure, Prepared};
use super::values::{Rows, Value};

/// The code of a result that outgrew its bound; not one of SQLite's, which are all positive.
pub(crate) const RESULT_TOO_LARGE: i32 = -1;

/// What a value costs in memory beside its bytes.
const VALUE_BYTES: usize = size_of::<Value>();

/// Runs `prepared` to its end and returns its rows. `bytes_left` is what the request's results may
/// still take. `qualify_columns`: see [`Request`](super::values::Request).
///
/// # Errors
/// SQLite's, or [`RESULT_TOO_LARGE`] with some rows left unread.
pub(crate) fn collect(
    prepared: &mut Prepared,
    qualify_columns: bool,
    bytes_left: &mut usize,
) -> Result<Rows, Failure> {
    let mut has_row = prepared.step()?;
    // Only now: the first step compiles the statement anew if the schema has changed.
    let column_count = prepared.column_count();
    let types: Vec<_> = (0..column_count)
        .map(|column| declared_type(prepared, column))
        .collect();
    let mut rows = Rows {
        columns: (0..column_count)
            .map(|column| column_name(prepared, column, qualify_columns))
            .collect(),
        declared: types.iter().map(|name| !name.is_empty()).collect(),
        types,
        values: Vec::new(),
    };
    while has_row {
        let mut row = Vec::with_capacity(column_count);
        for column in 0..column_count {
            let cost = prepared.value_bytes(column) + VALUE_BYTES;
            *bytes_left = bytes_left.checked_sub(cost).ok_or_else(too_large)?;
            row.push(prepared.value(column));
        }
        if rows.values.is_empty() {
            for (kind, value) in rows
                .types
                .iter_mut()
                .zip(&row)
                .filter(|(kind, _)| kind.is_empty())
            {
                kind.push_str(storage_class(value));
            }
        }
        rows.values.push(row);
        has_row = prepared.step()?;
    }
    Ok(rows)
}

/// Runs `prepared` to its end for its effect alone.
///
/// # Errors
/// SQLite's.
pub(crate) fn drain(prepared: &mut Prepared) -> Result<(), Failure> {
    while prepared.step()? {}
    Ok(())
}

fn too_large() -> Failure {
    Failure::new(
        RESULT_TOO_LARGE,
        "result too large: the rows of one request exceed the limit of this node",
    )
}

/// A column with a name of its own (`AS`, or the name a view gives it) keeps it: a table's name in
/// front would make it the name of a column that does not exist.
fn column_name(prepared: &Prepared, column: usize, qualify: bool) -> String {
    let name = prepared.column_name(column);
    match qualify.then(|| prepared.column_origin(column)).flatten() {
        Some((table, origin)) if origin == name => format!("{table}.{name}"),
        _ => name,
    }
}

fn declared_type(prepared: &Prepared, column: usize) -> String {
    prepared
        .column_declared_type(column)
        .unwrap_or_default()
        .to_lowercase()
}

fn storage_class(value: &Value) -> &'static str {
    match value {
        Value::Blob(_) => "blob",
        Value::Integer(_) => "integer",
        Value::Null => "",
        Value::Real(_) => "real",
        Value::Text(_) => "text",
    }
}
