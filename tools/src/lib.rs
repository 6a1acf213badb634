//! Tools.

pub mod licences;
pub mod programs;
