//! The decoder of database pages against SQLite: what `dbstat` says about each page, and the rows
//! that SQLite reads.

use std::collections::BTreeMap;

use rusqlite::Connection;
use rusqlite::types::Value;
use tools::pages::{BtreePage, Column, Map, Pages, Role, columns, map, whole_payload};
use wal_tests::seed::{Random, seed};
use wallaby::wal::{PageCount, PageNumber, PageSize};

/// A database in memory, as bytes.
struct Bytes(Vec<u8>, PageSize);

impl Pages for Bytes {
    fn page_size(&self) -> PageSize {
        self.1
    }

    fn page_count(&self) -> PageCount {
        PageCount(u32::try_from(self.0.len() / self.1.len()).unwrap())
    }

    fn page(&self, page: PageNumber) -> Result<Vec<u8>, String> {
        let begin = usize::try_from(page.offset(self.1)).unwrap();
        let bytes = self.0.get(begin..begin + self.1.len());
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| "no such page".to_owned())
    }
}

const SETTINGS: [(u32, &str, &str); 6] = [
    (512, "none", "UTF-8"),
    (512, "full", "UTF-8"),
    (1024, "incremental", "UTF-16le"),
    (4096, "none", "UTF-16be"),
    (8192, "full", "UTF-8"),
    (65536, "none", "UTF-8"),
];

#[test]
fn every_page_and_every_row_are_those_that_sqlite_sees() {
    let seed = seed("inspect pages");
    let mut random = Random::new(seed);
    for (page_bytes, auto_vacuum, encoding) in SETTINGS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.db");
        let database = Connection::open(&path).unwrap();
        database
            .execute_batch(&format!(
                "PRAGMA page_size = {page_bytes}; PRAGMA auto_vacuum = {auto_vacuum};
                 PRAGMA encoding = '{encoding}';
                 CREATE TABLE t(a, b, c); CREATE INDEX by_a ON t(a, c);
                 CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
                 CREATE VIEW v AS SELECT 1; CREATE TRIGGER g AFTER INSERT ON w BEGIN SELECT 1; END;
                 CREATE TABLE gone(x); CREATE VIRTUAL TABLE words USING fts5(word);"
            ))
            .unwrap();
        fill(&database, &mut random, PageSize::new(page_bytes).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let pages = Bytes(bytes, PageSize::new(page_bytes).unwrap());
        let map = map(&pages).unwrap();
        assert_eq!(map.problems, [], "page size {page_bytes}");
        compare_with_dbstat(&database, &pages, &map);
        compare_rows(&database, &pages, &map);
    }
}

fn fill(database: &Connection, random: &mut Random, size: PageSize) {
    let value = |random: &mut Random| match random.below(8) {
        0 => Value::Null,
        1 => Value::Integer(random.bits().cast_signed()),
        2 => Value::Integer(random.bits().cast_signed() >> random.below(64)),
        3 => Value::Integer(i64::try_from(random.below(3)).unwrap() - 1),
        4 => Value::Real(f64::from_bits(
            random.bits() & !(0x7ff << 52) | (1023 << 52),
        )),
        5 => Value::Text("text \u{e4}\u{1f980}".repeat(random.below(4))),
        6 => Value::Text("long".repeat(random.below(size.len()))),
        _ => Value::Blob(vec![7; random.below(3 * size.len())]),
    };
    database.execute_batch("BEGIN").unwrap();
    for row in 0..120_i64 {
        let rowid = if random.chance(20) { -(row << 33) } else { row };
        let values = [
            Value::Integer(rowid),
            value(random),
            value(random),
            value(random),
        ];
        let insert = "INSERT OR REPLACE INTO t(rowid, a, b, c) VALUES (?, ?, ?, ?)";
        database
            .execute(insert, rusqlite::params_from_iter(values))
            .unwrap();
        let key = Value::Text(format!("{:x}", random.bits()).repeat(1 + random.below(3)));
        let insert = "INSERT INTO w VALUES (?, ?)";
        database.execute(insert, [key, value(random)]).unwrap();
        database
            .execute("INSERT INTO gone VALUES (zeroblob(900))", [])
            .unwrap();
        database
            .execute("INSERT INTO words VALUES ('some words')", [])
            .unwrap();
    }
    database
        .execute_batch("COMMIT; DROP TABLE gone; DELETE FROM t WHERE rowid % 7 = 3;")
        .unwrap();
}

fn compare_with_dbstat(database: &Connection, pages: &Bytes, map: &Map) {
    let mut found: BTreeMap<u32, (String, String, i64, i64)> = BTreeMap::new();
    let mut statement = database
        .prepare("SELECT pageno, name, pagetype, ncell, unused FROM dbstat")
        .unwrap();
    let rows = statement.query_map([], |row| {
        Ok((
            row.get(0)?,
            (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?),
        ))
    });
    found.extend(rows.unwrap().map(Result::unwrap));
    assert!(found.len() > 20, "dbstat has pages: {}", found.len());
    let mut seen = 0;
    for (page, role) in &map.roles {
        let Some((name, kind, cells, unused)) = found.get(&page.number()) else {
            let other = !matches!(role, Role::Btree(..) | Role::Overflow(..));
            assert!(other, "page {page}: {role:?} is unknown to dbstat");
            continue;
        };
        seen += 1;
        assert_eq!(map.owner(*page), Some(name.as_str()), "page {page}");
        let image = pages.page(*page).unwrap();
        match role {
            Role::Btree(_, of) => {
                let expected = if of.is_interior() { "internal" } else { "leaf" };
                assert_eq!(kind, expected, "page {page}");
                let parsed = BtreePage::parse(*page, &image, map.header.usable()).unwrap();
                assert_eq!(i64::from(parsed.cells), *cells, "cells of page {page}");
                let free = i64::try_from(parsed.free_bytes().unwrap()).unwrap();
                assert_eq!(free, *unused, "free bytes of page {page}");
            }
            Role::Overflow(..) => assert_eq!(kind, "overflow", "page {page}"),
            other => panic!("page {page}: {other:?} is {kind} to dbstat"),
        }
    }
    assert_eq!(seen, found.len(), "pages that dbstat has");
    let free: u32 = database
        .query_row("PRAGMA freelist_count", [], |row| row.get(0))
        .unwrap();
    let ours = map
        .roles
        .values()
        .filter(|role| matches!(role, Role::FreeLeaf | Role::FreeTrunk));
    assert_eq!(ours.count(), free as usize, "free pages");
}

fn compare_rows(database: &Connection, pages: &Bytes, map: &Map) {
    let mut ours: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    let mut overflowing = 0;
    for (page, role) in &map.roles {
        if !matches!(role, Role::Btree(_, kind) if kind.is_table() && !kind.is_interior())
            || map.owner(*page) != Some("t")
        {
            continue;
        }
        let image = pages.page(*page).unwrap();
        let parsed = BtreePage::parse(*page, &image, map.header.usable()).unwrap();
        for cell in parsed.cells() {
            let cell = cell.unwrap();
            overflowing += u32::from(cell.overflow.is_some());
            let payload = whole_payload(pages, map.header.usable(), &parsed, &cell, |_| Ok(()));
            let values = columns(&payload.unwrap(), map.encoding()).unwrap();
            let values = values.into_iter().map(|column| match column {
                Column::Blob(bytes) => Value::Blob(bytes),
                Column::Integer(value) => Value::Integer(value),
                Column::Null => Value::Null,
                Column::Real(value) => Value::Real(value),
                Column::Text(text) => Value::Text(text),
                Column::Elsewhere { .. } => panic!("a whole payload has everything"),
            });
            ours.insert(cell.rowid.unwrap(), values.collect());
        }
    }
    assert!(overflowing > 0, "some rows overflow");
    let mut statement = database.prepare("SELECT rowid, a, b, c FROM t").unwrap();
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, vec![row.get(1)?, row.get(2)?, row.get(3)?]))
    });
    let theirs: BTreeMap<i64, Vec<Value>> = rows.unwrap().map(Result::unwrap).collect();
    assert!(theirs.len() > 50);
    assert_eq!(ours, theirs);
}
