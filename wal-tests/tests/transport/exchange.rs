//! Requests and streams: what arrives, what is held back, what is cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use wallaby::transport::{FRAME_BYTES_MAX, PeerIdentity, Priority, Security, TransportError};

use crate::probe::{
    ALICE, BOB, BREAK_OFF, CLUSTER, ECHO, ECHO_STREAM, HANG, PATIENCE, UNREAD_STREAM, echo, key,
    pair, until,
};

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
                writer
                    .send(b"head", std::slice::from_ref(&piece))
                    .await
                    .unwrap();
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
