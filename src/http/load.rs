//! `POST /db/load` and `POST /boot`: a SQLite file in place of the database, or SQL. What it is
//! shows in its first bytes, whatever its content type says; gzip is undone.

use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, Response, StatusCode};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::node::{Content, Credentials, Shape, Upload};

use super::body::{self, BodyError};
use super::parameters::Parameters;
use super::redirect;
use super::refusal;
use super::response::{self, Envelope, Form};
use super::server::Server;

/// What `/boot` looks at before it takes anything: rqlite's length of a header.
const BOOT_HEADER_BYTES: usize = 32;
/// How a SQLite file begins, as far as rqlite looks.
const BOOT_MAGIC: &[u8] = b"SQLite format 3";

/// Answers `/db/load`.
pub(super) async fn answer(
    server: &Server,
    parameters: &Parameters,
    caller: Option<Credentials>,
    request: Request<Body>,
) -> Response<Body> {
    let started = Instant::now();
    let uri = request.uri().clone();
    let mut stream = request.into_body().into_data_stream();
    if parameters.flag("redirect")
        && let Some(elsewhere) = redirect::to_leader(server, &uri)
    {
        body::discard(&mut stream).await;
        return elsewhere;
    }
    let upload = match receive(server, &mut stream, Vec::new()).await {
        Ok(upload) => upload,
        Err(response) => return response,
    };
    let mut envelope = Envelope {
        shape: Shape::Execute,
        elapsed: Duration::ZERO,
        raft_index: None,
        form: Form {
            pretty: parameters.flag("pretty"),
            timings: parameters.flag("timings"),
            ..Form::default()
        },
    };
    let patience = parameters.timeout.min(server.options.timeout_max);
    let served = server.node.load(upload, patience, caller).await;
    envelope.elapsed = started.elapsed();
    match served {
        Ok(served) => sniffed(response::render(&served.reply, &envelope)),
        Err(refusal) => refusal::refused(&refusal, &envelope),
    }
}

/// rqlite leaves the content type of this one to be guessed, and JSON is guessed to be text.
fn sniffed(body: Vec<u8>) -> Response<Body> {
    let mut response = refusal::json(StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_TYPE, refusal::PLAIN);
    response
}

/// Answers `/boot`: rqlite's way to fill a node that is alone, without its log. Here it is a load
/// that accepts nothing but a SQLite file, and only on such a node.
pub(super) async fn boot(
    server: &Server,
    parameters: &Parameters,
    caller: Option<Credentials>,
    request: Request<Body>,
) -> Response<Body> {
    let mut stream = request.into_body().into_data_stream();
    let head = match head(&mut stream, server.options.body_pause_max).await {
        Ok(head) => head,
        Err(error) => return refusal::text(error.status(), &error.to_string()),
    };
    if head.len() < BOOT_HEADER_BYTES {
        return refusal::text(StatusCode::SERVICE_UNAVAILABLE, "EOF");
    }
    let refused = if head.starts_with(BOOT_MAGIC) {
        let alone = server.node.leads_alone();
        alone.map_err(|why| refusal::text(StatusCode::SERVICE_UNAVAILABLE, &why))
    } else {
        let why = "invalid SQLite data";
        Err(refusal::text(StatusCode::BAD_REQUEST, why))
    };
    if let Err(response) = refused {
        body::discard(&mut stream).await;
        return response;
    }
    let upload = match receive(server, &mut stream, head).await {
        Ok(upload) => upload,
        Err(response) => return response,
    };
    if upload.content() != Ok(Content::Database) {
        return refusal::text(StatusCode::BAD_REQUEST, "invalid SQLite data");
    }
    let patience = parameters.timeout.min(server.options.timeout_max);
    match server.node.load(upload, patience, caller).await {
        Ok(_) => refusal::empty(StatusCode::OK),
        Err(refusal) => refusal::plain(&refusal),
    }
}

/// The first bytes of a body, as they arrive, until there are enough for a header.
async fn head(stream: &mut BodyDataStream, pause_max: Duration) -> Result<Vec<u8>, BodyError> {
    let mut head = Vec::new();
    while head.len() < BOOT_HEADER_BYTES {
        match next(stream, pause_max).await? {
            Some(chunk) => head.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(head)
}

/// Receives a body into a file. What comes after an error is read and thrown away for a while, so
/// that the client gets to see the answer.
async fn receive(
    server: &Server,
    stream: &mut BodyDataStream,
    head: Vec<u8>,
) -> Result<Upload, Response<Body>> {
    let pause_max = server.options.body_pause_max;
    let received = async {
        let refused = |refusal| refusal::plain(&refusal);
        let mut upload = server.node.upload().await.map_err(refused)?;
        upload = upload.push(&head).await.map_err(refused)?;
        loop {
            let chunk = next(stream, pause_max).await;
            let broken = |error: BodyError| refusal::text(error.status(), &error.to_string());
            match chunk.map_err(broken)? {
                Some(chunk) => upload = upload.push(&chunk).await.map_err(refused)?,
                None => return upload.finish().await.map_err(refused),
            }
        }
    };
    let received = received.await;
    if received.is_err() {
        body::discard(stream).await;
    }
    received
}

async fn next(
    stream: &mut BodyDataStream,
    pause_max: Duration,
) -> Result<Option<bytes::Bytes>, BodyError> {
    let next = timeout(pause_max, stream.next()).await;
    let chunk = next.map_err(|_| BodyError::Stalled(pause_max))?;
    chunk
        .transpose()
        .map_err(|error| BodyError::Broken(error.to_string()))
}
