//! Groups and loads on the owner thread, and what becomes of them when a page they need is damaged.

use std::slice;

use super::super::gate::Landed;
use super::super::proposer::Ticket;
use super::super::repair::wait_mended;
use super::{GroupEnd, Load, OwnerThread, State};
use crate::sqlite::{Damage, Interest, Reply, Request, SqlCommit, Writer};

impl OwnerThread {
    /// Runs a group. What met a damaged page was not committed, and is run again once the page is
    /// mended; without hope for that, request by request, so that only those who need the page are
    /// refused.
    pub(super) fn run_group(
        &mut self,
        mut requests: Vec<Request>,
        interests: &[Interest],
        ticket: Ticket,
    ) -> Option<GroupEnd> {
        let mut rest = Vec::new();
        for _ in 0..MENDINGS_MAX {
            let (end, damage) = self.attempt(&requests, interests, ticket.clone())?;
            let Some(damage) = damage.filter(|_| is_undone(&end.landed)) else {
                return Some(with_rest(end, requests, rest));
            };
            if wait_mended(&self.context.repairs, damage) {
                continue;
            }
            if requests.len() == 1 {
                let end = GroupEnd {
                    replies: vec![Reply::default()],
                    sql_commit: SqlCommit::Done,
                    refusal: Some(self.context.repairs.explain(damage)),
                    ..end
                };
                return Some(with_rest(end, requests, rest));
            }
            rest.splice(0..0, requests.split_off(1));
        }
        let end = GroupEnd {
            replies: vec![Reply::default(); requests.len()],
            rest: Vec::new(),
            sql_commit: SqlCommit::Done,
            landed: Landed::default(),
            is_stepwise: false,
            refusal: Some("pages are damaged again and again on the leader".to_owned()),
        };
        Some(with_rest(end, requests, rest))
    }

    fn attempt(
        &mut self,
        requests: &[Request],
        interests: &[Interest],
        ticket: Ticket,
    ) -> Option<(GroupEnd, Option<Damage>)> {
        let State::Open(open) = &mut self.state else {
            return None;
        };
        let is_stepwise = matches!(requests, [request] if Writer::runs_alone(request));
        // What others met on this connection is no concern of this group.
        let _ = open.database.take_damage();
        self.context.desk.open(ticket);
        let connection = open.database.connection();
        let interests = &interests[..interests.len().min(requests.len())];
        let end = open.writer.run_while(connection, requests, interests);
        let damage = open.database.take_damage();
        let end = GroupEnd {
            replies: end.replies,
            rest: Vec::new(),
            sql_commit: end.sql_commit,
            landed: self.context.desk.close(),
            is_stepwise,
            refusal: None,
        };
        Some((end, damage))
    }

    pub(super) fn run_load(&mut self, load: Load, ticket: Ticket) -> Option<GroupEnd> {
        let (path, _files) = match load {
            Load::Script(request, interest) => {
                return self.run_group(vec![request], slice::from_ref(&interest), ticket);
            }
            Load::Database { path, _files } => (path, _files),
        };
        let State::Open(open) = &mut self.state else {
            return None;
        };
        let _ = open.database.take_damage();
        self.context.desk.open(ticket);
        // SQLite reads each page before it replaces it; whatever it finds there is of no matter.
        open.database.be_lenient(true);
        let end = open.writer.replace(open.database.connection_mut(), &path);
        open.database.be_lenient(false);
        Some(GroupEnd {
            replies: end.replies,
            rest: Vec::new(),
            sql_commit: end.sql_commit,
            landed: self.context.desk.close(),
            is_stepwise: false,
            refusal: None,
        })
    }
}

/// Whether nothing of a group was proposed.
fn is_undone(landed: &Landed) -> bool {
    landed.committed.is_none() && landed.discarded.is_none()
}

/// Adds what was not run: behind the replies, and what was left out of the attempt.
fn with_rest(end: GroupEnd, mut requests: Vec<Request>, left_out: Vec<Request>) -> GroupEnd {
    let mut rest = match end.sql_commit {
        SqlCommit::Done => requests.split_off(end.replies.len().min(requests.len())),
        // All clients get the reason, so nothing more is run.
        SqlCommit::Refused { .. } => return end,
    };
    rest.extend(left_out);
    GroupEnd { rest, ..end }
}

/// How many damaged pages one group waits for.
const MENDINGS_MAX: usize = 16;
