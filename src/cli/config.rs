//! From flags to one checked configuration. Whatever is wrong is said at once, with the flag's
//! name, before anything on disk is touched.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use wallaby::http::QueueOptions;
use wallaby::node::NodeOptions;
use wallaby::ops::{DiscoveryOptions, UpkeepOptions};

use crate::cli::discovery_flags::Company;
use crate::cli::flags::ServeFlags;
use crate::cli::http_config::HttpConfig;
use crate::cli::rqlited::WithoutEffect;

/// Everything `wallaby serve` needs to know.
#[derive(Clone, Debug)]
pub(crate) struct ServeConfig {
    /// Where the node keeps everything.
    pub(crate) data_dir: PathBuf,
    /// The node's own options.
    pub(crate) node: NodeOptions,
    /// Where to listen for HTTP, `host:port`.
    pub(crate) http_addr: String,
    /// Users, TLS and limits of the HTTP interface.
    pub(crate) http: HttpConfig,
    /// How queued writes are batched.
    pub(crate) queue: QueueOptions,
    /// Targets of `-join` given as `http://host:port` or `https://host:port`: nodes to be asked for
    /// their Raft address.
    pub(crate) join_http: Vec<String>,
    /// How nodes find each other without that.
    pub(crate) discovery: Option<DiscoveryOptions>,
    /// How often each of them is asked.
    pub(crate) join_attempts: u32,
    /// Time for each of these attempts.
    pub(crate) join_interval: Duration,
    /// Files, directories and archives with SQLite extensions.
    pub(crate) extensions: Vec<PathBuf>,
    /// What is logged where RUST_LOG is not set.
    pub(crate) log_level: LevelFilter,
    /// The same for the Raft library.
    pub(crate) raft_log_level: LevelFilter,
    /// What the leader does from time to time.
    pub(crate) upkeep: UpkeepOptions,
    /// Flags that were given and do nothing.
    pub(crate) without_effect: Vec<WithoutEffect>,
    /// The parent whose end is to be this process's end too.
    pub(crate) die_with_parent: Option<u32>,
}

/// Why the flags make no configuration. The process ends with exit code 2.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// An address that others are told is one nobody can reach.
    #[error("advertised {what} address is not routable ({host}), specify it via -{flag}")]
    NotRoutable {
        /// `HTTP` or `Raft`.
        what: &'static str,
        /// The address without its port.
        host: String,
        /// The flags that set it.
        flag: &'static str,
    },
    /// A flag's value is not acceptable by itself.
    #[error("-{flag}: {problem}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// Flags that contradict each other, in a sentence of its own.
    #[error("{0}")]
    Together(&'static str),
}

impl ServeConfig {
    /// Checks the flags.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub(crate) fn from_flags(mut flags: ServeFlags) -> Result<Self, ConfigError> {
        forget_empty(&mut flags);
        let data_dir = flags
            .data_dir
            .clone()
            .ok_or(ConfigError::Together("data directory path is required"))?;
        check(&flags)?;
        let log_level = log_level(&flags.log_level)?;
        let queue = queue(&flags);
        let http_adv_addr = flags
            .http_adv_addr
            .clone()
            .unwrap_or_else(|| flags.http_addr.clone());
        let (join, join_http) = join_targets(&flags)?;
        let result_bytes_max = flags.http.http_max_response;
        let has_tls = flags.http.http_cert.is_some();
        let http = HttpConfig::from_flags(flags.http, &flags.http_addr, flags.http_max_body)?;
        let node_certificates = flags.node_tls.certificates(flags.cluster_key.is_some())?;
        let pace = &flags.pace;
        let (upkeep, raft_log_level) = (pace.upkeep(), pace.raft_log_level()?);
        let mut node = NodeOptions {
            name: flags.node_id,
            checkpoint_entries: pace.raft_snap,
            checkpoint_interval: pace.raft_snap_int,
            hands_over: pace.raft_shutdown_stepdown,
            settle_time_max: pace.settle_time_max(flags.bootstrap_expect),
            join_attempts: pace.join_attempts,
            join_interval: pace.join_interval,
            raft_adv_addr: flags.raft_adv_addr,
            join,
            bootstrap_expect: flags.bootstrap_expect,
            foreign_keys: flags.fk,
            cluster_key: flags.cluster_key,
            node_certificates,
            insecure_cluster: flags.insecure_cluster,
            readers: if flags.db_max_ro_conns == 0 {
                READERS_MAX
            } else {
                flags.db_max_ro_conns
            },
            heap_bytes_max: flags.db_max_heap,
            open_wait: flags.db_open_wait,
            checkpoint_wal_bytes: match flags.raft_snap_wal_size {
                0 => u64::MAX,
                bytes => bytes,
            },
            heartbeat: flags.raft_heartbeat_timeout,
            election: flags.raft_election_timeout,
            entry_bytes_max: flags.entry_bytes,
            transaction_bytes_max: flags.max_transaction_bytes,
            spool_bytes_max: flags.spool_bytes,
            log_tail_bytes: flags.log_tail,
            log_catch_up_bytes: flags.log_catch_up,
            snapshot_wal_bytes_max: flags.snapshot_wal_max,
            log_segment_bytes: flags.log_segment,
            scrub_rate: flags.scrub_rate,
            scrub_interval: flags.scrub_interval,
            result_bytes_max,
            ..NodeOptions::new(data_dir.clone(), flags.raft_addr, http_adv_addr)
        };
        flags.member.apply(&mut node);
        let discovery = flags.discovery.options(&node, has_tls, !node.replica);
        Ok(Self {
            data_dir,
            node,
            discovery,
            http_addr: flags.http_addr,
            http,
            queue,
            join_http,
            join_attempts: flags.pace.join_attempts,
            join_interval: flags.pace.join_interval,
            extensions: flags.extensions_path,
            log_level,
            raft_log_level,
            upkeep,
            without_effect: flags.rqlited.without_effect(),
            die_with_parent: flags.die_with_parent,
        })
    }
}

/// All checks that concern values as they are.
fn check(flags: &ServeFlags) -> Result<(), ConfigError> {
    check_addresses(flags)?;
    check_limits(flags)?;
    check_times(flags)?;
    flags.pace.check()?;
    let (joins, expects) = (!flags.join.is_empty(), flags.bootstrap_expect > 0);
    let has_vote = !flags.member.raft_non_voter;
    flags.discovery.check(&Company {
        joins,
        expects,
        has_vote,
    })?;
    flags.rqlited.check(joins, expects, has_vote)
}

fn log_level(name: &str) -> Result<LevelFilter, ConfigError> {
    name.parse().map_err(|_| ConfigError::Flag {
        flag: "log-level",
        problem: format!("`{name}` is none of error, warn, info, debug, trace"),
    })
}

fn queue(flags: &ServeFlags) -> QueueOptions {
    QueueOptions {
        capacity: flags.write_queue_capacity,
        batch_size: flags.write_queue_batch_size,
        batch_time_max: flags.write_queue_timeout,
        transaction: flags.write_queue_tx,
    }
}

/// An empty text is rqlited's way to say that a flag is not given; scripts pass empty variables.
fn forget_empty(flags: &mut ServeFlags) {
    for text in [
        &mut flags.node_id,
        &mut flags.http_adv_addr,
        &mut flags.raft_adv_addr,
    ] {
        text.take_if(|text| text.is_empty());
    }
    flags
        .extensions_path
        .retain(|path| !path.as_os_str().is_empty());
}

/// Addresses: well formed, different, reachable for those who are told them, and not open to the
/// network without a key.
fn check_addresses(flags: &ServeFlags) -> Result<(), ConfigError> {
    let http_adv = flags.http_adv_addr.as_ref().unwrap_or(&flags.http_addr);
    let raft_adv = flags.raft_adv_addr.as_ref().unwrap_or(&flags.raft_addr);
    for (flag, addr) in [
        ("http-addr", &flags.http_addr),
        ("http-adv-addr", http_adv),
        ("raft-addr", &flags.raft_addr),
        ("raft-adv-addr", raft_adv),
    ] {
        if flag.starts_with("http") && has_protocol(addr) {
            return Err(ConfigError::Together(
                "HTTP options should not include protocol (http:// or https://)",
            ));
        }
        host_and_port(addr).map_err(|problem| ConfigError::Flag { flag, problem })?;
    }
    if flags.http_addr == flags.raft_addr || http_adv == raft_adv {
        return Err(ConfigError::Together("HTTP and Raft addresses must differ"));
    }
    for (what, addr, flag) in [
        ("HTTP", http_adv, "http-addr or -http-adv-addr"),
        ("Raft", raft_adv, "raft-addr or -raft-adv-addr"),
    ] {
        let host = addr
            .rsplit_once(':')
            .map_or(addr.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            return Err(ConfigError::NotRoutable {
                what,
                host: host.to_owned(),
                flag,
            });
        }
    }
    // Whoever can speak to the Raft port owns the data, so an open one needs to be asked for.
    let has_secret = flags.cluster_key.is_some() || flags.node_tls.node_cert.is_some();
    if !has_secret && !flags.insecure_cluster {
        let resolved: Vec<SocketAddr> = flags
            .raft_addr
            .to_socket_addrs()
            .map_err(|error| ConfigError::Flag {
                flag: "raft-addr",
                problem: format!("{} cannot be resolved: {error}", flags.raft_addr),
            })?
            .collect();
        if !resolved.iter().all(|addr| addr.ip().is_loopback()) {
            return Err(ConfigError::Together(
                "a Raft address that is not loopback needs -cluster-key FILE (make one with \
                 `wallaby keygen`) or -node-cert and its kind, or -insecure-cluster if the network \
                 is trusted",
            ));
        }
    }
    Ok(())
}

/// Sizes and counts within what the formats and the machine can bear.
fn check_limits(flags: &ServeFlags) -> Result<(), ConfigError> {
    let within = |flag, value: u64, min: u64, max: u64| {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(ConfigError::Flag {
            flag,
            problem: format!("{value} is not within {min} and {max}"),
        })
    };
    within("http-max-body", flags.http_max_body as u64, 1024, 4 << 30)?;
    if flags.db_max_heap != 0 {
        within("db-max-heap", flags.db_max_heap, 16 << 20, 1 << 50)?;
    }
    within(
        "db-max-ro-conns",
        flags.db_max_ro_conns as u64,
        0,
        READERS_MAX as u64,
    )?;
    // A part holds at least one page, of up to 64 KiB; a record must fit a segment of 64 MiB.
    within("entry-bytes", flags.entry_bytes as u64, 128 << 10, 16 << 20)?;
    within(
        "max-transaction-bytes",
        flags.max_transaction_bytes,
        1 << 20,
        1 << 40,
    )?;
    within("spool-bytes", flags.spool_bytes, 64 << 10, 1 << 40)?;
    within("log-tail", flags.log_tail, 0, 1 << 40)?;
    within("log-catch-up", flags.log_catch_up, 0, 1 << 40)?;
    within("snapshot-wal-max", flags.snapshot_wal_max, 1 << 20, 1 << 40)?;
    within("scrub-rate", flags.scrub_rate, 0, 1 << 40)?;
    within("log-segment", flags.log_segment, 1 << 20, 1 << 30)?;
    let (capacity, batch) = (flags.write_queue_capacity, flags.write_queue_batch_size);
    within("write-queue-capacity", capacity as u64, 1, 1 << 20)?;
    within("write-queue-batch-size", batch as u64, 1, 4096)?;
    within("bootstrap-expect", flags.bootstrap_expect, 0, 99)?;
    if flags.raft_snap_wal_size != 0 {
        within(
            "raft-snap-wal-size",
            flags.raft_snap_wal_size,
            64 << 10,
            1 << 40,
        )?;
    }
    let name_fits = |name: &String| !name.is_empty() && name.len() <= 255 && !has_control(name);
    if !flags.node_id.as_ref().is_none_or(name_fits) {
        let problem = "must be 1 to 255 bytes without control characters".to_owned();
        return Err(ConfigError::Flag {
            flag: "node-id",
            problem,
        });
    }
    Ok(())
}

/// Heartbeats and elections: a follower that hears two heartbeats late must not call an election.
fn check_times(flags: &ServeFlags) -> Result<(), ConfigError> {
    let within = |flag, value: Option<Duration>, min_ms: u64, max_ms: u64| {
        let bounds = Duration::from_millis(min_ms)..=Duration::from_millis(max_ms);
        if value.is_none_or(|value| bounds.contains(&value)) {
            return Ok(());
        }
        Err(ConfigError::Flag {
            flag,
            problem: format!("must be {min_ms}ms to {max_ms}ms"),
        })
    };
    within(
        "raft-heartbeat-timeout",
        flags.raft_heartbeat_timeout,
        10,
        60_000,
    )?;
    within(
        "raft-election-timeout",
        flags.raft_election_timeout,
        50,
        600_000,
    )
}

/// The targets of `-join`: Raft addresses as they are, and HTTP addresses that are yet to be asked.
fn join_targets(flags: &ServeFlags) -> Result<(Vec<String>, Vec<String>), ConfigError> {
    let refused = |problem| ConfigError::Flag {
        flag: "join",
        problem,
    };
    let own = flags.raft_adv_addr.as_ref().unwrap_or(&flags.raft_addr);
    let mut raft = Vec::new();
    let mut http = Vec::new();
    for target in flags
        .join
        .iter()
        .map(|target| target.trim())
        .filter(|target| !target.is_empty())
    {
        let (scheme, addr) = match target.split_once("://") {
            Some((scheme @ ("http" | "https"), addr)) => (Some(scheme), addr.trim_end_matches('/')),
            _ => (None, target.trim_end_matches('/')),
        };
        host_and_port(addr).map_err(|problem| {
            refused(format!("{target} is an invalid join address: {problem}"))
        })?;
        match scheme {
            Some(scheme) => http.push(format!("{scheme}://{addr}")),
            None => raft.push(addr.to_owned()),
        }
        if addr == own && flags.bootstrap_expect == 0 {
            return Err(refused(
                "node cannot join with itself unless bootstrapping".to_owned(),
            ));
        }
    }
    let nowhere = raft.len() + http.len() == 0 && !flags.discovery.is_on();
    if flags.bootstrap_expect > 1 && nowhere {
        return Err(ConfigError::Together(
            "-bootstrap-expect needs -join with the nodes' addresses, or -disco-mode",
        ));
    }
    if flags.bootstrap_expect > 0 && !http.is_empty() {
        // Nodes that wait for each other cannot ask each other over HTTP, which opens later.
        return Err(ConfigError::Together(
            "with -bootstrap-expect, -join takes Raft addresses only",
        ));
    }
    Ok((raft, http))
}

/// Checks the form `host:port`, with an IPv6 address in brackets.
fn host_and_port(addr: &str) -> Result<(), String> {
    if addr.contains("://") {
        return Err(format!(
            "{addr} should not include a protocol (http:// or https://)"
        ));
    }
    let (host, port) = addr
        .rsplit_once(':')
        .ok_or_else(|| format!("{addr} is not of the form host:port"))?;
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(format!("{addr} has no port between 1 and 65535"));
    }
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if host.is_empty() || host.contains(odd) || (host.contains(':') && !bracketed) {
        return Err(format!("{addr} is not of the form host:port"));
    }
    Ok(())
}

/// Whether an address is written as a URL.
fn has_protocol(addr: &str) -> bool {
    addr.starts_with("http://") || addr.starts_with("https://")
}

/// Whether the text would garble a log line.
fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// A reader is a thread with a connection and its cache (2 MiB): more than this is a mistake.
const READERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::flags::{Command, CommandLine};

    fn config(flags: &[&str]) -> Result<ServeConfig, String> {
        let words = ["wallaby", "serve"].iter().chain(flags);
        let line = CommandLine::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Serve(flags) = line.command else {
            panic!("`serve` was asked for")
        };
        ServeConfig::from_flags(*flags).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(flags: &[&str], expected: &str) {
        let error = config(flags).unwrap_err();
        assert!(error.contains(expected), "{flags:?}: {error}");
    }

    #[test]
    fn the_defaults_of_the_flags_are_the_defaults_of_the_node() {
        let config = config(&["data"]).unwrap();
        assert_eq!(config.http_addr, "localhost:4001");
        assert_eq!(config.node.checkpoint_wal_bytes, 4_194_304);
        let (raft_addr, http_addr) = ("localhost:4002".to_owned(), "localhost:4001".to_owned());
        let expected = NodeOptions::new("data".into(), raft_addr, http_addr);
        assert_eq!(format!("{:?}", config.node), format!("{expected:?}"));
    }

    #[test]
    fn an_empty_text_is_no_text() {
        let config = config(&[
            "--node-id=",
            "--http-adv-addr=",
            "--raft-adv-addr=",
            "--join=",
            "--extensions-path=",
            "data",
        ]);
        let config = config.unwrap();
        assert_eq!(config.node.name, None);
        assert_eq!(config.node.advertised_raft_addr(), "localhost:4002");
        assert_eq!(config.node.http_adv_addr, "localhost:4001");
        assert!(config.node.join.is_empty() && config.extensions.is_empty());
    }

    #[test]
    fn a_data_directory_is_required() {
        refused(&["--fk"], "data directory path is required");
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        refused(
            &["--http-addr=localhost:4002", "data"],
            "HTTP and Raft addresses must differ",
        );
        refused(
            &["--http-addr=http://localhost:1", "data"],
            "HTTP options should not include protocol (http:// or https://)",
        );
        refused(
            &["--http-addr=localhost", "data"],
            "-http-addr: localhost is not of the form",
        );
        refused(
            &["--http-addr=localhost:0", "data"],
            "no port between 1 and 65535",
        );
        refused(
            &["--raft-addr=::1:4002", "data"],
            "not of the form host:port",
        );
        refused(
            &["--http-addr=0.0.0.0:4001", "data"],
            "advertised HTTP address is not routable (0.0.0.0), specify it via -http-addr or \
             -http-adv-addr",
        );
        refused(
            &["--raft-addr=[::]:4002", "data"],
            "advertised Raft address is not routable (::), specify it via -raft-addr or \
             -raft-adv-addr",
        );
    }

    #[test]
    fn an_open_raft_port_needs_a_key_or_an_explicit_word() {
        let open = "--raft-addr=192.0.2.1:4002";
        refused(&[open, "data"], "needs -cluster-key FILE");
        assert!(config(&[open, "--insecure-cluster", "data"]).is_ok());
        assert!(config(&[open, "--cluster-key=key", "data"]).is_ok());
        assert!(config(&[open, "--node-cert=c", "--node-key=k", "data"]).is_ok());
    }

    #[test]
    fn join_takes_raft_and_http_addresses() {
        let targets = "--join=a:4002, http://b:4001/,https://d:4001,c:4002";
        let config = config(&[targets, "data"]).unwrap();
        assert_eq!(config.node.join, ["a:4002", "c:4002"]);
        assert_eq!(config.join_http, ["http://b:4001", "https://d:4001"]);
        refused(&["--join=a", "data"], "a is an invalid join address");
        refused(
            &["--join=localhost:4002", "data"],
            "cannot join with itself",
        );
        refused(
            &["--bootstrap-expect=3", "data"],
            "-bootstrap-expect needs -join",
        );
        refused(
            &["--bootstrap-expect=3", "--join=http://a:1", "data"],
            "takes Raft addresses only",
        );
    }

    #[test]
    fn what_secures_http_must_be_whole() {
        let pair = "either both -http-cert and -http-key must be set, or neither";
        refused(&["--http-cert=c", "data"], pair);
        refused(&["--http-key=k", "data"], pair);
        let both = ["--http-cert=c", "--http-key=k"];
        let with = |more: &'static str| [&both[..], &[more, "data"]].concat();
        refused(&with("--http-verify-client"), "needs -http-ca-cert");
        refused(
            &with("--http-verify-common-name=n"),
            "needs -http-verify-client",
        );
        refused(
            &["--http-verify-client", "--http-ca-cert=a", "data"],
            "needs -http-cert and -http-key",
        );
        refused(&["--join-as=u", "data"], "needs the password of that user");
        refused(&["--join-as-password-file=f", "data"], "needs -join-as");
        for origin in [
            "app.example",
            "https://app.example/",
            "https://",
            "https://*.a",
        ] {
            let flag = format!("--http-allow-origin={origin}");
            refused(&[&flag, "data"], "is not an origin");
        }
        refused(&["--http-max-bodies=5", "data"], "-http-max-bodies: 5");
        refused(&["--http-header-timeout=1ms", "data"], "must be 100ms to");
        assert!(config(&["--http-allow-origin=*", "data"]).is_ok());
        assert!(config(&["--auth=f", "--join-as=u", "data"]).is_ok());
    }

    #[test]
    fn numbers_outside_their_limits_are_refused_by_name() {
        refused(
            &["--entry-bytes=100", "data"],
            "-entry-bytes: 100 is not within 131072 and",
        );
        refused(
            &["--db-max-ro-conns=1000", "data"],
            "-db-max-ro-conns: 1000",
        );
        refused(
            &["--raft-heartbeat-timeout=1ms", "data"],
            "must be 10ms to 60000ms",
        );
        refused(&["--raft-heartbeat-timeout=5", "data"], "is not a duration");
        refused(&["--log-level=loud", "data"], "`loud` is none of");
        let long = format!("--node-id={}", "x".repeat(256));
        refused(&[&long, "data"], "-node-id: must be 1 to 255 bytes");
        refused(&["--fk=maybe", "data"], "expected true or false");
    }
}
