use bytes::Bytes;
use openraft::EntryPayload;

use super::*;
use crate::raft::codec::encode_entry_parts;
use crate::raft::{Entry, LeaderId, Payload};

fn identity() -> LogIdentity {
    LogIdentity {
        cluster: ClusterId(0x0f),
        node: 0x0e,
    }
}

fn place() -> Place {
    Place {
        identity: identity(),
        number: 3,
    }
}

fn log_id(index: u64) -> LogId {
    LogId {
        leader_id: LeaderId {
            term: 2,
            node_id: 1,
        },
        index,
    }
}

fn vote() -> Vote {
    Vote {
        leader_id: LeaderId {
            term: 5,
            node_id: 6,
        },
        committed: true,
    }
}

fn header() -> SegmentHeader {
    let frontier = Frontier {
        last: Some(log_id(9)),
        vote: Some(vote()),
        purged: Some(log_id(4)),
        committed: None,
    };
    SegmentHeader {
        identity: identity(),
        number: 3,
        first_index: 10,
        previous_end: 0x1000,
        previous_chain: 0x0a0b_0c0d,
        frontier,
    }
}

fn records() -> Vec<Record> {
    let payload = EntryPayload::Normal(Payload(Bytes::from_static(b"abc")));
    let entry = encode_entry_parts(&Entry {
        log_id: log_id(10),
        payload,
    })
    .unwrap();
    vec![
        Record::Entry(entry),
        Record::Vote(vote()),
        Record::TruncateAfter(Some(log_id(8))),
        Record::TruncateAfter(None),
        Record::Purge(log_id(7)),
        Record::Committed(log_id(8)),
    ]
}

fn batch(offset: u64) -> Vec<u8> {
    let mut writer = BatchWriter::new(Vec::new(), place(), 77);
    for record in records() {
        writer.push(&record);
    }
    writer.finish(offset).0
}

/// The steps of a batch, if all of it is sound.
fn steps(bytes: &[u8], place: Place, mut chain: u32) -> Option<Vec<Step>> {
    let head = BatchHead::decode(bytes, 0, place)?;
    let mut offset = BATCH_HEAD_BYTES;
    let mut steps = Vec::new();
    for _ in 0..head.records {
        let end = BATCH_HEAD_BYTES + head.bytes;
        let record = RawRecord::decode(bytes.get(offset..end)?, place, chain)?;
        steps.push(record.step().ok()?);
        chain = record.chain;
        offset += record.bytes;
    }
    Some(steps)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_segment_header_has_these_bytes() {
    let (bytes, crc) = header().encode();
    assert_eq!(bytes.len(), HEADER_BYTES);
    assert_eq!(
        hex(&bytes[..200]),
        concat!(
            "8957414c4c4f470a",                                                 // magic
            "0100000000000000",                                                 // version
            "0f000000000000000000000000000000",                                 // cluster
            "0e00000000000000",                                                 // node
            "0300000000000000",                                                 // number
            "0a00000000000000",                                                 // first index
            "0010000000000000",                                                 // previous end
            "0d0c0b0a00000000",                                                 // previous chain
            "0100000000000000020000000000000001000000000000000900000000000000", // last
            "0100000000000000",                                                 // voted
            "050000000000000006000000000000000100000000000000",                 // vote
            "0100000000000000020000000000000001000000000000000400000000000000", // purged
            "0000000000000000000000000000000000000000000000000000000000000000", // committed
        )
    );
    assert!(bytes[200..508].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[508..], crc.to_le_bytes());
    assert_eq!(crc, crc32fast::hash(&bytes[..508]));
    assert_eq!(SegmentHeader::decode(&bytes), Ok((header(), crc)));
}

#[test]
fn a_damaged_segment_header_is_refused_and_a_newer_version_is_told_from_damage() {
    let (golden, _) = header().encode();
    for length in 0..golden.len() {
        assert!(
            SegmentHeader::decode(&golden[..length]).is_err(),
            "cut to {length}"
        );
    }
    for bit in 0..golden.len() * 8 {
        let mut bytes = golden.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
    }
    let mut newer = golden;
    newer[8] = 2;
    assert_eq!(
        SegmentHeader::decode(&newer),
        Err(HeaderFault::Unsupported { version: 2 })
    );
}

#[test]
fn a_batch_has_these_bytes() {
    let bytes = batch(0x200);
    assert_eq!(
        hex(&bytes[..12]),
        concat!(
            "9c42540a", // magic
            "10010000", // length
            "06000000", // records
        )
    );
    assert_eq!(
        hex(&bytes[16..32]),
        concat!("0300000000000000", "0002000000000000")
    );
    assert_eq!(
        hex(&bytes[40..88]),
        concat!(
            "0100000000000000",                                 // entry, reserved
            "020000000000000001000000000000000a00000000000000", // log id
            "0100000003000000",                                 // payload, 3 bytes
            "6162630000000000",                                 // "abc", padding
        )
    );
}

#[test]
fn a_batch_is_read_back_step_by_step() {
    let expected = vec![
        Step::Entry(log_id(10)),
        Step::Vote(vote()),
        Step::TruncateAfter(Some(log_id(8))),
        Step::TruncateAfter(None),
        Step::Purge(log_id(7)),
        Step::Committed(log_id(8)),
    ];
    assert_eq!(steps(&batch(0), place(), 77), Some(expected));
    let head = BatchHead::decode(&batch(0), 0, place()).unwrap();
    assert_eq!((head.durable, head.records), ((3, 0), 6));
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_batch_is_noticed() {
    let golden = batch(0);
    for length in 0..golden.len() {
        assert_eq!(
            steps(&golden[..length], place(), 77),
            None,
            "cut to {length}"
        );
    }
    for bit in 0..golden.len() * 8 {
        let mut bytes = golden.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(steps(&bytes, place(), 77), None, "bit {bit}");
    }
}

#[test]
fn a_batch_counts_only_where_it_was_written() {
    let golden = batch(0);
    let other_segment = Place {
        number: 4,
        ..place()
    };
    let other_node = LogIdentity {
        node: 1,
        ..identity()
    };
    let other_node = Place {
        identity: other_node,
        ..place()
    };
    assert_eq!(steps(&golden, other_segment, 77), None);
    assert_eq!(steps(&golden, other_node, 77), None);
    assert_eq!(
        steps(&golden, place(), 78),
        None,
        "chained to another record"
    );
    assert_eq!(
        BatchHead::decode(&batch(8), 0, place()),
        None,
        "moved by 8 bytes"
    );
}

#[test]
fn a_record_takes_the_bytes_it_says_it_takes() {
    for record in records() {
        let mut writer = BatchWriter::new(Vec::new(), place(), 0);
        writer.push(&record);
        let bytes = writer.finish(0).0.len() - BATCH_HEAD_BYTES;
        assert_eq!(bytes, record.bytes(), "{record:?}");
    }
}

#[test]
fn the_frontier_never_reaches_behind_what_is_purged() {
    let mut frontier = Frontier::default();
    assert!(frontier.admits(0) && frontier.admits(7) && !frontier.admits(u64::MAX));
    frontier.append(log_id(5));
    assert!(frontier.admits(6) && !frontier.admits(5) && !frontier.admits(7));
    frontier.truncate_after(Some(log_id(8)));
    assert_eq!(frontier.last, Some(log_id(5)), "a truncation adds nothing");
    frontier.purge(log_id(9));
    assert_eq!(
        (frontier.last, frontier.purged),
        (Some(log_id(9)), Some(log_id(9)))
    );
    frontier.purge(log_id(3));
    frontier.truncate_after(Some(log_id(4)));
    assert_eq!(
        (frontier.last, frontier.purged),
        (Some(log_id(9)), Some(log_id(9)))
    );
    assert_eq!(frontier.next_index(), 10);
}
