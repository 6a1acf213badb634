//! VACUUM and PRAGMA optimize at intervals, run by the leader like any write of a client.
//!
//! Each node keeps its own clocks, from its start on, and lets a turn pass in which it does not
//! lead. After a change of the leader a turn may therefore come earlier or later than the interval
//! says; over time there are as many.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::node::{Answer, Node, NodeCounter, Request, Served, Shape, Statement, WriteRequest};

/// What is done how often; `None`: never.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UpkeepOptions {
    /// VACUUM: gives back the space of what was deleted, and orders the pages.
    pub vacuum: Option<Duration>,
    /// PRAGMA optimize: brings the statistics of the query planner up to date.
    pub optimize: Option<Duration>,
}

/// The upkeep of one node; dropping it ends it, but not a statement that is under way.
#[derive(Debug)]
pub struct Upkeep(#[expect(dead_code, reason = "held for its drop")] JoinSet<()>);

/// One kind of upkeep.
#[derive(Clone, Copy)]
struct Task {
    what: &'static str,
    sql: &'static str,
    done: NodeCounter,
    failed: NodeCounter,
}

impl Upkeep {
    /// Starts the clocks. To be called on a runtime.
    #[must_use]
    pub fn start(node: &Node, options: UpkeepOptions) -> Self {
        let mut tasks = JoinSet::new();
        for (task, interval) in [(VACUUM, options.vacuum), (OPTIMIZE, options.optimize)] {
            if let Some(interval) = interval {
                tasks.spawn(repeat(node.clone(), task, interval));
            }
        }
        Self(tasks)
    }
}

async fn repeat(node: Node, task: Task, interval: Duration) {
    let mut clock = interval_at(Instant::now() + interval, interval);
    // A turn that took longer than the interval must not be followed by another at once.
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        if !node.leads() {
            continue;
        }
        let begun = Instant::now();
        match run(&node, task.sql).await {
            Ok(()) => {
                node.counters().count(task.done);
                tracing::info!(what = task.what, elapsed = ?begun.elapsed(), "upkeep done");
            }
            Err(error) => {
                node.counters().count(task.failed);
                tracing::warn!(what = task.what, error, "upkeep failed");
            }
        }
    }
}

async fn run(node: &Node, sql: &str) -> Result<(), String> {
    let statement = Statement {
        sql: sql.to_owned(),
        parameters: Vec::new(),
    };
    let request = Request {
        statements: vec![statement],
        transaction: false,
        qualify_columns: false,
        shape: Shape::Execute,
        statement_time_max: None,
    };
    let written = node.execute(WriteRequest::new(request, PATIENCE)).await;
    failure(&written.map_err(|refusal| refusal.to_string())?).map_or(Ok(()), Err)
}

/// What SQLite has against it, if anything.
fn failure(served: &Served) -> Option<String> {
    let reply = &served.reply;
    let refused = reply
        .outcomes
        .iter()
        .find_map(|outcome| match &outcome.answer {
            Answer::Failed(message) => Some(message.clone()),
            _ => None,
        });
    reply.error.clone().or(refused)
}

const VACUUM: Task = Task {
    what: "VACUUM",
    sql: "VACUUM",
    done: NodeCounter::AutoVacuums,
    failed: NodeCounter::AutoVacuumsFailed,
};

/// The mask: run ANALYZE where it is worth it, bounded in time, and look at all tables. By itself
/// the pragma looks at those that its own connection has queried, and the writer queries none.
const OPTIMIZE: Task = Task {
    what: "PRAGMA optimize",
    sql: "PRAGMA optimize(0x10012)",
    done: NodeCounter::AutoOptimizes,
    failed: NodeCounter::AutoOptimizesFailed,
};

/// A VACUUM takes as long as its database is large.
const PATIENCE: Duration = Duration::from_secs(3600);
