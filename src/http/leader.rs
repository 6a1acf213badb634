//! `GET /leader`: the leader, in the form of `/nodes`. `POST /leader`: it is to step down.
//!
//! | POST | Status | Body |
//! |---|---|---|
//! | agreed or, with `wait`, another node leads | 200 | none |
//! | `Content-Type: application/json` and not JSON | 400 | `invalid JSON: ...` |
//! | nobody can take over, or not that one | 500 | `stepdown: ...` |
//! | nobody leads | 503 | `leader not found` |
//!
//! The body may name the successor: `{"id":"node2"}`.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, Response, StatusCode};
use serde_json::{Value, error::Category};

use crate::node::{AdministrationError, Credentials, Refusal};

use super::parameters::Parameters;
use super::server::Server;
use super::{body, json, nodes, refusal};

pub(super) async fn answer(
    server: &Server,
    parameters: &Parameters,
    request: Request<Body>,
    caller: Option<Credentials>,
) -> Response<Body> {
    if request.method() == Method::GET {
        return show(server, parameters).await;
    }
    let content_type = request.headers().get(CONTENT_TYPE);
    let is_json = content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().starts_with("application/json"));
    let pause_max = server.options.body_pause_max;
    let read = body::read(request, BODY_BYTES_MAX, pause_max, &server.bodies).await;
    let (body, _share) = match read {
        Ok(read) => read,
        Err(error) => return refusal::text(error.status(), &error.to_string()),
    };
    let named = if is_json { successor(&body) } else { Ok(None) };
    let to = match named {
        Ok(to) => to,
        Err(problem) => {
            let text = format!("invalid JSON: {problem}");
            return refusal::text(StatusCode::BAD_REQUEST, &text);
        }
    };
    if server.node.leader().is_none() {
        return refused(&AdministrationError::Refused(Refusal::LeaderNotFound));
    }
    let (wait, timeout) = (parameters.flag("wait"), parameters.timeout);
    match server.node.step_down(to, wait, timeout, caller).await {
        Ok(()) => refusal::json(StatusCode::OK, Vec::new()),
        Err(error) => refused(&error),
    }
}

async fn show(server: &Server, parameters: &Parameters) -> Response<Body> {
    let Some(leader) = server.node.leader_asked(parameters.timeout).await else {
        return refused(&AdministrationError::Refused(Refusal::LeaderNotFound));
    };
    let mut body = nodes::render_one(&leader, server.scheme());
    if parameters.flag("pretty") {
        body = json::indent(&body);
    }
    refusal::json(StatusCode::OK, body)
}

/// How a change of the cluster that did not come about is answered.
pub(super) fn refused(error: &AdministrationError) -> Response<Body> {
    let status = match error {
        AdministrationError::Impossible(_) => StatusCode::INTERNAL_SERVER_ERROR,
        AdministrationError::Refused(refusal) => match refusal {
            Refusal::NotPermitted(_) => StatusCode::UNAUTHORIZED,
            Refusal::TimedOut(_) | Refusal::Unknown(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
    };
    refusal::text(status, &error.to_string())
}

/// The name in the body, if there is one; the errors are Go's as far as their place is known.
fn successor(body: &[u8]) -> Result<Option<String>, String> {
    if body.is_empty() {
        return Ok(None);
    }
    let parsed: Value = serde_json::from_slice(body).map_err(|error| problem(body, &error))?;
    let kind = match parsed {
        Value::Null => return Ok(None),
        Value::Object(mut fields) => match fields.remove("id") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(name)) => return Ok(Some(name).filter(|name| !name.is_empty())),
            Some(other) => format!("{} into Go struct field .id of type string", kind(&other)),
        },
        other => format!("{} into Go value of type struct", kind(&other)),
    };
    Err(format!("json: cannot unmarshal {kind}"))
}

/// What Go says about the same damage.
fn problem(body: &[u8], error: &serde_json::Error) -> String {
    if error.classify() == Category::Eof && body.last() != Some(&b'{') {
        return "unexpected end of JSON input".to_owned();
    }
    let lines = body.split_inclusive(|&byte| byte == b'\n');
    let before: usize = lines
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let at = (before + error.column()).saturating_sub(1);
    let Some(found) = body.get(at).copied().filter(u8::is_ascii_graphic) else {
        return "unexpected end of JSON input".to_owned();
    };
    let last = body[..at].iter().rfind(|byte| !byte.is_ascii_whitespace());
    let place = match last {
        Some(b'{') => "looking for beginning of object key string",
        None | Some(b':' | b'[') => "looking for beginning of value",
        Some(b'}' | b']') => "after top-level value",
        Some(_) => "after object key:value pair",
    };
    format!("invalid character '{}' {place}", char::from(found))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A name has at most 255 bytes.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
