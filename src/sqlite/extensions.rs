//! The SQLite extensions that the operator chose (SQLite documentation, "Run-Time Loadable
//! Extensions").
//!
//! Every connection that serves clients loads them. Clients cannot load any: `load_extension()` is
//! refused, and only SQLite's C interface is switched on, for the moment of loading.
//!
//! Only the leader executes writes, so an extension cannot make replicas differ. All nodes should
//! have the same ones nevertheless: each reads for itself, and each may become the leader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::raw::{self, Failure};

/// A list of extensions, each of which could be loaded.
#[derive(Clone, Debug, Default)]
pub struct Extensions {
    files: Arc<[PathBuf]>,
}

/// A file that is no extension, or one that does not work with this SQLite.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be loaded as an SQLite extension: {what}", path.display())]
pub struct ExtensionError {
    /// The file.
    pub path: PathBuf,
    /// What SQLite said.
    pub what: String,
}

impl Extensions {
    /// Tries each file on a connection of its own, so that a bad one is known before the database
    /// is opened. SQLite is given absolute paths, because the system looks for others elsewhere.
    ///
    /// # Errors
    ///
    /// [`ExtensionError`] for the first file that cannot be loaded.
    pub fn check(files: &[PathBuf]) -> Result<Self, ExtensionError> {
        let mut absolute = Vec::with_capacity(files.len());
        for path in files {
            let failed = |what: String| ExtensionError {
                path: path.clone(),
                what,
            };
            let found = path
                .canonicalize()
                .map_err(|error| failed(error.to_string()))?;
            let connection =
                Connection::open_in_memory().map_err(|error| failed(error.to_string()))?;
            raw::load_extension(&connection, &found).map_err(|failure| failed(failure.message))?;
            absolute.push(found);
        }
        Ok(Self {
            files: absolute.into(),
        })
    }

    /// The names of the files, without directories.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| {
            let name = path.file_name().map_or(path.as_path(), Path::new);
            name.display().to_string()
        };
        self.files.iter().map(name).collect()
    }

    /// Loads all of them into a connection that has no authorizer yet.
    pub(crate) fn load(&self, connection: &Connection) -> Result<(), Failure> {
        self.files
            .iter()
            .try_for_each(|path| raw::load_extension(connection, path))
    }
}
