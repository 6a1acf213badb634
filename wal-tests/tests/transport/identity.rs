//! Who may talk to whom: keys, clusters, nodes, and nodes without a cluster.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use wallaby::transport::{Endpoint, EndpointOptions, Peer, Priority, Security, TransportError};

use crate::probe::{ALICE, BOB, CLUSTER, ECHO_STREAM, OTHER_CLUSTER, echo, key, options, serving};

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
        let (bob, witness) = serving(&options(BOB, accepting));
        let alice = Endpoint::bind(&options(ALICE, dialing)).unwrap();
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
        let (bob, witness) = serving(&options(BOB, security.clone()));
        let mut foreign = options(ALICE, security);
        foreign.cluster = Some(OTHER_CLUSTER);
        let alice = Endpoint::bind(&foreign).unwrap();
        let error = refusal(&alice.peer(&bob.local_addr().to_string(), Some(BOB))).await;
        assert!(matches!(error, TransportError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("different clusters"), "{error}");
        assert_eq!(witness.peers(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_other_than_the_expected_one_is_refused() {
    for security in [key(), Security::Loopback] {
        let (bob, witness) = serving(&options(BOB, security.clone()));
        let alice = Endpoint::bind(&options(ALICE, security)).unwrap();
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
    let (bob, witness) = serving(&options(BOB, security.clone()));
    let mut unassigned = options(ALICE, security);
    unassigned.cluster = None;
    let (alice, witness_of_alice) = serving(&unassigned);
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
    let (bob, witness) = serving(&unassigned(BOB));
    let alice = Endpoint::bind(&unassigned(ALICE)).unwrap();
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
    let error = Endpoint::bind(&open).err().unwrap();
    assert!(matches!(error, TransportError::Security { .. }), "{error}");
    assert!(error.to_string().contains("-cluster-key FILE"), "{error}");
    assert!(error.to_string().contains("-insecure-cluster"), "{error}");
    for security in [Security::Insecure, key()] {
        open.security = security;
        Endpoint::bind(&open).unwrap();
    }
    open.node = 0;
    let error = Endpoint::bind(&open).err().unwrap();
    assert!(matches!(error, TransportError::Bind { .. }), "{error}");
}
