//! Groups: many clients' requests in one SQLite transaction, as if each were alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    unsafe_code,
    reason = "the oracle and the faulty VFS speak SQLite's C interface"
)]

mod faults;
mod fixture;
mod isolation;
mod kills;
mod random;
mod texts;
mod transactions;
