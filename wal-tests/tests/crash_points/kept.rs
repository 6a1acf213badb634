//! A crash point that fails, kept in a directory to be tried again.
//!
//! The directory holds the disk as the crash left it in `image`, and in `expected` one line each
//! for the node's name, the floor, the ceiling, and every data entry with its hash.

use std::fs;
use std::path::Path;

use wal_tests::torn_disk::DiskImage;
use wallaby::wal::DatabaseHash;

use crate::oracle::Expectation;
use crate::story::Tale;

/// Keeps it; returns the error with where.
pub(crate) fn keep(tale: &Tale, image: &DiskImage, expected: &Expectation, error: &str) -> String {
    let dir = tempfile::Builder::new().prefix("wallaby-crash-").tempdir();
    let dir = dir.unwrap().keep();
    image.write_to(&dir.join("image")).unwrap();
    let Expectation { floor, ceiling, .. } = expected;
    let mut text = format!("{}\n{floor}\n{ceiling}\n", tale.node);
    for (index, hash) in &tale.hashes {
        text += &format!("{index} {hash}\n");
    }
    fs::write(dir.join("expected"), text).unwrap();
    format!(
        "{error}\n  to replay: WAL_CRASH_IMAGE={} cargo test -p wal-tests --test crash_points",
        dir.display()
    )
}

/// What was kept.
pub(crate) fn load(dir: &Path) -> (Tale, DiskImage, Expectation) {
    let text = fs::read_to_string(dir.join("expected")).unwrap();
    let mut lines = text.lines();
    let mut line = || lines.next().unwrap();
    let node = line().to_owned();
    let expected = Expectation {
        floor: line().parse().unwrap(),
        ceiling: line().parse().unwrap(),
        other_votes: None,
    };
    let hashes = lines.map(|line| {
        let (index, hash) = line.split_once(' ').unwrap();
        let hash = u128::from_str_radix(hash, 16).unwrap();
        (index.parse().unwrap(), DatabaseHash(hash))
    });
    let tale = Tale {
        name: dir.display().to_string(),
        node,
        events: Vec::new(),
        moments: Vec::new(),
        hashes: hashes.collect(),
    };
    let mut image = DiskImage::default();
    collect(&dir.join("image"), "", &mut image);
    (tale, image, expected)
}

fn collect(dir: &Path, prefix: &str, image: &mut DiskImage) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            image.dirs.push(name.clone());
            collect(&entry.path(), &format!("{name}/"), image);
        } else {
            let bytes = fs::read(entry.path()).unwrap();
            image.files.insert(name, bytes);
        }
    }
}
