//! Tools.

pub mod bench;
pub mod inspect;
pub mod licences;
pub mod pages;
