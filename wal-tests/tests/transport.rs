//! The transport layer from outside: who may talk to whom, what arrives, and what an error means.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use wallaby::transport::{
    BoxFuture, ClusterKey, Endpoint, EndpointOptions, FRAME_BYTES_MAX, FrameReader, FrameWriter,
    Handler, Peer, PeerIdentity, Priority, Security, TransportError,
};
use wallaby::wal::ClusterId;

// Where to talk: one process, several endpoints, generous time-outs. No test measures time.

const ALICE: u64 = 0xa11ce;
const BOB: u64 = 0xb0b;
const CLUSTER: ClusterId = ClusterId(0x0123_4567_89ab_cdef);
const OTHER_CLUSTER: ClusterId = ClusterId(77);
/// Far beyond what any exchange takes; reached only by a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

const ECHO: u8 = 1;
const HANG: u8 = 2;
const ECHO_STREAM: u8 = 3;
const UNREAD_STREAM: u8 = 4;
const BREAK_OFF: u8 = 5;

fn options(node: u64, security: Security) -> EndpointOptions {
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
struct Witness {
    peers: Mutex<Vec<PeerIdentity>>,
    hanging: AtomicUsize,
    cancelled: AtomicUsize,
    gate: Semaphore,
    frames_read: AtomicUsize,
}

impl Witness {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            peers: Mutex::default(),
            hanging: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            frames_read: AtomicUsize::new(0),
        })
    }

    fn peers(&self) -> Vec<PeerIdentity> {
        self.peers.lock().unwrap().clone()
    }

    fn marks(&self) -> Vec<Option<ClusterId>> {
        self.peers().iter().map(|peer| peer.cluster).collect()
    }
}

struct Probe(Arc<Witness>);

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

fn serving(options: EndpointOptions) -> (Endpoint, Arc<Witness>) {
    let witness = Witness::new();
    let endpoint = Endpoint::bind(options).unwrap();
    endpoint.serve(Arc::new(Probe(witness.clone())));
    (endpoint, witness)
}

/// Bob serves, Alice dials.
fn pair(security: &Security) -> (Endpoint, Endpoint, Arc<Witness>, Peer) {
    let (bob, witness) = serving(options(BOB, security.clone()));
    let alice = Endpoint::bind(options(ALICE, security.clone())).unwrap();
    let peer = alice.peer(&bob.local_addr().to_string(), Some(BOB));
    (alice, bob, witness, peer)
}

async fn echo(peer: &Peer, body: &'static [u8]) -> Result<Bytes, TransportError> {
    let body = Bytes::from_static(body);
    peer.request(ECHO, Priority::Data, body, PATIENCE).await
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

fn key() -> Security {
    Security::Key(ClusterKey::generate().unwrap())
}

// Requests and streams.

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_its_reply_and_each_side_knows_the_other() {
    for security in [key(), Security::Loopback, Security::Insecure] {
        let (alice, bob, witness, peer) = pair(&security);
        assert_eq!(peer.remote(), None);
        assert_eq!(echo(&peer, b"hello").await.unwrap(), "hello");
        assert_eq!(echo(&peer, b"").await.unwrap(), "");
        let remote = PeerIdentity {
            node: BOB,
            cluster: Some(CLUSTER),
            addr: bob.local_addr(),
        };
        assert_eq!(peer.remote(), Some(remote));
        let seen = PeerIdentity {
            node: ALICE,
            cluster: Some(CLUSTER),
            addr: alice.local_addr(),
        };
        assert_eq!(witness.peers(), [seen, seen]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_on_the_same_peer_share_a_connection_and_names_are_looked_up() {
    let (alice, bob, witness, peer) = pair(&key());
    let again = alice.peer(&bob.local_addr().to_string(), Some(BOB));
    let requests: Vec<_> = (0..50)
        .map(|number| {
            let peer = if number % 2 == 0 { &peer } else { &again }.clone();
            tokio::spawn(async move {
                echo(&peer, b"x").await.unwrap();
                peer.connection_number().unwrap()
            })
        })
        .collect();
    let mut connections = Vec::new();
    for request in requests {
        connections.push(request.await.unwrap());
    }
    connections.dedup();
    assert_eq!(connections.len(), 1, "one connection for all");
    assert_eq!(witness.peers().len(), 50);
    let named = alice.peer(&format!("localhost:{}", bob.local_addr().port()), None);
    assert_eq!(echo(&named, b"by name").await.unwrap(), "by name");
    let nowhere = alice.peer("no-such-host.invalid:4002", None);
    let error = echo(&nowhere, b"").await.unwrap_err();
    assert!(
        matches!(error, TransportError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_the_greatest_length_passes_and_a_longer_one_is_refused_at_home() {
    let (_alice, _bob, witness, peer) = pair(&Security::Loopback);
    let greatest = Bytes::from(vec![7; FRAME_BYTES_MAX as usize]);
    let reply = peer
        .request(ECHO, Priority::Bulk, greatest.clone(), PATIENCE)
        .await
        .unwrap();
    assert!(reply == greatest);
    let longer = Bytes::from(vec![7; FRAME_BYTES_MAX as usize + 1]);
    let error = peer
        .request(ECHO, Priority::Bulk, longer, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::TooLong { .. }), "{error}");
    assert!(error.nothing_was_delivered());
    assert_eq!(witness.peers().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_carries_many_frames_and_large_ones_both_ways_in_order() {
    let (_alice, _bob, _witness, peer) = pair(&key());
    let (mut writer, mut reader) = peer
        .open_stream(ECHO_STREAM, Priority::Data, Bytes::from_static(b"open"))
        .await
        .unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "first: open");
    let large = Bytes::from(
        (0..8_u32 << 20)
            .map(|n| n.to_le_bytes()[1])
            .collect::<Vec<_>>(),
    );
    let sent = large.clone();
    let sender = tokio::spawn(async move {
        for number in 0..2000_u32 {
            let body = [Bytes::from_static(b""), Bytes::from_static(b"-body")];
            writer.send(&number.to_le_bytes(), &body).await.unwrap();
            if number % 1000 == 0 {
                let (left, right) = (sent.slice(..100), sent.slice(100..));
                writer.send(&[], &[left, right]).await.unwrap();
            }
        }
        writer.finish();
    });
    for number in 0..2000_u32 {
        let frame = reader.next().await.unwrap().unwrap();
        assert_eq!(frame[..4], number.to_le_bytes());
        assert_eq!(frame[4..], *b"-body");
        if number % 1000 == 0 {
            assert!(reader.next().await.unwrap().unwrap() == large);
        }
    }
    assert_eq!(reader.next().await, Ok(None));
    assert_eq!(reader.next().await, Ok(None));
    sender.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_stream_that_is_dropped_does_not_look_like_a_clean_end() {
    let (_alice, _bob, _witness, peer) = pair(&Security::Loopback);
    let (_writer, mut reader) = peer
        .open_stream(BREAK_OFF, Priority::Data, Bytes::new())
        .await
        .unwrap();
    let end = loop {
        match reader.next().await {
            Ok(Some(frame)) => assert_eq!(frame, "one frame"),
            end => break end,
        }
    };
    let error = end.expect_err("the handler never finished the stream");
    assert!(matches!(error, TransportError::Closed { .. }), "{error}");
    assert_eq!(reader.next().await, Err(error));
}

#[tokio::test(flavor = "multi_thread")]
async fn control_requests_pass_while_every_bulk_stream_is_blocked_on_an_unread_receiver() {
    let (_alice, _bob, witness, peer) = pair(&key());
    // As many streams as a connection may have, each with more than its window to send.
    let (streams, frames) = (16, 20);
    let mut senders = Vec::new();
    let mut readers = Vec::new();
    let sent = Arc::new(AtomicUsize::new(0));
    for _ in 0..streams {
        let (mut writer, reader) = peer
            .open_stream(UNREAD_STREAM, Priority::Bulk, Bytes::new())
            .await
            .unwrap();
        readers.push(reader);
        let sent = sent.clone();
        senders.push(tokio::spawn(async move {
            let piece = Bytes::from(vec![1; 512 << 10]);
            for _ in 0..frames {
                writer.send(b"head", &[piece.clone()]).await.unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
            }
            writer.finish();
        }));
    }
    let more = peer
        .open_stream(UNREAD_STREAM, Priority::Bulk, Bytes::new())
        .await;
    assert!(matches!(
        more.err(),
        Some(TransportError::Overloaded { .. })
    ));
    // Each stream has a window of 4 MiB: seven frames are taken, the eighth does not fit.
    until(|| sent.load(Ordering::SeqCst) >= streams * 7).await;
    for _ in 0..100 {
        let vote = Bytes::from_static(b"vote");
        peer.request(ECHO, Priority::Control, vote, PATIENCE)
            .await
            .unwrap();
        assert!(senders.iter().all(|sender| !sender.is_finished()));
    }
    echo(&peer, b"a data request as well").await.unwrap();
    assert_eq!(witness.frames_read.load(Ordering::SeqCst), 0);
    witness.gate.add_permits(streams);
    for sender in senders {
        sender.await.unwrap();
    }
    for reader in &mut readers {
        assert_eq!(reader.next().await, Ok(None));
    }
    assert_eq!(witness.frames_read.load(Ordering::SeqCst), streams * frames);
    drop(readers);
    // The places are free again.
    let again = peer
        .open_stream(ECHO_STREAM, Priority::Bulk, Bytes::new())
        .await;
    assert!(again.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_is_cancelled_when_the_requester_gives_up() {
    let (_alice, _bob, witness, peer) = pair(&Security::Loopback);
    let (body, brief) = (Bytes::from_static(b"x"), Duration::from_millis(300));
    let hanging = || witness.hanging.load(Ordering::SeqCst);
    let cancelled = || witness.cancelled.load(Ordering::SeqCst);
    echo(&peer, b"connect first").await.unwrap();
    let request = peer.request(HANG, Priority::Data, body.clone(), brief);
    let error = request.await.unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error}");
    assert!(!error.nothing_was_delivered());
    until(|| hanging() == 1 && cancelled() == 1).await;

    let other = peer.clone();
    let task = tokio::spawn(async move {
        let _ = other.request(HANG, Priority::Data, body, PATIENCE).await;
    });
    until(|| hanging() == 2).await;
    assert_eq!(cancelled(), 1);
    task.abort();
    until(|| cancelled() == 2).await;

    let stream = peer
        .open_stream(UNREAD_STREAM, Priority::Data, Bytes::new())
        .await
        .unwrap();
    until(|| hanging() == 3).await;
    assert_eq!(cancelled(), 2);
    drop(stream);
    until(|| cancelled() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_memory_set_aside_are_refused_and_small_ones_still_pass() {
    let (_alice, _bob, witness, peer) = pair(&Security::Loopback);
    let large = Bytes::from(vec![3; 60 << 20]);
    let mut held = Vec::new();
    for count in 1..=4 {
        let (peer, body) = (peer.clone(), large.clone());
        held.push(tokio::spawn(async move {
            peer.request(HANG, Priority::Data, body, PATIENCE).await
        }));
        until(|| witness.hanging.load(Ordering::SeqCst) == count).await;
    }
    let fifth = peer.request(HANG, Priority::Data, large.clone(), PATIENCE);
    let error = fifth.await.unwrap_err();
    assert!(
        matches!(error, TransportError::Overloaded { .. }),
        "{error}"
    );
    assert!(error.nothing_was_delivered());
    echo(&peer, b"small").await.unwrap();
    for task in held {
        task.abort();
    }
    until(|| witness.cancelled.load(Ordering::SeqCst) == 4).await;
    peer.request(ECHO, Priority::Data, large, PATIENCE)
        .await
        .unwrap();
}

// Who may talk to whom.

async fn refusal(peer: &Peer) -> TransportError {
    let error = echo(peer, b"let me in").await.unwrap_err();
    assert!(error.nothing_was_delivered(), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_key_or_none_is_refused_in_both_directions() {
    let combinations = [
        (key(), key()),
        (Security::Loopback, key()),
        (key(), Security::Loopback),
    ];
    for (dialing, accepting) in combinations {
        let (bob, witness) = serving(options(BOB, accepting));
        let alice = Endpoint::bind(options(ALICE, dialing)).unwrap();
        let peer = alice.peer(&bob.local_addr().to_string(), None);
        let error = refusal(&peer).await;
        assert!(matches!(error, TransportError::Security { .. }), "{error}");
        assert!(error.to_string().contains("cluster key"), "{error}");
        assert_eq!(witness.peers(), []);
        assert_eq!(peer.remote(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_refused() {
    for security in [key(), Security::Loopback] {
        let (bob, witness) = serving(options(BOB, security.clone()));
        let mut foreign = options(ALICE, security);
        foreign.cluster = Some(OTHER_CLUSTER);
        let alice = Endpoint::bind(foreign).unwrap();
        let error = refusal(&alice.peer(&bob.local_addr().to_string(), Some(BOB))).await;
        assert!(matches!(error, TransportError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("different clusters"), "{error}");
        assert_eq!(witness.peers(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_other_than_the_expected_one_is_refused() {
    for security in [key(), Security::Loopback] {
        let (bob, witness) = serving(options(BOB, security.clone()));
        let alice = Endpoint::bind(options(ALICE, security)).unwrap();
        let error = refusal(&alice.peer(&bob.local_addr().to_string(), Some(BOB + 1))).await;
        assert!(matches!(error, TransportError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("another node"), "{error}");
        assert!(error.to_string().contains("b0b"), "{error}");
        assert_eq!(witness.peers(), []);
        let anyone = alice.peer(&bob.local_addr().to_string(), None);
        echo(&anyone, b"whoever is there").await.unwrap();
        assert_eq!(anyone.remote().unwrap().node, BOB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unassigned_node_is_marked_until_it_is_assigned() {
    let security = key();
    let (bob, witness) = serving(options(BOB, security.clone()));
    let mut unassigned = options(ALICE, security);
    unassigned.cluster = None;
    let (alice, witness_of_alice) = serving(unassigned);
    let to_bob = alice.peer(&bob.local_addr().to_string(), Some(BOB));
    let to_alice = bob.peer(&alice.local_addr().to_string(), Some(ALICE));
    echo(&to_bob, b"join").await.unwrap();
    echo(&to_alice, b"found you").await.unwrap();
    assert_eq!(witness.marks(), [None]);
    assert_eq!(witness_of_alice.marks(), [None]);
    assert_eq!(to_bob.remote().unwrap().cluster, None);

    alice.assign(CLUSTER).unwrap();
    assert_eq!(alice.cluster(), Some(CLUSTER));
    echo(&to_bob, b"append").await.unwrap();
    // Bob hears of the closing a moment later, and a request of that moment is lost.
    while let Err(error) = echo(&to_alice, b"append").await {
        assert!(matches!(error, TransportError::Closed { .. }), "{error}");
    }
    assert_eq!(witness.marks().last(), Some(&Some(CLUSTER)));
    assert_eq!(witness_of_alice.marks().last(), Some(&Some(CLUSTER)));
    assert_eq!(to_bob.remote().unwrap().cluster, Some(CLUSTER));

    alice.assign(CLUSTER).unwrap();
    let error = alice.assign(OTHER_CLUSTER).unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    assert_eq!(alice.cluster(), Some(CLUSTER));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_does_not_cut_off_the_answer_to_an_unassigned_peer() {
    let unassigned = |node| EndpointOptions {
        cluster: None,
        ..options(node, Security::Loopback)
    };
    let (bob, witness) = serving(unassigned(BOB));
    let alice = Endpoint::bind(unassigned(ALICE)).unwrap();
    let peer = alice.peer(&bob.local_addr().to_string(), None);
    let notify = Bytes::from_static(b"notify");
    let (mut writer, mut reader) = peer
        .open_stream(ECHO_STREAM, Priority::Control, notify)
        .await
        .unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "first: notify");
    bob.assign(CLUSTER).unwrap();
    writer.send(b"which cluster?", &[]).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), "which cluster?");
    alice.assign(CLUSTER).unwrap();
    assert!(reader.next().await.is_err());
    echo(&peer, b"append").await.unwrap();
    assert_eq!(witness.marks().last(), Some(&Some(CLUSTER)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_only_loopback_is_bound_unless_it_is_said_out_loud() {
    let mut open = options(BOB, Security::Loopback);
    open.bind = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let error = Endpoint::bind(open.clone()).err().unwrap();
    assert!(matches!(error, TransportError::Security { .. }), "{error}");
    assert!(error.to_string().contains("-cluster-key FILE"), "{error}");
    assert!(error.to_string().contains("-insecure-cluster"), "{error}");
    for security in [Security::Insecure, key()] {
        open.security = security;
        Endpoint::bind(open.clone()).unwrap();
    }
    open.node = 0;
    let error = Endpoint::bind(open).err().unwrap();
    assert!(matches!(error, TransportError::Bind { .. }), "{error}");
}

// Peers that die and return.

/// An endpoint in a runtime of its own, to be killed without a word like a process.
async fn process(options: EndpointOptions) -> (tokio::runtime::Runtime, SocketAddr, Arc<Witness>) {
    let start = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let witness = Witness::new();
        let endpoint = runtime.block_on(async {
            loop {
                // The port of the process before is given back a moment after its end.
                match Endpoint::bind(options.clone()) {
                    Err(TransportError::Bind { reason, .. }) if reason.contains("in use") => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    bound => return bound.unwrap(),
                }
            }
        });
        endpoint.serve(Arc::new(Probe(witness.clone())));
        (runtime, endpoint.local_addr(), witness)
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_killed_and_restarted_is_reached_again_long_before_the_idle_timeout() {
    for security in [key(), Security::Loopback] {
        // Only the reset that the new process sends for the old one's connection ids can help.
        let with_long_idle = |node| EndpointOptions {
            idle_timeout: Duration::from_secs(3600),
            ..options(node, security.clone())
        };
        let mut of_bob = with_long_idle(BOB);
        let (runtime, addr, _) = process(of_bob.clone()).await;
        let alice = Endpoint::bind(with_long_idle(ALICE)).unwrap();
        let peer = alice.peer(&addr.to_string(), Some(BOB));
        echo(&peer, b"before").await.unwrap();
        let before = peer.connection_number();
        runtime.shutdown_background();
        of_bob.bind = addr;
        let (runtime, _, witness) = process(of_bob).await;
        if let Err(error) = echo(&peer, b"lost with the old process").await {
            assert!(matches!(error, TransportError::Closed { .. }), "{error}");
            assert!(!error.nothing_was_delivered());
            echo(&peer, b"after").await.unwrap();
        }
        assert_eq!(witness.peers().last().unwrap().node, ALICE);
        assert_ne!(peer.connection_number(), before);
        runtime.shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_closed_and_opened_again_is_reached_by_the_same_handle() {
    let security = key();
    let mut of_bob = options(BOB, security.clone());
    let (bob, _) = serving(of_bob.clone());
    of_bob.bind = bob.local_addr();
    let alice = Endpoint::bind(options(ALICE, security)).unwrap();
    let peer = alice.peer(&bob.local_addr().to_string(), Some(BOB));
    echo(&peer, b"before").await.unwrap();
    // The handle is kept: closing alone has to give the port back.
    bob.close().await;
    bob.close().await;
    let (runtime, _, _) = process(of_bob).await;
    let mut reply = echo(&peer, b"after").await;
    if matches!(reply, Err(TransportError::Closed { .. })) {
        reply = echo(&peer, b"after").await;
    }
    assert_eq!(reply.unwrap(), "after");
    runtime.shutdown_background();

    alice.close().await;
    let error = echo(&peer, b"from a closed endpoint").await.unwrap_err();
    assert!(
        matches!(error, TransportError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_down_is_unreachable_after_the_connect_timeout() {
    let mut brief = options(ALICE, key());
    brief.connect_timeout = Duration::from_millis(200);
    let alice = Endpoint::bind(brief).unwrap();
    // A bound socket that answers nothing: like the port of a killed process, but never reused.
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = alice.peer(&silent.local_addr().unwrap().to_string(), Some(BOB));
    let many = (0..20).map(|_| {
        let peer = peer.clone();
        tokio::spawn(async move { echo(&peer, b"anyone?").await })
    });
    for request in many.collect::<Vec<_>>() {
        // PATIENCE is the deadline of the request: what ends it is the connect time-out.
        let error = request.await.unwrap().unwrap_err();
        assert!(
            matches!(error, TransportError::Unreachable { .. }),
            "{error}"
        );
        assert!(error.nothing_was_delivered());
        assert!(error.to_string().contains("200ms"), "{error}");
    }
    let opened = peer.open_stream(ECHO_STREAM, Priority::Data, Bytes::new());
    let error = opened.await.err().unwrap();
    assert!(
        matches!(error, TransportError::Unreachable { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_shorter_than_the_handshake_does_not_keep_the_connection_from_being_made() {
    let (_alice, _bob, _witness, peer) = pair(&key());
    let hasty = peer.request(ECHO, Priority::Control, Bytes::new(), Duration::ZERO);
    let error = hasty.await.unwrap_err();
    assert!(
        matches!(error, TransportError::Unreachable { .. }),
        "{error}"
    );
    until(|| peer.remote().is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_given_up_after_the_idle_timeout() {
    let (runtime, addr, witness) = process(options(BOB, Security::Loopback)).await;
    let mut of_alice = options(ALICE, Security::Loopback);
    of_alice.idle_timeout = Duration::from_secs(1);
    let alice = Endpoint::bind(of_alice).unwrap();
    let peer = alice.peer(&addr.to_string(), Some(BOB));
    let other = peer.clone();
    let hang = tokio::spawn(async move {
        let body = Bytes::new();
        other.request(HANG, Priority::Data, body, PATIENCE).await
    });
    until(|| witness.hanging.load(Ordering::SeqCst) == 1).await;
    runtime.shutdown_background();
    let error = hang.await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Closed { .. }), "{error}");
    assert_eq!(peer.remote(), None);
}
