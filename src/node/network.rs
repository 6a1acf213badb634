//! openraft's network over our transport: three lanes to each peer.
//!
//! Heartbeats, votes and transfers are short control requests, appends share one pipelined stream
//! with a window, snapshots have a bulk stream of their own. A heartbeat never queues behind data.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::append_frame;
use super::apply::SnapshotData;
use super::image_sender::ImageSender;
use super::lineage::{Lineage, Objection};
use super::places::Places;
use super::tally::{NodeCounter, Tally};
use super::wire::{
    self, AppendReply, TransferMessage, TransferReply, VoteAnswer, VoteMessage, VoteReply, kind,
};
use crate::raft::{LogId, Member, Snapshot, TypeConfig, Vote, position_of};
use crate::transport::{Endpoint, FrameReader, FrameWriter, Peer, Priority, TransportError};

/// Makes links to the members of the cluster.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) endpoint: Endpoint,
    pub(crate) images: ImageSender,
    pub(crate) places: Arc<Places>,
    /// Who objects to what is sent.
    pub(crate) lineage: Arc<Lineage>,
    /// No acknowledgement for so long means that the peer is stuck.
    pub(crate) stall: Duration,
}

impl Network {
    fn link(&self, target: u64, node: &Member, lane: Lane) -> Link {
        Link {
            endpoint: self.endpoint.clone(),
            places: Arc::clone(&self.places),
            lineage: Arc::clone(&self.lineage),
            target,
            raft_addr: node.raft_addr.clone(),
            images: self.images.clone(),
            stall: self.stall,
            lane,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node, Lane::Heartbeat)
    }
}

/// Which way appends of a link go.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Lane {
    Append,
    Heartbeat,
}

/// A cheap handle on one peer. Raft keeps it for as long as the peer is a member, wherever that
/// peer moves to.
pub(crate) struct Link {
    endpoint: Endpoint,
    places: Arc<Places>,
    lineage: Arc<Lineage>,
    target: u64,
    /// Where it was when the link was made.
    raft_addr: String,
    images: ImageSender,
    stall: Duration,
    lane: Lane,
}

impl Link {
    fn peer(&self) -> Peer {
        let addr = self.places.of(self.target, &self.raft_addr);
        self.endpoint.peer(&addr, Some(self.target))
    }

    async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        kind: u8,
        message: &Q,
        deadline: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let body = Bytes::from(wire::encode(message));
        let reply = self
            .peer()
            .request(kind, Priority::Control, body, deadline)
            .await;
        wire::decode(&reply.map_err(|error| rpc_error(&error))?).map_err(damaged)
    }

    async fn ask_vote(
        &self,
        kind: u8,
        request: VoteRequest<TypeConfig>,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = VoteMessage {
            vote: request.vote.into(),
            last_log_id: request.last_log_id.map(Into::into),
            leadership_transfer: request.leadership_transfer,
        };
        let reply: VoteReply = self.ask(kind, &message, option.hard_ttl()).await?;
        let VoteAnswer {
            vote,
            granted,
            last_log_id,
        } = reply.ok_or_else(stopped)?;
        Ok(VoteResponse::new(
            Vote::from(vote),
            last_log_id.map(Into::into),
            granted,
        ))
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(request.prev_log_id);
        let (mut frame, payloads) = append_frame::encode(&request);
        for payload in payloads {
            frame.extend_from_slice(&payload);
        }
        let reply = self
            .peer()
            .request(
                kind::HEARTBEAT,
                Priority::Control,
                Bytes::from(frame),
                option.hard_ttl(),
            )
            .await
            .map_err(|error| rpc_error(&error))?;
        match wire::decode(&reply).map_err(damaged)? {
            AppendReply::Conflict(_) => Ok(AppendEntriesResponse::Conflict),
            AppendReply::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote.into())),
            AppendReply::Matching(upto) => {
                let upto = upto.map(Into::into);
                Ok(if upto == last {
                    AppendEntriesResponse::Success
                } else {
                    AppendEntriesResponse::PartialSuccess(upto)
                })
            }
            // Only entries are objected to, and heartbeats have none.
            AppendReply::Objects { .. } | AppendReply::Stopped => Err(stopped()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.lane == Lane::Heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let opened = self
                .peer()
                .open_stream(kind::APPEND, Priority::Data, Bytes::new())
                .await;
            let (writer, reader) = opened.map_err(|error| rpc_error(&error))?;
            let (sent, outstanding) = mpsc::unbounded_channel();
            let tally = Arc::clone(&self.images.tally);
            let sender = tokio::spawn(send_appends(input, writer, sent, tally));
            let pipeline = Pipeline {
                reader,
                outstanding,
                sender,
                stall: self.stall,
                target: self.target,
                lineage: Arc::clone(&self.lineage),
            };
            let replies: BoxStream<'s, _> =
                Box::pin(stream::unfold(Some(pipeline), |state| async {
                    let mut pipeline = state?;
                    let reply = pipeline.next().await?;
                    let goes_on = matches!(reply, Ok(Ok(_)));
                    Some((reply, goes_on.then_some(pipeline)))
                }));
            Ok(replies)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(kind::VOTE, request, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(kind::PRE_VOTE, request, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // Raft goes on from here, even if what is sent is newer.
        let needed = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        let peer = self.peer();
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.images.send(&peer, self.target, vote, needed) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote.into())),
                Err(why) => {
                    tracing::debug!(peer = peer.addr(), why, "a snapshot is not sent");
                    Err(StreamingError::Unreachable(Unreachable::from_string(why)))
                }
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = TransferMessage {
            from: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().copied().map(Into::into),
        };
        let reply: TransferReply = self
            .ask(kind::TRANSFER, &message, option.hard_ttl())
            .await?;
        reply
            .map(Ok)
            .map_err(|why| RPCError::Unreachable(Unreachable::from_string(why)))
    }
}

/// What a sent append holds of the window until it is acknowledged.
struct InFlight {
    bytes: usize,
    _permits: [OwnedSemaphorePermit; 2],
}

/// Feeds the stream, as far as the window allows.
async fn send_appends<S>(
    mut input: S,
    mut writer: FrameWriter,
    sent: mpsc::UnboundedSender<InFlight>,
    tally: Arc<Tally<NodeCounter>>,
) where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let requests = Arc::new(Semaphore::new(WINDOW_REQUESTS));
    let bytes = Arc::new(Semaphore::new(WINDOW_BYTES));
    loop {
        // The window opens before the request is drawn, so that it carries the newest commit.
        let Ok(slot) = Arc::clone(&requests).acquire_owned().await else {
            return;
        };
        let Some(request) = input.next().await else {
            break;
        };
        let weight = append_frame::weight(&request).clamp(1, WINDOW_BYTES);
        let permits = u32::try_from(weight).expect("clamped to the window");
        let Ok(room) = Arc::clone(&bytes).acquire_many_owned(permits).await else {
            return;
        };
        let (head, payloads) = append_frame::encode(&request);
        let length = head.len() + payloads.iter().map(Bytes::len).sum::<usize>();
        tally.add(NodeCounter::AppendBytesSent, length as u64);
        let in_flight = InFlight {
            bytes: weight,
            _permits: [slot, room],
        };
        if sent.send(in_flight).is_err() || writer.send(&head, &payloads).await.is_err() {
            return;
        }
    }
    // The other side may be gone already; then the reader sees it.
    writer.finish();
}

/// The receiving half of an append stream.
struct Pipeline {
    reader: FrameReader,
    outstanding: mpsc::UnboundedReceiver<InFlight>,
    sender: JoinHandle<()>,
    stall: Duration,
    target: u64,
    lineage: Arc<Lineage>,
}

impl Pipeline {
    /// The answer to the oldest request without one; `None` when all are answered and no more come.
    async fn next(
        &mut self,
    ) -> Option<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        let in_flight = self.outstanding.recv().await?;
        let patience = self.stall + transfer_time(in_flight.bytes);
        let reply = match tokio::time::timeout(patience, self.reader.next()).await {
            Ok(Ok(Some(reply))) => reply,
            Ok(Ok(None)) => return Some(Err(damaged("the append stream ended".to_owned()))),
            Ok(Err(error)) => return Some(Err(rpc_error(&error))),
            Err(_) => {
                let what = format!("no acknowledgement for {patience:?}");
                return Some(Err(RPCError::Unreachable(Unreachable::from_string(what))));
            }
        };
        drop(in_flight);
        Some(match wire::decode(&reply) {
            Ok(AppendReply::Conflict(id)) => Ok(Err(StreamAppendError::Conflict(id.into()))),
            Ok(AppendReply::HigherVote(vote)) => {
                Ok(Err(StreamAppendError::HigherVote(vote.into())))
            }
            Ok(AppendReply::Matching(upto)) => Ok(Ok(upto.map(Into::into))),
            Ok(AppendReply::Stopped) => Err(stopped()),
            Ok(AppendReply::Objects { entry, base }) => {
                let [entry, base] = [entry, base].map(|id| position_of(&LogId::from(id)));
                self.lineage
                    .objected(self.target, Objection { entry, base });
                let what = "the peer objects to an entry";
                Err(RPCError::Unreachable(Unreachable::from_string(what)))
            }
            Err(what) => Err(damaged(what)),
        })
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

/// How long bytes may take on the slowest link we put up with.
fn transfer_time(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / FLOOR_BYTES_PER_SECOND)
}

/// Failures to connect back off; failures of a stream are tried again at once.
fn rpc_error(error: &TransportError) -> RPCError<TypeConfig> {
    if error.nothing_was_delivered() {
        RPCError::Unreachable(Unreachable::new(error))
    } else {
        RPCError::Network(NetworkError::new(error))
    }
}

fn damaged(what: String) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(what))
}

fn stopped() -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string("Raft does not run on the peer"))
}

/// openraft's receiver buffers as many.
const WINDOW_REQUESTS: usize = 64;
/// Bandwidth times delay of 1 Gbit/s at 100 ms is 12.5 MB.
const WINDOW_BYTES: usize = 16 << 20;
/// 1 MiB/s; anything slower cannot keep up with a cluster anyway.
const FLOOR_BYTES_PER_SECOND: f64 = 1_048_576.0;
