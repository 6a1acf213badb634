//! Frames between nodes: any bytes, in pieces of any size, give the same frames and the same error
//! as in one piece, and no length that is claimed makes memory grow.
//!
//! An input is the bytes of a stream, or a script that builds frames with right checksums and then
//! spoils some; the first byte says which.

use bytes::Bytes;
use wallaby::transport::{
    Decoder, FRAME_HEADER_BYTES, Frame, Header, Priority, Progress, Role, encode_header,
};

use crate::memory::{Bound, bounded};
use crate::script::Script;
use crate::{Reached, Sample};

/// What a stream may expect.
const EXPECTED: [&[Role]; 4] = [
    &[Role::Hello],
    &[Role::Request, Role::Open],
    &[Role::Body],
    &[
        Role::Hello,
        Role::HelloReply,
        Role::Request,
        Role::Reply,
        Role::Open,
        Role::Body,
    ],
];

/// One step ahead of what has arrived (`READ_BYTES_MAX` in `transport::limits`).
const STEP_BYTES: usize = 256 << 10;

/// See the module.
///
/// # Panics
/// If the pieces matter.
pub fn frames(data: &[u8]) -> Reached {
    let mut script = Script::new(data);
    let mode = script.byte();
    let expected = EXPECTED[usize::from(mode / 2) % EXPECTED.len()];
    let piece_bytes = match script.byte() {
        0 => usize::MAX,
        bytes => bytes.into(),
    };
    let built;
    let stream = if mode % 2 == 1 {
        built = build(&mut script);
        built.as_slice()
    } else {
        script.rest()
    };
    let stream = Bytes::copy_from_slice(stream);
    let bound = Bound::PLAIN.and(STEP_BYTES);
    // Each frame takes a place in the list, and has at least a header.
    let read = |piece| {
        bounded(
            Bound {
                per_byte: 16,
                ..bound
            },
            stream.len(),
            || decode(expected, &stream, piece),
        )
    };
    let (whole, error) = read(usize::MAX);
    assert_eq!(read(piece_bytes), (whole.clone(), error.clone()));
    let mut taken = 0;
    for (number, frame) in (0_u64..).zip(&whole) {
        // What was accepted is what was sent: there is no second way to write a frame.
        let header = encode_header(&frame.header, number);
        assert_eq!(stream[taken..taken + FRAME_HEADER_BYTES], header);
        taken += FRAME_HEADER_BYTES;
        assert_eq!(stream[taken..taken + frame.payload.len()], frame.payload);
        taken += frame.payload.len();
        assert!(frame.header.payload_bytes <= frame.header.role.bytes_max());
        assert!(expected.contains(&frame.header.role));
    }
    assert!(error.is_some() || taken == stream.len(), "bytes were lost");
    Reached::accepted(!whole.is_empty())
}

fn decode(
    expected: &'static [Role],
    stream: &Bytes,
    piece_bytes: usize,
) -> (Vec<Frame>, Option<String>) {
    let mut decoder = Decoder::new(expected);
    let mut frames = Vec::new();
    let mut rest = stream.clone();
    while !rest.is_empty() {
        let mut piece = rest.split_to(piece_bytes.min(rest.len()));
        // A frame without payload is complete although nothing is left to be read.
        loop {
            match decoder.feed(&mut piece) {
                Ok(Progress::Frame(frame)) => frames.push(frame),
                Ok(Progress::Header(_)) => {}
                Ok(Progress::Starved) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
        assert!(piece.is_empty(), "starved with bytes at hand");
    }
    let end = decoder.end().err();
    (frames, end.map(|error| error.to_string()))
}

fn build(script: &mut Script<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    for number in 0..FRAMES_MAX {
        if script.is_empty() {
            break;
        }
        let role = script.pick(EXPECTED[3]);
        let choice = script.byte();
        let length = script.below(300);
        let payload = script.bytes(length);
        let claimed = match choice % 16 {
            0 => script.word(),
            _ => u32::try_from(payload.len()).expect("short"),
        };
        let header = Header {
            role,
            kind: choice / 64,
            priority: script.pick(&[Priority::Control, Priority::Data, Priority::Bulk]),
            payload_bytes: claimed,
            payload_checksum: crc32fast::hash(payload) ^ u32::from(choice % 16 == 1),
        };
        stream.extend_from_slice(&encode_header(&header, number));
        stream.extend_from_slice(payload);
        if choice % 16 == 2 {
            let at = script.short() as usize % stream.len();
            stream[at] ^= script.byte();
        }
    }
    stream
}

pub(crate) fn samples() -> Vec<Sample> {
    let stream = |role: Role, kind: u8, payloads: &[&[u8]]| {
        let mut bytes = Vec::new();
        for (number, payload) in (0..).zip(payloads) {
            let header = Header {
                role,
                kind,
                priority: Priority::Control,
                payload_bytes: u32::try_from(payload.len()).expect("short"),
                payload_checksum: crc32fast::hash(payload),
            };
            bytes.extend_from_slice(&encode_header(&header, number));
            bytes.extend_from_slice(payload);
        }
        bytes
    };
    let raw = |expected: u8, piece: u8, bytes: &[u8]| [&[expected * 2, piece], bytes].concat();
    let request = stream(Role::Request, 7, &[b"a request"]);
    let body = stream(Role::Body, 0, &[b"one", b"", &[9; 300]]);
    let script = [5, 3, 8, b'p', b'a', b'y', b'l', b'o', b'a', b'd', b'!', 0];
    vec![
        Sample::new("request", raw(1, 0, &request)),
        Sample::new("request-in-bytes", raw(1, 1, &request)),
        Sample::new("body", raw(2, 7, &body)),
        Sample::new("body-cut", raw(2, 0, &body[..body.len() - 1])),
        Sample::new("built", [&[7, 5], &script[..], &script[..]].concat()),
        Sample::new("claims-much", [&[7, 0, 5, 0, 0], &[0xff; 8][..]].concat()),
    ]
}

const FRAMES_MAX: u64 = 30;
