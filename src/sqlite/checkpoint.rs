//! Checkpoints: WAL content moves into the main file.
//!
//! Only the owner runs them, between transactions; with all other checkpointers locked out, what
//! the main file contains is known. A checkpoint on another thread would hardly ever see the WAL at
//! rest and could not restart it, so the WAL would grow for ever.

use std::time::Duration;

use libsqlite3_sys as sqlite;
use rusqlite::Connection;

use super::error::Error;
use super::ffi::{self, ResultCode};
use super::inject::{failed, read_header};
use crate::wal::index::BACKFILL_OFFSET;

/// How hard a checkpoint tries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checkpoint {
    /// Moves what no reader is in the way of, and waits for nobody.
    Passive,
    /// Waits for the readers that are in the way.
    Full {
        /// For how long at most, for each of them.
        wait: Duration,
    },
    /// Waits for the readers that are in the way, so that the next transaction can start the WAL
    /// afresh.
    Restart {
        /// For how long at most, for each of them.
        wait: Duration,
    },
    /// The same, and cuts the WAL file down to nothing.
    Truncate {
        /// For how long at most, for each of them.
        wait: Duration,
    },
}

/// How far a checkpoint got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backfill {
    /// Whether the main file has everything.
    pub complete: bool,
    /// How many frames the WAL holds.
    pub wal_frames: u32,
    /// How many of them the main file has.
    pub backfilled: u32,
    /// Whether a reader was in the way of anything that was to be done.
    pub is_held_back: bool,
}

impl Backfill {
    /// How many frames the main file does not have yet.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.wal_frames.saturating_sub(self.backfilled)
    }

    /// How far the checkpoints before have got.
    pub(super) fn now(main: ffi::File) -> Result<Self, Error> {
        let wal_frames = read_header(main)?.frame_max;
        let region = main.region(0).map_err(failed("map the WAL-index"))?;
        let backfilled = region.word(BACKFILL_OFFSET);
        Ok(Self {
            complete: backfilled == wal_frames,
            wal_frames,
            backfilled,
            is_held_back: false,
        })
    }
}

impl Checkpoint {
    /// The same, but leaves the WAL where it is.
    pub(super) const fn without_restart(self) -> Self {
        match self {
            Self::Restart { wait } | Self::Truncate { wait } => Self::Full { wait },
            other => other,
        }
    }
}

/// Runs a checkpoint. That readers were in the way is no error.
pub(super) fn run(
    connection: &Connection,
    main: ffi::File,
    kind: Checkpoint,
) -> Result<Backfill, Error> {
    let (mode, wait) = match kind {
        Checkpoint::Passive => (sqlite::SQLITE_CHECKPOINT_PASSIVE, Duration::ZERO),
        Checkpoint::Full { wait } => (sqlite::SQLITE_CHECKPOINT_FULL, wait),
        Checkpoint::Restart { wait } => (sqlite::SQLITE_CHECKPOINT_RESTART, wait),
        Checkpoint::Truncate { wait } => (sqlite::SQLITE_CHECKPOINT_TRUNCATE, wait),
    };
    connection.busy_timeout(wait)?;
    let result = ffi::checkpoint(connection, mode);
    connection.busy_timeout(Duration::ZERO)?;
    match result {
        // An interrupt that came too late for its statement hits the checkpoint.
        Ok(()) | Err(ResultCode::INTERRUPT) => Backfill::now(main),
        Err(ResultCode::BUSY) => Ok(Backfill {
            is_held_back: true,
            ..Backfill::now(main)?
        }),
        Err(code) => Err(failed("checkpoint")(code)),
    }
}
