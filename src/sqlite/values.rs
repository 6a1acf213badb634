//! What goes into the database and what comes out: values, statements, requests and their results.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One SQLite value in one of its five storage classes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Value {
    /// Bytes.
    Blob(Vec<u8>),
    /// A signed 64-bit integer.
    Integer(i64),
    /// SQL NULL.
    Null,
    /// An IEEE 754 double.
    Real(f64),
    /// Text as SQLite stores it; not necessarily valid UTF-8, hence bytes.
    Text(Vec<u8>),
}

/// A value to bind, by position or by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Parameter {
    /// The name without its prefix: `name` binds `:name`, `@name` and `$name`. `None`: by position.
    pub name: Option<String>,
    /// What to bind.
    pub value: Value,
}

/// One SQL text with its parameters. The text may hold several statements separated by semicolons:
/// they run as a whole, parameters are consumed left to right, and the result is the last one's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Statement {
    /// The SQL text.
    pub sql: String,
    /// The parameters, in order.
    pub parameters: Vec<Parameter>,
}

/// How results are to be produced.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Shape {
    /// `/db/execute`: counters; rows only where RETURNING yields columns.
    Execute,
    /// `/db/query`: rows always; the statements must not write.
    Query,
    /// `/db/request`: whichever fits each statement.
    Unified,
}

/// One HTTP call's statements.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Request {
    /// In the order in which they run.
    pub statements: Vec<Statement>,
    /// Whether all of them stand or fall together.
    pub transaction: bool,
    /// How results are to be produced.
    pub shape: Shape,
    /// The longest that one statement may run; `None`: no limit.
    pub statement_time_max: Option<Duration>,
    /// Whether a column that comes straight from a table is named `table.column`.
    pub qualify_columns: bool,
}

impl Request {
    /// What it holds in memory, in bytes, roughly.
    #[must_use]
    pub fn weight(&self) -> usize {
        let statements = self.statements.iter().map(|statement| {
            let parameters = statement
                .parameters
                .iter()
                .map(|parameter| match &parameter.value {
                    Value::Blob(bytes) | Value::Text(bytes) => 64 + bytes.len(),
                    _ => 64,
                });
            128 + statement.sql.len() + parameters.sum::<usize>()
        });
        256 + statements.sum::<usize>()
    }
}

/// The result rows of one statement.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Rows {
    /// Column names.
    pub columns: Vec<String>,
    /// Declared types in lower case, else the type of the first row's value, else empty.
    pub types: Vec<String>,
    /// Whether the type of a column is the declared one.
    pub declared: Vec<bool>,
    /// Row by row.
    pub values: Vec<Vec<Value>>,
}

/// What one statement came to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Answer {
    /// SQLite (or a rule of ours) refused it; the text is SQLite's own.
    Failed(String),
    /// It returned columns.
    Rows(Rows),
    /// It was run for its effect; the counters are those of the node's writer, as in rqlite.
    Written {
        /// `sqlite3_last_insert_rowid`, sticky across requests.
        last_insert_id: i64,
        /// `sqlite3_changes`, sticky across requests.
        rows_affected: i64,
    },
}

/// The result of one statement.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// What it came to.
    pub answer: Answer,
    /// How long it ran.
    pub elapsed: Duration,
}

/// The results of one request. With `transaction`, it ends at the first failed statement.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    /// One per statement that was run; empty statements have none.
    pub outcomes: Vec<Outcome>,
    /// A failure of the request as a whole (rqlite's top-level `error`), such as `disallowed
    /// pragma`.
    pub error: Option<String>,
}
