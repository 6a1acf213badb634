//! Deltas: golden bytes, round trips, and every kind of damage.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use wallaby::wal::{
    ClusterId, DatabaseHash, Delta, DeltaError, DeltaHeader, DeltaWriter, Encoding, PageCount,
    PageNumber, Part, Position,
};

use super::{Random, page_sizes, size};

#[test]
fn golden_delta_of_raw_pages_is_what_the_writer_makes() {
    let (header, pages) = golden_raw();
    let golden = golden("raw.hex");
    assert_eq!(encode(header, Encoding::Raw, &pages), golden);
    assert_eq!(decode_all(&golden), Ok((header, pages)));
}

#[test]
fn golden_delta_of_compressed_pages_is_still_read() {
    // Only read: what zstd makes of a page may change with its version, what a frame means may not.
    let (header, pages) = golden_zstd();
    let golden = golden("zstd.hex");
    assert_eq!(decode_all(&golden), Ok((header, pages.clone())));
    assert!(golden.len() < 512, "the golden bytes should be compressed");
    assert_eq!(
        decode_all(&encode(header, Encoding::Zstd, &pages)),
        Ok((header, pages))
    );
}

#[test]
fn deltas_survive_the_round_trip() {
    let mut random = Random::from_seed("deltas_survive");
    for _ in 0..100 {
        let (header, pages) = random_delta(&mut random);
        for encoding in [Encoding::Raw, Encoding::Zstd] {
            let bytes = encode(header, encoding, &pages);
            assert!(bytes.len() <= DeltaWriter::bytes_max_for(header.page_size, pages.len()));
            let delta = Delta::decode(bytes.clone()).unwrap();
            assert_eq!(delta.len(), pages.len());
            assert!(delta.page_numbers().eq(pages.iter().map(|(page, _)| *page)));
            assert_eq!(delta.bytes(), &bytes);
            assert_eq!(decode_all(&bytes), Ok((header, pages.clone())));
        }
        let raw = encode(header, Encoding::Raw, &pages);
        assert_eq!(
            raw.len(),
            DeltaWriter::bytes_max_for(header.page_size, pages.len())
        );
    }
}

#[test]
fn no_truncation_of_a_delta_is_accepted() {
    for golden in goldens() {
        for length in 0..golden.len() {
            assert_eq!(
                Delta::decode(golden.slice(..length)),
                Err(DeltaError::Short)
            );
        }
        let longer = Bytes::from([&golden[..], &[0]].concat());
        assert!(matches!(
            Delta::decode(longer),
            Err(DeltaError::Corrupt { .. })
        ));
    }
}

#[test]
fn no_flipped_bit_in_a_delta_is_accepted() {
    for golden in goldens() {
        for bit in 0..golden.len() * 8 {
            let mut damaged = golden.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let result = Delta::decode(damaged.into());
            match bit / 8 {
                0..8 => assert_eq!(result, Err(DeltaError::NotADelta)),
                8..12 => assert!(matches!(result, Err(DeltaError::Unsupported { .. }))),
                _ => assert!(result.is_err(), "bit {bit}"),
            }
        }
    }
}

#[test]
fn another_version_of_the_delta_is_unsupported_and_not_corrupt() {
    let mut later = golden("raw.hex").to_vec();
    later[8] += 1;
    let refused = |version| Err(DeltaError::Unsupported { version });
    assert_eq!(Delta::decode(later.into()), refused(3));
    let mut before = golden("raw.hex").to_vec();
    before[8] = 0;
    assert_eq!(Delta::decode(before.into()), refused(0));
}

/// It had no patches; a log of that time is still read.
#[test]
fn version_1_is_read_and_has_no_patches() {
    for (name, expected) in [("raw.hex", golden_raw()), ("zstd.hex", golden_zstd())] {
        let earlier = golden_of("v1", name);
        assert_eq!(DeltaHeader::peek(&earlier), Some(expected.0));
        assert_eq!(decode_all(&earlier), Ok(expected));
    }
    let mut patched = golden("patch.hex").to_vec();
    patched[8] = 1;
    let refused = Err(DeltaError::Corrupt {
        what: "unknown page encoding",
        offset: 172,
    });
    assert_eq!(Delta::decode(with_checksums_repaired(patched)), refused);
}

#[test]
fn no_bit_of_a_delta_with_good_checksums_makes_the_reader_panic() {
    for golden in goldens() {
        for bit in 12 * 8..golden.len() * 8 {
            let mut damaged = golden.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let damaged = with_checksums_repaired(damaged);
            if let Ok((header, pages)) = decode_all(&damaged) {
                // What is accepted is complete: the writer takes it, and reads it back equal.
                let again = encode(header, Encoding::Raw, &pages);
                assert_eq!(decode_all(&again), Ok((header, pages)), "bit {bit}");
            }
        }
    }
}

/// Each rule between the fields, broken with good checksums: (offset, new bytes, what is said).
#[test]
fn each_rule_of_the_delta_is_enforced_by_name() {
    let rules: [(usize, &[u8], &str); 24] = [
        (12, &[2], "unknown flags"),
        (12, &[0], "a base position without its flag"),
        (16, &[0; 16], "cluster id zero"),
        (80, &[0, 3], "page size"),
        (84, &[2], "page beyond the page count"),
        (88, &[1], "hash before on a later part"),
        (120, &[0], "part number out of range"),
        (120, &[3], "part number out of range"),
        (124, &[3], "hash after on an earlier part"),
        (144, &[1], "reserved bytes"),
        (155, &[1], "reserved bytes"),
        (160, &[0], "page number zero"),
        (172, &[2, 0, 0, 0], "pages do not ascend"),
        (172, &[1, 0, 0, 0], "pages do not ascend"),
        (164, &[0, 0], "impossible page length"),
        (164, &[0, 0, 1, 0], "impossible page length"),
        (164, &[14], "page lengths do not add up to the payload"),
        (136, &[25], "payload length"),
        (168, &[3], "unknown page encoding"),
        (169, &[1], "too many pages in one entry"),
        (168, &[0, 1], "too many pages in one entry"),
        (168, &[2, 64], "too many pages in one entry"),
        (168, &[0], "impossible page length"),
        (171, &[1], "reserved bytes in the page table"),
    ];
    for (offset, bytes, said) in rules {
        let mut damaged = golden("zstd.hex").to_vec();
        damaged[offset..offset + bytes.len()].copy_from_slice(bytes);
        match Delta::decode(with_checksums_repaired(damaged)) {
            Err(DeltaError::Corrupt { what, .. }) => assert_eq!(what, said, "offset {offset}"),
            other => panic!("offset {offset}: {other:?} instead of {said:?}"),
        }
    }
}

#[test]
fn a_delta_without_pages_and_one_of_the_lock_byte_page_are_refused() {
    let mut empty = golden("raw.hex").to_vec();
    empty.truncate(160);
    empty[128..140].fill(0);
    let empty = with_checksums_repaired(empty);
    let refused = Err(DeltaError::Corrupt {
        what: "no pages",
        offset: 128,
    });
    assert_eq!(Delta::decode(empty), refused);

    let lock_byte_page = size(512).lock_byte_page().number().to_le_bytes();
    let mut locked = golden("raw.hex").to_vec();
    locked[84..88].copy_from_slice(&[0xff; 4]);
    locked[160..164].copy_from_slice(&lock_byte_page);
    let refused = Err(DeltaError::Corrupt {
        what: "lock-byte page",
        offset: 160,
    });
    assert_eq!(Delta::decode(with_checksums_repaired(locked)), refused);
}

#[test]
fn a_count_of_pages_beyond_the_bytes_is_refused_before_anything_is_allocated() {
    let mut huge = golden("raw.hex").to_vec();
    huge[128..132].copy_from_slice(&[0xff; 4]);
    assert_eq!(Delta::decode(huge.into()), Err(DeltaError::Short));
}

pub(super) type Pages = Vec<(PageNumber, Vec<u8>)>;

fn encode(header: DeltaHeader, encoding: Encoding, pages: &Pages) -> Bytes {
    let mut writer = DeltaWriter::new(header, encoding);
    for (page, image) in pages {
        writer.push(*page, image);
    }
    assert!(writer.bytes_len() <= DeltaWriter::bytes_max_for(header.page_size, pages.len()));
    writer.finish()
}

pub(super) fn decode_all(bytes: &Bytes) -> Result<(DeltaHeader, Pages), DeltaError> {
    let delta = Delta::decode(bytes.clone())?;
    let pages = delta.pages(old).map(owned).collect::<Result<_, _>>()?;
    Ok((*delta.header(), pages))
}

pub(super) type Page<T> = Result<(PageNumber, T), DeltaError>;

pub(super) fn owned(page: Page<Cow<'_, [u8]>>) -> Page<Vec<u8>> {
    page.map(|(number, image)| (number, image.into_owned()))
}

/// What all pages were before: their own number, everywhere. Page 304 did not exist.
pub(super) fn old(page: PageNumber, image: &mut [u8]) -> Result<(), DeltaError> {
    if page.number() != 304 {
        image.fill(page.number().to_le_bytes()[0]);
    }
    Ok(())
}

/// The checksums as a program with a defect, or an attacker, would set them.
pub(super) fn with_checksums_repaired(mut bytes: Vec<u8>) -> Bytes {
    let pages = u32::from_le_bytes(bytes[128..132].try_into().unwrap()) as usize;
    let payload = 160_usize
        .saturating_add(pages.saturating_mul(12))
        .min(bytes.len());
    let sum = crc32fast::hash(&bytes[payload..]).to_le_bytes();
    bytes[132..136].copy_from_slice(&sum);
    let covered = [&bytes[..156], &bytes[160..payload]].concat();
    bytes[156..160].copy_from_slice(&crc32fast::hash(&covered).to_le_bytes());
    bytes.into()
}

pub(super) fn golden_raw() -> (DeltaHeader, Pages) {
    let header = DeltaHeader {
        cluster: ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        origin: 0x1112_1314_1516_1718,
        epoch: 0x2122_2324_2526_2728,
        sequence: 0x3132_3334_3536_3738,
        base: None,
        page_size: size(512),
        page_count: PageCount(3),
        hash_before: DatabaseHash(0x4142_4344_4546_4748_494a_4b4c_4d4e_4f50),
        hash_after: DatabaseHash(0x5152_5354_5556_5758_595a_5b5c_5d5e_5f60),
        part: Part { number: 1, of: 1 },
    };
    let image = (0..512_u16).map(|at| at.to_le_bytes()[0]).collect();
    (header, vec![(PageNumber::new(2).unwrap(), image)])
}

pub(super) fn golden_zstd() -> (DeltaHeader, Pages) {
    let header = DeltaHeader {
        base: Some(Position {
            term: 7,
            node: 0x6162_6364_6566_6768,
            index: 9,
        }),
        page_size: size(65536),
        page_count: PageCount(0x0001_0003),
        hash_before: DatabaseHash::default(),
        part: Part { number: 2, of: 2 },
        ..golden_raw().0
    };
    let pages = [(2, 0x55), (0x0001_0003, 0)];
    let pages = pages.map(|(page, byte)| (PageNumber::new(page).unwrap(), vec![byte; 65536]));
    (header, pages.into())
}

pub(super) fn random_delta(random: &mut Random) -> (DeltaHeader, Pages) {
    let page_size = page_sizes()[random.below(8)];
    let of = 1 + random.below(3) as u32;
    let part = Part {
        number: 1 + random.below(of as usize) as u32,
        of,
    };
    let mut numbers: Vec<u32> = (0..=random.below(5))
        .map(|_| 1 + random.below(1000) as u32)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let hash = |set: bool, value: u64| DatabaseHash(if set { u128::from(value) << 9 } else { 0 });
    let position = Position {
        term: random.next(),
        node: random.next(),
        index: random.next(),
    };
    let header = DeltaHeader {
        cluster: ClusterId(u128::from(random.next() | 1) << 50),
        origin: random.next(),
        epoch: random.next(),
        sequence: random.next(),
        base: (random.below(2) == 0).then_some(position),
        page_size,
        page_count: PageCount(numbers[numbers.len() - 1] + random.below(3) as u32),
        hash_before: hash(part.is_first(), random.next()),
        hash_after: hash(part.is_last(), random.next()),
        part,
    };
    let pages = numbers.into_iter().map(|number| {
        let noise = random.below(page_size.len() + 1);
        let image = (0..page_size.len())
            .map(|at| {
                if at < noise {
                    random.next().to_le_bytes()[0]
                } else {
                    0
                }
            })
            .collect();
        (PageNumber::new(number).unwrap(), image)
    });
    (header, pages.collect())
}

pub(super) fn golden(name: &str) -> Bytes {
    golden_of("v2", name)
}

fn goldens() -> [Bytes; 3] {
    ["raw.hex", "zstd.hex", "patch.hex"].map(golden)
}

/// The bytes of a golden file: hexadecimal digits, and comments from `#` to the end of the line.
fn golden_of(version: &str, name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/delta")
        .join(version)
        .join(name);
    let text = fs::read_to_string(path).unwrap();
    let digits: String = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().chars())
        .filter(|character| !character.is_whitespace())
        .collect();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}
