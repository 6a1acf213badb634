//! `GET /nodes`: the members of the cluster, each asked whether it is there.
//!
//! | Field | When | Meaning |
//! |---|---|---|
//! | `id` | always | `-node-id` |
//! | `api_addr`, `addr` | known | URL of its HTTP interface; its Raft address |
//! | `version` | always | empty if it did not answer |
//! | `voter`, `reachable`, `leader` | always | |
//! | `time`, `time_s` | it answered | how long that took, in seconds and as Go prints it |
//! | `error` | it did not answer | why |
//! | `wallaby` | always | what rqlite does not have; see below |
//!
//! | Field of `wallaby` | Meaning |
//! |---|---|
//! | `catch_up` | while it receives the database: `percent`, and `bytes_per_second` of pages |
//! | `role` | `leader`, `voter`, `replica`, `joining` (to vote, not caught up), `removed` |
//!
//! An object by id; with `ver=2` `{"nodes":[...]}`, sorted by id. Without `nonvoters` only voters.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use crate::node::{MemberRole, MemberStatus};

use super::parameters::Parameters;
use super::server::Server;
use super::{duration, json, refusal};

pub(super) async fn answer(server: &Server, parameters: &Parameters) -> Response<Body> {
    let mut members = server.node.members(parameters.timeout).await;
    // A node that was removed shows nothing but itself.
    let alone = members.len() == 1;
    if !parameters.flag("nonvoters") {
        let is_removed = |member: &MemberStatus| alone && member.role == MemberRole::Removed;
        members.retain(|member| member.voter || is_removed(member));
    }
    let array = parameters.text("ver") == Some("2");
    let mut body = render(&mut members, array, server.scheme());
    if parameters.flag("pretty") {
        body = json::indent(&body);
    }
    refusal::json(StatusCode::OK, body)
}

/// Renders members as `/nodes` shows them, as an array if `array`, else as an object by id. The
/// scheme is that of their HTTP interfaces.
#[must_use]
pub fn render(members: &mut [MemberStatus], array: bool, scheme: &str) -> Vec<u8> {
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = Vec::new();
    out.extend_from_slice(if array { b"{\"nodes\":[" } else { b"{" });
    for (position, member) in members.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        if !array {
            json::string(&mut out, &member.name);
            out.push(b':');
        }
        node(&mut out, member, scheme);
        additions(&mut out, member);
        out.push(b'}');
    }
    out.extend_from_slice(if array { b"]}" } else { b"}" });
    out
}

/// Renders one member, as `/leader` shows it.
pub(super) fn render_one(member: &MemberStatus, scheme: &str) -> Vec<u8> {
    let mut out = Vec::new();
    node(&mut out, member, scheme);
    out.push(b'}');
    out
}

/// All but the closing brace.
fn node(out: &mut Vec<u8>, member: &MemberStatus, scheme: &str) {
    out.extend_from_slice(b"{\"id\":");
    json::string(out, &member.name);
    let prefix = format!("{scheme}://");
    for (name, prefix, address) in [
        (",\"api_addr\":", prefix.as_str(), &member.http_addr),
        (",\"addr\":", "", &member.raft_addr),
    ] {
        if !address.is_empty() {
            out.extend_from_slice(name.as_bytes());
            json::string(out, &format!("{prefix}{address}"));
        }
    }
    out.extend_from_slice(b",\"version\":");
    json::string(
        out,
        if member.reachable {
            &member.version
        } else {
            ""
        },
    );
    let flags = [
        (",\"voter\":", member.voter),
        (",\"reachable\":", member.reachable),
        (",\"leader\":", member.leader && member.reachable),
    ];
    for (name, flag) in flags {
        out.extend_from_slice(name.as_bytes());
        json::boolean(out, flag);
    }
    if member.reachable && !member.elapsed.is_zero() {
        out.extend_from_slice(b",\"time\":");
        json::number(out, member.elapsed.as_secs_f64());
        out.extend_from_slice(b",\"time_s\":");
        json::string(out, &duration::format(member.elapsed));
    }
    if let Some(error) = member.error.as_deref().filter(|error| !error.is_empty()) {
        out.extend_from_slice(b",\"error\":");
        json::string(out, error);
    }
}

fn additions(out: &mut Vec<u8>, member: &MemberStatus) {
    let mut more = json!({ "role": member.role.name() });
    if let Some(catch_up) = member.catch_up {
        more["catch_up"] = json!({
            "bytes_per_second": catch_up.bytes_per_second,
            "percent": catch_up.percent,
        });
    }
    out.extend_from_slice(b",\"wallaby\":");
    json::tree(out, &more);
}
