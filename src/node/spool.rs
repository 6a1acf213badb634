//! Received pages on their way into the database: one file in the data directory.
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `8E 57 4C 42 53 50 0A 1A` |
//! | 8 | 4 | version | 2 |
//! | 12 | 4 | page size | bytes |
//! | 16 | ... | records | as many as there are pages, in any order, each page once |
//! | ... | ... | trailer | only when complete |
//!
//! | Record offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | page number | |
//! | 4 | 4 | CRC-32 | of the page number, the record's offset in the file (8 bytes), the page |
//! | 8 | page size | page | |
//!
//! | Trailer offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | zero | where a record has its page number |
//! | 4 | 4 | manifest length | bytes |
//! | 8 | n | manifest | see [`Manifest`] |
//!
//! Integers are little-endian. Only pages are there in which this node's database differs from the
//! one in the manifest, or may differ after a crash. While it is filled it is called
//! `incoming-pages`; it outlives a cut and a restart, and what it has is not sent again. When it is
//! complete and everything was verified it is synced and renamed to `installing`: from then on it
//! is part of the durable state, and a start-up that finds it finishes the installation before
//! anything else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::error::{Error, REBUILD};
use super::gate::PageImage;
use super::manifest::Manifest;
use super::scratch::is_litter;
use crate::sqlite;
use crate::wal::{PageHash, PageNumber, PageSize};

/// Where a page is, and what it is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Counts the records before it.
    ordinal: u32,
    hash: [u8; 16],
}

/// Pages that are being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    path: PathBuf,
    page_size: PageSize,
    slots: BTreeMap<PageNumber, Slot>,
}

impl Incoming {
    /// What a transfer that was cut off has left, if it can be read. Blocks.
    pub(crate) fn resume(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(INCOMING);
        let context = Error::io(format!("read {}", path.display()));
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(context(error)),
        };
        let Ok(page_size) = read_header(&file) else {
            return Ok(None);
        };
        let mut found = Self {
            file,
            path,
            page_size,
            slots: BTreeMap::new(),
        };
        found.scan().map_err(context)?;
        Ok(Some(found))
    }

    /// An empty one in place of what was there. Blocks.
    pub(crate) fn create(dir: &Path, page_size: PageSize) -> Result<Self, Error> {
        let path = dir.join(INCOMING);
        let write = || -> io::Result<File> {
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all_at(&header(page_size), 0)?;
            Ok(file)
        };
        let file = write().map_err(Error::io(format!("write {}", path.display())))?;
        Ok(Self {
            file,
            path,
            page_size,
            slots: BTreeMap::new(),
        })
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// How many pages it has.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The last page it has.
    pub(crate) fn last(&self) -> u32 {
        let last = self.slots.last_key_value();
        last.map_or(0, |(page, _)| page.number())
    }

    /// The hash of the page it has.
    pub(crate) fn hash(&self, page: PageNumber) -> Option<PageHash> {
        let slot = self.slots.get(&page)?;
        Some(PageHash(u128::from_le_bytes(slot.hash)))
    }

    /// Takes a page, in place of an older one with the same number. Blocks.
    pub(crate) fn put(&mut self, page: PageNumber, image: &[u8]) -> Result<(), Error> {
        let next = u32::try_from(self.slots.len()).expect("page numbers are 32 bits");
        let ordinal = self.slots.get(&page).map_or(next, |slot| slot.ordinal);
        let offset = record_offset(ordinal, self.page_size);
        let mut record = Vec::with_capacity(RECORD_HEAD_BYTES + image.len());
        record.extend_from_slice(&page.number().to_le_bytes());
        record.extend_from_slice(&checksum(page, offset, image).to_le_bytes());
        record.extend_from_slice(image);
        self.file
            .write_all_at(&record, offset)
            .map_err(Error::io(format!("write {}", self.path.display())))?;
        let hash = PageHash::of(page, image).0.to_le_bytes();
        self.slots.insert(page, Slot { ordinal, hash });
        Ok(())
    }

    /// Whether the beginning of the file is still what was written there. Blocks.
    pub(crate) fn check_header(&self) -> Result<(), String> {
        match read_header(&self.file)? {
            size if size == self.page_size => Ok(()),
            _ => Err("another page size".to_owned()),
        }
    }

    /// The hash of the page it has, as the file has it now; an error if that is not what was put
    /// there. Blocks.
    pub(crate) fn reread(&self, page: PageNumber) -> Result<Option<PageHash>, sqlite::Error> {
        let Some(slot) = self.slots.get(&page) else {
            return Ok(None);
        };
        let image = self.read(page, *slot)?;
        Ok(Some(PageHash::of(page, &image)))
    }

    /// Makes the pages durable, not yet as an image. Blocks.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file
            .sync_data()
            .map_err(Error::io(format!("sync {}", self.path.display())))
    }

    /// Makes it part of the durable state: with the database as it is at the last checkpoint
    /// record, these pages give the database of the manifest. Blocks.
    pub(crate) fn adopt(self, dir: &Path, manifest: Manifest) -> Result<Spool, Error> {
        let adopted = dir.join(INSTALLING);
        let encoded = manifest.encode();
        let mut trailer = vec![0; 4];
        let length = u32::try_from(encoded.len()).expect("manifests are small");
        trailer.extend_from_slice(&length.to_le_bytes());
        trailer.extend_from_slice(&encoded);
        let count = u32::try_from(self.slots.len()).expect("page numbers are 32 bits");
        let end = record_offset(count, self.page_size);
        let adopt = || -> io::Result<()> {
            self.file.write_all_at(&trailer, end)?;
            self.file.set_len(end + trailer.len() as u64)?;
            self.file.sync_all()?;
            fs::rename(&self.path, &adopted)?;
            File::open(dir)?.sync_all()
        };
        adopt().map_err(Error::io(format!("adopt {}", self.path.display())))?;
        Ok(Spool {
            pages: Self {
                path: adopted,
                ..self
            },
            manifest,
        })
    }

    /// Finds the records, up to the first that was not written to its end.
    fn scan(&mut self) -> io::Result<()> {
        let mut record = vec![0; RECORD_HEAD_BYTES + self.page_size.len()];
        for ordinal in 0.. {
            let offset = record_offset(ordinal, self.page_size);
            match self.file.read_exact_at(&mut record, offset) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let (page, crc) = parse_head(&record);
            let image = &record[RECORD_HEAD_BYTES..];
            let Some(page) = page.filter(|page| checksum(*page, offset, image) == crc) else {
                return Ok(());
            };
            // Each page is there once; whoever wrote another one was not us.
            if self.slots.contains_key(&page) {
                return Ok(());
            }
            let hash = PageHash::of(page, image).0.to_le_bytes();
            self.slots.insert(page, Slot { ordinal, hash });
        }
        Ok(())
    }

    fn read(&self, page: PageNumber, slot: Slot) -> Result<Vec<u8>, sqlite::Error> {
        let offset = record_offset(slot.ordinal, self.page_size);
        let mut record = vec![0; RECORD_HEAD_BYTES + self.page_size.len()];
        let failed = |source| sqlite::Error::Io {
            what: "read",
            file: self.path.clone(),
            source,
        };
        self.file
            .read_exact_at(&mut record, offset)
            .map_err(failed)?;
        let (found, crc) = parse_head(&record);
        let image = record.split_off(RECORD_HEAD_BYTES);
        if found != Some(page) || checksum(page, offset, &image) != crc {
            let what = format!("the record of page {page} is damaged");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        Ok(image)
    }
}

/// All pages that it takes to make a complete, verified image of this node's database.
#[derive(Debug)]
pub(crate) struct Spool {
    pages: Incoming,
    manifest: Manifest,
}

impl Spool {
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn path(&self) -> &Path {
        &self.pages.path
    }

    /// Opens the installation that a crash has left behind, if any.
    pub(crate) fn pending(dir: &Path) -> Result<Option<Self>, Error> {
        remove_litter(dir)?;
        let path = dir.join(INSTALLING);
        let context = || format!("open {}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(context())(error)),
        };
        let corrupt = |what: String| Error::Corrupt {
            what,
            file: path.clone(),
            advice: REBUILD,
        };
        let page_size = read_header(&file).map_err(corrupt)?;
        let mut pages = Incoming {
            file,
            path: path.clone(),
            page_size,
            slots: BTreeMap::new(),
        };
        pages.scan().map_err(Error::io(context()))?;
        let manifest = pages.trailer().map_err(corrupt)?;
        if manifest.page_size != page_size {
            return Err(corrupt("two page sizes".to_owned()));
        }
        Ok(Some(Self { pages, manifest }))
    }

    /// Whether there are no pages at all: the database is the manifest's already.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.slots.is_empty()
    }

    /// The pages within the page count, in order.
    pub(crate) fn pages(
        &self,
    ) -> impl Iterator<Item = Result<PageImage<'static>, sqlite::Error>> + '_ {
        let count = self.manifest.page_count;
        self.pages
            .slots
            .iter()
            .filter(move |(page, _)| count.contains(**page))
            .map(|(page, slot)| {
                let image = self.pages.read(*page, *slot)?;
                tracing::trace!(
                    page = page.number(),
                    "a received page goes into the database"
                );
                Ok((*page, Cow::Owned(image)))
            })
    }
}

impl Incoming {
    /// The manifest behind the last record.
    fn trailer(&self) -> Result<Manifest, String> {
        let count = u32::try_from(self.slots.len()).expect("page numbers are 32 bits");
        let offset = record_offset(count, self.page_size);
        let mut head = [0; 8];
        let cut = |error: io::Error| format!("the manifest is missing: {error}");
        self.file.read_exact_at(&mut head, offset).map_err(cut)?;
        let [0, 0, 0, 0, l0, l1, l2, l3] = head else {
            return Err("a record of a page is damaged".to_owned());
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > MANIFEST_BYTES_MAX {
            return Err("wrong length of the manifest".to_owned());
        }
        let mut manifest = vec![0; length as usize];
        self.file
            .read_exact_at(&mut manifest, offset + 8)
            .map_err(cut)?;
        Manifest::decode(&manifest)
    }
}

fn header(page_size: PageSize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&page_size.bytes().to_le_bytes());
    header
}

fn read_header(file: &File) -> Result<PageSize, String> {
    let mut found = [0; HEADER_BYTES];
    file.read_exact_at(&mut found, 0)
        .map_err(|error| format!("the header is cut short: {error}"))?;
    let [m @ .., v0, v1, v2, v3, s0, s1, s2, s3] = found;
    if m != MAGIC {
        return Err("not a spool of received pages".to_owned());
    }
    let version = u32::from_le_bytes([v0, v1, v2, v3]);
    if version != VERSION {
        return Err(format!("unsupported version {version}; this is {VERSION}"));
    }
    PageSize::new(u32::from_le_bytes([s0, s1, s2, s3])).ok_or("impossible page size".to_owned())
}

fn record_offset(ordinal: u32, page_size: PageSize) -> u64 {
    let record = RECORD_HEAD_BYTES as u64 + u64::from(page_size.bytes());
    HEADER_BYTES as u64 + u64::from(ordinal) * record
}

fn checksum(page: PageNumber, offset: u64, image: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&page.number().to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(image);
    hasher.finalize()
}

fn parse_head(record: &[u8]) -> (Option<PageNumber>, u32) {
    let word = |offset: usize| {
        let bytes = record[offset..offset + 4].try_into();
        u32::from_le_bytes(bytes.expect("4 bytes"))
    };
    (PageNumber::new(word(0)), word(4))
}

/// Removes what a crash left, but for pages that were received already.
fn remove_litter(dir: &Path) -> Result<(), Error> {
    let context = || format!("clean {}", dir.display());
    for entry in fs::read_dir(dir).map_err(Error::io(context()))? {
        let entry = entry.map_err(Error::io(context()))?;
        if is_litter(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(Error::io(context()))?;
        }
    }
    Ok(())
}

pub(crate) const INSTALLING: &str = "installing";
pub(crate) const INCOMING: &str = "incoming-pages";
const MAGIC: [u8; 8] = [0x8e, b'W', b'L', b'B', b'S', b'P', b'\n', 0x1a];
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 16;
const RECORD_HEAD_BYTES: usize = 8;
const MANIFEST_BYTES_MAX: u32 = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::StoredMembership;
    use crate::wal::{DatabaseHash, PageCount, Position};

    const SIZE: PageSize = PageSize::DEFAULT;

    fn page(number: u32) -> PageNumber {
        PageNumber::new(number).unwrap()
    }

    fn image(byte: u8) -> Vec<u8> {
        vec![byte; SIZE.len()]
    }

    fn manifest() -> Manifest {
        let applied = Position {
            term: 2,
            node: 3,
            index: 4,
        };
        Manifest {
            applied,
            data: Some(applied),
            membership: StoredMembership::default(),
            page_size: SIZE,
            page_count: PageCount(8),
            hash: DatabaseHash(77),
        }
    }

    fn found(spool: &Spool) -> Vec<(u32, u8)> {
        let pages = spool.pages().map(Result::unwrap);
        pages
            .map(|(page, image)| (page.number(), image[0]))
            .collect()
    }

    #[test]
    fn pages_outlive_a_cut_and_the_last_one_written_wins() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Incoming::resume(dir.path()).unwrap().is_none());
        let mut incoming = Incoming::create(dir.path(), SIZE).unwrap();
        for (number, byte) in [(9, 9), (5, 1), (2, 2), (5, 5)] {
            incoming.put(page(number), &image(byte)).unwrap();
        }
        drop(incoming);
        let mut incoming = Incoming::resume(dir.path()).unwrap().unwrap();
        assert_eq!((incoming.len(), incoming.last()), (3, 9));
        assert_eq!(
            incoming.hash(page(5)),
            Some(PageHash::of(page(5), &image(5)))
        );
        incoming.put(page(7), &image(7)).unwrap();
        let spool = incoming.adopt(dir.path(), manifest()).unwrap();
        assert_eq!(
            found(&spool),
            [(2, 2), (5, 5), (7, 7)],
            "9 is beyond the page count"
        );
        let spool = Spool::pending(dir.path()).unwrap().unwrap();
        assert_eq!(found(&spool), [(2, 2), (5, 5), (7, 7)]);
        assert_eq!(*spool.manifest(), manifest());
        assert!(Incoming::resume(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_bit_that_flips_in_the_file_is_noticed_when_it_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::create(dir.path(), SIZE).unwrap();
        for number in 1..=2 {
            incoming.put(page(number), &image(7)).unwrap();
        }
        let path = dir.path().join(INCOMING);
        let whole = fs::read(&path).unwrap();
        for byte in (0..whole.len()).step_by(61) {
            let mut damaged = whole.clone();
            damaged[byte] ^= 16;
            fs::write(&path, &damaged).unwrap();
            let header = incoming.check_header();
            let pages = [1, 2].map(|number| incoming.reread(page(number)).is_ok());
            let found = header.is_ok() && pages == [true, true];
            assert!(!found, "byte {byte}");
        }
        fs::write(&path, &whole).unwrap();
        incoming.check_header().unwrap();
        assert!(incoming.reread(page(1)).unwrap().is_some());
        assert_eq!(incoming.reread(page(9)).unwrap(), None);
    }

    #[test]
    fn a_cut_or_damaged_file_gives_the_pages_before_the_damage_and_no_installation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(INCOMING);
        let mut incoming = Incoming::create(dir.path(), SIZE).unwrap();
        for number in 1..=3 {
            incoming.put(page(number), &image(7)).unwrap();
        }
        let _ = incoming.adopt(dir.path(), manifest()).unwrap();
        let whole = fs::read(dir.path().join(INSTALLING)).unwrap();
        let record = RECORD_HEAD_BYTES + SIZE.len();
        for length in (0..whole.len()).step_by(509).chain([whole.len() - 1]) {
            fs::write(dir.path().join(INSTALLING), &whole[..length]).unwrap();
            assert!(Spool::pending(dir.path()).is_err(), "cut to {length}");
            fs::write(&path, &whole[..length]).unwrap();
            let left = Incoming::resume(dir.path()).unwrap();
            let expected = (length.saturating_sub(HEADER_BYTES) / record).min(3);
            assert_eq!(
                left.map_or(0, |left| left.len()),
                expected,
                "cut to {length}"
            );
        }
        for byte in (0..whole.len()).step_by(97) {
            let mut damaged = whole.clone();
            damaged[byte] ^= 4;
            fs::write(dir.path().join(INSTALLING), &damaged).unwrap();
            assert!(Spool::pending(dir.path()).is_err(), "byte {byte}");
            fs::write(&path, &damaged).unwrap();
            let left = Incoming::resume(dir.path()).unwrap();
            let expected = (byte.saturating_sub(HEADER_BYTES) / record).min(3);
            let header = byte < HEADER_BYTES;
            assert_eq!(
                left.map_or(0, |left| left.len()),
                if header { 0 } else { expected }
            );
        }
    }
}
