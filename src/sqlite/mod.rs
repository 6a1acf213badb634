//! Layer 1: the only place that knows SQLite.

mod authorizer;
mod control;
mod counters;
mod limits;
mod parameters;
mod raw;
mod readers;
mod result_rows;
mod statement;
mod statement_cache;
mod tokens;
mod values;
mod writer;

pub use limits::Limits;
pub use readers::{Full, Readers, ReadersOptions};
pub use values::{Answer, Outcome, Parameter, Reply, Request, Rows, Shape, Statement, Value};
pub use writer::{GroupEnd, SetupError, SqlCommit, Writer, WriterOptions};
