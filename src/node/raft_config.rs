//! How openraft is set.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use super::error::Error;
use super::options::NodeOptions;

/// openraft's settings; the reasons are in the design, section 11.
pub(super) fn raft_config(options: &NodeOptions) -> Result<Config, Error> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "wallaby".to_owned(),
        heartbeat_interval: ms(options.heartbeat()),
        election_timeout_min: ms(options.election_min()),
        election_timeout_max: ms(options.election_max()),
        enable_pre_vote: Some(true),
        // A restarted leader becomes one again only by an election, so that leading implies a new
        // term, whose first entry proves that everything before it is applied.
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(ms(options.election_max() * 2)),
        max_payload_entries: 512,
        // Snapshots and purges follow our own checkpoint records, by bytes: see `tasks`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        backoff: RECONNECT_BACKOFF.to_owned(),
        ..Config::default()
    };
    config
        .validate()
        .map_err(|error| Error::Configuration(error.to_string()))
}

/// Short first, because most interruptions are restarts on the same machine.
const RECONNECT_BACKOFF: &str = "50ms 100ms ...1s";
