//! Checkpoints that are taken piece by piece. `WAL_SEED=n` replays the random ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod damage;
mod kills;
mod opened;
mod pieces;
mod writes;
