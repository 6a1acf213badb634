//! Encodes a [`Delta`](super::Delta); the layout stands in [`delta`](super::delta).

use bytes::Bytes;
use zstd::bulk::Compressor;

use super::delta::{
    DeltaHeader, ENCODING_RAW, ENCODING_ZSTD, ENTRY_BYTES, Encoding, FLAG_BASE, HEADER_BYTES,
    MAGIC, VERSION, check_header, header_checksum,
};
use super::page::{PageNumber, PageSize};

/// Encodes a delta, page by page.
pub struct DeltaWriter {
    header: DeltaHeader,
    compressor: Option<Compressor<'static>>,
    compressed: Vec<u8>,
    page_last: u32,
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
            page_last: 0,
            table: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Adds the next page.
    ///
    /// # Panics
    ///
    /// If the pages do not ascend, the page is the lock-byte page or beyond the page count, or the
    /// image does not have the page size: every node would have to refuse the delta.
    pub fn push(&mut self, page: PageNumber, image: &[u8]) {
        let size = self.header.page_size;
        assert!(page.number() > self.page_last, "pages must ascend");
        assert!(self.header.page_count.contains(page), "beyond the database");
        assert!(page != size.lock_byte_page(), "the lock-byte page");
        assert!(image.len() == size.len(), "an image is one page");
        self.page_last = page.number();

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
        let length = u32::try_from(stored.len()).expect("a page has at most 65536 bytes");
        self.table.extend_from_slice(&page.number().to_le_bytes());
        self.table.extend_from_slice(&length.to_le_bytes());
        self.table.extend_from_slice(&[encoding, 0, 0, 0]);
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
    /// If no page was pushed: a group that changed nothing has no delta.
    #[must_use]
    pub fn finish(self) -> Bytes {
        assert!(!self.table.is_empty(), "a delta is never empty");
        let pages = u32::try_from(self.table.len() / ENTRY_BYTES)
            .expect("pages ascend, so there are fewer than 2^32");
        let mut bytes = Vec::with_capacity(self.bytes_len());
        put_header(&mut bytes, &self.header);
        bytes.extend_from_slice(&pages.to_le_bytes());
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
    use super::super::delta::{Delta, Part};
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
        assert_eq!(stored[0], (PageNumber::new(2).unwrap(), 512, Encoding::Raw));
        assert_eq!((stored[1].0.number(), stored[1].2), (9, Encoding::Zstd));
        assert!(stored[1].1 < 512);
        let pages: Vec<_> = delta.pages().map(Result::unwrap).collect();
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
    fn a_writer_refuses_pages_out_of_order() {
        let mut writer = DeltaWriter::new(header(), Encoding::Raw);
        writer.push(PageNumber::new(2).unwrap(), &[0; 512]);
        writer.push(PageNumber::new(2).unwrap(), &[0; 512]);
    }

    #[test]
    #[should_panic(expected = "hash before on a later part")]
    fn a_writer_refuses_a_header_that_no_reader_would_take() {
        let part = Part { number: 2, of: 2 };
        let _ = DeltaWriter::new(DeltaHeader { part, ..header() }, Encoding::Raw);
    }
}
