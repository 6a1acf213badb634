//! `-extensions-path`: files, directories and archives (.zip, .tar.gz, .tgz) of extensions.
//!
//! Archives are unpacked flat into `<data directory>/extensions`, which is made anew at every
//! start: only the last part of an entry's name counts, so no archive can write elsewhere.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use wallaby::node::{ExtensionError, Extensions};

/// All archives together may unpack to so many bytes; the largest known collections have a tenth.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;

/// Why the node does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtensionsError {
    /// An archive is larger than anybody needs.
    #[error("-extensions-path: the archives unpack to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
    /// A file or directory cannot be read, or an archive not unpacked.
    #[error("-extensions-path: {}: {source}", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system or the archive's reader said.
        source: io::Error,
    },
    /// A file is not an extension for this SQLite.
    #[error("-extensions-path: {0}")]
    NotLoadable(#[from] ExtensionError),
}

/// Finds the extensions in this list, and tries each.
pub(crate) fn open(list: &[PathBuf], data_dir: &Path) -> Result<Extensions, ExtensionsError> {
    let mut files = Vec::new();
    let mut unpacked = Unpacked::new(data_dir.join("extensions"));
    for path in list {
        let found = if path.is_dir() {
            files_in(path)
        } else {
            match archive_kind(path) {
                Some(kind) => unpacked.add(path, kind),
                None => Ok(vec![path.clone()]),
            }
        };
        files.extend(found.map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => ExtensionsError::TooLarge,
            _ => ExtensionsError::Unreadable {
                path: path.clone(),
                source,
            },
        })?);
    }
    Ok(Extensions::check(&files)?)
}

/// The files of a directory in the order of their names: it decides which of two functions of the
/// same name is used, and must be the same on every node.
fn files_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[derive(Clone, Copy)]
enum Archive {
    TarGz,
    Zip,
}

fn archive_kind(path: &Path) -> Option<Archive> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    if name.ends_with(".zip") {
        Some(Archive::Zip)
    } else if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
        Some(Archive::TarGz)
    } else {
        None
    }
}

/// The directory that archives are unpacked into.
struct Unpacked {
    dir: PathBuf,
    is_fresh: bool,
    bytes: u64,
}

impl Unpacked {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            is_fresh: false,
            bytes: 0,
        }
    }

    /// Unpacks an archive; returns what it held, in the order of the names.
    fn add(&mut self, path: &Path, kind: Archive) -> io::Result<Vec<PathBuf>> {
        if !self.is_fresh {
            match fs::remove_dir_all(&self.dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir_all(&self.dir)?,
            }
            self.is_fresh = true;
        }
        let archive = File::open(path)?;
        let mut files = Vec::new();
        match kind {
            Archive::TarGz => {
                let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
                for entry in archive.entries()? {
                    let mut entry = entry?;
                    if entry.header().entry_type().is_file() {
                        let name = entry.path()?.into_owned();
                        files.extend(self.write(&name, &mut entry)?);
                    }
                }
            }
            Archive::Zip => {
                let mut archive = zip::ZipArchive::new(archive)?;
                for index in 0..archive.len() {
                    let mut entry = archive.by_index(index)?;
                    if entry.is_file() {
                        let name = PathBuf::from(entry.name());
                        files.extend(self.write(&name, &mut entry)?);
                    }
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn write(&mut self, name: &Path, from: &mut impl Read) -> io::Result<Option<PathBuf>> {
        let Some(name) = name.file_name() else {
            return Ok(None);
        };
        let path = self.dir.join(name);
        let mut file = File::create(&path)?;
        // One byte more than allowed tells a file that fits from one that was cut.
        let left = UNPACKED_BYTES_MAX - self.bytes;
        self.bytes += io::copy(&mut from.take(left + 1), &mut file)?;
        if self.bytes > UNPACKED_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.flush()?;
        Ok(Some(path))
    }
}
