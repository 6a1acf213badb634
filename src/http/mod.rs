//! Layer 3: rqlite's HTTP interface over a node.
//!
//! A call passes `server` (connections) and `router` (headers, parameters, path), then for
//! statements `body`, [`request`] (JSON to statements), the node, and [`response`] (results to
//! JSON). What a node tells about itself is in `status`, `variables`, [`nodes`] and `pages`, which
//! holds the console. Everything a client sees as bytes is made in [`response`], [`nodes`] and
//! `status` with the writers in [`json`], [`date`] and [`duration`], which follow Go's standard
//! library because rqlite's clients were written against its output.

mod body;
mod cell;
mod counters;
pub mod date;
pub mod duration;
mod image;
pub mod json;
pub mod nodes;
mod pages;
pub mod parameters;
mod readiness;
mod refusal;
pub mod request;
pub mod response;
mod router;
pub mod routes;
mod server;
mod statements;
mod status;
mod variables;

pub use cell::Unrenderable;
pub use server::{HttpOptions, serve};
