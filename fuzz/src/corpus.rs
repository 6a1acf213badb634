//! The inputs in `fuzz/corpus/`: samples that a generator makes from real values
//! (`sample-...`), and inputs that fuzzing has found (`found-...`), past crashes among them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Target, place};

/// Where the inputs of a target are.
#[must_use]
pub fn directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// The inputs of a target with their names.
///
/// # Panics
/// If there is no such folder.
#[must_use]
pub fn inputs(target: &Target) -> Vec<(String, Vec<u8>)> {
    let directory = directory(target);
    place::names(&directory)
        .into_iter()
        .map(|name| {
            let bytes = fs::read(directory.join(&name)).expect("a file of the corpus");
            (name, bytes)
        })
        .collect()
}

/// Writes the samples of a target in place of the old ones; how many there are.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_samples(target: &Target) -> io::Result<usize> {
    let directory = directory(target);
    fs::create_dir_all(&directory)?;
    for name in place::names(&directory) {
        if name.starts_with(SAMPLE) {
            fs::remove_file(directory.join(name))?;
        }
    }
    let samples = (target.samples)();
    for sample in &samples {
        fs::write(
            directory.join(format!("{SAMPLE}{}", sample.name)),
            &sample.bytes,
        )?;
    }
    Ok(samples.len())
}

const SAMPLE: &str = "sample-";
