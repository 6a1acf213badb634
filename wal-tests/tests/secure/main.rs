//! The security of the HTTP interface, from outside: real processes, raw requests.

// Functions shared by tests are not seen as tests by the lint.
#![allow(clippy::unwrap_used)]

mod browsers;
mod forwarding;
mod join;
mod limits;
mod matrix;
mod node_tls;
mod raw;
mod tls;
mod users;
