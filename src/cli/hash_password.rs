//! `wallaby hash-password`: the hash of a password for the users file.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use wallaby::http::password::{self, PasswordError};

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    /// The password cannot be read from stdin.
    #[error("cannot read a password from stdin: {0}")]
    Input(std::io::Error),
    /// It cannot be hashed.
    #[error(transparent)]
    Password(#[from] PasswordError),
}

/// Reads one line from stdin, and prints its hash.
///
/// # Errors
///
/// When there is nothing to read, or nothing to hash.
pub(crate) fn run() -> Result<(), HashError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        // To stderr, so that stdout is the hash and nothing else.
        let _ = write!(
            std::io::stderr(),
            "Password, which will be visible (or pipe it in): "
        );
    }
    let mut line = String::new();
    let mut bounded = stdin.lock().take(PASSWORD_BYTES_MAX);
    bounded.read_line(&mut line).map_err(HashError::Input)?;
    let hash = password::hash(line.trim_end_matches(['\r', '\n']))?;
    // Nobody is left to be told if stdout is gone.
    let _ = writeln!(std::io::stdout(), "{hash}");
    Ok(())
}

/// More than any password.
const PASSWORD_BYTES_MAX: u64 = 4096;
