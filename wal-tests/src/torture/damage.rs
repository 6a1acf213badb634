//! Harm to the files of a node: disks that fill up, bits that flip.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::ProcessCluster;
use crate::seed::Random;

/// A small file system of its own for each node's directory; gone with this value.
pub(super) struct Disks(Vec<PathBuf>);

impl Disks {
    /// Mounts them, if they are wanted and this process may. Without them no disk fills up.
    pub(super) fn mount(cluster: &ProcessCluster, wanted: bool) -> Self {
        let mut disks = Self(Vec::new());
        if !wanted {
            return disks;
        }
        for node in 0..cluster.size() {
            let dir = cluster.data_dir(node);
            std::fs::create_dir_all(dir).expect("a directory in a temporary one");
            let options = format!("size={LARGE},mode=700");
            if !run(
                "mount",
                &["-t", "tmpfs", "-o", &options, "wallaby-torture"],
                dir,
            ) {
                println!("NOTE: no disk fills up: mounting small file systems takes root");
                return Self(Vec::new());
            }
            disks.0.push(dir.to_owned());
        }
        disks
    }

    /// Whether there are any.
    pub(super) fn exist(&self) -> bool {
        !self.0.is_empty()
    }

    /// Leaves almost no room on a node's disk.
    pub(super) fn fill(&self, node: usize) {
        // A node that writes meanwhile may have more by then than it would be left.
        let resized = (0..ATTEMPTS).any(|_| {
            let used = used(&self.0[node]).unwrap_or(LARGE);
            self.resize(node, used + LEFT)
        });
        assert!(resized, "{} cannot be made small", self.0[node].display());
    }

    /// Gives the room back.
    pub(super) fn enlarge(&self, node: usize) {
        let dir = self.0[node].display();
        assert!(self.resize(node, LARGE), "{dir} cannot be made large");
    }

    fn resize(&self, node: usize, bytes: u64) -> bool {
        let options = format!("remount,size={bytes}");
        run("mount", &["-o", &options], &self.0[node])
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for dir in &self.0 {
            if std::thread::panicking() {
                println!(
                    "kept for whoever looks into it; then: umount -l {}",
                    dir.display()
                );
                continue;
            }
            // Lazily: a process may still have files open.
            run("umount", &["-l"], dir);
        }
    }
}

/// Bytes that the files of a small file system take, in whole pages as it counts them.
fn used(dir: &Path) -> io::Result<u64> {
    let about = rustix::fs::statvfs(dir)?;
    Ok((about.f_blocks - about.f_bfree) * about.f_frsize)
}

/// Whether a command succeeded.
fn run(program: &str, arguments: &[&str], dir: &Path) -> bool {
    let output = Command::new(program).args(arguments).arg(dir).output();
    output.is_ok_and(|output| output.status.success())
}

/// Empties a node's directory, which may be a disk of its own.
pub(super) fn wipe(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Flips a bit in the main file of a node's database; nothing if it has no pages yet.
pub(super) fn flip_database(dir: &Path, random: &mut Random) -> io::Result<Option<String>> {
    let file = dir.join("db.sqlite");
    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    flip(&file, 0, bytes, random)
}

/// Flips a bit in what is used of one of the segments of a node's log.
pub(super) fn flip_log(dir: &Path, random: &mut Random) -> io::Result<Option<String>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir.join("log"))? {
        let path = entry?.path();
        let used = std::fs::read(&path)?.iter().rposition(|&byte| byte != 0);
        segments.extend(used.map(|last| (path, last + 1)));
    }
    segments.sort();
    if segments.is_empty() {
        return Ok(None);
    }
    let (path, used) = &segments[random.below(segments.len())];
    flip(path, 0, *used, random)
}

fn flip(path: &Path, from: usize, to: usize, random: &mut Random) -> io::Result<Option<String>> {
    if from >= to {
        return Ok(None);
    }
    let offset = (from + random.below(to - from)) as u64;
    let file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 1 << random.below(8);
    file.write_all_at(&byte, offset)?;
    Ok(Some(format!("{} at {offset}", path.display())))
}

/// The size of a disk that is not full.
const LARGE: u64 = 1 << 30;

/// What is left on one that is.
const LEFT: u64 = 256 << 10;

/// To make a disk small while it is written to.
const ATTEMPTS: usize = 50;
