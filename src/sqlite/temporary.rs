//! Where SQLite keeps temporary files, such as the copy that VACUUM makes of a private database:
//! beside the database, not in a directory that others can write to or that is smaller.

use std::path::Path;
use std::sync::Once;

use rusqlite::Connection;

static SET: Once = Once::new();

/// Has SQLite keep its temporary files in this directory. SQLite knows one for the process and
/// changes it under nobody's lock, so the first call counts; before any connection is open.
pub fn keep_temporary_files_in(dir: &Path) {
    SET.call_once(|| {
        if let Err(error) = set(dir) {
            let dir = dir.display();
            tracing::warn!(%dir, %error, "SQLite keeps its temporary files elsewhere");
        }
    });
}

fn set(dir: &Path) -> Result<(), String> {
    let dir = dir.canonicalize().map_err(|error| error.to_string())?;
    let dir = dir.to_str().ok_or("its path is not UTF-8")?;
    let connection = Connection::open_in_memory().map_err(|error| error.to_string())?;
    connection
        .pragma_update(None, "temp_store_directory", dir)
        .map_err(|error| error.to_string())
}
