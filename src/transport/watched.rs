//! Files that are read again when they change: certificates, keys, users.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What tells one version of a file from the next: inode, length, and time of change in seconds
/// and nanoseconds. `None`: it cannot be looked at.
type Version = Option<(u64, u64, i64, i64)>;

/// Some files, and the versions of them that were read last.
#[derive(Debug)]
pub struct Watched {
    files: Vec<(PathBuf, Version)>,
}

impl Watched {
    /// Looks at the files. To be called before they are read: what changes after is then noticed.
    #[must_use]
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let looked_at = |path: &Path| (path.to_owned(), version(path));
        Self {
            files: paths.into_iter().map(looked_at).collect(),
        }
    }

    /// Whether any of the files has changed since this was last asked.
    pub fn have_changed(&mut self) -> bool {
        let mut changed = false;
        for (path, known) in &mut self.files {
            let now = version(path);
            changed |= now != *known;
            *known = now;
        }
        changed
    }
}

/// Follows links: Kubernetes replaces the directory behind one.
fn version(path: &Path) -> Version {
    let metadata = fs::metadata(path).ok()?;
    Some((
        metadata.ino(),
        metadata.size(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_noticed_once() {
        let name = format!("wallaby-watched-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_file(&path);
        let mut watched = Watched::new([path.as_path()]);
        assert!(!watched.have_changed());
        fs::write(&path, "one").unwrap();
        assert!(watched.have_changed());
        assert!(!watched.have_changed());
        fs::write(&path, "three").unwrap();
        assert!(watched.have_changed());
        fs::remove_file(&path).unwrap();
        assert!(watched.have_changed());
        assert!(!watched.have_changed());
    }
}
