//! `/db/execute`, `/db/query` and `/db/request`: from body to statements to results.
//!
//! With the parameter `raft_index` the answer to a write carries its index in the log. A read that
//! brings one along, as the value of that parameter or in the header `X-Wallaby-Raft-Index`, sees
//! at least that: the later one if it brings both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, Response, StatusCode,
};

use crate::node::{
    Answer, Credentials, Level, ReadRequest, Refusal, Reply, Request, Served, Shape, Statement,
    WriteRequest,
};

use super::body::{self, Share};
use super::caller;
use super::counters::HttpCounter;
use super::parameters::{self, LevelAsked, ParameterError, Parameters};
use super::queued;
use super::redirect;
use super::refusal;
use super::request::{self, RequestError};
use super::response::{self, Envelope, Form, TooLong};
use super::server::Server;

const SERVED_BY: HeaderName = HeaderName::from_static("x-rqlite-served-by");
const RAFT_INDEX: HeaderName = HeaderName::from_static("x-wallaby-raft-index");

/// Bodies and results above these sizes are converted on a blocking thread: they would hold up
/// every other call on this worker for milliseconds.
const INLINE_BODY_BYTES_MAX: usize = 256 * 1024;
const INLINE_VALUES_MAX: usize = 10_000;

pub(super) async fn answer(
    server: &Arc<Server>,
    shape: Shape,
    mut parameters: Parameters,
    http_request: HttpRequest<Body>,
) -> Response<Body> {
    let started = Instant::now();
    match index_of(http_request.headers()) {
        Ok(index) => parameters.index_min = parameters.index_min.max(index),
        Err(error) => return refusal::text(StatusCode::BAD_REQUEST, &error.to_string()),
    }
    let uri = http_request.uri().clone();
    let caller = caller::credentials(http_request.headers());
    let received = statements(server, shape, &parameters, http_request).await;
    let (statements, _share) = match received {
        Ok(received) => received,
        Err(response) => return response,
    };
    count(server, shape, statements.len());
    let mut envelope = Envelope {
        shape,
        elapsed: Duration::ZERO,
        raft_index: None,
        form: Form {
            associative: parameters.flag("associative"),
            blob_array: parameters.flag("blob_array"),
            pretty: parameters.flag("pretty"),
            timings: parameters.flag("timings"),
        },
    };
    let request = Request {
        statements,
        transaction: parameters.flag("transaction"),
        shape,
        statement_time_max: parameters.statement_time_max,
        qualify_columns: shape != Shape::Execute && parameters.flag("qualify_columns"),
    };
    if is_queued(shape, &parameters) {
        envelope.elapsed = started.elapsed();
        return queued::answer(server, &parameters, request, caller, envelope).await;
    }
    let level = level(server, &parameters);
    // Whatever may be answered from the local database is.
    let is_local = shape != Shape::Execute && level == Level::None;
    if parameters.flag("redirect")
        && !is_local
        && let Some(elsewhere) = redirect::to_leader(server, &uri)
    {
        return elsewhere;
    }
    let served = serve(server, level, &parameters, request, caller).await;
    envelope.elapsed = started.elapsed();
    let served = match served {
        Ok(served) => served,
        Err(refusal) => {
            if refusal == Refusal::LeaderNotFound {
                server.counters.count(HttpCounter::LeaderNotFound);
            }
            return refusal::refused(&refusal, &envelope);
        }
    };
    if parameters.flag("raft_index") {
        envelope.raft_index = served.raft_index;
    }
    let served_by = HeaderValue::from_str(&served.served_by);
    let failed = served.reply.error.is_some();
    let mut response =
        match rendered(served.reply, envelope, server.options.response_bytes_max).await {
            Ok(body) => refusal::json(StatusCode::OK, body),
            Err(error) => refusal::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        };
    // rqlite names the node only where statements were run.
    if let (false, Ok(served_by)) = (failed, served_by) {
        response.headers_mut().insert(SERVED_BY, served_by);
    }
    response
}

/// The index in the headers of a request; 0 if there is none.
fn index_of(headers: &HeaderMap) -> Result<u64, ParameterError> {
    let Some(value) = headers.get(RAFT_INDEX) else {
        return Ok(0);
    };
    parameters::index(value.to_str().unwrap_or_default(), "X-Wallaby-Raft-Index")
}

fn count(server: &Server, shape: Shape, statements: usize) {
    let (call, each) = match shape {
        Shape::Execute => (HttpCounter::Executions, HttpCounter::ExecuteStatements),
        Shape::Query => (HttpCounter::Queries, HttpCounter::QueryStatements),
        Shape::Unified => (HttpCounter::Requests, HttpCounter::RequestStatements),
    };
    server.counters.count(call);
    server.counters.add(each, statements as u64);
}

/// The statements of a call and what they take of the budget of bodies, or the answer that refuses
/// the call.
async fn statements(
    server: &Arc<Server>,
    shape: Shape,
    parameters: &Parameters,
    http_request: HttpRequest<Body>,
) -> Result<(Vec<Statement>, Share), Response<Body>> {
    if http_request.method() == Method::GET {
        // No `q` is an empty statement, which has no result.
        let sql = parameters.text("q").unwrap_or_default().to_owned();
        let statement = Statement {
            sql,
            parameters: Vec::new(),
        };
        return Ok((vec![statement], Share::default()));
    }
    let content_type = http_request.headers().get(CONTENT_TYPE);
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let is_queued = is_queued(shape, parameters);
    let plain = shape != Shape::Unified && !is_queued && request::is_plain_text(content_type);
    let options = &server.options;
    let (bytes_max, pause_max) = (options.body_bytes_max, options.body_pause_max);
    let body = body::read(http_request, bytes_max, pause_max, &server.bodies).await;
    let (body, share) = body.map_err(|error| refusal::text(error.status(), &error.to_string()))?;
    if plain {
        return Ok((request::plain_statement(&body), share));
    }
    match parsed(body).await {
        Ok(statements) => Ok((statements, share)),
        // Waits for what is queued already.
        Err(RequestError::NoStatements) if is_queued && parameters.flag("wait") => {
            Ok((Vec::new(), share))
        }
        Err(error) => Err(refusal::text(StatusCode::BAD_REQUEST, &error.to_string())),
    }
}

/// Whether a call is to be answered before it is run.
fn is_queued(shape: Shape, parameters: &Parameters) -> bool {
    shape == Shape::Execute && parameters.flag("queue")
}

/// The guarantee for the reads of a call.
fn level(server: &Server, parameters: &Parameters) -> Level {
    match parameters.level() {
        LevelAsked::Fixed(level) => level,
        LevelAsked::Auto if !server.node.is_replica() => Level::Weak,
        LevelAsked::Auto => Level::None,
    }
}

async fn parsed(body: Vec<u8>) -> Result<Vec<Statement>, RequestError> {
    if body.len() <= INLINE_BODY_BYTES_MAX {
        return request::parse_statements(&body);
    }
    let parsing = tokio::task::spawn_blocking(move || request::parse_statements(&body));
    parsing.await.unwrap_or(Err(RequestError::Json))
}

async fn serve(
    server: &Server,
    level: Level,
    parameters: &Parameters,
    request: Request,
    caller: Option<Credentials>,
) -> Result<Served, Refusal> {
    let shape = request.shape;
    let timeout = parameters.timeout.min(server.options.timeout_max);
    if shape == Shape::Execute {
        let write = WriteRequest {
            caller,
            ..WriteRequest::new(request, timeout)
        };
        return server.node.execute(write).await;
    }
    let read = ReadRequest {
        caller,
        freshness: parameters.freshness,
        index_min: parameters.index_min,
        confirm_timeout: (level == Level::Linearizable).then_some(parameters.linearizable_timeout),
        ..ReadRequest::new(request, level, timeout)
    };
    if shape == Shape::Query {
        server.node.query(read).await
    } else {
        server.node.request(read).await
    }
}

async fn rendered(reply: Reply, envelope: Envelope, bytes_max: usize) -> Result<Vec<u8>, TooLong> {
    let values: usize = reply
        .outcomes
        .iter()
        .map(|outcome| match &outcome.answer {
            Answer::Rows(rows) => rows.values.len().saturating_mul(rows.columns.len()),
            _ => 0,
        })
        .fold(0, usize::saturating_add);
    if values <= INLINE_VALUES_MAX {
        return response::render_within(&reply, &envelope, bytes_max);
    }
    let rendering =
        tokio::task::spawn_blocking(move || response::render_within(&reply, &envelope, bytes_max));
    rendering
        .await
        .expect("rendering does not panic, and is not cancelled while it is awaited")
}
