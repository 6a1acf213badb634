//! `wallaby version`.

use std::io::Write;

/// Prints Wallaby's version, SQLite's and openraft's, one per line.
///
/// # Errors
///
/// When stdout cannot be written.
pub(crate) fn run() -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "wallaby {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(stdout, "sqlite {}", rusqlite::version())?;
    writeln!(stdout, "openraft {OPENRAFT_VERSION}")
}

/// Cargo.toml pins this version; openraft itself does not tell it at run time.
const OPENRAFT_VERSION: &str = "0.10.0-alpha.37";
