//! What SQLite says about itself, asked over the node's own connections: opening the file anew
//! would cost the process its locks on it.

use std::time::{Duration, Instant};

use super::running::Node;
use crate::sqlite::{
    Answer, PRAGMAS_SHOWN, Request, Rows, Shape, Statement, Value, library_version,
};

/// How SQLite was built, and how the connections to the database are set.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SqliteFacts {
    /// Its version, such as `3.54.0`.
    pub version: &'static str,
    /// The options it was compiled with, without `SQLITE_`; empty before there is a database.
    pub compile_options: Vec<String>,
    /// Pragmas of the connections that read, by name; empty before there is a database.
    pub readers: Vec<(String, String)>,
    /// Pragmas of the connection that writes, by name; empty before there is a database.
    pub writer: Vec<(String, String)>,
}

impl Node {
    /// Asks SQLite, once: these facts do not change while the process runs. Waits a moment for a
    /// reader, and says what is known without one if all are busy.
    pub async fn sqlite_facts(&self) -> SqliteFacts {
        let mut facts = SqliteFacts {
            version: library_version(),
            ..SqliteFacts::default()
        };
        let Some(inner) = self.shell.inner.get() else {
            return facts;
        };
        if let Some(known) = inner.facts.get() {
            return known.clone();
        }
        let names = PRAGMAS_SHOWN.iter().copied().chain(["compile_options"]);
        let statements = names.map(|name| Statement {
            sql: format!("PRAGMA {name}"),
            parameters: Vec::new(),
        });
        let request = Request {
            statements: statements.collect(),
            transaction: false,
            qualify_columns: false,
            shape: Shape::Query,
            statement_time_max: None,
        };
        let asked = inner.read(request, Instant::now() + PATIENCE).await;
        let (Ok(reply), Some(writer)) = (asked, inner.watches.pragmas.get()) else {
            return facts;
        };
        facts.writer.clone_from(writer);
        let mut columns = reply
            .outcomes
            .into_iter()
            .map(|outcome| match outcome.answer {
                Answer::Rows(rows) => first_column(rows),
                Answer::Failed(_) | Answer::Written { .. } => Vec::new(),
            });
        for name in PRAGMAS_SHOWN {
            let value = columns.next().unwrap_or_default();
            let value = value.into_iter().next();
            facts
                .readers
                .extend(value.map(|value| (name.to_owned(), value)));
        }
        facts.compile_options = columns.next().unwrap_or_default();
        if facts.readers.len() == PRAGMAS_SHOWN.len() {
            // Somebody else may have asked at the same time, and got the same answer.
            let _ = inner.facts.set(facts.clone());
        }
        facts
    }
}

fn first_column(rows: Rows) -> Vec<String> {
    let cells = rows
        .values
        .into_iter()
        .filter_map(|row| row.into_iter().next());
    let texts = cells.map(|cell| match cell {
        Value::Integer(value) => value.to_string(),
        Value::Text(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::Real(value) => value.to_string(),
        Value::Blob(_) | Value::Null => String::new(),
    });
    texts.collect()
}

const PATIENCE: Duration = Duration::from_millis(500);
