//! The transactions that clients open themselves, with BEGIN or SAVEPOINT, within one request. Each
//! level is run as a savepoint of ours, because a group has only one transaction of SQLite's.
//!
//! One may begin in one text of a request and end in another, and lives no longer than the request:
//! all requests share one connection, so whatever came next would become part of it.

use rusqlite::{Connection, ffi};

use super::authorizer::SavepointAction;
use super::control::Control;
use super::counters::{CounterTracker, Counters};
use super::raw::Failure;
use super::values::{Answer, Outcome};

/// Why a COMMIT or ROLLBACK without a BEGIN in the same request is refused.
pub(crate) const SPANNING: &str = "explicit transactions cannot span requests: send BEGIN and \
     COMMIT within one request, or use the `transaction` parameter";

/// What the statements of a transaction that nobody ended are answered.
const LEFT_OPEN: &str = "rolled back, because the request left its transaction open: explicit \
     transactions cannot span requests; send BEGIN and COMMIT within one request, or use the \
     `transaction` parameter";

/// One BEGIN or SAVEPOINT.
#[derive(Debug)]
struct Level {
    /// The name of the savepoint; BEGIN has none.
    name: Option<String>,
    /// What the counters go back to if it is rolled back.
    before: Counters,
}

/// What of a transaction is open at this moment, outermost level first.
#[derive(Debug, Default)]
pub(crate) struct ClientTransaction {
    levels: Vec<Level>,
    /// How many of them were opened by earlier texts.
    inherited: usize,
    /// How many outcomes of the request belong to it.
    outcomes: usize,
}

impl ClientTransaction {
    /// Whether there is one.
    pub(crate) fn is_open(&self) -> bool {
        !self.levels.is_empty()
    }

    /// Notes that another text begins.
    pub(crate) fn begin_text(&mut self) {
        self.inherited = self.levels.len();
    }

    /// Notes that a text has an outcome. `was_closed`: whether there was a moment during the text
    /// at which no transaction was open; what came before it is not part of one that is open now.
    pub(crate) fn end_text(&mut self, was_closed: bool) {
        if was_closed {
            self.outcomes = 0;
        }
        self.outcomes = if self.is_open() { self.outcomes + 1 } else { 0 };
    }

    /// BEGIN.
    pub(crate) fn begin(
        &mut self,
        control: &mut Control,
        counters: &CounterTracker,
    ) -> Result<(), Failure> {
        if self.is_open() {
            return Err(Failure::new(
                ffi::SQLITE_ERROR,
                "cannot start a transaction within a transaction",
            ));
        }
        self.open(control, None, counters)
    }

    /// COMMIT or END, after it was found that nothing stands against it.
    pub(crate) fn commit(&mut self, control: &mut Control) -> Result<(), Failure> {
        self.require_open()?;
        self.keep(control, 0)
    }

    /// ROLLBACK.
    pub(crate) fn rollback(
        &mut self,
        control: &mut Control,
        counters: &mut CounterTracker,
    ) -> Result<(), Failure> {
        self.require_open()?;
        self.undo(control, counters, 0)
    }

    /// The level that RELEASE or ROLLBACK TO speaks of; `None` for SAVEPOINT, which makes a new one.
    pub(crate) fn find(&self, action: &SavepointAction) -> Result<Option<usize>, Failure> {
        let name = match action {
            SavepointAction::Open(_) => return Ok(None),
            SavepointAction::Release(name) | SavepointAction::RollBackTo(name) => name,
        };
        let is_it = |level: &Level| {
            let level = level.name.as_ref();
            level.is_some_and(|level| level.eq_ignore_ascii_case(name))
        };
        let level = self.levels.iter().rposition(is_it);
        level
            .map(Some)
            .ok_or_else(|| Failure::new(ffi::SQLITE_ERROR, format!("no such savepoint: {name}")))
    }

    /// SAVEPOINT.
    pub(crate) fn open(
        &mut self,
        control: &mut Control,
        name: Option<String>,
        counters: &CounterTracker,
    ) -> Result<(), Failure> {
        control.open_savepoint()?;
        let before = counters.now();
        self.levels.push(Level { name, before });
        Ok(())
    }

    /// RELEASE: keeps what this level and those inside it did, and ends them.
    pub(crate) fn keep(&mut self, control: &mut Control, level: usize) -> Result<(), Failure> {
        while self.levels.len() > level {
            control.keep_savepoint()?;
            self.pop();
        }
        Ok(())
    }

    /// ROLLBACK TO: takes back what this level and those inside it did; it stays open.
    pub(crate) fn return_to(
        &mut self,
        control: &mut Control,
        counters: &mut CounterTracker,
        level: usize,
    ) -> Result<(), Failure> {
        self.undo(control, counters, level + 1)?;
        control.return_to_savepoint()?;
        if let Some(level) = self.levels.last() {
            counters.restore(level.before);
        }
        Ok(())
    }

    /// Rolls back what a text opened that has failed.
    pub(crate) fn abandon_text(
        &mut self,
        connection: &Connection,
        control: &mut Control,
        counters: &mut CounterTracker,
    ) -> Result<(), Failure> {
        self.abandon(connection, control, counters, self.inherited)
    }

    /// Rolls back what a request left open, and says so in the outcomes that belong to it.
    pub(crate) fn abandon_request(
        &mut self,
        connection: &Connection,
        control: &mut Control,
        counters: &mut CounterTracker,
        outcomes: &mut [Outcome],
    ) -> Result<(), Failure> {
        let from = outcomes.len().saturating_sub(self.outcomes);
        self.outcomes = 0;
        if !self.is_open() {
            return Ok(());
        }
        for outcome in &mut outcomes[from..] {
            if !matches!(outcome.answer, Answer::Failed(_)) {
                outcome.answer = Answer::Failed(LEFT_OPEN.to_owned());
            }
        }
        self.abandon(connection, control, counters, 0)
    }

    /// SQLite has rolled back everything.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    fn abandon(
        &mut self,
        connection: &Connection,
        control: &mut Control,
        counters: &mut CounterTracker,
        down_to: usize,
    ) -> Result<(), Failure> {
        if !connection.is_autocommit() {
            return self.undo(control, counters, down_to);
        }
        // SQLite has rolled back already: there is no savepoint left to undo.
        if let Some(level) = self.levels.first() {
            counters.restore(level.before);
        }
        self.levels.clear();
        self.inherited = 0;
        Ok(())
    }

    fn undo(
        &mut self,
        control: &mut Control,
        counters: &mut CounterTracker,
        down_to: usize,
    ) -> Result<(), Failure> {
        while let Some(level) = self.levels.get(down_to..).and_then(<[Level]>::last) {
            control.undo_savepoint()?;
            counters.restore(level.before);
            self.pop();
        }
        Ok(())
    }

    fn pop(&mut self) {
        self.levels.pop();
        self.inherited = self.inherited.min(self.levels.len());
    }

    fn require_open(&self) -> Result<(), Failure> {
        if self.is_open() {
            Ok(())
        } else {
            Err(Failure::new(ffi::SQLITE_ERROR, SPANNING))
        }
    }
}
