//! What travels: frames and the hello. Golden bytes, and every damage.

use bytes::Bytes;
use wallaby::transport::{
    Decoder, FRAME_HEADER_BYTES, Frame, Header, Hello, HelloReply, Priority, Progress, Role,
    TransportError, Verdict, encode_header,
};
use wallaby::wal::ClusterId;

fn frame_bytes(role: Role, kind: u8, priority: Priority, payload: &[u8], number: u64) -> Vec<u8> {
    let header = Header {
        role,
        kind,
        priority,
        payload_bytes: u32::try_from(payload.len()).unwrap(),
        payload_checksum: crc32fast::hash(payload),
    };
    let mut bytes = encode_header(&header, number).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn body_bytes(payload: &[u8], number: u64) -> Vec<u8> {
    frame_bytes(Role::Body, 0, Priority::Control, payload, number)
}

const ANY_ROLE: &[Role] = &[
    Role::Hello,
    Role::HelloReply,
    Role::Request,
    Role::Reply,
    Role::Open,
    Role::Body,
];

/// All frames in the pieces given, or the error, and what the end of the stream says.
fn decode(pieces: &[&[u8]], expected: &'static [Role]) -> Result<Vec<Frame>, TransportError> {
    let mut decoder = Decoder::new(expected);
    let mut frames = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        loop {
            match decoder.feed(&mut input)? {
                Progress::Frame(frame) => frames.push(frame),
                Progress::Header(_) => {}
                Progress::Starved => break,
            }
        }
        assert!(input.is_empty());
    }
    decoder.end()?;
    Ok(frames)
}

#[test]
fn the_golden_frame_has_these_bytes() {
    let bytes = frame_bytes(Role::Request, 9, Priority::Bulk, b"123456789", 0);
    let mut golden = vec![
        9, 0, 0, 0, // length
        3, // role: request
        9, // kind
        2, // priority: bulk
        0, // reserved
        0x26, 0x39, 0xf4, 0xcb, // CRC-32 of "123456789", its published check value
    ];
    let mut summed = golden.clone();
    summed.extend_from_slice(&[0; 8]); // the frame's number
    golden.extend_from_slice(&crc32fast::hash(&summed).to_le_bytes());
    assert_eq!(golden.len(), FRAME_HEADER_BYTES);
    golden.extend_from_slice(b"123456789");
    assert_eq!(bytes, golden);
    let frames = decode(&[&golden], &[Role::Request]).unwrap();
    assert_eq!(frames[0].payload, "123456789");
    assert_eq!(frames[0].header.kind, 9);
    assert_eq!(frames[0].header.priority, Priority::Bulk);
}

#[test]
fn every_flipped_bit_and_every_truncation_of_a_frame_is_found() {
    let first = frame_bytes(Role::Open, 4, Priority::Data, b"first", 0);
    let mut bytes = first.clone();
    bytes.extend(body_bytes(b"", 1));
    bytes.extend(body_bytes(b"third", 2));
    assert_eq!(decode(&[&bytes], ANY_ROLE).unwrap().len(), 3);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = decode(&[&flipped], ANY_ROLE).expect_err("one bit differs");
        assert!(matches!(error, TransportError::Damaged { .. }), "{error}");
    }
    let boundaries = [0, first.len(), first.len() + FRAME_HEADER_BYTES];
    for length in 0..bytes.len() {
        let result = decode(&[&bytes[..length]], ANY_ROLE);
        match boundaries.iter().position(|boundary| *boundary == length) {
            Some(frames) => assert_eq!(result.unwrap().len(), frames),
            None => assert!(matches!(result, Err(TransportError::Damaged { .. }))),
        }
    }
}

#[test]
fn a_frame_in_the_wrong_place_or_of_a_role_not_expected_is_refused() {
    let (zero, one) = (body_bytes(b"zero", 0), body_bytes(b"one", 1));
    assert_eq!(decode(&[&zero, &one], ANY_ROLE).unwrap().len(), 2);
    assert!(decode(&[&one], ANY_ROLE).is_err());
    assert!(decode(&[&zero, &zero], ANY_ROLE).is_err());
    assert!(decode(&[&zero], &[Role::Request, Role::Open]).is_err());
    // A kind or a priority where none belongs, with right checksums.
    let kind = frame_bytes(Role::Body, 1, Priority::Control, b"", 0);
    let priority = frame_bytes(Role::Reply, 0, Priority::Data, b"", 0);
    assert!(decode(&[&kind], ANY_ROLE).is_err());
    assert!(decode(&[&priority], ANY_ROLE).is_err());
}

#[test]
fn a_frame_that_claims_more_than_its_cap_is_refused_at_its_header() {
    for role in ANY_ROLE {
        for (payload_bytes, allowed) in [
            (role.bytes_max(), true),
            (role.bytes_max() + 1, false),
            (u32::MAX, false),
        ] {
            let header = Header {
                role: *role,
                kind: 0,
                priority: Priority::Control,
                payload_bytes,
                payload_checksum: 0,
            };
            let mut input = Bytes::copy_from_slice(&encode_header(&header, 0));
            let result = Decoder::new(ANY_ROLE).feed(&mut input);
            if allowed {
                assert_eq!(result, Ok(Progress::Header(header)));
            } else {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("more than"), "{error}");
            }
        }
    }
    assert!(Role::Hello.bytes_max() < 1024);
}

/// `SplitMix64`: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % limit as u64).unwrap()
    }
}

#[test]
fn frames_come_out_the_same_however_the_stream_is_cut() {
    let seed = std::env::var("WAL_SEED").map_or_else(
        |_| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        },
        |seed| seed.parse().unwrap(),
    );
    println!("replay: WAL_SEED={seed} cargo test -p wal-tests --test transport");
    let mut random = Random(seed);
    for _ in 0..20 {
        let payloads: Vec<Vec<u8>> = (0..8)
            .map(|fill| {
                let length = match random.below(4) {
                    0 => 0,
                    1 => random.below(20),
                    2 => random.below(5000),
                    _ => random.below(700_000),
                };
                vec![fill; length]
            })
            .collect();
        let mut bytes = Vec::new();
        for (payload, number) in payloads.iter().zip(0..) {
            bytes.extend(body_bytes(payload, number));
        }
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let most = [3, 40, 3000, 400_000][random.below(4)];
            let (piece, after) = rest.split_at((1 + random.below(most)).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let frames = decode(&pieces, &[Role::Body]).unwrap();
        let decoded: Vec<_> = frames.iter().map(|frame| frame.payload.to_vec()).collect();
        assert!(decoded == payloads);
    }
}

// The hello.

#[test]
fn the_golden_hello_and_its_reply_have_these_bytes() {
    let hello = Hello {
        cluster: Some(ClusterId(0x0102)),
        node: 3,
        expected: Some(4),
    };
    let mut golden = b"\x89wallby\n".to_vec();
    golden.extend_from_slice(&[1, 0, 0, 0]); // version
    golden.extend_from_slice(&[0; 4]); // flags
    golden.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // cluster
    golden.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]); // node
    golden.extend_from_slice(&[4, 0, 0, 0, 0, 0, 0, 0]); // expected
    assert_eq!(hello.encode()[..], golden);
    assert_eq!(Hello::decode(&golden), Ok(hello));
    let reply = HelloReply {
        verdict: Verdict::NodeDiffers,
        cluster: None,
        node: 5,
    };
    let mut golden = b"\x89wallby\n".to_vec();
    golden.extend_from_slice(&[1, 0, 0, 0]); // version
    golden.extend_from_slice(&[2, 0, 0, 0]); // verdict, reserved
    golden.extend_from_slice(&[0; 16]); // cluster
    golden.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0]); // node
    assert_eq!(reply.encode()[..], golden);
    assert_eq!(HelloReply::decode(&golden), Ok(reply));
}

#[test]
fn a_cut_or_changed_hello_is_refused_or_honestly_another_and_version_2_is_named() {
    let hello = Hello {
        cluster: None,
        node: u64::MAX,
        expected: None,
    };
    let reply = HelloReply {
        verdict: Verdict::Accepted,
        cluster: Some(ClusterId(u128::MAX)),
        node: 1,
    };
    let (hello_bytes, reply_bytes) = (hello.encode(), reply.encode());
    for length in 0..hello_bytes.len() {
        let cut = Hello::decode(&hello_bytes[..length]);
        assert_eq!(cut, Err(Verdict::Malformed));
    }
    for length in 0..reply_bytes.len() {
        let cut = HelloReply::decode(&reply_bytes[..length]);
        assert_eq!(cut, Err(Verdict::Malformed));
    }
    // The frame's checksums find damage; a flipped bit may give another value, never the same.
    for bit in 0..hello_bytes.len() * 8 {
        let mut flipped = hello_bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Hello::decode(&flipped) {
            assert_eq!(other.encode(), flipped);
            assert_ne!(other, hello);
        }
    }
    for bit in 0..reply_bytes.len() * 8 {
        let mut flipped = reply_bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = HelloReply::decode(&flipped) {
            assert_eq!(other.encode(), flipped);
            assert_ne!(other, reply);
        }
    }
    // Version 2 may have any length and any fields after the version.
    let mut future = hello_bytes[..13].to_vec();
    future[8] = 2;
    assert_eq!(Hello::decode(&future), Err(Verdict::VersionUnsupported));
    assert_eq!(
        HelloReply::decode(&future),
        Err(Verdict::VersionUnsupported)
    );
}

#[test]
fn a_hello_is_judged_by_certificate_then_cluster_then_node() {
    let (alice, bob) = (0xa11ce, 0xb0b);
    let (ours, others) = (Some(ClusterId(1)), Some(ClusterId(2)));
    let hello = Hello {
        cluster: ours,
        node: alice,
        expected: Some(bob),
    };
    let judge = |certified, node, cluster| hello.judge(certified, node, cluster);
    assert_eq!(judge(None, bob, ours), Verdict::Accepted);
    assert_eq!(judge(Some(alice), bob, ours), Verdict::Accepted);
    assert_eq!(judge(Some(alice), bob, None), Verdict::Accepted);
    assert_eq!(judge(Some(bob), bob, ours), Verdict::CertificateDiffers);
    assert_eq!(judge(Some(0), bob, None), Verdict::CertificateDiffers);
    assert_eq!(judge(None, bob, others), Verdict::ClusterDiffers);
    assert_eq!(judge(None, alice, ours), Verdict::NodeDiffers);
}
