//! One request, and its record.

use super::action::{Action, Answer};
pub use crate::workload::Fate;

/// A request and what came of it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// No two operations have the same.
    pub id: u64,
    /// Who asked; a client asks one thing after the other.
    pub client: u32,
    /// Of which node.
    pub node: u8,
    /// How often that node had been started anew when the answer came.
    pub start: u32,
    /// What was asked.
    pub actions: Vec<Action>,
    /// How far it reaches.
    pub reach: Reach,
    /// When it was sent: nanoseconds since some moment, the same for all.
    pub begun: u64,
    /// When the answer came; of no use unless it is acknowledged.
    pub ended: u64,
    /// What is known of it.
    pub fate: Fate,
    /// The answers, one for each action; none unless it is acknowledged.
    pub answers: Vec<Answer>,
    /// The index in the log, as the server said.
    pub index: Option<u64>,
    /// Of a write, its number in the journal; of a read, the last one that it saw. As the server
    /// said.
    pub place: Option<u64>,
    /// The place that a read must have seen at least, because it was asked with the index that a
    /// write at that place was answered with.
    pub floor: u64,
}

/// What a request may do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reach {
    /// It only reads, in one statement.
    Read(Level),
    /// It writes, in one transaction.
    Write {
        /// Whether that includes a row in the journal.
        journalled: bool,
    },
}

/// The level of a read.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// What the node has.
    None,
    /// What the node has that takes itself for the leader.
    Weak,
    /// The newest.
    Linearizable,
    /// The newest, by way of the log.
    Strong,
}

impl Level {
    /// As the API has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Weak => "weak",
            Self::Linearizable => "linearizable",
            Self::Strong => "strong",
        }
    }

    /// Whether it promises the newest.
    #[must_use]
    pub fn is_current(self) -> bool {
        self >= Self::Linearizable
    }
}

impl Operation {
    /// Whether it has, if it was done, a row in the journal.
    #[must_use]
    pub fn is_journalled(&self) -> bool {
        self.reach == Reach::Write { journalled: true }
    }

    /// Whether it was told that it is done.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        self.fate == Fate::Acknowledged
    }

    /// Whether it takes part in what holds in real time: writes, and reads of a level that promises
    /// the newest.
    #[must_use]
    pub fn is_current(&self) -> bool {
        match self.reach {
            Reach::Read(level) => level.is_current(),
            Reach::Write { .. } => true,
        }
    }

    /// When it was over: never, for a write of unknown fate.
    #[must_use]
    pub fn end(&self) -> u64 {
        if self.is_acknowledged() {
            self.ended
        } else {
            u64::MAX
        }
    }
}
