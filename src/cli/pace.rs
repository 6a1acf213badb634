//! The flags that say how often, how long, and how many times: rqlited's, with rqlited's defaults
//! where the text does not say otherwise.

use std::time::Duration;

use tracing::level_filters::LevelFilter;
use wallaby::ops::UpkeepOptions;

use crate::cli::config::ConfigError;
use crate::cli::flags::{span, switch};

/// How a node keeps time.
#[derive(clap::Args)]
pub(crate) struct PaceFlags {
    /// Log entries that start a checkpoint, after which the log can be purged; 0: never because of
    /// their number.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub(crate) raft_snap: u64,
    /// How often the number of log entries is looked at.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = span)]
    pub(crate) raft_snap_int: Duration,
    /// ERROR, WARN, INFO or DEBUG for what the Raft library logs (default: ERROR, because at WARN
    /// it repeats every heartbeat that a stopped node does not answer).
    #[arg(long, value_name = "LEVEL")]
    pub(crate) raft_log_level: Option<String>,
    /// Hand the leadership over before shutting down.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true",
        default_missing_value = "true", value_parser = switch, value_name = "BOOL")]
    pub(crate) raft_shutdown_stepdown: bool,
    /// How often nodes to join are asked before a node without a cluster gives up.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) join_attempts: u32,
    /// Time for each of these attempts.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = span)]
    pub(crate) join_interval: Duration,
    /// How long a node waits for the others of -bootstrap-expect before it gives up.
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = span)]
    pub(crate) bootstrap_expect_timeout: Duration,
    /// How often the leader runs VACUUM; 0: never.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = span)]
    pub(crate) auto_vacuum_int: Duration,
    /// How often the leader runs PRAGMA optimize; 0: never.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = span)]
    pub(crate) auto_optimize_int: Duration,
}

impl PaceFlags {
    /// Checks each value by itself.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |flag, problem: &str| {
            Err(ConfigError::Flag {
                flag,
                problem: problem.to_owned(),
            })
        };
        if self.raft_snap_int < INTERVAL_MIN {
            return refuse("raft-snap-int", "must be at least 10ms");
        }
        if !(1..=ATTEMPTS_MAX).contains(&self.join_attempts) {
            return refuse("join-attempts", "must be within 1 and 1000000");
        }
        if self.join_interval < INTERVAL_MIN {
            return refuse("join-interval", "must be at least 10ms");
        }
        if self.bootstrap_expect_timeout < INTERVAL_MIN {
            return refuse("bootstrap-expect-timeout", "must be at least 10ms");
        }
        for (flag, interval) in [
            ("auto-vacuum-int", self.auto_vacuum_int),
            ("auto-optimize-int", self.auto_optimize_int),
        ] {
            if !interval.is_zero() && interval < UPKEEP_MIN {
                return refuse(flag, "must be at least 100ms, or 0 for never");
            }
        }
        self.raft_log_level().map(drop)
    }

    /// The level for the Raft library.
    pub(crate) fn raft_log_level(&self) -> Result<LevelFilter, ConfigError> {
        let Some(name) = &self.raft_log_level else {
            return Ok(LevelFilter::ERROR);
        };
        match name.to_ascii_uppercase().as_str() {
            "ERROR" => Ok(LevelFilter::ERROR),
            "WARN" => Ok(LevelFilter::WARN),
            "INFO" => Ok(LevelFilter::INFO),
            "DEBUG" => Ok(LevelFilter::DEBUG),
            _ => Err(ConfigError::Flag {
                flag: "raft-log-level",
                problem: format!("`{name}` is none of ERROR, WARN, INFO, DEBUG"),
            }),
        }
    }

    /// How long a node without a cluster looks for one.
    pub(crate) fn settle_time_max(&self, bootstrap_expect: u64) -> Duration {
        if bootstrap_expect > 0 {
            self.bootstrap_expect_timeout
        } else {
            self.join_interval.saturating_mul(self.join_attempts)
        }
    }

    /// What the leader does from time to time.
    pub(crate) fn upkeep(&self) -> UpkeepOptions {
        let unless_zero = |interval: Duration| (!interval.is_zero()).then_some(interval);
        UpkeepOptions {
            vacuum: unless_zero(self.auto_vacuum_int),
            optimize: unless_zero(self.auto_optimize_int),
        }
    }
}

const ATTEMPTS_MAX: u32 = 1_000_000;
/// Shorter ones would be nothing but load.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Both read the whole database, and a VACUUM writes it.
const UPKEEP_MIN: Duration = Duration::from_millis(100);
