//! What becomes of a group in flight, and of what waits behind it, when links fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod catch_up;
mod discard;
mod fixture;
mod keep;
mod stale;
