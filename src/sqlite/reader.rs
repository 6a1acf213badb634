//! One read-only connection, and what clients run on it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::authorizer::Guard;
use super::interest::Interest;
use super::readers::{ReadersOptions, Unread};
use super::statement::Executor;
use super::values::{Reply, Request, Shape};
use super::vfs;
use super::witness::{Damage, Witness};
use super::writer::{SetupError, refused_as_a_whole, scope_of, set_up};

/// One connection with what runs on it. The order matters: prepared statements go first.
pub(crate) struct Reader {
    executor: Executor,
    connection: Connection,
    result_bytes_max: usize,
}

impl Reader {
    /// Opens one that ends what runs when `cancelled` is set. Queries see no page that is not as
    /// the witness knows it.
    ///
    /// # Errors
    /// There is no database, or it cannot be read.
    pub(crate) fn open(
        options: &ReadersOptions,
        witness: Option<&Arc<Witness>>,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Self, SetupError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match witness {
            Some(witness) => {
                let opened = Connection::open_with_flags_and_vfs(&options.path, flags, vfs::NAME)?;
                vfs::trust_only(&opened, witness)
                    .map_err(|error| SetupError::Sqlite(error.to_string()))?;
                opened
            }
            None => Connection::open_with_flags(&options.path, flags)?,
        };
        set_up(&connection, options.foreign_keys, &options.limits)?;
        options.extensions.load(&connection)?;
        // What a query sorts or materialises stays in memory, where it is bounded: files would lie
        // outside of the data directory, and could fill a disk.
        connection.execute_batch(
            "PRAGMA query_only=ON; PRAGMA wal_autocheckpoint=0; PRAGMA temp_store=MEMORY;",
        )?;
        let guard = Guard::new(options.foreign_keys, Arc::clone(cancelled));
        guard.give_way_after(GIVE_WAY);
        Ok(Self {
            executor: Executor::new(&connection, guard, options.foreign_keys)?,
            connection,
            result_bytes_max: options.limits.result_bytes_max,
        })
    }

    /// Runs a request for as long as there is interest in it, and returns it with the reply.
    ///
    /// # Errors
    /// It met a page that is damaged.
    pub(crate) fn read(
        &mut self,
        request: Request,
        interest: &Interest,
    ) -> Result<(Request, Reply), Unread> {
        self.executor.watch(Some(interest));
        let _ = vfs::take_damage(&self.connection);
        let reply = self.run(&request);
        self.executor.watch(None);
        // Whatever came of it, it may come from a page that could not be read.
        match vfs::take_damage(&self.connection) {
            Some(damage) => Err(Unread { damage, request }),
            None => Ok((request, reply)),
        }
    }

    /// The same, within this time. `None`: it takes longer, and was given up.
    pub(crate) fn read_within(
        &mut self,
        request: &Request,
        interest: &Interest,
        time: Duration,
    ) -> Option<Result<Reply, Damage>> {
        self.executor.watch(Some(interest));
        let _ = vfs::take_damage(&self.connection);
        self.executor.give_up_at(Some(Instant::now() + time));
        let reply = self.run(request);
        let is_given_up = self.executor.give_up_at(None);
        self.executor.watch(None);
        match vfs::take_damage(&self.connection) {
            Some(damage) => Some(Err(damage)),
            None if is_given_up => None,
            None => Some(Ok(reply)),
        }
    }

    /// Whether all statements of a request only read (`sqlite3_stmt_readonly`).
    pub(crate) fn is_read_only(&self, request: &Request, interest: &Interest) -> bool {
        self.executor.watch(Some(interest));
        let mut statements = request.statements.iter();
        let is_read_only =
            statements.all(|statement| self.executor.is_read_only(&self.connection, statement));
        self.executor.watch(None);
        is_read_only
    }

    /// Whether no transaction is open: one that is would show an old state to all later queries.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.connection.is_autocommit()
    }

    /// Whether the thread that ran a query has a low priority now.
    pub(crate) fn has_given_way(&self) -> bool {
        self.executor.has_given_way()
    }

    /// Runs the statements of a request: with `transaction` on one state of the database and up to
    /// the first failure, else each by itself.
    fn run(&mut self, request: &Request) -> Reply {
        if let Some(reply) = refused_as_a_whole(&self.executor, request) {
            return reply;
        }
        let begun = self.executor.forget_request(&self.connection);
        let begun = begun.and_then(|()| match request.transaction {
            true => self.executor.control.begin_deferred(),
            false => Ok(()),
        });
        if let Err(failure) = begun {
            return Reply {
                outcomes: Vec::new(),
                error: Some(failure.message),
            };
        }
        let mut scope = scope_of(request);
        scope.shape = Shape::Query;
        let mut reply = Reply::default();
        let mut bytes_left = self.result_bytes_max;
        for statement in request
            .statements
            .iter()
            .filter(|statement| !statement.sql.is_empty())
        {
            let (outcome, failure) =
                self.executor
                    .run(&self.connection, statement, scope, &mut bytes_left);
            reply.outcomes.push(outcome);
            if (request.transaction && failure.is_some()) || self.executor.is_abandoned() {
                break;
            }
        }
        let outcomes = if request.transaction {
            &mut []
        } else {
            reply.outcomes.as_mut_slice()
        };
        // Should it fail, the next line or the next connection makes up for it.
        let _ = self.executor.end_request(&self.connection, outcomes);
        if !self.connection.is_autocommit() {
            // Should it fail, the connection is opened anew: see `Readers`.
            let _ = self.executor.control.rollback();
        }
        reply
    }
}

/// A query that has run for so long gives way to others.
const GIVE_WAY: Duration = Duration::from_secs(1);
