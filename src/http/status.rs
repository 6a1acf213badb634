//! `GET /status`: what this node knows about itself. rqlite's keys where clients read them, our own
//! under `wallaby`. `?key=store.raft.state` selects one part; an unknown key selects `{}`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::node::NodeStatus;

use super::parameters::Parameters;
use super::server::Server;
use super::{date, duration, json, queued, refusal};

pub(super) fn answer(server: &Server, parameters: &Parameters) -> Response<Body> {
    let status = server.node.status();
    let whole = json!({
        "build": { "version": env!("CARGO_PKG_VERSION"), "compiler_toolchain": "rustc" },
        "cluster": {
            "addr": status.raft_addr,
            "api_addr": status.http_addr,
            "https": server.options.tls.is_some().to_string(),
        },
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
        "store": store(&status),
        "wallaby": wallaby(&status),
    });
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

fn moment(time: SystemTime) -> String {
    let since: Duration = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    date::from_unix(
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        since.subsec_nanos(),
    )
}

fn operating_system() -> Value {
    let executable = std::env::current_exe().unwrap_or_default();
    json!({
        "executable": executable.to_string_lossy(),
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
        "num_cpu": processors,
    })
}

fn store(status: &NodeStatus) -> Value {
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
    let database_bytes = u64::from(status.page_count) * u64::from(status.page_size);
    json!({
        "addr": status.raft_addr,
        "db_applied_index": status.applied_index,
        "dir": status.data_dir,
        "fsm_index": status.applied_index,
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
        "sqlite3": {
            "db_size": database_bytes,
            "size": database_bytes,
            "wal_size": status.wal_bytes,
        },
    })
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
        "log_size": status.log_bytes,
        "num_peers": voters.saturating_sub(usize::from(votes)).to_string(),
        "state": status.state,
        "term": status.term.to_string(),
        "voter": votes,
    })
}

fn wallaby(status: &NodeStatus) -> Value {
    let stages: serde_json::Map<_, _> = status
        .stages
        .iter()
        .map(|&(stage, count)| (stage.to_owned(), json!(count)))
        .collect();
    json!({
        "checkpoint": {
            "blocked": status.checkpoint_blocked,
            "index": status.checkpoint_index,
        },
        "cluster_id": status.cluster_id,
        "data_index": status.data_index,
        "database_hash": status.database_hash,
        "log_bytes": status.log_bytes,
        "out_of_service": status.out_of_service,
        "page_count": status.page_count,
        "page_size": status.page_size,
        "purged_index": status.purged_index,
        "stages": stages,
        "wal_bytes": status.wal_bytes,
    })
}
