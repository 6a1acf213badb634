//! The samples: files in `samples/`, and what is made from them on the fly.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::json;
use wal_tests::cluster::{Formation, ProcessCluster};
use wallaby::node::files::Manifest;
use wallaby::raft::StoredMembership;
use wallaby::wal::{DatabaseHash, PageCount, PageHash, PageNumber, PageSize, Position};

/// Where the samples are, from the directory in which cargo runs tests.
pub(crate) const SAMPLES: &str = "tests/inspect/samples";

/// Copies a sample directory or file with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// A copy of everything in `samples/`, and the samples that are made from it, in a new directory.
pub(crate) fn workbench() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(Path::new(SAMPLES), dir.path());
    let at = |name: &str| dir.path().join(name);
    // One byte of a row in page 2 of the database, and of a page in the WAL.
    copy(&at("node"), &at("flipped"));
    let database = fs::read(at("flipped/db.sqlite")).unwrap();
    let row = database.windows(4).rposition(|window| window == b"pear");
    flip(&at("flipped/db.sqlite"), row.unwrap());
    // The same without a log that could mend it.
    copy(&at("flipped"), &at("bare"));
    fs::remove_dir_all(at("bare/log")).unwrap();
    copy(&at("plain.db-wal"), &at("flipped-wal"));
    flip(&at("flipped-wal"), 32 + 2 * 536 + 100);
    copy(&at("plain.db-wal"), &at("no-header-wal"));
    flip(&at("no-header-wal"), 13);
    let wal = fs::read(at("plain.db-wal")).unwrap();
    fs::write(at("cut-wal"), &wal[..32 + 3 * 536 + 77]).unwrap();
    let segment = fs::read(at("node/log").join(SEGMENT)).unwrap();
    fs::create_dir(at("log-damaged")).unwrap();
    fs::write(at("log-damaged").join(SEGMENT), &segment).unwrap();
    flip(&at("log-damaged").join(SEGMENT), 2000);
    fs::create_dir(at("log-torn")).unwrap();
    fs::write(
        at("log-torn").join(SEGMENT),
        &segment[..segment.len() - 600],
    )
    .unwrap();
    fs::write(at("installing"), spool()).unwrap();
    copy(&at("node"), &at("receiving"));
    fs::write(at("receiving/installing"), spool()).unwrap();
    fs::write(at("incoming-pages"), &spool()[..16 + 520 + 300]).unwrap();
    dir
}

/// The one segment of the sample node.
pub(crate) const SEGMENT: &str = "0000000000000001-0000000000000000.log";

pub(crate) fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// A complete spool of all three pages of a database, laid out by hand as its format says.
fn spool() -> Vec<u8> {
    let mut bytes = b"\x8eWLBSP\n\x1a".to_vec();
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(512_u32.to_le_bytes());
    let mut hash = DatabaseHash::default();
    for number in [3_u32, 1, 2] {
        let image = [u8::try_from(number).unwrap(); 512];
        hash = hash.with(PageHash::of(PageNumber::new(number).unwrap(), &image));
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&image);
        bytes.extend(number.to_le_bytes());
        bytes.extend(hasher.finalize().to_le_bytes());
        bytes.extend(image);
    }
    let applied = Position {
        term: 2,
        node: 0xab,
        index: 40,
    };
    let manifest = Manifest {
        applied,
        data: Some(applied),
        membership: StoredMembership::default(),
        page_size: PageSize::new(512).unwrap(),
        page_count: PageCount(3),
        hash,
    };
    let manifest = manifest.encode();
    bytes.extend([0; 4]);
    bytes.extend(u32::try_from(manifest.len()).unwrap().to_le_bytes());
    bytes.extend(manifest);
    bytes
}

/// Makes the files in `samples/` anew. They differ each time, in salts, ids and times, and so do all
/// golden outputs.
#[test]
#[ignore = "the samples are committed; see samples/README.md"]
fn make_samples() {
    let samples = PathBuf::from(SAMPLES);
    make_plain(&samples.join("plain.db"));
    make_node(&samples.join("node"));
}

fn make_plain(path: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("plain.db");
    let database = Connection::open(&made).unwrap();
    let run = |sql: &str| database.execute_batch(sql).unwrap();
    run(
        "PRAGMA page_size = 512; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
         CREATE TABLE fruit(id INTEGER PRIMARY KEY, name TEXT, weight REAL, picture BLOB);
         CREATE INDEX by_name ON fruit(name);
         INSERT INTO fruit VALUES (1, 'apple', 1.5, x'0102'), (2, 'pear', NULL, zeroblob(700));
         INSERT INTO fruit VALUES (3, 'fig', 0.5, zeroblob(600));
         PRAGMA wal_checkpoint(RESTART);
         INSERT INTO fruit VALUES (4, 'plum', 0.25, x'ff');
         UPDATE fruit SET name = 'quince' WHERE id = 1;
         DELETE FROM fruit WHERE id = 2;",
    );
    // While it is open: closing it would checkpoint.
    for suffix in ["", "-wal", "-shm"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        fs::copy(name(&made), name(path)).unwrap();
    }
}

/// A node on its own that has taken a few writes and was closed in order.
fn make_node(path: &Path) {
    let mut cluster = ProcessCluster::start(1, &Formation::Expect, &[]);
    let address = cluster.address(0).to_owned();
    for sql in [
        "CREATE TABLE fruit(id INTEGER PRIMARY KEY, name TEXT)",
        "INSERT INTO fruit(name) VALUES ('apple'), ('pear')",
        "INSERT INTO fruit(name) VALUES ('plum')",
        "UPDATE fruit SET name = 'quince' WHERE id = 1",
    ] {
        let outcome = cluster.client().execute(&address, &json!([sql]));
        assert!(
            matches!(outcome, wal_tests::client::Outcome::Answered(_)),
            "{outcome:?}"
        );
    }
    cluster.stop(0);
    drop(fs::remove_dir_all(path));
    copy(cluster.data_dir(0), path);
    fs::remove_file(path.join("log/lock")).unwrap();
    // The zeros ahead are not worth a megabyte.
    let segment = path.join("log").join(SEGMENT);
    let bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    fs::write(&segment, &bytes[..end.next_multiple_of(8) + 64]).unwrap();
}
