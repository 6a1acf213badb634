//! Bits that flip in the files of nodes that do not run.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cluster::ProcessCluster;
use crate::seed::Random;

/// Flips one bit of a file, somewhere in this range of bytes.
///
/// # Panics
///
/// When the file cannot be read and written there.
pub fn flip(random: &mut Random, file: &Path, from: usize, to: usize) {
    let offset = (from + random.below(to - from)) as u64;
    let opened = OpenOptions::new().read(true).write(true).open(file);
    let opened = opened.expect("the file is there");
    let mut byte = [0];
    opened
        .read_exact_at(&mut byte, offset)
        .expect("the file is as long as that");
    byte[0] ^= 1 << random.below(8);
    opened
        .write_all_at(&byte, offset)
        .expect("the file can be written");
    println!("flipped a bit of {} at {offset}", file.display());
}

/// The first segment of a node's log, and how many bytes of it are in use.
///
/// # Panics
///
/// When there is none.
#[must_use]
pub fn log_file(cluster: &ProcessCluster, node: usize) -> (PathBuf, usize) {
    let dir = cluster.data_dir(node).join("log");
    let names = std::fs::read_dir(dir).expect("the node has a log");
    let names = names.map(|entry| entry.expect("directories can be read").path());
    let is_in_use = |path: &PathBuf| path.metadata().is_ok_and(|found| found.len() > 0);
    let first = names.filter(is_in_use).min();
    let first = first.expect("a log has a segment");
    let bytes = std::fs::read(&first).expect("the segment can be read");
    let used = bytes.iter().rposition(|byte| *byte != 0);
    (first, used.map_or(0, |last| last + 1))
}
