//! Directories for targets that need files: in memory, one for each thread, gone with the process.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wal_tests::replica::data_dir;

thread_local! {
    static PLACE: OnceCell<TempDir> = const { OnceCell::new() };
}

/// A directory of this thread with this name, made if need be.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn directory(name: &str) -> PathBuf {
    PLACE.with(|place| {
        let path = place.get_or_init(data_dir).path().join(name);
        std::fs::create_dir_all(&path).expect("memory for a directory");
        path
    })
}

/// The same, empty.
///
/// # Panics
/// If what was in it cannot be removed.
#[must_use]
pub fn empty_directory(name: &str) -> PathBuf {
    let path = directory(name);
    for entry in names(&path) {
        let entry = path.join(entry);
        let removed = if entry.is_dir() {
            std::fs::remove_dir_all(&entry)
        } else {
            std::fs::remove_file(&entry)
        };
        removed.expect("own files can be removed");
    }
    path
}

/// What is in a directory, sorted.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("a directory of ours");
    let mut names: Vec<String> = entries
        .map(|entry| {
            let name = entry.expect("a directory of ours").file_name();
            name.to_string_lossy().into_owned()
        })
        .collect();
    names.sort();
    names
}
