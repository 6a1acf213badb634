//! Encodes a [`Delta`](super::Delta); the layout stands in [`delta`](super::delta).
//!
//! Whole pages fit on anything. Patches fit on the base of the delta only, and may well make other
//! pages out of another state without anybody noticing: the hash before proves that the state is
//! the right one, and the hash after that the result is.

use bytes::Bytes;
use zstd::bulk::Compressor;

use super::delta::{
    DeltaHeader, ENCODING_PATCH, ENCODING_RAW, ENCODING_ZSTD, ENTRY_BYTES, Encoding, FLAG_BASE,
    HEADER_BYTES, MAGIC, Part, VERSION, check_header, header_checksum,
};
use super::leb128;
use super::page::{PageNumber, PageSize};
use super::patch::{self, PAGES_MAX};

/// Encodes a delta, page by page.
pub struct DeltaWriter {
    header: DeltaHeader,
    compressor: Option<Compressor<'static>>,
    compressed: Vec<u8>,
    /// In the order in which they were pushed.
    pages: Vec<PageNumber>,
    table: Vec<u8>,
    payload: Vec<u8>,
}

impl DeltaWriter {
    /// A writer of a delta with this header.
    ///
    /// # Panics
    ///
    /// If [`Delta::decode`](super::Delta::decode) would refuse the header: a part out of range, a
    /// hash on a part that has none, cluster zero.
    #[must_use]
    pub fn new(header: DeltaHeader, encoding: Encoding) -> Self {
        let refused = check_header(&header);
        assert!(refused.is_none(), "{refused:?} in a header of our own");
        let compressor = match encoding {
            Encoding::Raw => None,
            Encoding::Zstd => {
                Some(Compressor::new(ZSTD_LEVEL).expect("the level is one that zstd has"))
            }
        };
        Self {
            header,
            compressor,
            compressed: vec![0; header.page_size.len() - 1],
            pages: Vec::new(),
            table: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Adds the next page, whole.
    ///
    /// # Panics
    ///
    /// If the pages of one of several parts do not ascend, the page is the lock-byte page or
    /// beyond the page count, or the image does not have the page size: every node would have to
    /// refuse the delta.
    pub fn push(&mut self, page: PageNumber, image: &[u8]) {
        let ascends = self.pages.last() < Some(&page);
        assert!(
            ascends || self.header.part == Part::WHOLE,
            "pages must ascend"
        );
        self.follow(page, image);
        self.push_whole(page, image);
    }

    /// Adds some pages, each given as it was in the base and as it is now, as one block of
    /// patches; as whole pages if that needs no more bytes. A page that is not in the base was all
    /// zeros. They ascend within the block.
    ///
    /// # Panics
    ///
    /// As [`Self::push`], for either version of each page, if there is no page or more than
    /// [`PAGES_MAX`], and if the group has more than one part.
    pub fn push_patches(&mut self, pages: &[(PageNumber, &[u8], &[u8])]) {
        assert!((1..=PAGES_MAX).contains(&pages.len()), "1 to 64 pages");
        assert!(self.header.part == Part::WHOLE, "patches in a part");
        let first = pages[0].0;
        let (mut block, mut last) = (Vec::new(), first.number());
        for (index, (page, old, new)) in pages.iter().enumerate() {
            self.follow(*page, new);
            assert!(old.len() == new.len(), "an image is one page");
            if index > 0 {
                assert!(page.number() > last, "pages must ascend");
                leb128::put(&mut block, page.number() - last);
                last = page.number();
            }
        }
        let versions: Vec<(&[u8], &[u8])> =
            pages.iter().map(|(_, old, new)| (*old, *new)).collect();
        block.extend_from_slice(&patch::encode(&versions));
        if block.len() < pages.len() * self.header.page_size.len() {
            self.payload.extend_from_slice(&block);
            self.enter(first, block.len(), ENCODING_PATCH, pages.len());
        } else {
            for (page, _, new) in pages {
                self.push_whole(*page, new);
            }
        }
    }

    fn follow(&mut self, page: PageNumber, image: &[u8]) {
        let size = self.header.page_size;
        assert!(self.header.page_count.contains(page), "beyond the database");
        assert!(page != size.lock_byte_page(), "the lock-byte page");
        assert!(image.len() == size.len(), "an image is one page");
        self.pages.push(page);
    }

    fn push_whole(&mut self, page: PageNumber, image: &[u8]) {
        // The room is one byte less than the page: what does not fit has not shrunk.
        let shrunk = self.compressor.as_mut().and_then(|compressor| {
            compressor
                .compress_to_buffer(image, &mut self.compressed[..])
                .ok()
        });
        let (stored, encoding) = match shrunk {
            None => (image, ENCODING_RAW),
            Some(length) => (&self.compressed[..length], ENCODING_ZSTD),
        };
        self.payload.extend_from_slice(stored);
        let length = stored.len();
        self.enter(page, length, encoding, 1);
    }

    /// In the page table.
    fn enter(&mut self, first: PageNumber, length: usize, encoding: u8, pages: usize) {
        let length = u32::try_from(length).expect("64 pages have at most 2^22 bytes");
        let more = u8::try_from(pages - 1).expect("64 pages at most");
        self.table.extend_from_slice(&first.number().to_le_bytes());
        self.table.extend_from_slice(&length.to_le_bytes());
        self.table.extend_from_slice(&[encoding, more, 0, 0]);
    }

    /// The bytes it would have if it were finished now.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        HEADER_BYTES + self.table.len() + self.payload.len()
    }

    /// The encoded delta.
    ///
    /// # Panics
    ///
    /// If no page was pushed: a group that changed nothing has no delta. If a page was pushed
    /// twice.
    #[must_use]
    pub fn finish(self) -> Bytes {
        assert!(!self.table.is_empty(), "a delta is never empty");
        let mut pages = self.pages.clone();
        pages.sort_unstable();
        assert!(pages.is_sorted_by(|a, b| a < b), "a page twice");
        let entries = u32::try_from(self.table.len() / ENTRY_BYTES)
            .expect("pages ascend, so there are fewer than 2^32");
        let mut bytes = Vec::with_capacity(self.bytes_len());
        put_header(&mut bytes, &self.header);
        bytes.extend_from_slice(&entries.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&self.payload).to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&[0; 12]);
        let checksum = header_checksum(&bytes, &self.table);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&self.table);
        bytes.extend_from_slice(&self.payload);
        Bytes::from(bytes)
    }

    /// The most bytes a delta with so many pages can have.
    #[must_use]
    pub const fn bytes_max_for(page_size: PageSize, pages: usize) -> usize {
        HEADER_BYTES + pages * (ENTRY_BYTES + page_size.len())
    }
}

/// Bytes 0..128 of the layout.
fn put_header(bytes: &mut Vec<u8>, header: &DeltaHeader) {
    let flags = if header.base.is_some() { FLAG_BASE } else { 0 };
    let base = header
        .base
        .map_or([0; 3], |base| [base.term, base.node, base.index]);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&header.cluster.0.to_le_bytes());
    bytes.extend_from_slice(&header.origin.to_le_bytes());
    bytes.extend_from_slice(&header.epoch.to_le_bytes());
    bytes.extend_from_slice(&header.sequence.to_le_bytes());
    for word in base {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&header.page_size.bytes().to_le_bytes());
    bytes.extend_from_slice(&header.page_count.0.to_le_bytes());
    bytes.extend_from_slice(&header.hash_before.0.to_le_bytes());
    bytes.extend_from_slice(&header.hash_after.0.to_le_bytes());
    bytes.extend_from_slice(&header.part.number.to_le_bytes());
    bytes.extend_from_slice(&header.part.of.to_le_bytes());
}

/// The fastest positive level: the leader compresses while the group waits.
const ZSTD_LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    use super::super::delta::Delta;
    use super::super::delta_pages::{Stored, TableEntry};
    use super::super::hash::DatabaseHash;
    use super::super::page::PageCount;
    use super::super::position::ClusterId;
    use super::*;

    fn header() -> DeltaHeader {
        DeltaHeader {
            cluster: ClusterId(1),
            origin: 2,
            epoch: 3,
            sequence: 4,
            base: None,
            page_size: PageSize::new(512).unwrap(),
            page_count: PageCount(9),
            hash_before: DatabaseHash(5),
            hash_after: DatabaseHash(6),
            part: Part { number: 1, of: 1 },
        }
    }

    #[test]
    fn a_page_that_does_not_shrink_is_stored_raw() {
        let mut noise = [0; 512];
        let mut state = 1_u64;
        for byte in &mut noise {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            *byte = state.to_le_bytes()[7];
        }
        let mut writer = DeltaWriter::new(header(), Encoding::Zstd);
        writer.push(PageNumber::new(2).unwrap(), &noise);
        writer.push(PageNumber::new(9).unwrap(), &[1; 512]);
        let bytes = writer.finish();
        assert_eq!((bytes[168], bytes[180]), (ENCODING_RAW, ENCODING_ZSTD));
        let delta = Delta::decode(bytes).unwrap();
        let stored: Vec<_> = delta.page_table().collect();
        let first = PageNumber::new(2).unwrap();
        let raw = TableEntry {
            first,
            pages: 1,
            bytes: 512,
            stored: Stored::Raw,
        };
        assert_eq!(stored[0], raw);
        let second = (stored[1].first.number(), stored[1].stored);
        assert_eq!(second, (9, Stored::Zstd));
        assert!(stored[1].bytes < 512 && delta.is_whole());
        let pages: Vec<_> = delta.whole_pages().map(Result::unwrap).collect();
        assert_eq!(&*pages[0].1, &noise[..]);
        assert_eq!(&*pages[1].1, &[1; 512][..]);
        assert!(delta.bytes().len() < DeltaWriter::bytes_max_for(header().page_size, 2));
    }

    #[test]
    fn a_delta_of_another_cluster_differs_in_nothing_else() {
        let written = |cluster| {
            let mut writer = DeltaWriter::new(
                DeltaHeader {
                    cluster,
                    ..header()
                },
                Encoding::Zstd,
            );
            writer.push(PageNumber::new(2).unwrap(), &[1; 512]);
            Delta::decode(writer.finish()).unwrap()
        };
        let moved = written(ClusterId(1)).in_cluster(ClusterId(u128::MAX));
        assert_eq!(moved, written(ClusterId(u128::MAX)));
        assert_eq!(Delta::decode(moved.bytes().clone()), Ok(moved));
    }

    #[test]
    #[should_panic(expected = "pages must ascend")]
    fn a_writer_of_parts_refuses_pages_out_of_order() {
        let header = DeltaHeader {
            part: Part { number: 2, of: 2 },
            hash_before: DatabaseHash::default(),
            ..header()
        };
        let mut writer = DeltaWriter::new(header, Encoding::Raw);
        writer.push(PageNumber::new(2).unwrap(), &[0; 512]);
        writer.push(PageNumber::new(2).unwrap(), &[0; 512]);
    }

    #[test]
    fn patches_that_are_larger_than_the_pages_are_stored_whole() {
        let mut state = 1_u64;
        let mut noise = [[0; 512]; 2];
        for byte in noise.as_flattened_mut() {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            *byte = state.to_le_bytes()[7];
        }
        let mut writer = DeltaWriter::new(header(), Encoding::Raw);
        let [two, nine] = [2, 9].map(|page| PageNumber::new(page).unwrap());
        writer.push_patches(&[(two, &[0; 512], &noise[0]), (nine, &[0; 512], &noise[1])]);
        assert_eq!(
            writer.bytes_len(),
            DeltaWriter::bytes_max_for(header().page_size, 2)
        );
        let delta = Delta::decode(writer.finish()).unwrap();
        let stored = delta.page_table().map(|entry| entry.stored);
        assert!(stored.eq([Stored::Raw; 2]));
    }

    #[test]
    #[should_panic(expected = "a page twice")]
    fn a_writer_refuses_a_page_that_it_has() {
        let mut writer = DeltaWriter::new(header(), Encoding::Raw);
        for page in [2, 3, 2] {
            writer.push(PageNumber::new(page).unwrap(), &[0; 512]);
        }
        let _ = writer.finish();
    }

    #[test]
    #[should_panic(expected = "pages must ascend")]
    fn a_writer_refuses_patches_out_of_order() {
        let mut writer = DeltaWriter::new(header(), Encoding::Raw);
        let page = |number| {
            (
                PageNumber::new(number).unwrap(),
                &[0; 512][..],
                &[1; 512][..],
            )
        };
        writer.push_patches(&[page(3), page(2)]);
    }

    #[test]
    #[should_panic(expected = "hash before on a later part")]
    fn a_writer_refuses_a_header_that_no_reader_would_take() {
        let part = Part { number: 2, of: 2 };
        let _ = DeltaWriter::new(DeltaHeader { part, ..header() }, Encoding::Raw);
    }
}
