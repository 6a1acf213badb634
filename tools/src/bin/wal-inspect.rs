//! Shows what is in SQLite's WAL files and databases, and in a node's data directory.
//!
//! ```text
//! cargo run -p tools --bin wal-inspect -- --help
//! ```

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let is_terminal = io::stdout().is_terminal();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let code = tools::inspect::run(
        std::env::args_os(),
        &mut out,
        &mut io::stderr().lock(),
        is_terminal,
    );
    ExitCode::from(code)
}
