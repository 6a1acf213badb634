//! A key in a store that names the leader. Whoever makes the key starts the cluster; whoever finds
//! it joins the node that it names.
//!
//! To make the key is a promise that must outlive a crash: the node that made it and was killed
//! before it had a cluster has to start one, or nobody ever will. But a node that *lost* its data,
//! which the key still names because it led, must not: its cluster goes on elsewhere. So the promise
//! is written into the data directory (`claimed`) before the key is made.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::DiscoveryOptions;
use crate::node::Found;

/// What the key says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Entry {
    /// The node's name.
    pub(super) id: String,
    /// The URL of its HTTP interface.
    pub(super) api_addr: String,
    /// Its Raft address.
    pub(super) addr: String,
}

impl Entry {
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts can be written as JSON")
    }

    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("the key holds something else than a node: {error}"))
    }
}

/// Where the key is kept. All of it blocks; an error is one line for the operator.
pub(super) trait Store: std::fmt::Debug + Send + Sync {
    /// The value of `-disco-mode`.
    fn mode(&self) -> &'static str;

    /// The key, if there is one.
    fn get(&self) -> Result<Option<Entry>, String>;

    /// Makes the key unless it exists; whether it was made.
    fn create(&self, entry: &Entry) -> Result<bool, String>;

    /// Makes or replaces the key.
    fn set(&self, entry: &Entry) -> Result<(), String>;
}

/// The key, and this node's place in it.
#[derive(Debug)]
pub struct Registry {
    store: Box<dyn Store>,
    own: Entry,
    claim: PathBuf,
    may_found: bool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// When the store last answered.
    contact: Option<Instant>,
    /// When it last did not, and why.
    failure: Option<(Instant, String)>,
    /// What was said about the key last.
    told: Option<&'static str>,
}

impl Registry {
    pub(super) fn new(store: Box<dyn Store>, options: DiscoveryOptions) -> Self {
        Self {
            store,
            own: Entry {
                id: options.name,
                api_addr: options.http_addr,
                addr: options.raft_addr,
            },
            claim: options.data_dir.join("claimed"),
            may_found: options.may_found,
            seen: Mutex::default(),
        }
    }

    /// Whom to join, or that there is nobody. A store that failed is left alone for a while.
    pub(super) async fn look(self: Arc<Self>, may_found: bool) -> Found {
        let failed = self.seen().failure.as_ref().map(|(at, _)| at.elapsed());
        if failed.is_some_and(|since| since < RETRY) {
            return Found::Silence;
        }
        let asked = Arc::clone(&self);
        let may_found = may_found && self.may_found;
        let found = tokio::task::spawn_blocking(move || asked.ask(may_found)).await;
        let found = found.unwrap_or_else(|error| Err(error.to_string()));
        self.note(&found);
        found.unwrap_or(Found::Silence)
    }

    fn ask(&self, may_found: bool) -> Result<Found, String> {
        match self.store.get()? {
            Some(leader) if leader.id != self.own.id || leader.addr != self.own.addr => {
                if may_found {
                    self.unclaim()?;
                }
                Ok(Found::Nodes(vec![leader.addr]))
            }
            // The promise of a node that was killed before it could keep it.
            Some(_) if may_found && self.claim.exists() => Ok(Found::Alone),
            Some(_) => {
                if may_found {
                    self.tell(
                        "the key names this node, which has no data: waiting until another one \
                         leads and is named; if no other node has data, remove the key",
                    );
                }
                Ok(Found::Nodes(Vec::new()))
            }
            None if may_found => {
                self.claim()?;
                match self.store.create(&self.own)? {
                    true => {
                        tracing::info!(key = ?self.own, "this node made the key");
                        Ok(Found::Alone)
                    }
                    // Somebody was faster; the next look finds out who.
                    false => Ok(Found::Nodes(Vec::new())),
                }
            }
            None => {
                self.tell("there is no leader to be joined yet");
                Ok(Found::Nodes(Vec::new()))
            }
        }
    }

    /// Registers this node, which leads. Blocks.
    pub(super) fn register(&self) -> Result<(), String> {
        let registered = self.store.set(&self.own);
        self.note(&registered);
        registered
    }

    fn claim(&self) -> Result<(), String> {
        let write = || {
            fs::File::create(&self.claim)?.sync_all()?;
            match self.claim.parent() {
                Some(dir) => fs::File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|error| format!("{}: {error}", self.claim.display()))
    }

    fn unclaim(&self) -> Result<(), String> {
        match fs::remove_file(&self.claim) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", self.claim.display()))
            }
            _ => Ok(()),
        }
    }

    /// Remembers how it went; logs a failure once, and its end.
    fn note<T>(&self, outcome: &Result<T, String>) {
        let mode = self.store.mode();
        let mut seen = self.seen();
        match outcome {
            Ok(_) => {
                seen.contact = Some(Instant::now());
                if seen.failure.take().is_some() {
                    tracing::info!(mode, "the store answers");
                }
            }
            Err(error) => {
                let known = seen
                    .failure
                    .as_ref()
                    .is_some_and(|(_, known)| known == error);
                if !known {
                    tracing::warn!(
                        mode,
                        error,
                        "the store does not do what it is asked, trying on"
                    );
                }
                seen.failure = Some((Instant::now(), error.clone()));
            }
        }
    }

    /// Logs something about the key, once.
    fn tell(&self, what: &'static str) {
        let mut seen = self.seen();
        if seen.told != Some(what) {
            tracing::warn!(mode = self.store.mode(), "{what}");
            seen.told = Some(what);
        }
    }

    pub(super) fn status(&self) -> Value {
        let seen = self.seen();
        let mut status = json!({
            "mode": self.store.mode(),
            "register_interval": "3s",
            "report_interval": "10s",
        });
        if let Some(at) = seen.contact {
            status["seconds_since_contact"] = json!(at.elapsed().as_secs());
        }
        if let Some((_, error)) = &seen.failure {
            status["last_error"] = json!(error);
        }
        status
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After a failure.
pub(super) const RETRY: Duration = Duration::from_secs(3);
