//! A frozen view of the database at one place in the log, and how it is read in runs of pages.

use std::io;

use bytes::Bytes;

use super::frontier::State;
use super::manifest::Manifest;
use crate::sqlite::Image;
use crate::wal::{PageNumber, Position};

/// An image with its place in the log. While it lives no checkpoint runs on this node.
pub(crate) struct Held {
    image: Image,
    state: State,
}

impl Held {
    pub(crate) fn new(image: Image, state: State) -> Self {
        Self { image, state }
    }

    /// What the image is of; `None` before anything was applied.
    pub(crate) fn manifest(&self) -> Option<Manifest> {
        Some(Manifest {
            applied: self.state.fence.settled()?,
            data: self.state.fence.last_data,
            membership: self.state.settled_membership().clone(),
            page_size: self.image.page_size(),
            page_count: self.image.page_count(),
            hash: self.image.hash(),
        })
    }

    /// Up to `RUN_BYTES` of whole pages from this page on; empty after the last. The lock-byte page
    /// reads as zeros. Blocks.
    pub(crate) fn run(&self, from: u64) -> io::Result<Bytes> {
        let size = self.image.page_size();
        let last = u64::from(self.image.page_count().0);
        let pages = (RUN_BYTES / size.len()).max(1) as u64;
        let to = (from + pages - 1).min(last);
        let mut bytes = vec![0; (to + 1).saturating_sub(from) as usize * size.len()];
        for (number, image) in (from..=to).zip(bytes.chunks_exact_mut(size.len())) {
            let page = u32::try_from(number).ok().and_then(PageNumber::new);
            let page = page.expect("between 1 and the page count");
            if page != size.lock_byte_page() {
                self.image.read(page, image)?;
            }
        }
        Ok(Bytes::from(bytes))
    }

    /// How many pages a run has.
    pub(crate) fn pages_in(&self, run: &Bytes) -> u64 {
        (run.len() / self.image.page_size().len()) as u64
    }

    /// The last accepted data entry in the image.
    pub(crate) fn data(&self) -> Option<Position> {
        self.state.fence.last_data
    }
}

/// 1 MiB: long enough for the disk, short enough for one frame.
const RUN_BYTES: usize = 1 << 20;
