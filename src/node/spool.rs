//! A received image on its way into the database: one file in the data directory.
//!
//! | Offset | Size | Field | Meaning |
//! |---|---|---|---|
//! | 0 | 4 | manifest length | bytes |
//! | 4 | n | manifest | see [`Manifest`] |
//! | 4+n | ... | pages | page 1 first, every page in its place; the lock-byte page is a hole |
//!
//! While it is received its name begins with `incoming-`; such files are litter after a crash. When
//! it is complete, verified and synced it is renamed to `installing`: from then on it is part of
//! the durable state, and a start-up that finds it finishes the installation before anything else.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::error::{Error, REBUILD};
use super::gate::PageImage;
use super::identity::random_u64;
use super::manifest::Manifest;
use super::scratch::is_litter;
use crate::sqlite;
use crate::wal::{DatabaseHash, PageHash, PageNumber};

/// A complete, verified image.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    path: PathBuf,
    manifest: Manifest,
    data_offset: u64,
    adopted: bool,
}

/// An image that nobody adopts is litter; the next start would remove it at the latest.
impl Drop for Spool {
    fn drop(&mut self) {
        if !self.adopted {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Spool {
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
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
        let mut length = [0; 4];
        file.read_exact_at(&mut length, 0)
            .map_err(Error::io(context()))?;
        let length = u32::from_le_bytes(length);
        if length > MANIFEST_BYTES_MAX {
            return Err(corrupt("wrong length of the manifest".to_owned()));
        }
        let mut manifest = vec![0; length as usize];
        file.read_exact_at(&mut manifest, 4)
            .map_err(Error::io(context()))?;
        let manifest = Manifest::decode(&manifest).map_err(corrupt)?;
        let data_offset = 4 + u64::from(length);
        Ok(Some(Self {
            file,
            path,
            manifest,
            data_offset,
            adopted: true,
        }))
    }

    /// Makes the image part of the durable state.
    pub(crate) fn adopt(mut self, dir: &Path) -> Result<Self, Error> {
        let path = dir.join(INSTALLING);
        let adopt = || -> io::Result<()> {
            fs::rename(&self.path, &path)?;
            File::open(dir)?.sync_all()
        };
        adopt().map_err(Error::io(format!("rename {}", self.path.display())))?;
        self.path = path;
        self.adopted = true;
        Ok(self)
    }

    /// All pages but the lock-byte page, in order.
    pub(crate) fn pages(
        &self,
    ) -> impl Iterator<Item = Result<PageImage<'static>, sqlite::Error>> + '_ {
        let size = self.manifest.page_size;
        (1..=self.manifest.page_count.0)
            .filter_map(PageNumber::new)
            .filter(move |page| *page != size.lock_byte_page())
            .map(move |page| {
                let mut image = vec![0; size.len()];
                let offset = self.data_offset + page.offset(size);
                self.file
                    .read_exact_at(&mut image, offset)
                    .map_err(|source| sqlite::Error::Io {
                        what: "read",
                        file: self.path.clone(),
                        source,
                    })?;
                Ok((page, Cow::Owned(image)))
            })
    }
}

/// An image that is being received.
pub(crate) struct SpoolWriter {
    spool: Spool,
    next: u64,
    hash: DatabaseHash,
}

impl SpoolWriter {
    pub(crate) fn create(dir: &Path, manifest: Manifest) -> Result<Self, Error> {
        let path = dir.join(format!("{INCOMING}{:016x}", random_u64()?));
        let head = manifest.encode();
        let length = u32::try_from(head.len()).expect("manifests are small");
        let write = || -> io::Result<File> {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            file.write_all(&length.to_le_bytes())?;
            file.write_all(&head)?;
            Ok(file)
        };
        let file = write().map_err(Error::io(format!("write {}", path.display())))?;
        let data_offset = 4 + u64::from(length);
        let spool = Spool {
            file,
            path,
            manifest,
            data_offset,
            adopted: false,
        };
        Ok(Self {
            spool,
            next: 1,
            hash: DatabaseHash::default(),
        })
    }

    /// Takes the next run of pages. Blocks.
    pub(crate) fn push(&mut self, pages: &[u8]) -> Result<(), Error> {
        let Manifest {
            page_size,
            page_count,
            ..
        } = self.spool.manifest;
        let count = (pages.len() / page_size.len()) as u64;
        if pages.is_empty() || !pages.len().is_multiple_of(page_size.len()) {
            return Err(self.wrong("a run of pages of the wrong length"));
        }
        if self.next + count > u64::from(page_count.0) + 1 {
            return Err(self.wrong("more pages than announced"));
        }
        for (number, image) in (self.next..).zip(pages.chunks_exact(page_size.len())) {
            let number = u32::try_from(number).ok().and_then(PageNumber::new);
            let number = number.expect("at most the page count");
            if number == page_size.lock_byte_page() {
                continue;
            }
            self.hash = self.hash.with(PageHash::of(number, image));
        }
        let offset = self.spool.data_offset + (self.next - 1) * u64::from(page_size.bytes());
        self.next += count;
        self.spool
            .file
            .write_all_at(pages, offset)
            .map_err(Error::io(format!("write {}", self.spool.path.display())))
    }

    /// Checks that everything arrived, and makes it durable under its temporary name. Blocks.
    pub(crate) fn finish(self) -> Result<Spool, Error> {
        let manifest = &self.spool.manifest;
        if self.next != u64::from(manifest.page_count.0) + 1 {
            return Err(self.wrong("fewer pages than announced"));
        }
        if self.hash != manifest.hash {
            return Err(self.wrong("its pages do not have the announced hash"));
        }
        self.spool
            .file
            .sync_all()
            .map_err(Error::io(format!("sync {}", self.spool.path.display())))?;
        Ok(self.spool)
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Corrupt {
            what: what.to_owned(),
            file: self.spool.path.clone(),
            advice: "the transfer is given up and begins again",
        }
    }
}

/// Removes what an interrupted transfer left.
fn remove_litter(dir: &Path) -> Result<(), Error> {
    let context = || format!("clean {}", dir.display());
    for entry in fs::read_dir(dir).map_err(Error::io(context()))? {
        let entry = entry.map_err(Error::io(context()))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(INCOMING) || is_litter(&name) {
            fs::remove_file(entry.path()).map_err(Error::io(context()))?;
        }
    }
    Ok(())
}

pub(crate) const INSTALLING: &str = "installing";
const INCOMING: &str = "incoming-";
const MANIFEST_BYTES_MAX: u32 = 2 << 20;
