//! The writer: runs requests in groups, each group one SQLite transaction.
//!
//! A request that kills the transaction of its group (OR ROLLBACK, RAISE(ROLLBACK), a full disk, an
//! interrupted write) must not take the others with it. Nothing of a killed group has left SQLite,
//! so the group is run again without the culprit: without `transaction` its *statement* is skipped
//! and the error recorded stands, with `transaction` the whole request. All other answers come from
//! the last run. After the second kill only the requests before the culprit are run again, and the
//! caller begins its next group with the culprit, so a group costs a bounded number of runs.
//!
//! A request that nobody waits for any more is left out in the same way, as a whole and whatever it
//! had done: until the group's COMMIT, who gives up can be certain that nothing is committed.

mod alone;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ffi};

use super::authorizer::Guard;
use super::counters::Counters;
use super::extensions::Extensions;
use super::functions;
use super::interest::{Interest, Sealing};
use super::limits::Limits;
use super::raw::Failure;
use super::statement::{self, Executor, Scope};
use super::tokens;
use super::values::{Outcome, Reply, Request, Shape};

/// How the writer's connection is set up.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// Whether foreign keys are enforced (`-fk`; off by default as in rqlite).
    pub foreign_keys: bool,
    /// Bounds on what clients may ask for.
    pub limits: Limits,
    /// What the connection loads.
    pub extensions: Extensions,
}

/// Setting up a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// SQLite refused a setting; the connection is not usable.
    #[error("cannot set up the SQLite connection: {0}")]
    Sqlite(String),
}

impl From<Failure> for SetupError {
    fn from(failure: Failure) -> Self {
        Self::Sqlite(failure.message)
    }
}

impl From<rusqlite::Error> for SetupError {
    fn from(error: rusqlite::Error) -> Self {
        Failure::from(error).into()
    }
}

/// What came of one SQLite transaction.
#[derive(Debug)]
pub struct GroupEnd {
    /// One for each request that was run: the head of the group. The caller runs the rest, if there
    /// is one, with its next call.
    pub replies: Vec<Reply>,
    /// Whether the replies hold.
    pub sql_commit: SqlCommit,
}

/// SQLite's end of a transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SqlCommit {
    /// Committed, or there was nothing to commit: the replies hold.
    Done,
    /// The commit was refused with `SQLITE_IOERR_FSYNC`: the gate discarded it. The connection is
    /// back in autocommit, the replies have no meaning, and none of the requests had any effect
    /// except as said here.
    Refused {
        /// The request ran alone (see [`Writer::runs_alone`]) and an earlier statement of it was
        /// committed already by a transaction of its own.
        partial: bool,
    },
}

/// The requests of a group, and for each who waits for it. Those beyond the second list always run.
#[derive(Clone, Copy)]
struct Group<'a> {
    requests: &'a [Request],
    interests: &'a [Interest],
}

impl<'a> Group<'a> {
    fn head(self, requests: usize) -> Self {
        Self {
            requests: &self.requests[..requests],
            ..self
        }
    }

    fn interest(self, number: usize) -> Option<&'a Interest> {
        self.interests.get(number)
    }

    fn is_lost(self, number: usize) -> bool {
        self.interest(number).is_some_and(Interest::is_lost)
    }
}

/// Runs groups on one connection: keeps its counters and its prepared statements. Lives on the
/// thread that uses the connection, and must be dropped before the connection is (SQLite does not
/// close a connection that still has prepared statements).
#[derive(Debug)]
pub struct Writer {
    pub(super) executor: Executor,
    result_bytes_max: usize,
}

/// How one run of a group ended.
enum Attempt {
    Committed(Vec<Reply>),
    Refused,
    Killed(Kill),
    /// BEGIN or COMMIT failed, and everything is rolled back.
    Failed(String),
}

/// A request rolled back the whole group.
struct Kill {
    /// Its place in the group.
    request: usize,
    /// What to do about it in the next run.
    skip: Skip,
}

/// What is not run again, with what was recorded for it.
enum Skip {
    /// One text, and those before it since which a transaction of the client's was open; each with
    /// its place in the request.
    Statements(Vec<(usize, SkippedStatement)>),
    /// A request with `transaction`.
    Request(Reply),
}

/// A text that killed its group, or went down with it.
struct SkippedStatement {
    /// What it is answered.
    outcome: Outcome,
    /// The counters it left, which are those that the next one sees.
    counters: Counters,
    /// If its text holds several: how many before the culprit are run nevertheless, because alone
    /// they would have been committed by then.
    pieces_kept: usize,
}

/// Everything that is not run again.
#[derive(Default)]
struct Skips {
    statements: HashMap<(usize, usize), SkippedStatement>,
    requests: HashMap<usize, Reply>,
}

impl Writer {
    /// Sets up `connection` for groups and installs the authorizer. Call it once per connection, on
    /// the thread that will use it.
    ///
    /// # Errors
    /// SQLite refused a setting.
    pub fn new(connection: &Connection, options: &WriterOptions) -> Result<Self, SetupError> {
        set_up(connection, options.foreign_keys, &options.limits)?;
        options.extensions.load(connection)?;
        // FULL makes SQLite call xSync at every commit, which is where the cluster decides.
        connection.execute_batch(
            "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA temp_store=MEMORY;",
        )?;
        let guard = Guard::new(options.foreign_keys, Arc::new(AtomicBool::new(false)));
        Ok(Self {
            executor: Executor::new(connection, guard, options.foreign_keys)?,
            result_bytes_max: options.limits.result_bytes_max,
        })
    }

    /// Whether a request has to be a group of its own because a statement of it cannot run inside a
    /// transaction. Each of its statements is then a transaction of its own.
    #[must_use]
    pub fn runs_alone(request: &Request) -> bool {
        !request.transaction
            && request.shape != Shape::Query
            && request
                .statements
                .iter()
                .any(|statement| tokens::has_vacuum(&statement.sql))
    }

    /// Runs the head of `group` as one SQLite transaction: all of it, except that it ends before a
    /// request that runs alone, and before one that killed the transaction after another had.
    /// At least one request is run, unless the group is empty.
    pub fn run(&mut self, connection: &Connection, group: &[Request]) -> GroupEnd {
        self.run_while(connection, group, &[])
    }

    /// As [`Self::run`], each request only for as long as there is interest in it: in the order of
    /// the requests, and where there are fewer, the others run in any case. The reply to a request
    /// that was left out because nobody waits for it is an error that nobody will read.
    pub fn run_while(
        &mut self,
        connection: &Connection,
        requests: &[Request],
        interests: &[Interest],
    ) -> GroupEnd {
        let group = Group {
            requests,
            interests,
        };
        if requests.first().is_some_and(Self::runs_alone) {
            return self.run_alone(connection, group.head(1));
        }
        let end = requests.iter().position(Self::runs_alone);
        self.run_group(connection, group.head(end.unwrap_or(requests.len())))
    }

    fn run_group(&mut self, connection: &Connection, mut group: Group<'_>) -> GroupEnd {
        let before = self.executor.counters.now();
        let mut skips = Skips::default();
        let mut kills = 0;
        loop {
            let attempt = self.attempt(connection, group, &skips);
            if !matches!(attempt, Attempt::Committed(_)) {
                self.executor.counters.restore(before);
            }
            match attempt {
                Attempt::Committed(replies) => {
                    return GroupEnd {
                        replies,
                        sql_commit: SqlCommit::Done,
                    };
                }
                Attempt::Refused => {
                    let sql_commit = SqlCommit::Refused { partial: false };
                    return GroupEnd {
                        replies: vec![Reply::default(); group.requests.len()],
                        sql_commit,
                    };
                }
                Attempt::Killed(Kill { request, skip }) => {
                    kills += 1;
                    if kills >= 2 {
                        group = group.head(request.max(1));
                    }
                    skips.add(request, skip);
                }
                // One request may have made the transaction too large for all of them.
                Attempt::Failed(_) if group.requests.len() > 1 => group = group.head(1),
                Attempt::Failed(message) => {
                    let reply = Reply {
                        outcomes: Vec::new(),
                        error: Some(message),
                    };
                    return GroupEnd {
                        replies: vec![reply],
                        sql_commit: SqlCommit::Done,
                    };
                }
            }
        }
    }

    /// Runs a group once, from BEGIN to COMMIT.
    fn attempt(&mut self, connection: &Connection, group: Group<'_>, skips: &Skips) -> Attempt {
        if group.requests.is_empty() {
            return Attempt::Committed(Vec::new());
        }
        let begun = self.executor.forget_request(connection);
        if let Err(failure) = begun.and_then(|()| self.executor.control.begin_immediate()) {
            return Attempt::Failed(failure.message);
        }
        let mut replies = Vec::with_capacity(group.requests.len());
        let mut left_out = HashSet::new();
        for (number, request) in group.requests.iter().enumerate() {
            if group.is_lost(number) {
                left_out.insert(number);
                replies.push(unread());
                continue;
            }
            self.executor.watch(group.interest(number));
            let result = self.run_request(connection, request, number, skips);
            self.executor.watch(None);
            let skip = match result {
                Ok(_) if group.is_lost(number) => Skip::Request(unread()),
                Ok(Ok(reply)) => {
                    replies.push(reply);
                    continue;
                }
                Ok(Err(skip)) => skip,
                Err(failure) => return self.abandon(connection, failure),
            };
            return self.killed(connection, number, skip);
        }
        let mut seals = Vec::new();
        for (number, interest) in group.interests.iter().enumerate().take(replies.len()) {
            if left_out.contains(&number) {
                continue;
            }
            match interest.seal() {
                Sealing::Already => {}
                Sealing::Sealed => seals.push(interest),
                Sealing::Lost => {
                    seals.into_iter().for_each(Interest::unseal);
                    return self.killed(connection, number, Skip::Request(unread()));
                }
            }
        }
        let attempt = self.commit(connection, replies);
        if let Attempt::Failed(_) = attempt {
            seals.into_iter().for_each(Interest::unseal);
        }
        attempt
    }

    fn commit(&mut self, connection: &Connection, replies: Vec<Reply>) -> Attempt {
        match self.executor.control.commit() {
            Ok(()) => Attempt::Committed(replies),
            Err(failure) if failure.code == ffi::SQLITE_IOERR_FSYNC => {
                if connection.is_autocommit() {
                    Attempt::Refused
                } else {
                    self.abandon(connection, failure)
                }
            }
            Err(failure) => self.abandon(connection, failure),
        }
    }

    /// Ends an attempt because of one request. Some of them have rolled back already; a query that
    /// nobody waits for has not.
    fn killed(&mut self, connection: &Connection, request: usize, skip: Skip) -> Attempt {
        if !connection.is_autocommit()
            && let Err(failure) = self.executor.control.rollback()
        {
            return Attempt::Failed(failure.message);
        }
        Attempt::Killed(Kill { request, skip })
    }

    fn abandon(&mut self, connection: &Connection, failure: Failure) -> Attempt {
        if !connection.is_autocommit() {
            // If even this fails, the next BEGIN does too, and says so to its clients.
            let _ = self.executor.control.rollback();
        }
        Attempt::Failed(statement::full(connection, &failure).unwrap_or(failure.message))
    }

    /// Runs one request inside the group's transaction. The inner error is a kill; the outer one a
    /// failure of our own statements.
    fn run_request(
        &mut self,
        connection: &Connection,
        request: &Request,
        number: usize,
        skips: &Skips,
    ) -> Result<Result<Reply, Skip>, Failure> {
        if let Some(reply) = skips.requests.get(&number) {
            return Ok(Ok(reply.clone()));
        }
        if let Some(reply) = refused_as_a_whole(&self.executor, request) {
            return Ok(Ok(reply));
        }
        // What a transaction of the client's takes with it if it is killed.
        let mut open = Vec::new();
        if request.transaction {
            return self.run_transaction(connection, request);
        }
        let mut bytes_left = self.result_bytes_max;
        let mut reply = Reply::default();
        for (index, statement) in request.statements.iter().enumerate() {
            if self.executor.is_abandoned() {
                break;
            }
            if statement.sql.is_empty() {
                continue;
            }
            let skipped = skips.statements.get(&(number, index));
            let mut scope = scope_of(request);
            if let Some(skipped) = skipped {
                scope.pieces_max = skipped.pieces_kept;
            }
            let (mut outcome, _) = self
                .executor
                .run(connection, statement, scope, &mut bytes_left);
            let is_killed = connection.is_autocommit();
            if self.executor.pieces_kept.is_some() {
                open.clear();
            }
            if is_killed || self.executor.has_open_transaction() {
                let skipped = SkippedStatement {
                    outcome: outcome.clone(),
                    counters: self.executor.counters.now(),
                    pieces_kept: self.executor.pieces_kept.unwrap_or(0),
                };
                open.push((index, skipped));
            } else {
                open.clear();
            }
            if is_killed {
                return Ok(Err(Skip::Statements(open)));
            }
            if let Some(skipped) = skipped {
                outcome = skipped.outcome.clone();
                self.executor.counters.restore(skipped.counters);
            }
            reply.outcomes.push(outcome);
        }
        self.executor.end_request(connection, &mut reply.outcomes)?;
        Ok(Ok(reply))
    }

    /// Runs a request whose statements stand or fall together.
    fn run_transaction(
        &mut self,
        connection: &Connection,
        request: &Request,
    ) -> Result<Result<Reply, Skip>, Failure> {
        let before = self.executor.counters.now();
        let mut bytes_left = self.result_bytes_max;
        let mut reply = Reply::default();
        let mut has_failed = false;
        self.executor.control.open_savepoint()?;
        for statement in request
            .statements
            .iter()
            .filter(|statement| !statement.sql.is_empty())
        {
            let scope = scope_of(request);
            let (outcome, failure) =
                self.executor
                    .run(connection, statement, scope, &mut bytes_left);
            reply.outcomes.push(outcome);
            if connection.is_autocommit() {
                return Ok(Err(Skip::Request(reply)));
            }
            if failure.is_some() || self.executor.is_abandoned() {
                has_failed = true;
                break;
            }
        }
        if !has_failed && let Err(failure) = self.executor.check_foreign_keys(connection) {
            has_failed = true;
            reply = Reply {
                outcomes: Vec::new(),
                error: Some(failure.message),
            };
        }
        if has_failed {
            self.executor.end_request(connection, &mut [])?;
            self.executor.control.undo_savepoint()?;
            self.executor.counters.restore(before);
        } else {
            self.executor.keep_request()?;
            self.executor.end_request(connection, &mut [])?;
            self.executor.control.keep_savepoint()?;
        }
        Ok(Ok(reply))
    }
}

impl Skips {
    fn add(&mut self, request: usize, skip: Skip) {
        match skip {
            Skip::Statements(skipped) => {
                let skipped = skipped.into_iter();
                self.statements
                    .extend(skipped.map(|(index, skipped)| ((request, index), skipped)));
            }
            Skip::Request(reply) => {
                self.requests.insert(request, reply);
            }
        }
    }
}

/// The reply to a request that nobody waits for.
fn unread() -> Reply {
    Reply {
        outcomes: Vec::new(),
        error: Some("given up: nobody waits for the answer".to_owned()),
    }
}

/// What every connection that serves clients needs, before its authorizer is installed: rqlite's
/// defaults, where the bundled SQLite was built with others.
pub(crate) fn set_up(
    connection: &Connection,
    foreign_keys: bool,
    limits: &Limits,
) -> Result<(), SetupError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, foreign_keys)?;
    functions::install(connection, limits)?;
    Ok(limits.set(connection)?)
}

/// The reply to a request that is refused before anything of it runs.
pub(crate) fn refused_as_a_whole(executor: &Executor, request: &Request) -> Option<Reply> {
    // A limit that no statement could meet. Looked at before the texts are, which may take longer.
    let started = Instant::now();
    let time_max = request.statement_time_max;
    let has_expired = time_max.is_some_and(|time_max| started.elapsed() >= time_max);
    let is_disallowed = request
        .statements
        .iter()
        .any(|statement| executor.has_disallowed_pragma(&statement.sql));
    let error = if is_disallowed {
        "disallowed pragma"
    } else if has_expired {
        // Go's words for a time that is over before anything could run.
        "context deadline exceeded"
    } else {
        return None;
    };
    Some(Reply {
        outcomes: Vec::new(),
        error: Some(error.to_owned()),
    })
}

/// The circumstances of a request's statements.
pub(crate) fn scope_of(request: &Request) -> Scope {
    Scope {
        shape: request.shape,
        time_max: request.statement_time_max,
        is_transaction: request.transaction,
        pieces_max: usize::MAX,
        qualify_columns: request.qualify_columns,
    }
}
