//! The only way to files: opened to read, never locked, never written.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Why something could not be looked at.
#[derive(Debug)]
pub(super) struct Failure(pub(super) String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    file: File,
}

impl Source {
    /// Opens a file. Anything else than a file is refused: a pipe would be emptied by looking.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure(format!("cannot open {}: {error}", path.display()));
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Failure(format!("{} is not a file", path.display())));
        }
        let file = File::open(path).map_err(failed)?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// The same; `None` if there is no such file.
    pub(super) fn find(path: &Path) -> Result<Option<Self>, Failure> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::open(path).map(Some),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its size now, in bytes.
    pub(super) fn bytes(&self) -> Result<u64, Failure> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|error| self.failed(&error))?.len())
    }

    /// At most `length` bytes at `offset`; fewer where the file ends.
    pub(super) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
        let there = self.bytes()?.saturating_sub(offset);
        let length = length.min(usize::try_from(there).unwrap_or(usize::MAX));
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self
                .file
                .read_at(&mut bytes[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// All of it.
    pub(super) fn read_all(&self) -> Result<Vec<u8>, Failure> {
        self.read(0, usize::MAX)
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure(format!("cannot read {}: {error}", self.path.display()))
    }
}
