//! Asks the nodes again and again what they have counted, so that what a process counted before it
//! was killed is not lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;

/// A running sampler.
pub(super) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Counted>,
}

/// What all processes of all nodes have counted, as far as they could be asked in time.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Terms in which some node led.
    pub elections: usize,
    /// Databases received because a node was behind the log.
    pub installs: u64,
    /// Entries cut off the end of a log again, because another leader replaced them.
    pub truncations: u64,
    /// Transactions that were run and discarded.
    pub discarded: u64,
    /// Damaged pages that were found.
    pub damaged: u64,
    /// Of those, the ones that were mended.
    pub repaired: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Processes that were seen.
    pub processes: usize,
}

/// The last answer of one process.
#[derive(Clone, Copy, Default)]
struct Last {
    installs: u64,
    truncations: u64,
    discarded: u64,
    damaged: u64,
    repaired: u64,
    checkpoints: u64,
}

impl Sampler {
    pub(super) fn start(addresses: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let client = Client::new(Duration::from_millis(500));
            let mut processes: BTreeMap<(usize, u64), Last> = BTreeMap::new();
            let mut terms = BTreeSet::new();
            loop {
                let is_last = stopped.load(Ordering::Relaxed);
                for (node, address) in addresses.iter().enumerate() {
                    look(&client, node, address, &mut processes, &mut terms);
                }
                if is_last {
                    return sum(&processes, terms.len());
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, thread }
    }

    /// Asks once more, and adds up.
    pub(super) fn stop(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler does not panic")
    }
}

fn look(
    client: &Client,
    node: usize,
    address: &str,
    processes: &mut BTreeMap<(usize, u64), Last>,
    terms: &mut BTreeSet<String>,
) {
    // One that does not answer has nothing to add.
    let Ok(status) = client.json(address, "/status") else {
        return;
    };
    let Ok(variables) = client.json(address, "/debug/vars") else {
        return;
    };
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let last = processes
        .entry((node, number(&status["os"]["pid"])))
        .or_default();
    let (raft, ours) = (&status["store"]["raft"], &status["wallaby"]);
    if raft["state"] == "Leader" {
        terms.extend(raft["term"].as_str().map(str::to_owned));
    } else {
        // Of one that leads, the transaction in the air would count as discarded.
        let stages = &ours["stages"];
        let difference = number(&stages["Executed"]).saturating_sub(number(&stages["Applied"]));
        last.discarded = last.discarded.max(difference);
    }
    last.installs = number(&variables["store"]["num_restores"]);
    last.checkpoints = number(&variables["db"]["checkpoints"]);
    last.truncations = number(&ours["log_cut_off"]);
    last.damaged = number(&ours["repair"]["found"]);
    last.repaired = number(&ours["repair"]["repaired"]);
}

fn sum(processes: &BTreeMap<(usize, u64), Last>, elections: usize) -> Counted {
    let total = |of: fn(&Last) -> u64| processes.values().map(of).sum();
    Counted {
        elections,
        installs: total(|last| last.installs),
        truncations: total(|last| last.truncations),
        discarded: total(|last| last.discarded),
        damaged: total(|last| last.damaged),
        repaired: total(|last| last.repaired),
        checkpoints: total(|last| last.checkpoints),
        processes: processes.len(),
    }
}

const PAUSE: Duration = Duration::from_millis(250);
