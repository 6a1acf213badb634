//! Clients, and what they may expect.
//!
//! Each client writes one request after the other: some rows that no other request writes, and its
//! own *mark*, which it raises to the number of the request. A read gives the marks of all clients.
//!
//! Verified of reads, at all levels: no mark is above what its client has begun to write, and none
//! is the number of a request that was certainly not committed. Linearizable and strong: no mark is
//! below what was acknowledged, or read at these levels, before the read began. Without guarantee:
//! on one life of a node, no mark goes back; and with a least index, none is below the writes up to
//! it. Of writes: an acknowledged write has a higher index than all that were acknowledged before
//! it began. The rows are compared with the database in the end, by the
//! [`checker`](crate::checker).
//!
//! Not verified: how old weak reads are; isolation between statements of different requests beyond
//! that; and time-outs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wallaby::node::{
    Answer, Level, Parameter, ReadRequest, Refusal, Request, Served, Shape, Statement, Value,
    WriteRequest,
};

use super::cluster::Cluster;
use crate::seed::Random;
use crate::workload::{Attempt, Fate, History};

/// The table of marks; that of the rows is the workload's.
pub const MARKS: &str = "CREATE TABLE mark(client INTEGER PRIMARY KEY, value INTEGER NOT NULL)";

/// What all clients know together.
#[derive(Default)]
pub struct Book {
    /// The rows.
    pub history: History,
    /// Last request begun, by client.
    begun: Vec<u64>,
    /// Last one acknowledged.
    acknowledged: Vec<u64>,
    /// The highest mark read by a linearizable or strong read that has ended.
    seen: Vec<u64>,
    /// Certainly not committed.
    refused: BTreeSet<(usize, u64)>,
    /// Marks that were read.
    read: BTreeSet<(usize, u64)>,
    /// Marks read without guarantee, by life.
    by_life: BTreeMap<u32, Vec<u64>>,
    index_max: u64,
    /// Index and marks of acknowledged writes.
    indexes: Vec<(u64, usize, u64)>,
    /// How many operations ended how.
    pub tally: Tally,
}

/// How many operations ended how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that were acknowledged.
    pub acknowledged: u64,
    /// Requests that were certainly not committed.
    pub refused: u64,
    /// Requests of which nobody knows.
    pub unknown: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Reads that were not.
    pub reads_failed: u64,
}

impl Book {
    /// For so many clients.
    #[must_use]
    pub fn new(clients: usize) -> Self {
        Self {
            begun: vec![0; clients],
            acknowledged: vec![0; clients],
            seen: vec![0; clients],
            ..Self::default()
        }
    }

    /// What can be said only in the end: marks that were read and never committed.
    #[must_use]
    pub fn dirty(&self) -> Vec<(usize, u64)> {
        self.refused.intersection(&self.read).copied().collect()
    }

    /// What the marks must be at least.
    #[must_use]
    pub fn least(&self) -> Vec<u64> {
        let pairs = self.acknowledged.iter().zip(&self.seen);
        pairs.map(|(told, seen)| *told.max(seen)).collect()
    }

    /// What the marks can be at most.
    #[must_use]
    pub fn most(&self) -> &[u64] {
        &self.begun
    }

    /// Notes marks that were found in the end.
    pub fn found(&mut self, marks: &[u64]) {
        self.read.extend(marks.iter().copied().enumerate());
    }
}

/// One client.
pub struct Client {
    /// Its number, from 0.
    pub number: usize,
    /// What it works on.
    pub cluster: Arc<Cluster>,
    /// What it shares with the others.
    pub book: Arc<Mutex<Book>>,
    /// What it does.
    pub random: Random,
    /// The longest time that it does nothing.
    pub pause_max: Duration,
}

impl Client {
    /// Works until the time is over.
    pub async fn work(mut self, until: Duration) {
        while super::threads::elapsed() < until {
            if self.random.chance(60) {
                self.write().await;
            } else {
                self.read().await;
            }
            let most = u64::try_from(self.pause_max.as_micros()).unwrap_or(u64::MAX);
            let pause = Duration::from_micros(self.random.number_below(most.max(1)));
            tokio::time::sleep(pause).await;
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that runs, if any does.
    fn some_node(&mut self) -> Option<usize> {
        let running = self.cluster.running();
        (!running.is_empty()).then(|| self.random.pick(&running))
    }

    async fn write(&mut self) {
        let Some(node) = self.some_node() else { return };
        let (value, index_before) = {
            let mut book = self.book();
            book.begun[self.number] += 1;
            (book.begun[self.number], book.index_max)
        };
        let name = format!("{}-{value}", self.number);
        let rows: Vec<(String, String)> = (0..1 + self.random.below(3))
            .map(|row| (format!("{name}-{row}"), self.payload()))
            .collect();
        let timeout = Duration::from_millis(500 + self.random.number_below(4500));
        let write = WriteRequest::new(writes(self.number, value, &rows), timeout);
        // As an HTTP client waits a little longer than it has told the node to.
        let patience = timeout + Duration::from_millis(500);
        let asked = tokio::time::timeout(patience, self.cluster.execute(node, write)).await;
        let (fate, index) = match &asked {
            Ok(Some(Ok(served))) if is_done(served) => (Fate::Acknowledged, served.raft_index),
            Ok(Some(Err(Refusal::Unknown(_) | Refusal::TimedOut(_))) | None) | Err(_) => {
                (Fate::Unknown, None)
            }
            // A statement failed, and with it the transaction; or all was refused.
            Ok(Some(Ok(_) | Err(_))) => (Fate::Refused, None),
        };
        let why = match &asked {
            Ok(Some(Err(refusal))) => refusal.to_string(),
            Ok(Some(Ok(served))) if fate != Fate::Acknowledged => format!("{:?}", served.reply),
            Ok(None) => "it stopped".to_owned(),
            Err(_) => "no answer".to_owned(),
            Ok(Some(Ok(_))) => String::new(),
        };
        let (client, events) = (self.number, &self.cluster.events);
        events.note(&format!(
            "client {client} write {value} at node {} -> {fate:?} {index:?} {why}",
            node + 1
        ));
        self.record_write(value, index_before, fate, index, rows);
    }

    fn record_write(
        &self,
        value: u64,
        index_before: u64,
        fate: Fate,
        index: Option<u64>,
        rows: Vec<(String, String)>,
    ) {
        let mut book = self.book();
        let attempts = rows.into_iter().map(|(key, payload)| Attempt {
            request: format!("{}-{value}", self.number),
            key,
            payload,
            fate,
        });
        book.history.attempts.extend(attempts);
        match fate {
            Fate::Acknowledged => {
                book.acknowledged[self.number] = value;
                book.tally.acknowledged += 1;
                match index {
                    Some(index) if index > index_before => {
                        book.index_max = book.index_max.max(index);
                        book.indexes.push((index, self.number, value));
                    }
                    index => self.cluster.events.violation(&format!(
                        "write {value} of client {} has index {index:?}, but began after \
                         {index_before} was acknowledged",
                        self.number
                    )),
                }
            }
            Fate::Refused => {
                book.refused.insert((self.number, value));
                book.tally.refused += 1;
            }
            Fate::Unknown => book.tally.unknown += 1,
        }
    }

    /// Most are short; some need several pages, a few more than one log entry.
    fn payload(&mut self) -> String {
        let bytes = match self.random.below(100) {
            0 => 100_000 + self.random.below(200_000),
            1..10 => 1000 + self.random.below(20_000),
            _ => 1 + self.random.below(300),
        };
        let word = format!("{:016x}", self.random.bits());
        word.repeat(bytes / word.len() + 1)
    }

    async fn read(&mut self) {
        let Some(node) = self.some_node() else { return };
        let level = self.random.pick(&[
            Level::Linearizable,
            Level::Linearizable,
            Level::None,
            Level::Strong,
            Level::Weak,
        ]);
        let timeout = Duration::from_millis(500 + self.random.number_below(2000));
        let statement = Statement {
            sql: "SELECT client, value FROM mark".to_owned(),
            parameters: Vec::new(),
        };
        let request = Request {
            statements: vec![statement],
            transaction: false,
            shape: Shape::Query,
            statement_time_max: None,
            qualify_columns: false,
        };
        let mut read = ReadRequest::new(request, level, timeout);
        let life = self.cluster.life_number(node).unwrap_or(0);
        let waits_for_index = level == Level::None && self.random.chance(30);
        let least = {
            let book = self.book();
            if waits_for_index {
                read.index_min = book.index_max;
            }
            match level {
                Level::Linearizable | Level::Strong => book.least(),
                Level::None => {
                    let floor = book.by_life.get(&life).cloned();
                    let mut floor = floor.unwrap_or_else(|| vec![0; book.begun.len()]);
                    let covered = book.indexes.iter();
                    for (_, client, value) in covered.filter(|(index, ..)| *index <= read.index_min)
                    {
                        floor[*client] = floor[*client].max(*value);
                    }
                    floor
                }
                Level::Weak => vec![0; book.begun.len()],
            }
        };
        let patience = timeout + Duration::from_millis(500);
        let asked = tokio::time::timeout(patience, self.cluster.query(node, read)).await;
        let marks = match &asked {
            Ok(Some(Ok(served))) => marks(served, least.len()),
            _ => None,
        };
        let (client, events) = (self.number, &self.cluster.events);
        events.note(&format!(
            "client {client} reads {level:?} at node {} -> {marks:?}",
            node + 1
        ));
        let Some(marks) = marks else {
            self.book().tally.reads_failed += 1;
            return;
        };
        self.check(node, level, life, &least, &marks);
    }

    fn check(&self, node: usize, level: Level, life: u32, least: &[u64], marks: &[u64]) {
        let mut book = self.book();
        book.tally.reads += 1;
        book.read.extend(marks.iter().copied().enumerate());
        for (client, &mark) in marks.iter().enumerate() {
            if mark < least[client] || mark > book.begun[client] {
                self.cluster.events.violation(&format!(
                    "a read at level {level:?} on node {} sees mark {mark} of client {client}, \
                     which must be from {} to {}",
                    node + 1,
                    least[client],
                    book.begun[client]
                ));
            }
        }
        let floor = match level {
            Level::Linearizable | Level::Strong => &mut book.seen,
            Level::None => {
                let clients = marks.len();
                book.by_life.entry(life).or_insert_with(|| vec![0; clients])
            }
            Level::Weak => return,
        };
        for (floor, mark) in floor.iter_mut().zip(marks) {
            *floor = (*floor).max(*mark);
        }
    }
}

fn is_done(served: &Served) -> bool {
    let failed = |answer: &Answer| matches!(answer, Answer::Failed(_));
    let mut outcomes = served.reply.outcomes.iter();
    served.reply.error.is_none() && !outcomes.any(|outcome| failed(&outcome.answer))
}

/// Rows and mark of one request, as one transaction.
fn writes(client: usize, value: u64, rows: &[(String, String)]) -> Request {
    let parameter = |value: Value| Parameter { name: None, value };
    let text = |text: &String| parameter(Value::Text(text.clone().into_bytes()));
    let insert = |(key, payload): &(String, String)| Statement {
        sql: "INSERT INTO item(key, payload) VALUES(?, ?)".to_owned(),
        parameters: vec![text(key), text(payload)],
    };
    let raise = Statement {
        sql: format!(
            "INSERT INTO mark VALUES({client}, {value}) \
             ON CONFLICT(client) DO UPDATE SET value = max(value, excluded.value)"
        ),
        parameters: Vec::new(),
    };
    Request {
        statements: rows.iter().map(insert).chain([raise]).collect(),
        transaction: true,
        shape: Shape::Execute,
        statement_time_max: None,
        qualify_columns: false,
    }
}

/// The marks of all clients; `None` if there are none to be read yet.
fn marks(served: &Served, clients: usize) -> Option<Vec<u64>> {
    let [outcome] = served.reply.outcomes.as_slice() else {
        return None;
    };
    let Answer::Rows(rows) = &outcome.answer else {
        return None;
    };
    let mut marks = vec![0; clients];
    for row in &rows.values {
        if let [Value::Integer(client), Value::Integer(value)] = row[..] {
            marks[usize::try_from(client).ok()?] = u64::try_from(value).ok()?;
        }
    }
    Some(marks)
}
