//! Peers that die, are silent, and return.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use wal_tests::links::{Links, Rule};
use wallaby::transport::{Endpoint, EndpointOptions, Priority, Security, TransportError};

use crate::probe::{
    ALICE, BOB, ECHO, ECHO_STREAM, HANG, PATIENCE, Probe, Witness, echo, key, options, serving,
    until,
};

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
                match Endpoint::bind(&options) {
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
        let alice = Endpoint::bind(&with_long_idle(ALICE)).unwrap();
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
    let (bob, _) = serving(&of_bob);
    of_bob.bind = bob.local_addr();
    let alice = Endpoint::bind(&options(ALICE, security)).unwrap();
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
    let alice = Endpoint::bind(&brief).unwrap();
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
    let security = key();
    let (bob, _) = serving(&options(BOB, security.clone()));
    let alice = Endpoint::bind(&options(ALICE, security)).unwrap();
    // However busy the machine is, the handshake is not over before the deadline is.
    let links = Links::open(&[alice.local_addr(), bob.local_addr()], 1);
    links.set(0, 1, Rule::Hold);
    let peer = alice.peer(&links.gate(1).to_string(), Some(BOB));
    let body = Bytes::new();
    let hasty = peer.request(ECHO, Priority::Control, body, Duration::from_millis(20));
    let error = hasty.await.unwrap_err();
    assert!(
        matches!(
            error,
            TransportError::Unreachable { .. } | TransportError::TimedOut { .. }
        ),
        "{error}"
    );
    assert_eq!(peer.remote(), None);
    links.set(0, 1, Rule::Open);
    until(|| peer.remote().is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_given_up_after_the_idle_timeout() {
    let (runtime, addr, witness) = process(options(BOB, Security::Loopback)).await;
    let mut of_alice = options(ALICE, Security::Loopback);
    of_alice.idle_timeout = Duration::from_secs(1);
    let alice = Endpoint::bind(&of_alice).unwrap();
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
