//! A relay in front of one node, above QUIC: it has a connection with the peer that dials and
//! another one with the node, and passes on what comes frame by frame. So it can change a frame or
//! hold it back, and everything below (TLS, checksums of packets and of frames) finds it in order.
//!
//! ```text
//!   peer  --- dials the advertised address --->  tap  --- as that peer --->  node
//! ```
//!
//! Only what peers begin passes here. Between nodes without a key anybody may say that he is any
//! node; with one this could not be done.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use wallaby::transport::{
    BoxFuture, Endpoint, EndpointOptions, FrameReader, FrameWriter, Handler, Peer, PeerIdentity,
    Priority, Security, TransportError,
};
use wallaby::wal::ClusterId;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From a peer to the node.
    In,
    /// From the node to a peer.
    Out,
}

/// A frame on its way. A request and its reply count as a stream of one frame each way.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Which way.
    pub way: Way,
    /// The kind of the request or the stream; see the table in `node/wire.rs`.
    pub kind: u8,
    /// How many went the same way on this stream before it.
    pub number: usize,
    /// What it carries.
    pub bytes: &'a mut Vec<u8>,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It goes on, with the bytes as they are now.
    Pass,
    /// It waits until there is another judge, and is judged again.
    Hold,
}

/// Looks at each frame, and may change it.
pub type Judge = dyn FnMut(&mut Passing<'_>) -> Fate + Send;

/// A relay that runs. Ends with the value.
pub struct Tap {
    relay: Arc<Relay>,
    addr: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

struct Relay {
    cluster: ClusterId,
    node: u64,
    to: String,
    judge: Mutex<Box<Judge>>,
    /// Counts the judges.
    judges: watch::Sender<u64>,
    /// One for each peer, by which it goes on to the node.
    endpoints: Mutex<BTreeMap<u64, Endpoint>>,
}

impl Tap {
    /// A relay to the node with this Raft id, which listens, or will listen, on `to`.
    ///
    /// # Panics
    ///
    /// When there are no sockets to be had.
    #[must_use]
    pub fn open(cluster: ClusterId, node: u64, to: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tap")
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let inside = runtime.enter();
        let endpoint = endpoint(cluster, node);
        let relay = Arc::new(Relay {
            cluster,
            node,
            to: to.to_owned(),
            judge: Mutex::new(Box::new(|_| Fate::Pass)),
            judges: watch::Sender::new(0),
            endpoints: Mutex::default(),
        });
        endpoint.serve(Arc::new(Entrance(Arc::clone(&relay))));
        let addr = endpoint.local_addr();
        drop(inside);
        Self {
            relay,
            addr,
            _runtime: runtime,
        }
    }

    /// The address under which the peers are to know the node.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Has this judge look at every frame from now on, those that are held first.
    pub fn set(&self, judge: impl FnMut(&mut Passing<'_>) -> Fate + Send + 'static) {
        let mut current = self
            .relay
            .judge
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Box::new(judge);
        drop(current);
        self.relay.judges.send_modify(|count| *count += 1);
    }
}

struct Entrance(Arc<Relay>);

impl Handler for Entrance {
    fn request(&self, peer: PeerIdentity, kind: u8, body: Bytes) -> BoxFuture<'static, Bytes> {
        let relay = Arc::clone(&self.0);
        Box::pin(async move {
            let body = relay.pass(Way::In, kind, 0, body).await;
            let to = relay.as_peer(peer.node);
            match to.request(kind, priority(kind), body, PATIENCE).await {
                Ok(reply) => relay.pass(Way::Out, kind, 0, reply).await,
                // As if nobody answered.
                Err(_) => std::future::pending().await,
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
        let relay = Arc::clone(&self.0);
        Box::pin(async move {
            let to = relay.as_peer(peer.node);
            let Ok((writer, reader)) = to.open_stream(kind, priority(kind), first).await else {
                return;
            };
            // When one way fails the other is dropped, and both ends are told.
            let _ = tokio::try_join!(
                relay.pump(Way::In, kind, frames, writer),
                relay.pump(Way::Out, kind, reader, replies),
            );
        })
    }
}

impl Relay {
    async fn pump(
        &self,
        way: Way,
        kind: u8,
        mut from: FrameReader,
        mut to: FrameWriter,
    ) -> Result<(), TransportError> {
        let mut number = 0;
        while let Some(frame) = from.next().await? {
            let frame = self.pass(way, kind, number, frame).await;
            to.send(&frame, &[]).await?;
            number += 1;
        }
        to.finish();
        Ok(())
    }

    /// Judges a frame, and waits until it may go on.
    async fn pass(&self, way: Way, kind: u8, number: usize, frame: Bytes) -> Bytes {
        let mut bytes = frame.to_vec();
        let mut judges = self.judges.subscribe();
        loop {
            let fate = {
                let mut judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = judges.borrow_and_update();
                judge(&mut Passing {
                    way,
                    kind,
                    number,
                    bytes: &mut bytes,
                })
            };
            if fate == Fate::Pass {
                return Bytes::from(bytes);
            }
            // The sender lives as long as we do.
            let _ = judges.changed().await;
        }
    }

    /// The node, as this peer dials it.
    fn as_peer(&self, peer: u64) -> Peer {
        let mut endpoints = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let endpoint = endpoints
            .entry(peer)
            .or_insert_with(|| endpoint(self.cluster, peer));
        endpoint.peer(&self.to, Some(self.node))
    }
}

fn endpoint(cluster: ClusterId, node: u64) -> Endpoint {
    let options = EndpointOptions {
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        security: Security::Loopback,
        node,
        cluster: Some(cluster),
        keep_alive: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
    };
    Endpoint::bind(&options).expect("a free UDP port")
}

/// As the nodes do it: a snapshot goes behind everything else.
const fn priority(kind: u8) -> Priority {
    match kind {
        SNAPSHOT | LOAD => Priority::Bulk,
        APPEND => Priority::Data,
        _ => Priority::Control,
    }
}

/// The stream on which entries are sent.
pub const APPEND: u8 = 5;
/// The stream on which the database is sent.
pub const SNAPSHOT: u8 = 6;
const LOAD: u8 = 13;
/// Longer than any peer waits.
const PATIENCE: Duration = Duration::from_secs(60);
