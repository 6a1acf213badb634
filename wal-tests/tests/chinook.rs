//! The Chinook database, loaded through a follower, against a plain SQLite that ran the same
//! script.

#![allow(clippy::unwrap_used)]

use rusqlite::types::ValueRef;
use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};

const SCRIPT: &str = include_str!("../../src/cli/demo/chinook.sql");

/// The statements of the script: each ends with a semicolon at the end of a line.
fn statements() -> Vec<&'static str> {
    let parts = SCRIPT.split(";\n").map(str::trim);
    parts.filter(|part| !part.is_empty()).collect()
}

/// A value of plain SQLite as the JSON text in which rqlite shows it.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(integer) => integer.to_string(),
        // Go and Rust agree on the shortest digits, for numbers of this size.
        ValueRef::Real(real) => real.to_string(),
        ValueRef::Text(text) => json!(std::str::from_utf8(text).unwrap()).to_string(),
        ValueRef::Blob(_) => panic!("Chinook has no BLOBs"),
    }
}

fn plain_rows(plain: &rusqlite::Connection, sql: &str) -> Vec<Vec<String>> {
    let mut select = plain.prepare(sql).unwrap();
    let columns = select.column_count();
    let mut rows = select.query([]).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        found.push(
            (0..columns)
                .map(|column| shown(row.get_ref(column).unwrap()))
                .collect(),
        );
    }
    found
}

/// A SELECT of every row and column of a table. Columns of type DATETIME are cast, because rqlite
/// shows them in another form than SQLite stores them.
fn select_all(plain: &rusqlite::Connection, table: &str) -> String {
    let sql = format!("SELECT name, type FROM pragma_table_info('{table}')");
    let mut info = plain.prepare(&sql).unwrap();
    let column = |row: &rusqlite::Row<'_>| {
        let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
        Ok(if kind == "DATETIME" {
            format!("CAST([{name}] AS TEXT)")
        } else {
            format!("[{name}]")
        })
    };
    let columns: Vec<String> = info
        .query_map([], column)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    format!(
        "SELECT {} FROM [{table}] ORDER BY rowid",
        columns.join(", ")
    )
}

#[test]
fn chinook_loaded_through_a_follower_reads_like_plain_sqlite() {
    let plain = rusqlite::Connection::open_in_memory().unwrap();
    plain.execute_batch(SCRIPT).unwrap();
    let mut cluster = ProcessCluster::start(3, &Formation::Join, &[]);
    let follower = (cluster.wait_leader() + 1) % 3;
    for batch in statements().chunks(8) {
        let _ = cluster
            .client()
            .execute(cluster.address(follower), &json!(batch))
            .expect_success();
    }
    let image = cluster.assert_identical();
    let replica = cluster.open(&image);

    let names = "SELECT json_quote(name) FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let tables = plain_rows(&plain, names);
    assert_eq!(tables.len(), 11, "tables of Chinook");
    let tables = tables
        .iter()
        .map(|row| serde_json::from_str::<String>(&row[0]).unwrap());
    let tables = tables.map(|quoted| serde_json::from_str::<String>(&quoted).unwrap());
    let mut selects: Vec<String> = tables.map(|table| select_all(&plain, &table)).collect();
    selects.extend(QUESTIONS.map(str::to_owned));
    for (turn, select) in selects.iter().enumerate() {
        let expected = plain_rows(&plain, select);
        assert!(!expected.is_empty(), "{select}");
        let address = cluster.address(turn % 3);
        let found = cluster
            .client()
            .query(address, "linearizable", select)
            .unwrap();
        let found: Vec<Vec<String>> = found
            .iter()
            .map(|row| row.iter().map(Value::to_string).collect())
            .collect();
        assert_eq!(found, expected, "{select}");
        assert_eq!(
            plain_rows(&replica, select),
            expected,
            "in the image: {select}"
        );
    }
}

const QUESTIONS: [&str; 6] = [
    "SELECT count(*), sum(Milliseconds), avg(Bytes) FROM Track",
    "SELECT Country, printf('%.2f', sum(Total)) FROM Invoice JOIN Customer USING (CustomerId) \
     GROUP BY Country ORDER BY 1",
    "SELECT Artist.Name, count(*) FROM Artist JOIN Album USING (ArtistId) GROUP BY ArtistId \
     HAVING count(*) > 5 ORDER BY 2 DESC, 1",
    "WITH RECURSIVE chain(id, depth) AS (SELECT EmployeeId, 0 FROM Employee \
     WHERE ReportsTo IS NULL UNION ALL SELECT EmployeeId, depth + 1 FROM Employee \
     JOIN chain ON ReportsTo = id) SELECT LastName, depth \
     FROM chain JOIN Employee ON EmployeeId = id ORDER BY depth, LastName",
    "SELECT Name, rank() OVER (PARTITION BY GenreId ORDER BY Milliseconds DESC, TrackId) AS place \
     FROM Track ORDER BY place, TrackId LIMIT 40",
    "SELECT Name FROM Track WHERE Name LIKE '%\u{e7}%' OR Name GLOB '*[0-9]*' ORDER BY TrackId",
];
