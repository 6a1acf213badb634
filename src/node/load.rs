//! Loads: data that replaces the database, or a long SQL text, received by any node.
//!
//! The node that receives it keeps it in a file. If another node leads, the file is sent there, on
//! a stream of its own; the leader keeps it in a file too, and only then looks at it. A SQLite file
//! is checked in isolation; what is found fit goes through the writing connection as one
//! transaction, and from there in parts through the log like any large one.
//!
//! | Where it ends | What happened |
//! |---|---|
//! | on the way to the leader | nothing; it is sent again until the time is up |
//! | refused by the check | nothing, anywhere |
//! | after that | as with any write: committed, certainly not, or unknown |

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use serde::{Deserialize, Serialize};

use super::api::{Refusal, Served};
use super::caller::{Credentials, Permission};
use super::owner::Load;
use super::routing::{Route, forwarded};
use super::running::{Inner, Node, NotLed};
use super::scratch::{Scratch, check_room};
use super::upload::{Content, Upload, blocking, failed};
use super::wire::{self, Forwarded, kind};
use super::write::{served, write_alone};
use crate::sqlite::{self, Extensions, Interest, Reply, Request, Shape, Statement, Unfit};
use crate::transport::{FrameReader, FrameWriter, Priority};

/// "Load what follows", with how much that is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Loading {
    bytes: u64,
    timeout_ms: u64,
    caller: Option<Credentials>,
}

impl Node {
    /// Loads what was received. A load takes the time that its size needs on top of `timeout`.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]; only after `Unknown` it may have been loaded.
    pub async fn load(
        &self,
        upload: Upload,
        timeout: Duration,
        caller: Option<Credentials>,
    ) -> Result<Served, Refusal> {
        let content = upload.content()?;
        if content == Content::Nothing {
            let inner = self.inner()?;
            return Ok(served(Reply::default(), None, &inner.options.http_adv_addr));
        }
        let upload = &Arc::new(upload);
        let loading = &Loading {
            bytes: upload.bytes(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            caller,
        };
        self.at_leader(Instant::now() + timeout, |inner, route, _| async move {
            match route {
                Route::Here => inner.lead_load(upload, timeout).await,
                Route::There { node, addr } => inner.send_load(node, &addr, upload, loading).await,
            }
        })
        .await
    }

    /// Whether this node leads a cluster of which it is the only member.
    ///
    /// # Errors
    ///
    /// The text that says what it is not.
    pub fn leads_alone(&self) -> Result<(), String> {
        let inner = self.inner().map_err(|refusal| refusal.to_string())?;
        if inner.leading().is_none() {
            return Err("not leader".to_owned());
        }
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership().nodes().count();
        if members > 1 {
            return Err("not single-node".to_owned());
        }
        Ok(())
    }
}

impl Inner {
    /// A load on the node that leads.
    async fn lead_load(
        self: &Arc<Self>,
        upload: &Arc<Upload>,
        timeout: Duration,
    ) -> Result<Served, NotLed> {
        let Some(leader) = self.leading() else {
            return Err(None);
        };
        let place = Arc::clone(&self.loads).try_acquire_owned();
        let Ok(_place) = place else {
            let why = "another load is under way; send this one again later".to_owned();
            return Err(Some(Refusal::Busy(why)));
        };
        let patience = timeout + time_for(upload.bytes());
        let page_bytes = self.watches.extent.borrow().page_size;
        let source = Arc::clone(upload);
        let extensions = self.options.extensions.clone();
        let load = blocking(move || prepare(source, page_bytes, &extensions, patience)).await;
        let is_database = matches!(load, Ok(Load::Database { .. }));
        let written = write_alone(self, leader, load.map_err(Some)?, patience).await?;
        let (reply, raft_index) = written;
        match reply.error {
            Some(why) if is_database => Err(Some(Refusal::Failed(why))),
            _ => Ok(served(reply, raft_index, &self.options.http_adv_addr)),
        }
    }

    /// Sends a load to the leader. As long as the end of the stream is not sent, nothing of it was
    /// looked at there.
    async fn send_load(
        &self,
        node: u64,
        addr: &str,
        upload: &Arc<Upload>,
        loading: &Loading,
    ) -> Result<Served, NotLed> {
        let peer = self.endpoint.peer(addr, Some(node));
        let first = Bytes::from(wire::encode(loading));
        let opened = peer.open_stream(kind::LOAD, Priority::Bulk, first).await;
        let Ok((writer, mut replies)) = opened else {
            return Err(None);
        };
        let is_sent = send(writer, upload).await.map_err(|what| {
            tracing::debug!(what, "a load did not reach the leader");
        });
        let patience = match is_sent {
            Ok(()) => {
                Duration::from_millis(loading.timeout_ms) + time_for(loading.bytes) * 2 + ANSWER
            }
            // The leader may have refused it before its end, and says why.
            Err(()) => ANSWER,
        };
        let reply = tokio::time::timeout(patience, replies.next()).await;
        let reply = match (reply, is_sent) {
            (Ok(Ok(Some(reply))), _) => reply,
            (_, Err(())) => return Err(None),
            (Ok(Err(error)), Ok(())) => {
                let why = format!("the leader did not answer: {error}");
                return Err(Some(Refusal::Unknown(why)));
            }
            (_, Ok(())) => {
                let why = "the leader did not answer".to_owned();
                return Err(Some(Refusal::Unknown(why)));
            }
        };
        forwarded(&reply, addr)
    }

    /// Serves a load that another node received. An error is a stream that broke off: nobody waits
    /// for an answer.
    pub(crate) async fn receive_load(
        self: Arc<Self>,
        loading: Loading,
        frames: FrameReader,
    ) -> Result<Forwarded, String> {
        let Loading {
            bytes,
            timeout_ms,
            caller,
        } = loading;
        if !self.permits(caller, &[Permission::Load]).await {
            return Ok(Forwarded::Refused(Refusal::NotPermitted("load".to_owned())));
        }
        if self.leading().is_none() {
            return Ok(Forwarded::NotLeader);
        }
        let upload = match self.receive(frames, bytes).await? {
            Ok(upload) => Arc::new(upload),
            Err(refusal) => return Ok(Forwarded::Refused(refusal)),
        };
        let timeout = Duration::from_millis(timeout_ms);
        Ok(match self.lead_load(&upload, timeout).await {
            Ok(served) => Forwarded::Served(served),
            Err(None) => Forwarded::NotLeader,
            Err(Some(refusal)) => Forwarded::Refused(refusal),
        })
    }

    async fn receive(
        &self,
        mut frames: FrameReader,
        bytes: u64,
    ) -> Result<Result<Upload, Refusal>, String> {
        let options = &self.options;
        let begun = Upload::begin(&options.data_dir, options.transaction_bytes_max).await;
        let mut upload = match begun {
            Ok(upload) => upload,
            Err(refusal) => return Ok(Err(refusal)),
        };
        loop {
            let frame = tokio::time::timeout(STALL, frames.next()).await;
            let frame = frame.map_err(|_| format!("nothing arrived for {STALL:?}"))?;
            let Some(frame) = frame.map_err(|error| error.to_string())? else {
                break;
            };
            upload = match upload.push(&frame).await {
                Ok(upload) => upload,
                Err(refusal) => return Ok(Err(refusal)),
            };
        }
        let finished = upload.finish().await;
        if let Ok(upload) = &finished
            && upload.bytes() != bytes
        {
            return Err(format!("{} bytes instead of {bytes}", upload.bytes()));
        }
        Ok(finished)
    }
}

/// Sends all of it and the end of the stream.
async fn send(mut writer: FrameWriter, upload: &Arc<Upload>) -> Result<(), String> {
    let mut sent = 0;
    while sent < upload.bytes() {
        let source = Arc::clone(upload);
        let run = blocking(move || source.run(sent).map_err(|error| failed(&error))).await;
        let run = Bytes::from(run.map_err(|refusal| refusal.to_string())?);
        if run.is_empty() {
            return Err("the file has become shorter".to_owned());
        }
        sent += run.len() as u64;
        let sending = tokio::time::timeout(STALL, writer.send(&[], &[run])).await;
        sending
            .map_err(|_| format!("nothing was taken for {STALL:?}"))?
            .map_err(|error| error.to_string())?;
    }
    writer.finish();
    Ok(())
}

/// Looks at what was received, and says what the owner has to do. Blocks.
fn prepare(
    upload: Arc<Upload>,
    page_bytes: u32,
    extensions: &Extensions,
    time_max: Duration,
) -> Result<Load, Refusal> {
    if upload.content()? == Content::Script {
        let statement = Statement {
            sql: upload.text()?,
            parameters: Vec::new(),
        };
        let request = Request {
            statements: vec![statement],
            transaction: false,
            shape: Shape::Execute,
            statement_time_max: None,
            qualify_columns: false,
        };
        return Ok(Load::Script(request, Interest::default()));
    }
    check_room(upload.dir(), upload.bytes()).map_err(Refusal::Busy)?;
    let converted = Scratch::name(upload.dir()).map_err(|error| failed(&error))?;
    let fit = sqlite::vet(
        upload.path(),
        converted.path(),
        page_bytes,
        extensions,
        time_max,
    );
    let fit = fit.map_err(|unfit| match unfit {
        Unfit::Damaged(_) | Unfit::Unsupported(_) => Refusal::Unfit(unfit.to_string()),
        Unfit::Failed(error) => failed(&error),
    })?;
    check_room(upload.dir(), fit.bytes.saturating_mul(COPIES)).map_err(Refusal::Busy)?;
    Ok(Load::Database {
        path: fit.path,
        _files: (upload, converted),
    })
}

/// What so many bytes need in addition: a disk that does 2 MiB in a second is a slow one.
fn time_for(bytes: u64) -> Duration {
    Duration::from_secs(1 + bytes / (2 << 20))
}

/// The captured pages, the log, the WAL, and the main file once they are checkpointed.
const COPIES: u64 = 4;
/// Nothing moves for so long: the transfer is given up.
const STALL: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(1);
