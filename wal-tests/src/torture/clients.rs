//! The clients: each asks one thing after the other, of any node, and writes down what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::mix::{Asked, Mix};
use crate::client::{Client, Outcome};
use crate::history::{self, Action, Answer, Fate, Level, Operation, Reach, Thing};
use crate::seed::Random;
use crate::workload::{Attempt, History};

/// Clients at work.
pub(super) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What clients have in common.
struct Shared {
    since: Instant,
    stop: AtomicBool,
    next_id: AtomicU64,
    acknowledged: AtomicUsize,
    addresses: Vec<String>,
    /// How often each node was started anew.
    starts: Arc<Vec<AtomicU32>>,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    operations: Vec<Operation>,
    queued: History,
    tally: Tally,
}

/// How many requests there were, by kind and fate, and the reasons of those that failed.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Kind, fate, how many.
    pub requests: BTreeMap<(&'static str, Fate), usize>,
    /// The text of a failure, without its numbers, and how often it was given.
    pub reasons: BTreeMap<String, usize>,
    /// Answers that are no answers to what was asked.
    pub malformed: Vec<String>,
}

impl Clients {
    pub(super) fn start(clients: usize, addresses: Vec<String>, random: &mut Random) -> Self {
        let starts = addresses.iter().map(|_| AtomicU32::new(0)).collect();
        let shared = Arc::new(Shared {
            since: Instant::now(),
            stop: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            acknowledged: AtomicUsize::new(0),
            addresses,
            starts: Arc::new(starts),
            record: Mutex::default(),
        });
        let start = |number: usize| {
            let number = u32::try_from(number).expect("there are few clients");
            let one = One {
                number,
                shared: Arc::clone(&shared),
                client: Client::new(ANSWER_TIME_MAX),
                random: random.fork(),
                mix: Mix::new(number),
                index: 0,
                place: 0,
            };
            std::thread::spawn(move || one.work())
        };
        let threads = (0..clients).map(start).collect();
        Self { shared, threads }
    }

    /// Requests acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many requests are acknowledged.
    ///
    /// # Panics
    ///
    /// After a long time.
    #[track_caller]
    pub(super) fn wait_acknowledged(&self, goal: usize) {
        let deadline = Instant::now() + Duration::from_secs(180);
        while self.acknowledged() < goal {
            let found = self.acknowledged();
            assert!(
                Instant::now() < deadline,
                "{found} of {goal} requests acknowledged"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where it is counted how often each node was started anew: before its end is brought about,
    /// and again before it is started.
    pub(super) fn starts(&self) -> Arc<Vec<AtomicU32>> {
        Arc::clone(&self.shared.starts)
    }

    /// Ends the clients, each after the request that it waits for.
    pub(super) fn stop(self) -> (Vec<Operation>, History, Tally) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("clients do not panic");
        }
        let record = std::mem::take(&mut *self.shared.record.lock().expect("nobody panicked"));
        (record.operations, record.queued, record.tally)
    }
}

/// One client.
struct One {
    number: u32,
    shared: Arc<Shared>,
    client: Client,
    random: Random,
    mix: Mix,
    /// Of its last acknowledged write.
    index: u64,
    place: u64,
}

impl One {
    fn work(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
            let asked = self.mix.next(id, &mut self.random);
            let node = self.random.below(self.shared.addresses.len());
            let fate = match asked {
                Asked::Queued { wait } => self.queue(id, node, wait),
                Asked::Actions {
                    kind,
                    actions,
                    reach,
                } => self.ask(id, node, kind, actions, reach),
            };
            if fate == Fate::Acknowledged {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                // A dead node refuses at once; without a pause its clients would do nothing else.
                std::thread::sleep(Duration::from_millis(30));
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.shared.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One request, from its actions to its record.
    fn ask(
        &mut self,
        id: u64,
        node: usize,
        kind: &'static str,
        actions: Vec<Action>,
        reach: Reach,
    ) -> Fate {
        let mut operation = Operation {
            id,
            client: self.number,
            node: u8::try_from(node).expect("there are few nodes"),
            start: self.shared.starts[node].load(Ordering::SeqCst),
            actions,
            reach,
            begun: self.now(),
            ended: u64::MAX,
            fate: Fate::Unknown,
            answers: Vec::new(),
            index: None,
            place: None,
            floor: 0,
        };
        let address = self.shared.addresses[node].clone();
        let outcome = match reach {
            Reach::Read(level) => self.read(&address, level, &mut operation),
            Reach::Write { journalled } => self.write(&address, journalled, &operation),
        };
        operation.ended = self.now();
        // What was restarted meanwhile belongs to neither time.
        let start = self.shared.starts[node].load(Ordering::SeqCst);
        let stayed = start == operation.start;
        let failure = self.understand(outcome, &mut operation);
        if !stayed && reach == Reach::Read(Level::None) {
            operation.start = u32::MAX - u32::try_from(id % 0x4000_0000).unwrap_or(0);
        }
        let fate = operation.fate;
        let mut record = self.shared.record.lock().expect("clients do not panic");
        record.tally.count(kind, fate, failure);
        let is_read = matches!(reach, Reach::Read(_));
        // A read that failed says nothing.
        if fate == Fate::Acknowledged || !is_read {
            record.operations.push(operation);
        }
        fate
    }

    fn read(&mut self, address: &str, level: Level, operation: &mut Operation) -> Outcome {
        let mut endpoint = format!("/db/query?level={}", level.name());
        if !level.is_current() && self.index > 0 && self.random.chance(40) {
            endpoint.push_str(&format!("&raft_index={}", self.index));
            operation.floor = self.place;
        }
        let statements = history::read(&operation.actions);
        self.client.write(address, &endpoint, &statements)
    }

    fn write(&mut self, address: &str, journalled: bool, operation: &Operation) -> Outcome {
        let reads = operation.actions.iter().any(Action::is_read);
        let endpoint = match (reads, operation.actions.len()) {
            (true, _) => "/db/request?transaction&raft_index",
            (false, 1) if !journalled => "/db/execute?raft_index",
            (false, _) => "/db/execute?transaction&raft_index",
        };
        let statements = history::write(&operation.actions, journalled.then_some(operation.id));
        self.client.write(address, endpoint, &statements)
    }

    /// Fills in what came of it; returns why it failed, if it did.
    fn understand(&mut self, outcome: Outcome, operation: &mut Operation) -> Option<Failure> {
        let answer = match outcome {
            Outcome::Answered(answer) => answer,
            Outcome::NotCommitted(why) => {
                operation.fate = Fate::Refused;
                return Some(Failure::Said(why));
            }
            Outcome::Unknown(why) => return Some(Failure::Said(why)),
        };
        if let Some(error) = answer.error() {
            // The transaction failed as a whole.
            operation.fate = Fate::Refused;
            return Some(Failure::Said(error.to_owned()));
        }
        let actions = &operation.actions;
        let understood = match operation.reach {
            Reach::Read(_) => match answer.results.as_slice() {
                [result] => history::understand_read(actions, result)
                    .map(|(place, answers)| (Some(place), answers)),
                _ => Err("not one result".to_owned()),
            },
            Reach::Write { journalled } => {
                history::understand_write(actions, journalled, &answer.results)
            }
        };
        match understood {
            Ok((place, answers)) => {
                operation.fate = Fate::Acknowledged;
                operation.answers = answers;
                operation.place = place;
                operation.index = answer.raft_index;
                if operation.is_journalled() {
                    self.index = answer.raft_index.unwrap_or(0);
                    self.place = place.unwrap_or(0);
                }
                self.mix.learn(operation);
                None
            }
            Err(why) => {
                let what = format!("{actions:?} was answered {:?}: {why}", answer.results);
                Some(Failure::Malformed(what))
            }
        }
    }

    /// A row by way of the queue, of whose fate only one who waits is told.
    fn queue(&mut self, id: u64, node: usize, wait: bool) -> Fate {
        let endpoint = match wait {
            true => "/db/execute?queue&wait",
            false => "/db/execute?queue",
        };
        let attempt = |fate| Attempt {
            key: id.to_string(),
            payload: format!("{:016x}", id.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            request: id.to_string(),
            fate,
        };
        let Attempt { key, payload, .. } = attempt(Fate::Unknown);
        let insert = json!([["INSERT INTO item(key, payload) VALUES(?, ?)", key, payload]]);
        let address = &self.shared.addresses[node];
        let (told, failure) = match self.client.write(address, endpoint, &insert) {
            Outcome::Answered(answer) if answer.error().is_none() => (Fate::Acknowledged, None),
            Outcome::Answered(answer) => {
                let error = answer.error().unwrap_or_default().to_owned();
                (Fate::Unknown, Some(Failure::Said(error)))
            }
            Outcome::NotCommitted(why) => (Fate::Refused, Some(Failure::Said(why))),
            Outcome::Unknown(why) => (Fate::Unknown, Some(Failure::Said(why))),
        };
        let fate = match (told, wait) {
            // It is in the queue of a node that may die.
            (Fate::Acknowledged, false) => Fate::Unknown,
            (told, _) => told,
        };
        let mut record = self.shared.record.lock().expect("clients do not panic");
        let kind = if wait { "queue and wait" } else { "queue" };
        record.tally.count(kind, told, failure);
        record.queued.attempts.push(attempt(fate));
        told
    }
}

/// Why a request was not acknowledged.
enum Failure {
    Said(String),
    Malformed(String),
}

impl Tally {
    fn count(&mut self, kind: &'static str, fate: Fate, failure: Option<Failure>) {
        *self.requests.entry((kind, fate)).or_default() += 1;
        match failure {
            None => {}
            Some(Failure::Malformed(what)) => self.malformed.push(what),
            Some(Failure::Said(why)) => {
                let words: String = why
                    .chars()
                    .map(|c| if c.is_ascii_digit() { '#' } else { c })
                    .take(120)
                    .collect();
                let short = words
                    .replace("##", "#")
                    .replace("##", "#")
                    .replace("##", "#");
                *self.reasons.entry(short).or_default() += 1;
            }
        }
    }
}

/// Number and operation of every row of the journal, in the order of the numbers.
pub(super) fn journal(database: &Connection) -> rusqlite::Result<Vec<(u64, u64)>> {
    let mut select = database.prepare("SELECT n, operation FROM journal ORDER BY n")?;
    let rows = select.query_map([], |row| {
        let [n, operation]: [i64; 2] = [row.get(0)?, row.get(1)?];
        Ok((n.unsigned_abs(), operation.unsigned_abs()))
    })?;
    rows.collect()
}

/// Adds a read of each register, list and set that anybody wrote to, after everything else: so the
/// checkers that believe only what was read learn how it ended.
pub(super) fn add_last_reads(
    operations: &mut Vec<Operation>,
    database: &Connection,
) -> rusqlite::Result<()> {
    let mut things: BTreeSet<Thing> = BTreeSet::new();
    let (mut latest, mut id) = (0, 0);
    for operation in operations.iter() {
        let ended = operation.is_acknowledged().then_some(operation.ended);
        latest = latest.max(operation.begun).max(ended.unwrap_or(0));
        id = id.max(operation.id);
        things.extend(operation.actions.iter().map(Action::thing));
    }
    for thing in things {
        let action = match thing {
            Thing::Register(key) => Action::ReadRegister(key),
            Thing::List(key) => Action::ReadList(key),
            Thing::Set(key) => Action::ReadSet(key),
            _ => continue,
        };
        let actions = vec![action];
        let statement = history::read(&actions);
        let sql = statement[0].as_str().unwrap_or_default().to_owned();
        let cell: Value = database.query_row(&sql, [], |row| {
            Ok(match row.get_ref(1)? {
                rusqlite::types::ValueRef::Null => Value::Null,
                rusqlite::types::ValueRef::Integer(number) => json!(number),
                other => json!(other.as_str()?),
            })
        })?;
        id += 1;
        let result = json!({ "values": [[0, cell]] });
        let answers = history::understand_read(&actions, &result);
        let (_, answers): (u64, Vec<Answer>) = answers.expect("SQLite gave these values");
        operations.push(Operation {
            id,
            client: u32::MAX,
            node: u8::MAX,
            start: 0,
            actions,
            reach: Reach::Read(Level::Strong),
            begun: latest + 1,
            ended: latest + 2,
            fate: Fate::Acknowledged,
            answers,
            index: None,
            place: None,
            floor: 0,
        });
    }
    Ok(())
}

/// How long a client waits for its answer: through an election, and not much longer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
