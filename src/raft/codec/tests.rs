use super::*;

fn sample_log_id() -> LogId {
    LogId {
        leader_id: LeaderId {
            term: 0x0102,
            node_id: 0x0304,
        },
        index: 0x0506,
    }
}

fn sample_membership() -> StoredMembership {
    let sets = vec![BTreeSet::from([1, 2]), BTreeSet::from([2])];
    let member = |name: &str| Member {
        name: name.to_owned(),
        raft_addr: "r:1".to_owned(),
        http_addr: String::new(),
        role: Role::Voter,
    };
    let nodes = BTreeMap::from([(1, member("a")), (2, member("bc"))]);
    StoredMembership::new(Some(sample_log_id()), Membership::new(sets, nodes).unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every truncation must be refused; every flipped bit must be refused or give another value.
fn damage<T: PartialEq>(golden: &[u8], value: &T, decode: impl Fn(&[u8]) -> Option<T>) {
    assert!(decode(golden).is_some_and(|decoded| decoded == *value));
    for length in 0..golden.len() {
        assert!(decode(&golden[..length]).is_none(), "cut to {length}");
    }
    for bit in 0..golden.len() * 8 {
        let mut bytes = golden.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            decode(&bytes).is_none_or(|decoded| decoded != *value),
            "bit {bit}"
        );
    }
    let mut longer = golden.to_vec();
    longer.push(0);
    assert!(decode(&longer).is_none(), "one byte more");
}

#[test]
fn a_log_id_has_these_bytes() {
    let mut bytes = Vec::new();
    encode_log_id(&sample_log_id(), &mut bytes);
    assert_eq!(
        hex(&bytes),
        concat!(
            "0201000000000000", // term
            "0403000000000000", // node
            "0605000000000000", // index
        )
    );
    damage(&bytes, &sample_log_id(), |bytes| decode_log_id(bytes).ok());
}

#[test]
fn an_optional_log_id_has_these_bytes() {
    let mut bytes = Vec::new();
    encode_log_id_option(Some(&sample_log_id()), &mut bytes);
    assert_eq!(
        hex(&bytes),
        concat!(
            "0100000000000000",
            "0201000000000000",
            "0403000000000000",
            "0605000000000000"
        )
    );
    damage(&bytes, &Some(sample_log_id()), |bytes| {
        decode_log_id_option(bytes).ok()
    });
    let mut none = Vec::new();
    encode_log_id_option(None, &mut none);
    assert_eq!(none, [0; LOG_ID_OPTION_BYTES]);
    damage(&none, &None, |bytes| decode_log_id_option(bytes).ok());
}

#[test]
fn a_vote_has_these_bytes() {
    let vote = Vote {
        leader_id: LeaderId {
            term: 7,
            node_id: 9,
        },
        committed: true,
    };
    let mut bytes = Vec::new();
    encode_vote(&vote, &mut bytes);
    assert_eq!(
        hex(&bytes),
        concat!(
            "0700000000000000", // term
            "0900000000000000", // node
            "01",               // committed
            "00000000000000",   // reserved
        )
    );
    damage(&bytes, &vote, |bytes| decode_vote(bytes).ok());
}

#[test]
fn a_membership_has_these_bytes() {
    let bytes = encode_membership(&sample_membership());
    assert_eq!(
        hex(&bytes),
        concat!(
            "0100",                                             // version
            "000000000000",                                     // reserved
            "0100000000000000",                                 // log id present
            "020100000000000004030000000000000605000000000000", // log id
            "02000000",                                         // two sets
            "02000000",                                         // two members
            "02000000",                                         // first set: two voters
            "01000000000000000200000000000000",                 // 1, 2
            "01000000",                                         // second set: one voter
            "0200000000000000",                                 // 2
            "0100000000000000",                                 // member 1
            "010000000300000000000000",                         // lengths 1, 3, 0
            "61723a31",                                         // "a", "r:1", ""
            "0200000000000000",                                 // member 2
            "020000000300000000000000",                         // lengths 2, 3, 0
            "6263723a31",                                       // "bc", "r:1", ""
        )
    );
    damage(&bytes, &sample_membership(), |bytes| {
        decode_membership(bytes).ok()
    });
}

#[test]
fn the_empty_membership_survives_and_a_newer_version_is_told_from_damage() {
    let empty = StoredMembership::default();
    let mut bytes = encode_membership(&empty);
    assert_eq!(decode_membership(&bytes), Ok(empty));
    bytes[0] = 3;
    let refused = CodecError::Unsupported {
        what: "membership",
        version: 3,
    };
    assert_eq!(decode_membership(&bytes), Err(refused));
    // Nobody writes the version with roles where there are none.
    bytes[0] = 2;
    let refused = CodecError::Invalid {
        what: "membership",
        offset: 0,
    };
    assert_eq!(decode_membership(&bytes), Err(refused));
}

#[test]
fn a_membership_with_roles_has_these_bytes() {
    let member = |name: &str, role| Member {
        name: name.to_owned(),
        role,
        ..Member::default()
    };
    let nodes = BTreeMap::from([
        (1, member("a", Role::Voter)),
        (2, member("b", Role::Replica)),
        (3, member("c", Role::Leaving)),
    ]);
    let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
    let stored = StoredMembership::new(None, membership);
    let bytes = encode_membership(&stored);
    assert_eq!(
        hex(&bytes),
        concat!(
            "0200",                                             // version
            "000000000000",                                     // reserved
            "0000000000000000",                                 // no log id
            "000000000000000000000000000000000000000000000000", // in its place
            "01000000",                                         // one set
            "03000000",                                         // three members
            "010000000100000000000000",                         // one voter: 1
            "0100000000000000",                                 // member 1
            "010000000000000000000000",                         // lengths 1, 0, 0
            "6100",                                             // "a", a voter
            "0200000000000000",                                 // member 2
            "010000000000000000000000",                         // lengths 1, 0, 0
            "6201",                                             // "b", a replica
            "0300000000000000",                                 // member 3
            "010000000000000000000000",                         // lengths 1, 0, 0
            "6302",                                             // "c", leaving
        )
    );
    damage(&bytes, &stored, |bytes| decode_membership(bytes).ok());
}

#[test]
fn a_length_beyond_the_bytes_is_refused_before_anything_is_allocated() {
    let mut bytes = encode_membership(&sample_membership());
    bytes[44..48].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = CodecError::Invalid {
        what: "membership",
        offset: 44,
    };
    assert_eq!(decode_membership(&bytes), Err(refused));
    let mut entry = Vec::new();
    let payload = EntryPayload::Normal(Payload(Bytes::from_static(b"abc")));
    encode_entry(
        &Entry {
            log_id: sample_log_id(),
            payload,
        },
        &mut entry,
    )
    .unwrap();
    entry[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = CodecError::Invalid {
        what: "entry",
        offset: 28,
    };
    assert_eq!(decode_entry(Bytes::from(entry)), Err(refused));
}

#[test]
fn an_entry_has_these_bytes_whatever_it_carries() {
    let log_id = "020100000000000004030000000000000605000000000000";
    let membership = sample_membership().membership().clone();
    let body = encode_membership(&StoredMembership::new(None, membership.clone()));
    let cases = [
        (EntryPayload::Blank, "0000000000000000".to_owned()),
        (
            EntryPayload::Normal(Payload::mark()),
            "0100000000000000".to_owned(),
        ),
        (
            EntryPayload::Normal(Payload(Bytes::from_static(b"abc"))),
            "0100000003000000616263".to_owned(),
        ),
        (
            EntryPayload::Membership(membership),
            format!("02000000{:02x}000000{}", 129, hex(&body)),
        ),
    ];
    for (payload, expected) in cases {
        let entry = Entry {
            log_id: sample_log_id(),
            payload,
        };
        let mut bytes = Vec::new();
        encode_entry(&entry, &mut bytes).unwrap();
        assert_eq!(hex(&bytes), format!("{log_id}{expected}"));
        damage(&bytes, &entry, |bytes| {
            decode_entry(Bytes::copy_from_slice(bytes)).ok()
        });
    }
}

#[test]
fn a_decoded_payload_shares_the_bytes_it_was_read_from() {
    let payload = EntryPayload::Normal(Payload(Bytes::from_static(b"abc")));
    let mut bytes = Vec::new();
    encode_entry(
        &Entry {
            log_id: sample_log_id(),
            payload,
        },
        &mut bytes,
    )
    .unwrap();
    let bytes = Bytes::from(bytes);
    let EntryPayload::Normal(payload) = decode_entry(bytes.clone()).unwrap().payload else {
        panic!("a payload came back as something else");
    };
    assert_eq!(payload.0.as_ptr(), bytes[ENTRY_HEAD_BYTES..].as_ptr());
}
