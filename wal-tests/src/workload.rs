//! Concurrent writers of rows that can be told apart, and a record of what each was told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use crate::client::{Client, Outcome};
use crate::seed::Random;

/// The table that the writers fill. Nothing in it is unique on purpose: a row written twice must
/// show up as two rows.
pub const TABLE: &str = "CREATE TABLE item(key TEXT, payload TEXT, noise DEFAULT (random()))";

/// What a writer was told about one request.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Fate {
    /// It is committed.
    Acknowledged,
    /// It is certainly not committed.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// One row that a writer tried to write.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which row; no two attempts have the same key.
    pub key: String,
    /// What it should hold.
    pub payload: String,
    /// Which request it was part of: rows of one request stand or fall together.
    pub request: String,
    /// What the writer was told.
    pub fate: Fate,
}

/// Everything that all writers tried.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In no particular order.
    pub attempts: Vec<Attempt>,
}

/// Writers at work.
pub struct Workload {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

struct Shared {
    history: Mutex<History>,
    acknowledged: AtomicUsize,
    stop: AtomicBool,
}

impl Workload {
    /// Starts `writers` threads, each of which sends requests of one to four rows, one after the
    /// other, to nodes chosen at random, and waits up to `patience` for each answer. Keys start
    /// with `name`, so that several workloads can share a table.
    #[must_use]
    pub fn start(
        name: &str,
        addresses: &[String],
        writers: usize,
        patience: Duration,
        random: &mut Random,
    ) -> Self {
        let shared = Arc::new(Shared {
            history: Mutex::default(),
            acknowledged: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let start = |writer: usize| {
            let (shared, addresses) = (Arc::clone(&shared), addresses.to_vec());
            let random = random.fork();
            let client = Client::new(patience);
            let writer = format!("{name}-{writer}");
            std::thread::spawn(move || write(&writer, &shared, &addresses, &client, random))
        };
        let writers = (0..writers).map(start).collect();
        Self { shared, writers }
    }

    /// Rows acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the writers, each after the request that it is waiting for, and returns their record.
    ///
    /// # Panics
    ///
    /// When a writer has panicked.
    #[must_use]
    pub fn stop(self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().expect("writers do not panic");
        }
        std::mem::take(&mut *self.shared.history.lock().expect("writers do not panic"))
    }
}

impl History {
    /// How many rows had this fate.
    #[must_use]
    pub fn count(&self, fate: Fate) -> usize {
        self.attempts
            .iter()
            .filter(|attempt| attempt.fate == fate)
            .count()
    }
}

/// One writer.
fn write(writer: &str, shared: &Shared, addresses: &[String], client: &Client, mut random: Random) {
    let mut requests = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        requests += 1;
        let request = format!("{writer}-{requests}");
        let rows: Vec<(String, String)> = (0..=random.below(4))
            .map(|row| {
                let bytes = 1 + random.below(400);
                (
                    format!("{writer}-{request}-{row}"),
                    format!("{:0bytes$x}", random.bits()),
                )
            })
            .collect();
        let statements: Vec<_> = rows
            .iter()
            .map(|(key, payload)| {
                json!(["INSERT INTO item(key, payload) VALUES(?, ?)", key, payload])
            })
            .collect();
        let address = &addresses[random.below(addresses.len())];
        let fate = match client.execute(address, &json!(statements)) {
            Outcome::Answered(answer) if answer.error().is_none() => Fate::Acknowledged,
            // A statement failed, and with it the transaction: nothing of it may be there.
            Outcome::Answered(_) | Outcome::NotCommitted(_) => Fate::Refused,
            Outcome::Unknown(_) => Fate::Unknown,
        };
        if fate == Fate::Acknowledged {
            shared.acknowledged.fetch_add(rows.len(), Ordering::Relaxed);
        } else {
            // A dead node refuses at once; without a pause its writers would do nothing else.
            std::thread::sleep(Duration::from_millis(20));
        }
        let attempts = rows.into_iter().map(|(key, payload)| Attempt {
            key,
            payload,
            request: request.clone(),
            fate,
        });
        shared
            .history
            .lock()
            .expect("writers do not panic")
            .attempts
            .extend(attempts);
    }
}
