//! Layer 1: the only place that knows SQLite.

mod values;

pub use values::{Answer, Outcome, Parameter, Reply, Request, Rows, Shape, Statement, Value};
