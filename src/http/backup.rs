//! `GET /db/backup`: a copy of the database.
//!
//! | Parameter | Copy |
//! |---|---|
//! | none | a SQLite file in WAL mode |
//! | `fmt=delete` | a SQLite file in rollback mode |
//! | `vacuum` | the same, compacted |
//! | `fmt=sql` | SQL; `tables=a,b` of these tables only |
//! | `compress` | any of them through gzip, with the same content type |
//! | `noleader` | of what this node has, without asking the leader |
//!
//! A copy that is cut off is told from a whole one: a file by its `Content-Length`, the others by
//! the end of the chunked body, which is missing.

use std::io::{self, Write};

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, Response, StatusCode, Uri};
use bytes::Bytes;
use futures_util::stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

use crate::node::{Backup, BackupForm, BackupRequest, Credentials};

use super::parameters::Parameters;
use super::redirect;
use super::refusal;
use super::server::Server;

/// Sent at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that wait for the client.
const CHUNKS_MAX: usize = 4;

pub(super) async fn answer(
    server: &Server,
    parameters: &Parameters,
    uri: &Uri,
    caller: Option<Credentials>,
) -> Response<Body> {
    if parameters.flag("redirect")
        && !parameters.flag("noleader")
        && let Some(elsewhere) = redirect::to_leader(server, uri)
    {
        return elsewhere;
    }
    let Some(form) = form(parameters) else {
        return refusal::text(StatusCode::INTERNAL_SERVER_ERROR, "invalid backup format");
    };
    let content_type = match form {
        BackupForm::Sql(_) => HeaderValue::from_static("application/sql"),
        _ => HeaderValue::from_static("application/octet-stream"),
    };
    let request = BackupRequest {
        form,
        is_compressed: parameters.flag("compress"),
        is_local: parameters.flag("noleader"),
        timeout: parameters.timeout,
        caller,
    };
    let backup = match server.node.backup(request).await {
        Ok(backup) => backup,
        Err(refusal) => return refusal::plain(&refusal),
    };
    let length = backup.bytes();
    let mut response = Response::new(body(backup, server.options.body_pause_max));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// `None`: SQL cannot be compacted.
fn form(parameters: &Parameters) -> Option<BackupForm> {
    let is_vacuumed = parameters.flag("vacuum");
    match parameters.text("fmt") {
        Some("sql") if is_vacuumed => None,
        Some("sql") => {
            let tables = parameters.text("tables").unwrap_or_default().split(',');
            let tables = tables.map(str::trim).filter(|name| !name.is_empty());
            Some(BackupForm::Sql(tables.map(str::to_owned).collect()))
        }
        _ if is_vacuumed => Some(BackupForm::Vacuumed),
        Some("delete") => Some(BackupForm::Delete),
        _ => Some(BackupForm::Wal),
    }
}

/// Sends the copy as fast as the client takes it. The copy and its thread wait for a client that
/// takes nothing for `pause_max` at most.
fn body(backup: Backup, pause_max: Duration) -> Body {
    let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut out = Chunks {
            buffer: Vec::with_capacity(CHUNK_BYTES),
            chunks,
            pause_max,
            runtime,
        };
        let written = backup.write_to(&mut out).and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "a backup was not sent to its end");
            // The client may be gone; otherwise it must not take what it has for the whole.
            drop(out.chunks.blocking_send(Err(error)));
        }
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        let chunk: io::Result<Bytes> = receiver.recv().await?;
        Some((chunk, receiver))
    }))
}

/// Turns what is written into the chunks of a body.
struct Chunks {
    buffer: Vec<u8>,
    chunks: mpsc::Sender<io::Result<Bytes>>,
    pause_max: Duration,
    runtime: Handle,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES - self.buffer.len();
        let count = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        let sending = timeout(self.pause_max, self.chunks.send(Ok(Bytes::from(full))));
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the client has gone")),
            Err(_) => {
                let what = format!("the client has taken nothing for {:?}", self.pause_max);
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            }
        }
    }
}
