//! The frames of a snapshot on its way, manifest included: whatever is accepted can be written
//! again and reads again as the same.
//!
//! The first byte says how large pages are, and whether checksums are made right first.

use bytes::Bytes;
use wallaby::node::decoders;
use wallaby::raft::{StoredMembership, codec};
use wallaby::wal::PageSize;

use crate::memory::{Bound, bounded};
use crate::{Reached, Sample};

/// A run of pages holds 512 KiB of them with their numbers, or one page.
const RUN_BYTES: usize = (512 << 10) + 4 * 1024;

/// See the module.
///
/// # Panics
/// If what was read is written differently.
pub fn snapshot(data: &[u8]) -> Reached {
    let (mode, frame) = data.split_first().unwrap_or((&0, &[]));
    let size = PageSize::new(512 << (mode % 8)).expect("a power of two");
    let mut frame = frame.to_vec();
    if *mode >= 128 {
        repair(&mut frame, size);
    }
    let frame = Bytes::from(frame);
    // Decoded, taken apart, and encoded again: the content three times, and what zstd asks for.
    let bound = Bound::PLAIN.and(5 * RUN_BYTES);
    let read = bounded(bound, frame.len(), || decoders::snapshot_part(&frame, size));
    let Ok((once, pages)) = read else {
        return Reached::Refused;
    };
    assert!(
        pages * size.len() <= RUN_BYTES.max(size.len()),
        "{pages} pages"
    );
    let again = decoders::snapshot_part(&Bytes::from(once.clone()), size);
    assert_eq!(again, Ok((once, pages)));
    Reached::Accepted
}

/// Sets the checksums to what they should be, as far as they can be found.
fn repair(frame: &mut [u8], size: PageSize) {
    match frame {
        [4, manifest @ ..] if manifest.len() > 4 => {
            let end = manifest.len() - 4;
            let (body, checksum) = manifest.split_at_mut(end);
            checksum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        }
        [5, encoding, _, _, _, _, _, _, checksum @ ..] if checksum.len() > 4 => {
            let (checksum, stored) = checksum.split_at_mut(4);
            let content = match encoding {
                1 => zstd::bulk::decompress(stored, RUN_BYTES.max(4 + size.len())).ok(),
                _ => Some(stored.to_vec()),
            };
            if let Some(content) = content {
                checksum.copy_from_slice(&crc32fast::hash(&content).to_le_bytes());
            }
        }
        _ => {}
    }
}

/// The bytes of a manifest (`node/manifest`) of a database of nine pages.
pub(crate) fn manifest(page_size: u32) -> Vec<u8> {
    let membership = codec::encode_membership(&StoredMembership::default());
    let mut bytes = vec![0x8e, b'W', b'L', b'B', b'S', b'N', b'\n', 0x1a, 1, 0, 0, 0];
    bytes.extend_from_slice(&page_size.to_le_bytes());
    bytes.extend_from_slice(&9_u32.to_le_bytes());
    let length = u32::try_from(membership.len()).expect("short");
    bytes.extend_from_slice(&length.to_le_bytes());
    for number in [2_u64, 3, 4, 1, 3, 2] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&77_u128.to_le_bytes());
    bytes.extend_from_slice(&membership);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn pages(encoding: u8) -> Vec<u8> {
    let mut content = Vec::new();
    for number in [3_u32, 9] {
        content.extend_from_slice(&number.to_le_bytes());
    }
    content.extend_from_slice(&[7; 1024]);
    let checksum = crc32fast::hash(&content);
    let stored = match encoding {
        1 => zstd::bulk::compress(&content, 1).expect("memory"),
        _ => content,
    };
    let mut frame = vec![5, encoding, 0, 0, 2, 0, 0, 0];
    frame.extend_from_slice(&checksum.to_le_bytes());
    frame.extend_from_slice(&stored);
    frame
}

pub(crate) fn samples() -> Vec<Sample> {
    let sized = |mode: u8, frame: &[u8]| [&[mode], frame].concat();
    let manifest = [&[4], &manifest(512)[..]].concat();
    let mut samples = vec![
        Sample::new("end", sized(0, &[6])),
        Sample::new("unknown", sized(0, &[9, 9])),
        Sample::new("manifest", sized(0, &manifest)),
        Sample::new("manifest-cut", sized(0, &manifest[..60])),
        Sample::new("manifest-repaired", sized(128, &manifest)),
    ];
    for (encoding, name) in [(0, "raw"), (1, "zstd")] {
        let pages = pages(encoding);
        samples.push(Sample::new(format!("pages-{name}"), sized(0, &pages)));
        samples.push(Sample::new(
            format!("pages-{name}-repaired"),
            sized(128, &pages),
        ));
        samples.push(Sample::new(
            format!("pages-{name}-of-another-size"),
            sized(131, &pages),
        ));
    }
    samples
}
