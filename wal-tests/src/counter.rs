//! A counter in the database: one thread raises it, and no read may fall behind what that thread was
//! told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use crate::client::{Client, Outcome};
use crate::cluster::ProcessCluster;
use crate::seed::Random;

/// What the readers and the writer of the counter share.
#[derive(Debug, Default)]
pub struct Counter {
    /// The highest value whose write was acknowledged.
    pub acknowledged: AtomicI64,
    /// Answers that the readers have checked.
    pub checked: AtomicUsize,
    /// Set when it is enough.
    pub stop: AtomicBool,
}

impl Counter {
    /// Makes its table, `counter(n)`.
    ///
    /// # Panics
    ///
    /// When the cluster does not take it.
    pub fn create(cluster: &ProcessCluster) {
        let create = json!([
            "CREATE TABLE counter(n INTEGER)",
            "INSERT INTO counter VALUES(0)"
        ]);
        let client = cluster.client();
        let _ = client.execute(cluster.address(0), &create).expect_success();
    }

    /// Raises it by one with each request, through these nodes, until it is enough. A write of
    /// unknown outcome may still arrive after the next one, so no write ever lowers it.
    pub fn raise(self: &Arc<Self>, addresses: Vec<String>, mut random: Random) -> JoinHandle<()> {
        let counter = Arc::clone(self);
        std::thread::spawn(move || {
            let client = Client::new(Duration::from_secs(2));
            let mut next = 1;
            while !counter.stop.load(Ordering::Relaxed) {
                let raise = json!([["UPDATE counter SET n = max(n, ?)", next]]);
                let address = &addresses[random.below(addresses.len())];
                match client.execute(address, &raise) {
                    Outcome::Answered(answer) if answer.error().is_none() => {
                        counter.acknowledged.store(next, Ordering::SeqCst);
                    }
                    _ => std::thread::sleep(Duration::from_millis(20)),
                }
                next += 1;
            }
        })
    }
}
