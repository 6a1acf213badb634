//! Deltas that say what changed in pages.

use std::borrow::Cow;

use bytes::Bytes;
use wallaby::wal::{
    ClusterId, DatabaseHash, Delta, DeltaError, DeltaHeader, DeltaWriter, Encoding, PageCount,
    PageHash, PageNumber, Part, Stored, patch::PAGES_MAX,
};

use super::delta::{
    Pages, decode_all, golden, golden_raw, golden_zstd, old, owned, random_delta,
    with_checksums_repaired,
};
use super::{Random, page_sizes, size};

#[test]
fn golden_delta_of_patches_is_read_and_is_what_the_writer_makes() {
    let (header, pages) = golden_patch();
    let golden = golden("patch.hex");
    assert_eq!(decode_all(&golden), Ok((header, pages.clone())));
    let delta = Delta::decode(golden.clone()).unwrap();
    let stored: Vec<_> = delta
        .page_table()
        .map(|entry| (entry.first.number(), entry.pages, entry.bytes, entry.stored))
        .collect();
    assert_eq!(
        stored,
        [(2, 1, 13, Stored::Zstd), (3, 3, 22, Stored::Patch)]
    );
    assert!(!delta.is_whole());
    let whole: Vec<_> = delta.whole_pages().map(Result::unwrap).collect();
    assert_eq!(whole, [(pages[0].0, Cow::Borrowed(&pages[0].1[..]))]);
    // The block has no Zstandard in it, and so no bytes that may change.
    let written = encode_patched(header, Encoding::Raw, &pages[1..], &[false; 3]);
    let last = golden.len() - 22;
    assert_eq!(&written[written.len() - 22..], &golden[last..]);
    assert_eq!(written[160..172], golden[172..184]);
}

/// Whole pages and blocks in any order and of any length, and some pages that do not fit a patch.
#[test]
fn deltas_with_patches_survive_the_round_trip() {
    let mut random = Random::from_seed("deltas_with_patches");
    for round in 0..100 {
        let (header, pages) = random_patches(&mut random);
        let is_whole: Vec<bool> = pages.iter().map(|_| random.below(6) == 0).collect();
        for encoding in [Encoding::Raw, Encoding::Zstd] {
            let bytes = encode_patched(header, encoding, &pages, &is_whole);
            assert!(bytes.len() <= DeltaWriter::bytes_max_for(header.page_size, pages.len()));
            let delta = Delta::decode(bytes.clone()).unwrap();
            assert_eq!(delta.len(), pages.len(), "{round}");
            assert!(delta.page_numbers().eq(pages.iter().map(|(page, _)| *page)));
            let counted = delta.page_table().map(|entry| entry.pages).sum::<usize>();
            assert_eq!(counted, pages.len());
            let is_patched = |stored| stored == Stored::Patch;
            let mut stored = delta.page_table().map(|entry| entry.stored);
            assert_eq!(stored.any(is_patched), !delta.is_whole());
            assert_eq!(decode_all(&bytes), Ok((header, pages.clone())), "{round}");
            for page in delta.whole_pages() {
                let (number, image) = page.unwrap();
                assert!(pages.contains(&(number, image.into_owned())));
            }
            let elsewhere = delta.in_cluster(ClusterId(77));
            assert_eq!(Delta::decode(elsewhere.bytes().clone()), Ok(elsewhere));
        }
    }
}

/// Nothing in a patch says what it was made from: what comes of another version is an error or
/// another page, and the hash is what tells.
#[test]
fn patches_on_a_wrong_version_are_an_error_or_have_another_hash() {
    let mut random = Random::from_seed("patches_on_a_wrong");
    let (mut errors, mut others) = (0, 0);
    for _ in 0..200 {
        let (header, pages) = random_patches(&mut random);
        let bytes = encode_patched(header, Encoding::Raw, &pages, &vec![false; pages.len()]);
        let delta = Delta::decode(bytes).unwrap();
        let at = random.below(header.page_size.len());
        let wrong = |page: PageNumber, image: &mut [u8]| {
            old(page, image)?;
            image[at] ^= 0x55;
            Ok::<_, DeltaError>(())
        };
        let hash = |pages: &[(PageNumber, Vec<u8>)]| {
            let hashes = pages.iter().map(|(page, image)| PageHash::of(*page, image));
            hashes.fold(DatabaseHash::default(), DatabaseHash::with)
        };
        let expected = hash(&pages);
        let read = delta.pages(wrong).map(owned).collect::<Result<Vec<_>, _>>();
        match read {
            Err(DeltaError::Corrupt { .. }) => errors += 1,
            Ok(found) if found != pages => {
                assert_ne!(hash(&found), expected);
                others += 1;
            }
            // The byte that was wrong was written anew in all pages.
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
    println!("{errors} errors, {others} other pages");
    assert!(others > 100);
}

#[test]
fn an_old_version_that_cannot_be_read_is_the_error_of_its_block_only() {
    let (header, pages) = golden_patch();
    let mut is_whole = [false; 4];
    is_whole[3] = true;
    let bytes = encode_patched(header, Encoding::Raw, &pages, &is_whole);
    let delta = Delta::decode(bytes).unwrap();
    assert_eq!(delta.page_table().count(), 2);
    let mut asked = Vec::new();
    let read: Vec<_> = delta
        .pages(|page, image| {
            asked.push(page.number());
            assert!(image.len() == 512 && image.iter().all(|byte| *byte == 0));
            if page.number() == 3 {
                return Err(DeltaError::Short);
            }
            old(page, image)
        })
        .map(owned)
        .collect();
    assert_eq!(asked, [2, 3]);
    assert_eq!(read, [Err(DeltaError::Short), Ok(pages[3].clone())]);
}

/// The same for blocks of patches: the page of the block at 172, its content from 197 on.
#[test]
fn each_rule_of_a_block_is_enforced_by_name() {
    let lock_byte_page = size(512).lock_byte_page().number();
    let (page_count, first, distances) = (84, 172, 197);
    let before_lock = (lock_byte_page - 1).to_le_bytes();
    let rules: [(Changes<'_>, &str); 13] = [
        (&[(distances, &[0])], "pages do not ascend"),
        (
            &[(distances + 1, &[0x80, 0])],
            "a number with more bytes than it needs",
        ),
        (&[(distances + 1, &[0xff; 5])], "a number is too large"),
        (&[(distances + 1, &[0xff, 0xff, 0xff, 0xff, 0x0f])], BEYOND),
        (&[(distances + 1, &[0xff, 0xff, 0x7f])], BEYOND),
        (&[(page_count, &[0x2f, 1, 0])], BEYOND),
        (&[(first, &[2])], "a page twice"),
        (
            &[(page_count, &[0xff; 4]), (first, &before_lock)],
            "lock-byte page",
        ),
        (&[(177, &[2])], LENGTHS),
        (&[(176, &[0, 0])], "impossible page length"),
        (&[(176, &[0, 6])], "impossible page length"),
        (&[(176, &[0xff, 5])], LENGTHS),
        (&[(182, &[1])], "reserved bytes in the page table"),
    ];
    for (changes, said) in rules {
        let mut damaged = golden("patch.hex").to_vec();
        for (offset, bytes) in changes {
            damaged[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        match Delta::decode(with_checksums_repaired(damaged)) {
            Err(DeltaError::Corrupt { what, .. }) => assert_eq!(what, said, "{changes:?}"),
            other => panic!("{changes:?}: {other:?} instead of {said:?}"),
        }
    }
    // Distances to the end of the block, and before it.
    for (cut, said) in [
        (19, "a block without patches"),
        (20, "cut short"),
        (21, "cut short"),
    ] {
        let mut short = golden("patch.hex").to_vec();
        short.truncate(short.len() - cut);
        short[176] -= u8::try_from(cut).unwrap();
        let payload = u8::try_from(short.len() - 184).unwrap();
        short[136] = payload;
        let refused = Err(DeltaError::Corrupt {
            what: said,
            offset: 172,
        });
        assert_eq!(Delta::decode(with_checksums_repaired(short)), refused);
    }
}

/// Whoever applies patches has all pages of the delta in memory.
#[test]
fn only_a_small_transaction_of_one_part_has_patches() {
    let mut part = golden("patch.hex").to_vec();
    part[124..128].copy_from_slice(&2_u32.to_le_bytes());
    part[104..120].fill(0);
    let refused = |what, offset| DeltaError::Corrupt { what, offset };
    let expected = refused("patches in one of several parts", 172);
    assert_eq!(Delta::decode(with_checksums_repaired(part)), Err(expected));

    let page_size = size(65536);
    let (header, _) = golden_patch();
    let header = DeltaHeader {
        page_size,
        page_count: PageCount(600),
        ..header
    };
    let (old, new) = (vec![0; page_size.len()], vec![1; page_size.len()]);
    for (pages, is_taken) in [(512, true), (513, false)] {
        let mut writer = DeltaWriter::new(header, Encoding::Raw);
        let pages: Vec<_> = (1..=pages).filter_map(PageNumber::new).collect();
        for block in pages.chunks(PAGES_MAX) {
            let block: Vec<_> = block
                .iter()
                .map(|page| (*page, &old[..], &new[..]))
                .collect();
            writer.push_patches(&block);
        }
        let decoded = Delta::decode(writer.finish()).map(|delta| delta.len());
        if is_taken {
            assert_eq!(decoded, Ok(pages.len()));
        } else {
            let expected = refused("more pages than one part may have", 128);
            assert_eq!(decoded, Err(expected));
        }
    }
}

/// Those that are not to be whole in blocks of up to 16.
fn encode_patched(
    header: DeltaHeader,
    encoding: Encoding,
    pages: &[(PageNumber, Vec<u8>)],
    is_whole: &[bool],
) -> Bytes {
    let olds: Vec<Vec<u8>> = pages
        .iter()
        .map(|(page, image)| {
            let mut before = vec![0; image.len()];
            old(*page, &mut before).unwrap();
            before
        })
        .collect();
    let mut writer = DeltaWriter::new(header, encoding);
    let mut block: Vec<(PageNumber, &[u8], &[u8])> = Vec::new();
    for (index, (page, image)) in pages.iter().enumerate() {
        if !block.is_empty() && (is_whole[index] || block.len() == PAGES_MAX) {
            writer.push_patches(&std::mem::take(&mut block));
        }
        if is_whole[index] {
            writer.push(*page, image);
        } else {
            block.push((*page, &olds[index], image));
        }
    }
    if !block.is_empty() {
        writer.push_patches(&block);
    }
    writer.finish()
}

fn golden_patch() -> (DeltaHeader, Pages) {
    let header = DeltaHeader {
        base: golden_zstd().0.base,
        page_count: PageCount(70_000),
        ..golden_raw().0
    };
    let mut pages = vec![(PageNumber::new(2).unwrap(), vec![0x55; 512])];
    for (page, runs) in [
        (
            3,
            &[(3, &[0xf1, 0xf2][..]), (299, &[0xf3, 0xf4, 0xf5, 0xf6])][..],
        ),
        (4, &[]),
        (304, &[(511, &[0xf7])]),
    ] {
        let page = PageNumber::new(page).unwrap();
        let mut image = vec![0; 512];
        old(page, &mut image).unwrap();
        for (at, bytes) in runs {
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        pages.push((page, image));
    }
    (header, pages)
}

/// 1 to 40 pages, most of which have not changed much.
fn random_patches(random: &mut Random) -> (DeltaHeader, Pages) {
    let (header, _) = random_delta(random);
    let page_size = page_sizes()[random.below(4)];
    let (mut number, mut pages) = (0, Vec::new());
    for _ in 0..=random.below(40) {
        number += 1 + [0, 0, 1, 200, 20_000][random.below(5)];
        let page = PageNumber::new(number).unwrap();
        let mut image = vec![0; page_size.len()];
        old(page, &mut image).unwrap();
        for _ in 0..[0, 1, 3, 50, 5 * page_size.len()][random.below(5)] {
            image[random.below(page_size.len())] = random.next().to_le_bytes()[0];
        }
        pages.push((page, image));
    }
    let header = DeltaHeader {
        page_size,
        page_count: PageCount(number + random.below(3) as u32),
        part: Part::WHOLE,
        hash_before: DatabaseHash(u128::from(random.next())),
        hash_after: DatabaseHash(u128::from(random.next())),
        ..header
    };
    (header, pages)
}

const BEYOND: &str = "page beyond the page count";
const LENGTHS: &str = "page lengths do not add up to the payload";

/// Bytes at offsets.
type Changes<'a> = &'a [(usize, &'a [u8])];
