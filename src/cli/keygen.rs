//! `wallaby keygen`: a new cluster key in a file of its own.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;

/// Why no key was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeygenError {
    /// There is a file already. It may be the key of a running cluster, so it stays.
    #[error("{0} exists and is not overwritten")]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("cannot write {file}: {source}")]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system has no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(getrandom::Error),
}

/// Writes a new key to `file`, readable by its owner only, and says what to do with it.
pub(crate) fn run(file: &Path) -> Result<(), KeygenError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(KeygenError::Random)?;
    let text = base64::engine::general_purpose::STANDARD.encode(secret);
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => KeygenError::Exists(file.to_owned()),
        _ => KeygenError::File {
            file: file.to_owned(),
            source,
        },
    };
    let mut output = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    output
        .write_all(format!("{}\n", text.trim_end()).as_bytes())
        .map_err(failed)?;
    output.sync_all().map_err(failed)?;
    let _ = writeln!(
        std::io::stdout(),
        "Wrote {0}. Copy it to every node and start each with -cluster-key {0}. Whoever has it can \
         join the cluster and read and change everything.",
        file.display()
    );
    Ok(())
}
