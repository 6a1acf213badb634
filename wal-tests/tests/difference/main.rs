//! A node that is behind the log receives the pages of the database that differ.
//!
//! `WAL_DATABASE_MIB=1024 cargo test --release -p wal-tests --test difference pages -- --nocapture`
//! shows with a large database what is sent; the default is small. `WAL_ATTEMPTS=100 cargo test -p
//! wal-tests --test difference kill` tries as many random moments. `WAL_SEED=n` replays the choices.

#![allow(clippy::unwrap_used)]

mod damage;
mod kept_log;
mod kill;
mod pages;
mod rate;
mod stage;
mod transit;
