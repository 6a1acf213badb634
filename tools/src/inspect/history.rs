//! What pages were after each entry of the log. Entries tell what they changed in a page; what it
//! was then depends on what it was before, from the state of the checkpoint record on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use wallaby::sqlite::PageHashes;
use wallaby::wal::{Delta, DeltaError, PageCount, PageHash, PageNumber, PageSize};

use super::directory::{Base, Directory, Installing};
use super::image::Image;
use super::log::Log;
use super::source::Failure;
use crate::pages::Pages as _;

/// The hashes of what entries made of pages: the entry and the hash, in order.
pub(super) type Written = BTreeMap<PageNumber, Vec<(u64, PageHash)>>;

/// Tells `each` the pages of every entry that took effect, up to one of them, in order: the entry,
/// the page, and its image. There is none if it cannot be known: the entry tells what changed in the
/// page, and what it was before is neither in the log nor, as it should be, in the database file.
pub(super) fn walk(
    directory: &Directory,
    upto: u64,
    mut each: impl FnMut(u64, PageNumber, Option<&[u8]>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(log) = &directory.log else {
        return Ok(());
    };
    let base = directory.base(upto);
    let mut versions: Option<Versions<'_>> = None;
    let changes = log.changes.iter();
    for change in changes.take_while(|change| change.index() <= upto) {
        for index in &change.entries {
            let Some(entry) = log.entries.get(index) else {
                continue;
            };
            let failed = |error| Failure::new(format!("entry {}: {error}", entry.position));
            let delta = Delta::decode(log.payload(entry)?).map_err(failed)?;
            let size = delta.header().page_size;
            let versions = match &mut versions {
                Some(versions) => versions,
                None => versions.insert(Versions::new(size)?),
            };
            if let Some(base) = base.filter(|base| base.applied.index < *index) {
                versions.begin_at(directory, base);
            }
            let mut unknown: BTreeSet<PageNumber> = delta.page_numbers().collect();
            let old = |page, image: &mut [u8]| versions.read(page, image);
            let known = delta.pages(old).filter_map(Result::ok);
            let known = known.map(|(page, image)| (page, image.into_owned()));
            let known: Vec<_> = known.collect();
            for (page, image) in known {
                versions.put(page, &image)?;
                unknown.remove(&page);
                each(*index, page, Some(&image))?;
            }
            for page in unknown {
                versions.forget(page);
                each(*index, page, None)?;
            }
        }
        if let Some(versions) = &mut versions {
            versions.cut(change.page_count);
        }
    }
    Ok(())
}

/// Pages.
pub(super) type Images = BTreeMap<PageNumber, Vec<u8>>;

/// What an entry made of its pages, as far as that is known.
pub(super) fn images_of(directory: &Directory, index: u64) -> Result<Images, Failure> {
    let mut images = Images::new();
    walk(directory, index, |entry, page, image| {
        if let Some(image) = image.filter(|_| entry == index) {
            images.insert(page, image.to_vec());
        }
        Ok(())
    })?;
    Ok(images)
}

/// Every image of a page that took effect and is known. Only pages for which `wanted` holds.
pub(super) fn written(
    directory: &Directory,
    wanted: impl Fn(PageNumber) -> bool,
) -> Result<Written, Failure> {
    let mut found = Written::new();
    let is_named = |log: &Log| {
        let deltas = log.entries.values().filter_map(|entry| entry.delta());
        deltas
            .flat_map(|delta| &delta.pages)
            .any(|page| wanted(*page))
    };
    if directory.log.as_ref().is_some_and(is_named) {
        walk(directory, u64::MAX, |index, page, image| {
            if let Some(image) = image.filter(|_| wanted(page)) {
                let hash = PageHash::of(page, image);
                found.entry(page).or_default().push((index, hash));
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// A page that is not known.
struct Unknown;

impl From<DeltaError> for Unknown {
    fn from(_: DeltaError) -> Self {
        Self
    }
}

/// The pages as they are at some place of the walk: in a file, as far as entries have told.
struct Versions<'a> {
    size: PageSize,
    file: File,
    places: BTreeMap<PageNumber, u64>,
    /// How many places the file has.
    taken: u64,
    /// Changed by an entry, nobody knows to what.
    unknown: BTreeSet<PageNumber>,
    /// Pages of the database; `None` before the first entry.
    count: Option<PageCount>,
    base: Option<State<'a>>,
}

impl<'a> Versions<'a> {
    fn new(size: PageSize) -> Result<Self, Failure> {
        let file = tempfile::tempfile();
        let failed = |error| Failure::new(format!("cannot create a temporary file: {error}"));
        Ok(Self {
            size,
            file: file.map_err(failed)?,
            places: BTreeMap::new(),
            taken: 0,
            unknown: BTreeSet::new(),
            count: None,
            base: None,
        })
    }

    /// From here on what no entry has told is known from the files.
    fn begin_at(&mut self, directory: &'a Directory, base: Base) {
        if self.base.is_none() {
            self.base = Some(State::of(directory, base));
            self.unknown.clear();
            self.count = Some(base.page_count);
        }
    }

    fn read(&self, page: PageNumber, image: &mut [u8]) -> Result<(), Unknown> {
        if let Some(place) = self.places.get(&page) {
            let offset = place * u64::from(self.size.bytes());
            return self.file.read_exact_at(image, offset).map_err(|_| Unknown);
        }
        if self.unknown.contains(&page) {
            return Err(Unknown);
        }
        if self.count.is_some_and(|count| !count.contains(page)) {
            return Ok(());
        }
        let state = self.base.as_ref().ok_or(Unknown)?;
        let bytes = state.sound_page(page).ok_or(Unknown)?;
        if bytes.len() != image.len() {
            return Err(Unknown);
        }
        image.copy_from_slice(&bytes);
        Ok(())
    }

    fn put(&mut self, page: PageNumber, image: &[u8]) -> Result<(), Failure> {
        self.unknown.remove(&page);
        let place = *self.places.entry(page).or_insert_with(|| {
            self.taken += 1;
            self.taken - 1
        });
        let written = self
            .file
            .write_all_at(image, place * u64::from(self.size.bytes()));
        written.map_err(|error| Failure::new(format!("cannot write a temporary file: {error}")))
    }

    fn forget(&mut self, page: PageNumber) {
        self.places.remove(&page);
        self.unknown.insert(page);
    }

    /// What is beyond the end is new if it comes back.
    fn cut(&mut self, count: PageCount) {
        self.count = Some(count);
        self.unknown.retain(|page| count.contains(*page));
        self.places.retain(|page, _| count.contains(*page));
    }
}

/// The state of the checkpoint record, or of what is being installed over it.
pub(super) struct State<'a> {
    image: Option<Image>,
    installing: Option<&'a Installing>,
    /// The hashes of its pages, if they are known.
    table: Option<PageHashes>,
}

impl<'a> State<'a> {
    pub(super) fn of(directory: &'a Directory, base: Base) -> Self {
        let is_installed = |installing: &&Installing| installing.manifest.applied == base.applied;
        let installing = directory.installing().filter(is_installed);
        let table = directory.hashes().and_then(Result::ok).map(|mut table| {
            table.resize(base.page_count);
            table.recompute_sum();
            table
        });
        Self {
            image: directory.main_image().ok(),
            installing,
            table: table.filter(|table| table.sum() == base.hash),
        }
    }

    pub(super) fn page(&self, page: PageNumber) -> Option<Vec<u8>> {
        if let Some(bytes) = self.installing.and_then(|installing| installing.page(page)) {
            return Some(bytes);
        }
        self.image.as_ref()?.page(page).ok()
    }

    /// A page of the main file, whatever the WAL has.
    pub(super) fn main_page(&self, page: PageNumber) -> Option<Vec<u8>> {
        self.image.as_ref()?.main_page(page).ok()
    }

    /// If it is known to be what it was.
    fn sound_page(&self, page: PageNumber) -> Option<Vec<u8>> {
        let bytes = self.page(page)?;
        let is_other = self
            .table
            .as_ref()
            .is_some_and(|table| table.get(page) != Some(PageHash::of(page, &bytes)));
        (!is_other).then_some(bytes)
    }
}
