//! What travels on the stream of a snapshot, hand-laid and little-endian, version 1.
//!
//! ```text
//! sender                                 receiver
//!   vote (opens the stream)  ------->
//!                            <-------  ready: it has its own pages and what was kept at hand
//!   manifest                 ------->
//!                            <-------  hashes of its pages, in runs, an empty run last
//!   pages that differ        ------->  (while further runs are on their way)
//!                            <-------  taken: so many bytes of pages are in the spool
//!   end                      ------->
//!                            <-------  verdict: installed, or why not
//! ```
//!
//! | Frame | Offset | Size | Field | Meaning |
//! |---|---|---|---|---|
//! | ready | 0 | 1 | tag | 1 |
//! | | 1 | 4 | version | 1 |
//! | | 5 | 4 | pages kept | of a transfer that was cut off; they will not be sent again |
//! | hashes | 0 | 1 | tag | 2 |
//! | | 1 | 4 | first | page number |
//! | | 5 | 16 n | hashes | of n pages in a row; zero: it has none |
//! | verdict | 0 | 1 | tag | 3 |
//! | | 1 | | reply | `SnapshotReply` |
//! | taken | 0 | 1 | tag | 7 |
//! | | 1 | 8 | bytes | of all frames of pages so far |
//! | manifest | 0 | 1 | tag | 4 |
//! | | 1 | | manifest | see [`super::manifest`] |
//! | pages | 0 | 1 | tag | 5 |
//! | | 1 | 1 | encoding | 0 raw, 1 zstd |
//! | | 2 | 2 | reserved | zero |
//! | | 4 | 4 | count | n pages |
//! | | 8 | 4 | checksum | CRC-32 of the content as it is before it is compressed |
//! | | 12 | | content | n page numbers of 4 bytes, then n pages |
//! | end | 0 | 1 | tag | 6 |

use bytes::Bytes;

use super::wire::{self, SnapshotReply};
use crate::wal::{PageHash, PageNumber, PageSize};

/// A frame of the receiver.
#[derive(Debug)]
pub(crate) enum Reply {
    Ready {
        kept: u32,
    },
    Hashes {
        first: u32,
        /// Empty: there are no more.
        hashes: Vec<PageHash>,
    },
    /// So many bytes of frames of pages will not have to be sent again.
    Taken(u64),
    Verdict(SnapshotReply),
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready { kept } => {
                let mut bytes = vec![READY];
                bytes.extend_from_slice(&VERSION.to_le_bytes());
                bytes.extend_from_slice(&kept.to_le_bytes());
                bytes
            }
            Self::Hashes { first, hashes } => {
                let mut bytes = Vec::with_capacity(5 + hashes.len() * HASH_BYTES);
                bytes.push(HASHES);
                bytes.extend_from_slice(&first.to_le_bytes());
                for hash in hashes {
                    bytes.extend_from_slice(&hash.0.to_le_bytes());
                }
                bytes
            }
            Self::Taken(count) => {
                let mut bytes = vec![TAKEN];
                bytes.extend_from_slice(&count.to_le_bytes());
                bytes
            }
            Self::Verdict(reply) => {
                let mut bytes = vec![VERDICT];
                bytes.extend_from_slice(&wire::encode(reply));
                bytes
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (tag, body) = bytes.split_first().ok_or("an empty frame")?;
        match *tag {
            READY => {
                let (version, kept) = match body {
                    [a, b, c, d, e, f, g, h] => (
                        u32::from_le_bytes([*a, *b, *c, *d]),
                        u32::from_le_bytes([*e, *f, *g, *h]),
                    ),
                    _ => return Err("a wrong length of a frame that says ready".to_owned()),
                };
                if version != VERSION {
                    return Err(format!(
                        "the peer receives snapshots of version {version}; this is {VERSION}"
                    ));
                }
                Ok(Self::Ready { kept })
            }
            HASHES => {
                let (first, hashes) = body.split_first_chunk::<4>().ok_or("hashes cut short")?;
                let (hashes, rest) = hashes.as_chunks::<HASH_BYTES>();
                if !rest.is_empty() || hashes.len() > HASHES_MAX {
                    return Err("a wrong length of a run of hashes".to_owned());
                }
                let hash = |bytes: &[u8; HASH_BYTES]| PageHash(u128::from_le_bytes(*bytes));
                Ok(Self::Hashes {
                    first: u32::from_le_bytes(*first),
                    hashes: hashes.iter().map(hash).collect(),
                })
            }
            TAKEN => {
                let count = body.try_into().map_err(|_| "a wrong length of a count")?;
                Ok(Self::Taken(u64::from_le_bytes(count)))
            }
            VERDICT => Ok(Self::Verdict(wire::decode(body)?)),
            _ => Err("an unknown frame from the receiver of a snapshot".to_owned()),
        }
    }
}

/// A frame of the sender.
#[derive(Debug)]
pub(crate) enum Part {
    /// An encoded manifest.
    Manifest(Bytes),
    /// Pages, still encoded.
    Pages(Bytes),
    /// All that differ were sent.
    End,
}

impl Part {
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, String> {
        match bytes.first() {
            Some(&MANIFEST) => Ok(Self::Manifest(bytes.slice(1..))),
            Some(&PAGES) => Ok(Self::Pages(bytes.clone())),
            Some(&END) if bytes.len() == 1 => Ok(Self::End),
            _ => Err("an unknown frame from the sender of a snapshot".to_owned()),
        }
    }
}

pub(crate) fn manifest(manifest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![MANIFEST];
    bytes.extend_from_slice(manifest);
    bytes
}

pub(crate) fn end() -> Vec<u8> {
    vec![END]
}

/// How many pages of this size one frame holds at most.
pub(crate) fn pages_max(size: PageSize) -> usize {
    (PAGES_BYTES / size.len()).max(1)
}

/// Encodes pages, compressed if that makes them smaller: `images` holds one after the other.
pub(crate) fn pages(numbers: &[PageNumber], images: &[u8]) -> Vec<u8> {
    let count = u32::try_from(numbers.len()).expect("at most one run");
    let mut content = Vec::with_capacity(numbers.len() * 4 + images.len());
    for number in numbers {
        content.extend_from_slice(&number.number().to_le_bytes());
    }
    content.extend_from_slice(images);
    let checksum = crc32fast::hash(&content);
    let shrunk = zstd::bulk::compress(&content, ZSTD_LEVEL).ok();
    let shrunk = shrunk.filter(|shrunk| shrunk.len() < content.len());
    let (encoding, content) = match shrunk {
        Some(shrunk) => (ENCODING_ZSTD, shrunk),
        None => (ENCODING_RAW, content),
    };
    let mut bytes = Vec::with_capacity(PAGES_HEAD_BYTES + content.len());
    bytes.extend_from_slice(&[PAGES, encoding, 0, 0]);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&content);
    bytes
}

/// Decoded pages, ascending.
#[derive(Debug)]
pub(crate) struct Pages {
    content: Vec<u8>,
    count: usize,
    size: PageSize,
}

impl Pages {
    /// Decodes and checks a frame of pages of this size.
    pub(crate) fn decode(bytes: &[u8], size: PageSize) -> Result<Self, String> {
        let (head, stored) = bytes
            .split_first_chunk::<PAGES_HEAD_BYTES>()
            .ok_or("a run of pages cut short")?;
        let [_, encoding, 0, 0, c0, c1, c2, c3, s0, s1, s2, s3] = *head else {
            return Err("a reserved field of a run of pages".to_owned());
        };
        let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        if count == 0 || count > pages_max(size) {
            return Err("an impossible number of pages in a run".to_owned());
        }
        let length = count * (4 + size.len());
        let content = match encoding {
            ENCODING_RAW => stored.to_vec(),
            // It never writes beyond the capacity, whatever the frame claims.
            ENCODING_ZSTD => zstd::bulk::decompress(stored, length)
                .map_err(|error| format!("a run of pages cannot be decompressed: {error}"))?,
            _ => return Err("an unknown encoding of pages".to_owned()),
        };
        if content.len() != length {
            return Err("a run of pages of the wrong length".to_owned());
        }
        if crc32fast::hash(&content) != u32::from_le_bytes([s0, s1, s2, s3]) {
            return Err("wrong checksum of a run of pages".to_owned());
        }
        Ok(Self {
            content,
            count,
            size,
        })
    }

    /// The pages with their numbers, which are as the peer gave them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let (numbers, images) = self.content.split_at(self.count * 4);
        let numbers = numbers.as_chunks::<4>().0.iter();
        numbers
            .map(|number| u32::from_le_bytes(*number))
            .zip(images.chunks_exact(self.size.len()))
    }
}

const VERSION: u32 = 1;
const READY: u8 = 1;
const HASHES: u8 = 2;
const VERDICT: u8 = 3;
const MANIFEST: u8 = 4;
const PAGES: u8 = 5;
const END: u8 = 6;
const TAKEN: u8 = 7;
const ENCODING_RAW: u8 = 0;
const ENCODING_ZSTD: u8 = 1;
const PAGES_HEAD_BYTES: usize = 12;
const HASH_BYTES: usize = 16;
/// Hashes in one run at most: 256 KiB.
pub(crate) const HASHES_MAX: usize = 16 << 10;
/// Bytes of pages in one run: long enough for the disk, short enough for one frame.
const PAGES_BYTES: usize = 512 << 10;
/// Pages of text and records shrink to a third or so even at the fastest.
const ZSTD_LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: PageSize = PageSize::DEFAULT;

    fn example(noise: bool) -> Vec<u8> {
        let numbers: Vec<_> = [3, 9].into_iter().filter_map(PageNumber::new).collect();
        let mut state = 1_u32;
        let images: Vec<u8> = (0..2 * SIZE.len())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if noise { state.to_le_bytes()[3] } else { 7 }
            })
            .collect();
        pages(&numbers, &images)
    }

    #[test]
    fn pages_are_read_as_they_were_written_and_shrink_where_they_can() {
        let (noise, text) = (example(true), example(false));
        assert_eq!(noise.len(), PAGES_HEAD_BYTES + 2 * (4 + SIZE.len()));
        assert!(text.len() < 200, "{} bytes", text.len());
        for frame in [noise, text] {
            let pages = Pages::decode(&frame, SIZE).unwrap();
            let found: Vec<_> = pages
                .iter()
                .map(|(page, image)| (page, image.len()))
                .collect();
            assert_eq!(found, [(3, SIZE.len()), (9, SIZE.len())]);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_of_pages_is_refused() {
        for frame in [example(true), example(false)] {
            for length in (0..frame.len()).step_by(if frame.len() > 999 { 37 } else { 1 }) {
                assert!(Pages::decode(&frame[..length], SIZE).is_err(), "{length}");
            }
            // The tag is the first byte; whoever calls has looked at it.
            for bit in (8..frame.len() * 8).step_by(if frame.len() > 999 { 61 } else { 1 }) {
                let mut damaged = frame.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                match Pages::decode(&damaged, SIZE) {
                    Err(_) => {}
                    // zstd's header has bits that say nothing about the content.
                    Ok(pages) => {
                        let sound = Pages::decode(&frame, SIZE).unwrap();
                        assert_eq!(pages.content, sound.content, "bit {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_run_that_claims_too_much_is_refused_before_it_is_held() {
        let mut frame = example(false);
        frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Pages::decode(&frame, SIZE).is_err());
        let mut hashes = vec![HASHES, 1, 0, 0, 0];
        hashes.resize(5 + (HASHES_MAX + 1) * HASH_BYTES, 0);
        assert!(Reply::decode(&hashes).is_err());
    }

    #[test]
    fn replies_are_read_as_they_were_written_and_not_when_cut() {
        let hashes = vec![PageHash(1), PageHash(u128::MAX)];
        for reply in [
            Reply::Ready { kept: 7 },
            Reply::Taken(1 << 40),
            Reply::Hashes { first: 5, hashes },
            Reply::Verdict(Err("full".to_owned())),
        ] {
            let bytes = reply.encode();
            let read = Reply::decode(&bytes).unwrap();
            assert_eq!(format!("{read:?}"), format!("{reply:?}"));
            for length in 0..bytes.len() {
                let cut = Reply::decode(&bytes[..length]);
                let shorter = matches!(&cut, Ok(Reply::Hashes { hashes, .. }) if hashes.len() < 2);
                assert!(cut.is_err() || shorter, "{reply:?} cut to {length}");
            }
        }
        assert!(Part::decode(&Bytes::new()).is_err());
        assert!(Part::decode(&Bytes::from_static(&[END, 0])).is_err());
    }
}
