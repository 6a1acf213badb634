//! The small files of a data directory, with any content: identity, checkpoint record, and the
//! spools of a snapshot, one cut off and one to be installed.
//!
//! The first byte says which file it is, and whether its checksums are made right first.

use std::fs;

use wallaby::node::decoders;
use wallaby::sqlite::Record;

use super::snapshot;
use crate::memory::{Bound, bounded};
use crate::{Reached, Sample, place};

/// One page with the head of its record, and the manifest.
const RECORD_BYTES: usize = 65536 + (2 << 20);

const FILES: [&str; 4] = ["identity", "checkpoint", "incoming-pages", "installing"];

/// See the module.
///
/// # Panics
/// If what was accepted is not what stands in the file.
pub fn stored(data: &[u8]) -> Reached {
    let (mode, content) = data.split_first().unwrap_or((&0, &[]));
    let mut content = content.to_vec();
    let name = FILES[usize::from(*mode) % FILES.len()];
    if *mode >= 128 {
        repair(name, &mut content);
    }
    let dir = place::empty_directory("stored");
    let path = dir.join(name);
    fs::write(&path, &content).expect("room for a file");
    // A page of 512 bytes has a place in a map.
    let bound = Bound::PLAIN.and(RECORD_BYTES);
    bounded(bound, content.len(), || match name {
        "identity" => {
            let read = decoders::identity(&dir);
            if read.is_ok() {
                assert_eq!(fs::read(&path).expect("written again"), content);
            }
            Reached::accepted(read.is_ok())
        }
        "checkpoint" => {
            let read = Record::load(&dir);
            assert!(!matches!(read, Ok(None)), "it is there");
            Reached::accepted(read.is_ok())
        }
        _ => {
            let (incoming, pending) = decoders::spooled(&dir);
            let pages = incoming.expect("pages up to the first that is damaged");
            // A spool that was cut off has no manifest; one to be installed is complete.
            let found = match pending {
                Ok(Some(found)) => found,
                Ok(None) => pages,
                Err(_) => 0,
            };
            assert!(found * 520 <= content.len(), "{found} pages");
            Reached::accepted(found > 0)
        }
    })
}

/// Sets the checksums to what they should be, as far as they can be found.
fn repair(name: &str, content: &mut [u8]) {
    let mut begin = 0;
    if name == "incoming-pages" || name == "installing" {
        let size = content.get(12..16).and_then(|size| size.try_into().ok());
        let size = size.map_or(0, u32::from_le_bytes) as usize;
        begin = 16;
        while let Some([head, image]) = content
            .get(begin..)
            .and_then(|rest| Some([rest.get(..4)?, rest.get(8..size.checked_add(8)?)?]))
            .filter(|[head, _]| **head != [0; 4])
        {
            let checksum = record_checksum(head, begin, image);
            content[begin + 4..begin + 8].copy_from_slice(&checksum.to_le_bytes());
            begin += 8 + size;
        }
        // The manifest stands behind its length.
        begin += 8;
    }
    let Some(sealed) = content.get_mut(begin..).filter(|sealed| sealed.len() > 4) else {
        return;
    };
    let end = sealed.len() - 4;
    let (body, checksum) = sealed.split_at_mut(end);
    checksum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

fn record_checksum(page: &[u8], offset: usize, image: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(page);
    hasher.update(&(offset as u64).to_le_bytes());
    hasher.update(image);
    hasher.finalize()
}

fn identity() -> Vec<u8> {
    let mut bytes = vec![0x8e, b'W', b'L', b'B', b'I', b'D', b'\n', 0x1a, 1, 0, 0, 0];
    bytes.extend_from_slice(&[4, 0, 0, 0]);
    bytes.extend_from_slice(&77_u64.to_le_bytes());
    bytes.extend_from_slice(&5_u128.to_le_bytes());
    bytes.extend_from_slice(&[1, 0, 0, 0]);
    bytes.extend_from_slice(b"name");
    sealed(bytes)
}

fn checkpoint() -> Vec<u8> {
    let mut bytes = b"WBCK".to_vec();
    for number in [2_u32, 5, 4096, 9, 3] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&77_u128.to_le_bytes());
    for number in [1_u64, 2, 3, 1, 2, 3, 9 * 4096, 5, 6, 7] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(b"salts...");
    for number in [8_u32, 9, 10] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(b"abc");
    sealed(bytes)
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Two pages, and behind them what makes it complete.
fn spool(is_complete: bool) -> Vec<u8> {
    let mut bytes = vec![0x8e, b'W', b'L', b'B', b'S', b'P', b'\n', 0x1a, 2, 0, 0, 0];
    bytes.extend_from_slice(&512_u32.to_le_bytes());
    for page in [2_u32, 5] {
        let image = [7; 512];
        let checksum = record_checksum(&page.to_le_bytes(), bytes.len(), &image);
        bytes.extend_from_slice(&page.to_le_bytes());
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&image);
    }
    if is_complete {
        let manifest = snapshot::manifest(512);
        bytes.extend_from_slice(&[0; 4]);
        let length = u32::try_from(manifest.len()).expect("short");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&manifest);
    }
    bytes
}

pub(crate) fn samples() -> Vec<Sample> {
    let file = |kind: u8, content: &[u8]| [&[kind], content].concat();
    let complete = spool(true);
    vec![
        Sample::new("identity", file(0, &identity())),
        Sample::new("identity-repaired", file(128, &identity())),
        Sample::new("checkpoint", file(1, &checkpoint())),
        Sample::new("checkpoint-repaired", file(129, &checkpoint())),
        Sample::new("incoming", file(2, &spool(false))),
        Sample::new("incoming-cut", file(2, &spool(false)[..700])),
        Sample::new("installing", file(3, &complete)),
        Sample::new("installing-repaired", file(131, &complete)),
        Sample::new("installing-cut", file(3, &complete[..complete.len() - 9])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_files_are_accepted_and_cut_ones_are_not_taken_for_whole() {
        for sample in samples() {
            let is_whole = !sample.name.ends_with("cut");
            let may_have_pages = sample.name.starts_with("incoming");
            let expected = Reached::accepted(is_whole || may_have_pages);
            assert_eq!(stored(&sample.bytes), expected, "{}", sample.name);
        }
    }
}
