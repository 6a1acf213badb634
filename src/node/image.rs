//! A frozen view of the database at one place in the log, and how it is read in runs of pages.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::frontier::State;
use super::manifest::Manifest;
use crate::sqlite::Image;
use crate::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize};

/// An image with its place in the log. While it lives no checkpoint runs on this node.
pub(crate) struct Held {
    /// `None` once it was taken back or given back.
    image: Arc<RwLock<Option<Image>>>,
    is_released: AtomicBool,
    state: State,
    page_size: PageSize,
    page_count: PageCount,
    hash: DatabaseHash,
}

/// The images that were handed out: while one lives no checkpoint runs, and the WAL must not fill
/// the disk, so they can be taken back.
#[derive(Default)]
pub(crate) struct Freezes {
    images: Mutex<Vec<Weak<RwLock<Option<Image>>>>>,
    longest_ns: AtomicU64,
    longest_checkpoint_ns: AtomicU64,
}

impl Freezes {
    /// Freezes an image of this state; on the owner thread.
    pub(crate) fn hold<E>(
        &self,
        image: impl FnOnce() -> Result<Image, E>,
        state: State,
    ) -> Result<Held, E> {
        let begun = Instant::now();
        let image = image()?;
        let (page_size, page_count, hash) = (image.page_size(), image.page_count(), image.hash());
        let image = Arc::new(RwLock::new(Some(image)));
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|image| image.strong_count() > 0);
        images.push(Arc::downgrade(&image));
        drop(images);
        note(&self.longest_ns, begun.elapsed());
        Ok(Held {
            image,
            is_released: AtomicBool::new(false),
            state,
            page_size,
            page_count,
            hash,
        })
    }

    /// Takes all images back; waits for runs that are being read.
    pub(crate) fn revoke(&self) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        for image in std::mem::take(&mut *images) {
            if let Some(image) = image.upgrade() {
                *image.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
    }

    /// A checkpoint has taken so long.
    pub(crate) fn checkpointed(&self, took: Duration) {
        note(&self.longest_checkpoint_ns, took);
    }

    /// The longest time that a checkpoint has kept the owner thread from its other work.
    pub(crate) fn longest_checkpoint(&self) -> Duration {
        Duration::from_nanos(self.longest_checkpoint_ns.load(Ordering::Relaxed))
    }

    /// The longest time that a freeze has kept the owner thread from its other work.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns.load(Ordering::Relaxed))
    }
}

fn note(longest_ns: &AtomicU64, took: Duration) {
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    longest_ns.fetch_max(took, Ordering::Relaxed);
}

impl Held {
    /// What the image is of; `None` before anything was applied.
    pub(crate) fn manifest(&self) -> Option<Manifest> {
        Some(Manifest {
            applied: self.state.fence.settled()?,
            data: self.state.fence.last_data,
            membership: self.state.settled_membership().clone(),
            page_size: self.page_size,
            page_count: self.page_count,
            hash: self.hash,
        })
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(crate) fn page_count(&self) -> PageCount {
        self.page_count
    }

    /// Whether the image was taken back while it was still wanted.
    pub(crate) fn is_revoked(&self) -> bool {
        !self.is_released.load(Ordering::Acquire) && self.look(|_| Ok(())).is_err()
    }

    /// Gives the image back: nothing is frozen any longer.
    pub(crate) fn release(&self) {
        self.is_released.store(true, Ordering::Release);
        *self.image.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The recorded hashes of these pages; zero for the lock-byte page and beyond the page count.
    pub(crate) fn hashes(&self, pages: impl Iterator<Item = u32>) -> io::Result<Vec<PageHash>> {
        self.look(|image| {
            let hash = |page| PageNumber::new(page).and_then(|page| image.page_hash(page));
            Ok(pages.map(|page| hash(page).unwrap_or_default()).collect())
        })
    }

    /// Reads one page and checks it against its recorded hash, which it returns; `None` if the
    /// page is damaged or cannot be read. Blocks.
    pub(crate) fn page(&self, page: PageNumber, into: &mut [u8]) -> io::Result<Option<PageHash>> {
        self.look(|image| {
            if let Err(error) = image.read(page, into) {
                tracing::warn!(page = page.number(), %error, "a page cannot be read");
                return Ok(None);
            }
            let hash = PageHash::of(page, into);
            Ok((image.page_hash(page) == Some(hash)).then_some(hash))
        })
    }

    /// Up to `RUN_BYTES` of whole pages from this page on; empty after the last. The lock-byte page
    /// reads as zeros. Blocks.
    pub(crate) fn run(&self, from: u64) -> io::Result<Bytes> {
        let size = self.page_size;
        let last = u64::from(self.page_count.0);
        let pages = (RUN_BYTES / size.len()).max(1) as u64;
        let to = (from + pages - 1).min(last);
        let count = usize::try_from((to + 1).saturating_sub(from)).expect("at most one run");
        let mut bytes = vec![0; count * size.len()];
        self.look(|held| {
            for (number, image) in (from..=to).zip(bytes.chunks_exact_mut(size.len())) {
                let page = u32::try_from(number).ok().and_then(PageNumber::new);
                held.read(page.expect("between 1 and the page count"), image)?;
            }
            Ok(())
        })?;
        Ok(Bytes::from(bytes))
    }

    /// How many pages a run has.
    pub(crate) fn pages_in(&self, run: &Bytes) -> u64 {
        (run.len() / self.page_size.len()) as u64
    }

    fn look<T>(&self, look: impl FnOnce(&Image) -> io::Result<T>) -> io::Result<T> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        match &*image {
            Some(image) => look(image),
            None => {
                let why = "the transfer was given up: the WAL has grown too large meanwhile";
                Err(io::Error::other(why))
            }
        }
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
