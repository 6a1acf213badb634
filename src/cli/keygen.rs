//! `wallaby keygen`: a new cluster key in a file of its own.

use std::io::Write;
use std::path::Path;

use wallaby::transport::{ClusterKey, TransportError};

/// Writes a new key to `file`, readable by its owner only, and says what to do with it.
///
/// # Errors
///
/// When there is a file already (it may be the key of a running cluster), or it cannot be written.
pub(crate) fn run(file: &Path) -> Result<(), TransportError> {
    ClusterKey::generate()?.write_new(file)?;
    // The key is on disk; whether anybody reads this does not matter.
    let _ = writeln!(
        std::io::stdout(),
        "Wrote {0}. Copy it to every node and start each with -cluster-key {0}. Whoever has it can \
         join the cluster and read and change everything.",
        file.display()
    );
    Ok(())
}
