//! Data on its way into the database: one file in the data directory, and what it is.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::api::Refusal;
use super::running::Node;
use super::scratch::{Scratch, check_room};
use crate::sqlite::MAGIC;

/// What was received, by its first bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// A SQLite database.
    Database,
    /// Nothing at all.
    Nothing,
    /// Anything else is taken for SQL.
    Script,
}

/// Data that is being received, or was. It takes room on the disk until it is dropped.
#[derive(Debug)]
pub struct Upload {
    scratch: Scratch,
    file: File,
    dir: PathBuf,
    bytes: u64,
    bytes_max: u64,
    /// What was not written yet, so that small pieces do not cost a call each.
    buffer: Vec<u8>,
}

impl Node {
    /// Begins to receive data to be loaded.
    ///
    /// # Errors
    ///
    /// `Busy` if the disk has no room, `Failed`, and those of a node that does not serve.
    pub async fn upload(&self) -> Result<Upload, Refusal> {
        let options = &self.inner()?.options;
        Upload::begin(&options.data_dir, options.transaction_bytes_max).await
    }
}

impl Upload {
    /// A larger one than this could not become one transaction.
    pub(crate) async fn begin(dir: &Path, bytes_max: u64) -> Result<Self, Refusal> {
        let dir = dir.to_owned();
        blocking(move || Self::create(dir, bytes_max)).await
    }

    fn create(dir: PathBuf, bytes_max: u64) -> Result<Self, Refusal> {
        check_room(&dir, 0).map_err(Refusal::Busy)?;
        let scratch = Scratch::name(&dir).map_err(|error| failed(&error))?;
        let file = scratch.create().map_err(|error| failed(&error))?;
        Ok(Self {
            scratch,
            file,
            dir,
            bytes: 0,
            bytes_max,
            buffer: Vec::new(),
        })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// `TooLarge`, `Busy` if the disk has no room, `Failed`.
    pub async fn push(mut self, bytes: &[u8]) -> Result<Self, Refusal> {
        if self.bytes + (self.buffer.len() + bytes.len()) as u64 > self.bytes_max {
            return Err(too_large(self.bytes_max));
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < BUFFER_BYTES {
            return Ok(self);
        }
        self.flush().await
    }

    /// Writes what is in the buffer, and looks whether there is room for more.
    async fn flush(mut self) -> Result<Self, Refusal> {
        blocking(move || {
            let buffer = std::mem::take(&mut self.buffer);
            self.append(&buffer)?;
            Ok(self)
        })
        .await
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        check_room(&self.dir, bytes.len() as u64).map_err(Refusal::Busy)?;
        self.file.write_all(bytes).map_err(|error| failed(&error))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Ends the reception. What is compressed by gzip is uncompressed, within the same limit.
    ///
    /// # Errors
    ///
    /// `Unfit` if it is damaged gzip; those of [`push`](Self::push).
    pub async fn finish(self) -> Result<Self, Refusal> {
        let upload = self.flush().await?;
        let head = upload.head(2).map_err(|error| failed(&error))?;
        if head != GZIP_MAGIC {
            return Ok(upload);
        }
        blocking(move || upload.uncompressed()).await
    }

    fn uncompressed(self) -> Result<Self, Refusal> {
        let mut plain = Self::create(self.dir.clone(), self.bytes_max)?;
        let source = File::open(self.path()).map_err(|error| failed(&error))?;
        let mut gzip = MultiGzDecoder::new(io::BufReader::new(source));
        let mut chunk = vec![0; BUFFER_BYTES];
        loop {
            let count = gzip
                .read(&mut chunk)
                .map_err(|error| Refusal::Unfit(format!("the gzip data is damaged: {error}")))?;
            if count == 0 {
                return Ok(plain);
            }
            if plain.bytes + count as u64 > plain.bytes_max {
                return Err(too_large(plain.bytes_max));
            }
            plain.append(&chunk[..count])?;
        }
    }

    /// What it is.
    ///
    /// # Errors
    ///
    /// `Failed` if the file cannot be read.
    pub fn content(&self) -> Result<Content, Refusal> {
        let head = self.head(MAGIC.len()).map_err(|error| failed(&error))?;
        Ok(if head == MAGIC {
            Content::Database
        } else if head.is_empty() {
            Content::Nothing
        } else {
            Content::Script
        })
    }

    fn head(&self, length: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; length];
        let count = self.file.read_at(&mut head, 0)?;
        head.truncate(count);
        Ok(head)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// All of it as text. Blocks.
    pub(crate) fn text(&self) -> Result<String, Refusal> {
        if self.bytes > SCRIPT_BYTES_MAX {
            let what = format!(
                "{} bytes of SQL are more than the {SCRIPT_BYTES_MAX} that are taken at once; \
                 load a SQLite file, or less at a time",
                self.bytes
            );
            return Err(Refusal::TooLarge(what));
        }
        let bytes = std::fs::read(self.path()).map_err(|error| failed(&error))?;
        let neither = || Refusal::Unfit(NEITHER.to_owned());
        if bytes.contains(&0) {
            return Err(neither());
        }
        String::from_utf8(bytes).map_err(|_| neither())
    }

    /// A run of its bytes; empty at the end. Blocks.
    pub(crate) fn run(&self, from: u64) -> io::Result<Vec<u8>> {
        let mut run = vec![0; BUFFER_BYTES];
        let count = self.file.read_at(&mut run, from)?;
        run.truncate(count);
        Ok(run)
    }
}

fn too_large(bytes_max: u64) -> Refusal {
    Refusal::TooLarge(format!(
        "more than {bytes_max} bytes cannot be loaded: a load is one transaction; raise \
         -max-transaction-bytes on all nodes, or load less at a time"
    ))
}

pub(crate) fn failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::Failed(format!("the data to be loaded could not be kept: {error}"))
}

/// Runs file work off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let working = tokio::task::spawn_blocking(work);
    working.await.unwrap_or_else(|error| Err(failed(&error)))
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const NEITHER: &str = "neither a SQLite file nor SQL in UTF-8";
/// One write, one frame between nodes.
const BUFFER_BYTES: usize = 1 << 20;
/// SQL is held in memory, twice for a while.
const SCRIPT_BYTES_MAX: u64 = 256 << 20;
