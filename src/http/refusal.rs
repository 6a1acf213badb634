//! How a call that was not served is answered.
//!
//! | Refusal | Status | Body |
//! |---|---|---|
//! | `NotPermitted` | 401 | `remote ... not authorized`, plain text, as rqlite |
//! | `Busy` | 503 | why, plain text |
//! | `Failed` | 500 | why, plain text |
//! | `LeaderNotFound` | 503 | `leader not found`, plain text, as rqlite |
//! | `Damaged`, `NotCommitted`, `NotReady` | 503 | results and error |
//! | `Overloaded`, `OutOfService` | 503 | results and error |
//! | `TooLarge`, `Unfit` | 413, 400 | why, plain text |
//! | `TimedOut` | 504 | results and error |
//! | `Unknown` | 409 | results and error |
//!
//! "results and error" is `{"results":[],"error":"..."}`, the error being the refusal's text.
//!
//! rqlite answers 200 with a top-level `error` to most of these. A client that looks only at the
//! status would take a write of unknown outcome for a success, so the status says it here. It is
//! not one of those that clients repeat by themselves: rqlite-js sends a write again after 408,
//! 413, 429, 500, 502, 503 and 504, others after any 5xx, and then it could be applied twice.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Response, StatusCode};

use crate::node::{Refusal, Reply, Shape};

use super::response::{self, Envelope, Form};

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

/// The answer to a call whose answers are no results.
pub(super) fn plain(refusal: &Refusal) -> Response<Body> {
    let envelope = Envelope {
        shape: Shape::Execute,
        elapsed: Duration::ZERO,
        raft_index: None,
        form: Form::default(),
    };
    let refused = refused(refusal, &envelope);
    text(refused.status(), &refusal.to_string())
}

/// The answer to a call that was not served, by the table above.
pub(super) fn refused(refusal: &Refusal, envelope: &Envelope) -> Response<Body> {
    let status = match refusal {
        Refusal::NotPermitted(_) => return text(StatusCode::UNAUTHORIZED, &refusal.to_string()),
        Refusal::Busy(_) | Refusal::LeaderNotFound => {
            return text(StatusCode::SERVICE_UNAVAILABLE, &refusal.to_string());
        }
        Refusal::Failed(_) => {
            return text(StatusCode::INTERNAL_SERVER_ERROR, &refusal.to_string());
        }
        Refusal::TooLarge(_) => {
            return text(StatusCode::PAYLOAD_TOO_LARGE, &refusal.to_string());
        }
        Refusal::Unfit(_) => return text(StatusCode::BAD_REQUEST, &refusal.to_string()),
        Refusal::Damaged(_)
        | Refusal::NotCommitted(_)
        | Refusal::NotReady(_)
        | Refusal::Overloaded(_)
        | Refusal::OutOfService(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
        Refusal::Unknown(_) => StatusCode::CONFLICT,
    };
    let reply = Reply {
        outcomes: Vec::new(),
        error: Some(refusal.to_string()),
    };
    json(status, response::render(&reply, envelope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::response::Form;
    use crate::node::Shape;
    use std::time::Duration;

    #[test]
    fn what_may_have_been_written_is_answered_with_a_status_that_no_client_repeats() {
        let envelope = Envelope {
            shape: Shape::Execute,
            elapsed: Duration::ZERO,
            raft_index: None,
            form: Form::default(),
        };
        let status = |refusal| refused(&refusal, &envelope).status().as_u16();
        assert_eq!(status(Refusal::Unknown(String::new())), 409);
        // These are for repeating: nothing was written.
        assert_eq!(status(Refusal::NotCommitted(String::new())), 503);
        assert_eq!(status(Refusal::LeaderNotFound), 503);
        assert_eq!(status(Refusal::TimedOut(String::new())), 504);
    }
}
