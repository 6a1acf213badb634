//! Database files to be loaded, whose rows all say which file they came with.

use std::path::Path;

use rusqlite::Connection;

/// A database of so many rows of 4000 bytes in each of two tables, `a` and `b`, all marked with a
/// number.
///
/// # Panics
///
/// When the file cannot be made in this directory.
#[must_use]
pub fn file(dir: &Path, mark: u64, rows: u64) -> Vec<u8> {
    let path = dir.join(format!("{mark}.db"));
    let database = Connection::open(&path).expect("a new file");
    let tables = ["a", "b"].map(|table| {
        format!(
            "CREATE TABLE {table}(mark INTEGER, pad BLOB); \
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {rows}) \
             INSERT INTO {table} SELECT {mark}, randomblob(4000) FROM n;"
        )
    });
    database.execute_batch(&tables.concat()).expect("valid SQL");
    database.close().expect("nothing is open");
    std::fs::read(path).expect("it was just written")
}
