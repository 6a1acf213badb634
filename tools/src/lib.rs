//! Tools.

pub mod inspect;
pub mod licences;
pub mod pages;
