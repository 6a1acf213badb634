//! `GET /readyz`: whether this node can serve. One line per check, the first failed one last.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Response, StatusCode};

use super::parameters::Parameters;
use super::refusal::{self, PLAIN};
use super::server::Server;

pub(super) async fn answer(server: &Server, parameters: &Parameters) -> Response<Body> {
    let mut lines = vec!["[+]node ok".to_owned()];
    let failure = if parameters.flag("noleader") {
        None
    } else {
        let failure = failure(server, parameters, &mut lines).await;
        if failure.is_none() {
            lines.push("[+]db ok".to_owned());
        }
        failure
    };
    let status = if failure.is_none() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    lines.extend(failure);
    let mut response = refusal::empty(status);
    *response.body_mut() = Body::from(lines.join("\n"));
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    response
}

/// Adds the checks that passed, and returns the line of the first one that did not.
async fn failure(
    server: &Server,
    parameters: &Parameters,
    lines: &mut Vec<String>,
) -> Option<String> {
    let status = server.node.status();
    // Before the leader: such a node takes no part in Raft any more, and knows none.
    if let Some(reason) = status.out_of_service {
        return Some(format!("[+]db not ok: ({reason})"));
    }
    if let Some(reason) = status.removed {
        return Some(format!("[+]not a member: {reason}"));
    }
    if status.leader.is_none() {
        return Some("[+]leader does not exist".to_owned());
    }
    if let Err(error) = server.node.leader_answers(parameters.timeout).await {
        return Some(format!("[+]leader not contactable: {error}"));
    }
    lines.push("[+]leader ok".to_owned());
    if !status.ready {
        return Some("[+]store not ready".to_owned());
    }
    lines.push("[+]store ok".to_owned());
    if parameters.flag("sync") {
        if let Err(error) = server.node.catch_up(parameters.timeout).await {
            return Some(format!("[+]sync {error}"));
        }
        lines.push("[+]sync ok".to_owned());
    }
    None
}
