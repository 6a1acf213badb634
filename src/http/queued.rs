//! `/db/execute?queue`: answered when the write is queued or, with `wait`, when it has been sent.
//!
//! | Case | Status | Body |
//! |---|---|---|
//! | queued, or sent | 200 | `{"results":[],"sequence_number":1795331158022035915}` |
//! | no leader, and not `noleader` | 503 | `leader not found` |
//! | no room within `timeout` | 503 | `queue is full...` |
//! | `wait`, and not sent within `timeout` | 408 | `queue wait timeout`; the write stays queued |
//! | `wait`, and given up | as without `queue` | as without `queue` |
//!
//! `[]` with `wait` queues nothing and waits for everything before it.

use std::time::Instant;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::node::{Credentials, Refusal, Request};

use super::parameters::Parameters;
use super::queue::QueueStatus;
use super::response::Envelope;
use super::server::Server;
use super::{duration, json, refusal};

/// The queue in `/status`: rqlite's keys, and ours for what is waiting and what went wrong.
pub(super) fn report(status: &QueueStatus) -> Value {
    json!({
        "_default": {
            "batch_size": status.options.batch_size,
            "max_size": status.options.capacity,
            "requests_lost": status.requests_lost,
            "sequence_number": status.sequence_number,
            "statements_failed": status.statements_failed,
            "timeout": duration::format(status.options.batch_time_max),
            "transaction": status.options.transaction,
            "waiting": status.waiting,
        }
    })
}

pub(super) async fn answer(
    server: &Server,
    parameters: &Parameters,
    mut request: Request,
    caller: Option<Credentials>,
    mut envelope: Envelope,
) -> Response<Body> {
    let started = Instant::now();
    if !parameters.flag("noleader") && server.node.leader().is_none() {
        return refusal::refused(&Refusal::LeaderNotFound, &envelope);
    }
    let (done, fate) = if parameters.flag("wait") {
        let (done, fate) = oneshot::channel();
        (Some(done), Some(fate))
    } else {
        (None, None)
    };
    let patience = parameters.timeout.min(server.options.timeout_max);
    // Nobody waits for it, so nobody's going away would end it.
    request.statement_time_max.get_or_insert(patience);
    let pushed = server.queue.push(request, caller, done, patience).await;
    let sequence_number = match pushed {
        Ok(sequence_number) => sequence_number,
        Err(full) => return refusal::text(StatusCode::SERVICE_UNAVAILABLE, &full.to_string()),
    };
    if let Some(fate) = fate {
        match timeout(patience.saturating_sub(started.elapsed()), fate).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(refusal))) => return refusal::refused(&refusal, &envelope),
            Ok(Err(_)) => {
                let why = "the node is shutting down".to_owned();
                return refusal::refused(&Refusal::Unknown(why), &envelope);
            }
            Err(_) => return refusal::text(StatusCode::REQUEST_TIMEOUT, "queue wait timeout"),
        }
    }
    envelope.elapsed += started.elapsed();
    let mut body = b"{\"results\":[]".to_vec();
    if envelope.form.timings {
        body.extend_from_slice(b",\"time\":");
        json::number(&mut body, envelope.elapsed.as_secs_f64());
    }
    body.extend_from_slice(b",\"sequence_number\":");
    json::unsigned(&mut body, sequence_number);
    body.push(b'}');
    if envelope.form.pretty {
        body = json::indent(&body);
    }
    refusal::json(StatusCode::OK, body)
}
