//! Binding the parameters of a request to a statement, by rqlite's rules.

use std::ffi::CString;

use rusqlite::ffi;

use super::raw::{Failure, Prepared};
use super::values::Parameter;

/// The prefixes a named parameter can have in SQL; the client's name has none.
const PREFIXES: [char; 3] = [':', '$', '@'];

/// Binds the parameters of one statement of a text. `first` is the number of parameters that the
/// statements before it have consumed: parameters are consumed left to right, one for each number
/// up to the statement's highest. Named ones bind to their name wherever they stand in the list.
///
/// # Errors
/// A parameter of the statement is left without a value, or a value is too large.
pub(crate) fn bind(
    prepared: &mut Prepared,
    parameters: &[Parameter],
    first: usize,
) -> Result<(), Failure> {
    let count = prepared.parameter_count();
    if count == 0 {
        return Ok(());
    }
    let mut is_bound = vec![false; count];
    let window = first..first.saturating_add(count);
    for (position, parameter) in parameters.iter().enumerate() {
        let Some(name) = &parameter.name else {
            if window.contains(&position) {
                prepared.bind(position - first + 1, &parameter.value)?;
                is_bound[position - first] = true;
            }
            continue;
        };
        for prefix in PREFIXES {
            // A name with a NUL in it is the name of no parameter.
            let Ok(name) = CString::new(format!("{prefix}{name}")) else {
                continue;
            };
            if let Some(index) = prepared.parameter_index(&name) {
                prepared.bind(index, &parameter.value)?;
                is_bound[index - 1] = true;
            }
        }
    }
    if is_bound.contains(&false) {
        let given = parameters.len();
        return Err(Failure::new(
            ffi::SQLITE_RANGE,
            format!("not enough args to execute query: want {count} got {given}"),
        ));
    }
    Ok(())
}
