//! Deltas: whatever is accepted can be read to its end and written again to the same meaning.
//!
//! An input is a delta as it is, or one whose lengths and checksums are made right first, so that
//! what lies behind them is reached; the first byte says which.

use bytes::Bytes;
use wallaby::wal::{
    ClusterId, DatabaseHash, Delta, DeltaHeader, DeltaWriter, Encoding, PageCount, PageNumber,
    PageSize, Part, Position,
};

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

/// One page, uncompressed.
const PAGE_BYTES_MAX: usize = 65536;

/// See the module.
///
/// # Panics
/// If an accepted delta cannot be written again.
pub fn delta(data: &[u8]) -> Reached {
    let (mode, bytes) = data.split_first().unwrap_or((&0, &[]));
    let bytes = if mode % 2 == 1 {
        repaired(bytes.to_vec())
    } else {
        bytes.to_vec()
    };
    let bytes = Bytes::from(bytes);
    let given = bytes.clone();
    let decoded = bounded(Bound::NOTHING, bytes.len(), || Delta::decode(given));
    let Ok(delta) = decoded else {
        return Reached::Refused;
    };
    let bound = Bound::PLAIN.and(PAGE_BYTES_MAX);
    let is_whole = bounded(bound, bytes.len(), || {
        delta.pages().all(|page| {
            page.is_ok_and(|(_, image)| {
                assert_eq!(image.len(), delta.header().page_size.len());
                true
            })
        })
    });
    if !is_whole {
        return Reached::Refused;
    }
    for encoding in [Encoding::Raw, Encoding::Zstd] {
        let mut writer = DeltaWriter::new(*delta.header(), encoding);
        for page in delta.pages() {
            let (page, image) = page.expect("read before");
            writer.push(page, &image);
        }
        let again = Delta::decode(writer.finish()).expect("our own");
        assert_eq!(again.header(), delta.header());
        let pages = delta.pages().map(Result::unwrap);
        assert!(
            pages.eq(again.pages().map(Result::unwrap)),
            "the same pages"
        );
    }
    let elsewhere = delta.in_cluster(ClusterId(77));
    let read = Delta::decode(elsewhere.bytes().clone()).expect("our own");
    assert_eq!(read, elsewhere);
    assert_eq!(read.in_cluster(delta.header().cluster), delta);
    Reached::Accepted
}

/// Sets the payload's length and both checksums to what they should be.
fn repaired(mut bytes: Vec<u8>) -> Vec<u8> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return bytes;
    };
    let pages = u32::from_le_bytes([head[128], head[129], head[130], head[131]]) as usize;
    let Some(table_end) = pages
        .checked_mul(ENTRY_BYTES)
        .and_then(|table| table.checked_add(HEADER_BYTES))
        .filter(|end| *end <= bytes.len())
    else {
        return bytes;
    };
    let payload = bytes.len() - table_end;
    let checksum = crc32fast::hash(&bytes[table_end..]);
    bytes[132..136].copy_from_slice(&checksum.to_le_bytes());
    bytes[136..144].copy_from_slice(&(payload as u64).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..156]);
    hasher.update(&bytes[HEADER_BYTES..table_end]);
    let checksum = hasher.finalize();
    bytes[156..160].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

pub(crate) fn samples() -> Vec<Sample> {
    let header = |part: Part, page_size: u32| DeltaHeader {
        cluster: ClusterId(1),
        origin: 2,
        epoch: 3,
        sequence: 4,
        base: (part.number == 1).then_some(Position {
            term: 5,
            node: 6,
            index: 7,
        }),
        page_size: PageSize::new(page_size).expect("a power of two"),
        page_count: PageCount(9),
        hash_before: DatabaseHash(u128::from(part.is_first()) * 11),
        hash_after: DatabaseHash(u128::from(part.is_last()) * 12),
        part,
    };
    let written = |header: DeltaHeader, encoding| {
        let mut writer = DeltaWriter::new(header, encoding);
        for number in [1, 2, 9] {
            let image: Vec<u8> = (0..header.page_size.len())
                .map(|at| if number == 2 { noise(at) } else { 7 })
                .collect();
            writer.push(PageNumber::new(number).expect("not zero"), &image);
        }
        writer.finish()
    };
    let last = Part { number: 2, of: 2 };
    let mut samples = Vec::new();
    for (name, bytes) in [
        ("raw", written(header(Part::WHOLE, 512), Encoding::Raw)),
        ("zstd", written(header(Part::WHOLE, 1024), Encoding::Zstd)),
        ("last-part", written(header(last, 512), Encoding::Zstd)),
    ] {
        samples.push(Sample::new(name, [&[0], &bytes[..]].concat()));
        samples.push(Sample::new(
            format!("{name}-repaired"),
            [&[1], &bytes[..]].concat(),
        ));
        let half = &bytes[..bytes.len() / 2];
        samples.push(Sample::new(format!("{name}-cut"), [&[0], half].concat()));
    }
    samples
}

/// A byte that does not compress.
fn noise(at: usize) -> u8 {
    (at as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_le_bytes()[6]
}

/// As in the table of `wal::delta`.
const HEADER_BYTES: usize = 160;
const ENTRY_BYTES: usize = 12;
