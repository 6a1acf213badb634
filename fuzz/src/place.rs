//! Directories for targets that need files: in memory, one for each thread. They go with the
//! thread; what a process that was ended has left, the next one removes.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Once;

use tempfile::TempDir;

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
        let path = place.get_or_init(new_directory).path().join(name);
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

/// A directory of its own, in memory where the system has such a place.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn new_directory() -> TempDir {
    static SWEPT: Once = Once::new();
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    SWEPT.call_once(|| sweep(&base));
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let directory = tempfile::Builder::new().prefix(&prefix).tempdir_in(base);
    directory.expect("memory for a directory")
}

/// Removes the directories of processes that are no more.
fn sweep(base: &Path) {
    for name in names(base) {
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let is_gone = |process: &str| !Path::new("/proc").join(process).exists();
        if process.is_some_and(is_gone) {
            // Another process may be at it too.
            let _ = std::fs::remove_dir_all(base.join(name));
        }
    }
}

const PREFIX: &str = "wallaby-fuzz-";

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
