//! A frozen view of the database at one place in the log, and how it is read in runs of pages.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::frontier::State;
use super::manifest::Manifest;
use crate::sqlite::Image;
use crate::wal::PageNumber;

/// An image with its place in the log. While it lives no checkpoint runs on this node.
pub(crate) struct Held {
    image: Image,
    state: State,
    leave: Leave,
}

/// Takes images back: while one lives no checkpoint runs, and the WAL must not fill the disk.
#[derive(Clone, Default)]
pub(crate) struct Leave(Arc<AtomicU64>, u64);

impl Leave {
    /// The permission for a new image.
    pub(crate) fn grant(&self) -> Self {
        Self(Arc::clone(&self.0), self.0.load(Ordering::Acquire))
    }

    /// Takes back the permission of all images.
    pub(crate) fn revoke(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn holds(&self) -> bool {
        self.0.load(Ordering::Acquire) == self.1
    }
}

impl Held {
    pub(crate) fn new(image: Image, state: State, leave: Leave) -> Self {
        Self {
            image,
            state,
            leave,
        }
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
        if !self.leave.holds() {
            let why = "the transfer was given up: the WAL has grown too large meanwhile";
            return Err(io::Error::other(why));
        }
        let size = self.image.page_size();
        let last = u64::from(self.image.page_count().0);
        let pages = (RUN_BYTES / size.len()).max(1) as u64;
        let to = (from + pages - 1).min(last);
        let count = usize::try_from((to + 1).saturating_sub(from)).expect("at most one run");
        let mut bytes = vec![0; count * size.len()];
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
}

/// A frozen image that is read from beginning to end, for those outside this layer.
pub struct ImageReader {
    held: Arc<Held>,
    manifest: Manifest,
    next: u64,
}

impl ImageReader {
    pub(crate) fn new(held: Held) -> Option<Self> {
        let manifest = held.manifest()?;
        Some(Self {
            held: Arc::new(held),
            manifest,
            next: 1,
        })
    }

    /// Bytes per page.
    #[must_use]
    pub fn page_size(&self) -> u32 {
        self.manifest.page_size.bytes()
    }

    /// How many pages follow.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.manifest.page_count.0
    }

    /// The last log index that is in the image.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.manifest.applied.index
    }

    /// The last log index that changed a page; images with equal ones are equal byte for byte.
    #[must_use]
    pub fn data_index(&self) -> u64 {
        self.manifest.data.map_or(0, |data| data.index)
    }

    /// The hash of all pages, 32 hexadecimal digits.
    #[must_use]
    pub fn database_hash(&self) -> String {
        self.manifest.hash.to_string()
    }

    /// The next run of whole pages; `None` after the last one. Errors are texts for the log.
    pub async fn next(&mut self) -> Option<Result<Bytes, String>> {
        if self.next > u64::from(self.manifest.page_count.0) {
            return None;
        }
        let (held, from) = (Arc::clone(&self.held), self.next);
        let run = tokio::task::spawn_blocking(move || held.run(from)).await;
        Some(match run {
            Ok(Ok(run)) => {
                self.next += self.held.pages_in(&run);
                Ok(run)
            }
            Ok(Err(error)) => Err(format!("reading page {from}: {error}")),
            Err(error) => Err(error.to_string()),
        })
    }
}

/// 1 MiB: long enough for the disk, short enough for one frame.
const RUN_BYTES: usize = 1 << 20;
