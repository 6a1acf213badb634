//! `GET /status`: what this node knows about itself. rqlite's keys where clients read them, our own
//! under `wallaby`. `?key=store.raft.state` selects one part; an unknown key selects `{}`.
//!
//! Every value is measured or is the setting in force; what has no counterpart here is left out:
//!
//! | Left out | Because |
//! |---|---|
//! | `mux`, `network`, `http.cluster` | nodes talk QUIC, without multiplexer and connection pools |
//! | `build.commit`, `build_time` | the same sources make the same program at any time |
//! | `runtime.num_goroutine`, `version` | there is no Go runtime |
//! | `store.raft.bolt`, `transport`, `protocol_version...` | of rqlite's Raft library |
//! | `store.snapshot_store`, `trailing_logs` | the database is the snapshot; log is kept by bytes |
//! | `store.sqlite3.mem_stats`, `ro_dsn`, `rw_dsn` | connections are not opened by such names |
//! | `store.request_marshaler`, `observer`, `snapshot_cas` | parts that do not exist |

use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::node::{MemberStatus, NodeOptions, NodeStatus, RepairStatus, SqliteFacts};

use super::date::moment;
use super::parameters::Parameters;
use super::server::Server;
use super::{duration, json, nodes, queued, refusal};

pub(super) async fn answer(server: &Server, parameters: &Parameters) -> Response<Body> {
    let status = server.node.status();
    let facts = server.node.sqlite_facts().await;
    let mut whole = json!({
        "build": { "version": env!("CARGO_PKG_VERSION"), "compiler_toolchain": "rustc" },
        "cluster": {
            "addr": status.raft_addr,
            "api_addr": status.http_addr,
            "https": server.options.tls.is_some().to_string(),
        },
        "extensions": { "names": server.node.options().extensions.names() },
        "http": {
            "allow_origin": server.options.allow_origin.as_deref().unwrap_or_default(),
            "auth": if server.node.has_authority() { "enabled" } else { "disabled" },
            "bind_addr": server.bind_addr,
            "queue": queued::report(&server.queue_status()),
            "tls": tls(server),
        },
        "node": process(server),
        "os": operating_system(),
        "runtime": runtime(),
        "store": store(server.node.options(), &status, &facts),
        "wallaby": wallaby(server, &status),
    });
    for report in &server.options.reports {
        whole[report.key] = (report.value)();
    }
    let selected = match parameters.text("key") {
        Some(key) => select(&whole, key),
        None => Some(&whole),
    };
    let mut body = Vec::new();
    match selected {
        Some(part) => json::tree(&mut body, part),
        None => body.extend_from_slice(b"{}"),
    }
    if parameters.flag("pretty") {
        body = json::indent(&body);
    }
    refusal::json(StatusCode::OK, body)
}

/// The part of a tree that a dotted key names.
fn select<'a>(whole: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(whole, |part, name| part.get(name))
}

/// rqlite's keys and words for the TLS settings.
fn tls(server: &Server) -> Value {
    let Some(tls) = &server.options.tls else {
        return json!({ "enabled": "false" });
    };
    let options = tls.options();
    let client_auth = if options.verify_client {
        "RequireAndVerifyClientCert"
    } else {
        "NoClientCert"
    };
    let authorities = options.client_authorities.as_deref();
    json!({
        "ca_file": authorities.unwrap_or_else(|| Path::new("")).to_string_lossy(),
        "cert_file": options.certificate.to_string_lossy(),
        "client_auth": client_auth,
        "enabled": "true",
        "key_file": options.key.to_string_lossy(),
        "next_protos": ["h2", "http/1.1"],
    })
}

fn process(server: &Server) -> Value {
    let now = SystemTime::now();
    let uptime = now.duration_since(server.started).unwrap_or_default();
    json!({
        "current_time": moment(now),
        "start_time": moment(server.started),
        "uptime": duration::format(uptime),
    })
}

fn operating_system() -> Value {
    let executable = std::env::current_exe().unwrap_or_default();
    json!({
        "executable": executable.to_string_lossy(),
        "hostname": rustix::system::uname().nodename().to_string_lossy(),
        "page_size": rustix::param::page_size(),
        "pid": std::process::id(),
        "ppid": std::os::unix::process::parent_id(),
    })
}

/// Go's names for the platform, which is what rqlite's clients compare with.
fn runtime() -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    json!({
        "GOARCH": architecture,
        "GOMAXPROCS": processors,
        "GOOS": std::env::consts::OS,
        "kubernetes_hint": std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        "num_cpu": processors,
    })
}

fn store(options: &NodeOptions, status: &NodeStatus, facts: &SqliteFacts) -> Value {
    let leader = status.leader.as_ref();
    let nodes: Vec<_> = status
        .members
        .iter()
        .map(|member| {
            json!({
                "addr": member.raft_addr,
                "id": member.name,
                "suffrage": if member.voter { "Voter" } else { "Nonvoter" },
            })
        })
        .collect();
    let mut store = json!({
        "addr": status.raft_addr,
        "db_applied_index": status.data_index,
        "db_conf": { "fk_constraints": options.foreign_keys },
        "dir": status.data_dir,
        "dir_size": status.footprint.dir_bytes,
        "election_timeout": duration::format(options.election_min()),
        "fsm_index": status.applied_index,
        "fsm_term": status.applied_term,
        "heartbeat_timeout": duration::format(options.heartbeat()),
        "leader": {
            "addr": leader.map_or("", |leader| leader.raft_addr.as_str()),
            "node_id": leader.map_or("", |leader| leader.name.as_str()),
        },
        "node_id": status.name,
        "nodes": nodes,
        "open": status.out_of_service.is_none(),
        "raft": raft(status),
        "raft_id": status.raft_id.to_string(),
        "ready": status.ready,
        "reap_read_only_timeout": duration::format(options.reap_replicas),
        "reap_timeout": duration::format(options.reap_voters),
        "snapshot_interval": duration::format(options.checkpoint_interval),
        "snapshot_threshold": options.checkpoint_entries,
        "sqlite3": sqlite(options, status, facts),
    });
    if let Some(applied_at) = status.applied_at {
        store["fsm_update_time"] = json!(moment(applied_at));
    }
    store
}

/// `db_size` is the database's, `size` that of its main file, which may lag behind the WAL.
fn sqlite(options: &NodeOptions, status: &NodeStatus, facts: &SqliteFacts) -> Value {
    let mut sqlite = json!({
        "compile_options": facts.compile_options,
        "conn_pool_stats": {
            "ro": { "max_open_connections": options.readers },
            "rw": { "max_open_connections": 1 },
        },
        "db_size": u64::from(status.page_count) * u64::from(status.page_size),
        "path": status.database_path,
        "pragmas": { "ro": pragmas(&facts.readers), "rw": pragmas(&facts.writer) },
        "size": status.footprint.database_bytes,
        "version": facts.version,
        "wal_size": status.wal_bytes,
    });
    if let Some(modified) = status.footprint.modified {
        sqlite["last_modified"] = json!(moment(modified));
    }
    sqlite
}

fn pragmas(pragmas: &[(String, String)]) -> Value {
    pragmas
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Numbers as strings, as rqlite's Raft library reports them.
fn raft(status: &NodeStatus) -> Value {
    let voters = status.members.iter().filter(|member| member.voter).count();
    let votes = status
        .members
        .iter()
        .any(|me| me.raft_id == status.raft_id && me.voter);
    json!({
        "applied_index": status.applied_index.to_string(),
        "commit_index": status.committed_index.to_string(),
        "last_log_index": status.last_log_index.to_string(),
        "last_snapshot_index": status.checkpoint_index.to_string(),
        "last_snapshot_term": status.checkpoint_term.to_string(),
        "latest_configuration_index": status.membership_index.to_string(),
        "log_size": status.log_bytes,
        "num_peers": voters.saturating_sub(usize::from(votes)).to_string(),
        "state": status.state,
        "term": status.term.to_string(),
        "voter": votes,
    })
}

/// A member as this node last heard of it; nobody is asked.
fn member(member: &MemberStatus) -> Value {
    let mut shown = nodes::report(member);
    shown["id"] = json!(member.name);
    shown
}

fn repair(repair: &RepairStatus) -> Value {
    let mut value = json!({
        "damaged": repair.damaged,
        "found": repair.found,
        "repaired": repair.repaired,
        "scrub": {
            "bytes_per_second": repair.scrub_rate,
            "pages": repair.scrub_pages,
            "pages_done": repair.scrubbed_pages,
        },
    });
    if let Some(completed) = repair.scrub_completed_at {
        value["scrub"]["last_complete"] = json!(moment(completed));
    }
    value
}

fn wallaby(server: &Server, status: &NodeStatus) -> Value {
    let mut members: Vec<_> = status.members.iter().collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    let stages: serde_json::Map<_, _> = status
        .stages
        .iter()
        .map(|&(stage, count)| (stage.to_owned(), json!(count)))
        .collect();
    json!({
        "checkpoint": checkpoint(server, status),
        "cluster_id": status.cluster_id,
        "data_index": status.data_index,
        "database_hash": status.database_hash,
        "lag_bytes": status.progress.as_ref().map(|progress| progress.lag_bytes),
        "lag_entries": status.progress.as_ref().map(|progress| progress.lag_entries),
        "log_bytes": status.log_bytes,
        "log_cut_off": status.log_cut_off,
        "log_written": status.log_written,
        "nodes": members.into_iter().map(member).collect::<Vec<_>>(),
        "out_of_service": status.out_of_service,
        "page_count": status.page_count,
        "page_size": status.page_size,
        "purged_index": status.purged_index,
        "removed": status.removed,
        "repair": repair(&status.repair),
        "replication": counted(server, "replication"),
        "role": status.role.name(),
        "shortage": status.shortage,
        "snapshots": snapshots(server, status),
        "stages": stages,
        "wal_bytes": status.wal_bytes,
    })
}

/// How the WAL gets into the main file. `index` is that of the entry from which the next start goes
/// on; `longest_us` is the longest that a step has kept writes waiting.
fn checkpoint(server: &Server, status: &NodeStatus) -> Value {
    let mut value = json!({
        "blocked": status.checkpoint_blocked,
        "index": status.checkpoint_index,
        "longest_us": micros(status.checkpoint_longest),
    });
    for count in server.node.counters().all() {
        match count.name {
            "checkpoints" => value["completed"] = json!(count.value),
            "checkpoint_pieces" => value["pieces"] = json!(count.value),
            _ => {}
        }
    }
    value
}

/// What nodes that were behind the log were sent, or this one was.
fn snapshots(server: &Server, status: &NodeStatus) -> Value {
    let name = |peer: u64| {
        let mut members = status.members.iter();
        let member = members.find(|member| member.raft_id == peer);
        member.map_or_else(|| peer.to_string(), |member| member.name.clone())
    };
    let transfers: Vec<_> = status
        .transfers
        .iter()
        .map(|transfer| {
            json!({
                "bytes": transfer.bytes,
                "bytes_per_second": transfer.bytes_per_second,
                "direction": if transfer.is_sending { "send" } else { "receive" },
                "index": transfer.index,
                "peer": name(transfer.peer),
                "percent": transfer.percent,
                "phase": transfer.phase,
            })
        })
        .collect();
    let mut value = counted(server, "snapshots");
    value["longest_freeze_us"] = json!(micros(status.freeze_longest));
    value["transfers"] = json!(transfers);
    value
}

/// The counters of one map.
fn counted(server: &Server, map: &str) -> Value {
    let mut value = json!({});
    let counts = server.node.counters().all().into_iter();
    for count in counts.filter(|count| count.map == map) {
        value[count.name] = json!(count.value);
    }
    value
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
