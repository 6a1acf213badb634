//! Tests of Wallaby from outside.
pub mod files;
pub mod seed;
