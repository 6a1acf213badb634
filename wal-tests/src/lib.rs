//! Tests of Wallaby from outside.

pub mod replica;
pub mod sql_workload;
