//! The accepting side: takes connections, lets the hello decide, and hands requests to the node.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::endpoint::{Inner, Registration};
use super::error::EndCode;
use super::frame::{Header, Role};
use super::hello::{self, HelloReply, Verdict};
use super::limits::{
    CONNECTIONS_ACCEPTED_MAX, CONNECTIONS_BEFORE_RETRY, LINGER, LONG_STREAMS_ACCEPTED_MAX,
};
use super::stream::{FrameReader, FrameWriter};
use super::trust::Side;
use super::{PeerIdentity, TransportError};

/// A future on the heap, as a trait object's method has to return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the node does with requests that arrive. Each runs as a task of its own and is dropped at
/// its next `await` when the peer gives up or the connection ends.
pub trait Handler: Send + Sync + 'static {
    /// One request, one reply.
    fn request(&self, peer: PeerIdentity, kind: u8, body: Bytes) -> BoxFuture<'static, Bytes>;

    /// A long-lived stream; `first` is what the peer opened it with. It ends with the future, so
    /// [`FrameWriter::finish`] has to be called for frames under way to arrive.
    fn stream(
        &self,
        peer: PeerIdentity,
        kind: u8,
        first: Bytes,
        frames: FrameReader,
        replies: FrameWriter,
    ) -> BoxFuture<'static, ()>;
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(endpoint: Arc<Inner>, handler: Arc<dyn Handler>) {
    let Some(socket) = endpoint.socket() else {
        return;
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_ACCEPTED_MAX));
    while let Some(incoming) = socket.accept().await {
        let taken = CONNECTIONS_ACCEPTED_MAX - places.available_permits();
        if taken >= CONNECTIONS_BEFORE_RETRY && incoming.may_retry() {
            // It fails only if the address is proven already, which may_retry has asked.
            let _ = incoming.retry();
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            let addr = incoming.remote_address().to_string();
            endpoint.complain(&addr, "too many connections");
            incoming.refuse();
            continue;
        };
        let session = Session {
            endpoint: endpoint.clone(),
            handler: handler.clone(),
        };
        tokio::spawn(session.run(incoming, place));
    }
}

/// Why a connection is not served.
enum Unmet {
    /// One of the nodes does not want to talk to the other; somebody has to change something.
    Disagreed(Verdict),
    /// The peer went away or was too slow, as happens when it is stopped or busy.
    Lost(TransportError),
}

/// What serves one connection.
struct Session {
    endpoint: Arc<Inner>,
    handler: Arc<dyn Handler>,
}

impl Session {
    async fn run(self, incoming: quinn::Incoming, _place: OwnedSemaphorePermit) {
        let addr: Arc<str> = incoming.remote_address().to_string().into();
        let limit = self.endpoint.connect_timeout;
        let connection = match timeout(limit, incoming).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let error = TransportError::connecting(&addr, &error);
                if matches!(error, TransportError::Security { .. }) {
                    self.endpoint.complain(&addr, &error.to_string());
                }
                return;
            }
            Err(_) => return,
        };
        match timeout(limit.max(LINGER), self.greet(&connection, &addr)).await {
            Ok(Ok((peer, _registration))) => self.serve(&connection, peer, &addr).await,
            Ok(Err(Unmet::Disagreed(verdict))) => {
                self.endpoint.complain(&addr, verdict.reason());
                connection.close(EndCode::Refused.into(), verdict.reason().as_bytes());
            }
            Ok(Err(Unmet::Lost(error))) => {
                tracing::debug!(%addr, %error, "a connection ended before its hello");
                connection.close(EndCode::Refused.into(), error.to_string().as_bytes());
            }
            Err(_) => connection.close(EndCode::Refused.into(), b"no hello in time"),
        }
    }

    /// The hello.
    async fn greet(
        &self,
        connection: &quinn::Connection,
        addr: &Arc<str>,
    ) -> Result<(PeerIdentity, Registration), Unmet> {
        let (hello, writer) = hello::receive(connection, addr)
            .await
            .map_err(Unmet::Lost)?;
        let node = self.endpoint.node;
        let certified = self.endpoint.certified(connection);
        let peer_cluster = hello.ok().and_then(|hello| hello.cluster);
        let mut verdict = Verdict::Malformed;
        let (cluster, registration) = self.endpoint.register(connection, peer_cluster, |cluster| {
            verdict = match &hello {
                Ok(hello) => hello.judge(certified, node, cluster),
                Err(verdict) => *verdict,
            };
            verdict == Verdict::Accepted
        });
        let reply = HelloReply {
            verdict,
            cluster,
            node,
        };
        let answered = hello::answer(writer, reply).await;
        let (Ok(hello), Some(registration)) = (hello, registration) else {
            return Err(Unmet::Disagreed(verdict));
        };
        answered.map_err(Unmet::Lost)?;
        // What is trusted may have changed before the connection was registered.
        let trusted = self.endpoint.still_trusted(connection, addr, Side::Client);
        trusted.map_err(Unmet::Lost)?;
        let peer = PeerIdentity {
            node: hello.node,
            cluster: hello.cluster.and(cluster),
            addr: hello::canonical(connection),
        };
        Ok((peer, registration))
    }

    /// Serves streams until the connection ends; what is still running then is dropped.
    async fn serve(&self, connection: &quinn::Connection, peer: PeerIdentity, addr: &Arc<str>) {
        let long_streams = Arc::new(Semaphore::new(LONG_STREAMS_ACCEPTED_MAX as usize));
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => {
                    let Ok((send, recv)) = accepted else { break };
                    let exchange = Exchange {
                        endpoint: self.endpoint.clone(),
                        handler: self.handler.clone(),
                        peer,
                        long_streams: long_streams.clone(),
                    };
                    let writer = FrameWriter::new(send, addr.clone());
                    let expected = &[Role::Request, Role::Open];
                    let reader = FrameReader::new(recv, addr.clone(), expected);
                    tasks.spawn(exchange.run(writer, reader));
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            }
        }
    }
}

/// What serves one stream.
struct Exchange {
    endpoint: Arc<Inner>,
    handler: Arc<dyn Handler>,
    peer: PeerIdentity,
    long_streams: Arc<Semaphore>,
}

impl Exchange {
    async fn run(self, writer: FrameWriter, mut reader: FrameReader) {
        match reader.next_header().await {
            Ok(Some(header)) => {
                writer.set_priority(header.priority);
                if header.role == Role::Open {
                    self.stream(header, writer, reader).await;
                } else {
                    self.request(header, writer, reader).await;
                }
            }
            Ok(None) => {}
            Err(error) => self.failed(writer, &error),
        }
    }

    async fn request(&self, header: Header, mut writer: FrameWriter, mut reader: FrameReader) {
        let Some(_counted) = self.endpoint.count_request(header.payload_bytes) else {
            reader.stop(EndCode::Overloaded);
            writer.reset(EndCode::Overloaded);
            return;
        };
        let body = match reader.next().await {
            Ok(body) => body.unwrap_or_default(),
            Err(error) => return self.failed(writer, &error),
        };
        let abandoned = writer.abandoned();
        let reply = tokio::select! {
            reply = self.handler.request(self.peer, header.kind, body) => reply,
            () = abandoned => return,
        };
        let sent = writer
            .send_as(Role::Reply, 0, super::Priority::Control, &[], &[reply])
            .await;
        match sent {
            Ok(()) => writer.finish(),
            Err(error @ TransportError::TooLong { .. }) => {
                let (node, kind) = (self.peer.node, header.kind);
                tracing::error!(node, kind, %error, "a reply could not be sent");
            }
            // The peer no longer waits for the reply, and knows why.
            Err(_) => {}
        }
    }

    async fn stream(&self, header: Header, writer: FrameWriter, mut reader: FrameReader) {
        let Ok(_place) = self.long_streams.clone().try_acquire_owned() else {
            reader.stop(EndCode::Overloaded);
            writer.reset(EndCode::Overloaded);
            return;
        };
        let first = match reader.next().await {
            Ok(first) => first.unwrap_or_default(),
            Err(error) => return self.failed(writer, &error),
        };
        reader.expect_body();
        let abandoned = writer.abandoned();
        tokio::select! {
            () = self.handler.stream(self.peer, header.kind, first, reader, writer) => {}
            () = abandoned => {}
        }
    }

    /// The first frame of a stream did not arrive whole.
    fn failed(&self, writer: FrameWriter, error: &TransportError) {
        if matches!(error, TransportError::Damaged { .. }) {
            self.endpoint
                .complain(&self.peer.addr.to_string(), &error.to_string());
            writer.reset(EndCode::Damaged);
        }
    }
}
