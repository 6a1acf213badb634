//! `-join http://host:port`, the form of older manuals: the node behind that HTTP address is asked
//! where its Raft address is.

use std::path::Path;
use std::time::Duration;

/// Why a target could not be turned into a Raft address.
#[derive(Debug, thiserror::Error)]
#[error("-join: http://{target} does not say what its Raft address is: {reason}")]
pub(crate) struct JoinError {
    target: String,
    reason: String,
}

/// The Raft addresses of the nodes behind these HTTP addresses. Blocks; asks each several times.
///
/// A node that has data already knows its cluster, and must be able to start while the others are
/// down, so then nobody is asked.
pub(crate) fn raft_addresses(
    targets: &[String],
    data_dir: &Path,
    attempts: u32,
    interval: Duration,
) -> Result<Vec<String>, JoinError> {
    // The log is made when the node belongs to a cluster. The directory alone says nothing: a node
    // that was stopped while it still looked for a cluster would start one of its own.
    if data_dir.join("log").exists() {
        return Ok(Vec::new());
    }
    let address = |target: &String| raft_address(target, attempts, interval);
    targets.iter().map(address).collect()
}

fn raft_address(target: &str, attempts: u32, interval: Duration) -> Result<String, JoinError> {
    let mut attempt = 1;
    loop {
        let reason = match ask(target, interval) {
            Ok(found) => return Ok(found),
            Err(reason) => reason,
        };
        tracing::warn!(target, attempt, reason, "a node to join does not answer");
        if attempt >= attempts {
            return Err(JoinError {
                target: target.to_owned(),
                reason,
            });
        }
        attempt += 1;
        std::thread::sleep(interval);
    }
}

/// One question: `/status` tells the Raft address of the node that answers it.
fn ask(target: &str, patience: Duration) -> Result<String, String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(patience))
        .build();
    let url = format!("http://{target}/status?key=cluster");
    let answer = ureq::Agent::from(config).get(url).call();
    let mut answer = answer.map_err(|error| error.to_string())?;
    let cluster: serde_json::Value = answer
        .body_mut()
        .read_json()
        .map_err(|error| error.to_string())?;
    cluster["addr"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("it answers {cluster}"))
}
