//! The transport layer from outside: who may talk to whom, what arrives, and what an error means.
//!
//! One process, several endpoints on loopback, generous time-outs. No test measures time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster_key;
mod exchange;
mod formats;
mod identity;
mod probe;
mod restart;
