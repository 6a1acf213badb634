//! How a call that was not served is answered.
//!
//! | Refusal | Status | Body |
//! |---|---|---|
//! | `NotPermitted` | 401 | `remote ... not authorized`, plain text, as rqlite |
//! | `LeaderNotFound` | 503 | `leader not found`, plain text, as rqlite |
//! | `NotCommitted`, `NotReady`, `Overloaded`, `OutOfService` | 503 | results and error |
//! | `TimedOut`, `Unknown` | 504 | results and error |
//!
//! "results and error" is `{"results":[],"error":"..."}`, the error being the refusal's text.
//!
//! rqlite answers 200 with a top-level `error` to most of these. A client that looks only at the
//! status would take a write of unknown outcome for a success, so the status says it here.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Response, StatusCode};

use crate::node::{Refusal, Reply};

use super::response::{self, Envelope};

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
pub(super) const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// An answer with a JSON body.
pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// An error as one line of text.
pub(super) fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{message}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer to a call that was not served, by the table above.
pub(super) fn refused(refusal: &Refusal, envelope: &Envelope) -> Response<Body> {
    let status = match refusal {
        Refusal::NotPermitted(_) => return text(StatusCode::UNAUTHORIZED, &refusal.to_string()),
        Refusal::LeaderNotFound => {
            return text(StatusCode::SERVICE_UNAVAILABLE, &refusal.to_string());
        }
        Refusal::NotCommitted(_)
        | Refusal::NotReady(_)
        | Refusal::Overloaded(_)
        | Refusal::OutOfService(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::TimedOut(_) | Refusal::Unknown(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    let reply = Reply {
        outcomes: Vec::new(),
        error: Some(refusal.to_string()),
    };
    json(status, response::render(&reply, envelope))
}
