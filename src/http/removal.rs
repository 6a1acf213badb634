//! `DELETE /remove` with `{"id":"node3"}`: takes a member out of the cluster, through any node.
//!
//! | Case | Status | Body |
//! |---|---|---|
//! | removed, or no such member | 200 | none |
//! | any other body | 400 | none |
//! | it is the last voter, or too few of the others can be reached | 500 | why, and what to do |
//! | nobody leads | 503 | `leader not found` |
//!
//! `"force":true` beside the id skips the check that the others are there.

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, Uri};
use serde_json::Value;

use crate::node::{AdministrationError, Credentials, Refusal};

use super::leader::{BODY_BYTES_MAX, refused};
use super::parameters::Parameters;
use super::server::Server;
use super::{body, redirect, refusal};

pub(super) async fn answer(
    server: &Server,
    parameters: &Parameters,
    request: Request<Body>,
    caller: Option<Credentials>,
) -> Response<Body> {
    let uri: Uri = request.uri().clone();
    let pause_max = server.options.body_pause_max;
    let read = body::read(request, BODY_BYTES_MAX, pause_max, &server.bodies).await;
    let (body, _share) = match read {
        Ok(read) => read,
        Err(error) => return refusal::text(error.status(), &error.to_string()),
    };
    let Some((name, force)) = target(&body) else {
        return refusal::empty(StatusCode::BAD_REQUEST);
    };
    if server.node.leader().is_none() {
        return refused(&AdministrationError::Refused(Refusal::LeaderNotFound));
    }
    if parameters.flag("redirect")
        && let Some(elsewhere) = redirect::to_leader(server, &uri)
    {
        return elsewhere;
    }
    let removed = server
        .node
        .remove_member(name, force, parameters.timeout, caller);
    match removed.await {
        Ok(()) => refusal::empty(StatusCode::OK),
        Err(error) => refused(&error),
    }
}

/// The name, and whether force is asked for; `None` for anything else.
fn target(body: &[u8]) -> Option<(String, bool)> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else {
        return None;
    };
    let Some(Value::String(name)) = fields.remove("id") else {
        return None;
    };
    let force = match fields.remove("force") {
        None => false,
        Some(Value::Bool(force)) => force,
        Some(_) => return None,
    };
    fields.is_empty().then_some((name, force))
}
