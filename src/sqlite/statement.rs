//! Running one SQL text on a connection, inside the transaction of a group or outside of any.

use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ffi};

use super::authorizer::{Guard, Mode, SavepointAction, WRITE_IN_QUERY};
use super::client_transaction::ClientTransaction;
use super::control::Control;
use super::counters::{CounterTracker, Counters};
use super::interest::Interest;
use super::parameters;
use super::raw::{self, Failure, Prepared};
use super::result_rows::{self, RESULT_TOO_LARGE};
use super::statement_cache::StatementCache;
use super::tokens::{self, Keyword};
use super::values::{Answer, Outcome, Shape, Statement};
use super::vfs;

/// Why COMMIT and ROLLBACK are refused in a request with `transaction`.
const ENDS_BY_ITSELF: &str = "the `transaction` parameter ends the transaction by itself: leave \
     COMMIT and ROLLBACK out";

/// The circumstances under which a text runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// What its result looks like, and whether it may write.
    pub(crate) shape: Shape,
    /// The longest that it may run.
    pub(crate) time_max: Option<Duration>,
    /// Whether a failure takes back the whole request anyway.
    pub(crate) is_transaction: bool,
    /// How many statements of the text are run; the rest is left out of a replay.
    pub(crate) pieces_max: usize,
    /// See [`Request`](super::values::Request).
    pub(crate) qualify_columns: bool,
}

/// Runs the texts of clients on one connection, which it must not outlive.
#[derive(Debug)]
pub(crate) struct Executor {
    guard: Arc<Guard>,
    /// Our own transactions and savepoints.
    pub(crate) control: Control,
    /// The counters to report.
    pub(crate) counters: CounterTracker,
    cache: StatementCache,
    foreign_keys: bool,
    /// What clients have open themselves.
    transaction: ClientTransaction,
    /// Whether the transaction of a group was open before anything that a client opened.
    in_group: bool,
    /// Whether this request has switched foreign keys off.
    foreign_keys_suspended: bool,
    /// Whether the last statement only read: decides between two words for a time-out.
    was_read: bool,
    /// How many statements of the last text stand even if the one after them kills the transaction:
    /// run alone, each of them would have been committed before. `None`: throughout the text a
    /// transaction was open that an earlier text had opened.
    pub(crate) pieces_kept: Option<usize>,
}

/// One statement of a text.
#[derive(Clone, Copy)]
struct Piece {
    keyword: Keyword,
    /// Only the last one's result is reported.
    is_last: bool,
    /// How many parameters the statements before it consumed.
    first_parameter: usize,
    /// Whether a savepoint around it already stands.
    is_protected: bool,
    /// Whether it was compiled for an earlier request.
    is_cached: bool,
}

impl Executor {
    /// Installs the authorizer. Everything that needs other rights has to be done before.
    ///
    /// # Errors
    /// SQLite is out of memory.
    pub(crate) fn new(
        connection: &Connection,
        guard: Arc<Guard>,
        foreign_keys: bool,
    ) -> Result<Self, Failure> {
        raw::install(connection, &guard)?;
        Ok(Self {
            control: Control::new(connection, &guard)?,
            counters: CounterTracker::new(),
            cache: StatementCache::default(),
            guard,
            foreign_keys,
            transaction: ClientTransaction::default(),
            in_group: false,
            foreign_keys_suspended: false,
            was_read: false,
            pieces_kept: None,
        })
    }

    /// Sets whose interest keeps the next texts running.
    pub(crate) fn watch(&self, interest: Option<&Interest>) {
        self.guard.watch(interest);
    }

    /// See [`Guard::give_up_at`].
    pub(crate) fn give_up_at(&self, time: Option<Instant>) -> bool {
        self.guard.give_up_at(time)
    }

    /// Whether nobody waits any more for what runs.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.guard.is_abandoned()
    }

    /// Whether this thread has taken a lower priority for the sake of others.
    pub(crate) fn has_given_way(&self) -> bool {
        self.guard.has_given_way()
    }

    /// Whether this text holds a pragma for which the whole request is refused. Texts in the cache
    /// were looked at when they were put there.
    pub(crate) fn has_disallowed_pragma(&self, sql: &str) -> bool {
        !self.cache.contains(sql) && tokens::has_disallowed_pragma(sql)
    }

    /// Runs a text to its end. On the writer, `sqlite3_get_autocommit` has to be looked at after
    /// it: some failures take the whole transaction of the group with them.
    pub(crate) fn run(
        &mut self,
        connection: &Connection,
        statement: &Statement,
        scope: Scope,
        bytes_left: &mut usize,
    ) -> (Outcome, Option<Failure>) {
        let start = Instant::now();
        self.guard.start(scope.time_max);
        let is_open = self.has_open_transaction();
        if !is_open {
            self.in_group = !connection.is_autocommit();
        }
        self.pieces_kept = (!is_open).then_some(0);
        self.transaction.begin_text();
        let result = self.run_text(connection, statement, scope, bytes_left);
        self.transaction.end_text(self.pieces_kept.is_some());
        if self.is_killed(connection) {
            self.transaction.forget();
        }
        self.guard.stop();
        self.guard.set_mode(Mode::Server);
        let (answer, failure) = match result {
            Ok(answer) => (answer, None),
            Err(failure) => {
                let failure = self.reworded(connection, failure, scope.shape);
                (Answer::Failed(failure.message.clone()), Some(failure))
            }
        };
        (
            Outcome {
                answer,
                elapsed: start.elapsed(),
            },
            failure,
        )
    }

    /// Says what happened in the client's terms, where SQLite could only report its end of it.
    fn reworded(&self, connection: &Connection, mut failure: Failure, shape: Shape) -> Failure {
        if let Some(reason) = self.guard.take_refusal() {
            failure.message = reason;
        } else if let Some(reason) = full(connection, &failure) {
            failure.message = reason;
        } else if self.guard.has_expired() {
            let is_query = shape == Shape::Query || (shape == Shape::Unified && self.was_read);
            failure.message = if is_query {
                "query timeout"
            } else {
                "execute timeout"
            }
            .to_owned();
        } else if shape == Shape::Query && failure.code & 0xff == ffi::SQLITE_READONLY {
            WRITE_IN_QUERY.clone_into(&mut failure.message);
        }
        failure
    }

    fn run_text(
        &mut self,
        connection: &Connection,
        statement: &Statement,
        scope: Scope,
        bytes_left: &mut usize,
    ) -> Result<Answer, Failure> {
        let cached = (scope.pieces_max > 0).then(|| self.cache.take(&statement.sql));
        let result = if let Some((sql, mut prepared)) = cached.flatten() {
            let piece = Piece {
                keyword: tokens::keyword(&sql),
                is_last: true,
                first_parameter: 0,
                is_protected: scope.is_transaction || self.has_open_transaction(),
                is_cached: true,
            };
            let result = self.run_piece(
                connection,
                &mut prepared,
                piece,
                (statement, scope),
                bytes_left,
            );
            self.cache.put(sql, prepared);
            result
        } else {
            self.run_pieces(connection, statement, scope, bytes_left)
        };
        if result.is_err() {
            let (control, counters) = (&mut self.control, &mut self.counters);
            self.transaction
                .abandon_text(connection, control, counters)?;
        }
        result
    }

    fn run_pieces(
        &mut self,
        connection: &Connection,
        statement: &Statement,
        scope: Scope,
        bytes_left: &mut usize,
    ) -> Result<Answer, Failure> {
        let sql = statement.sql.as_str();
        let Ok(terminated) = CString::new(sql) else {
            return Err(Failure::new(
                ffi::SQLITE_ERROR,
                "unrecognized token: \"\\0\"",
            ));
        };
        let mut answer = Answer::Written {
            last_insert_id: 0,
            rows_affected: 0,
        };
        let (mut offset, mut first_parameter, mut pieces) = (0, 0, 0);
        while offset < sql.len() && pieces < scope.pieces_max {
            let keyword = tokens::keyword(sql.get(offset..).unwrap_or_default());
            self.guard.set_mode(prepare_mode(keyword, scope.shape));
            let (prepared, end) = Prepared::new(connection, &terminated, offset)?;
            let begin = offset;
            offset = end.max(begin + 1);
            if !self.has_open_transaction() {
                self.pieces_kept = Some(pieces);
            }
            if let Some(is_on) = self.guard.take_foreign_keys_asked() {
                // As in SQLite, it has no effect inside a transaction.
                let is_open = scope.is_transaction || self.has_open_transaction();
                self.suspend_foreign_keys(connection, !is_on && !is_open)?;
            }
            let Some(mut prepared) = prepared else {
                continue;
            };
            pieces += 1;
            if is_control(keyword) {
                self.run_control(connection, keyword, scope)?;
                answer = self.written();
                continue;
            }
            let piece = Piece {
                keyword,
                is_last: tokens::is_blank(sql.get(end..).unwrap_or_default()),
                first_parameter,
                is_protected: scope.is_transaction || self.has_open_transaction(),
                is_cached: false,
            };
            first_parameter += prepared.parameter_count();
            answer = self.run_piece(
                connection,
                &mut prepared,
                piece,
                (statement, scope),
                bytes_left,
            )?;
            if self.is_killed(connection) {
                return Err(Failure::new(
                    ffi::SQLITE_ABORT,
                    "the transaction was rolled back",
                ));
            }
            if begin == 0 && piece.is_last && is_cacheable(keyword) {
                self.cache.put(sql.to_owned(), prepared);
            }
        }
        Ok(answer)
    }

    /// Runs a statement that opens or ends a transaction of the client's: never itself, but with
    /// savepoints of ours. Its keyword is known; a savepoint's name SQLite has told the guard.
    fn run_control(
        &mut self,
        connection: &Connection,
        keyword: Keyword,
        scope: Scope,
    ) -> Result<(), Failure> {
        let (control, counters) = (&mut self.control, &mut self.counters);
        if keyword == Keyword::Savepoint {
            return self.run_savepoint(connection, scope);
        }
        match keyword {
            Keyword::Begin if scope.is_transaction => Err(Failure::new(
                ffi::SQLITE_ERROR,
                "cannot start a transaction within a transaction",
            )),
            _ if scope.is_transaction => Err(Failure::new(ffi::SQLITE_ERROR, ENDS_BY_ITSELF)),
            Keyword::Begin => self.transaction.begin(control, counters),
            Keyword::Commit => {
                check_foreign_keys(connection, self.foreign_keys)?;
                self.transaction.commit(control)
            }
            _ => self.transaction.rollback(control, counters),
        }
    }

    fn run_savepoint(&mut self, connection: &Connection, scope: Scope) -> Result<(), Failure> {
        let (control, counters) = (&mut self.control, &mut self.counters);
        let action = self.guard.take_savepoint();
        let action = action.expect("SQLite names the savepoint when it compiles the statement");
        match (self.transaction.find(&action)?, action) {
            (None, SavepointAction::Open(name)) => {
                self.transaction.open(control, Some(name), counters)
            }
            (Some(level), SavepointAction::RollBackTo(_)) => {
                self.transaction.return_to(control, counters, level)
            }
            (level, _) => {
                let level = level.unwrap_or(0);
                // Ending the outermost one is a COMMIT, if no BEGIN is around it.
                if level == 0 && !scope.is_transaction {
                    check_foreign_keys(connection, self.foreign_keys)?;
                }
                self.transaction.keep(control, level)
            }
        }
    }

    /// Whether a transaction of the client's is open.
    pub(crate) fn has_open_transaction(&self) -> bool {
        self.transaction.is_open()
    }

    /// Whether SQLite has rolled back a transaction that should be open.
    fn is_killed(&self, connection: &Connection) -> bool {
        (self.in_group || self.has_open_transaction()) && connection.is_autocommit()
    }

    /// Keeps what the request did in savepoints that it left open: it is a transaction as a whole.
    pub(crate) fn keep_request(&mut self) -> Result<(), Failure> {
        self.transaction.keep(&mut self.control, 0)
    }

    /// Ends a request. A transaction that it left open is rolled back, which `outcomes`, those of
    /// the request so far, then say.
    pub(crate) fn end_request(
        &mut self,
        connection: &Connection,
        outcomes: &mut [Outcome],
    ) -> Result<(), Failure> {
        let (control, counters) = (&mut self.control, &mut self.counters);
        self.transaction
            .abandon_request(connection, control, counters, outcomes)?;
        self.suspend_foreign_keys(connection, false)
    }

    /// Begins anew after everything that was open was rolled back.
    pub(crate) fn forget_request(&mut self, connection: &Connection) -> Result<(), Failure> {
        self.transaction.forget();
        self.suspend_foreign_keys(connection, false)
    }

    /// Switches the enforcement of foreign keys off where the node has it on, and on again. The
    /// pragma itself would do nothing inside the transaction of a group.
    fn suspend_foreign_keys(
        &mut self,
        connection: &Connection,
        suspended: bool,
    ) -> Result<(), Failure> {
        if self.foreign_keys && self.foreign_keys_suspended != suspended {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, !suspended)?;
            self.foreign_keys_suspended = suspended;
        }
        Ok(())
    }

    fn run_piece(
        &mut self,
        connection: &Connection,
        prepared: &mut Prepared,
        piece: Piece,
        (statement, scope): (&Statement, Scope),
        bytes_left: &mut usize,
    ) -> Result<Answer, Failure> {
        let is_read =
            prepared.is_read_only() || prepared.is_explain() || piece.keyword == Keyword::Pragma;
        self.was_read = is_read;
        if scope.shape == Shape::Query && !is_read {
            return Err(Failure::new(ffi::SQLITE_READONLY, WRITE_IN_QUERY));
        }
        let bound = parameters::bind(prepared, &statement.parameters, piece.first_parameter);
        if let Err(failure) = bound {
            prepared.reset();
            return Err(failure);
        }
        let wants_rows = piece.is_last
            && prepared.column_count() > 0
            && (scope.shape != Shape::Execute || !is_read);
        // A single statement is atomic by itself, except that it can leave a deferred foreign key
        // open, and that giving up on its rows half-way would keep its changes.
        let needs_savepoint = !is_read
            && !piece.is_protected
            && !connection.is_autocommit()
            && (self.foreign_keys || wants_rows);
        let before = self.counters.now();
        if needs_savepoint {
            self.control.open_savepoint()?;
        }
        self.counters.show(connection);
        self.guard.set_mode(run_mode(piece.keyword, scope.shape));
        let result = if wants_rows {
            result_rows::collect(prepared, scope.qualify_columns, bytes_left).map(Answer::Rows)
        } else {
            result_rows::drain(prepared).map(|()| Answer::Written {
                last_insert_id: 0,
                rows_affected: 0,
            })
        };
        prepared.reset();
        let has_run = result.is_ok()
            || !piece.is_cached
            || self.compiles(connection, (statement, scope), piece.keyword);
        self.guard.set_mode(Mode::Server);
        if !is_read && has_run && sets_counters(piece.keyword) {
            self.counters.note(connection);
        }
        let result = if needs_savepoint && !connection.is_autocommit() {
            self.close_savepoint(connection, before, result)
        } else {
            result
        };
        match result? {
            Answer::Written { .. } => Ok(self.written()),
            answer => Ok(answer),
        }
    }

    /// Whether a text from the cache still compiles. If not, it has not run and set no counters:
    /// the connection has those of something that may have been rolled back since.
    fn compiles(
        &self,
        connection: &Connection,
        (statement, scope): (&Statement, Scope),
        keyword: Keyword,
    ) -> bool {
        self.guard.set_mode(prepare_mode(keyword, scope.shape));
        let text = CString::new(statement.sql.as_str());
        text.is_ok_and(|text| Prepared::new(connection, &text, 0).is_ok())
    }

    /// Ends the savepoint around a single statement. A failed statement has undone what it should
    /// (OR FAIL keeps its earlier rows), so the savepoint is undone only for what SQLite would find
    /// at a COMMIT of its own, or if the rows were too many.
    fn close_savepoint(
        &mut self,
        connection: &Connection,
        before: Counters,
        result: Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        let is_too_large = result
            .as_ref()
            .is_err_and(|failure| failure.code == RESULT_TOO_LARGE);
        let foreign_keys = self.check_foreign_keys(connection);
        if is_too_large || foreign_keys.is_err() {
            self.control.undo_savepoint()?;
            self.counters.restore(before);
        } else {
            self.control.keep_savepoint()?;
        }
        foreign_keys.and(result)
    }

    /// What COMMIT would check: whether a deferred foreign key is violated.
    ///
    /// # Errors
    /// One is, in SQLite's words.
    pub(crate) fn check_foreign_keys(&self, connection: &Connection) -> Result<(), Failure> {
        check_foreign_keys(connection, self.foreign_keys)
    }

    fn written(&self) -> Answer {
        let Counters {
            last_insert_id,
            rows_affected,
        } = self.counters.now();
        Answer::Written {
            last_insert_id,
            rows_affected,
        }
    }

    /// Whether none of the request's statements writes, by SQLite's own judgement; a statement that
    /// does not compile writes nothing.
    pub(crate) fn is_read_only(&self, connection: &Connection, statement: &Statement) -> bool {
        let sql = statement.sql.as_str();
        let Ok(terminated) = CString::new(sql) else {
            return true;
        };
        self.guard.start(None);
        let mut offset = 0;
        let mut is_read_only = true;
        while offset < sql.len() && is_read_only {
            let keyword = tokens::keyword(sql.get(offset..).unwrap_or_default());
            self.guard.set_mode(prepare_mode(keyword, Shape::Unified));
            let Ok((prepared, end)) = Prepared::new(connection, &terminated, offset) else {
                break;
            };
            offset = end.max(offset + 1);
            is_read_only =
                prepared.is_none_or(|prepared| prepared.is_read_only() || prepared.is_explain());
        }
        self.guard.set_mode(Mode::Server);
        is_read_only
    }
}

/// See [`Executor::check_foreign_keys`].
fn check_foreign_keys(connection: &Connection, is_enforced: bool) -> Result<(), Failure> {
    if is_enforced && raw::deferred_foreign_keys_open(connection) {
        return Err(Failure::new(
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
            "FOREIGN KEY constraint failed",
        ));
    }
    Ok(())
}

fn is_control(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::Begin | Keyword::Commit | Keyword::Rollback | Keyword::Savepoint
    )
}

/// Those that SQLite counts changes for; the creation of a virtual table runs such statements, and
/// rqlite shows their counters too.
fn sets_counters(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::Change | Keyword::With | Keyword::DefineVirtual
    )
}

/// Statements whose rights depend on who runs them are compiled each time.
fn is_cacheable(keyword: Keyword) -> bool {
    !is_control(keyword) && !matches!(keyword, Keyword::Pragma | Keyword::Vacuum)
}

/// Control statements of clients are compiled for their syntax only, and never run.
fn prepare_mode(keyword: Keyword, shape: Shape) -> Mode {
    if is_control(keyword) {
        Mode::Server
    } else {
        run_mode(keyword, shape)
    }
}

fn run_mode(keyword: Keyword, shape: Shape) -> Mode {
    match (shape, keyword) {
        (Shape::Query, _) => Mode::Read,
        (_, Keyword::Vacuum) => Mode::Vacuum,
        _ => Mode::Write,
    }
}

/// What was full, if our own VFS said so.
pub(crate) fn full(connection: &Connection, failure: &Failure) -> Option<String> {
    let is_full = failure.code & 0xff == ffi::SQLITE_FULL;
    is_full.then(|| vfs::take_refusal(connection)).flatten()
}
