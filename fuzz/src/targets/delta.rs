//! Deltas: whatever is accepted can be read to its end and written again to the same meaning.
//!
//! An input is a delta as it is, or one whose lengths and checksums are made right first, so that
//! what lies behind them is reached; the first byte says which.

use bytes::Bytes;
use wallaby::wal::delta::IMAGE_BYTES_MAX;
use wallaby::wal::patch::PAGES_MAX;
use wallaby::wal::{
    ClusterId, DatabaseHash, Delta, DeltaError, DeltaHeader, DeltaWriter, Encoding, PageCount,
    PageNumber, PageSize, Part, Position,
};

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

/// One page, uncompressed.
const PAGE_BYTES_MAX: usize = 65536;
/// What the patches of one block are decompressed to, at most: twice its pages, and a little.
const BLOCK_BYTES_MAX: usize = 2 * PAGES_MAX * (PAGE_BYTES_MAX + 16);

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
    // A byte may be a page, whose number has four; and a list is doubled when it grows.
    let bound = Bound::NOTHING.and(12 * bytes.len());
    let decoded = bounded(bound, bytes.len(), || Delta::decode(given));
    let Ok(delta) = decoded else {
        return Reached::Refused;
    };
    let pages = delta.len() * delta.header().page_size.len();
    let room = if delta.header().part == Part::WHOLE {
        assert!(pages <= IMAGE_BYTES_MAX, "more than may be in memory");
        // The versions before, as patches find them and as their prefix; and the patches of a block.
        3 * pages + BLOCK_BYTES_MAX
    } else {
        PAGE_BYTES_MAX
    };
    let mut reached = Reached::Refused;
    for old in [blank, shaded] {
        let is_readable = bounded(Bound::PLAIN.and(room), bytes.len(), || {
            delta.pages(old).all(|page| {
                page.is_ok_and(|(_, image)| {
                    assert_eq!(image.len(), delta.header().page_size.len());
                    true
                })
            })
        });
        if is_readable {
            written_again(&delta, old);
            reached = Reached::Accepted;
        }
    }
    if reached == Reached::Refused {
        return reached;
    }
    let elsewhere = delta.in_cluster(ClusterId(77));
    let read = Delta::decode(elsewhere.bytes().clone()).expect("our own");
    assert_eq!(read, elsewhere);
    assert_eq!(read.in_cluster(delta.header().cluster), delta);
    Reached::Accepted
}

/// The version before of a page, or why it cannot be had.
type Old = fn(PageNumber, &mut [u8]) -> Result<(), DeltaError>;

#[expect(clippy::unnecessary_wraps, reason = "a version before may be missing")]
fn blank(_: PageNumber, _: &mut [u8]) -> Result<(), DeltaError> {
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "a version before may be missing")]
fn shaded(page: PageNumber, image: &mut [u8]) -> Result<(), DeltaError> {
    for (at, byte) in image.iter_mut().enumerate() {
        *byte = noise(at / 16 + page.number() as usize);
    }
    Ok(())
}

/// The same pages, whole and as patches.
fn written_again(delta: &Delta, old: Old) {
    let read = |delta: &Delta| -> Vec<(PageNumber, Vec<u8>)> {
        let pages = delta.pages(old).map(Result::unwrap);
        pages
            .map(|(page, image)| (page, image.into_owned()))
            .collect()
    };
    let mut pages = read(delta);
    let mut whole = DeltaWriter::new(*delta.header(), Encoding::Zstd);
    for (page, image) in &pages {
        whole.push(*page, image);
    }
    let again = Delta::decode(whole.finish()).expect("our own");
    assert_eq!(again.header(), delta.header());
    assert!(read(&again) == pages, "the same pages");
    if delta.header().part != Part::WHOLE {
        return;
    }
    pages.sort_unstable_by_key(|(page, _)| *page);
    let mut patched = DeltaWriter::new(*delta.header(), Encoding::Raw);
    for block in pages.chunks(PAGES_MAX) {
        let olds = block.iter().map(|(page, image)| {
            let mut before = vec![0; image.len()];
            old(*page, &mut before).expect("always there");
            before
        });
        let olds: Vec<Vec<u8>> = olds.collect();
        let versions = block.iter().zip(&olds);
        let versions = versions.map(|((page, image), old)| (*page, &old[..], &image[..]));
        patched.push_patches(&versions.collect::<Vec<_>>());
    }
    let again = Delta::decode(patched.finish()).expect("our own");
    assert!(read(&again) == pages, "the same pages in patches");
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
    let patched = {
        let mut writer = DeltaWriter::new(header(Part::WHOLE, 1024), Encoding::Raw);
        let mut versions = Vec::new();
        for number in [2, 3, 9] {
            let page = PageNumber::new(number).expect("not zero");
            let mut old = vec![0; 1024];
            shaded(page, &mut old).expect("always there");
            let mut new = old.clone();
            match number {
                2 => new[5..9].fill(1),
                3 => new.copy_within(100..200, 102),
                _ => new.iter_mut().for_each(|byte| *byte ^= 0x11),
            }
            versions.push((page, old, new));
        }
        // Those of which little has changed, and one that is compressed.
        for block in [&versions[2..], &versions[..2]] {
            let block = block
                .iter()
                .map(|(page, old, new)| (*page, &old[..], &new[..]));
            writer.push_patches(&block.collect::<Vec<_>>());
        }
        writer.finish()
    };
    let last = Part { number: 2, of: 2 };
    let mut samples = Vec::new();
    for (name, bytes) in [
        ("raw", written(header(Part::WHOLE, 512), Encoding::Raw)),
        ("zstd", written(header(Part::WHOLE, 1024), Encoding::Zstd)),
        ("patches", patched),
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
