//! Requests that cannot share a transaction, because there is a VACUUM in them.

use std::slice;

use rusqlite::{Connection, ffi};

use super::{Group, GroupEnd, SqlCommit, Writer, refused_as_a_whole, scope_of, unread};
use crate::sqlite::interest::Sealing;
use crate::sqlite::tokens;
use crate::sqlite::values::{Reply, Request, Statement};

impl Writer {
    /// Runs a request with a VACUUM in it: that text in autocommit, every other one as a group.
    /// It commits along the way, so it is sealed from the start; what has not begun when interest
    /// is lost is left out nevertheless.
    pub(super) fn run_alone(&mut self, connection: &Connection, group: Group<'_>) -> GroupEnd {
        let [request] = group.requests else {
            unreachable!("the caller passes one request");
        };
        let interest = group.interest(0);
        let mut reply = Reply::default();
        let refused = refused_as_a_whole(&self.executor, request);
        let unwanted = interest.is_some_and(|interest| interest.seal() == Sealing::Lost);
        if let Some(refused) = refused.or_else(|| unwanted.then(unread)) {
            return GroupEnd {
                replies: vec![refused],
                sql_commit: SqlCommit::Done,
            };
        }
        let mut is_first = true;
        let has_vacuum = |statement: &Statement| tokens::has_vacuum(&statement.sql);
        let both_lack_it = |a: &Statement, b: &Statement| !has_vacuum(a) && !has_vacuum(b);
        for statements in request.statements.chunk_by(both_lack_it) {
            if group.is_lost(0) {
                break;
            }
            let before = self.executor.counters.now();
            let (part, is_refused) = if has_vacuum(&statements[0]) {
                self.executor.watch(interest);
                let (part, is_refused) = self.run_vacuum(connection, request, &statements[0]);
                self.executor.watch(None);
                is_first &= tokens::keyword(&statements[0].sql) == tokens::Keyword::Vacuum;
                (part, is_refused)
            } else {
                let single = Request {
                    statements: statements.to_vec(),
                    ..request.clone()
                };
                let single = Group {
                    requests: slice::from_ref(&single),
                    ..group
                };
                let mut end = self.run_group(connection, single);
                let part = end.replies.pop().unwrap_or_default();
                (part, end.sql_commit != SqlCommit::Done)
            };
            if is_refused {
                self.executor.counters.restore(before);
                let sql_commit = SqlCommit::Refused { partial: !is_first };
                return GroupEnd {
                    replies: vec![Reply::default()],
                    sql_commit,
                };
            }
            is_first = false;
            reply.error = reply.error.or(part.error);
            reply.outcomes.extend(part.outcomes);
        }
        GroupEnd {
            replies: vec![reply],
            sql_commit: SqlCommit::Done,
        }
    }

    /// Runs a text with a VACUUM in it. Also says whether a commit of it was refused.
    fn run_vacuum(
        &mut self,
        connection: &Connection,
        request: &Request,
        statement: &Statement,
    ) -> (Reply, bool) {
        let mut bytes_left = self.result_bytes_max;
        let unready = |message| {
            let reply = Reply {
                outcomes: Vec::new(),
                error: Some(message),
            };
            (reply, false)
        };
        if let Err(failure) = self.executor.forget_request(connection) {
            return unready(failure.message);
        }
        // The copy of the database is too large for memory, unlike the journals of savepoints.
        if let Err(error) = connection.execute_batch("PRAGMA temp_store=FILE") {
            return unready(error.to_string());
        }
        let (outcome, failure) =
            self.executor
                .run(connection, statement, scope_of(request), &mut bytes_left);
        if let Err(error) = connection.execute_batch("PRAGMA temp_store=MEMORY") {
            tracing::warn!(%error, "the journals of savepoints will be files");
        }
        let mut reply = Reply {
            outcomes: vec![outcome],
            error: None,
        };
        let ended = self.executor.end_request(connection, &mut reply.outcomes);
        reply.error = ended.err().map(|failure| failure.message);
        let is_refused = failure.is_some_and(|it| it.code == ffi::SQLITE_IOERR_FSYNC);
        (reply, is_refused)
    }
}
