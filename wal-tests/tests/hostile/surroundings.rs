//! What lies around a node, and whether anything of it was touched.
//!
//! The node gets a working directory, a `HOME` and a `TMPDIR` of its own, empty, and a directory
//! `out` with files that statements reach for. Compared before and after: names, kinds, lengths,
//! times of change and of access, and contents. While the node runs, its open and mapped files are
//! looked at after each input.
//!
//! What this cannot see: a file elsewhere in the file system that was opened and closed between two
//! looks, except those in `/dev/shm` and the system's temporary directories whose names the inputs
//! use; and reads where the file system does not keep times of access, which is tried and said.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The directories around a node.
pub(crate) struct Surroundings {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, Trace>,
}

/// What is compared of one file or directory.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Trace {
    kind: &'static str,
    length: u64,
    changed: (i64, i64),
    accessed: Option<(i64, i64)>,
    content: Vec<u8>,
}

impl Surroundings {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("wallaby-around-").tempdir();
        let dir = dir.unwrap();
        for name in ["cwd", "home", "tmp", "out"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let out = dir.path().join("out");
        let secret = rusqlite::Connection::open(out.join("secret.db")).unwrap();
        secret
            .execute_batch("CREATE TABLE secret(v); INSERT INTO secret VALUES('hidden')")
            .unwrap();
        drop(secret);
        fs::write(out.join("secret.txt"), "hidden").unwrap();
        std::os::unix::fs::symlink(out.join("secret.db"), out.join("link")).unwrap();
        let mut surroundings = Self {
            dir,
            before: BTreeMap::new(),
        };
        // Times of access are kept up to date at least for files not read since they were changed.
        let long_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
        for file in ["secret.db", "secret.txt"] {
            let file = fs::File::options()
                .write(true)
                .open(out.join(file))
                .unwrap();
            let times = fs::FileTimes::new().set_accessed(long_ago);
            file.set_times(times).unwrap();
        }
        if !surroundings.sees_reads() {
            println!("this file system keeps no times of access: reads cannot be seen");
        }
        surroundings.before = surroundings.traces();
        surroundings
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn out(&self) -> String {
        self.dir.path().join("out").display().to_string()
    }

    /// Whether reading a file can be seen afterwards.
    fn sees_reads(&self) -> bool {
        let probe = self.dir.path().join("probe");
        fs::write(&probe, "probe").unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
        let file = fs::File::options().write(true).open(&probe).unwrap();
        file.set_times(fs::FileTimes::new().set_accessed(long_ago))
            .unwrap();
        let before = fs::metadata(&probe).unwrap().atime();
        let _ = fs::read(&probe).unwrap();
        let after = fs::metadata(&probe).unwrap().atime();
        fs::remove_file(&probe).unwrap();
        before != after
    }

    fn traces(&self) -> BTreeMap<PathBuf, Trace> {
        let mut traces = BTreeMap::new();
        trace(self.dir.path(), &mut traces);
        traces
    }

    /// Checks that nothing was touched.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        let after = self.traces();
        for (path, trace) in &after {
            match self.before.get(path) {
                None => panic!("{} was made", path.display()),
                Some(before) => assert_eq!(before, trace, "{} was touched", path.display()),
            }
        }
        for path in self.before.keys() {
            assert!(after.contains_key(path), "{} is gone", path.display());
        }
        for path in ["/dev/shm/wallaby-hostile", "/tmp/new.db", "/var/tmp/new.db"] {
            assert!(!Path::new(path).exists(), "{path} was made");
        }
    }
}

fn trace(path: &Path, traces: &mut BTreeMap<PathBuf, Trace>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    // Our own looking around reads directories and contents: of those no time of access is kept.
    let kind = match (metadata.is_dir(), metadata.is_symlink()) {
        (true, _) => "directory",
        (_, true) => "link",
        _ => "file",
    };
    let is_file = kind == "file";
    let accessed = is_file.then(|| (metadata.atime(), metadata.atime_nsec()));
    let content = if is_file {
        read_unseen(path)
    } else {
        Vec::new()
    };
    let known = Trace {
        kind,
        length: metadata.len(),
        changed: (metadata.mtime(), metadata.mtime_nsec()),
        accessed,
        content,
    };
    traces.insert(path.to_owned(), known);
    if kind == "directory" {
        for entry in fs::read_dir(path).unwrap() {
            trace(&entry.unwrap().path(), traces);
        }
    }
}

/// Reads a file and puts its time of access back.
fn read_unseen(path: &Path) -> Vec<u8> {
    let accessed = fs::metadata(path).unwrap().accessed().unwrap();
    let content = fs::read(path).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(accessed))
        .unwrap();
    content
}

/// The files that a process has open or mapped, outside of its data directory and apart from what
/// every process has.
pub(crate) fn strange_files(process: u32, data_dir: &Path, allowed: &[&Path]) -> Vec<String> {
    let mut found = Vec::new();
    let mut judge = |name: String| {
        let known = [
            "socket:",
            "pipe:",
            "anon_inode:",
            "/dev/null",
            "/proc/",
            "/sys/",
            "/memfd:",
        ];
        let path = Path::new(&name);
        let is_fine = known.iter().any(|known| name.starts_with(known))
            || path.starts_with(data_dir)
            || allowed.iter().any(|allowed| path.starts_with(allowed));
        if !is_fine {
            found.push(name);
        }
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    for descriptor in descriptors.flatten() {
        // One that is closed meanwhile is not open any more.
        if let Ok(target) = fs::read_link(descriptor.path()) {
            judge(target.display().to_string());
        }
    }
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    for line in maps.lines() {
        if let Some(start) = line.find('/') {
            judge(line[start..].to_owned());
        }
    }
    found
}

/// The most memory that a process has had, in bytes.
pub(crate) fn memory_peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().trim_end_matches("kB").trim();
    kibibytes.parse::<u64>().unwrap() * 1024
}
