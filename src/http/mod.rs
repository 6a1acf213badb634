//! Layer 3: rqlite's HTTP interface over a node.
//!
//! A call passes `server` and `connection` (TLS, time-outs), `origin` (browsers) and `router`
//! (headers, parameters, path, permissions by [`users`]), then for
//! statements `body`, [`request`] (JSON to statements), the node, and [`response`] (results to
//! JSON). What a node tells about itself is in `status`, `variables`, [`nodes`] and `pages`, which
//! holds the console. Everything a client sees as bytes is made in [`response`], [`nodes`] and
//! `status` with the writers in [`json`], [`date`] and [`duration`], which follow Go's standard
//! library because rqlite's clients were written against its output.

mod activity;
mod backup;
mod body;
mod caller;
mod cell;
mod connection;
mod counters;
pub mod date;
pub mod duration;
mod image;
pub mod json;
mod leader;
mod load;
pub mod nodes;
mod origin;
mod pages;
pub mod parameters;
pub mod password;
mod queue;
mod queued;
mod readiness;
mod redirect;
mod refusal;
mod removal;
mod report;
pub mod request;
pub mod response;
mod router;
pub mod routes;
mod server;
mod sql;
mod statements;
mod status;
mod tls;
mod upkeep;
pub mod users;
mod variables;

pub use queue::QueueOptions;
pub use report::Report;
pub use server::{HttpOptions, serve};
pub use tls::{Tls, TlsError, TlsOptions};
