//! The leader writes itself into the key: when it has become one, and from time to time, in case
//! somebody else has changed or lost the key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::Discovery;
use super::registry::{RETRY, Registry};
use crate::node::Node;

/// Keeps the key up to date as long as it exists.
#[derive(Debug)]
pub struct Reporter(Option<JoinHandle<()>>);

impl Reporter {
    /// Starts it, where there is a key. To be called on a runtime.
    #[must_use]
    pub fn start(node: &Node, discovery: &Discovery) -> Self {
        match discovery {
            Discovery::Dns(_) => Self(None),
            Discovery::Key(registry) => {
                let (node, registry) = (node.clone(), Arc::clone(registry));
                Self(Some(tokio::spawn(report(node, registry))))
            }
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn report(node: Node, registry: Arc<Registry>) {
    // When it is due; at once for a new leader.
    let mut due: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        if !node.leads() {
            due = None;
            continue;
        }
        if due.is_some_and(|due| Instant::now() < due) {
            continue;
        }
        let registering = Arc::clone(&registry);
        let registered = tokio::task::spawn_blocking(move || registering.register()).await;
        let well = matches!(registered, Ok(Ok(())));
        if well && due.is_none() {
            tracing::info!("registered as the leader");
        }
        let pause = if well { INTERVAL } else { RETRY };
        due = Some(Instant::now() + pause);
    }
}

/// How often a node looks whether it leads.
const LOOK: Duration = Duration::from_millis(200);
const INTERVAL: Duration = Duration::from_secs(10);
