//! Two nodes, and what the accepting one has seen.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use wallaby::transport::{
    BoxFuture, ClusterKey, Endpoint, EndpointOptions, FrameReader, FrameWriter, Handler, Peer,
    PeerIdentity, Priority, Security, TransportError,
};
use wallaby::wal::ClusterId;

pub(crate) const ALICE: u64 = 0xa11ce;
pub(crate) const BOB: u64 = 0xb0b;
pub(crate) const CLUSTER: ClusterId = ClusterId(0x0123_4567_89ab_cdef);
pub(crate) const OTHER_CLUSTER: ClusterId = ClusterId(77);
/// Far beyond what any exchange takes; reached only by a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const ECHO: u8 = 1;
pub(crate) const HANG: u8 = 2;
pub(crate) const ECHO_STREAM: u8 = 3;
pub(crate) const UNREAD_STREAM: u8 = 4;
pub(crate) const BREAK_OFF: u8 = 5;

pub(crate) fn options(node: u64, security: Security) -> EndpointOptions {
    EndpointOptions {
        bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        security,
        node,
        cluster: Some(CLUSTER),
        keep_alive: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(20),
    }
}

/// What the accepting side has seen, and a gate that some of its work waits at.
pub(crate) struct Witness {
    pub(crate) peers: Mutex<Vec<PeerIdentity>>,
    pub(crate) hanging: AtomicUsize,
    pub(crate) cancelled: AtomicUsize,
    pub(crate) gate: Semaphore,
    pub(crate) frames_read: AtomicUsize,
}

impl Witness {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            peers: Mutex::default(),
            hanging: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            frames_read: AtomicUsize::new(0),
        })
    }

    pub(crate) fn peers(&self) -> Vec<PeerIdentity> {
        self.peers.lock().unwrap().clone()
    }

    pub(crate) fn marks(&self) -> Vec<Option<ClusterId>> {
        self.peers().iter().map(|peer| peer.cluster).collect()
    }
}

pub(crate) struct Probe(pub(crate) Arc<Witness>);

struct CountCancellation(Arc<Witness>);

impl Drop for CountCancellation {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for Probe {
    fn request(&self, peer: PeerIdentity, kind: u8, body: Bytes) -> BoxFuture<'static, Bytes> {
        let witness = self.0.clone();
        Box::pin(async move {
            witness.peers.lock().unwrap().push(peer);
            if kind == HANG {
                let _guard = CountCancellation(witness.clone());
                witness.hanging.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            body
        })
    }

    fn stream(
        &self,
        peer: PeerIdentity,
        kind: u8,
        first: Bytes,
        mut frames: FrameReader,
        mut replies: FrameWriter,
    ) -> BoxFuture<'static, ()> {
        let witness = self.0.clone();
        Box::pin(async move {
            witness.peers.lock().unwrap().push(peer);
            if kind == BREAK_OFF {
                replies.send(b"one frame", &[]).await.unwrap();
                return;
            }
            if kind == UNREAD_STREAM {
                let _guard = CountCancellation(witness.clone());
                witness.hanging.fetch_add(1, Ordering::SeqCst);
                let _passed = witness.gate.acquire().await.unwrap();
                while let Ok(Some(_)) = frames.next().await {
                    witness.frames_read.fetch_add(1, Ordering::SeqCst);
                }
            } else {
                replies.send(b"first: ", &[first]).await.unwrap();
                while let Ok(Some(frame)) = frames.next().await {
                    replies.send(&[], &[frame]).await.unwrap();
                }
            }
            replies.finish();
        })
    }
}

pub(crate) fn serving(options: &EndpointOptions) -> (Endpoint, Arc<Witness>) {
    let witness = Witness::new();
    let endpoint = Endpoint::bind(options).unwrap();
    endpoint.serve(Arc::new(Probe(witness.clone())));
    (endpoint, witness)
}

/// Bob serves, Alice dials.
pub(crate) fn pair(security: &Security) -> (Endpoint, Endpoint, Arc<Witness>, Peer) {
    let (bob, witness) = serving(&options(BOB, security.clone()));
    let alice = Endpoint::bind(&options(ALICE, security.clone())).unwrap();
    let peer = alice.peer(&bob.local_addr().to_string(), Some(BOB));
    (alice, bob, witness, peer)
}

pub(crate) async fn echo(peer: &Peer, body: &'static [u8]) -> Result<Bytes, TransportError> {
    let body = Bytes::from_static(body);
    peer.request(ECHO, Priority::Data, body, PATIENCE).await
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

pub(crate) fn key() -> Security {
    Security::Key(ClusterKey::generate().unwrap())
}
