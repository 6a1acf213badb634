//! What this node does with the requests and streams of its peers.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, pin_mut, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest};
use tokio::sync::mpsc;

use super::admission::Admission;
use super::append_frame;
use super::apply::SnapshotData;
use super::caller::Permission;
use super::errand::{self, Report};
use super::image_receiver::{Arrival, ImageReceiver};
use super::join_gate::JoinGate;
use super::lineage::Lineage;
use super::load::Loading;
use super::membership::Membership;
use super::places::Places;
use super::read_index::{Asked, Asking};
use super::repair::Wanted;
use super::running::Inner;
use super::snapshot_frame::Reply;
use super::tally::{NodeCounter, Tally};
use super::transfers::Transfer;
use super::wire::{
    self, Adopted, Adoption, AppendReply, Call, Forward, Forwarded, Greeting, Introduction, Joined,
    Joining, SnapshotReply, TransferMessage, TransferReply, VoteAnswer, VoteMessage, VoteMirror,
    VoteReply, kind,
};
use super::{Raft, Refusal};
use crate::raft::{Snapshot, SnapshotMeta, TypeConfig, Vote, log_id_of};
use crate::transport::{
    BoxFuture, FRAME_BYTES_MAX, FrameReader, FrameWriter, Handler, PeerIdentity,
};

/// The handler behind the transport; it exists before Raft does.
pub(crate) struct Peers {
    pub(crate) gate: JoinGate,
    pub(crate) membership: Arc<Membership>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) places: Arc<Places>,
    pub(crate) lineage: Arc<Lineage>,
    pub(crate) raft: Arc<OnceLock<Raft>>,
    pub(crate) tally: Arc<Tally<NodeCounter>>,
    pub(crate) images: Arc<ImageReceiver>,
    /// Filled when the node is complete; weak, because the node owns the endpoint that owns us.
    pub(crate) node: Arc<OnceLock<Weak<Inner>>>,
}

impl Handler for Shared {
    fn request(&self, peer: PeerIdentity, kind: u8, body: Bytes) -> BoxFuture<'static, Bytes> {
        let peers = Arc::clone(&self.0);
        Box::pin(async move {
            match peers.answer(&peer, kind, body).await {
                Ok(reply) => Bytes::from(reply),
                Err(what) => {
                    tracing::warn!(peer = %peer.addr, kind, what, "a peer's request was refused");
                    Bytes::new()
                }
            }
        })
    }

    fn stream(
        &self,
        peer: PeerIdentity,
        kind: u8,
        first: Bytes,
        frames: FrameReader,
        replies: FrameWriter,
    ) -> BoxFuture<'static, ()> {
        let peers = Arc::clone(&self.0);
        Box::pin(async move {
            let outcome = match (kind, peer.cluster, peers.raft.get()) {
                (kind::APPEND, Some(_), Some(raft)) => append(&peers, raft, frames, replies).await,
                (kind::SNAPSHOT, Some(_), Some(_)) => {
                    receive_snapshot(&peers, &peer, &first, frames, replies).await
                }
                (kind::LOAD, Some(_), Some(_)) => {
                    let node = peers.node.get().and_then(Weak::upgrade);
                    receive_load(node, &first, frames, replies).await
                }
                _ => Err("not served to this peer".to_owned()),
            };
            if let Err(what) = outcome {
                tracing::debug!(peer = %peer.addr, kind, what, "a peer's stream ended early");
            }
        })
    }
}

/// The handler in the form the transport wants it.
pub(crate) struct Shared(pub(crate) Arc<Peers>);

impl Peers {
    async fn answer(&self, peer: &PeerIdentity, kind: u8, body: Bytes) -> Result<Vec<u8>, String> {
        match kind {
            kind::GREETING => {
                let greeting: Greeting = wire::decode(&body)?;
                self.tally.count(NodeCounter::GreetingsReceived);
                return Ok(wire::encode(&self.greeted(&greeting).await));
            }
            kind::ADOPT => {
                let adoption: Adoption = wire::decode(&body)?;
                let caller = adoption.caller.as_ref();
                let addr = peer.addr.to_string();
                let admitted = self.gate.admit(&addr, caller, &[Permission::Join]).await;
                let adopted: Adopted =
                    admitted.and_then(|()| self.membership.adopt(adoption.cluster));
                return Ok(wire::encode(&adopted));
            }
            _ if peer.cluster.is_none() => return Err("it belongs to no cluster yet".to_owned()),
            _ => {}
        }
        match kind {
            kind::VOTE | kind::PRE_VOTE => {
                let message: VoteMessage = wire::decode(&body)?;
                Ok(wire::encode(&self.vote(kind, message).await))
            }
            kind::TRANSFER => {
                let message: TransferMessage = wire::decode(&body)?;
                Ok(wire::encode(&self.transfer(message).await))
            }
            kind::HEARTBEAT => Ok(wire::encode(&self.heartbeat(body).await?)),
            kind::FORWARD => Ok(self.passed_on(wire::decode(&body)?).await),
            kind::STAND => {
                let inner = self.node.get().and_then(Weak::upgrade);
                Ok(wire::encode(&inner.map(|inner| inner.stand())))
            }
            kind::ERRAND => {
                let message: errand::Message = wire::decode(&body)?;
                Ok(wire::encode(&self.errand(message).await))
            }
            kind::READ_INDEX => {
                let asking: Asking = wire::decode(&body)?;
                let asked = match self.node.get().and_then(Weak::upgrade) {
                    Some(inner) => inner.asked_index(asking).await,
                    None => Asked::NotLeader,
                };
                Ok(wire::encode(&asked))
            }
            kind::PAGES => {
                let wanted: Wanted = wire::decode(&body)?;
                let inner = self.node.get().and_then(Weak::upgrade);
                let inner = inner.ok_or("the node is not complete yet")?;
                let found = tokio::task::spawn_blocking(move || inner.repairs.serve(&wanted));
                found.await.map_err(|error| error.to_string())
            }
            kind::JOIN => {
                let joining: Joining = wire::decode(&body)?;
                self.tally.count(NodeCounter::JoinsReceived);
                if joining.raft_id != peer.node {
                    return Err("it asks to join as another node".to_owned());
                }
                Ok(wire::encode(&self.joins(joining).await))
            }
            _ => Err("unknown kind of request".to_owned()),
        }
    }

    /// The answer to what another node hands on, if it fits a frame.
    async fn passed_on(&self, forward: Forward) -> Vec<u8> {
        let reads = matches!(forward.call, Call::Query(_));
        self.tally.count(received(forward.call));
        let reply = wire::encode(&self.forwarded(forward).await);
        if reply.len() <= FRAME_BYTES_MAX as usize {
            return reply;
        }
        let why = "the answer is too large to be passed on; ask the leader itself".to_owned();
        let refusal = if reads {
            Refusal::Overloaded(why)
        } else {
            Refusal::Unknown(why)
        };
        wire::encode(&Forwarded::Refused(refusal))
    }

    /// To start a cluster with us needs a permission; to know us does not.
    async fn greeted(&self, greeting: &Greeting) -> Introduction {
        let refused = if greeting.bootstrap_expect > 0 {
            let addr = &greeting.member.raft_addr;
            let caller = greeting.caller.as_ref();
            let admitted = self.gate.admit(addr, caller, &[Permission::Join]).await;
            admitted.err()
        } else {
            None
        };
        Introduction {
            catch_up: self.images.transfers.catch_up(),
            ..self.membership.introduce(greeting, refused)
        }
    }

    /// Only the leader takes nodes in, and only the leader's users count.
    async fn joins(&self, joining: Joining) -> Joined {
        self.places.note(joining.raft_id, &joining.member.raft_addr);
        if let Some(elsewhere) = self.admission.leads_elsewhere() {
            return elsewhere;
        }
        // A member was let in once, and is trusted with votes and with the log; that it tells where
        // it is now, or asks whether it still is one, needs nothing more.
        if !joining.returns && !self.admission.knows(joining.raft_id) {
            let addr = &joining.member.raft_addr;
            let caller = joining.caller.as_ref();
            let one_of: &[Permission] = if joining.member.replica {
                &[Permission::JoinReadOnly, Permission::Join]
            } else {
                &[Permission::Join]
            };
            if let Err(why) = self.gate.admit(addr, caller, one_of).await {
                return Joined::Unauthorized(why);
            }
        }
        Arc::clone(&self.admission).welcome(joining).await
    }

    async fn vote(&self, kind: u8, message: VoteMessage) -> VoteReply {
        let raft = self.raft.get()?;
        let mut request: VoteRequest<TypeConfig> =
            VoteRequest::new(message.vote.into(), message.last_log_id.map(Into::into));
        request.leadership_transfer = message.leadership_transfer;
        let answer = if kind == kind::VOTE {
            raft.vote(request).await
        } else {
            raft.pre_vote(request).await
        };
        let answer = answer.ok()?;
        Some(VoteAnswer {
            vote: answer.vote.into(),
            granted: answer.vote_granted,
            last_log_id: answer.last_log_id.map(Into::into),
        })
    }

    async fn transfer(&self, message: TransferMessage) -> TransferReply {
        let raft = self.raft.get().ok_or("Raft does not run here")?;
        let last = message.last_log_id.map(Into::into);
        let request = TransferLeaderRequest::new(message.from.into(), message.to, last);
        match raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(refused.to_string()),
            Err(fatal) => Err(fatal.to_string()),
        }
    }

    async fn heartbeat(&self, body: Bytes) -> Result<AppendReply, String> {
        let Some(raft) = self.raft.get() else {
            return Ok(AppendReply::Stopped);
        };
        let request = append_frame::decode(&body)?;
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(request.prev_log_id);
        let prev = request.prev_log_id;
        let told = Told::now(&request, &self.node);
        let Ok(response) = raft.append_entries(request).await else {
            return Ok(AppendReply::Stopped);
        };
        let reply = match response {
            openraft::raft::AppendEntriesResponse::Success => {
                AppendReply::Matching(last.map(Into::into))
            }
            openraft::raft::AppendEntriesResponse::PartialSuccess(upto) => {
                AppendReply::Matching(upto.map(Into::into))
            }
            openraft::raft::AppendEntriesResponse::Conflict => {
                AppendReply::Conflict(prev.ok_or("a conflict with nothing")?.into())
            }
            openraft::raft::AppendEntriesResponse::HigherVote(vote) => {
                AppendReply::HigherVote(vote.into())
            }
        };
        told.accepted(&self.node, reply);
        Ok(reply)
    }

    async fn errand(&self, message: errand::Message) -> Report {
        let Some(inner) = self.node.get().and_then(Weak::upgrade) else {
            return Report::NotLeader;
        };
        let (permissions, what) = message.errand.permissions();
        if !inner.permits(message.caller, permissions).await {
            return Report::Refused(Refusal::NotPermitted(what.to_owned()));
        }
        let timeout = Duration::from_millis(message.timeout_ms);
        inner.run_errand(message.errand, timeout).await
    }

    async fn forwarded(&self, forward: Forward) -> Forwarded {
        let Some(inner) = self.node.get().and_then(Weak::upgrade) else {
            return Forwarded::NotLeader;
        };
        let (permissions, what) = forward.call.permissions();
        if !inner.permits(forward.caller, permissions).await {
            return Forwarded::Refused(Refusal::NotPermitted(what.to_owned()));
        }
        let timeout = Duration::from_millis(forward.timeout_ms);
        let answer = inner.lead(forward.call, forward.request, timeout).await;
        match answer {
            Ok(served) => Forwarded::Served(served),
            Err(None) => Forwarded::NotLeader,
            Err(Some(refusal)) => Forwarded::Refused(refusal),
        }
    }
}

/// What a message from the leader tells besides its entries: that the leader was there, and what it
/// knew to be committed.
#[derive(Clone, Copy)]
struct Told {
    at: Instant,
    committed: u64,
}

impl Told {
    fn now(request: &AppendEntriesRequest<TypeConfig>, node: &OnceLock<Weak<Inner>>) -> Self {
        let at = Instant::now();
        if let Some(inner) = node.get().and_then(Weak::upgrade) {
            inner.contact.arrived(at, request.vote.leader_id.node_id);
        }
        Self {
            at,
            committed: request.leader_commit.map_or(0, |id| id.index),
        }
    }

    /// Takes note of it, unless the message was refused: then it was not from the leader.
    fn accepted(self, node: &OnceLock<Weak<Inner>>, reply: AppendReply) {
        let from_leader = matches!(reply, AppendReply::Conflict(_) | AppendReply::Matching(_));
        let inner = node.get().and_then(Weak::upgrade);
        if let Some(inner) = inner.filter(|_| from_leader) {
            let applied = inner.frontier.reached().index();
            inner.contact.heard(self.at, self.committed, applied);
        }
    }
}

/// What a call from another node counts as.
fn received(call: Call) -> NodeCounter {
    match call {
        Call::Execute => NodeCounter::ExecutesReceived,
        Call::Query(_) => NodeCounter::QueriesReceived,
        Call::Request(_) => NodeCounter::RequestsReceived,
    }
}

/// Serves one append stream until either side ends it.
async fn append(
    peers: &Arc<Peers>,
    raft: &Raft,
    frames: FrameReader,
    mut replies: FrameWriter,
) -> Result<(), String> {
    let (arriving, node) = (Arc::clone(peers), &peers.node);
    // What ends the stream, if this node does not take it; all before that is answered first.
    let refused = Arc::<OnceLock<AppendReply>>::default();
    let refusing = Arc::clone(&refused);
    // One for each request that is not answered yet; they are answered in order.
    let (note, mut told) = mpsc::unbounded_channel();
    let requests = stream::unfold((frames, note, arriving, refusing), |state| async {
        let (mut frames, note, arriving, refusing) = state;
        let frame = frames.next().await.ok().flatten()?;
        match append_frame::decode(&frame) {
            Ok(request) => {
                if let Some(objection) = arriving.lineage.objection(&request) {
                    let [entry, base] = [objection.entry, objection.base];
                    let reply = AppendReply::Objects {
                        entry: log_id_of(entry).into(),
                        base: log_id_of(base).into(),
                    };
                    refusing.get_or_init(|| reply);
                    return None;
                }
                // Without a receiver there are no answers any more.
                let _ = note.send(Told::now(&request, &arriving.node));
                Some((request, (frames, note, arriving, refusing)))
            }
            Err(what) => {
                tracing::warn!(what, "an append frame is refused");
                None
            }
        }
    });
    let answers = raft.stream_append(requests);
    pin_mut!(answers);
    while let Some(answer) = answers.next().await {
        let reply = match answer {
            Ok(Ok(upto)) => AppendReply::Matching(upto.map(Into::into)),
            Ok(Err(StreamAppendError::Conflict(id))) => AppendReply::Conflict(id.into()),
            Ok(Err(StreamAppendError::HigherVote(vote))) => AppendReply::HigherVote(vote.into()),
            Err(_fatal) => AppendReply::Stopped,
        };
        if let Ok(told) = told.try_recv() {
            told.accepted(node, reply);
        }
        let sent = replies.send(&wire::encode(&reply), &[]).await;
        sent.map_err(|error| error.to_string())?;
    }
    if let Some(reply) = refused.get() {
        let sent = replies.send(&wire::encode(reply), &[]).await;
        sent.map_err(|error| error.to_string())?;
    }
    replies.finish();
    Ok(())
}

/// Receives a database as far as it differs, installs it through Raft, and answers.
async fn receive_snapshot(
    peers: &Peers,
    peer: &PeerIdentity,
    first: &Bytes,
    mut frames: FrameReader,
    mut replies: FrameWriter,
) -> Result<(), String> {
    let vote: VoteMirror = wire::decode(first)?;
    let transfer = peers.images.transfers.begin(peer.node, false);
    let reply = receive_image(peers, vote.into(), &transfer, &mut frames, &mut replies).await;
    match &reply {
        Ok(_) => {
            let bytes = transfer.bytes();
            tracing::info!(bytes, "the received database is installed");
            // It is left if Raft had all of it already.
            peers.images.forget(Duration::ZERO).await;
        }
        Err(what) => tracing::warn!(what, "the database is not received to its end"),
    }
    let verdict = Reply::Verdict(reply).encode();
    let sent = replies.send(&verdict, &[]).await;
    sent.map_err(|error| error.to_string())?;
    replies.finish();
    Ok(())
}

async fn receive_image(
    peers: &Peers,
    vote: Vote,
    transfer: &Transfer,
    frames: &mut FrameReader,
    replies: &mut FrameWriter,
) -> SnapshotReply {
    let raft = peers.raft.get().ok_or("Raft does not run here")?;
    let node = peers.node.get().and_then(Weak::upgrade);
    let owner = Arc::clone(&node.ok_or("the node is not complete yet")?.owner);
    let images = &peers.images;
    let arrival = images.receive(&owner, transfer, frames, replies).await?;
    install(raft, vote, arrival).await
}

/// Receives data for the database on behalf of the node that a client sent it to.
async fn receive_load(
    node: Option<Arc<Inner>>,
    first: &Bytes,
    frames: FrameReader,
    mut replies: FrameWriter,
) -> Result<(), String> {
    let loading: Loading = wire::decode(first)?;
    let reply = match node {
        Some(inner) => inner.receive_load(loading, frames).await?,
        None => Forwarded::NotLeader,
    };
    let sent = replies.send(&wire::encode(&reply), &[]).await;
    sent.map_err(|error| error.to_string())?;
    replies.finish();
    Ok(())
}

async fn install(raft: &Raft, vote: Vote, arrival: Arrival) -> SnapshotReply {
    let manifest = &arrival.manifest;
    // A leader that was deposed meanwhile may have applied entries of its successor; openraft takes
    // a snapshot beyond the leader's own term for a broken promise.
    let (applied, leader) = (manifest.applied, vote.leader_id);
    if (applied.term, applied.node) > (leader.term, leader.node_id) {
        return Err("the image is newer than the leadership it was sent under".to_owned());
    }
    let meta = SnapshotMeta {
        last_log_id: Some(log_id_of(manifest.applied)),
        last_membership: manifest.membership.clone(),
    };
    let snapshot = Snapshot {
        meta,
        snapshot: SnapshotData::Incoming(Box::new(arrival)),
    };
    let response = raft.install_full_snapshot(vote, snapshot).await;
    response
        .map(|response| response.vote.into())
        .map_err(|fatal| fatal.to_string())
}
