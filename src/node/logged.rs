//! What the log still knows of pages. Most entries tell what changed in a page, so what it was
//! after one of them is known if it was known before: stored whole by an earlier entry, or new.

use std::collections::BTreeMap;

use super::repair::Images;
use crate::raft::log::Log;
use crate::sqlite::Damage;
use crate::wal::{DatabaseHash, Delta, DeltaError, PageCount, PageHash, PageNumber};

/// The images with these hashes that entries of the log have left.
pub(super) fn logged_images(log: &Log, wanted: &[Damage]) -> Images {
    let wanted: BTreeMap<PageNumber, PageHash> = wanted
        .iter()
        .map(|damage| (damage.place.page(), damage.expected))
        .collect();
    let mut history = History::default();
    let mut images = Images::new();
    let mut next = log.purged().map_or(0, |purged| purged.index + 1);
    let last = log.last().map_or(0, |last| last.index);
    while next <= last {
        let Ok(entries) = log.read_blocking(next, last, READ_BYTES) else {
            return images;
        };
        let Some(end) = entries.last().map(|entry| entry.log_id.index) else {
            return images;
        };
        next = end + 1;
        for entry in entries {
            let openraft::EntryPayload::Normal(payload) = entry.payload else {
                continue;
            };
            if let Ok(delta) = Delta::decode(payload.0) {
                history.follow(delta, |page, image| {
                    if let Some(hash) = wanted.get(&page)
                        && PageHash::of(page, image) == *hash
                    {
                        images.insert((page, hash.0), image.to_vec());
                    }
                });
            }
        }
    }
    images
}

/// The pages at some place of the log, as far as they are known.
#[derive(Default)]
struct History {
    known: BTreeMap<PageNumber, Vec<u8>>,
    bytes: usize,
    /// Of the database after the last change; `None` if that is not known.
    reached: Option<(DatabaseHash, PageCount)>,
    /// Parts of a change that is not complete.
    staged: Vec<Delta>,
}

impl History {
    /// Takes the next delta, and tells what its pages are as far as that is known.
    fn follow(&mut self, delta: Delta, mut each: impl FnMut(PageNumber, &[u8])) {
        let part = delta.header().part;
        if part.is_first() {
            self.staged.clear();
        }
        if part.number as usize != self.staged.len() + 1 {
            return;
        }
        self.staged.push(delta);
        let staged: usize = self.staged.iter().map(|delta| delta.bytes().len()).sum();
        if staged > BYTES_MAX {
            *self = Self::default();
        }
        if !part.is_last() || self.staged.is_empty() {
            return;
        }
        let parts = std::mem::take(&mut self.staged);
        let (first, last) = (parts[0].header(), parts[parts.len() - 1].header());
        // Not made on this state: it was rejected.
        if self
            .reached
            .is_some_and(|(hash, _)| hash != first.hash_before)
        {
            return;
        }
        for delta in &parts {
            self.apply(delta, &mut each);
        }
        self.reached = Some((last.hash_after, last.page_count));
        self.known.retain(|page, _| last.page_count.contains(*page));
        self.bytes = self.known.values().map(Vec::len).sum();
    }

    fn apply(&mut self, delta: &Delta, each: &mut impl FnMut(PageNumber, &[u8])) {
        let old = |page: PageNumber, image: &mut [u8]| {
            let is_new = self.reached.is_some_and(|(_, count)| !count.contains(page));
            match self.known.get(&page) {
                Some(known) => image.copy_from_slice(known),
                None if is_new => {}
                None => return Err(Unknown),
            }
            Ok(())
        };
        let images = delta.pages(old).filter_map(Result::ok);
        let images: Vec<(PageNumber, Vec<u8>)> = images
            .map(|(page, image)| (page, image.into_owned()))
            .collect();
        for page in delta.page_numbers() {
            if let Some(before) = self.known.remove(&page) {
                self.bytes -= before.len();
            }
        }
        for (page, image) in images {
            each(page, &image);
            // What does not fit any more is not known from here on.
            if self.bytes + image.len() <= BYTES_MAX {
                self.bytes += image.len();
                self.known.insert(page, image);
            }
        }
    }
}

/// A version before that is not known, or not what the patches are for.
struct Unknown;

impl From<DeltaError> for Unknown {
    fn from(_: DeltaError) -> Self {
        Self
    }
}

/// Entries are read in runs of this size.
const READ_BYTES: usize = 8 << 20;
/// What is kept in memory; a damaged page of a log beyond that is asked for elsewhere.
const BYTES_MAX: usize = 64 << 20;
