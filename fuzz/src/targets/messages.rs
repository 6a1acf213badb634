//! What nodes say to each other inside of frames, and the entries of the log: whatever is accepted
//! can be written again, and reads again as the same.

use wallaby::node::decoders;
use wallaby::raft::codec;
use wallaby::transport::{Hello, HelloReply};

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

type Decoder = fn(&[u8]) -> Result<Vec<u8>, String>;

/// Those of which a value has one encoding.
const EXACT: [(&str, Decoder); 7] = [
    ("hello", |bytes| {
        let read = Hello::decode(bytes).map_err(|verdict| verdict.reason().to_owned())?;
        Ok(read.encode().to_vec())
    }),
    ("hello reply", |bytes| {
        let read = HelloReply::decode(bytes).map_err(|verdict| verdict.reason().to_owned())?;
        Ok(read.encode().to_vec())
    }),
    ("log id", |bytes| {
        let mut out = Vec::new();
        codec::encode_log_id(&codec::decode_log_id(bytes).map_err(text)?, &mut out);
        Ok(out)
    }),
    ("optional log id", |bytes| {
        let read = codec::decode_log_id_option(bytes).map_err(text)?;
        let mut out = Vec::new();
        codec::encode_log_id_option(read.as_ref(), &mut out);
        Ok(out)
    }),
    ("vote", |bytes| {
        let mut out = Vec::new();
        codec::encode_vote(&codec::decode_vote(bytes).map_err(text)?, &mut out);
        Ok(out)
    }),
    ("membership", |bytes| {
        let read = codec::decode_membership(bytes).map_err(text)?;
        Ok(codec::encode_membership(&read))
    }),
    ("entry", |bytes| {
        let read = codec::decode_entry(bytes.to_vec().into()).map_err(text)?;
        let mut out = Vec::new();
        codec::encode_entry(&read, &mut out).map_err(text)?;
        Ok(out)
    }),
];

fn text(error: codec::CodecError) -> String {
    error.to_string()
}

/// Lists are made with room for as many elements as are announced, up to 1 MiB for each (serde's
/// `size_hint::cautious`) and four within one another; a text up to 1 MiB in a small message.
/// Values of one byte become 56 in a list of parameters, and lists grow by doubling.
const BOUND: Bound = Bound {
    per_byte: 256,
    constant: 6 << 20,
};

/// See the module.
///
/// # Panics
/// If what was read is written differently.
pub fn messages(data: &[u8]) -> Reached {
    let Some((choice, bytes)) = data.split_first() else {
        return Reached::Refused;
    };
    let choice = usize::from(*choice) % (EXACT.len() + decoders::MESSAGES.len());
    if let Some((name, decode)) = EXACT.get(choice) {
        // A member of 20 bytes takes 250 or so in a map of members.
        let bound = Bound {
            per_byte: 64,
            ..Bound::PLAIN
        };
        let read = bounded(bound, bytes.len(), || decode(bytes));
        if let Ok(again) = &read {
            assert_eq!(again, bytes, "{name} has two encodings");
        }
        return Reached::accepted(read.is_ok());
    }
    let (name, decode) = decoders::MESSAGES[choice - EXACT.len()];
    let Ok(once) = bounded(BOUND, bytes.len(), || decode(bytes)) else {
        return Reached::Refused;
    };
    // Numbers may have been written longer than needed; not so what we write ourselves.
    assert_eq!(
        decode(&once),
        Ok(once.clone()),
        "{name} changes when written"
    );
    Reached::Accepted
}

pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    let exact = [
        Hello {
            cluster: None,
            node: 7,
            expected: Some(8),
        }
        .encode()
        .to_vec(),
        HelloReply {
            verdict: wallaby::transport::Verdict::Accepted,
            cluster: Some(wallaby::wal::ClusterId(3)),
            node: 9,
        }
        .encode()
        .to_vec(),
        vec![5; codec::LOG_ID_BYTES],
        vec![0; codec::LOG_ID_OPTION_BYTES],
        [vec![4; 16], vec![1, 0, 0, 0, 0, 0, 0, 0]].concat(),
        membership(),
        entry(),
    ];
    let all = exact.into_iter().chain(spoken()).enumerate();
    for (number, bytes) in all {
        let number = u8::try_from(number).expect("few decoders");
        let name = EXACT
            .iter()
            .map(|(name, _)| name)
            .chain(decoders::MESSAGES.iter().map(|(name, _)| name))
            .nth(number.into())
            .expect("a sample for each decoder")
            .replace(' ', "-");
        samples.push(Sample::new(name, [&[number], &bytes[..]].concat()));
    }
    // A greeting that announces a name of 32 MiB.
    let greeting = EXACT.len() + 9;
    let greeting = u8::try_from(greeting).expect("few decoders");
    let bytes = vec![greeting, 7, 252, 0, 0, 0, 2];
    samples.push(Sample::new("greeting-that-claims-much", bytes));
    samples
}

/// One of each message between nodes, in the order of the table. bincode writes a small number as
/// one byte, and texts and lists behind their length.
fn spoken() -> [Vec<u8>; decoders::MESSAGES.len()] {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let member = || [text("n"), text("a:1"), text("a:2"), vec![0]].concat();
    let mut frame = vec![0; 75];
    frame[0] = 75;
    let statement = [
        vec![1],
        text("SELECT ?, :n"),
        vec![2, 0, 1, 10, 1],
        text("n"),
        vec![0, 3, 1, 2, 3],
    ]
    .concat();
    let rows = [
        vec![1, 1],
        text("x"),
        vec![1],
        text("integer"),
        vec![1, 1, 1, 1, 1, 4],
    ]
    .concat();
    [
        frame,
        vec![2, 1, 5, 6, 7],
        vec![2, 9, 1, 1, 2, 9, 4, 0],
        vec![1, 2, 9, 1, 1, 0],
        vec![2, 9, 1],
        vec![2, 9, 1, 3, 0],
        [vec![1], text("no")].concat(),
        [vec![0], statement, vec![0, 0, 1, 5, 0, 0, 200, 0]].concat(),
        [vec![2, 1], rows, vec![0, 5, 0, 1, 9], text("a:1")].concat(),
        [vec![7], member(), vec![3, 0]].concat(),
        [
            vec![7],
            member(),
            vec![1, 5, 1],
            text("a:1"),
            vec![3],
            text("0.1.0"),
            vec![0, 1, 50, 200],
        ]
        .concat(),
        [vec![7], member(), vec![1, 0]].concat(),
        [vec![1, 1], text("a:1")].concat(),
        vec![5, 0],
        [vec![1], text("no")].concat(),
        [vec![1], text("n"), vec![1, 200, 1], text("u"), text("p")].concat(),
        [vec![4, 2, 0, 0, 0, 0, 1, 0], text("why")].concat(),
        vec![0, 0],
        vec![0, 1, 2, 3],
        vec![200, 200, 0],
        vec![1, 2, 5, 6, 7, 8],
        vec![1, 1, 2, 3, 4, 0],
        vec![0, 2, 9, 1],
        vec![7, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
}

fn membership() -> Vec<u8> {
    use wallaby::raft::{Member, Membership, Role, StoredMembership};
    let member = |name: &str, role| Member {
        name: name.to_owned(),
        raft_addr: "127.0.0.1:4002".to_owned(),
        http_addr: "127.0.0.1:4001".to_owned(),
        role,
    };
    let nodes = std::collections::BTreeMap::from([
        (1, member("one", Role::Voter)),
        (2, member("two", Role::Replica)),
    ]);
    let membership = Membership::new(vec![[1].into()], nodes).expect("a voter that is known");
    codec::encode_membership(&StoredMembership::new(None, membership))
}

fn entry() -> Vec<u8> {
    let mut bytes = vec![1; codec::LOG_ID_BYTES];
    bytes.extend_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c']);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decoder_accepts_its_sample() {
        let samples = samples();
        assert_eq!(samples.len(), EXACT.len() + decoders::MESSAGES.len() + 1);
        for sample in samples {
            let expected = Reached::accepted(!sample.name.ends_with("claims-much"));
            assert_eq!(messages(&sample.bytes), expected, "{}", sample.name);
        }
    }
}
