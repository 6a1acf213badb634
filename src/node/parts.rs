//! The parts of a large transaction, kept until the last one arrives; our own as well, because a
//! flight may be refused while the log keeps its first parts.
//!
//! Small stages stay in memory; above a limit the encoded parts go to a file without a name in the
//! data directory. Nothing of it survives a crash: the frontier that is durable stays before the
//! first part, so the log delivers all of them again.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use bytes::Bytes;

use super::gate::PageImage;
use crate::sqlite;
use crate::wal::{DatabaseHash, Delta, DeltaError, PageNumber, Part};

/// The parts so far, in order.
pub(crate) struct StagedParts {
    dir: PathBuf,
    memory_bytes_max: u64,
    bytes: u64,
    parts: Vec<Place>,
    spool: Option<File>,
}

enum Place {
    Memory(Delta),
    Spool { offset: u64, bytes: usize },
}

impl StagedParts {
    pub(crate) fn new(dir: PathBuf, memory_bytes_max: u64) -> Self {
        Self {
            dir,
            memory_bytes_max,
            bytes: 0,
            parts: Vec::new(),
            spool: None,
        }
    }

    /// How many parts are staged.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Keeps one more part.
    pub(crate) fn push(&mut self, part: Delta) -> io::Result<()> {
        let bytes = part.bytes().len();
        if self.bytes + bytes as u64 <= self.memory_bytes_max {
            self.bytes += bytes as u64;
            self.parts.push(Place::Memory(part));
            return Ok(());
        }
        if self.spool.is_none() {
            self.spool = Some(nameless_file(&self.dir, SPOOL_NAME)?);
        }
        let spool = self.spool.as_mut().expect("opened above");
        let offset = spool.seek(SeekFrom::End(0))?;
        spool.write_all(part.bytes())?;
        self.parts.push(Place::Spool { offset, bytes });
        Ok(())
    }

    /// All parts in order, read back one at a time.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Result<Delta, sqlite::Error>> + '_ {
        self.parts.iter().map(|place| match place {
            Place::Memory(delta) => Ok(delta.clone()),
            Place::Spool { offset, bytes } => {
                let mut encoded = vec![0; *bytes];
                let spool = self.spool.as_ref().expect("a spooled part has a spool");
                let read = spool.read_exact_at(&mut encoded, *offset);
                read.map_err(|source| sqlite::Error::Io {
                    what: "read",
                    file: self.dir.join(SPOOL_NAME),
                    source,
                })?;
                Ok(Delta::decode(Bytes::from(encoded))?)
            }
        })
    }
}

/// The hash that the database must have before a transaction: it stands on its first part.
pub(crate) fn first_hash(
    earlier: Option<&StagedParts>,
    last: &Delta,
) -> Result<DatabaseHash, sqlite::Error> {
    match earlier.and_then(|parts| parts.parts().next()) {
        Some(first) => Ok(first?.header().hash_before),
        None => Ok(last.header().hash_before),
    }
}

/// All pages of a transaction, ascending; one part is in memory at a time. `old` is asked for the
/// versions before the transaction here and not later, when they may be replaced.
pub(crate) fn all_pages<'a>(
    earlier: Option<&'a StagedParts>,
    last: &'a Delta,
    old: impl FnMut(PageNumber, &mut [u8]) -> Result<(), sqlite::Error>,
) -> Result<AllPages<'a>, sqlite::Error> {
    if last.header().part == Part::WHOLE {
        let pages: Result<Vec<_>, _> = last.pages(old).collect();
        let mut pages = pages?;
        pages.sort_unstable_by_key(|(page, _)| *page);
        let pages = pages.into_iter().map(|page| owned(Ok(page)));
        return Ok(Box::new(pages.collect::<Vec<_>>().into_iter()));
    }
    let earlier = earlier.into_iter().flat_map(StagedParts::parts);
    let earlier = earlier.flat_map(|part| match part {
        Ok(part) => part.whole_pages().map(owned).collect(),
        Err(error) => vec![Err(error)],
    });
    let last = last.whole_pages();
    Ok(Box::new(
        earlier.chain(last.map(|page| page.map_err(sqlite::Error::from))),
    ))
}

/// See [`all_pages`].
type AllPages<'a> = Box<dyn Iterator<Item = Result<PageImage<'a>, sqlite::Error>> + 'a>;

/// A page that outlives the part it came from.
fn owned(page: Result<PageImage<'_>, DeltaError>) -> Result<PageImage<'static>, sqlite::Error> {
    let (number, image) = page?;
    Ok((number, Cow::Owned(image.into_owned())))
}

/// A file that vanishes with its last descriptor.
fn nameless_file(dir: &std::path::Path, name: &str) -> io::Result<File> {
    let path = dir.join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The name that the spool file has for a moment.
const SPOOL_NAME: &str = "parts.spool";
