//! Queries that take less time than handing them to another thread.
//!
//! Which ones do is learnt: a query whose texts were answered in next to no time is run by the
//! thread that asks the next time. Its parameters, or the data, may make it take longer than that;
//! then it is given up after a moment, run by a thread of the pool, and forgotten here.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::interest::Interest;
use super::reader::Reader;
use super::readers::Unread;
use super::values::{Reply, Request};
use super::writer::SetupError;

#[derive(Default)]
pub(crate) struct Prompt {
    state: Mutex<State>,
    hashing: RandomState,
}

#[derive(Default)]
struct State {
    /// The texts of requests that are known to be quick, hashed.
    known: HashSet<u64>,
    idle: Vec<Reader>,
    /// How many readers there are, idle or not.
    readers: usize,
    is_closed: bool,
}

impl Prompt {
    /// Learns from a request that was answered in this time.
    pub(crate) fn note(&self, request: &Request, elapsed: Duration) {
        if elapsed > QUICK || !is_small(request) {
            return;
        }
        let key = self.key(request);
        let mut state = self.state();
        if state.known.len() >= KNOWN_MAX {
            state.known.clear();
        }
        state.known.insert(key);
    }

    /// Runs a request if it is known to be quick; else, or if it turns out not to be, returns it.
    pub(crate) fn run(
        &self,
        request: Request,
        interest: &Interest,
        open: impl FnOnce() -> Result<Reader, SetupError>,
    ) -> Result<Result<Reply, Unread>, Request> {
        if !is_small(&request) {
            return Err(request);
        }
        let key = self.key(&request);
        let Some(mut reader) = self.take(key, open) else {
            return Err(request);
        };
        let read = reader.read_within(&request, interest, PATIENCE);
        self.put_back(reader);
        match read {
            Some(Ok(reply)) => Ok(Ok(reply)),
            Some(Err(damage)) => Ok(Err(Unread { damage, request })),
            None => {
                self.state().known.remove(&key);
                Err(request)
            }
        }
    }

    /// A reader for a request that is known; `None` also if as many as may be are in use.
    fn take(&self, key: u64, open: impl FnOnce() -> Result<Reader, SetupError>) -> Option<Reader> {
        let mut state = self.state();
        if state.is_closed || !state.known.contains(&key) {
            return None;
        }
        if let Some(reader) = state.idle.pop() {
            return Some(reader);
        }
        if state.readers >= READERS_MAX {
            return None;
        }
        state.readers += 1;
        drop(state);
        let opened = open();
        if opened.is_err() {
            // A thread of the pool meets the same error, and reports it.
            self.state().readers -= 1;
        }
        opened.ok()
    }

    fn put_back(&self, reader: Reader) {
        let mut state = self.state();
        if reader.is_at_rest() && !state.is_closed {
            state.idle.push(reader);
        } else {
            drop(state);
            drop(reader);
            self.state().readers -= 1;
        }
    }

    /// Runs nothing more, and waits until all connections are closed.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let idle = std::mem::take(&mut state.idle);
        state.readers -= idle.len();
        drop(state);
        drop(idle);
        while self.state().readers > 0 {
            std::thread::sleep(CLOSE_POLL);
        }
    }

    fn key(&self, request: &Request) -> u64 {
        let texts: Vec<&str> = request
            .statements
            .iter()
            .map(|statement| statement.sql.as_str())
            .collect();
        self.hashing.hash_one((texts, request.transaction))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a request can be compiled, and its texts hashed, in no time, on any thread's stack:
/// SQLite compiles nested expressions recursively.
fn is_small(request: &Request) -> bool {
    let texts = request.statements.iter();
    texts.map(|statement| statement.sql.len()).sum::<usize>() <= TEXT_BYTES_MAX
}

/// As much as handing a query to another thread takes, many times over.
const QUICK: Duration = Duration::from_micros(200);
/// A thread that serves others is kept for so long at most, but for a single slow instruction.
const PATIENCE: Duration = Duration::from_micros(1000);
const TEXT_BYTES_MAX: usize = 1024;
const KNOWN_MAX: usize = 1024;
/// More threads than these do not ask at a time, mostly.
const READERS_MAX: usize = 4;
const CLOSE_POLL: Duration = Duration::from_millis(1);
