//! Tools.

pub mod licences;
