//! Files that `/db/load` must not swallow.

use rusqlite::Connection;

use crate::Lane;
use crate::inputs::{Ending, Input, class_of, fields, lines};

const LOAD: &str = include_str!("../../hostile/load.txt");

/// A small database with a table of one row.
fn database() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE loaded(v); INSERT INTO loaded VALUES(randomblob(9000))")
        .unwrap();
    drop(connection);
    std::fs::read(path).unwrap()
}

/// The same with some bytes replaced.
fn damaged(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut database = database();
    database[offset..offset + bytes.len()].copy_from_slice(bytes);
    database
}

/// The file behind a line of `load.txt`.
fn file(what: &str, out: &str) -> Vec<u8> {
    match what {
        "nothing" => Vec::new(),
        "text" => b"this is neither a database nor SQL".to_vec(),
        "random bytes" => (0..100_000_u32)
            .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect(),
        "a header alone" => database()[..100].to_vec(),
        "a truncated database" => {
            let mut database = database();
            database.truncate(database.len() - 4096);
            database
        }
        "a header of 64 KiB pages" => damaged(16, &[0, 1]),
        "a page size of zero" => damaged(16, &[0, 0]),
        "a page count of four billion" => damaged(28, &[0xff; 4]),
        "a freelist that leads round in a circle" => {
            damaged(32, &[0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff])
        }
        "a schema page full of garbage" => damaged(100, &[0xa5; 3000]),
        "a table whose root page is page one" => {
            let text = b"CREATE TABLE loaded(v)";
            let database = database();
            let at = database
                .windows(text.len())
                .position(|window| window == text);
            damaged(at.unwrap() - 1, &[1])
        }
        "a WAL header" => [&[0x37, 0x7f, 0x06, 0x82][..], &[0; 5000]].concat(),
        // 10 MiB of zeros in DEFLATE would be a kilobyte; what matters is that it is no database.
        "gzip of zeros" => [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 2000]].concat(),
        "a zip header" => [b"PK\x03\x04".as_slice(), &[0; 2000]].concat(),
        "SQL that attaches" => format!("ATTACH '{out}/new.db' AS other;").into_bytes(),
        "SQL that vacuums into a file" => format!("VACUUM INTO '{out}/new.db';").into_bytes(),
        "SQL that loads an extension" => {
            format!("SELECT load_extension('{out}/secret.txt');").into_bytes()
        }
        "SQL that never ends" => b"INSERT INTO scratch WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL \
            SELECT x + 1 FROM c) SELECT count(*) FROM c;"
            .to_vec(),
        other => panic!("{other} is not made here"),
    }
}

#[test]
fn damaged_and_malicious_files_are_not_loaded() {
    let mut lane = Lane::new();
    let address = lane.cluster.address(0).to_owned();
    let place = lane.place();
    let mut inputs = Vec::new();
    for (number, line) in lines(LOAD) {
        let [class, what] = fields(line, number);
        let file = file(what, &place.out);
        let mut bytes = format!(
            "POST /db/load?timeout=2s HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            file.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&file);
        inputs.push(Input {
            name: format!("load.txt:{number} {what}"),
            bytes,
            class: class_of(class),
            ending: Ending::Itself,
        });
    }
    assert!(inputs.len() >= 18);
    for input in &inputs {
        let _ = lane.try_out(input);
    }
    lane.assert_unharmed();
}
