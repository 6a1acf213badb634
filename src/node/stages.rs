//! The five stages of a write, as counted, logged and shown.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a write has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Taken from the queue into a group.
    Grouped,
    /// Run by SQLite; its pages are captured.
    Executed,
    /// Encoded and handed to the log.
    Appended,
    /// Decided by the quorum.
    Committed,
    /// In the database, visible to readers.
    Applied,
}

/// How many groups (for `Grouped`: requests) have reached each stage since the node started.
#[derive(Debug, Default)]
pub(crate) struct Stages([AtomicU64; 5]);

impl Stages {
    pub(crate) fn count(&self, stage: Stage) {
        self.add(stage, 1);
    }

    pub(crate) fn add(&self, stage: Stage, count: u64) {
        self.0[stage as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        ["Grouped", "Executed", "Appended", "Committed", "Applied"]
            .into_iter()
            .zip(self.0.iter().map(|counter| counter.load(Ordering::Relaxed)))
            .collect()
    }
}
